"""evaluate: how good a map is, against a raster of classes on any grid or against polygons.

Everything streams in blocks of the map's grid, so memory does not grow with the raster.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Tiling, Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.files import replacing
from rsseg.io.mapfile import read_classes, read_colours
from rsseg.io.vector import areal, classify, is_vector, meets, rasterise, read_features
from rsseg.ops.confusion import Scores, confusion, scores
from rsseg.progress import SILENT, Progress

_BLOCK = 1024
"""Side of the blocks that are compared at a time, pixels; a multiple of the TIFF tiles."""

Truth = Callable[[Window, NDArray[np.uint8]], NDArray[np.uint8]]
"""Gives the true class indices of a window, both (h, w), from it and the predicted ones."""


class Row(NamedTuple):
    """One line of the table of scores; None where a score is undefined or does not apply."""

    name: str
    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    pixels: int
    share: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A map compared with the truth.

    Args:
        map: the map's path.
        truth: the truth's path.
        classes: the K classes that were compared.
        matrix: (K, K + 1) int64, pixels by true (row) and predicted class (column); the last
            column counts pixels with a true class for which the map has none.
    """

    map: str
    truth: str
    classes: Classes
    matrix: NDArray[np.int64]

    @cached_property
    def scores(self) -> Scores:
        """IoU, precision, recall and F1 of each class, and the means."""
        return scores(self.matrix)

    @property
    def compared(self) -> int:
        """Pixels that have a true class."""
        return int(self.matrix.sum())

    @property
    def unpredicted(self) -> int:
        """Those of them for which the map has no class; they count as wrong."""
        return int(self.matrix[:, -1].sum())

    def rows(self) -> list[Row]:
        """Return the table: a row per class, then mIoU, mF (under F1) and OA (under recall).

        ``pixels`` is the support, the pixels that are truly of the class; ``share`` its part of
        all that were compared. Overall accuracy stands under recall because it is the recall of
        all classes together.
        """
        found, total = self.scores, self.compared
        table = [
            Row(
                name,
                _defined(found.iou[index]),
                _defined(found.precision[index]),
                _defined(found.recall[index]),
                _defined(found.f1[index]),
                support,
                _defined(support / total if total else math.nan),
            )
            for index, (name, support) in enumerate(
                zip(self.classes.names, self.matrix.sum(axis=1).tolist(), strict=True)
            )
        ]
        summary = Row("", None, None, None, None, total, 1.0 if total else None)
        return [
            *table,
            summary._replace(name="mIoU", iou=_defined(found.miou)),
            summary._replace(name="mF", f1=_defined(found.mf1)),
            summary._replace(name="OA", recall=_defined(found.oa)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; undefined scores are None."""
        found = self.scores
        per_class = zip(self.classes.ids, self.rows()[: len(self.classes)], strict=True)
        return {
            "map": self.map,
            "truth": self.truth,
            "compared_pixels": self.compared,
            "unpredicted_pixels": self.unpredicted,
            "miou": _defined(found.miou),
            "mf1": _defined(found.mf1),
            "oa": _defined(found.oa),
            "classes": [{"id": class_id, **row._asdict()} for class_id, row in per_class],
            "confusion": {
                "rows": list(self.classes.names),
                "columns": [*self.classes.names, "no prediction"],
                "pixels": self.matrix.tolist(),
            },
        }

    def write_json(self, path: Path, *, overwrite: bool = False) -> None:
        """Write ``to_dict`` as JSON, complete or not at all.

        Raises:
            InputError: the path cannot be written to, or exists without ``overwrite``.
        """
        with replacing(path, overwrite=overwrite) as temporary:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def write_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write ``rows`` as CSV, complete or not at all; undefined scores are empty.

        Raises:
            InputError: the path cannot be written to, or exists without ``overwrite``.
        """
        with (
            replacing(path, overwrite=overwrite) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", *Row._fields[1:]])
            writer.writerows(self.rows())


def evaluate(
    map_path: str | Path,
    truth_path: str | Path,
    *,
    classes: Classes | None = None,
    field: str | None = None,
    only: str | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Compare a map with the truth wherever the truth has a class.

    A truth raster is resampled to the nearest pixel on the map's grid. Of polygons, what none
    covers is the background where the classes have one and the map has a class, and is otherwise
    left out.

    Args:
        map_path: a raster of class ids, one band; 255 and nodata are no class.
        truth_path: the same on any grid and in any CRS, or vector features with polygons.
        classes: the classes; by default those that the map carries in its ``RSSEG_CLASSES`` tag,
            else one for each value that occurs in map and truth, named by it.
        field: the field of the polygons that holds class names or ids.
        only: the one class (name or id) that all polygons are of.
        progress: shows the blocks compared, and is told of ids that are no class.

    Returns:
        The confusion matrix and what follows from it.

    Raises:
        InputError: a file cannot be read or is no raster of class ids, map and truth do not
            overlap or cannot be laid over each other, or the classes are unclear.
        RunError: a file turns out to be damaged.
    """
    map_path, truth_path = Path(map_path), Path(truth_path)
    with ExitStack() as stack:
        raster = stack.enter_context(ClassRaster(map_path))
        rasters = [raster]
        polygons = is_vector(truth_path)
        if not polygons:
            _refuse_vector_options(truth_path, field, only)
            rasters.append(stack.enter_context(_truth_raster(truth_path, raster, progress)))
        known = classes or _classes_of(map_path, rasters, progress)
        _warn_of_other_classes(map_path, known, progress)
        mapped, *others = [ClassMap(one, known) for one in rasters]
        truth: Truth = (
            _Polygons(truth_path, raster, known, field, only, progress).read
            if polygons
            else lambda window, _: others[0].read(window)
        )
        matrix = _compare(mapped, truth, progress)
    _warn_of_strange_ids(mapped, "counted as no prediction", progress)
    for other in others:
        _warn_of_strange_ids(other, "left out", progress)
    if not matrix.any():
        raise InputError(
            f"{truth_path}: has no class anywhere on {map_path}, so nothing can be compared; "
            "check its nodata value and the class ids"
        )
    return Evaluation(str(map_path), str(truth_path), known, matrix)


def _compare(predicted: ClassMap, truth: Truth, progress: Progress) -> NDArray[np.int64]:
    count = len(predicted.classes)
    matrix = np.zeros((count, count + 1), np.int64)
    for window in _blocks(predicted.raster.grid, "evaluate", progress):
        mapped = predicted.read(window)
        matrix += confusion(truth(window, mapped), mapped, count, IGNORE)
    return matrix


def _blocks(grid: Grid, label: str, progress: Progress) -> Iterator[Window]:
    tiling = Tiling(grid.shape, _BLOCK, 0)
    with progress.step(label, len(tiling), "blocks") as step:
        for tile in tiling:
            yield tile.core
            step.advance()


# --- The truth ----------------------------------------------------------------------------------


def _truth_raster(path: Path, mapped: ClassRaster, progress: Progress) -> ClassRaster:
    """Return a class raster on the map's grid; tell what had to be assumed for it."""
    truth = ClassRaster(path)
    laid = truth.on(mapped.grid, mapped.path)
    bare = [one for one in (truth, mapped) if one.grid.crs is None]
    if len(bare) == 1:
        placed = all(one.grid.is_georeferenced for one in (truth, mapped))
        assumed = "taken to be in the other's" if placed else "compared pixel by pixel"
        progress.warn(f"{bare[0].path}: has no CRS, so it is {assumed}")
    return laid


class _Polygons:
    """True class indices drawn from polygons.

    Raises:
        InputError: see ``evaluate``.
    """

    def __init__(
        self,
        path: Path,
        mapped: ClassRaster,
        classes: Classes,
        field: str | None,
        only: str | None,
        progress: Progress,
    ) -> None:
        self._grid = mapped.grid
        self._background = classes.background
        features = read_features(path, self._grid.crs)
        self._features = areal(features, path, "the truth is a class raster or polygons")
        self._classes = classify(self._features, classes, field, only, path)
        if not self._grid.is_georeferenced:
            raise InputError(
                f"{mapped.path}: has no georeference, so polygons have no place on it; "
                "give the truth as a raster of the same size"
            )
        if not meets(self._features, self._grid):
            raise InputError(
                f"{path}: does not overlap {mapped.path}; "
                "check that both are of the same place and have the right CRS"
            )
        if self._grid.crs is None:
            progress.warn(f"{mapped.path}: has no CRS; {path} is taken to be in its coordinates")

    def read(self, window: Window, predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the true class indices (h, w) of a window; 255 where there is no truth."""
        truth = rasterise(self._features, self._classes, self._grid, window, fill=IGNORE)
        if self._background is not None:
            # Where there is no map, often there is no image either: nobody looked for polygons.
            truth[(truth == IGNORE) & (predicted != IGNORE)] = self._background
        return truth


def _refuse_vector_options(path: Path, field: str | None, only: str | None) -> None:
    option = "--field" if field is not None else "--class" if only is not None else None
    if option:
        raise InputError(f"{path}: is a raster, and {option} is for polygons; leave it away")


# --- Classes ------------------------------------------------------------------------------------


def _classes_of(path: Path, rasters: Sequence[ClassRaster], progress: Progress) -> Classes:
    """Return the classes that a map carries, or else those of the ids in map and truth."""
    carried = read_classes(path)
    if carried is not None:
        return carried
    ids: set[float] = set()
    for window in _blocks(rasters[0].grid, "read class ids", progress):
        for raster in rasters:
            values, valid = raster.read(window)
            ids.update(np.unique(values[valid]).tolist())
        _check_ids(ids, path)
    return _named_by_id(sorted(int(value) for value in ids - {IGNORE}), path)


def _check_ids(ids: Iterable[float], path: Path) -> None:
    wrong = next((value for value in ids if not 0 <= value <= IGNORE or value % 1), None)
    if wrong is not None:
        raise InputError(
            f"{path}: does not say its classes, and the value {wrong:g} is no class id "
            "(0 to 254); give --classes"
        )


def _named_by_id(ids: Sequence[int], path: Path) -> Classes:
    if len(ids) < 2:
        found = f"only the id {ids[0]} occurs" if ids else "no id occurs"
        raise InputError(f"{path}: does not say its classes, and {found}; give --classes")
    colours = read_colours(path)
    described: list[dict[str, Any]] = [{"name": str(value), "id": value} for value in ids]
    for row in described:
        if row["id"] in colours:
            row["colour"] = list(colours[row["id"]])
    return Classes.from_dict({"classes": described}, str(path))


def _warn_of_other_classes(path: Path, classes: Classes, progress: Progress) -> None:
    carried = read_classes(path)
    if carried is None or (carried.names, carried.ids) == (classes.names, classes.ids):
        return
    said, own = (
        ", ".join(f"{i} {name}" for i, name in zip(c.ids, c.names, strict=True))
        for c in (classes, carried)
    )
    progress.warn(f"{path}: its own classes are {own}; compared as {said}")


def _warn_of_strange_ids(pixels: ClassMap, consequence: str, progress: Progress) -> None:
    if pixels.strange_pixels:
        ids = ", ".join(f"{value:g}" for value in pixels.strange_ids)
        progress.warn(
            f"{pixels.raster.path}: {pixels.strange_pixels} pixels with ids that are no class "
            f"({ids}) are {consequence}"
        )


def _defined(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
