"""assess: how good a map is and how large its classes are, from a sample that was looked at.

The way of Olofsson et al. (2014), Remote Sensing of Environment 148, 42-57: estimates from a random
sample, stratified by the classes of the map, that make up for the map's errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.ground import HECTARE
from rsseg.io.map_classes import open_map
from rsseg.io.remote import as_path
from rsseg.io.sample import LEAST, SamplePoints, read_sample
from rsseg.io.strata import count_strata
from rsseg.io.tables import Tabular, defined
from rsseg.ops.accuracy import Accuracy, Estimate, estimate_accuracy
from rsseg.progress import SILENT, Progress


class Row(NamedTuple):
    """One line of the table: shares of 1, half widths of 95 % intervals, and hectares.

    None where there is too little to estimate something from, or the map has no CRS.
    """

    name: str
    points: int
    users: float | None
    users_ci95: float | None
    producers: float | None
    producers_ci95: float | None
    mapped_share: float | None
    share: float | None
    share_ci95: float | None
    mapped_ha: float | None
    ha: float | None
    ha_ci95: float | None


@dataclass(frozen=True, eq=False)
class Assessment(Tabular):
    """What a sample says of a map.

    Args:
        map: the map's path.
        sample: the sample's path.
        classes: the K classes.
        points: (K, K) int64, points by map class (row) and reference class (column).
        areas: (K,) float64, mapped area of each class, square metres where ``known_area``.
        known_area: whether the map has a CRS, so that areas are on the ground.
        open: points of the sample that nobody has filled.
    """

    map: str
    sample: str
    classes: Classes
    points: NDArray[np.int64]
    areas: NDArray[np.float64]
    known_area: bool
    open: int

    @cached_property
    def accuracy(self) -> Accuracy:
        """Accuracies and shares of the area with their standard errors."""
        return estimate_accuracy(self.points, self.areas)

    def rows(self) -> list[Row]:
        """Return the table: a row per class, then ``overall``.

        Overall accuracy stands under both accuracies, for over all classes together they are one.
        """
        found, total = self.accuracy, self._hectares(1)
        mapped = self.areas / self.areas.sum()
        table = [
            Row(
                name,
                int(self.points[index].sum()),
                *_pair(found.users, index),
                *_pair(found.producers, index),
                defined(mapped[index]),
                *_pair(found.shares, index),
                self._hectares(mapped[index]),
                *map(self._hectares, _pair(found.shares, index)),
            )
            for index, name in enumerate(self.classes.names)
        ]
        overall = _pair(found.overall, ())
        last = (1.0, 1.0, None, total, total, None)
        return [*table, Row("overall", int(self.points.sum()), *overall, *overall, *last)]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; what cannot be estimated is None."""
        found = self.accuracy
        mapped = self.areas / self.areas.sum()
        return {
            "map": self.map,
            "sample": self.sample,
            "method": "Olofsson et al. (2014), doi:10.1016/j.rse.2014.02.015",
            "points": int(self.points.sum()),
            "open_points": self.open,
            "mapped_ha": self._hectares(1),
            "overall": _spelt(found.overall, ()),
            "classes": [
                {
                    "id": class_id,
                    "name": name,
                    "points": int(self.points[index].sum()),
                    "users": _spelt(found.users, index),
                    "producers": _spelt(found.producers, index),
                    "mapped_share": float(mapped[index]),
                    "share": _spelt(found.shares, index),
                    "mapped_ha": self._hectares(mapped[index]),
                    "ha": {
                        key: self._hectares(value)
                        for key, value in _spelt(found.shares, index).items()
                    },
                }
                for index, (class_id, name) in enumerate(
                    zip(self.classes.ids, self.classes.names, strict=True)
                )
            ],
            "error_matrix": {
                "rows_map": list(self.classes.names),
                "columns_reference": list(self.classes.names),
                "points": self.points.tolist(),
                "proportions": found.proportions.tolist(),
            },
        }

    def _hectares(self, share: float | None) -> float | None:
        if share is None or not self.known_area:
            return None
        return float(share * self.areas.sum() / HECTARE)


