"""How good a map is: against a raster of classes on any grid, or against polygons.

Everything streams in blocks of the map's grid, so memory does not grow with the raster.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Tiling, Window
from rsseg.io.files import replacing
from rsseg.io.raster import Raster
from rsseg.io.vector import classify, is_vector, rasterise, read_features
from rsseg.ops.confusion import Scores, confusion, scores
from rsseg.progress import SILENT, Progress

CLASSES_TAG = "RSSEG_CLASSES"
"""GeoTIFF tag in which rsseg's maps carry their classes: ``Classes.to_dict`` as JSON."""

_BLOCK = 1024
"""Side of the blocks that are compared at a time, pixels; a multiple of the TIFF tiles."""

_SAME_PIXEL = 1e-3
"""Grids whose corners lie closer than this, in pixels, are the same."""

# GDAL resamples only between rasters with a CRS; the same one on both sides changes no coordinate.
_STAND_IN_CRS = 'LOCAL_CS["unknown",UNIT["metre",1]]'

Reader = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]
"""Gives the class ids (h, w), of any dtype, and the valid pixels (h, w) of a window."""

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
        raster = stack.enter_context(_class_raster(map_path))
        readers = [_reader(raster)]
        polygons = is_vector(truth_path)
        if not polygons:
            _refuse_vector_options(truth_path, field, only)
            readers.append(stack.enter_context(_truth_reader(truth_path, raster, progress)))
        known = classes or _classes_of(map_path, raster.grid, readers, progress)
        _warn_of_other_classes(map_path, known, progress)
        images = [_Indices(read, known) for read in readers]
        truth: Truth = (
            _Polygons(truth_path, raster, known, field, only, progress).read
            if polygons
            else lambda window, _: images[1].read(window)
        )
        matrix = _compare(raster.grid, images[0], truth, len(known), progress)
    images[0].warn(map_path, "counted as no prediction", progress)
    if not polygons:
        images[1].warn(truth_path, "left out", progress)
    if not matrix.any():
        raise InputError(
            f"{truth_path}: has no class anywhere on {map_path}, so nothing can be compared; "
            "check its nodata value and the class ids"
        )
    return Evaluation(str(map_path), str(truth_path), known, matrix)


def _compare(
    grid: Grid, predicted: _Indices, truth: Truth, count: int, progress: Progress
) -> NDArray[np.int64]:
    matrix = np.zeros((count, count + 1), np.int64)
    for window in _blocks(grid, "evaluate", progress):
        mapped = predicted.read(window)
        matrix += confusion(truth(window, mapped), mapped, count, IGNORE)
    return matrix


def _blocks(grid: Grid, label: str, progress: Progress) -> Iterator[Window]:
    tiling = Tiling(grid.shape, _BLOCK, 0)
    with progress.step(label, len(tiling), "blocks") as step:
        for tile in tiling:
            yield tile.core
            step.advance()


# --- Rasters of class ids -----------------------------------------------------------------------


class _Indices:
    """Class indices of a raster of ids; remembers what else was in it.

    Args:
        read: gives ids and valid pixels.
        classes: the classes.
    """

    def __init__(self, read: Reader, classes: Classes) -> None:
        self._read = read
        self._classes = classes
        self._strange_pixels = 0
        self._strange_ids: set[float] = set()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return class indices (h, w) of a window; 255 where there is no class."""
        ids, valid = self._read(window)
        indices = np.where(valid, self._classes.from_ids(ids), np.uint8(IGNORE))
        strange = ids[valid & (indices == IGNORE) & (ids != IGNORE)]
        self._strange_pixels += strange.size
        found = self._strange_ids.union(np.unique(strange).tolist())
        self._strange_ids = set(sorted(found)[:5])
        return indices

    def warn(self, path: Path, consequence: str, progress: Progress) -> None:
        """Tell of the ids that are no class, if any were read."""
        if self._strange_pixels:
            ids = ", ".join(f"{value:g}" for value in sorted(self._strange_ids))
            progress.warn(
                f"{path}: {self._strange_pixels} pixels with ids that are no class "
                f"({ids}) are {consequence}"
            )


def _class_raster(path: Path) -> Raster:
    raster = Raster(path)
    if len(raster.bands) > 1:
        bands = len(raster.bands)
        raster.close()
        raise InputError(
            f"{path}: has {bands} bands; a raster of class ids has one, so this may be an image"
        )
    return raster


def _reader(raster: Raster) -> Reader:
    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        image, valid = raster.read(window)
        return image[0], valid

    return read


@contextmanager
def _truth_reader(path: Path, mapped: Raster, progress: Progress) -> Iterator[Reader]:
    """Give the truth on the map's grid: as it is where it lies on it, else resampled."""
    with _class_raster(path) as raster:
        if _pixel_by_pixel(raster, mapped, progress):
            yield _reader(raster)
        else:
            _check_overlap(raster, mapped)
            with _resampled(raster, mapped.grid) as read:
                yield read


