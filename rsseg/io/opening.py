"""Opening rasters: with rasterio, checked, and with every failure explained in one line."""

from __future__ import annotations

import math
import os
import re
import shlex
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, Interleaving
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.remote import RemotePath, gdal_name

_CACHE = "GDAL_CACHEMAX"
_USUAL_CACHE = "256"
# GDAL's own default is 5 % of the machine's memory, much of it for blocks never read again. It
# looks at this variable once, at its first block; a user's own value stands.
os.environ.setdefault(_CACHE, _USUAL_CACHE)

MOST_CACHE = int(_USUAL_CACHE) * 2**20
"""Bytes of blocks that GDAL keeps, unless the user says how many or less are known to suffice."""

SMALL_CACHE = 2**25
"""Bytes of blocks that suffice where each is read or written once."""

MAX_CHECKED_BLOCKS = 4096
"""How many TIFF blocks, evenly spread, are compared with the size of the file."""

_filters_lock = threading.Lock()


def cache_bytes() -> int:
    """Return how many bytes of blocks GDAL keeps: what the user says, or 256 MB."""
    text = os.environ.get(_CACHE, _USUAL_CACHE)
    size = int(text if text.isdecimal() else _USUAL_CACHE)
    return size if size >= 100_000 else size * 2**20  # so GDAL tells bytes from megabytes


def allowed_cache(needed: int) -> int:
    """Return how many bytes of blocks GDAL keeps within ``block_cache(needed)``."""
    now = int(get_gdal_config(_CACHE))
    return min(needed, MOST_CACHE) if now == MOST_CACHE else now


@contextmanager
def block_cache(needed: int) -> Iterator[None]:
    """Have GDAL keep that many bytes of blocks meanwhile, at the most 256 MB.

    The cache is one for all threads of the process. Whatever else than the usual 256 MB is set, by
    the variable GDAL_CACHEMAX or by a rasterio.Env, is the user's and stands.
    """
    # Not as a rasterio.Env, which within another one leaves its value behind.
    before = int(get_gdal_config(_CACHE))
    set_gdal_config(_CACHE, allowed_cache(needed))
    try:
        yield
    finally:
        set_gdal_config(_CACHE, before)


def open_dataset(path: Path, mode: str = "r", **profile: Any) -> Any:
    """Open a file with rasterio, which is not to warn of rasters without georeference."""
    # The filters are global: two threads must not restore them in each other's stead.
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(gdal_name(path), mode, **profile)


def open_raster(path: Path) -> Any:
    """Open a raster to be read.

    Raises:
        InputError: it cannot be opened; the message says why.
    """
    try:
        return open_dataset(path)
    except RasterioError as error:
        raise InputError(f"{path}: {_why_not_opened(path, error)}") from error


