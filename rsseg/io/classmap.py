"""ClassMap: a raster of class ids, seen on whatever grid is asked for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.raster import Raster


class ClassMap:
    """A raster of class ids on any grid and in any CRS, read on another grid (nearest pixel).

    Args:
        path: the raster; one band of class ids.
        grid: the grid to read it on.
        classes: what the ids mean; every other value is no class.

    Raises:
        InputError: it cannot be read, has several bands, or cannot be laid over the grid.
    """

    def __init__(self, path: Path, grid: Grid, classes: Classes) -> None:
        raster = Raster(path)
        if len(raster.bands) != 1:
            raise InputError(
                f"{path}: has {len(raster.bands)} bands; a class raster has one, with class ids"
            )
        unplaced = not (raster.grid.is_georeferenced and grid.is_georeferenced)
        if unplaced and raster.grid.shape != grid.shape:
            raise InputError(
                f"{path}: without georeference it must have the other raster's size "
                f"{grid.shape}, got {raster.grid.shape}"
            )
        self._classes = classes
        self._stack = ExitStack()
        source = self._stack.enter_context(rasterio.open(path))
        on_grid = unplaced or raster.grid == grid
        self._dataset = source if on_grid else self._stack.enter_context(_warped(source, grid))

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (h, w) class indices of a window inside the grid, 255 where there is none."""
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        return self._classes.from_ids(self._dataset.read(1, window=area))

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


def _warped(source: Any, grid: Grid) -> Any:
    crs = CRS.from_wkt(grid.crs) if grid.crs else source.crs
    # 255 is no class id; where the type cannot hold it, -1 is none either.
    nodata = IGNORE if np.can_cast(np.uint8, source.dtypes[0]) else -1
    return WarpedVRT(
        source,
        src_crs=source.crs or crs,
        crs=crs,
        transform=grid.transform,
        height=grid.shape[0],
        width=grid.shape[1],
        nodata=nodata,
    )
