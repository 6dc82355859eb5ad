"""quicklook: a picture of a raster, and of its map, for people who have no GIS open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.bands import three_bands
from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.classmap import ClassRaster
from rsseg.io.files import check_output, replacing
from rsseg.io.ground import row_areas
from rsseg.io.map_classes import named_by_id
from rsseg.io.mapfile import read_classes, read_colours
from rsseg.io.preview import id_picture, picture, preview_grid
from rsseg.io.raster import Raster
from rsseg.io.remote import as_path
from rsseg.ops.figure import Entry, draw_figure
from rsseg.ops.picture import on_white, overlay, paint, shares
from rsseg.progress import SILENT, Progress

SIDES = (64, 4096)
"""Least and greatest longer side of a picture, pixels."""

FEW = 16
"""An undescribed band of bytes with no more values than these is taken for a class map."""

LEGEND = 24
"""Most classes in the legend; those with the smallest areas are left out."""


def quicklook(
    raster: str | Path,
    out: str | Path,
    map_path: str | Path | None = None,
    *,
    classes: Classes | None = None,
    rgb: Sequence[int] | None = None,
    side_by_side: bool = False,
    opacity: float = 0.5,
    size: int = 1600,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Draw a raster, or a map over its raster, as a PNG with legend, scale bar and north up.

    Rasters of any size are read through their overviews, or block by block where they have none.
    They are drawn in the raster's own CRS, turned so that its north is up, and stretched like the
    8-bit view of a site, by what is seen. The legend gives the classes that occur and their
    shares of the mapped ground.

    Args:
        raster: the raster. It is drawn as a map itself if it has one band, and classes: carried in
            a tag or as a colour table, given as ``classes``, or just few different values.
        out: the PNG.
        map_path: a raster of class ids on any grid; drawn over the raster, its background clear.
        classes: the classes of the map; by default those that it carries, else its ids.
        rgb: band numbers (from 1) shown as red, green and blue; by default as the file says.
        side_by_side: draw the map beside the raster and not over it.
        opacity: of the map over the raster, 0 to 1.
        size: longer side of a picture, pixels, 64 to 4096; no raster is magnified to it.
        overwrite: replace a file that exists.
        progress: shows the pixels read.

    Returns:
        The path of the PNG.

    Raises:
        InputError: a file cannot be read or the PNG not be written, raster and map do not overlap,
            the map has several bands, or an option is out of range.
        RunError: a file turns out to be damaged.
    """
    raster, out = as_path(raster), as_path(out)
    source = None if map_path is None else as_path(map_path)
    _check(out, size, opacity, side_by_side and source is None)
    check_output(out, overwrite, [raster, *([source] if source else [])])
    own = Raster(raster).grid
    grid = preview_grid(own, size)
    seen = None
    if source is None:
        mapped = _as_map(raster, grid, classes, progress)
    else:
        ClassRaster(source).on(own, raster)  # refuses a map that lies elsewhere
        mapped = read_mapped(source, grid, classes, place_of(source, own), progress)
    if source is not None or mapped is None:
        seen = on_white(*picture(raster, grid, rgb=three_bands(rgb), progress=progress))
    drawn = _drawn(raster.name, source, seen, mapped, side_by_side, opacity)
    legend = [] if mapped is None else legend_of(mapped, grid, drawn.clear)
    with replacing(out, overwrite=overwrite) as temporary:
        draw_figure(temporary, drawn.title, drawn.panels, legend, grid.ground_sample_distance)
    return out


def _check(out: Path, size: int, opacity: float, nothing_beside: bool) -> None:
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: a quicklook is a PNG; give a name that ends in .png")
    if not SIDES[0] <= size <= SIDES[1]:
        raise InputError(f"--size {size}: give a number of pixels from {SIDES[0]} to {SIDES[1]}")
    if not 0 <= opacity <= 1:
        raise InputError(f"--opacity {opacity:g}: give a number from 0 to 1")
    if nothing_beside:
        raise InputError("--side-by-side: needs a MAP to be drawn beside the raster")


