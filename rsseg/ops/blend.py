"""How overlapping windows are blended: separable weights that sum to one at every pixel.

Near its border a network sees too little, so there a window has no say: where two windows overlap,
each is silent in the outer three eighths of the overlap, and in the quarter between the weight
passes linearly from one to the other. A filter whose radius is at most three eighths of the overlap
thus gives what it would give on the whole raster. At the ends of an axis no other window covers the
margin; there a window keeps its full weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fade_in(size: int, overlap: int) -> NDArray[np.float64]:
    """Return how a window's weight grows from its first pixel on.

    Args:
        size: length of the window in pixels.
        overlap: pixels it shares with its predecessor, less than ``size``.

    Returns:
        (size,) float64 in [0, 1]: zero for the first three eighths of the overlap, linear for a
        quarter of it, then one. A window's fade-in and its predecessor's mirrored
        fade-out sum to one.
    """
    margin = 3 * overlap // 8
    ramp = overlap - 2 * margin
    if ramp == 0:
        return np.ones(size)
    return np.clip((np.arange(size) + 0.5 - margin) / ramp, 0, 1)


def axis_weights(starts: Sequence[int], size: int, overlap: int) -> NDArray[np.float32]:
    """Return the weights, along one axis, of windows that begin at ``starts``.

    Args:
        starts: first pixel of each window, ascending, ``size - overlap`` apart.
        size: length of every window in pixels.
        overlap: pixels shared by neighbours, at most three quarters of ``size``.

    Returns:
        (len(starts), size) float32 in [0, 1]; at each pixel the weights of the windows that cover
        it sum to one. The weight of a pixel in two dimensions is the product of both axes'.
    """
    rising = fade_in(size, overlap)
    weights = np.tile(np.minimum(rising, rising[::-1]), (len(starts), 1))
    weights[0] = rising[::-1]
    weights[-1] = rising if len(starts) > 1 else 1
    total = np.zeros(starts[-1] + size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    for start, weight in zip(starts, weights, strict=True):
        weight /= total[start : start + size]
    return weights.astype(np.float32)
