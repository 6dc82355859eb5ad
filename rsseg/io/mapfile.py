"""Maps on disk: GeoTIFFs written block by block, complete when they appear."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from rsseg.classes import IGNORE, Classes, Colour
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.files import replacing
from rsseg.io.opening import open_dataset, open_raster, rasterio_window
from rsseg.io.raster import Raster

CLASSES_TAG = "RSSEG_CLASSES"
"""GeoTIFF tag in which rsseg's maps carry their classes: ``Classes.to_dict`` as JSON."""

TILE_SIDE = 512
"""Side of the TIFF tiles in pixels, unless the raster is smaller."""


def tile_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the TIFF tiles of a map of ``shape``; less than 512 if small."""
    height, width = (min(TILE_SIDE, 16 * math.ceil(side / 16)) for side in shape)
    return height, width


def strips(shape: tuple[int, int]) -> list[Window]:
    """Return the full-width windows, one row of TIFF tiles each, in which ``write_map`` is fed."""
    step = tile_shape(shape)[0]
    return [Window(row, 0, step, shape[1]).clipped(shape) for row in range(0, shape[0], step)]


def write_map(
    path: str | Path,
    grid: Grid,
    blocks: Iterable[tuple[Window, NDArray[Any]]],
    *,
    classes: Classes | None = None,
    count: int = 1,
    dtype: str = "uint8",
    nodata: float | None = IGNORE,
    descriptions: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a tiled, deflated GeoTIFF from blocks, without ever holding the whole raster.

    The file appears under its name only when every block is written. Pixels that no block covers
    are nodata. The same blocks in the same order give the same bytes; from top to bottom they do
    so whatever else uses GDAL's block cache meanwhile.

    Args:
        path: the file to write.
        grid: shape, transform and CRS, written to the last digit; a grid without CRS and with the
            identity transform gives a file without georeference.
        blocks: windows and their (count, h, w) or, for one band, (h, w) arrays of ``dtype``. A
            window starts on a corner of a TIFF tile and ends on one or at the raster's edge, best
            one of ``strips``, so that no tile is written twice.
        classes: for a map of class *ids*, uint8: adds the colour table and the classes themselves.
        count: number of bands.
        dtype: numpy dtype name.
        nodata: nodata value, or None.
        descriptions: one per band.
        tags: metadata of the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the path cannot be written to, or exists without ``overwrite``.
        RunError: writing failed, for want of disk space for example.
    """
    assert classes is None or (count == 1 and dtype == "uint8" and nodata == IGNORE)
    path = Path(path)
    profile = _profile(grid, count, dtype, nodata, classes is not None)
    with replacing(path, overwrite=overwrite) as temporary:
        try:
            with open_dataset(temporary, "w", **profile) as target:
                _describe(target, classes, descriptions, tags)
                for window, block in blocks:
                    _write_block(target, window, block)
        except RasterioError as error:
            raise RunError(f"{path}: writing failed ({error.__cause__ or error})") from error
        _verify(temporary, path)


def _profile(
    grid: Grid, count: int, dtype: str, nodata: float | None, categorical: bool
) -> dict[str, Any]:
    tile_height, tile_width = tile_shape(grid.shape)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": grid.shape[0],
        "width": grid.shape[1],
        "count": count,
        "dtype": dtype,
        "nodata": nodata,
        "crs": grid.crs,
        "tiled": True,
        "blockysize": tile_height,
        "blockxsize": tile_width,
        "interleave": "pixel",
        "compress": "deflate",
        "predictor": _predictor(dtype, categorical),
        "bigtiff": "if_safer",
    }
    if grid.transform != Affine.identity():
        profile["transform"] = grid.transform
    return profile


def _predictor(dtype: str, categorical: bool) -> int:
    if categorical:  # differences of class ids are noise
        return 1
    return 3 if np.issubdtype(np.dtype(dtype), np.floating) else 2


def _verify(temporary: Path, path: Path) -> None:
    """Raise RunError for a file cut short: on a full disk GDAL may close it without an error."""
    try:
        Raster(temporary)
    except InputError as error:
        raise RunError(f"{path}: what was written is incomplete; is the disk full?") from error


def _describe(
    target: Any,
    classes: Classes | None,
    descriptions: Sequence[str] | None,
    tags: Mapping[str, str] | None,
) -> None:
    if classes is not None:
        target.write_colormap(1, classes.colour_table())
        target.update_tags(**{CLASSES_TAG: json.dumps(classes.to_dict(), ensure_ascii=False)})
    if descriptions is not None:
        target.descriptions = tuple(descriptions)
    if tags:
        target.update_tags(**tags)


def _write_block(target: Any, window: Window, block: NDArray[Any]) -> None:
    tile = tile_shape(target.shape)
    _check_block(target, window, block, tile)
    bands = block if block.ndim == 3 else block[None]
    # Tile by tile: a whole strip is copied row by row through all its tiles, and a full cache
    # would then write tiles that are half done.
    for piece in _pieces(window, tile):
        rows, cols = piece.relative_to(window).slices
        target.write(bands[:, rows, cols], window=rasterio_window(piece))


def _check_block(target: Any, window: Window, block: NDArray[Any], tile: tuple[int, int]) -> None:
    starts, sides = (window.row, window.col), (window.height, window.width)
    assert block.shape in {(target.count, *sides), sides}, (block.shape, window)
    assert block.dtype == target.dtypes[0], (block.dtype, target.dtypes)
    for start, side, step, limit in zip(starts, sides, tile, target.shape, strict=True):
        end = start + side
        assert start % step == 0, f"{window} does not start on a TIFF tile of {tile}"
        assert end == limit or (end < limit and end % step == 0), f"{window} splits a TIFF tile"


def _pieces(window: Window, tile: tuple[int, int]) -> Iterator[Window]:
    height, width = tile
    for row in range(window.row, window.row + window.height, height):
        for col in range(window.col, window.col + window.width, width):
            yield Window(row, col, height, width).intersection(window)


def read_classes(path: Path) -> Classes | None:
    """Return the classes that a map carries; None where it carries none.

    Raises:
        InputError: the raster cannot be opened, or what it carries is damaged.
    """
    with open_raster(path) as dataset:
        text = dataset.tags().get(CLASSES_TAG)
    if text is None:
        return None
    try:
        return Classes.from_dict(json.loads(text), f"{path}, tag {CLASSES_TAG}")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: its tag {CLASSES_TAG} is damaged ({error}); give --classes"
        ) from error


def read_colours(path: Path) -> dict[int, Colour]:
    """Return id → (red, green, blue) of a raster's colour table; empty where it has none.

    Raises:
        InputError: the raster cannot be opened.
    """
    with open_raster(path) as dataset:
        try:
            table = dataset.colormap(1)
        except ValueError:  # rasterio's way to say that there is none
            return {}
    return {class_id: (red, green, blue) for class_id, (red, green, blue, _) in table.items()}