def _why_not_opened(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not a raster; give a file"
    if not path.exists():
        return "no such file"
    if isinstance(path, RemotePath):
        return f"GDAL cannot read it where it is ({error})"
    if not os.access(path, os.R_OK):
        return "no permission to read this file"
    if path.stat().st_size == 0:
        return "is an empty file; copy it again from its source"
    with path.open("rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if is_tiff:
        return f"damaged or truncated TIFF ({error}); copy it again from its source"
    return "not a raster that GDAL can read; give a GeoTIFF, VRT, JPEG 2000 or the like"


@contextmanager
def explained(path: Path, window: Window) -> Iterator[None]:
    """Raise RunError where rasterio fails at reading the window."""
    try:
        yield
    except RasterioError as error:
        raise RunError(
            f"{path}: cannot be read at row {window.row}, column {window.col} "
            f"({error.__cause__ or error}); the file is damaged, copy it again from its source"
        ) from error


def check_content(dataset: Any, path: Path) -> None:
    """Raise InputError where there are no pixels, or none with a place that a transform gives."""
    if dataset.count == 0:
        names = ", ".join(dataset.subdatasets[:4])
        if names:
            raise InputError(f"{path}: a container of several rasters; give one of them: {names}")
        raise InputError(f"{path}: has no bands, so nothing to map")
    if min(dataset.shape) < 1:
        raise InputError(
            f"{path}: has no pixels (height x width {dataset.height} x {dataset.width})"
        )
    if dataset.transform != Affine.identity():
        return
    ground_control_points = dataset.gcps[0]
    files = shlex.join(map(gdal_name, [path, path.with_name(f"{path.stem}_warped.tif")]))
    if ground_control_points:
        method = "-tps" if len(ground_control_points) >= 10 else "-order 1"
        raise InputError(
            f"{path}: has {len(ground_control_points)} ground control points but no transform; "
            f"run: gdalwarp {method} {files}"
        )
    if dataset.rpcs is not None:
        raise InputError(f"{path}: has RPCs but no transform; run: gdalwarp -rpc {files}")


def check_readable(dataset: Any, path: Path, bands: Sequence[int]) -> None:
    """Raise InputError for missing parts that show without reading everything."""
    if dataset.driver == "GTiff" and path.is_file():
        _check_tiff_blocks(dataset, path)
    for source in vrt_sources(dataset, path):
        if not source.exists():
            raise InputError(f"{path}: its source {source} does not exist; build the VRT again")
    height, width = dataset.shape
    for row, col in ((0, 0), (height - 1, width - 1)):
        try:
            dataset.read(bands[-1], window=RasterioWindow(col, row, 1, 1))
        except RasterioError as error:
            raise InputError(
                f"{path}: cannot be read at row {row}, column {col} "
                f"({error.__cause__ or error}); damaged or truncated, copy it again from its source"
            ) from error


def _check_tiff_blocks(dataset: Any, path: Path) -> None:
    """Raise InputError where a block of an open GeoTIFF lies beyond the end of the file."""
    size = path.stat().st_size
    block_height, block_width = dataset.block_shapes[0]
    rows, cols = math.ceil(dataset.height / block_height), math.ceil(dataset.width / block_width)
    planes = dataset.count if dataset.interleaving == Interleaving.band else 1
    count = planes * rows * cols
    for number in {*range(0, count, math.ceil(count / MAX_CHECKED_BLOCKS)), count - 1}:
        plane, place = divmod(number, rows * cols)
        row, col = divmod(place, cols)
        numbers = (
            dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", bidx=plane + 1)
            for what in ("OFFSET", "SIZE")
        )
        end = sum(int(value or 0) for value in numbers)
        if end > size:
            raise InputError(
                f"{path}: truncated, data go on to byte {end} of a file of {size}; "
                "copy it again from its source"
            )


def vrt_sources(dataset: Any, path: Path) -> list[Path]:
    """Return the files that an open VRT shows; none of other rasters.

    Names with a colon, which may be GDAL's own (a subdataset, a URL), are left out.
    """
    if dataset.driver != "VRT" or not path.is_file():
        return []
    return [
        path.parent / name if relative == "1" else Path(name)
        for description in dataset.tags(ns="xml:VRT").values()
        for relative, name in re.findall(
            r'<SourceFilename(?: relativeToVRT="(\d)")?[^>]*>([^<]+)<', description
        )
        if ":" not in name and not name.startswith("/vsi")
    ]


def grid_of(dataset: Any) -> Grid:
    """Return where a dataset's pixels lie."""
    crs = dataset.crs.to_wkt() if dataset.crs else None
    return Grid(dataset.shape, dataset.transform, crs)


def alpha_bands(dataset: Any) -> list[int]:
    """Return the GDAL numbers of the alpha bands."""
    interpretations = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return [band for band, meaning in interpretations if meaning == ColorInterp.alpha]


def rasterio_window(window: Window) -> Any:
    """Return the window as rasterio wants it."""
    return RasterioWindow(window.col, window.row, window.width, window.height)
