"""Stratified random sampling of pixels: how many points a class gets, and which pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator


def allocate(
    areas: NDArray[np.float64], sizes: NDArray[np.int64], total: int, minimum: int
) -> NDArray[np.int64]:
    """Divide the points of a sample among the classes of a map.

    In proportion to area, but a class whose share would be below the minimum gets the minimum, at
    the cost of those above it: the compromise of Olofsson et al. (2014), section 5.1.2, between
    precise user's accuracies of rare classes and a precise overall accuracy. Where the points do
    not suffice for the minimum, every class gets as many as the others. A class with fewer pixels
    than that is taken whole, and the others get the rest.

    Args:
        areas: (K,) mapped area of each class, any unit.
        sizes: (K,) its pixels; 0 for a class that is not in the map.
        total: points to draw.
        minimum: the least for a class.

    Returns:
        (K,) int64, 0 for a class without pixels; adds up to ``total``, or to all pixels where
        there are fewer.
    """
    total = min(total, int(sizes.sum()))
    least = np.minimum(sizes, min(minimum, total // int(np.count_nonzero(sizes))))
    ideal = _filled(areas, least, sizes, total)
    points = np.floor(ideal).astype(np.int64)
    # Largest remainders first; of equal ones, the first class.
    order = np.argsort(points - ideal, kind="stable")
    order = order[points[order] < sizes[order]]
    points[order[: total - int(points.sum())]] += 1
    return points


def _filled(
    areas: NDArray[np.float64], least: NDArray[np.int64], most: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """Return (K,) numbers in proportion to areas within bounds that add up to a total."""
    density_least, density_most = 0.0, float((most[areas > 0] / areas[areas > 0]).max())
    for _ in range(200):  # halves the interval until floats are exhausted
        density = (density_least + density_most) / 2
        if np.clip(density * areas, least, most).sum() < total:
            density_least = density
        else:
            density_most = density
    return np.clip(density_most * areas, least, most).astype(np.float64)


def draw(
    counts: NDArray[np.int64], areas: NDArray[np.float64], number: int, random: Random
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw pixels of one class at random, none twice, each with a chance equal to its area.

    A place on the class's ground is drawn, and the pixel it lies in taken; places in pixels that
    are taken already are drawn again. Where all pixels have the same area this is simple random
    sampling. Where they have not, the chances are in proportion to the area as long as few of the
    pixels are taken; a class that is taken whole is counted by pixels and not by area.

    Args:
        counts: (H,) pixels of the class in each row of the map.
        areas: (H,) ground area of one pixel of the row, any unit; positive where there are counts.
        number: pixels to draw, at most all.
        random: where the chance comes from.

    Returns:
        rows: (number,) int64.
        ranks: (number,) int64, the place among the pixels of the class in its row, from 0 at the
            left. In the order in which they were drawn.
    """
    size = int(counts.sum())
    assert 0 <= number <= size
    starts = np.cumsum(counts) - counts  # of each row, among the class's pixels
    if number == size:
        return _placed(random.permutation(size), starts)
    ends = np.cumsum(counts * areas)
    drawn = np.empty(0, np.int64)
    while drawn.size < number:
        places = (1 - random.random(number)) * ends[-1]  # above 0, so in no empty row
        rows = np.searchsorted(ends, places)
        before = ends[rows] - counts[rows] * areas[rows]
        ranks = np.clip((places - before) / areas[rows], 0, counts[rows] - 1).astype(np.int64)
        drawn = _first_ones(np.append(drawn, starts[rows] + ranks))
    return _placed(drawn[:number], starts)


def _first_ones(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values without those that came before."""
    _, positions = np.unique(values, return_index=True)
    return values[np.sort(positions)]


def _placed(
    pixels: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and rank in the row of pixels, counted through all rows."""
    # The last row that starts at or before the pixel: empty rows start where the next one does.
    rows = np.searchsorted(starts, pixels, side="right") - 1
    return rows.astype(np.int64), pixels - starts[rows]
