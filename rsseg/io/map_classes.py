"""What every verb that reads a map of class ids begins with: its classes, and its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Tiling, Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.mapfile import read_classes, read_colours
from rsseg.progress import Progress

_ADVICE = "give --classes, or --legend to rsseg vectorize"

BLOCK = 1024
"""Side of the blocks in which maps are read, pixels; a multiple of the TIFF tiles."""


def blocks(grid: Grid, label: str, progress: Progress) -> Iterator[Window]:
    """Yield the blocks of a grid, row by row, and show how far that is."""
    tiling = Tiling(grid.shape, BLOCK, 0)
    with progress.step(label, len(tiling), "blocks") as step:
        for tile in tiling:
            yield tile.core
            step.advance()


def open_map(raster: ClassRaster, classes: Classes | None, progress: Progress) -> ClassMap:
    """Return a map of class ids with its classes, or with those given.

    Args:
        raster: the map.
        classes: what the ids mean; None for what the map says, see ``classes_of``.
        progress: is told where the map says something else.

    Raises:
        InputError: see ``classes_of``.
    """
    known = classes or classes_of(raster.path, [raster], progress)
    warn_of_other_classes(raster.path, known, progress)
    return ClassMap(raster, known)


def classes_of(path: Path, rasters: Sequence[ClassRaster], progress: Progress) -> Classes:
    """Return the classes that a map carries, or else those of the ids in it and in others.

    Args:
        path: the map.
        rasters: the map and what it is read together with, all on the map's grid.
        progress: shows the search for ids.

    Raises:
        InputError: the map says nothing and its values are no class ids, or fewer than two.
    """
    carried = read_classes(path)
    if carried is not None:
        return carried
    ids: set[float] = set()
    for window in blocks(rasters[0].grid, "read class ids", progress):
        for raster in rasters:
            values, valid = raster.read(window)
            ids.update(np.unique(values[valid]).tolist())
        _check_ids(ids, path)
    return named_by_id(ids, path)


def _check_ids(ids: Iterable[float], path: Path) -> None:
    wrong = next((value for value in ids if not 0 <= value <= IGNORE or value % 1), None)
    if wrong is not None:
        raise InputError(
            f"{path}: does not say its classes, and the value {wrong:g} is no class id "
            f"(0 to 254); {_ADVICE}"
        )


def named_by_id(values: Iterable[float], path: Path) -> Classes:
    """Return a class for each id, named by it, in the colour that the map's table gives it.

    Args:
        values: what occurs in the map; 255 is no class.
        path: the map.

    Raises:
        InputError: a value is no class id, or there are fewer than two.
    """
    found = set(values)
    _check_ids(found, path)
    ids = sorted(int(value) for value in found - {IGNORE})
    if len(ids) < 2:
        only = f"only the id {ids[0]} occurs" if ids else "no id occurs"
        raise InputError(f"{path}: does not say its classes, and {only}; {_ADVICE}")
    colours = read_colours(path)
    described: list[dict[str, Any]] = [{"name": str(value), "id": value} for value in ids]
    for row in described:
        if row["id"] in colours:
            row["colour"] = list(colours[row["id"]])
    return Classes.from_dict({"classes": described}, str(path))


def warn_of_other_classes(path: Path, classes: Classes, progress: Progress) -> None:
    """Tell that a map carries classes other than those it is read with, if it does."""
    carried = read_classes(path)
    if carried is None or (carried.names, carried.ids) == (classes.names, classes.ids):
        return
    said, own = (
        ", ".join(f"{i} {name}" for i, name in zip(c.ids, c.names, strict=True))
        for c in (classes, carried)
    )
    progress.warn(f"{path}: its own classes are {own}; read as {said}")


def warn_of_strange_ids(pixels: ClassMap, consequence: str, progress: Progress) -> None:
    """Tell of ids that are no class, where any were read, and what becomes of their pixels."""
    if pixels.strange_pixels:
        ids = ", ".join(f"{value:g}" for value in pixels.strange_ids)
        progress.warn(
            f"{pixels.raster.path}: {pixels.strange_pixels} pixels with ids that are no class "
            f"({ids}) are {consequence}"
        )
