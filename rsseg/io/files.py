"""Output files: checked before work starts, complete when they appear."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsseg.errors import InputError, RunError
from rsseg.io.remote import RemotePath, as_path, workplace


def check_output(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Make sure that a file can be written at ``path`` and that none of the user's is lost by it.

    Args:
        path: the file to be written.
        overwrite: whether a file that is already there may be replaced.
        inputs: files that the same run reads; links to them count as themselves.

    Raises:
        InputError: the path is an input or a folder, exists without ``overwrite``, or its folder
            is missing or cannot be written to.
    """
    path = as_path(path)
    for source in inputs:
        if _same_file(path, source):
            raise InputError(f"{path}: is an input of this run ({source}); give another output")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another name or --overwrite")
    _check_folder(path)


def _same_file(path: Path, other: Path) -> bool:
    if isinstance(path, RemotePath) or isinstance(other, RemotePath):
        return path == as_path(other)
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def _check_folder(path: Path) -> None:
    if isinstance(path, RemotePath):
        path.check_writable()
        return
    folder = path.resolve().parent
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{path}: the folder {folder} {found}; create it or give another one")
    try:
        # Permission bits do not tell the truth on Windows, network and read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot write to the folder {folder} ({reason})") from error


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the final name on success.

    For an object it is a path on this machine, and the finished file is uploaded.

    The temporary file keeps the suffix (drivers look at it) and is the same in every run, so what
    a killed run left behind is written over by the next one. On failure it is removed, with
    whatever a driver laid beside it, and ``path`` stays as it was. A symbolic link is followed.

    Args:
        path: the final path.
        overwrite: whether a file that is already there may be replaced.

    Yields:
        The path to write to; the body must create that file and close it.

    Raises:
        InputError: see ``check_output``.
        RunError: the finished file cannot take its final name, or not be uploaded.
    """
    check_output(path, overwrite)
    final = as_path(path).resolve()
    temporary = workplace(final).with_name(f".{final.stem}.part{final.suffix}")
    _remove(temporary)
    try:
        yield temporary
        if isinstance(final, RemotePath):
            final.upload(temporary)
        else:
            _sync(temporary)
            _rename(temporary, final)
    finally:
        _remove(temporary)


def _rename(temporary: Path, final: Path) -> None:
    try:
        temporary.replace(final)
    except PermissionError as error:  # Windows: another program has the old file open
        raise RunError(f"{final}: cannot be replaced; close it in other programs") from error
    if os.name == "posix":  # elsewhere folders cannot be opened
        _sync(final.parent)


def _sync(path: Path) -> None:
    # Windows syncs only files opened for writing, POSIX folders only open for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    # Side files too: GDAL's .aux.xml, SQLite's -journal and -wal.
    for path in temporary.parent.iterdir():
        if path.name.startswith(temporary.name):
            path.unlink()


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside an output; it is gone afterwards, with all that is in it.

    For an object it is on this machine.

    Its name is the same in every run, so what a killed run left behind goes with the next one.

    Args:
        path: the output.

    Raises:
        InputError: see ``check_output``.
        RunError: the disk is full, or something else there fails.
    """
    check_output(path, overwrite=True)
    discard_scratch(path)
    folder = _scratch_folder(path)
    folder.mkdir()
    try:
        yield folder
    except OSError as error:
        raise RunError(f"{path}: writing failed ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard_scratch(path: Path) -> None:
    """Remove the folder of ``scratch_beside`` that a run left when it was killed, if there is one.

    A run can be killed when its output has its name already, and then the next one has no work.
    """
    shutil.rmtree(_scratch_folder(path), ignore_errors=True)


def _scratch_folder(path: Path) -> Path:
    final = workplace(path.resolve())
    return final.with_name(f".{final.name}.scratch")