def _pixel_by_pixel(truth: Raster, mapped: Raster, progress: Progress) -> bool:
    """Return whether two rasters share their pixels, known from their grids or their shapes.

    Raises:
        InputError: they differ in shape, and where one lies on the other is unknown.
    """
    if _same_grid(truth.grid, mapped.grid):
        return True
    crs_known = [raster.grid.crs is not None for raster in (truth, mapped)]
    placed = [raster.grid.is_georeferenced for raster in (truth, mapped)]
    if all(crs_known) or (not any(crs_known) and all(placed)):
        return False
    bare = truth if placed[1] and not crs_known[0] else mapped
    if truth.grid.shape != mapped.grid.shape:
        raise InputError(
            f"{bare.path}: has no CRS, and {truth.path} ({_size(truth.grid)} pixels) is not of "
            f"the size of {mapped.path} ({_size(mapped.grid)}); "
            "assign a CRS with gdal_edit.py -a_srs"
        )
    progress.warn(f"{bare.path}: has no CRS, so it is compared pixel by pixel")
    return True


def _size(grid: Grid) -> str:
    return f"{grid.shape[1]} x {grid.shape[0]}"


def _same_grid(first: Grid, second: Grid) -> bool:
    if first.shape != second.shape or not _same_crs(first.crs, second.crs):
        return False
    if first.transform.is_degenerate or second.transform.is_degenerate:
        return first.transform == second.transform
    to_pixels = ~second.transform
    offsets = np.subtract(
        [to_pixels * corner for corner in first.corners],
        [to_pixels * corner for corner in second.corners],
    )
    return bool(np.abs(offsets).max() < _SAME_PIXEL)


def _same_crs(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return first is second
    return first == second or bool(CRS.from_wkt(first) == CRS.from_wkt(second))


def _check_overlap(truth: Raster, mapped: Raster) -> None:
    bounds = truth.grid.bounds
    try:
        if truth.grid.crs is not None:
            # pyproj and not rasterio, whose errors here are of a private kind.
            to_map = Transformer.from_crs(truth.grid.crs, mapped.grid.crs, always_xy=True)
            bounds = to_map.transform_bounds(*bounds)
    except ProjError as error:
        reason = str(error).partition("\n")[0][:120]
        raise InputError(
            f"{truth.path}: cannot be brought into the CRS of {mapped.path} ({reason}); "
            "check the CRS of both"
        ) from error
    if not _meet(bounds, mapped.grid.bounds):
        raise InputError(_apart(truth.path, mapped.path))


def _meet(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float]
) -> bool:
    """Return whether two boxes (left, bottom, right, top) have an area in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width > 0 and height > 0


def _apart(truth: Path, mapped: Path) -> str:
    return (
        f"{truth}: does not overlap {mapped}; "
        "check that both are of the same place and have the right CRS"
    )


@contextmanager
def _resampled(truth: Raster, grid: Grid) -> Iterator[Reader]:
    """Give the truth's nearest pixels on another grid."""
    with ExitStack() as stack:
        view = stack.enter_context(_view(truth, grid, stack))
        bands = [truth.bands[0], view.colorinterp.index(ColorInterp.alpha) + 1]

        def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            area = RasterioWindow(window.col, window.row, window.width, window.height)
            try:
                ids, alpha = view.read(bands, window=area)
            except RasterioError as error:
                raise RunError(
                    f"{truth.path}: cannot be read ({error.__cause__ or error}); "
                    "the file is damaged, copy it again from its source"
                ) from error
            return ids, (alpha > 0) & np.isfinite(ids)

        yield read


