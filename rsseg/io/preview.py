"""Previews: rasters of any size as small pictures with north up, from their overviews.

A preview has its own Grid, ``preview_grid``; pictures and maps are read on it, wherever they lie
and in whatever CRS. Reading goes by blocks, so memory does not grow with the raster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from rsseg.bands import Bands
from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.classmap import ClassRaster, bounds_in
from rsseg.io.mapfile import SHOWN_PIXELS
from rsseg.io.raster import Raster
from rsseg.ops.statistics import new_tally
from rsseg.progress import SILENT, Progress

MAX_READ = 2**24
"""How many pixels of a band are read at a time, at the most, counted in the overview used."""

_NEARLY_SQUARE = 0.02
"""Pixels whose sides on the ground differ by less stay as they are (all of Web Mercator do)."""


class Picture(NamedTuple):
    """A raster for the eye.

    Args:
        rgb: (H, W, 3) uint8; 0 where not valid.
        valid: (H, W) bool, which pixels were measured.
    """

    rgb: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def preview_grid(grid: Grid, side: int) -> Grid:
    """Return the grid of a preview: coarser, north up, its pixels square on the ground.

    It covers the same ground in the same CRS; a rotated raster is covered by the box around it.
    Without a CRS nobody knows where north is, and the preview lies as the raster is stored.

    Args:
        grid: the raster's grid.
        side: pixels of the longer side, at the most; it is never finer than the raster.
    """
    if grid.crs is None:
        height, width = _shrunk(grid.shape, side)
        scale = Affine.scale(grid.shape[1] / width, grid.shape[0] / height)
        return Grid((height, width), grid.transform @ scale, None)
    left, bottom, right, top = grid.bounds
    height, width = _shrunk(_north_up_shape(grid), side)
    pixel = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
    return Grid((height, width), pixel, grid.crs)


def _north_up_shape(grid: Grid) -> tuple[float, float]:
    """Return height and width of the box around a grid in pixels of its size, square on ground."""
    left, bottom, right, top = grid.bounds
    pixel = math.sqrt(abs(grid.transform.determinant))
    # A box of one such pixel in the middle: how long are its sides on the ground?
    middle = Affine(pixel, 0, (left + right - pixel) / 2, 0, -pixel, (bottom + top + pixel) / 2)
    along_x, along_y = Grid((1, 1), middle, grid.crs).ground_steps or (1.0, 1.0)
    height, width = (top - bottom) / pixel, (right - left) / pixel
    ratio = along_x / along_y
    if not math.isfinite(ratio) or ratio <= 0 or abs(ratio - 1) < _NEARLY_SQUARE:
        return height, width
    return height / math.sqrt(ratio), width * math.sqrt(ratio)


def _shrunk(shape: tuple[float, float], side: int) -> tuple[int, int]:
    factor = max(1.0, max(shape) / side)
    height, width = (max(1, round(length / factor)) for length in shape)
    return height, width


def picture(
    path: Path,
    grid: Grid,
    *,
    rgb: tuple[int, int, int] | None = None,
    own: Grid | None = None,
    progress: Progress = SILENT,
) -> Picture:
    """Read a raster as a picture on the grid of a preview.

    Red, green and blue are each stretched from the 2nd to the 98th percentile of what the preview
    shows.

    Args:
        path: the raster.
        grid: the preview's grid, in any CRS.
        rgb: band numbers (from 1) of red, green and blue; by default those of the colour
            interpretation, else the first three bands.
        own: where the raster lies, if the file does not say it.
        progress: shows the pixels read.

    Raises:
        InputError: it cannot be read, or there is no valid pixel on the grid.
        RunError: the file turns out to be damaged.
    """
    raster = Raster(path)
    shown = rgb or tuple(raster.bands[position] for position in raster.rgb)
    raster = Raster(path, tuple(sorted(set(shown))))
    image, valid = _on_grid(raster, grid, own or raster.grid, False, progress)
    if not valid.any():
        raise InputError(f"{path}: no valid pixel; everything is nodata, masked or elsewhere")
    red, green, blue = (raster.bands.index(band) for band in shown)
    found = _bands(raster, image[:, valid], (red, green, blue)).to_rgb(image, valid)
    found[~valid] = 0
    return Picture(found, valid)


def _bands(raster: Raster, pixels: NDArray[Any], rgb: tuple[int, int, int]) -> Bands:
    """Return the bands of a raster with the 8-bit view measured over (C, N) pixels alone."""
    tally = new_tally(len(raster.bands), raster.dtype, rgb)
    for _ in range(tally.passes):
        tally.add(pixels)
        tally.next_pass()
    (r0, r1), (g0, g1), (b0, b1) = map(tally.percentiles, rgb)
    zeros, ones = (0.0,) * len(raster.bands), (1.0,) * len(raster.bands)
    view = (r0, g0, b0), (r1, g1, b1)
    return Bands(raster.bands, raster.dtype, zeros, ones, rgb, *view)


def class_picture(
    path: Path,
    grid: Grid,
    classes: Classes,
    *,
    own: Grid | None = None,
    progress: Progress = SILENT,
) -> NDArray[np.uint8]:
    """Read a raster of class ids as class indices on the grid of a preview.

    Every pixel of the preview is one of the raster's, unless its overviews are something else; so
    shares of classes are those of a regular sample.

    Args:
        path: a raster of class ids, one band.
        grid: the preview's grid, in any CRS.
        classes: what the ids mean.
        own: where the raster lies, if the file does not say it.
        progress: shows the pixels read.

    Returns:
        (H, W) uint8; 255 where there is no class.

    Raises:
        InputError: it cannot be read, or is no raster of class ids.
        RunError: the file turns out to be damaged.
    """
    ids, valid = id_picture(path, grid, own=own, progress=progress)
    return np.where(valid, classes.from_ids(ids), np.uint8(IGNORE))


def id_picture(
    path: Path, grid: Grid, *, own: Grid | None = None, progress: Progress = SILENT
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a raster of class ids as it is; as ``class_picture``, for ids yet without a meaning.

    Returns:
        ids (H, W), of the raster's dtype, and which of them count (H, W) bool.
    """
    raster = ClassRaster(path).source
    image, valid = _on_grid(raster, grid, own or raster.grid, True, progress)
    return image[0], valid


