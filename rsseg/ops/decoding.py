"""How often the pixels of a raster are decoded, by how they lie in the file and who reads them."""

from __future__ import annotations

import math

Sides = tuple[int, int]
"""(height, width) in pixels."""


def times_decoded(
    shape: Sides,
    block: Sides,
    window: Sides,
    stride: Sides,
    *,
    cache: float,
    readers: int = 1,
    sequential: bool = False,
) -> float:
    """Estimate how often a pixel is decoded while windows go over a raster, row by row.

    A block is decoded as a whole, and again where it has left the cache since. Windows lie anywhere
    with respect to blocks, so one of length s meets s + b - 1 pixels of blocks of length b on
    average.

    Args:
        shape: of the raster.
        block: of the file's blocks; 1 x width for files that are decoded line by line.
        window: of what is read at a time.
        stride: from one window to the next.
        cache: pixels of blocks that are kept, the ones used last.
        readers: who take windows in turn, each with a share of the cache.
        sequential: whether a block can only be decoded after all that lie above it.

    Returns:
        1 where every pixel is decoded once.
    """
    (height, width), share = shape, cache / max(readers, 1)
    rows, cols = (_met(*sides) for sides in zip(window, block, shape, strict=True))
    down, across = min(stride[0], height), min(stride[1] * max(readers, 1), width)
    decoded: float = min(rows, down) * min(cols, across)
    if rows * width > share:  # else a whole row of windows stays until the next
        if sequential:
            decoded = max(decoded, height * width / 2)  # back to the top for every window
        else:
            decoded = rows * (min(cols, across) if rows * cols <= share else cols)
    return max(1.0, decoded / (down * min(stride[1], width)))


def _met(length: int, block: int, limit: int) -> int:
    """Return the pixels of all blocks that a window of ``length`` meets."""
    return min(length + block - 1, math.ceil(limit / block) * block)


def worth_keeping(
    shape: Sides, block: Sides, window: Sides, *, limit: float, readers: int = 1
) -> float:
    """Return how many pixels of blocks are worth keeping while windows go over a raster.

    With those of a whole row of windows kept, no block is decoded twice. Where that is beyond the
    limit, more than the blocks of neighbouring windows would not be used again before it is gone.

    Args:
        shape: of the raster.
        block: of the file's blocks.
        window: of what is read at a time.
        limit: pixels that may be kept.
        readers: who take windows in turn; each keeps its own blocks.
    """
    rows, cols = (_most_met(*sides) for sides in zip(window, block, shape, strict=True))
    whole = math.ceil(shape[1] / block[1]) * block[1]
    if rows * whole * readers <= limit:
        return rows * whole * readers
    if _met(window[0], block[0], shape[0]) * shape[1] * readers <= limit:
        return limit  # enough for most rows of windows
    # Windows side by side, and the blocks of the next while those of the last are still there.
    return min(rows * min(2 * cols, whole) * readers, limit)


def _most_met(length: int, block: int, limit: int) -> int:
    """Return the pixels of all blocks that a window of ``length`` meets where it lies worst."""
    return min((length + block - 2) // block + 1, math.ceil(limit / block)) * block
