"""Raster: a raster on disk, checked when opened, read by windows with its valid pixels."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling

from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.opening import (
    alpha_bands,
    check_content,
    check_readable,
    explained,
    grid_of,
    open_raster,
    rasterio_window,
)
from rsseg.io.remote import as_path
from rsseg.io.validity import Validity
from rsseg.io.views import averaged_view, nearest_view, resampled

SUFFIXES = (
    *(".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".jpg", ".jpeg", ".png", ".img", ".bmp", ".gif"),
    *(".webp", ".ecw", ".sid", ".asc", ".bil"),
)
"""Suffixes of the files that ``list_rasters`` takes for rasters."""

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixel types that can be read."""

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

_handles_lock = threading.Lock()


class Raster:
    """A raster on disk: opened once to be checked, then by every thread that reads it.

    Reading is thread-safe; each thread keeps the file open until ``close``, and reading after it
    opens the file again. A pickled Raster is its constructor arguments; unpickling opens and checks
    the file.

    Args:
        path: anything GDAL opens: a file, or a GDAL dataset name.
        bands: GDAL band numbers (from 1) to read, in this order; None for all but alpha bands.
        ground_sample_distance: metres on the ground to which the raster is resampled while it is
            read, fine texture averaged; None leaves its pixels alone.
        grid: the grid, in any CRS, on which the raster is seen, to the nearest pixel; what it does
            not cover is not valid. None for its own; only without a ground sample distance.

    Attributes:
        path: as given.
        grid: shape, transform and CRS (None where the raster has none) of what is read; of the
            resampled raster where a ground sample distance was given: same CRS, corner and
            orientation, rounded up to cover the extent.
        bands: GDAL band numbers in use.
        dtype: numpy dtype name of the pixels.
        rgb: positions in ``bands`` (from 0) of red, green and blue: by colour interpretation, else
            the first three bands, with the first one repeated where there are fewer.
        block_shape: (height, width) of the blocks on disk.
        has_mask: whether a pixel inside the raster could be invalid.
        is_resampled: whether what is read are not the file's own pixels.

    Raises:
        InputError: the file is missing, damaged, of a kind that cannot be used, has no such band,
            or cannot be resampled.
    """

    def __init__(
        self,
        path: str | Path,
        bands: tuple[int, ...] | None = None,
        ground_sample_distance: float | None = None,
        grid: Grid | None = None,
    ) -> None:
        assert ground_sample_distance is None or grid is None
        self._arguments = (path, bands, ground_sample_distance, grid)
        self.path = as_path(path)
        with open_raster(self.path) as dataset:
            check_content(dataset, self.path)
            self.bands = _choose_bands(dataset, self.path, bands)
            self.dtype = _choose_dtype(dataset, self.path, self.bands)
            self.rgb = _choose_rgb(dataset, self.bands)
            self.block_shape: tuple[int, int] = dataset.block_shapes[self.bands[0] - 1]
            self.has_mask = Validity.of(dataset, self.bands, self.dtype).is_needed
            own = grid_of(dataset)
            check_readable(dataset, self.path, self.bands)
        self.grid = grid or own
        view = nearest_view
        if ground_sample_distance is not None:
            self.grid, view = resampled(own, self.path, ground_sample_distance), averaged_view
        self._view = None if self.grid == own else partial(view, grid=self.grid)
        self.is_resampled = self._view is not None
        self.has_mask |= self.is_resampled
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[Raster], tuple[Any, ...]]:
        return Raster, self._arguments

    def __repr__(self) -> str:
        return f"Raster{self._arguments}"

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the handles of all threads; no thread may be reading."""
        with _handles_lock:
            handles = list(self._handles)
            self._local = threading.local()
        for handle in handles:
            handle.close()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the pixels of a window, mirrored at the raster's edges where it reaches beyond.

        Args:
            window: pixels of ``grid``; it may lie partly or wholly outside.

        Returns:
            image: (C, h, w) of ``dtype``; NaN and infinite values are 0.
            valid: (h, w) bool; False outside the raster, where the mask or alpha band is 0 or a
                used band is not finite, and where the bands are nodata (see ``valid``).

        Raises:
            RunError: the file turns out to be damaged there.
        """
        within, rows, cols, inside = mirror(window, self.grid.shape)
        area = rasterio_window(within)
        with explained(self.path, within):
            handle = self._handle
            image = handle.dataset.read(self.bands, window=area)
            valid = handle.validity.read(handle.dataset, area, image)
        if self.dtype.startswith("float"):
            image[~np.isfinite(image)] = 0
        if within == window:
            return image, valid
        return image[:, rows[:, None], cols], valid[rows[:, None], cols] & inside

    def read_reduced(
        self, window: Window, shape: tuple[int, int], *, nearest: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the pixels of a window at fewer pixels, from overviews where the file has some.

        Args:
            window: pixels of ``grid``, inside the raster.
            shape: (h, w) of what is wanted.
            nearest: sample pixels, as ids must be; otherwise they are averaged.

        Returns:
            image: (C, h, w) of ``dtype``; NaN and infinite values are 0.
            valid: (h, w) bool, of the nearest pixel.

        Raises:
            RunError: the file turns out to be damaged there.
        """
        area = rasterio_window(window)
        method = Resampling.nearest if nearest else Resampling.average
        with explained(self.path, window):
            handle = self._handle
            image = handle.dataset.read(
                self.bands, window=area, out_shape=(len(self.bands), *shape), resampling=method
            )
            valid = handle.validity.read(handle.dataset, area, shape=shape)
        finite = np.isfinite(image)
        image[~finite] = 0
        return image, valid & finite.all(axis=0)

    def reduction(self, factor: float) -> int:
        """Return the factor of the overview that serves a reduction by ``factor``; 1 for none."""
        with explained(self.path, self.grid.window):
            factors = self._handle.dataset.overviews(self.bands[0])
        return max((one for one in factors if one <= factor), default=1)

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of a window were measured; the same as ``read(window)[1]``.

        With several nodata bands of an unsigned type, where nodata (0, 255) is also a value that
        occurs, a pixel is nodata only if all used bands are. In other types one band suffices.

        Args:
            window: pixels of ``grid``; it may lie partly or wholly outside.

        Returns:
            (h, w) bool.

        Raises:
            RunError: the file turns out to be damaged there.
        """
        within, rows, cols, inside = mirror(window, self.grid.shape)
        with explained(self.path, within):
            handle = self._handle
            valid = handle.validity.read(handle.dataset, rasterio_window(within))
        return valid[rows[:, None], cols] & inside

    @property
    def _handle(self) -> _Handle:
        handle: _Handle | None = getattr(self._local, "handle", None)
        # A forked process shares the file position with its parent, so it opens its own.
        if handle is None or handle.process != os.getpid():
            handle = _Handle(self, self._view)
            self._local.handle = handle
            with _handles_lock:
                self._handles.add(handle)
        return handle


class _Handle:
    """One thread's open files: the source, and the dataset to read (it or a view of it)."""

    def __init__(self, raster: Raster, view: Callable[[Any], Any] | None) -> None:
        self.process = os.getpid()
        self._source = open_raster(raster.path)
        self.dataset = self._source if view is None else view(self._source)
        self.validity = Validity.of(self.dataset, raster.bands, raster.dtype)

    def close(self) -> None:
        self.dataset.close()
        self._source.close()


def _choose_bands(dataset: Any, path: Path, bands: Sequence[int] | None) -> tuple[int, ...]:
    alpha = alpha_bands(dataset)
    chosen = tuple(band for band in dataset.indexes if band not in alpha)
    if bands is not None:
        chosen = tuple(bands)
    wrong = next((band for band in chosen if band not in dataset.indexes), None)
    if wrong is not None:
        raise InputError(
            f"{path}: asks for band {wrong}, the raster has {dataset.count}; bands count from 1"
        )
    if not chosen:
        raise InputError(f"{path}: no band is left to use, out of {dataset.count} (alpha is none)")
    return chosen


def _choose_dtype(dataset: Any, path: Path, bands: Sequence[int]) -> str:
    dtypes = sorted({dataset.dtypes[band - 1] for band in bands})
    if len(dtypes) > 1:
        raise InputError(
            f"{path}: has bands of several pixel types ({', '.join(dtypes)}); choose some of one "
            "type with --bands, or convert it with gdal_translate -ot"
        )
    if dtypes[0] not in DTYPES:
        raise InputError(
            f"{path}: pixels of type {dtypes[0]} cannot be used; convert them, "
            "for example with gdal_translate -ot Float32"
        )
    return str(dtypes[0])


def _choose_rgb(dataset: Any, bands: Sequence[int]) -> tuple[int, int, int]:
    colours = [dataset.colorinterp[band - 1] for band in bands]
    if all(colour in colours for colour in _RGB):
        red, green, blue = (colours.index(colour) for colour in _RGB)
        return red, green, blue
    return (0, 1, 2) if len(bands) >= 3 else (0, 0, 0) if len(bands) == 1 else (0, 0, 1)


def list_rasters(path: str | Path) -> list[Path]:
    """Return the rasters that a path stands for: a file itself, or those in a folder, sorted.

    Raises:
        InputError: the path does not exist, or the folder has no file with a raster's suffix.
    """
    path = as_path(path)
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise InputError(f"{path}: no raster in this folder; looked for {', '.join(SUFFIXES)}")
    return found


def mirror(
    window: Window, shape: tuple[int, ...]
) -> tuple[Window, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return how to read a window that may reach beyond a raster, with its edges repeated.

    ``pixels(within)[..., rows[:, None], cols]`` is the window: numpy's "symmetric" padding, as
    often as it takes.

    Args:
        window: what is wanted.
        shape: (height, width) of the raster.

    Returns:
        within: the part of the raster whose pixels are needed.
        rows, cols: for each row (h) and column (w) of the window, the one to take from that part.
        inside: (h, w) bool, False beyond the raster.
    """
    rows, rows_inside = _reflect(window.row, window.height, shape[0])
    cols, cols_inside = _reflect(window.col, window.width, shape[1])
    top, left = int(rows.min()), int(cols.min())
    within = Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)
    return within, rows - top, cols - left, rows_inside[:, None] & cols_inside


def _reflect(start: int, length: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return indices in 0 … limit-1, mirrored with the edge repeated, and which needed none."""
    wanted = np.arange(start, start + length)
    folded = wanted % (2 * limit)
    return np.minimum(folded, 2 * limit - 1 - folded), (wanted >= 0) & (wanted < limit)
