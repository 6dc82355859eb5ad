"""Masks as bytes: the proposals of a window in one flat vector, a bit per pixel of their boxes.

Layout, little-endian: the number N of masks (uint32); N heads of level (int8), score (float32) and
box (four uint16: y0, x0, y1, x1, the ends exclusive); then the pixels of each box, row by row, its
last byte filled up with zeros; zeros to the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.segments import Masks

_COUNT_BYTES = 4
_HEAD = np.dtype([("level", "i1"), ("score", "<f4"), ("box", "<u2", (4,))])
_BYTES_PER_PIXEL = 4


def capacity(side: int) -> int:
    """Return the bytes that hold the masks of a window of ``side`` x ``side`` pixels.

    They suffice for boxes that cover each pixel about 32 times; proposals cover it 2 to 10 times.
    """
    return _BYTES_PER_PIXEL * side * side


def side_of(size: int) -> int:
    """Return the side of the window whose masks have a vector of ``size`` bytes."""
    return math.isqrt(size // _BYTES_PER_PIXEL)


def pack(masks: Masks, size: int) -> NDArray[np.uint8]:
    """Write masks into a vector of fixed size, in their order.

    Args:
        masks: of a window of up to 65,535 pixels a side.
        size: bytes of the vector, at least 4.

    Returns:
        (size,) uint8. Masks that do not fit any more are left out, from the last one on.
    """
    boxes = masks.boxes()[:, [1, 0, 3, 2]]
    bits = [
        np.packbits(mask[y0:y1, x0:x1]).tobytes()
        for mask, (y0, x0, y1, x1) in zip(masks.masks, boxes, strict=True)
    ]
    ends = _COUNT_BYTES + np.cumsum([_HEAD.itemsize + len(one) for one in bits])
    count = int(np.searchsorted(ends, size, side="right"))
    heads = np.zeros(count, _HEAD)
    heads["level"], heads["score"] = masks.level[:count], masks.score[:count]
    heads["box"] = boxes[:count]
    flat = b"".join([count.to_bytes(_COUNT_BYTES, "little"), heads.tobytes(), *bits[:count]])
    vector = np.zeros(size, np.uint8)
    vector[: len(flat)] = np.frombuffer(flat, np.uint8)
    return vector


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """The masks of a packed vector, unpacked only where they are asked for.

    Attributes:
        level: (N,) int8.
        score: (N,) float32.
        boxes: (N, 4) int64 as y0, x0, y1, x1, the ends exclusive.
    """

    level: NDArray[np.int8]
    score: NDArray[np.float32]
    boxes: NDArray[np.int64]
    _bits: tuple[NDArray[np.uint8], ...]

    @classmethod
    def of(cls, vector: NDArray[np.uint8]) -> PackedMasks:
        """Return the masks of a vector that ``pack`` has made; it can be dropped afterwards."""
        count = int.from_bytes(vector[:_COUNT_BYTES].tobytes(), "little")
        start = _COUNT_BYTES + count * _HEAD.itemsize
        heads = np.frombuffer(vector[_COUNT_BYTES:start].tobytes(), _HEAD)
        boxes = heads["box"].astype(np.int64).reshape(count, 4)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        ends = np.cumsum(-(-areas // 8))
        bits = vector[start : start + int(ends[-1] if count else 0)].copy()
        pieces = tuple(np.split(bits, ends[:-1])) if count else ()
        return cls(heads["level"].copy(), heads["score"].astype(np.float32), boxes, pieces)

    def __len__(self) -> int:
        return len(self.level)

    def cut(self, rows: slice, cols: slice) -> tuple[NDArray[np.intp], Masks]:
        """Return the masks that have a pixel in a rectangle of the window, cut to it.

        Args:
            rows: start and stop inside the window.
            cols: the same.

        Returns:
            (M,) which masks they are, rising, and the M masks of the rectangle's shape.
        """
        found = list(self._pieces(rows, cols))
        index = np.array([one for one, _, _ in found], np.intp)
        shape = (len(found), rows.stop - rows.start, cols.stop - cols.start)
        masks = np.zeros(shape, np.bool_)
        for mask, (_, place, pixels) in zip(masks, found, strict=True):
            mask[place] = pixels
        return index, Masks(masks, self.level[index], self.score[index])

    def meet(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return (N,) which masks have a pixel in a rectangle of the window."""
        met = np.zeros(len(self), np.bool_)
        met[[index for index, _, _ in self._pieces(rows, cols)]] = True
        return met

    def _pieces(
        self, rows: slice, cols: slice
    ) -> Iterator[tuple[int, tuple[slice, slice], NDArray[np.bool_]]]:
        """Yield which mask, where in the rectangle, and the pixels there; none without a pixel."""
        low = np.maximum(self.boxes[:, :2], [rows.start, cols.start])
        high = np.minimum(self.boxes[:, 2:], [rows.stop, cols.stop])
        for index in np.flatnonzero((low < high).all(axis=1)):
            (y0, x0), (y1, x1) = low[index].tolist(), high[index].tolist()
            top, left, bottom, right = self.boxes[index].tolist()
            shape = (bottom - top, right - left)
            box = np.unpackbits(self._bits[index], count=shape[0] * shape[1]).reshape(shape)
            pixels = box[y0 - top : y1 - top, x0 - left : x1 - left].view(np.bool_)
            if pixels.any():
                place = slice(y0 - rows.start, y1 - rows.start)
                yield int(index), (place, slice(x0 - cols.start, x1 - cols.start)), pixels