def _view(truth: Raster, grid: Grid, stack: ExitStack) -> Any:
    dataset = stack.enter_context(_quietly_opened(truth.path))
    return WarpedVRT(
        dataset,
        src_crs=truth.grid.crs or _STAND_IN_CRS,
        crs=grid.crs or _STAND_IN_CRS,
        transform=grid.transform,
        height=grid.shape[0],
        width=grid.shape[1],
        resampling=Resampling.nearest,
        # Beyond the truth a raster without nodata would go on as id 0.
        add_alpha=ColorInterp.alpha not in dataset.colorinterp,
    )


# --- Polygons -----------------------------------------------------------------------------------


class _Polygons:
    """True class indices drawn from polygons.

    Raises:
        InputError: see ``evaluate``.
    """

    def __init__(
        self,
        path: Path,
        mapped: Raster,
        classes: Classes,
        field: str | None,
        only: str | None,
        progress: Progress,
    ) -> None:
        self._grid = mapped.grid
        self._background = classes.background
        features = _areal(read_features(path, self._grid.crs), path)
        self._classes = classify(features, classes, field, only, path)
        self._features = features
        _check_placed(features, path, mapped, progress)

    def read(self, window: Window, predicted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the true class indices (h, w) of a window; 255 where there is no truth."""
        truth = rasterise(self._features, self._classes, self._grid, window, fill=IGNORE)
        if self._background is not None:
            # Where there is no map, often there is no image either: nobody looked for polygons.
            truth[(truth == IGNORE) & (predicted != IGNORE)] = self._background
        return truth


def _areal(features: geopandas.GeoDataFrame, path: Path) -> geopandas.GeoDataFrame:
    areal = shapely.get_dimensions(features.geometry.to_numpy()) == 2
    if not areal.any():
        raise InputError(f"{path}: no polygons in it; the truth is a class raster or polygons")
    return features[areal].reset_index(drop=True)


def _check_placed(
    features: geopandas.GeoDataFrame, path: Path, mapped: Raster, progress: Progress
) -> None:
    grid = mapped.grid
    if not grid.is_georeferenced:
        raise InputError(
            f"{mapped.path}: has no georeference, so polygons have no place on it; "
            "give the truth as a raster of the same size"
        )
    if features.sindex.query(shapely.Polygon(grid.corners), predicate="intersects").size == 0:
        raise InputError(_apart(path, mapped.path))
    if grid.crs is None:
        progress.warn(f"{mapped.path}: has no CRS; {path} is taken to be in its coordinates")


def _refuse_vector_options(path: Path, field: str | None, only: str | None) -> None:
    option = "--field" if field is not None else "--class" if only is not None else None
    if option:
        raise InputError(f"{path}: is a raster, and {option} is for polygons; leave it away")


# --- Classes ------------------------------------------------------------------------------------


def _classes_of(path: Path, grid: Grid, readers: Sequence[Reader], progress: Progress) -> Classes:
    """Return the classes that a map carries, or else those of the ids in map and truth."""
    carried = _carried_classes(path)
    if carried is not None:
        return carried
    ids: set[float] = set()
    for window in _blocks(grid, "read class ids", progress):
        for read in readers:
            values, valid = read(window)
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
    colours = _colour_table(path)
    described: list[dict[str, Any]] = [{"name": str(value), "id": value} for value in ids]
    for row in described:
        if row["id"] in colours:
            row["colour"] = list(colours[row["id"]][:3])
    return Classes.from_dict({"classes": described}, str(path))


def _carried_classes(path: Path) -> Classes | None:
    with _quietly_opened(path) as dataset:
        text = dataset.tags().get(CLASSES_TAG)
    if text is None:
        return None
    try:
        return Classes.from_dict(json.loads(text), f"{path}, tag {CLASSES_TAG}")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: its tag {CLASSES_TAG} is damaged ({error}); give --classes"
        ) from error


def _colour_table(path: Path) -> dict[int, tuple[int, int, int, int]]:
    with _quietly_opened(path) as dataset:
        try:
            table: dict[int, tuple[int, int, int, int]] = dataset.colormap(1)
        except ValueError:  # rasterio's way to say that there is none
            return {}
    return table


def _quietly_opened(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _warn_of_other_classes(path: Path, classes: Classes, progress: Progress) -> None:
    carried = _carried_classes(path)
    if carried is None or (carried.names, carried.ids) == (classes.names, classes.ids):
        return
    said, own = (
        ", ".join(f"{i} {name}" for i, name in zip(c.ids, c.names, strict=True))
        for c in (classes, carried)
    )
    progress.warn(f"{path}: its own classes are {own}; compared as {said}")


def _defined(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
