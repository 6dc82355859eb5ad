"""Class rasters: class ids on one grid, read as class indices on any other (nearest pixel)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.raster import Raster
from rsseg.io.tag_table import plain_name

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""

STRANGE_IDS = 5
"""How many different ids that are no class are remembered."""

_counting = Lock()
"""One for all maps, so that they pickle."""


class ClassRaster:
    """A raster of class ids, seen on its own grid or, to the nearest pixel, on another.

    A raster without georeference lies on whatever has its size, pixel by pixel. One with a
    transform but no CRS is taken to be in the CRS of the other. Reading is thread-safe and
    pickling works as with ``Raster``.

    Args:
        path: anything GDAL opens; one band of class ids, besides alpha.
        grid: the grid to read on; None for the raster's own. ``on`` makes sure that it fits.

    Attributes:
        path: as given.
        grid: the grid it is seen on.
        source: the raster itself.

    Raises:
        InputError: it cannot be read, or has several bands.
    """

    def __init__(self, path: Path, grid: Grid | None = None) -> None:
        self.source = Raster(path, grid=grid)
        self.path = self.source.path
        self.grid = self.source.grid
        if len(self.source.bands) > 1:
            raise InputError(
                f"{path}: has {len(self.source.bands)} bands; a raster of class ids has one, "
                "so this may be an image"
            )

    def __enter__(self) -> ClassRaster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading opens them again."""
        self.source.close()

    def lies_on(self, grid: Grid) -> bool:
        """Return whether the raster shares ground with a grid; without georeference, its size.

        Raises:
            InputError: there is no way from one CRS to the other.
        """
        return share_ground(self.grid, grid, self.path)

    def on(self, grid: Grid, whose: Path | str) -> ClassRaster:
        """Return this raster as seen on another grid.

        Args:
            grid: where to read it.
            whose: what to call the owner of that grid in messages.

        Raises:
            InputError: they have no ground in common, or no place on the ground and different
                sizes.
        """
        placed = self.grid.is_georeferenced and grid.is_georeferenced
        if not self.lies_on(grid):
            raise InputError(self._apart(whose) if placed else self._other_size(grid, whose))
        return ClassRaster(self.path, grid) if placed and not self.grid.coincides(grid) else self

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the ids (h, w), of any dtype, and which of them count (h, w) bool.

        Raises:
            RunError: the file turns out to be damaged there.
        """
        image, valid = self.source.read(window)
        return image[0], valid

    def _apart(self, whose: Path | str) -> str:
        return (
            f"{self.path}: does not overlap {whose}; "
            "check that both are of the same place and have the right CRS"
        )

    def _other_size(self, grid: Grid, whose: Path | str) -> str:
        bare = whose if self.grid.is_georeferenced else self.path
        return (
            f"{bare}: has no CRS, and {self.path} ({_size(self.grid)} pixels) is not of the size "
            f"of {whose} ({_size(grid)}); assign a CRS with gdal_edit.py -a_srs"
        )


class ClassMap:
    """Class indices of a class raster; remembers the ids in it that are no class.

    Reading is thread-safe.

    Args:
        raster: the class raster, on the grid to read on.
        classes: what the ids mean.

    Attributes:
        strange_pixels: how many pixels read so far had an id that is no class; reads that overlap
            count twice.
        strange_ids: the lowest of those ids.
    """

    def __init__(self, raster: ClassRaster, classes: Classes) -> None:
        self.raster = raster
        self.classes = classes
        self.strange_pixels = 0
        self.strange_ids: tuple[float, ...] = ()

    def read(self, window: Window, core: Window | None = None) -> NDArray[np.uint8]:
        """Return class indices (h, w) of a window; 255 where there is no class.

        Args:
            window: pixels of the grid.
            core: the part of it in which ids that are no class are counted; None for all.

        Raises:
            RunError: the file turns out to be damaged there.
        """
        ids, valid = self.raster.read(window)
        indices = np.where(valid, self.classes.from_ids(ids), np.uint8(IGNORE))
        unknown = valid & (indices == IGNORE) & (ids != IGNORE)
        counted = (core or window).relative_to(window).slices
        strange = ids[counted][unknown[counted]]
        if strange.size:
            with _counting:
                self.strange_pixels += strange.size
                found = {*self.strange_ids, *np.unique(strange).tolist()}
                self.strange_ids = tuple(sorted(found)[:STRANGE_IDS])
        return indices


def scenes_under(raster: ClassRaster, grids: Mapping[str, Grid]) -> list[str]:
    """Return the names of the scenes that a class raster lies on.

    Without georeference on both sides, that is the scene of the same size and name, or of the same
    size where there is only one scene.

    Args:
        raster: the class raster, on its own grid.
        grids: scene name → grid.

    Raises:
        InputError: it lies on none of them.
    """
    own_name = plain_name(raster.path.name)
    placed = raster.grid.is_georeferenced
    under = [
        name
        for name, grid in grids.items()
        if (len(grids) == 1 or own_name == name or (placed and grid.is_georeferenced))
        and raster.lies_on(grid)
    ]
    if not under:
        raise InputError(
            f"{raster.path}: lies on none of the site's scenes; check its CRS (a raster without "
            "georeference needs the name and the size of its scene)"
        )
    return under


def share_ground(grid: Grid, other: Grid, path: Path) -> bool:
    """Return whether two grids have ground in common; without georeference, their size.

    Args:
        grid: one of them.
        other: the other.
        path: what to call the raster of the first in messages.

    Raises:
        InputError: there is no way from one CRS to the other.
    """
    if not (grid.is_georeferenced and other.is_georeferenced):
        return grid.shape == other.shape
    return _meet(bounds_in(grid, other.crs, path), other.bounds)


def bounds_in(grid: Grid, crs: str | None, path: Path) -> Bounds:
    """Return the box around a grid in another CRS; without a CRS on either side, in its own.

    Args:
        grid: the grid.
        crs: WKT of the other CRS.
        path: what to call the raster in messages.

    Raises:
        InputError: there is no way from one CRS to the other.
    """
    bounds = grid.bounds
    if grid.crs is None or crs is None:
        return bounds
    try:
        # pyproj and not rasterio, whose errors here are of a private kind.
        to_other = Transformer.from_crs(grid.crs, crs, always_xy=True)
        left, bottom, right, top = to_other.transform_bounds(*bounds)
    except ProjError as error:
        reason = str(error).partition("\n")[0][:120]
        raise InputError(
            f"{path}: cannot be brought into the CRS of the other raster ({reason}); "
            "check the CRS of both"
        ) from error
    return left, bottom, right, top


def _meet(first: Bounds, second: Bounds) -> bool:
    """Return whether two boxes have an area in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width > 0 and height > 0


def _size(grid: Grid) -> str:
    return f"{grid.shape[1]} x {grid.shape[0]}"
