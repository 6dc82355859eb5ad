"""evaluate: how good a map is, against a raster of classes on any grid or against polygons.

Everything streams in blocks of the map's grid, so memory does not grow with the raster.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.api.scoring import Evaluation, Preview
from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.map_classes import (
    blocks,
    classes_of,
    warn_of_other_classes,
    warn_of_strange_ids,
)
from rsseg.io.preview import Sampler
from rsseg.io.remote import as_path
from rsseg.io.vector import areal, classify, is_vector, meets, rasterise, read_features
from rsseg.ops.boundary import boundary_counts
from rsseg.ops.confusion import confusion
from rsseg.progress import SILENT, Progress

Truth = Callable[[Window, Window, NDArray[np.uint8]], NDArray[np.uint8]]
"""Gives the true class indices (h, w) of a window, from it, its core and the predicted ones."""

BOUNDARY = 3
"""Default width of boundary bands, pixels. The paper's 2 % of the diagonal suits photographs of a
few objects; in an orthophoto what matters is how exactly outlines are drawn: a few pixels."""

WIDEST_BOUNDARY = 256
"""Greatest width of boundary bands, pixels."""

PREVIEW_SIDE = 1000
"""Longer side of the sample of pixels that is kept to be looked at."""


def evaluate(
    map_path: str | Path,
    truth_path: str | Path,
    *,
    classes: Classes | None = None,
    field: str | None = None,
    only: str | None = None,
    boundary: int = BOUNDARY,
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
        boundary: width of the bands along the outlines whose IoU is the boundary IoU, pixels of
            the map, 1 to 256; about how far an outline may be off and still count as nearly right.
        progress: shows the blocks compared, and is told of ids that are no class.

    Returns:
        The confusion matrix and what follows from it.

    Raises:
        InputError: a file cannot be read or is no raster of class ids, map and truth do not
            overlap or cannot be laid over each other, the classes are unclear, or ``boundary`` is
            out of range.
        RunError: a file turns out to be damaged.
    """
    map_path, truth_path = as_path(map_path), as_path(truth_path)
    if not 1 <= boundary <= WIDEST_BOUNDARY:
        raise InputError(f"--boundary {boundary}: give 1 to {WIDEST_BOUNDARY} pixels")
    with ExitStack() as stack:
        raster = stack.enter_context(ClassRaster(map_path))
        rasters = [raster]
        polygons = is_vector(truth_path)
        if not polygons:
            _refuse_vector_options(truth_path, field, only)
            rasters.append(stack.enter_context(_truth_raster(truth_path, raster, progress)))
        known = classes or classes_of(map_path, rasters, progress)
        warn_of_other_classes(map_path, known, progress)
        mapped, *others = [ClassMap(one, known) for one in rasters]
        truth: Truth = (
            _Polygons(truth_path, raster, known, field, only, progress).read
            if polygons
            else lambda window, core, _: others[0].read(window, core)
        )
        found = _compare(mapped, truth, truth_path, boundary, progress)
    warn_of_strange_ids(mapped, "counted as no prediction", progress)
    for other in others:
        warn_of_strange_ids(other, "left out", progress)
    if not found.matrix.any():
        raise InputError(
            f"{truth_path}: has no class anywhere on {map_path}, so nothing can be compared; "
            "check its nodata value and the class ids"
        )
    return found


def _compare(
    predicted: ClassMap, truth: Truth, truth_path: Path, width: int, progress: Progress
) -> Evaluation:
    classes, grid = predicted.classes, predicted.raster.grid
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    boundary = np.zeros((3, len(classes)), np.int64)
    sampler = Sampler(grid, PREVIEW_SIDE)
    for core in blocks(grid, "evaluate", progress):
        read = core.padded(width).clipped(grid.shape)  # bands reach across blocks
        mapped = predicted.read(read, core)
        true = truth(read, core, mapped)
        inner = core.relative_to(read).slices
        matrix += confusion(true[inner], mapped[inner], len(classes), IGNORE)
        boundary += boundary_counts(true, mapped, len(classes), width, inner, IGNORE)
        sampler.add(core, mapped[inner], true[inner])
    paths = str(predicted.raster.path), str(truth_path)
    preview = Preview(sampler.grid, *sampler.layers)
    return Evaluation(*paths, classes, matrix, boundary, width, grid, preview)


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

    def read(
        self, window: Window, _core: Window, predicted: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
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
