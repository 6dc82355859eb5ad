"""Views: a raster as it would be on another grid, through GDAL's warper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from affine import Affine
from rasterio.enums import MaskFlags, Resampling
from rasterio.vrt import WarpedVRT

from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.opening import alpha_bands

# GDAL warps only between rasters with a CRS; the same one on both sides changes no coordinate.
_STAND_IN_CRS = 'LOCAL_CS["unknown",UNIT["metre",1]]'


def averaged_view(source: Any, grid: Grid) -> Any:
    """Return a WarpedVRT that shows ``source`` on ``grid``, of the same CRS, bilinearly.

    GDAL widens the kernel when it reduces, so fine texture is averaged and not sampled.
    """
    height, width = grid.shape
    # Told, for GDAL guesses it from the window read, and the pixels would depend on the window.
    scale = math.sqrt(abs(source.transform.determinant / grid.transform.determinant))
    options: dict[str, Any] = {}
    flags = source.mask_flag_enums[0]
    if MaskFlags.all_valid in flags and source.dtypes[0].startswith("float"):
        options = {"src_nodata": math.nan, "nodata": math.nan}  # or NaN spreads over the kernel
    elif MaskFlags.nodata not in flags and not alpha_bands(source):
        options = {"src_nodata": None, "nodata": None, "add_alpha": True}
    return WarpedVRT(
        source,
        crs=source.crs,
        transform=grid.transform,
        height=height,
        width=width,
        resampling=Resampling.bilinear,
        XSCALE=scale,
        YSCALE=scale,
        **options,
    )


def nearest_view(source: Any, grid: Grid) -> Any:
    """Return a WarpedVRT that shows ``source`` on ``grid``, to the nearest pixel.

    Where one of the two has no CRS, it is taken to be in the other's. An alpha band tells what
    ``source`` covers.
    """
    height, width = grid.shape
    crs = grid.crs or source.crs or _STAND_IN_CRS
    return WarpedVRT(
        source,
        src_crs=source.crs or crs,
        crs=crs,
        transform=grid.transform,
        height=height,
        width=width,
        resampling=Resampling.nearest,
        # Beyond a raster without nodata, its view would go on as zeros.
        add_alpha=not alpha_bands(source),
    )


def resampled(grid: Grid, path: Path, ground_sample_distance: float) -> Grid:
    """Return the grid with pixels of another size, rounded up to cover the extent.

    Args:
        grid: the raster's own grid.
        path: what to call the raster in messages.
        ground_sample_distance: metres on the ground.

    Raises:
        InputError: not a positive number of metres, or the raster's own size is unknown.
    """
    if not 0 < ground_sample_distance < math.inf:
        raise InputError(
            f"ground sample distance {ground_sample_distance} is not a positive number of metres"
        )
    own = grid.ground_sample_distance
    if own is None:
        raise InputError(
            f"{path}: cannot be resampled to {ground_sample_distance} m, its CRS is unknown; "
            "assign one with gdal_edit.py -a_srs"
        )
    factor = ground_sample_distance / own
    # A hair less than the quotient, or rounding errors add a row that lies outside.
    height, width = (max(1, math.ceil(side / factor - 1e-6)) for side in grid.shape)
    return Grid((height, width), grid.transform @ Affine.scale(factor), grid.crs)
