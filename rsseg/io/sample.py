"""The sample of an accuracy assessment: points on a map that a person fills with what is there.

A GeoPackage with the layer ``sample``, a point at the centre of each pixel drawn, in the CRS of the
map: ``point`` (1 … n, in random order), ``reference`` (the id of the class on the ground, NULL
until somebody has looked), and what tells that nothing was moved or lost: ``row``, ``col``,
``points`` (n) and ``map`` (the map's fingerprint). What the map says at a point is not in the file,
so that whoever fills it is not led by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.files import replacing
from rsseg.io.geopackage import write_layer
from rsseg.io.style import sample_qml
from rsseg.io.vector import read_table

LAYER = "sample"

LEAST = 2
"""Points that a class needs, or its error cannot be estimated."""

_MARKS = ("row", "col", "points", "map")
_ADVICE = "use the points that `rsseg assess sample` wrote, as they were"


@dataclass(frozen=True, eq=False)
class SamplePoints:
    """Points of a sample, in the order of their numbers.

    Attributes:
        rows: (N,) int64, row of the pixel in the map.
        cols: (N,) int64, its column.
        reference: (N,) uint8, index of the class on the ground; 255 where it is still open.
        map: fingerprint of the map that they were drawn from.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    reference: NDArray[np.uint8]
    map: str


def write_sample(
    path: Path, grid: Grid, points: SamplePoints, classes: Classes, *, overwrite: bool = False
) -> None:
    """Write the points, their style embedded; the same points give the same bytes.

    Args:
        path: the GeoPackage to write; appears complete or not at all.
        grid: the map's grid.
        points: the points, in the order of their numbers.
        classes: the classes to choose from.
        overwrite: whether a file that exists, and a user's work in it, may be replaced.

    Raises:
        InputError: the path cannot be written to, or exists without ``overwrite``.
        RunError: the finished file cannot take its final name.
    """
    count = len(points.rows)
    x, y = _centres(grid, points.rows, points.cols)
    filled = points.reference != IGNORE
    reference = pd.array(classes.to_ids(points.reference), dtype="Int32")
    reference[~filled] = pd.NA
    columns = {
        "point": np.arange(1, count + 1, dtype=np.int32),
        "reference": reference,
        "row": points.rows.astype(np.int32),
        "col": points.cols.astype(np.int32),
        "points": np.full(count, count, np.int32),
        "map": [points.map] * count,
    }
    table = geopandas.GeoDataFrame(columns, geometry=shapely.points(x, y), crs=grid.crs)
    with replacing(path, overwrite=overwrite) as temporary:
        write_layer(temporary, LAYER, table, "Point", sample_qml(classes, hidden=_MARKS))


def read_sample(path: Path, grid: Grid, classes: Classes) -> SamplePoints:
    """Return the points of a sample that a user has worked on.

    Args:
        path: the sample, in whatever format and CRS it was saved.
        grid: the map's grid.
        classes: the classes; ``reference`` holds their ids or names.

    Raises:
        InputError: unreadable, no sample, points that were moved, added or deleted, or an unknown
            class.
    """
    table = read_table(path)
    missing = next((f for f in ("reference", "point", *_MARKS) if f not in table.columns), None)
    if missing is not None:
        raise InputError(f"{path}: no sample of points, it has no field {missing!r}; {_ADVICE}")
    table = _numbered(table, path)
    rows, cols = (_whole(table[name]) for name in ("row", "col"))
    _check_places(table, grid, rows, cols, path)
    reference = _classified(table, classes, path)
    return SamplePoints(rows, cols, reference, str(table["map"].iloc[0]))


def _whole(values: pd.Series[Any]) -> NDArray[np.int64]:
    """Return whole numbers, -1 for whatever is none."""
    numbers = pd.to_numeric(values, errors="coerce").fillna(-1).to_numpy(np.float64)
    return np.where(numbers % 1 == 0, numbers, -1).astype(np.int64)


def _numbered(table: geopandas.GeoDataFrame, path: Path) -> geopandas.GeoDataFrame:
    """Return the points in the order of their numbers, if these are 1 … n."""
    if table.empty:
        raise InputError(f"{path}: no points in it; {_ADVICE}")
    numbers, counts = _whole(table["point"]), _whole(table["points"])
    total = int(counts.max())
    found, times = np.unique(numbers, return_counts=True)
    strangers = (numbers < 1) | (numbers > total) | (counts != total)
    if strangers.any():
        raise InputError(
            f"{path}: {strangers.sum()} of its {len(table)} points are not of the sample; delete "
            f"what was added, or {_ADVICE}"
        )
    if (times > 1).any():
        twice = _listed(found[times > 1])
        raise InputError(f"{path}: more than one point has the number {twice}; {_ADVICE}")
    if len(found) < total:
        lost = _listed(np.setdiff1d(np.arange(1, total + 1), found))
        raise InputError(
            f"{path}: {total - len(found)} of {total} points are missing (number {lost}); {_ADVICE}"
        )
    return table.iloc[np.argsort(numbers)].reset_index(drop=True)


def _check_places(
    table: geopandas.GeoDataFrame,
    grid: Grid,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    path: Path,
) -> None:
    placed = table.geometry
    if grid.crs is not None:
        placed = placed.set_crs(grid.crs) if placed.crs is None else placed.to_crs(grid.crs)
    geometries = placed.to_numpy()
    x, y = shapely.get_x(geometries), shapely.get_y(geometries)
    to_pixels = ~_transform(grid)
    col = to_pixels.a * x + to_pixels.b * y + to_pixels.c - 0.5
    row = to_pixels.d * x + to_pixels.e * y + to_pixels.f - 0.5
    # Not <= 0.5 only: what is no point at all has NaN for coordinates.
    moved = ~((np.abs(row - rows) <= 0.5) & (np.abs(col - cols) <= 0.5))
    height, width = grid.shape
    moved |= (rows < 0) | (rows >= height) | (cols < 0) | (cols >= width)
    if moved.mean() > 0.5:
        raise InputError(f"{path}: drawn on another map, its points lie elsewhere; give that map")
    if moved.any():
        which = _listed(np.flatnonzero(moved) + 1)
        raise InputError(
            f"{path}: {moved.sum()} points were moved (number {which}); their places were drawn by "
            f"chance and must stay: {_ADVICE}"
        )


def _classified(table: geopandas.GeoDataFrame, classes: Classes, path: Path) -> NDArray[np.uint8]:
    """Return the class index of each point's reference, 255 where it is empty."""
    values = table["reference"].astype(object)
    known: dict[Any, int] = {}
    for value in values[values.notna()].unique():
        try:
            known[value] = classes.index(value) if str(value).strip() else IGNORE
        except InputError as error:
            number = int(np.flatnonzero((values == value).to_numpy())[0]) + 1
            raise InputError(f"{path}: reference of point {number}: {error}") from None
    return np.array([known.get(v, IGNORE) if pd.notna(v) else IGNORE for v in values], np.uint8)


def _listed(numbers: Iterable[int]) -> str:
    """Return the first few numbers as text."""
    some = [str(number) for number in numbers]
    return ", ".join(some[:5]) + (", …" if len(some) > 5 else "")


def _transform(grid: Grid) -> Affine:
    """Return the grid's transform; one without a place lies below the x axis, as in QGIS."""
    return grid.transform if grid.is_georeferenced else Affine.scale(1, -1)


def _centres(
    grid: Grid, rows: NDArray[np.int64], cols: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    affine, row, col = _transform(grid), rows + 0.5, cols + 0.5
    x = affine.a * col + affine.b * row + affine.c
    y = affine.d * col + affine.e * row + affine.f
    return x, y
