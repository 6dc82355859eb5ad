"""Maps on disk: Cloud-Optimized GeoTIFFs written block by block, complete when they appear."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from rsseg.classes import IGNORE, Classes, Colour
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.cog import Resampling, copy_as_cog
from rsseg.io.files import check_output, replacing
from rsseg.io.opening import open_dataset, open_raster, rasterio_window
from rsseg.io.raster import Raster
from rsseg.io.remote import as_path
from rsseg.io.sidecars import check_sidecars, write_sidecars
from rsseg.progress import SILENT, Progress, Step

CLASSES_TAG = "RSSEG_CLASSES"
"""GeoTIFF tag in which rsseg's maps carry their classes: ``Classes.to_dict`` as JSON."""

TILE_SIDE = 512
"""Side of the TIFF tiles in pixels, unless the raster is smaller."""

SHOWN_PIXELS = 16_000_000
"""Rasters from this size on take seconds to write, so that progress is worth a line."""

SHARE_SCALE = 254
"""Confidences and probabilities are stored as 0 … 254 for 0 … 1; 255 is nodata."""

SCRATCH_LEVEL = 1
"""Deflate level of the scratch file, which is read once: fast rather than small."""

Kind = Literal["image", "share", "number"]
"""What values mean: of a picture, shares of a whole, or mere numbers (masks, ids, flags)."""

_OVERVIEWS: dict[Kind, Resampling] = {"image": "average", "share": "average", "number": "nearest"}


def tile_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the TIFF tiles of a map of ``shape``; less than 512 if small."""
    height, width = (min(TILE_SIDE, 16 * math.ceil(side / 16)) for side in shape)
    return height, width


def strips(shape: tuple[int, int]) -> list[Window]:
    """Return the full-width windows, one row of TIFF tiles each, in which ``write_map`` is fed."""
    step = tile_shape(shape)[0]
    return [Window(row, 0, step, shape[1]).clipped(shape) for row in range(0, shape[0], step)]


def check_map(
    path: Path,
    classes: Classes | None,
    overwrite: bool,
    *,
    inputs: Iterable[Path] = (),
    sources: Iterable[Path] = (),
) -> None:
    """Make sure that ``write_map`` can write here, and that none of the user's files is lost by it.

    Args:
        path: the file to be written.
        classes: of the map, if it is one of classes.
        overwrite: whether existing files may be replaced.
        inputs: files that the same run reads.
        sources: those of them that are rasters and must not be drawn in the map's style.

    Raises:
        InputError: see ``check_output`` and ``check_sidecars``.
    """
    check_output(path, overwrite, inputs)
    check_sidecars(path, classes, overwrite, sources)


def write_map(
    path: str | Path,
    grid: Grid,
    blocks: Iterable[tuple[Window, NDArray[Any]]],
    *,
    classes: Classes | None = None,
    kind: Kind = "image",
    count: int = 1,
    dtype: str = "uint8",
    nodata: float | None = IGNORE,
    descriptions: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write a Cloud-Optimized GeoTIFF from blocks, without ever holding the whole raster.

    The blocks go into a plain GeoTIFF beside the output, which is then put in order. The file
    appears under its name only when every block is written; a map of classes has its side files
    before that, for QGIS (``.qml``) and GDAL (``.aux.xml``). Pixels that no block covers are
    nodata. The same blocks in the same order give the same bytes; from top to bottom they do so
    whatever else uses GDAL's block cache meanwhile.

    Args:
        path: the file to write.
        grid: shape, transform and CRS, written to the last digit; a grid without CRS and with the
            identity transform gives a file without georeference.
        blocks: windows and their (count, h, w) or, for one band, (h, w) arrays of ``dtype``. A
            window starts on a corner of a TIFF tile and ends on one or at the raster's edge, best
            one of ``strips``, so that no tile is written twice.
        classes: for a map of class *ids*, uint8: adds the colour table, the classes themselves and
            the side files. In overviews the most frequent class wins.
        kind: what other values mean. Overviews average them, except for numbers, of which the
            nearest is taken.
        count: number of bands.
        dtype: numpy dtype name.
        nodata: nodata value, or None.
        descriptions: one per band.
        tags: metadata of the file.
        overwrite: whether an existing file may be replaced.
        progress: is shown the pixels of large rasters.

    Raises:
        InputError: the path or a side file cannot be written to, or exists without ``overwrite``.
        RunError: writing failed, for want of disk space for example.
    """
    assert classes is None or (count == 1 and dtype == "uint8" and nodata == IGNORE)
    path = as_path(path)
    profile = _profile(grid, kind, count, dtype, nodata)
    shown = progress if grid.window.area >= SHOWN_PIXELS else SILENT
    check_sidecars(path, classes, overwrite)
    with replacing(path, overwrite=overwrite) as temporary:
        # Its name begins like that of the temporary file, so it is removed with it.
        plain = temporary.with_name(f"{temporary.name}.plain")
        try:
            with shown.step(f"save {path.name}", grid.window.area, "px") as step:
                with open_dataset(plain, "w", **profile) as target:
                    _describe(target, classes, descriptions, tags)
                    _write_blocks(target, blocks, step)
                _verify(plain, path)
                copy_as_cog(
                    plain,
                    temporary,
                    resampling=_OVERVIEWS[kind] if classes is None else "mode",
                    predictor=classes is None,  # differences of class ids are noise
                    block_side=max(tile_shape(grid.shape)),
                    tell=_telling(step, grid.window.area / 2),
                )
        except RasterioError as error:
            raise RunError(f"{path}: writing failed ({error.__cause__ or error})") from error
        plain.unlink()
        _verify(temporary, path)
        write_sidecars(path, classes, former=_former_classes(path), temporary=temporary)


def _profile(
    grid: Grid, kind: Kind, count: int, dtype: str, nodata: float | None
) -> dict[str, Any]:
    tile_height, tile_width = tile_shape(grid.shape)
    coloured = kind == "image" and count >= 3 and dtype == "uint8"
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
        # Said, or GDAL would take the last of four bands for alpha.
        "photometric": "rgb" if coloured else "minisblack",
        "compress": "deflate",
        "zlevel": SCRATCH_LEVEL,
        "bigtiff": "if_safer",
    }
    if grid.transform != Affine.identity():
        profile["transform"] = grid.transform
    return profile


def _write_blocks(target: Any, blocks: Iterable[tuple[Window, NDArray[Any]]], step: Step) -> None:
    for window, block in blocks:
        _write_block(target, window, block)
        step.advance(window.area / 2)  # the other half is the copy


def _telling(step: Step, total: float) -> Callable[[float], None]:
    """Return what advances a step up to a share of ``total``; it never goes back."""
    done = 0.0

    def tell(share: float) -> None:
        nonlocal done
        step.advance(max(0.0, share * total - done))
        done = max(done, share * total)

    return tell


def _former_classes(path: Path) -> Classes | None:
    """Return the classes of the map that is about to be replaced."""
    if path.is_file():
        with suppress(InputError):
            return read_classes(path)
    return None


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
