"""The job of a prediction: a raster, and how it is cut into the network's windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.classes import IGNORE
from rsseg.grid import window_starts
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.ops.blend import BLENDS, Span, axis_weights, spans

BLOCK_PIXELS = 4_000_000
"""About how much an interruption may cost: pixels of a block where none is asked for."""


@dataclass(frozen=True)
class Job:
    """What decides a prediction's pixels, besides the network.

    Args:
        raster: the source.
        bands: what its values mean to the network.
        class_count: K.
        window: side of the network's windows in pixels.
        overlap: share of the window by which neighbours overlap, 0 to 0.75.
        batch_size: windows per forward pass; the last batch of a row of windows may be smaller.
        area: where to predict; None is everywhere.
        blend: how windows pass into each other, a key of ``BLENDS``.
    """

    raster: Raster
    bands: Bands
    class_count: int
    window: int
    overlap: float
    batch_size: int
    area: Area | None = None
    blend: str = "ramp"

    def __post_init__(self) -> None:
        assert 1 <= self.class_count < IGNORE
        assert self.window > 0
        assert self.batch_size > 0
        assert 0 <= self.overlap <= 0.75
        assert self.stride > 0
        assert self.blend in BLENDS

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the raster in pixels."""
        return self.raster.grid.shape

    @property
    def shared(self) -> int:
        """Pixels by which neighbouring windows overlap."""
        return round(self.window * self.overlap)

    @property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        return self.window - self.shared

    @cached_property
    def rows(self) -> list[int]:
        """First pixel row of each row of windows."""
        return window_starts(self.shape[0], self.window, self.stride)

    @cached_property
    def cols(self) -> list[int]:
        """First pixel column of each column of windows."""
        return window_starts(self.shape[1], self.window, self.stride)

    @cached_property
    def row_weights(self) -> NDArray[np.float32]:
        """(rows of windows, window): what each has to say along the vertical axis, 0 to 1."""
        return axis_weights(self.rows, self.window, self.shared, self.blend)

    @cached_property
    def col_weights(self) -> NDArray[np.float32]:
        """(columns of windows, window): what each has to say along the horizontal axis, 0 to 1."""
        return axis_weights(self.cols, self.window, self.shared, self.blend)

    @cached_property
    def row_spans(self) -> list[Span]:
        """The pixel rows in which each row of windows has a say."""
        return spans(self.rows, self.row_weights, self.shape[0])

    @cached_property
    def col_spans(self) -> list[Span]:
        """The pixel columns in which each column of windows has a say."""
        return spans(self.cols, self.col_weights, self.shape[1])

    def touching(self, top: int, bottom: int) -> range:
        """Return the rows of windows that have a say in pixel rows ``top … bottom - 1``."""
        met = [r for r, span in enumerate(self.row_spans) if span.begin < bottom and span.end > top]
        return range(met[0], met[-1] + 1)


def default_block_rows(width: int) -> int:
    """Return the height of blocks for a raster of that width: a multiple of 64, 64 to 2048."""
    return min(max(BLOCK_PIXELS // width // 64, 1), 32) * 64
