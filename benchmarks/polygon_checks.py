"""Whether polygons are those of the map: the same at any height of strips, no gaps, no overlaps.

Nothing here knows how rsseg draws: the polygons are read back from the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray

WINDOW = 1024
"""Side of the windows in which a coverage is checked, pixels."""

RINGS = 1000
"""A polygon of more rings is checked in a window with the holes that meet the window."""


def digest(path: Path) -> str:
    """Return the hash of all features of the first layer of a file, in their order."""
    found = hashlib.sha256()
    layer = pyogrio.list_layers(path)[0, 0]
    with pyogrio.raw.open_arrow(path, layer=layer, batch_size=10_000, use_pyarrow=True) as opened:
        for batch in opened[1]:
            for column in batch.columns:
                found.update(repr(column.to_pylist()).encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Checked:
    """What was found of the polygons of a map.

    Args:
        polygons: how many there are.
        points: how many points they have.
        invalid: polygons that are not valid by themselves.
        area: their areas added up, over the area of the pixels that have a class, less 1.
        windows: windows in which the coverage was checked, each with all polygons that meet it.
        bad_windows: those in which it is not valid.
        loose_edges: edges that are not the outline of the pixels that have a class and do not run
            between two polygons, once in either direction; and what of the outline is missing.
    """

    polygons: int
    points: int
    invalid: int
    area: float
    windows: int
    bad_windows: int
    loose_edges: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def check(map_path: Path, path: Path, *, windows: bool) -> Checked:
    """Check polygons against their map.

    Args:
        map_path: the map.
        path: the polygons.
        windows: whether ``shapely.coverage_is_valid`` is asked as well, window by window; that
            takes hours where one polygon has very many points.

    Two polygons that touch or overlap do so in some window, and are checked there together. Edges
    are the stronger proof: if all run once in either direction, but for the outline of the pixels
    that have a class, then every place within it lies in exactly one polygon.
    """
    with rasterio.open(map_path) as dataset:
        labels, transform, nodata = dataset.read(1), dataset.transform, dataset.nodata
    valid = np.ones(labels.shape, bool) if nodata is None else labels != nodata
    layer = pyogrio.list_layers(path)[0, 0]
    polygons = shapely.from_wkb(pyogrio.raw.read(path, layer=layer, columns=[])[2])
    expected = np.count_nonzero(valid) * abs(transform.determinant)
    parts = _windows(polygons, labels.shape, transform) if windows else []
    verdicts = [bool(shapely.coverage_is_valid(part)) for part in parts]
    return Checked(
        polygons=len(polygons),
        points=int(shapely.get_num_coordinates(polygons).sum()),
        invalid=int(np.count_nonzero(~shapely.is_valid(polygons))),
        area=float(shapely.area(polygons).sum() / expected - 1),
        windows=len(verdicts),
        bad_windows=verdicts.count(False),
        loose_edges=_loose_edges(polygons, valid, transform),
    )


def _windows(
    polygons: NDArray[np.object_], shape: tuple[int, ...], transform: Affine
) -> list[NDArray[np.object_]]:
    tree = shapely.STRtree(polygons)
    giants = np.flatnonzero(shapely.get_num_interior_rings(polygons) > RINGS)
    rings = {giant: shapely.get_rings(polygons[giant]) for giant in giants}
    parts = []
    for row, col in product(*(range(0, side, WINDOW) for side in shape)):
        corners = transform @ (col, row), transform @ (col + WINDOW, row + WINDOW)
        window = shapely.box(*np.min(corners, axis=0), *np.max(corners, axis=0))
        chosen = tree.query(window)
        part = polygons[chosen]
        for place in np.flatnonzero(np.isin(chosen, giants)):
            part[place] = _near(rings[chosen[place]], window)
        parts.append(part)
    return parts


def _near(rings: NDArray[np.object_], window: shapely.Polygon) -> shapely.Polygon:
    """Return a polygon without the holes away from a window: what fills them is away too."""
    bounds = shapely.bounds(rings[1:])
    left, low, right, high = window.bounds
    meets = (bounds[:, 0] <= right) & (bounds[:, 2] >= left)
    meets &= (bounds[:, 1] <= high) & (bounds[:, 3] >= low)
    return shapely.Polygon(rings[0], rings[1:][meets])


def _loose_edges(polygons: NDArray[np.object_], valid: NDArray[np.bool_], transform: Affine) -> int:
    """Return how many edges of one pixel's length the outline and the loose edges do not share."""
    loose = _cancelled(_edges(polygons, transform))
    steps = np.abs(loose[:, 2:] - loose[:, :2])
    straight = (steps == 0).any(axis=1)
    lengths = np.where(straight, steps.sum(axis=1), 0)
    starts = np.minimum(loose[:, :2], loose[:, 2:])
    along = np.repeat(np.arange(len(loose)), lengths)
    ahead = np.arange(len(along)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = starts[along] + ahead[:, None] * (steps[along] > 0)
    keys = _key(places[:, 0], places[:, 1], steps[along, 1] > 0)
    slanted = np.count_nonzero(~straight)
    return int(slanted + len(np.setxor1d(keys, _outline(valid))) + len(keys) - len(set(keys)))


def _edges(polygons: NDArray[np.object_], transform: Affine) -> NDArray[np.int32]:
    """Return the edges, (E, 4) int32: rows and columns of the corners they run between."""
    # Polygons that lie on the left of all their edges, so that an edge's two sides differ.
    rings = shapely.get_rings(shapely.orient_polygons(polygons))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    cols, rows = ~transform @ (points[:, 0], points[:, 1])
    corners = np.stack([np.rint(rows), np.rint(cols)], axis=1).astype(np.int32)
    same = ring[1:] == ring[:-1]
    return np.hstack([corners[:-1][same], corners[1:][same]])


def _cancelled(edges: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the edges that do not run equally often in both directions."""
    forward = (edges[:, 0] < edges[:, 2]) | (
        (edges[:, 0] == edges[:, 2]) & (edges[:, 1] < edges[:, 3])
    )
    edges[~forward] = edges[~forward][:, [2, 3, 0, 1]]
    order = np.lexsort(edges.T[::-1])
    edges, signs = edges[order], np.where(forward[order], 1, -1)
    starts = np.flatnonzero(np.r_[True, (edges[1:] != edges[:-1]).any(axis=1)])
    return edges[starts[np.add.reduceat(signs, starts) != 0]]


def _outline(valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the keys of the edges of pixels between those that have a class and others."""
    padded = np.pad(valid, 1)
    rows, cols = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines, sides = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    level = np.repeat([True, False], [len(rows), len(lines)])
    return _key(np.r_[rows, lines], np.r_[cols, sides], level)


def _key(
    rows: NDArray[np.integer[Any]], cols: NDArray[np.integer[Any]], level: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return a number for each edge of a pixel: its start, and whether it runs along a row."""
    return (rows.astype(np.int64) << 32) + (cols.astype(np.int64) << 1) + level
