"""vectorize: the polygons of a map, as a layer that opens styled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.files import discard_scratch, scratch_beside
from rsseg.io.footprints import FootprintTable
from rsseg.io.ground import row_areas
from rsseg.io.map_classes import open_map, warn_of_strange_ids
from rsseg.io.opening import SMALL_CACHE, block_cache
from rsseg.io.polygon_file import PolygonTable
from rsseg.io.raster import Raster
from rsseg.io.remote import as_path
from rsseg.io.style import embed_style, polygons_qml
from rsseg.io.vector_output import check_degrees, check_vectors, publish
from rsseg.progress import SILENT, Progress
from rsseg.stages.ahead import ahead
from rsseg.stages.polygonise import Batch, Pixels, default_strip_rows, polygonise
from rsseg.stages.sieve import PASSES, sieve

AREA_PARTS = 1 << 16
"""Parts of a pixel in which areas are added up."""


@dataclass(frozen=True)
class Vectors:
    """Polygons, written.

    Args:
        out: the file.
        polygons: class name → number of polygons, of the classes written.
        points: points of all polygons.
    """

    out: Path
    polygons: dict[str, int]
    points: int


def vectorize(
    map_path: str | Path,
    out: str | Path,
    *,
    confidence: str | Path | None = None,
    classes: Classes | None = None,
    only: Sequence[str] = (),
    min_area: float = 0,
    simplify: float = 0,
    right_angles: bool = False,
    strip_rows: int | None = None,
    workers: int = 2,
    allow_empty: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Vectors:
    """Write the regions of a map as polygons that share their edges exactly.

    A region is what hangs together by the sides of its pixels. The polygons cover every pixel that
    has a class once, those of id 0 too: no gaps, no overlaps, at any tolerance. They are the same
    whatever the height of the strips.

    Args:
        map_path: a raster of class ids, one band; 255 and nodata are no class.
        out: ``….gpkg``, ``….geojson`` (longitudes and latitudes, as RFC 7946 wants them), ``….fgb``
            or ``….shp``.
        confidence: the raster of ``predict --confidence``, of which each polygon gets the mean,
            0 … 1.
        classes: what the ids mean; by default what the map says.
        only: names or ids of the classes whose polygons are wanted; by default all.
        min_area: square metres; smaller polygons are merged into the neighbour with which they
            share the longest edge, the smallest first, until none is left that has a neighbour.
        simplify: metres; corners go, the smallest first, whose triangle with their neighbours has
            an area of less than the square of it (Visvalingam and Whyatt 1993). So it is no
            distance: a line may move by more where it is long. What borders on no class stays.
        right_angles: for buildings, and only with ``only``: footprints get straight walls and right
            angles where their outlines suggest them. They no longer share edges with what is not in
            the file, but none overlaps another; all of them are held in memory.
        strip_rows: rows of the map held in memory at a time; changes no polygon.
        workers: threads that read and draw ahead; changes no polygon.
        allow_empty: write a file without polygons where there is no pixel to draw.
        overwrite: replace existing files.
        progress: shows how far it is.

    Returns:
        What was written.

    Raises:
        InputError: a file cannot be read or written, an option is out of range, or the map has no
            pixel with a class.
        RunError: reading or writing failed on the way.
    """
    map_path, out = as_path(map_path), as_path(out)
    _check_numbers(min_area, simplify, strip_rows, workers)
    inputs = [map_path, *([] if confidence is None else [as_path(confidence)])]
    if right_angles and not only:
        raise InputError(
            "right angles are for buildings and the like, not for a whole map; say for which class "
            "with --classes NAME"
        )
    discard_scratch(out)
    check_vectors(out, overwrite, inputs)
    with block_cache(SMALL_CACHE), ClassRaster(map_path) as raster, ExitStack() as stack:
        check_degrees(out, raster.grid.crs, map_path)
        sure = None
        if confidence is not None:
            sure = _Confidence(stack.enter_context(Raster(confidence)), raster)
        mapped = open_map(raster, classes, progress)
        known = mapped.classes
        wanted = sorted({known.index(name) for name in only}) or range(len(known))
        scratch = stack.enter_context(scratch_beside(out))
        shelves, work = scratch / "polygons", scratch / "work"
        shelves.mkdir()
        work.mkdir()
        kind = FootprintTable if right_angles else PolygonTable
        table = kind(
            shelves,
            raster.grid,
            known,
            wanted=wanted,
            with_confidence=sure is not None,
            degrees=out.suffix.lower() == ".geojson",
        )
        cut = _Cut.of(raster.grid, min_area, simplify, strip_rows, workers)
        _fill(table, _Whole(mapped), sure, work, cut, map_path, progress)
        warn_of_strange_ids(mapped, "in no polygon", progress)
        if not len(table):
            names = ", ".join(known.names[index] for index in wanted)
            found = f"{map_path}: has no pixel of {names}"
            if not allow_empty:
                raise InputError(f"{found}, so there is nothing to draw")
            progress.warn(f"{found}; {out.name} has no polygons")
        style = polygons_qml(known, shown=wanted)
        _save(table, out, scratch, style, overwrite, progress)
    counts = {known.names[index]: int(table.counts[index]) for index in wanted}
    return Vectors(out, counts, table.points)


def _check_numbers(min_area: float, simplify: float, strip_rows: int | None, workers: int) -> None:
    for what, value in (("least area", min_area), ("tolerance", simplify)):
        if not 0 <= value < math.inf:
            raise InputError(f"{what} {value}: give 0 or more")
    if strip_rows is not None and strip_rows < 1:
        raise InputError(f"strip rows {strip_rows}: give 1 or more")
    if workers < 0:
        raise InputError(f"workers {workers}: give 0 or more")


class _Whole:
    """A map of class ids, read in whole rows; ids that are no class are counted once a row."""

    def __init__(self, mapped: ClassMap) -> None:
        self.shape = mapped.raster.grid.shape
        self._mapped = mapped
        self._counted = np.zeros(self.shape[0], bool)
        self._lock = Lock()

    def read(self, window: Window) -> NDArray[np.uint8]:
        rows = slice(window.row, window.row + window.height)
        with self._lock:
            new = window.row + np.flatnonzero(~self._counted[rows])
            self._counted[rows] = True
        # At most a row at either end has been read before, with the strip beside this one.
        first = int(new[0]) if new.size else window.row
        return self._mapped.read(window, Window(first, 0, len(new), window.width))


class _Confidence:
    """A raster of confidences on the grid of a map.

    Raises:
        InputError: it is something else.
    """

    def __init__(self, raster: Raster, mapped: ClassRaster) -> None:
        if raster.grid != mapped.grid:
            raise InputError(
                f"{raster.path}: does not lie on the pixels of {mapped.path}; "
                "give the raster of the same run's --confidence"
            )
        if len(raster.bands) != 1 or raster.dtype != "uint8":
            raise InputError(
                f"{raster.path}: has {len(raster.bands)} bands of {raster.dtype}; "
                "confidence is one band of uint8, 0 to 254"
            )
        self.shape = raster.grid.shape
        self._raster = raster

    def read(self, window: Window) -> NDArray[np.uint8]:
        values, valid = self._raster.read(window)
        return np.where(valid, values[0], np.uint8(IGNORE))


@dataclass(frozen=True, eq=False)
class _Cut:
    """How a map becomes polygons, in pixels.

    Args:
        weights: (H,) int64, the area of a pixel of each row.
        least: a region of less area is merged into a neighbour.
        tolerance: of ``polygonise``.
        strip_rows: rows of a strip.
        workers: threads.
    """

    weights: NDArray[np.int64]
    least: int
    tolerance: float
    strip_rows: int
    workers: int

    @classmethod
    def of(
        cls,
        grid: Grid,
        min_area: float,
        simplify: float,
        strip_rows: int | None,
        workers: int,
    ) -> _Cut:
        areas = row_areas(grid)
        pixel = float(areas[len(areas) // 2])
        return cls(
            # Whole numbers add up to the same in any order, however the map is cut.
            weights=np.rint(areas / pixel * AREA_PARTS).astype(np.int64),
            # Rounded, for 0.27 m² are 3 pixels of 0.3 m; no map has more than 2^62 parts.
            least=round(min(min_area / pixel * AREA_PARTS, 2.0**62)),
            tolerance=simplify / math.sqrt(pixel),
            strip_rows=strip_rows or default_strip_rows(grid.shape[1]),
            workers=workers,
        )


def _fill(
    table: PolygonTable,
    pixels: Pixels,
    confidence: Pixels | None,
    work: Path,
    cut: _Cut,
    source: Path,
    progress: Progress,
) -> None:
    """Draw the polygons."""
    total = pixels.shape[0] * pixels.shape[1] * (1 + (PASSES if cut.least else 0))
    with progress.step(f"vectorize {source.name}", total, "px") as step:
        if cut.least:
            pixels = sieve(
                pixels,
                work,
                step,
                weights=cut.weights,
                least=cut.least,
                strip_rows=cut.strip_rows,
                workers=cut.workers,
            )
        batches = polygonise(
            pixels,
            work,
            step,
            confidence=confidence,
            strip_rows=cut.strip_rows,
            tolerance=cut.tolerance,
            workers=cut.workers,
        )
        # One thread keeps a batch while the next one is put together.
        with closing(ahead(_adding(table), batches, min(cut.workers, 1), 1)) as kept:
            deque(kept, maxlen=0)


def _adding(table: PolygonTable) -> Callable[[Batch], None]:
    return lambda batch: table.add(batch.regions, batch.polygons)


def _save(
    table: PolygonTable,
    out: Path,
    scratch: Path,
    style: str,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write the vector file, its style, and let them take their names, the file itself last."""
    # GDAL gives the files of a Shapefile small endings, whatever the name asks for.
    written = scratch / f"{out.stem}{out.suffix.lower()}"
    with progress.step(f"save {out.name}", len(table), "polygons") as step:
        table.write(written, out.stem, step)
    if out.suffix.lower() == ".gpkg":
        embed_style(written, out.stem, style)
    publish(written, out, overwrite)
