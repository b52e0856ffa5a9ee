"""Paths of data: local ones and, by the same functions, gs://.

Local paths are epath's and never touch the network. Of gs:// paths (`motus_jax.data.remote_path`) every request is
repeated on passing faults and every answer checked (`motus_jax.data.gcs`). Libraries that read local files only get a
copy from a cache on disk, which all processes of a machine share (`motus_jax.data.disk_cache`):

  MOTUS_CACHE      its folder, by default ~/.cache/motus_jax/objects
  MOTUS_CACHE_GIB  its size, by default 20
"""

import contextlib
import functools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from etils import epath

from motus_jax.data.gs_url import SCHEME
from motus_jax.data.remote_path import RemotePath
from motus_jax.errors import RemoteError, UserError

if TYPE_CHECKING:
    from motus_jax.data.disk_cache import DiskCache

Path = epath.Path | RemotePath

CACHE_GIB = 20.0
PIECE = 8 << 20
"""Bytes of one request for a whole file."""
PIECES_AT_ONCE = 4


def path(name: str | os.PathLike | Path) -> Path:
    """The path as an object with the methods of `pathlib.Path`, local or gs://."""
    return RemotePath(str(name)) if is_remote(name) else epath.Path(name)


def is_remote(name: str | os.PathLike | Path) -> bool:
    """Whether the path is on gs://."""
    return str(name).startswith(SCHEME)


@contextlib.contextmanager
def local(file: Path) -> Iterator[pathlib.Path]:
    """The file on this machine, for libraries that read local files only; valid inside the `with` block.

    A remote file is copied whole, unless its copy is there, and compared with the checksum that the storage has of it.

    Raises:
      FileNotFoundError: no such file.
      RemoteError: the storage does not give it, or gives something else than its checksum says.
      UserError: it does not fit into the cache.
    """
    if not is_remote(file):
        yield pathlib.Path(file)
        return
    with _copy(file) as copy:
        yield copy


def read_range(file: Path, first: int, count: int) -> bytes:
    """`count` bytes from byte `first` on, in one request; fewer only where the file ends before.

    Raises:
      FileNotFoundError: no such file.
      RemoteError: the storage does not give them.
    """
    if not is_remote(file):
        with open(file, "rb") as opened:
            return os.pread(opened.fileno(), count, first)
    from motus_jax.data import gcs

    return gcs.read_range(str(file), first, count)


def place(file: pathlib.Path, target: Path) -> None:
    """Moves a finished file to its place, where it appears whole or not at all.

    Local: on the same disk, after its bytes are on it. Remote: uploaded, compared with what arrived, removed here.
    """
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        if is_remote(target):
            from motus_jax.data import disk_cache, gcs

            gcs.upload(str(target), file, disk_cache.checksum(opened.fileno()))
            target.facts(fresh=True)
    if is_remote(target):
        file.unlink()
    else:
        os.replace(file, target)


def write_text(file: Path, text: str) -> None:
    """Writes a file that appears whole or not at all; its folder exists."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """As `write_text`."""
    if is_remote(file):
        file.write_bytes(content)
        return
    handle, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    part = pathlib.Path(part)
    try:
        part.write_bytes(content)
        part.chmod(0o644)
        place(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def total_bytes(folder: Path) -> int:
    """Size of everything below a folder."""
    if folder.is_file():
        return folder.stat().length
    return sum(total_bytes(entry) for entry in folder.iterdir())


def cache() -> "DiskCache":
    """The cache that the environment names.

    Raises:
      UserError: MOTUS_CACHE_GIB is no size.
    """
    folder = os.environ.get("MOTUS_CACHE") or os.path.expanduser("~/.cache/motus_jax/objects")
    size = os.environ.get("MOTUS_CACHE_GIB") or str(CACHE_GIB)
    try:
        limit = int(float(size) * 2**30)
    except ValueError as error:
        raise UserError(f"MOTUS_CACHE_GIB: expected gibibytes, e.g. 20; found {size!r}") from error
    return _cache(folder, limit)


@functools.lru_cache(4)
def _cache(folder: str, limit: int) -> "DiskCache":
    from motus_jax.data.disk_cache import DiskCache

    return DiskCache(pathlib.Path(folder), limit)


@contextlib.contextmanager
def _copy(file: RemotePath) -> Iterator[pathlib.Path]:
    from motus_jax.data import disk_cache

    with contextlib.ExitStack() as stack:
        for fresh in (False, True):
            facts = file.facts(fresh)
            origin = disk_cache.Origin(str(file), facts.size, facts.crc32c, facts.generation)
            try:
                copy = stack.enter_context(cache().use(origin, functools.partial(_fetch, file, facts.size)))
                break
            except disk_cache.WrongBytes as error:  # written anew since we were told of it?
                if fresh:
                    raise RemoteError(str(error)) from error
        yield copy


def _fetch(file: RemotePath, size: int, handle: int) -> None:
    def fetch(first: int) -> None:
        os.pwrite(handle, read_range(file, first, min(PIECE, size - first)), first)

    with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        list(pool.map(fetch, range(0, size, PIECE)))
