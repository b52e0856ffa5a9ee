"""Objects of Google Cloud Storage: whole, in ranges, listed and written, through gcsfs with one bounded retry.

gcsfs repeats a request up to six times by itself, waits whole seconds between and trusts the length of an answer. Here
its method that sends one request (`GCSFileSystem._request`) is replaced by one that

  - repeats on 408, 429, 500, 502, 503, 504, timeouts, resets and short answers, with exponential backoff and jitter,
    at most `RETRIES.attempts` times and for `RETRIES.seconds`;
  - compares an answer's length with the range that was asked for, and a whole object with its crc32c.

So nothing is repeated by two parties, and every use of gcsfs below has the same guard. `STORAGE_EMULATOR_HOST` names
another server (tests); it gets no credentials.
"""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

# The default file system of gcsfs 2026 asks the kind of a bucket over gRPC, which no emulator answers.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import aiohttp
import google.auth.exceptions
import google_crc32c
import requests
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError

from motus_jax.data.gs_url import SCHEME, split
from motus_jax.errors import RemoteError

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
PAGE = 1000
"""Objects in a page of a listing, the most that the service gives."""


class ShortAnswer(Exception):
    """An answer that is shorter than asked for or not what its checksum says: it is asked for again."""


@dataclasses.dataclass(frozen=True)
class Retries:
    """How a request is repeated.

    Attributes:
      attempts: requests in all.
      seconds: from the first one, beyond which none is begun.
      first: seconds before the second one; doubled each time.
      longest: between two.
    """

    attempts: int = 12
    seconds: float = 180.0
    first: float = 0.1
    longest: float = 16.0

    def wait(self, tried: int) -> float:
        """Seconds before the next request: half of them by chance, so that many readers do not return together."""
        return min(self.longest, self.first * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)


RETRIES = Retries()
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=30.0)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the service says of an object.

    Attributes:
      size: bytes.
      crc32c: checksum of its bytes; None where the service gives none.
      generation: changes whenever the object is written anew.
      updated: RFC 3339 time of the last write.
    """

    size: int
    crc32c: int | None
    generation: str
    updated: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Facts":
        """An object resource of the service's JSON API."""
        checksum = record.get("crc32c")
        return cls(
            int(record.get("size", 0)),
            None if checksum is None else _decode(checksum),
            str(record.get("generation", "")),
            str(record.get("updated", "")),
        )


class Client(GCSFileSystem):
    """gcsfs with our retries in place of its own.

    Attributes:
      counts: requests sent, and how many of them were repeats.
    """

    cachable = False
    protocol = "gs"

    def __init__(self, **options: Any):
        super().__init__(**options, requests_timeout=TIMEOUT, use_listings_cache=False)
        self.counts = {"requests": 0, "repeats": 0}

    async def _request(self, method: str, path: str, *args: str, headers: Any = None, **options: Any) -> Any:
        begun, tried, found = time.monotonic(), 0, ""
        while True:
            tried += 1
            self.counts["requests"] += 1
            try:
                answer = await _send_once(self, method, path, *args, headers=headers, **options)
                _check(method, path, headers or {}, answer)
                return answer
            except Exception as error:
                found = _transient(error)
                if not found:
                    raise
            wait, passed = RETRIES.wait(tried), time.monotonic() - begun
            if tried >= RETRIES.attempts or passed + wait > RETRIES.seconds:
                raise RemoteError(
                    f"{_name(path, args)}: expected an answer to {method}; found {found} at the last of {tried} tries "
                    f"in {passed:.0f} s"
                )
            self.counts["repeats"] += 1
            await asyncio.sleep(wait)


_send_once = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)
"""gcsfs's own method, without its retries."""


