"""The classes of a map as strata of a sample: counted, and pixels found in them, block by block."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.io.classmap import ClassMap
from rsseg.io.ground import row_areas
from rsseg.io.map_classes import blocks, warn_of_strange_ids
from rsseg.progress import Progress


@dataclass(frozen=True, eq=False)
class Strata:
    """How much of a map is of which class.

    Args:
        classes: the K classes.
        counts: (H, K) int64, pixels of each class in each row of the map.
        row_areas: (H,) float64, ground area of one pixel of each row, as of ``row_areas``.
        shape: (height, width) of the map.
    """

    classes: Classes
    counts: NDArray[np.int64]
    row_areas: NDArray[np.float64]
    shape: tuple[int, int]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Pixels of each class, (K,)."""
        sizes: NDArray[np.int64] = self.counts.sum(axis=0)
        return sizes

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """Ground area of each class, (K,), in the unit of ``row_areas``."""
        return self.row_areas @ self.counts

    @property
    def fingerprint(self) -> str:
        """Name of the map by its size and the pixels of each class: 12 hexadecimal digits."""
        sizes = zip(self.classes.ids, self.sizes.tolist(), strict=True)
        said = json.dumps([self.shape, sorted((i, size) for i, size in sizes if size)])
        return hashlib.sha256(said.encode()).hexdigest()[:12]


def count_strata(pixels: ClassMap, progress: Progress) -> Strata:
    """Count the pixels of each class in each row of a map.

    Pixels without a class are in no stratum, and neither are those beyond a pole, where there is
    no ground.

    Args:
        pixels: the map.
        progress: shows the blocks read, and is told of ids that are no class.

    Raises:
        InputError: no pixel has a class.
        RunError: the file turns out to be damaged.
    """
    grid, count = pixels.raster.grid, len(pixels.classes)
    areas = row_areas(grid)
    counts = np.zeros((grid.shape[0], count), np.int64)
    for window in blocks(grid, "count pixels", progress):
        indices = pixels.read(window)
        rows = np.arange(window.height)[:, None] * count
        cells = (rows + indices)[indices != IGNORE]
        found = np.bincount(cells, minlength=window.height * count)
        counts[window.slices[0]] += found.reshape(window.height, count)
    warn_of_strange_ids(pixels, "left out", progress)
    counts[areas <= 0] = 0
    if not counts.any():
        raise InputError(
            f"{pixels.raster.path}: no pixel of it has a class; check its nodata value and the "
            "class ids"
        )
    return Strata(pixels.classes, counts, areas, grid.shape)


def find_columns(
    pixels: ClassMap,
    classes: NDArray[np.integer],
    rows: NDArray[np.int64],
    ranks: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.int64]:
    """Return the columns of pixels that are known by their class and place in their row.

    Args:
        pixels: the map.
        classes: (N,) class index of each pixel that is sought.
        rows: (N,) its row.
        ranks: (N,) its place among the pixels of the class in the row, from 0 at the left.
        progress: shows the blocks read.

    Returns:
        (N,) int64.

    Raises:
        RunError: the file turns out to be damaged.
    """
    columns = np.full(len(rows), -1, np.int64)
    left = ranks.copy()  # how many of the class lie between the blocks read so far and the pixel
    for window in blocks(pixels.raster.grid, "find pixels", progress):
        inside = (rows >= window.row) & (rows < window.row + window.height) & (columns < 0)
        if not inside.any():
            continue
        indices = pixels.read(window)
        for point in np.flatnonzero(inside):
            hits = np.flatnonzero(indices[rows[point] - window.row] == classes[point])
            if left[point] < hits.size:
                columns[point] = window.col + hits[left[point]]
            left[point] -= hits.size
    assert (columns >= 0).all(), "the map has fewer pixels than were counted"
    return columns
