"""How overlapping windows are blended: separable weights that sum to one at every pixel.

Near its border a network sees too little, so there a window should have little say or none. At the
ends of an axis no other window covers the margin; there a window keeps its full weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Span(NamedTuple):
    """The pixels of an axis in which one window has a say.

    Args:
        begin: the first one.
        final: where the next window's begin; those before get nothing more from later windows.
        end: after the last one.
    """

    begin: int
    final: int
    end: int


def ramp(size: int, overlap: int) -> NDArray[np.float64]:
    """Return zero for three eighths of the overlap, a line for a quarter of it, then one.

    A filter whose radius is at most three eighths of the overlap thus gives what it would give on
    the whole raster. A window's ramp and its predecessor's mirrored one sum to one.
    """
    margin = 3 * overlap // 8
    return _line(size, overlap, margin)


def crop(size: int, overlap: int) -> NDArray[np.float64]:
    """Return zero for the first half of the overlap, then one: nothing is blended."""
    return _line(size, overlap, overlap // 2)


def hann(size: int, overlap: int) -> NDArray[np.float64]:
    """Return a raised cosine that rises over the whole overlap, from zero to one."""
    share = np.clip((np.arange(size) + 0.5) / max(overlap, 1), 0, 1)
    return np.sin(share * (np.pi / 2)) ** 2 if overlap else np.ones(size)


def gaussian(size: int, overlap: int) -> NDArray[np.float64]:
    """Return the rising half of a bell over the window, whose deviation is an eighth of it.

    The importance map of nnU-Net (Isensee et al., 2021).
    """
    distance = np.maximum(size / 2 - (np.arange(size) + 0.5), 0) / (size / 8)
    return np.exp(-0.5 * distance**2) if overlap else np.ones(size)


def _line(size: int, overlap: int, margin: int) -> NDArray[np.float64]:
    length = overlap - 2 * margin
    if length == 0:
        return np.asarray(np.arange(size) >= margin, np.float64)
    return np.clip((np.arange(size) + 0.5 - margin) / length, 0, 1)


BLENDS: Mapping[str, Callable[[int, int], NDArray[np.float64]]] = {
    "ramp": ramp,
    "gaussian": gaussian,
    "hann": hann,
    "crop": crop,
}
"""How a window's weight grows from its first pixel on: (size, overlap) -> (size,) in [0, 1]."""


def axis_weights(
    starts: Sequence[int], size: int, overlap: int, blend: str = "ramp"
) -> NDArray[np.float32]:
    """Return the weights, along one axis, of windows that begin at ``starts``.

    Args:
        starts: first pixel of each window, ascending, ``size - overlap`` apart.
        size: length of every window in pixels.
        overlap: pixels shared by neighbours, at most three quarters of ``size``.
        blend: a key of ``BLENDS``.

    Returns:
        (len(starts), size) float32 in [0, 1]; at each pixel the weights of the windows that cover
        it sum to one. The weight of a pixel in two dimensions is the product of both axes'.
    """
    rising = BLENDS[blend](size, overlap)
    middle, first, last = np.minimum(rising, rising[::-1]), rising[::-1].copy(), rising.copy()
    # What one window covers alone is its own, also where a bell has not yet reached its top.
    first[: size - overlap] = last[overlap:] = 1
    weights = np.tile(middle, (len(starts), 1))
    weights[0] = first
    weights[-1] = last if len(starts) > 1 else 1
    total = np.zeros(starts[-1] + size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + size]
    return weights.astype(np.float32)


def spans(starts: Sequence[int], weights: NDArray[np.float32], limit: int) -> list[Span]:
    """Return where each window of an axis has a say.

    Args:
        starts: first pixel of each window.
        weights: (len(starts), size), of ``axis_weights``.
        limit: pixels of the axis.

    Returns:
        One per window. ``final`` of the last one is the limit, and so is ``end``.
    """
    heard = [np.flatnonzero(weight) for weight in weights]
    begins = [start + int(own[0]) for start, own in zip(starts, heard, strict=True)]
    ends = [min(start + int(own[-1]) + 1, limit) for start, own in zip(starts, heard, strict=True)]
    return [Span(*one) for one in zip(begins, [*begins[1:], limit], ends, strict=True)]
