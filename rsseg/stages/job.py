"""The job of a prediction: a raster, and how it is cut into the network's windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rsseg.bands import Bands
from rsseg.classes import IGNORE
from rsseg.grid import window_starts
from rsseg.io.raster import Raster
from rsseg.io.vector import Area

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
    """

    raster: Raster
    bands: Bands
    class_count: int
    window: int
    overlap: float
    batch_size: int
    area: Area | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.class_count < IGNORE
        assert self.window > 0
        assert self.batch_size > 0
        assert 0 <= self.overlap <= 0.75
        assert self.stride > 0

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

    def touching(self, top: int, bottom: int) -> range:
        """Return the rows of windows that meet the pixel rows ``top … bottom - 1``."""
        met = [r for r, row in enumerate(self.rows) if row < bottom and row + self.window > top]
        return range(met[0], met[-1] + 1)


def default_block_rows(width: int) -> int:
    """Return the height of blocks for a raster of that width: a multiple of 64, 64 to 2048."""
    return min(max(BLOCK_PIXELS // width // 64, 1), 32) * 64
