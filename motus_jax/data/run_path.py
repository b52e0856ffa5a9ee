"""Places of runs and imports: folders, or gs://BUCKET/NAME, as our own code and Orbax take them."""

import os
import pathlib
import shutil

from motus_jax.data import storage
from motus_jax.data.remote_path import RemotePath
from motus_jax.errors import UserError

Home = pathlib.Path | RemotePath


def of(name: "str | Home") -> Home:
    """The place that a name means."""
    if not storage.is_remote(name):
        return pathlib.Path(name)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:  # TensorStore, which writes the arrays, has a variable of its own
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator if "://" in emulator else f"http://{emulator}")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # as `motus_jax.data.gcs`, for Orbax's own use
    found = storage.path(str(name))
    assert isinstance(found, RemotePath)
    return found


def local(name: str) -> pathlib.Path:
    """A folder of this machine, for what is only written there.

    Raises:
      UserError: a place in a bucket.
    """
    if storage.is_remote(name):
        raise UserError(
            f"{name}: expected a folder of this machine; found one in a bucket: copy the result there, e.g. with gcloud"
            " storage cp --recursive"
        )
    return pathlib.Path(name)


def absolute(home: Home) -> Home:
    return home if isinstance(home, RemotePath) else home.absolute()


def for_orbax(path: Home) -> "str | pathlib.Path":
    """The path as Orbax takes it."""
    return str(path) if isinstance(path, RemotePath) else path


def check_writable(home: Home) -> None:
    """Refuses a place in a bucket that nothing can be written to, before anything is computed.

    Raises:
      UserError: no such bucket.
      RemoteError: it does not take anything, e.g. for want of a permission.
    """
    if isinstance(home, RemotePath):
        probe = home / ".writable"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except FileNotFoundError as error:
            raise UserError(f"{home}: expected a bucket that exists; found none of this name: make it first") from error


def move(folder: Home, target: Home) -> None:
    """Moves a folder, in place of what is there."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(target, ignore_errors=True)
        pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)
        return
    from motus_jax.data import gcs

    gcs.move_folder(str(folder), str(target))