class Sampler:
    """Gathers a map and its truth at the pixels of a preview while both are read in blocks.

    Args:
        own: the grid of the blocks.
        side: pixels of the preview's longer side, at the most.

    Attributes:
        grid: the preview's.
        layers: (2, H, W) uint8 class indices of map and truth; 255 until a block brings others.
    """

    def __init__(self, own: Grid, side: int) -> None:
        self.grid = preview_grid(own, side)
        self.layers = np.full((2, *self.grid.shape), IGNORE, np.uint8)
        rows, cols = positions(self.grid, own)
        self._order = np.argsort(rows, axis=None, kind="stable")
        self._rows, self._cols = rows.ravel()[self._order], cols.ravel()[self._order]

    def add(self, window: Window, *layers: NDArray[np.uint8]) -> None:
        """Take the pixels of a window from what was read there, one (h, w) array per layer."""
        first, last = np.searchsorted(self._rows, [window.row, window.row + window.height])
        rows, cols = self._rows[first:last] - window.row, self._cols[first:last] - window.col
        within = (cols >= 0) & (cols < window.width)
        pixels = self._order[first:last][within]
        for kept, layer in zip(self.layers, layers, strict=True):
            kept.reshape(-1)[pixels] = layer[rows[within], cols[within]]


# --- Reading ------------------------------------------------------------------------------------