def assess(
    map_path: str | Path,
    sample_path: str | Path,
    *,
    classes: Classes | None = None,
    partial: bool = False,
    progress: Progress = SILENT,
) -> Assessment:
    """Estimate the accuracy of a map and the areas of its classes from a sample that was filled.

    Args:
        map_path: the map that the sample was drawn on.
        sample_path: the points of ``draw_sample`` with class ids or names in ``reference``, in
            any format and CRS.
        classes: the classes, as for ``draw_sample``.
        partial: take the points that are filled, if each class has two of them. That is sound only
            if chance chose which they are: the first ones by number, for they are in random order.
        progress: shows the blocks read, and is told what the intervals do not cover.

    Raises:
        InputError: a file cannot be read, the sample is of another map, its points were moved,
            added or deleted, its classes are unknown, or points are open.
        RunError: the map turns out to be damaged.
    """
    map_path, sample_path = as_path(map_path), as_path(sample_path)
    with ClassRaster(map_path) as raster:
        pixels = open_map(raster, classes, progress)
        sample = read_sample(sample_path, raster.grid, pixels.classes)
        filled = _filled(sample, sample_path, partial, progress)
        strata = count_strata(pixels, progress)
        mapped = _mapped(pixels, sample)
        if strata.fingerprint != sample.map or (mapped == IGNORE).any():
            raise InputError(
                f"{sample_path}: drawn on another map than {map_path}, or on other classes of it; "
                "give the map and the --classes that it was drawn with"
            )
        known_area = raster.grid.crs is not None
    matrix = _matrix(mapped[filled], sample.reference[filled], len(pixels.classes))
    _check_filled(matrix, mapped, pixels.classes, sample_path)
    _tell_of_bare_intervals(matrix, pixels.classes, progress)
    still_open = int(np.count_nonzero(~filled))
    return Assessment(
        str(map_path),
        str(sample_path),
        pixels.classes,
        matrix,
        strata.areas,
        known_area,
        still_open,
    )


def _filled(
    sample: SamplePoints, path: Path, partial: bool, progress: Progress
) -> NDArray[np.bool_]:
    filled: NDArray[np.bool_] = sample.reference != IGNORE
    still_open = int(np.count_nonzero(~filled))
    if still_open == filled.size:
        raise InputError(
            f"{path}: no point has a reference yet; open it in QGIS and give every point its class"
        )
    if still_open and not partial:
        first = int(np.argmin(filled)) + 1
        raise InputError(
            f"{path}: {still_open} of {filled.size} points have no reference yet, the first is "
            f"number {first}; fill them, or give --partial to use those that are filled"
        )
    if filled[np.argmin(filled) :].any() and still_open:
        progress.warn(
            f"{path}: points are open before others that are filled; if they were left out because "
            "they are hard to tell, the map will seem better than it is"
        )
    return filled


def _mapped(pixels: ClassMap, sample: SamplePoints) -> NDArray[np.uint8]:
    """Return the map's class index at each point, (N,) uint8."""
    mapped = np.empty(len(sample.rows), np.uint8)
    for point in np.lexsort((sample.cols, sample.rows)):  # neighbours share blocks of the file
        window = Window(int(sample.rows[point]), int(sample.cols[point]), 1, 1)
        mapped[point] = pixels.read(window)[0, 0]
    return mapped


def _matrix(
    mapped: NDArray[np.uint8], reference: NDArray[np.uint8], count: int
) -> NDArray[np.int64]:
    cells = mapped.astype(np.int64) * count + reference
    return np.bincount(cells, minlength=count * count).reshape(count, count).astype(np.int64)


def _check_filled(
    matrix: NDArray[np.int64], mapped: NDArray[np.uint8], classes: Classes, path: Path
) -> None:
    drawn = np.bincount(mapped, minlength=len(classes))
    for name, points, there in zip(classes.names, matrix.sum(axis=1), drawn, strict=True):
        if points < min(LEAST, there):
            raise InputError(
                f"{path}: only {points} of the {there} points in the map's class {name} "
                f"have a reference; each class needs at least {LEAST}, fill more points"
            )


def _tell_of_bare_intervals(
    matrix: NDArray[np.int64], classes: Classes, progress: Progress
) -> None:
    """Warn where an interval says less than it seems to."""
    points = matrix.sum(axis=1)
    for name, number, right in zip(classes.names, points, np.diagonal(matrix), strict=True):
        if number == 1:
            progress.warn(
                f"{name}: one point only, so its error is unknown and no interval includes it"
            )
        elif number and right in (0, number):
            # The rule of three: no failure in n trials leaves up to 3 / n at 95 % confidence.
            progress.warn(
                f"{name}: all {number} points are {'right' if right else 'wrong'}, so the interval "
                f"of its user's accuracy shrinks to nothing; up to {min(1, 3 / number):.0%} of it "
                "may yet be otherwise"
            )


def _pair(estimate: Estimate, index: Any) -> tuple[float | None, float | None]:
    return defined(estimate.value[index]), defined(estimate.margin[index])


def _spelt(estimate: Estimate, index: Any) -> dict[str, float | None]:
    value, margin = _pair(estimate, index)
    error = defined(estimate.error[index])
    return {"estimate": value, "standard_error": error, "ci95": margin}
