"""Cloud-Optimized GeoTIFFs: GDAL's COG driver puts a finished GeoTIFF in order, with overviews."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Literal

import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioIOError

Resampling = Literal["mode", "nearest", "average"]

POLL_SECONDS = 0.5
"""How often the progress of a copy is looked at."""

LEVEL = 5
"""Deflate level: of a class map, 6 makes files a twentieth smaller, and takes twice as long."""

EXPECTED_GROWTH = 5 / 3
"""Bytes that a copy writes for each of its source: the pixels once, a third of them twice."""


def copy_as_cog(
    source: Path,
    target: Path,
    *,
    resampling: Resampling,
    predictor: bool,
    block_side: int,
    tell: Callable[[float], None] = lambda _: None,
) -> None:
    """Copy a GeoTIFF as a Cloud-Optimized GeoTIFF: overviews first, then the pixels, in order.

    Pixels, georeference, colour table, nodata, descriptions and tags stay. The same source gives
    the same bytes. GDAL's memory does not grow with the raster.

    Args:
        source: the GeoTIFF; emptied where the copy is interrupted.
        target: the file to write. Beside it GDAL keeps ``<target>.ovr.tmp`` meanwhile.
        resampling: how an overview's pixel is made of those below it.
        predictor: whether neighbouring values are alike, so that differences compress better.
        block_side: side of the TIFF tiles in pixels, a multiple of 16; overviews end where the
            raster fits into one.
        tell: is told how far it is, by the bytes written: 0 to 1, and 1 when all is done.

    Raises:
        RasterioError: reading or writing failed.
    """
    options = {
        "compress": "deflate",
        "level": LEVEL,
        "predictor": "yes" if predictor else "no",
        "blocksize": block_side,
        "overview_resampling": resampling,
        "bigtiff": "if_safer",
        "num_threads": "all_cpus",
    }
    expected = max(1, EXPECTED_GROWTH * source.stat().st_size)
    with ThreadPoolExecutor(1, "rsseg-cog") as pool:
        copy = pool.submit(rasterio.shutil.copy, source, target, driver="COG", **options)
        try:
            while wait([copy], POLL_SECONDS).not_done:
                tell(min(_written(target, source) / expected, 0.99))
        except BaseException:
            # GDAL cannot be told to stop, but it does where there is nothing left to read.
            with suppress(OSError):
                os.truncate(source, 0)
            raise
        try:
            copy.result()
        except CPLE_BaseError as error:  # rasterio.shutil lets GDAL's own errors through
            raise RasterioIOError(str(error)) from error
        except SystemError:  # and has no words where GDAL had none
            raise RasterioIOError("is the disk full?") from None
    tell(1)


def _written(target: Path, source: Path) -> int:
    """Return the bytes of the target and of what GDAL keeps beside it."""
    size = 0
    for path in target.parent.iterdir():
        if path.name.startswith(target.name) and path != source:
            with suppress(FileNotFoundError):  # finished between the two looks
                size += path.stat().st_size
    return size