def _transient(error: Exception) -> str:
    """What went wrong, where trying again may help; else nothing."""
    if isinstance(error, HttpError):
        code = int(error.code or 0)
        # Tokens expire between being attached and being read.
        expired = code == 401 and "Invalid Credentials" in str(error.message)
        return f"HTTP {code}" if code in TRANSIENT or expired else ""
    if isinstance(error, requests.exceptions.ProxyError):
        return "HTTP 502"
    kinds = (
        aiohttp.ClientError, requests.exceptions.RequestException, TimeoutError, ConnectionError, ShortAnswer,
        google.auth.exceptions.TransportError, google.auth.exceptions.RefreshError,
    )  # fmt: skip
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}".strip() if isinstance(error, kinds) else ""


def _check(method: str, path: str, asked: Mapping[str, str], answer: tuple[int, Mapping[str, str], Any, bytes]) -> None:
    """Compares an answer with what was asked for and with what it says of itself.

    Raises:
      ShortAnswer: it is not whole.
    """
    status, headers, _, content = answer
    if method.upper() != "GET" or "alt=media" not in path:
        if content or method.upper() == "GET":
            _check_json(headers, content)
    elif asked.get("Range"):
        _check_range(asked["Range"], status, headers, content)
    elif status == 200:
        _check_whole(headers, content)


def _check_json(headers: Mapping[str, str], content: bytes) -> None:
    if "application/json" in headers.get("Content-Type", ""):
        try:
            json.loads(content)
        except ValueError as error:
            raise ShortAnswer(f"an answer of {len(content)} bytes that is no JSON") from error


def _check_range(asked: str, status: int, headers: Mapping[str, str], content: bytes) -> None:
    first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
    given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    if given:
        last = min(last, int(given[3]) - 1)  # the object may end before the range does
    if len(content) != last - first + 1 or (given and (int(given[1]), int(given[2])) != (first, last)):
        raise ShortAnswer(f"HTTP {status} with {len(content)} bytes for the range {first} to {last}")


def _check_whole(headers: Mapping[str, str], content: bytes) -> None:
    if headers.get("X-Goog-Stored-Content-Encoding", "identity") != "identity":
        return  # unpacked on the way: the checksum is that of the packed bytes
    expected = re.search(r"crc32c=([\w+/=]+)", ",".join(_all(headers, "X-Goog-Hash")))
    if expected and _decode(expected[1]) != google_crc32c.value(content):
        raise ShortAnswer(f"{len(content)} bytes of another checksum than the object's")


def _all(headers: Mapping[str, str], name: str) -> Sequence[str]:
    many = getattr(headers, "getall", None)
    return many(name, []) if many else [headers.get(name, "")]


def _decode(checksum: str) -> int:
    return int.from_bytes(base64.b64decode(checksum), "big")


def _name(path: str, args: Sequence[str]) -> str:
    """The object or bucket that a request is about, as gs://."""
    if args:
        return SCHEME + "/".join(part for part in map(str, args) if part)
    found = re.search(r"/b/([^/?]+)(?:/o/([^?]+))?", path)
    return SCHEME + urllib.parse.unquote("/".join(filter(None, found.groups()))) if found else path