def _on_grid(
    raster: Raster, grid: Grid, own: Grid, nearest: bool, progress: Progress
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (C, H, W) pixels of a raster that lies on ``own``, seen on ``grid``, and validity."""
    with raster:
        if is_reduction(grid, own):
            return _read(raster, own.window, grid.shape, nearest, progress)
        window, shape = _part_under(raster, grid, own)
        if not window.area:
            empty = np.zeros((len(raster.bands), *grid.shape), raster.dtype)
            return empty, np.zeros(grid.shape, np.bool_)
        image, valid = _read(raster, window, shape, nearest, progress)
    reduced = _reduced(own[window], shape)
    rows, cols = positions(grid, reduced)
    inside = rows >= 0
    return image[:, rows, cols] * inside, valid[rows, cols] & inside


def _reduced(grid: Grid, shape: tuple[int, int]) -> Grid:
    """Return the grid of the same extent and orientation with other pixels."""
    scale = Affine.scale(grid.shape[1] / shape[1], grid.shape[0] / shape[0])
    return Grid(shape, grid.transform @ scale, grid.crs)


def is_reduction(grid: Grid, own: Grid) -> bool:
    """Return whether ``grid`` is ``own`` with fewer pixels: same extent, same orientation."""
    fewer = grid.shape[0] <= own.shape[0] and grid.shape[1] <= own.shape[1]
    return fewer and _reduced(own, grid.shape).coincides(grid)


def _part_under(raster: Raster, grid: Grid, own: Grid) -> tuple[Window, tuple[int, int]]:
    """Return the window of ``own`` under a grid, and the shape to read it at.

    Read at half the grid's pixels, where there are as many, the nearest of them is near enough.
    """
    box = _box_of_pixels(grid, own, raster.path)
    top, left, bottom, right = box
    span = math.sqrt((bottom - top) * (right - left) / grid.window.area)
    step = max(1.0, span / 2)
    window = Window(top, left, bottom - top, right - left).clipped(own.shape)
    return window, (math.ceil(window.height / step), math.ceil(window.width / step))


def _box_of_pixels(grid: Grid, own: Grid, path: Path) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right, in pixels of ``own``, of the box around a grid."""
    left, bottom, right, top = bounds = bounds_in(grid, own.crs, path)
    if not all(map(math.isfinite, bounds)):  # the grid reaches beyond what the CRS is made for
        return 0, 0, *own.shape
    corners = [~own.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    cols, rows = zip(*corners, strict=True)
    first, last = (math.floor(min(rows)), math.floor(min(cols))), (max(rows), max(cols))
    return *first, math.ceil(last[0]), math.ceil(last[1])


def positions(grid: Grid, own: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which pixel of ``own`` lies under the centre of every pixel of ``grid``.

    Returns:
        rows and columns, each (H, W) int64; both -1 where ``own`` does not reach.
    """
    height, width = grid.shape
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = grid.transform @ (cols, rows)
    if grid.crs is not None and own.crs is not None and grid.crs != own.crs:
        x, y = Transformer.from_crs(grid.crs, own.crs, always_xy=True).transform(x, y)
    cols, rows = ~own.transform @ (x, y)
    with np.errstate(invalid="ignore"):
        inside = (rows >= 0) & (rows < own.shape[0]) & (cols >= 0) & (cols < own.shape[1])
    found = (np.where(inside, np.floor(part), -1).astype(np.int64) for part in (rows, cols))
    return next(found), next(found)


def _read(
    raster: Raster,
    window: Window,
    shape: tuple[int, int],
    nearest: bool,
    progress: Progress,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a window at a shape, block by block."""
    image = np.zeros((len(raster.bands), *shape), raster.dtype)
    valid = np.zeros(shape, np.bool_)
    shown = progress if window.area >= SHOWN_PIXELS else SILENT
    with shown.step(f"read {raster.path.name}", window.area, "px") as step:
        for source, target in _blocks(raster, window, shape):
            block = raster.read_reduced(source, (target.height, target.width), nearest=nearest)
            image[(slice(None), *target.slices)], valid[target.slices] = block
            step.advance(source.area)
    return image, valid


def _blocks(
    raster: Raster, window: Window, shape: tuple[int, int]
) -> Iterator[tuple[Window, Window]]:
    """Yield windows of a raster and what they become, at most ``MAX_READ`` pixels to be read."""
    height, width = shape
    factors = window.height / height, window.width / width
    overview = raster.reduction(min(factors))
    cost = max(1.0, factors[0] * factors[1] / overview**2)
    across = int(min(width, max(1, MAX_READ // cost)))
    down = int(min(height, max(1, MAX_READ // (cost * across))))
    for row in range(0, height, down):
        for col in range(0, width, across):
            target = Window(row, col, down, across).clipped(shape)
            yield _stretched(target, factors, window), target


def _stretched(target: Window, factors: tuple[float, float], window: Window) -> Window:
    """Return the pixels of ``window`` that a window of the reduced raster stands for."""
    top, bottom = (round(row * factors[0]) for row in (target.row, target.row + target.height))
    left, right = (round(col * factors[1]) for col in (target.col, target.col + target.width))
    return Window(window.row + top, window.col + left, bottom - top, right - left)
