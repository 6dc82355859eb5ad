"""The resumable scratch of a prediction: finished blocks in a folder beside the output.

Every block is one compressed file, written beside and renamed, so **a block that exists is done**;
``store.json`` says what made the blocks, and blocks of anything else are never read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import InputError, RunError

_SIGN = '{"format": "rsseg blocks'
_HEADER = "store.json"
_SUFFIX = ".block"
_UNFINISHED = ".new"
_HALVES = f"*{_SUFFIX}*{_UNFINISHED}"


class BlockStore:
    """Full-width blocks of ``block_rows`` rows of a (count, H, W) uint8 raster; the last is lower.

    A folder of the same description is continued. One of another description is emptied, and one
    that is not there is made, when the first block is written.

    Args:
        path: the folder; its parent exists.
        fingerprint: stands for everything that decides a pixel's value.
        count: number of layers.
        shape: (height, width) of the raster in pixels.
        block_rows: height of a block in pixels.

    Raises:
        InputError: the path is taken by something that is not such a store; it is left alone.
    """

    def __init__(
        self, path: Path, fingerprint: str, count: int, shape: tuple[int, int], block_rows: int
    ) -> None:
        self.path = path
        self.count = count
        self.shape = shape
        self.block_rows = block_rows
        self._header = json.dumps(
            {
                "format": "rsseg blocks 1",
                "fingerprint": fingerprint,
                "count": count,
                "shape": shape,
                "block_rows": block_rows,
            }
        )
        self._begun = _found(path) == self._header
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return math.ceil(self.shape[0] / self.block_rows)

    def missing(self) -> list[int]:
        """Return the indices of the blocks still to be made, ascending."""
        return [
            index for index in range(len(self)) if not (self._begun and self._file(index).exists())
        ]

    def begin(self) -> None:
        """Make the store where it is not there yet, before several processes write blocks.

        What killed runs have left half written goes.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if self._begun:
                self._clear(_HALVES)
            else:
                self._begin()
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, index: int, block: NDArray[np.uint8]) -> None:
        """Keep a finished block: (count, rows, W) uint8.

        Raises:
            RunError: it cannot be written, for want of disk space for example.
        """
        assert block.shape == self._block_shape(index), block.shape
        try:
            if not self._begun:
                self._begin()
            # A worker that was given up as lost may still be writing the same block.
            _put(self._file(index), zlib.compress(block.tobytes(), level=1), f".{uuid4().hex}")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path}: cannot be written ({error.strerror or error}); "
            "what is done is kept: run again to go on"
        )

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a block that is not missing: (count, rows, W) uint8, read-only.

        Raises:
            RunError: the file is damaged; it is dropped, so that the next run makes it again.
        """
        file = self._file(index)
        try:
            pixels = np.frombuffer(zlib.decompress(file.read_bytes()), np.uint8)
            return pixels.reshape(self._block_shape(index))
        except (zlib.error, ValueError):
            file.unlink()
            raise RunError(f"{file} was damaged and has been removed: run again") from None

    def rows(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Return the pixel rows ``top … bottom - 1`` of finished blocks: (count, rows, W) uint8.

        The last block read is kept, so going from top to bottom reads every block once.

        Raises:
            RunError: see ``read``.
        """
        first = top // self.block_rows
        blocks = [self._kept(index) for index in range(first, math.ceil(bottom / self.block_rows))]
        joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
        start = first * self.block_rows
        return joined[:, top - start : bottom - start]

    def remove(self) -> None:
        """Delete the store; the folder stays only if someone else put files there."""
        self._clear()
        for name in (_HEADER, _HEADER + _UNFINISHED):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _kept(self, index: int) -> NDArray[np.uint8]:
        if self._last is None or self._last[0] != index:
            self._last = None  # before the next one takes its memory
            self._last = index, self.read(index)
        return self._last[1]

    def _begin(self) -> None:
        self.path.mkdir(exist_ok=True)
        # The old blocks go before the new header comes: killed in between, they are still
        # described truly.
        self._clear()
        _put(self.path / _HEADER, self._header.encode())
        self._begun = True

    def _clear(self, *patterns: str) -> None:
        for pattern in patterns or (f"*{_SUFFIX}", _HALVES):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self.path / f"{index:06d}{_SUFFIX}"

    def _block_shape(self, index: int) -> tuple[int, int, int]:
        height, width = self.shape
        return self.count, min(self.block_rows, height - index * self.block_rows), width


def _found(path: Path) -> str | None:
    """Return the header of the store at ``path``; None where there is none yet.

    Raises:
        InputError: something else is there.
    """
    if not path.exists():
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (path / _HEADER).read_text(encoding="utf-8")
        if text.startswith(_SIGN):
            return text
    # Killed before its header was in place, a store is an empty folder.
    if path.is_dir() and {file.name for file in path.iterdir()} <= {_HEADER + _UNFINISHED}:
        return None
    raise InputError(
        f"{path} is in the way: it is no scratch folder of rsseg; move it or choose another output"
    )


def _put(path: Path, data: bytes, mark: str = "") -> None:
    unfinished = path.with_name(f"{path.name}{mark}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