def client() -> Client:
    """This process's client of the server that the environment names."""
    return _client(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST", ""))


@functools.lru_cache(4)
def _client(pid: int, emulator: str) -> Client:
    # The process is part of the key: a client's thread does not live on in a fork.
    return Client(token="anon", project="none") if emulator else Client()


def facts(url: str) -> Facts:
    """Size and checksum of an object, from the service.

    Raises:
      FileNotFoundError: no such object.
    """
    bucket, key = split(url)
    return Facts.from_json(_call(url, "GET", "b/{}/o/{}", bucket, key, json_out=True))


def folder(url: str, limit: int | None = None) -> tuple[dict[str, Facts], list[str]]:
    """What lies directly in a folder: objects by name, and names of folders; nothing where there is no such folder.

    Args:
      limit: stops after a page with that many, to ask only whether there is anything.
    """
    bucket, key = split(url)
    prefix = f"{key}/" if key and not key.endswith("/") else key
    objects: dict[str, Facts] = {}
    folders: list[str] = []
    token = None
    while True:
        query = {"prefix": prefix or None, "delimiter": "/", "maxResults": limit or PAGE, "pageToken": token}
        query = {name: value for name, value in query.items() if value is not None}
        try:
            page = _call(url, "GET", "b/{}/o", bucket, json_out=True, **query)
        except FileNotFoundError:  # the bucket
            return {}, []
        for record in page.get("items", ()):
            # Some tools write an empty object in the place of a folder.
            if record["name"] != prefix:
                objects[record["name"][len(prefix) :]] = Facts.from_json(record)
        folders += [name[len(prefix) : -1] for name in page.get("prefixes", ())]
        token = page.get("nextPageToken")
        if limit or not token:
            return objects, sorted(folders)


def read(url: str) -> bytes:
    """All bytes of an object, compared with its checksum.

    Raises:
      FileNotFoundError: no such object.
    """
    return _call(url, "GET", client().url(url))[1]


def read_range(url: str, first: int, count: int) -> bytes:
    """`count` bytes of an object from byte `first` on; fewer only where it ends before.

    Raises:
      FileNotFoundError: no such object.
    """
    if not count:
        return b""
    try:
        return _call(url, "GET", client().url(url), headers={"Range": f"bytes={first}-{first + count - 1}"})[1]
    except HttpError as error:
        if int(error.code or 0) == 416:  # it ends before the first byte
            return b""
        raise


def write(url: str, content: bytes) -> None:
    """Writes an object, which appears as a whole or not at all."""
    _guarded(url, "write", lambda: client().pipe_file(url, content))
    _compare(url, len(content), google_crc32c.value(content))


def upload(url: str, file: str | os.PathLike, checksum: int) -> None:
    """Writes a file as an object, and compares what arrived.

    Args:
      checksum: crc32c of the file.

    Raises:
      RemoteError: it arrives otherwise three times.
    """
    size = os.stat(file).st_size
    for last in (False, False, True):
        try:
            # An answer that was lost on the way makes the end of an upload look like a fault: what counts is what lies
            # there afterwards.
            with contextlib.suppress(RemoteError, FileNotFoundError):
                _guarded(url, "write", lambda: client().put_file(os.fspath(file), url))
            return _compare(url, size, checksum)
        except (RemoteError, FileNotFoundError):
            if last:
                raise


def remove(url: str) -> None:
    """Removes an object.

    Raises:
      FileNotFoundError: no such object.
    """
    bucket, key = split(url)
    _call(url, "DELETE", "b/{}/o/{}", bucket, key)


def move_folder(url: str, target: str) -> None:
    """Moves every object below a name to below another, inside the service; what lay there goes first."""
    names = [tuple(split(each)) for each in (url, target)]
    (bucket, key), (other_bucket, other_key) = names
    for name in client().find(f"{other_bucket}/{other_key}"):
        client().rm_file(name)
    for name in client().find(f"{bucket}/{key}"):
        below = name.removeprefix(f"{bucket}/{key}")
        client().cp_file(name, f"{other_bucket}/{other_key}{below}")
        client().rm_file(name)


def _compare(url: str, size: int, checksum: int) -> None:
    found = facts(url)
    if found.size != size or found.crc32c not in (None, checksum):
        raise RemoteError(f"{url}: expected the {size} bytes that were written; found {found.size} of another content")


def _call(url: str, method: str, path: str, *args: str, **options: Any) -> Any:
    return _guarded(url, method, lambda: client().call(method, path, *args, **options))


def _guarded(url: str, what: str, call: Any) -> Any:
    """The result of a call of gcsfs; what it raises becomes one line that names the object."""
    try:
        return call()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: expected an object; found none") from error
    except HttpError as error:
        code = int(error.code or 0)
        if code == 416:
            raise
        kind = PermissionError if code in (401, 403) else RemoteError
        raise kind(f"{url}: expected to {what.lower()} it; found HTTP {code} {_line(error.message)}") from error
    except (RemoteError, FileExistsError):
        raise
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionError(f"{url}: expected credentials of Google Cloud; found {_line(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        kind = PermissionError if str(error).startswith("Forbidden") else RemoteError
        raise kind(f"{url}: expected to {what.lower()} it; found {_line(error)}") from error


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
