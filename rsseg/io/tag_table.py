"""Tags in memory: which classes are present in which tile core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.grid import Grid, Tiling

PRESENT, ABSENT, UNKNOWN = 1, 0, -1

TagTable = dict[str, NDArray[np.int8]]
"""Scene name → (rows, cols, K) int8: 1 present, 0 absent, -1 unknown. A tile of nothing but -1 is
unlabelled; tiles without a valid pixel always are."""


@dataclass(frozen=True, eq=False)
class SceneTiles:
    """What tags need to know of one scene.

    Args:
        name: the scene's name, unique in its site.
        grid: the scene's grid.
        tiling: its tiles.
        valid: (rows, cols) bool, whether the tile has a valid pixel.
    """

    name: str
    grid: Grid
    tiling: Tiling
    valid: NDArray[np.bool_]

    @property
    def valid_tiles(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns, (N,) each, of the N tiles with a valid pixel, in row order."""
        rows, cols = np.nonzero(self.valid)
        return rows, cols

    @property
    def tile_ids(self) -> list[str]:
        """``scene/row/column`` of every valid tile: its name in tag sheets and CSV files."""
        return [f"{self.name}/{row}/{col}" for row, col in zip(*self.valid_tiles, strict=True)]

    @property
    def core_bounds(self) -> NDArray[np.float64]:
        """(N, 4) left, top, right, bottom of the valid tiles' cores in pixels."""
        rows, cols = self.valid_tiles
        core, (height, width) = self.tiling.core, self.grid.shape
        left, top = cols * core, rows * core
        right, bottom = np.minimum(left + core, width), np.minimum(top + core, height)
        return np.stack([left, top, right, bottom], axis=1).astype(np.float64)


def unknown_tags(scenes: Sequence[SceneTiles], classes: Classes) -> TagTable:
    """Return a table in which no tile has a tag."""
    return {s.name: np.full((*s.tiling.counts, len(classes)), UNKNOWN, np.int8) for s in scenes}


def completed(tags: TagTable, scenes: Sequence[SceneTiles], classes: Classes) -> TagTable:
    """Return the tags as every reader hands them on.

    Tiles without a valid pixel lose theirs; the background, where there is one and the source did
    not speak of it, is present in every tagged tile.
    """
    done = {}
    for scene in scenes:
        table = np.where(scene.valid[..., None], tags[scene.name], np.int8(UNKNOWN))
        if classes.background is not None:
            background = table[..., classes.background]
            background[is_tagged(table) & (background == UNKNOWN)] = PRESENT
        done[scene.name] = table
    return done


def is_tagged(table: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return which tiles have a tag: (rows, cols, K) int8 → (rows, cols) bool."""
    tagged: NDArray[np.bool_] = (table != UNKNOWN).any(axis=-1)
    return tagged


def merged(first: TagTable, second: TagTable) -> TagTable:
    """Return the first table with its unknowns filled from the second."""
    return {name: np.where(table == UNKNOWN, second[name], table) for name, table in first.items()}


def plain_name(file: str) -> str:
    """Return the scene name that the raster of this file name or path gets.

    Its stem, with ``_`` for everything but letters, digits, ``-``, ``_`` and ``.``.
    """
    stem = PurePath(file).stem
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stem) or "scene"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the names as a text for a message, shortened where there are many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
