"""Seams: how much probabilities step at the edges of windows, beside what is usual there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from rsseg.grid import window_starts

APART = 8
"""Pixels from a line to the parallel ones that say how much is usual."""

NODATA = 255
STRIP = 512
KINDS = ("windows", "cores", "elsewhere")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """Absolute steps of the probabilities across each line between two pixels.

    Args:
        rows: (height,): mean step between a row and the one above it; nan for the first.
        cols: (width,): the same for columns.
    """

    rows: Floats
    cols: Floats

    def ratio(self, rows: Iterable[int], cols: Iterable[int]) -> dict[str, Any]:
        """Return the mean step across lines over that across those 8 pixels to either side.

        Args:
            rows: the lines, by the first row below each.
            cols: the lines, by the first column right of each.

        Returns:
            ``ratio``; ``error``, its standard error, of the lines' scatter; ``lines``.
        """
        pairs = [
            (steps, line)
            for steps, lines in ((self.rows, rows), (self.cols, cols))
            for line in sorted(set(lines))
            if APART < line < len(steps) - APART
        ]
        if not pairs:
            return {"ratio": None, "error": None, "lines": 0}
        at = np.array([steps[line] for steps, line in pairs])
        near = np.array([(steps[i - APART] + steps[i + APART]) / 2 for steps, i in pairs])
        ratio = np.nanmean(at) / np.nanmean(near)
        error = np.nanstd(at - ratio * near) / np.nanmean(near) / np.sqrt(len(pairs))
        return {"ratio": round(ratio, 4), "error": round(error, 4), "lines": len(pairs)}


def steps_of(path: Path) -> Steps:
    """Measure a raster of probabilities, (K, H, W) uint8 as rsseg writes them, strip by strip."""
    with rasterio.open(path) as source:
        (height, width), sums = source.shape, np.zeros((2, 2, max(source.shape)))
        for top in range(0, height, STRIP):
            above = min(top, 1)
            window = Window(0, top - above, width, min(STRIP, height - top) + above)
            down, across = steps_in(source.read(window=window))
            rows = slice(top - above + 1, top - above + 1 + down.shape[1])
            sums[0, :, rows] = down
            # The row above was counted with the strip before.
            sums[1, :, 1:width] += across[:, above:].sum(axis=1)
    with np.errstate(invalid="ignore"):
        rows, cols = sums[:, 0] / sums[:, 1]
    return Steps(rows[:height], cols[:width])


def steps_in(shares: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return sums and numbers of the steps that have data on both sides.

    Args:
        shares: (K, H, W).

    Returns:
        down (2, H - 1), of the step to each row from the one above; across (2, H, W - 1), of that
        to each pixel from the one on its left. The first of the two is the sum, the second the
        number.
    """
    values, valid = shares.astype(np.int16), (shares != NODATA).all(axis=0)
    both = valid[1:] & valid[:-1]
    down = np.abs(np.diff(values, axis=1)).sum(axis=0) * both
    beside = valid[:, 1:] & valid[:, :-1]
    across = np.abs(np.diff(values, axis=2)).sum(axis=0) * beside
    return (
        np.stack([down.sum(axis=1), both.sum(axis=1)]).astype(np.float64),
        np.stack([across, beside]).astype(np.float64),
    )


def lines_of(length: int, window: int, overlap: int) -> dict[str, list[int]]:
    """Return the lines of one axis along which something of the cutting could show.

    Returns:
        ``windows``: where one begins or ends. ``cores``: in the middle of two neighbours' overlap.
        ``elsewhere``: in the middle of what one window has for itself, where nothing can show.
    """
    starts = window_starts(length, window, window - overlap)
    return {
        "windows": [*starts[1:], *(start + window for start in starts)],
        "cores": [start + overlap // 2 for start in starts[1:]],
        "elsewhere": [start + window // 2 for start in starts],
    }


def measure(path: Path, window: int, overlap: int, block_rows: int) -> dict[str, Any]:
    """Return the ratios of a raster of probabilities, by kind of line.

    Args:
        path: the raster.
        window: side of the windows it was made of, pixels.
        overlap: pixels shared by neighbours.
        block_rows: height of the blocks in which it was kept; they have edges as well.
    """
    steps = steps_of(path)
    rows = lines_of(len(steps.rows), window, overlap)
    cols = lines_of(len(steps.cols), window, overlap)
    found = {kind: steps.ratio(rows[kind], cols[kind]) for kind in KINDS}
    return found | {"blocks": steps.ratio(range(block_rows, len(steps.rows), block_rows), [])}