class Mapped(NamedTuple):
    """A class map on a preview's grid.

    Args:
        indices: (H, W) uint8 class indices; 255 where there is no class.
        classes: what they mean.
    """

    indices: NDArray[np.uint8]
    classes: Classes


class _Drawn(NamedTuple):
    """What a quicklook shows: named pictures (H, W, 3), and the class that is left unpainted."""

    title: str
    panels: list[tuple[str, NDArray[np.uint8]]]
    clear: int | None = None


def _drawn(
    raster: str,
    source: Path | None,
    seen: NDArray[np.uint8] | None,
    mapped: Mapped | None,
    side_by_side: bool,
    opacity: float,
) -> _Drawn:
    if mapped is None:
        assert seen is not None
        return _Drawn(raster, [("", seen)])
    indices, known = mapped
    painted = paint(indices, known.colours)
    if seen is None or source is None:
        return _Drawn(raster, [("", painted)])
    if side_by_side:
        return _Drawn("", [(raster, seen), (source.name, painted)])
    # A mask without names: its zeros are what it leaves over.
    clear = 0 if known.background is None and known.names == ("0", "1") else known.background
    laid = overlay(seen, indices, known.colours, opacity, clear)
    return _Drawn(f"{source.name} over {raster}", [("", laid)], clear)


def _as_map(path: Path, grid: Grid, classes: Classes | None, progress: Progress) -> Mapped | None:
    """Return a raster as the map that it is, or None if it is none."""
    raster = Raster(path)
    if len(raster.bands) > 1:
        if classes is not None:
            raise InputError(f"{path}: has several bands, so --classes is for a MAP; give one too")
        return None
    if classes is not None or read_classes(path) is not None or read_colours(path):
        return read_mapped(path, grid, classes, None, progress)
    if raster.dtype != "uint8":
        return None
    ids, valid = id_picture(path, grid, progress=progress)
    found = np.setdiff1d(ids[valid], [IGNORE])
    if not 2 <= found.size <= FEW:
        return None
    known = named_by_id(found.tolist(), path)
    return Mapped(np.where(valid, known.from_ids(ids), np.uint8(IGNORE)), known)


def read_mapped(
    path: Path, grid: Grid, classes: Classes | None, own: Grid | None, progress: Progress
) -> Mapped:
    """Read a class map on a preview's grid, with its own classes unless others are given.

    Args:
        path: the map.
        grid: the preview's.
        classes: what the ids mean; None for what the map says, else a class for each id seen.
        own: where the map lies, if the file does not say it.
        progress: shows the pixels read.

    Raises:
        InputError: it cannot be read, or its values are no class ids.
    """
    ids, valid = id_picture(path, grid, own=own, progress=progress)
    known = classes or read_classes(path) or named_by_id(np.unique(ids[valid]).tolist(), path)
    return Mapped(np.where(valid, known.from_ids(ids), np.uint8(IGNORE)), known)


def place_of(path: Path, other: Grid) -> Grid | None:
    """Return where a class raster of the same size lies, if one of both does not say it itself."""
    own = ClassRaster(path).grid
    return None if own.is_georeferenced and other.is_georeferenced else other


def legend_of(mapped: Mapped, grid: Grid, clear: int | None = None) -> list[Entry]:
    """Return the legend: the classes that occur, with their shares of the ground.

    Args:
        mapped: the map.
        grid: the preview's.
        clear: the class that is left unpainted.
    """
    indices, classes = mapped
    found = shares(indices, len(classes), row_areas(grid))
    by_size = [index for index in np.argsort(-found, kind="stable").tolist() if found[index] > 0]
    legend = [
        Entry(
            classes.names[index],
            None if index == clear else classes.colours[index],
            percent(found[index]),
        )
        for index in sorted(by_size[:LEGEND])
    ]
    if left_out := by_size[LEGEND:]:
        legend.append(Entry(f"{len(left_out)} more", None, percent(found[left_out].sum())))
    return legend


def percent(share: float) -> str:
    """Return a share as people write it, never 0 of what is there: ``12 %``, ``0.3 %``."""
    if share < 0.001:
        return "< 0.1 %"
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")
