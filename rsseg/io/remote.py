"""Objects in stores: paths like ``s3://bucket/ortho.tif``, and what waits for them on this machine.

A ``RemotePath`` is a Path of which the store, through fsspec, says whether it exists, how large it
is and what lies below it; GDAL reads rasters from it by windows. An object is never changed in
part: it is written whole on this machine and then uploaded, and appears when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rsseg.errors import InputError, RunError

if TYPE_CHECKING:
    _SystemPath = Path
else:  # before Python 3.12, only the system's own kind of Path has heirs
    _SystemPath = type(Path())

_GDAL_NAMES = {
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
}
"""How GDAL calls what begins with each scheme."""

_EXTRAS = {"s3": "rsseg[s3]", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
"""What to install for each scheme."""

_NETWORK_DEFAULTS = {
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # An object may be replaced, by this process too, so nothing outlives its handle.
    "CPL_VSIL_CURL_NON_CACHED": ":".join(["/vsis3/", "/vsigs/", "/vsiaz/", "/vsicurl/"]),
}


class RemotePath(_SystemPath):
    """A path in a store, or at an address of the web; its string is the URI.

    Only the methods below ask the store; all that pathlib says of names holds as well. No other
    method finds anything, for on this machine there is no such file.
    """

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    @property
    def scheme(self) -> str:
        """The scheme: ``s3``, ``https`` and the like."""
        return self.parts[0].removesuffix(":")

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def absolute(self) -> RemotePath:
        return self

    def samefile(self, other: Any) -> bool:
        return self == as_path(other)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind, size in bytes, and time of change (0 where the store does not tell).

        Raises:
            FileNotFoundError: there is nothing of that name.
            InputError: the store cannot be asked.
        """
        facts = self._facts
        kind = stat.S_IFDIR if facts["type"] == "directory" else stat.S_IFREG
        times = (facts.get(name) for name in ("LastModified", "last_modified", "mtime", "updated"))
        changed = next((time for time in times if hasattr(time, "timestamp")), None)
        seconds = 0 if changed is None else changed.timestamp()
        visible = (kind, 0, 0, 1, 0, 0, int(facts["size"] or 0), *[int(seconds)] * 3)
        return os.stat_result((*visible, *[seconds] * 3, *[round(seconds * 1e9)] * 3))

    @property
    def version(self) -> str:
        """What the store calls this content (ETag); empty where it does not say.

        Raises:
            FileNotFoundError, InputError: see ``stat``.
        """
        facts = self._facts
        return str(facts.get("ETag") or facts.get("etag") or "").strip('"')

    @property
    def _facts(self) -> dict[str, Any]:
        with _explained(self):
            facts: dict[str, Any] = self._store.info(str(self))
        return facts

    def exists(self, **_: Any) -> bool:
        try:
            return bool(self._facts)
        except FileNotFoundError:
            return False

    def is_file(self, **_: Any) -> bool:
        return self._is("file")

    def is_dir(self, **_: Any) -> bool:
        return self._is("directory")

    def _is(self, kind: str) -> bool:
        try:
            return bool(self._facts["type"] == kind)
        except FileNotFoundError:
            return False

    def iterdir(self) -> Generator[RemotePath, None, None]:
        with _explained(self):
            found = self._store.ls(str(self), detail=False)
        names = {name.rstrip("/").rpartition("/")[2] for name in found} - {self.name, ""}
        yield from (self / name for name in sorted(names))

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: a store has names alone, no folders."""

    def glob(self, pattern: str, **_: Any) -> Generator[RemotePath, None, None]:
        with _explained(self):
            found = self._store.glob(f"{self}/{pattern}")
        yield from (self / name.rpartition("/")[2] for name in sorted(found))

    def read_bytes(self) -> bytes:
        with _explained(self):
            content: bytes = self._store.cat_file(str(self))
        return content

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def rename(self, target: str | os.PathLike[str]) -> RemotePath:
        """Copy, then delete; what is at the target is replaced."""
        with _explained(self):
            self._store.copy(str(self), str(target))
            self._store.rm_file(str(self))
        return RemotePath(target)

    def remove_tree(self) -> None:
        """Delete all that lies below."""
        with _explained(self):
            self._store.rm(str(self), recursive=True)

    def bytes_below(self) -> int:
        """Return the bytes of all that lies below."""
        with _explained(self):
            return int(self._store.du(str(self)))

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            with _explained(self):
                self._store.rm_file(str(self))

    def check_writable(self) -> None:
        """Begin an upload and give it up, which leaves nothing in the store.

        Raises:
            InputError: there is no such bucket, or nothing may be written there.
        """
        if self.scheme in ("http", "https"):
            raise InputError(f"{self}: can only be read; write to a file or to s3://")
        try:
            with _explained(self):
                _begin_upload(self.parent)
        except FileNotFoundError as error:
            raise InputError(f"{self}: no such bucket; create it or give another one") from error

    def upload(self, file: Path) -> None:
        """Put a file here; the object appears when all of it is there.

        Raises:
            RunError: the store did not take it.
        """
        try:
            with _explained(self):
                self._store.put_file(str(file), str(self))
        except (InputError, OSError) as error:
            raise RunError(f"{self}: the upload failed ({error}); run again to go on") from error

    @property
    def store_options(self) -> dict[str, Any]:
        """What fsspec is told of the store, besides what the environment tells it."""
        unsigned = self.scheme == "s3" and _is_yes(os.environ.get("AWS_NO_SIGN_REQUEST", ""))
        return {"use_listings_cache": False, **({"anon": True} if unsigned else {})}

    @property
    def _store(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self.scheme, **self.store_options)
        except ImportError as error:
            extra = _EXTRAS[self.scheme]
            raise InputError(f'{self}: {error}; run: pip install "{extra}"') from error


@lru_cache(maxsize=1000)
def _begin_upload(folder: RemotePath) -> None:
    """Begin an upload and give it up; once per folder and process."""
    probe = folder._store.open(str(folder / ".rsseg"), "wb", autocommit=False)
    probe.write(b"\0")
    probe.flush(force=True)
    probe.discard()


def as_path(given: str | Path) -> Path:
    """Return a path; a RemotePath where it begins with a scheme like ``s3://``.

    A URI that went through pathlib, which makes ``s3:/bucket`` of it, is one still.
    """
    path = Path(given)
    scheme, colon, rest = path.parts[0].partition(":") if path.parts else ("", "", "")
    if not colon or rest or scheme not in _GDAL_NAMES:
        return path
    return RemotePath(path)


def gdal_name(path: Path) -> str:
    """Return how GDAL calls a file or an object."""
    if not isinstance(path, RemotePath):
        return str(path)
    _tell_gdal()  # here, for paths also come to processes that made none themselves
    return _GDAL_NAMES[path.scheme] + "/".join(path.parts[1:])


def _tell_gdal() -> None:
    """Pass on what the AWS tools take from ``AWS_ENDPOINT_URL`` and GDAL from other variables.

    The environment reaches all threads, and processes that are started later; what the user has
    set stands.
    """
    for name, value in _NETWORK_DEFAULTS.items():
        os.environ.setdefault(name, value)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "AWS_S3_ENDPOINT" not in os.environ:
        scheme, _, host = endpoint.rpartition("://")
        os.environ["AWS_S3_ENDPOINT"] = host.rstrip("/")
        os.environ.setdefault("AWS_HTTPS", "NO" if scheme == "http" else "YES")
        # Stores other than Amazon's seldom have a host name for each bucket.
        os.environ.setdefault("AWS_VIRTUAL_HOSTING", "FALSE")


def _is_yes(text: str) -> bool:
    return text.lower() in ("yes", "true", "1", "on")


def workplace(path: Path) -> Path:
    """Return where what is unfinished of an output lies beside: its own place, if that is a file's.

    For an object it is a path on this machine, the same in every run, in a folder that exists:
    below the folder ``RSSEG_SCRATCH``, or else the user's cache folder.
    """
    if not isinstance(path, RemotePath):
        return path
    folder = scratch_folder() / _short_hash(str(path.parent))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / path.name


def scratch_folder() -> Path:
    """Return the folder for what objects need on this machine, which may not exist yet."""
    given = os.environ.get("RSSEG_SCRATCH")
    if given:
        return Path(given).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("rsseg")) / "objects"


def local_copy(path: Path) -> Path:
    """Return a file with the content of ``path``: itself, or a copy of an object, which is kept.

    Raises:
        FileNotFoundError: there is no such object.
        InputError: the store cannot be asked.
    """
    if not isinstance(path, RemotePath):
        return path
    folder = scratch_folder() / "copies" / _short_hash(repr(describe_source(path)))
    copy = folder / path.name
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{uuid4().hex}"
        with _explained(path):
            path._store.get_file(str(path), str(unfinished))
        unfinished.replace(copy)
    return copy


def describe_source(path: Path) -> dict[str, Any]:
    """Return a file's path, size in bytes and time of change, to recognise it later.

    Of an object also its version.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the store cannot be asked.
    """
    status = path.stat()
    found = {
        "path": str(path.resolve()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    return {**found, "version": path.version} if isinstance(path, RemotePath) else found


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _explained(path: RemotePath) -> Iterator[None]:
    """Make one line of what a store's library says, whose errors are of many kinds."""
    try:
        yield
    except (FileNotFoundError, InputError):
        raise
    except PermissionError as error:
        raise InputError(
            f"{path}: the store does not permit this ({error}); check the credentials and what "
            "they may do"
        ) from error
    except Exception as error:
        first = (str(error) or repr(error)).splitlines()[0]
        raise InputError(
            f"{path}: the store cannot be used ({first}); check its address and the credentials"
        ) from error
