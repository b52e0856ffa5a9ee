"""Where a run is kept: a folder, or a place in a bucket, gs://BUCKET/RUN.

Checkpoints and frozen parts go straight to the bucket: Orbax writes every host's own shards there. Objects cannot be
appended to, so the files that grow (curves, TensorBoard, quarantine) are written into a folder of this machine and
uploaded before every checkpoint and at the end. What a killed run did not upload belongs to steps after its last
checkpoint, which are computed again. `STORAGE_EMULATOR_HOST` names another server (tests).
"""

import hashlib
import pathlib
import tempfile
from collections.abc import Iterator

from motus_jax.data import storage
from motus_jax.data.remote_path import RemotePath
from motus_jax.data.run_path import Home
from motus_jax.errors import UserError

GROWING = ("metrics.jsonl", "timing.jsonl", "attempts.json", "quarantine.*.jsonl", "tensorboard/*")
"""Files that a run goes on writing."""


def local_out(home: Home, out: "str | None") -> pathlib.Path:
    """The folder for results: the run's own unless another is given.

    Raises:
      UserError: none is given and the run is in a bucket, or the given one is.
    """
    if storage.is_remote(out or home):
        raise UserError(f"--out: expected a folder of this machine, since {home} is in a bucket; found {out or 'none'}")
    return pathlib.Path(out or home)


def copy_curves(home: Home, out: pathlib.Path) -> None:
    """Puts the curves of a run in a bucket beside its results, where the report looks for them.

    Raises:
      RemoteError: the bucket cannot be read.
    """
    if isinstance(home, RemotePath):
        list(fetch(home, out, ("metrics.jsonl", "timing.jsonl")))


class Files:
    """The small files of a run, in a folder of this machine; use as a context manager, which uploads them at the end.

    Attributes:
      folder: where they are written: the run's own folder, or one that is there while the run lasts.
    """

    def __init__(self, home: Home):
        self._home, self._uploaded = home, {}
        self._temporary = tempfile.TemporaryDirectory(prefix="motus_run_") if isinstance(home, RemotePath) else None
        self.folder = pathlib.Path(self._temporary.name) if self._temporary else pathlib.Path(home)

    def __enter__(self) -> "Files":
        """Fetches what the run has written before; makes the folder.

        Raises:
          RemoteError: the bucket cannot be read.
        """
        if isinstance(self._home, RemotePath):
            for file in fetch(self._home, self.folder, GROWING):
                self._uploaded[file] = _digest(file)
        return self

    def __exit__(self, *_: object) -> None:
        self.upload()
        if self._temporary:
            self._temporary.cleanup()

    def upload(self) -> None:
        """Brings the bucket up to date; nothing for a local run.

        Raises:
          RemoteError: the bucket does not take them.
        """
        if not isinstance(self._home, RemotePath):
            return
        for file in sorted(file for file in self.folder.rglob("*") if file.is_file()):
            digest = _digest(file)
            if self._uploaded.get(file) != digest:
                (self._home / str(file.relative_to(self.folder))).write_bytes(file.read_bytes())
                self._uploaded[file] = digest


def fetch(home: RemotePath, folder: pathlib.Path, patterns: "tuple[str, ...]") -> Iterator[pathlib.Path]:
    """Copies small files of a run in a bucket into a folder.

    Raises:
      RemoteError: the bucket cannot be read.
    """
    for pattern in patterns:
        for file in home.glob(pattern):
            target = folder / file.relative_to(home)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            yield target


def _digest(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
