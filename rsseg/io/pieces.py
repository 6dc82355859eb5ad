"""What the polygons of a map wait for, on disk, so that memory need not hold it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.grid import Window
from rsseg.ops.arcs import Pieces

MEMORY = 64_000_000
"""Bytes of pieces that wait in memory and not on disk."""


class PieceFiles:
    """A ``Keeper`` with a file for each strip, written when memory for it runs out.

    Args:
        folder: where the files lie.
        memory: bytes of pieces that may stay in memory, those of the last strips.
    """

    def __init__(self, folder: Path, memory: int = MEMORY) -> None:
        self._folder = folder
        self._memory = memory
        self._held: dict[int, Pieces] = {}
        self._oldest = 0

    def keep(self, strip: int, pieces: Pieces) -> None:
        """Keep the pieces of a strip."""
        self._held[strip] = pieces
        while self._held and sum(map(_size, self._held.values())) > self._memory:
            first = min(self._held)
            np.savez(self._file(first), **self._held.pop(first)._asdict())

    def kept(self, strip: int) -> Pieces:
        """Return the pieces of a strip."""
        if strip in self._held:
            return self._held[strip]
        with np.load(self._file(strip), allow_pickle=False) as arrays:
            return Pieces(**{name: arrays[name] for name in Pieces._fields})

    def drop(self, before: int) -> None:
        """Forget the strips before this one."""
        for strip in range(self._oldest, before):
            if self._held.pop(strip, None) is None:
                self._file(strip).unlink()
        self._oldest = max(self._oldest, before)

    def _file(self, strip: int) -> Path:
        return self._folder / f"{strip:06d}.npz"


def _size(pieces: Pieces) -> int:
    return sum(column.nbytes for column in pieces)


class CornerFile:
    """A bit for each corner of a raster, on disk.

    Args:
        path: the file, which is made anew.
        shape: (height, width) of the raster in pixels.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._path = path
        self._shape = (shape[0] + 1, (shape[1] + 8) // 8)
        with path.open("wb") as file:
            file.truncate(self._shape[0] * self._shape[1])

    def open(self) -> NDArray[np.uint8]:
        """Return the bits, (H + 1, ceil((W + 1) / 8)) uint8 of ``numpy.packbits``, to be changed.

        Best opened anew for every strip: what was read of the file is memory as long as it is open.
        """
        return np.memmap(self._path, np.uint8, "r+", shape=self._shape)


class PixelFile:
    """Whole rows of a class map, on disk; safe to be read by several threads.

    Args:
        path: the file.
        shape: (height, width) in pixels.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._path = path

    def append(self, rows: NDArray[np.uint8]) -> None:
        """Add the next rows, (h, W) uint8."""
        with self._path.open("ab") as file:
            file.write(rows.tobytes())

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return a window as wide as the map, (h, W) uint8."""
        width = self.shape[1]
        assert (window.col, window.width) == (0, width), window
        size, skip = window.height * width, window.row * width
        return np.fromfile(self._path, np.uint8, size, offset=skip).reshape(-1, width)


class Decisions:
    """Which class each small region gets, on disk, by the strip in which it begins.

    Args:
        folder: where the files lie.
        strip_pixels: pixels of a strip.
    """

    _ROW = np.dtype([("first", np.int64), ("class", np.uint8)])

    def __init__(self, folder: Path, strip_pixels: int) -> None:
        self._folder = folder
        self._strip_pixels = strip_pixels

    def add(self, first: NDArray[np.int64], classes: NDArray[np.uint8]) -> None:
        """Keep the classes (N,) of regions given by their first pixels, (N,)."""
        table = np.empty(len(first), self._ROW)
        table["first"], table["class"] = first, classes
        strips = first // self._strip_pixels
        for strip in np.unique(strips):
            with self._file(strip).open("ab") as file:
                file.write(table[strips == strip].tobytes())

    def of(self, strip: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return the first pixels, ascending, and the classes of the regions of a strip."""
        if not self._file(strip).exists():
            return np.empty(0, np.int64), np.empty(0, np.uint8)
        table = np.sort(np.fromfile(self._file(strip), self._ROW), order="first")
        return table["first"], table["class"]

    def _file(self, strip: int) -> Path:
        return self._folder / f"{strip:06d}.decisions"
