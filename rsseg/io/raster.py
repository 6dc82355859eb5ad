"""Rasters on disk: checked when opened, read by windows with their valid pixels, measured."""

from __future__ import annotations

import math
import os
import re
import shlex
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Interleaving, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from rsseg.bands import Bands
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.progress import SILENT, Progress, Step

# GDAL's own default is 5 % of the machine's memory, much of it for blocks never read again. It
# looks at this variable once, at its first block; a user's own value stands.
os.environ.setdefault("GDAL_CACHEMAX", "256")

SUFFIXES = (
    *(".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".jpg", ".jpeg", ".png", ".img", ".bmp", ".gif"),
    *(".webp", ".ecw", ".sid", ".asc", ".bil"),
)
"""Suffixes of the files that ``list_rasters`` takes for rasters."""

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Pixel types that can be read."""

MAX_CHECKED_BLOCKS = 4096
"""How many TIFF blocks, evenly spread, are compared with the size of the file."""

_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

_open_lock = threading.Lock()


class Raster:
    """A raster on disk: opened once to be checked, then by every thread that reads it.

    Reading is thread-safe; each thread keeps the file open until ``close``, and reading after it
    opens the file again. A pickled Raster is its constructor arguments; unpickling opens and checks
    the file.

    Args:
        path: anything GDAL opens: a file, or a GDAL dataset name.
        bands: GDAL band numbers (from 1) to read, in this order; None for all but alpha bands.
        ground_sample_distance: metres on the ground to which the raster is resampled while it is
            read; None leaves its pixels alone.

    Attributes:
        path: as given.
        grid: shape, transform and CRS (None where the raster has none); of the resampled raster
            where a ground sample distance was given: same CRS, corner and orientation, rounded up
            to cover the extent.
        bands: GDAL band numbers in use.
        dtype: numpy dtype name of the pixels.
        rgb: positions in ``bands`` (from 0) of red, green and blue: by colour interpretation, else
            the first three bands, with the first one repeated where there are fewer.
        block_shape: (height, width) of the blocks on disk.
        has_mask: whether a pixel inside the raster could be invalid.

    Raises:
        InputError: the file is missing, damaged, of a kind that cannot be used, has no such band,
            or cannot be resampled.
    """

    def __init__(
        self,
        path: str | Path,
        bands: tuple[int, ...] | None = None,
        ground_sample_distance: float | None = None,
    ) -> None:
        self._arguments = (path, bands, ground_sample_distance)
        self.path = Path(path)
        with _open(self.path) as dataset:
            _check_content(dataset, self.path)
            self.bands = _choose_bands(dataset, self.path, bands)
            self.dtype = _choose_dtype(dataset, self.path, self.bands)
            self.rgb = _choose_rgb(dataset, self.bands)
            self.block_shape: tuple[int, int] = dataset.block_shapes[self.bands[0] - 1]
            self.has_mask = _Validity.of(dataset, self.bands, self.dtype).is_needed
            source = _grid(dataset)
            _check_readable(dataset, self.path, self.bands)
        factor = _resampling_factor(source, self.path, ground_sample_distance)
        self._is_resampled = factor != 1
        self.grid = _resampled(source, factor) if self._is_resampled else source
        self.has_mask |= self._is_resampled
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
        with _open_lock:
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
        within, rows, cols, inside = _mirror(window, self.grid.shape)
        area = _rasterio_window(within)
        with _explained(self.path, within):
            handle = self._handle
            image = handle.dataset.read(self.bands, window=area)
            valid = handle.validity.read(handle.dataset, area, image)
        if self.dtype.startswith("float"):
            image[~np.isfinite(image)] = 0
        if within == window:
            return image, valid
        return image[:, rows[:, None], cols], valid[rows[:, None], cols] & inside

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
        within, rows, cols, inside = _mirror(window, self.grid.shape)
        with _explained(self.path, within):
            handle = self._handle
            valid = handle.validity.read(handle.dataset, _rasterio_window(within))
        return valid[rows[:, None], cols] & inside

    @property
    def _handle(self) -> _Handle:
        handle: _Handle | None = getattr(self._local, "handle", None)
        # A forked process shares the file position with its parent, so it opens its own.
        if handle is None or handle.process != os.getpid():
            handle = _Handle(self, self._is_resampled)
            self._local.handle = handle
            with _open_lock:
                self._handles.add(handle)
        return handle


class _Handle:
    """One thread's open files: the source, the dataset to read (it or a resampled view)."""

    def __init__(self, raster: Raster, resampled: bool) -> None:
        self.process = os.getpid()
        self._source = _open(raster.path)
        self.dataset = self._source
        if resampled:
            self.dataset = _resampling_view(self._source, raster.grid)
        self.validity = _Validity.of(self.dataset, raster.bands, raster.dtype)

    def close(self) -> None:
        self.dataset.close()
        self._source.close()


@dataclass(frozen=True)
class _Validity:
    """What tells the pixels of some bands of a dataset that were measured from the others.

    Args:
        bands: GDAL numbers of the bands in use.
        alpha: GDAL numbers of the alpha bands.
        masks: GDAL numbers of bands whose mask bands count.
        nodata: one value, or None, per band in use.
        dtype: numpy dtype name of the pixels.
    """

    bands: tuple[int, ...]
    alpha: tuple[int, ...]
    masks: tuple[int, ...]
    nodata: tuple[float | None, ...]
    dtype: str

    @classmethod
    def of(cls, dataset: Any, bands: Sequence[int], dtype: str) -> _Validity:
        flags = {band: dataset.mask_flag_enums[band - 1] for band in bands}
        shared = [b for b, f in flags.items() if MaskFlags.per_dataset in f]
        if any(MaskFlags.alpha in flags[band] for band in shared):
            shared = []
        return cls(
            bands=tuple(bands),
            alpha=tuple(_alpha_bands(dataset)),
            masks=(*shared[:1], *(band for band, f in flags.items() if not f)),
            nodata=tuple(
                _representable(dataset.nodatavals[band - 1], np.dtype(dtype)) for band in bands
            ),
            dtype=dtype,
        )

    @property
    def is_needed(self) -> bool:
        """Whether a pixel could be invalid at all."""
        return bool(self.alpha or self.masks) or self._is_in_values

    @property
    def _is_in_values(self) -> bool:
        return self.dtype.startswith("float") or any(value is not None for value in self.nodata)

    def read(
        self, dataset: Any, area: RasterioWindow, image: NDArray[Any] | None = None
    ) -> NDArray[np.bool_]:
        """Return (h, w), True where measured; ``image`` (C, h, w) if the caller has it already."""
        valid = np.ones((area.height, area.width), np.bool_)
        for band in self.alpha:
            valid &= dataset.read(band, window=area) > 0
        for band in self.masks:
            valid &= dataset.read_masks(band, window=area) > 0
        if self._is_in_values:
            if image is None:
                image = dataset.read(self.bands, window=area)
            valid &= self._measured(image)
        return valid

    def _measured(self, image: NDArray[Any]) -> NDArray[np.bool_]:
        pairs = zip(image, self.nodata, strict=True)
        present = [values != nodata for values, nodata in pairs if nodata is not None]
        valid = np.ones(image.shape[1:], np.bool_)
        if present:
            # Of an unsigned type, nodata (0, 255) is a value that occurs in single bands too.
            together = self.dtype.startswith("uint") and len(present) == len(image)
            valid = (np.logical_or if together else np.logical_and).reduce(present)
        if self.dtype.startswith("float"):
            valid &= np.isfinite(image).all(axis=0)
        return valid


def _representable(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return nodata as pixels of a type hold it, None where none can."""
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(np.float64(nodata).astype(dtype))
    limits = np.iinfo(dtype)
    fits = float(nodata).is_integer() and limits.min <= nodata <= limits.max
    return int(nodata) if fits else None


def _resampling_view(source: Any, grid: Grid) -> Any:
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
    elif MaskFlags.nodata not in flags and not _alpha_bands(source):
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


def list_rasters(path: Path) -> list[Path]:
    """Return the rasters that a path stands for: a file itself, or those in a folder, sorted.

    Raises:
        InputError: the path does not exist, or the folder has no file with a raster's suffix.
    """
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


def open_dataset(path: Path, mode: str = "r", **profile: Any) -> Any:
    """Open a file with rasterio, which is not to warn of rasters without georeference."""
    # The filters are global: two threads must not restore them in each other's stead.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **profile)


def _open(path: Path) -> Any:
    try:
        return open_dataset(path)
    except RasterioError as error:
        raise InputError(f"{path}: {_why_not_opened(path, error)}") from error


def _why_not_opened(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not a raster; give a file"
    if not path.exists():
        return "no such file"
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
def _explained(path: Path, window: Window) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise RunError(
            f"{path}: cannot be read at row {window.row}, column {window.col} "
            f"({error.__cause__ or error}); the file is damaged, copy it again from its source"
        ) from error


def _check_content(dataset: Any, path: Path) -> None:
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
    files = shlex.join([str(path), str(path.with_name(f"{path.stem}_warped.tif"))])
    if ground_control_points:
        method = "-tps" if len(ground_control_points) >= 10 else "-order 1"
        raise InputError(
            f"{path}: has {len(ground_control_points)} ground control points but no transform; "
            f"run: gdalwarp {method} {files}"
        )
    if dataset.rpcs is not None:
        raise InputError(f"{path}: has RPCs but no transform; run: gdalwarp -rpc {files}")


def _choose_bands(dataset: Any, path: Path, bands: Sequence[int] | None) -> tuple[int, ...]:
    alpha = _alpha_bands(dataset)
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


def _alpha_bands(dataset: Any) -> list[int]:
    interpretations = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return [band for band, meaning in interpretations if meaning == ColorInterp.alpha]


def _grid(dataset: Any) -> Grid:
    crs = dataset.crs.to_wkt() if dataset.crs else None
    return Grid(dataset.shape, dataset.transform, crs)


def _resampling_factor(grid: Grid, path: Path, ground_sample_distance: float | None) -> float:
    """Return how many pixels of the raster one of the resampled raster spans."""
    if ground_sample_distance is None:
        return 1.0
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
    return ground_sample_distance / own


def _resampled(grid: Grid, factor: float) -> Grid:
    # A hair less than the quotient, or rounding errors add a row that lies outside.
    height, width = (max(1, math.ceil(side / factor - 1e-6)) for side in grid.shape)
    return Grid((height, width), grid.transform * Affine.scale(factor), grid.crs)


def _check_readable(dataset: Any, path: Path, bands: Sequence[int]) -> None:
    """Raise InputError for missing parts that show without reading everything."""
    if dataset.driver == "GTiff" and path.is_file():
        _check_tiff_blocks(dataset, path)
    if dataset.driver == "VRT" and path.is_file():
        _check_sources(dataset, path)
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


def _check_sources(dataset: Any, path: Path) -> None:
    for description in dataset.tags(ns="xml:VRT").values():
        for relative, name in re.findall(
            r'<SourceFilename(?: relativeToVRT="(\d)")?[^>]*>([^<]+)<', description
        ):
            source = path.parent / name if relative == "1" else Path(name)
            # Names with a colon may be GDAL's own (a subdataset, a URL).
            if ":" not in name and not name.startswith("/vsi") and not source.exists():
                raise InputError(f"{path}: its source {source} does not exist; build the VRT again")


def _rasterio_window(window: Window) -> Any:
    return RasterioWindow(window.col, window.row, window.width, window.height)


def _mirror(
    window: Window, shape: tuple[int, int]
) -> tuple[Window, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return how to read a window that may reach beyond a raster of ``shape``.

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


def measure(
    rasters: Sequence[Raster], rgb: tuple[int, int, int] | None, progress: Progress = SILENT
) -> Bands:
    """Measure the bands over all valid pixels of all rasters, streaming.

    Integers of up to 16 bits are counted, so everything about them is exact; of others the mean
    and the standard deviation are summed in float64, and the percentiles are those of the values
    as float32. Each raster is cut in the same windows in every run.

    Args:
        rasters: at least one, all of the same bands and dtype.
        rgb: GDAL band numbers (from 1, as a user gives them) of red, green and blue; None for the
            first raster's own.
        progress: told of the pixels that were read.

    Returns:
        Mean and standard deviation (1 for a constant band) of every band, and the 2nd and 98th
        percentiles (interpolated linearly) of red, green and blue.

    Raises:
        InputError: the rasters differ in bands or dtype, a band of ``rgb`` is not in use, or no
            pixel is valid.
        RunError: a file turns out to be damaged.
    """
    first = rasters[0]
    _check_alike(rasters)
    positions = first.rgb if rgb is None else _positions(first, rgb)
    tally: _Tally = (
        _CountTally(len(first.bands), first.dtype)
        if np.dtype(first.dtype).itemsize <= 2
        else _SumTally(len(first.bands), first.dtype, positions)
    )
    total = tally.passes * sum(raster.grid.window.area for raster in rasters)
    with progress.step("statistics", total, "px") as step:
        for _ in range(tally.passes):
            _feed(tally, rasters, step)
            if not tally.count:
                names = ", ".join(str(raster.path) for raster in rasters[:3])
                raise InputError(f"no valid pixel in {names}: everything is nodata, masked or NaN")
            tally.next_pass()
    ranges = [tally.percentiles(position) for position in positions]
    low, high = zip(*ranges, strict=True)
    mean, std = zip(*(tally.moments(band) for band in range(len(first.bands))), strict=True)
    return Bands(first.bands, first.dtype, mean, std, positions, low, high)


def _check_alike(rasters: Sequence[Raster]) -> None:
    first = rasters[0]
    for other in rasters[1:]:
        if (first.bands, first.dtype) != (other.bands, other.dtype):
            raise InputError(
                f"the rasters differ: {first.path} has bands {_listed(first.bands)} of "
                f"{first.dtype}, {other.path} has {_listed(other.bands)} of {other.dtype}; "
                "choose bands that all have with --bands, or convert one of them"
            )


def _listed(bands: Sequence[int]) -> str:
    return ",".join(map(str, bands))


def _positions(raster: Raster, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    wrong = next((band for band in rgb if band not in raster.bands), None)
    if wrong is not None:
        raise InputError(
            f"{raster.path}: band {wrong} is to be shown (--rgb) but not in use; "
            f"the bands in use are {_listed(raster.bands)}"
        )
    red, green, blue = (raster.bands.index(band) for band in rgb)
    return red, green, blue


def _feed(tally: _Tally, rasters: Sequence[Raster], step: Step) -> None:
    for raster in rasters:
        for window in _measuring_windows(raster):
            image, valid = raster.read(window)
            # Selecting copies; most windows of most rasters are all valid.
            pixels = image.reshape(len(image), -1) if valid.all() else image[:, valid]
            if pixels.size:
                tally.add(pixels)
            step.advance(window.area)
        raster.close()  # of a thousand chips not all can be open at once


def _measuring_windows(raster: Raster) -> Iterator[Window]:
    """Yield windows of about two million pixels that split no block, in a fixed order."""
    block_height, block_width = raster.block_shape
    height, width = raster.grid.shape
    across = width if block_width >= width else block_width * math.ceil(2048 / block_width)
    rows = max(1, 2**21 // across)
    down = rows if block_height > rows else rows // block_height * block_height
    for row in range(0, height, down):
        for col in range(0, width, across):
            yield Window(row, col, down, across).clipped(raster.grid.shape)


class _Tally(Protocol):
    """What is known of the pixels seen; ``passes`` times all of them are shown."""

    passes: int
    count: int

    def add(self, pixels: NDArray[Any]) -> None:
        """Take in (C, N) valid pixels."""

    def next_pass(self) -> None:
        """All pixels have been seen once more."""

    def moments(self, band: int) -> tuple[float, float]:
        """Return mean and standard deviation."""

    def percentiles(self, band: int) -> tuple[float, float]:
        """Return the 2nd and the 98th percentile."""


class _CountTally:
    """Exact statistics of integers of up to 16 bits, from how often each value occurs."""

    passes = 1

    def __init__(self, bands: int, dtype: str) -> None:
        info = np.iinfo(dtype)
        self.count = 0
        self._lowest = int(info.min)
        self._counts = np.zeros((bands, int(info.max) - self._lowest + 1), np.int64)

    def add(self, pixels: NDArray[Any]) -> None:
        self.count += pixels.shape[1]
        for counts, values in zip(self._counts, pixels, strict=True):
            counts += np.bincount(values.astype(np.int64) - self._lowest, minlength=counts.size)

    def next_pass(self) -> None:
        """Once is enough."""

    def moments(self, band: int) -> tuple[float, float]:
        offsets = np.flatnonzero(self._counts[band])
        # Python's integers: sums of squares of 16-bit values pass 64 bits.
        pairs = [(int(self._counts[band][i]), int(i) + self._lowest) for i in offsets]
        total = sum(n * value for n, value in pairs)
        squares = sum(n * value * value for n, value in pairs)
        variance = Fraction(self.count * squares - total * total, self.count**2)
        return total / self.count, math.sqrt(variance) or 1.0

    def percentiles(self, band: int) -> tuple[float, float]:
        cumulative = np.cumsum(self._counts[band])

        def value_at(rank: int) -> float:
            return float(np.searchsorted(cumulative, rank, side="right") + self._lowest)

        return _interpolated(value_at, self.count, 2), _interpolated(value_at, self.count, 98)


class _SumTally:
    """Statistics of wide integers and floats in two passes.

    Percentiles by a radix search: values become 32-bit keys of the same order; the first pass
    counts their upper halves, the second the lower halves of the keys beside the percentiles. So
    outliers, however far, cost no resolution.
    """

    passes = 2

    def __init__(self, bands: int, dtype: str, shown: Sequence[int]) -> None:
        self.count = 0
        self._dtype = np.dtype(dtype)
        self._sums = np.zeros(bands)
        self._squares = np.zeros(bands)
        self._minima = np.full(bands, np.inf)
        self._maxima = np.full(bands, -np.inf)
        self._uppers = {band: np.zeros(2**16, np.int64) for band in shown}
        self._lowers: dict[int, dict[int, NDArray[np.int64]]] = {}

    def add(self, pixels: NDArray[Any]) -> None:
        if self._lowers:
            self._add_second(pixels)
        else:
            self._add_first(pixels)

    def _add_first(self, pixels: NDArray[Any]) -> None:
        self.count += pixels.shape[1]
        self._sums += pixels.sum(axis=1, dtype=np.float64)
        self._minima = np.minimum(self._minima, pixels.min(axis=1))
        self._maxima = np.maximum(self._maxima, pixels.max(axis=1))
        for band, counts in self._uppers.items():
            counts += np.bincount(_ordered_keys(pixels[band]) >> 16, minlength=2**16)

    def next_pass(self) -> None:
        for band, counts in self._uppers.items():
            cumulative = np.cumsum(counts)
            ranks = {r for p in (2, 98) for r in _ranks(self.count, p)[:2]}
            uppers = {int(np.searchsorted(cumulative, rank, side="right")) for rank in ranks}
            self._lowers.setdefault(
                band, {upper: np.zeros(2**16, np.int64) for upper in sorted(uppers)}
            )

    def _add_second(self, pixels: NDArray[Any]) -> None:
        means = self._sums / self.count
        for band, values in enumerate(pixels):
            self._squares[band] += np.square(values.astype(np.float64) - means[band]).sum()
        for band, lowers in self._lowers.items():
            keys = _ordered_keys(pixels[band])
            for upper, counts in lowers.items():
                near = keys[keys >> 16 == upper]
                counts += np.bincount(near & 0xFFFF, minlength=2**16)

    def moments(self, band: int) -> tuple[float, float]:
        constant = self._minima[band] == self._maxima[band]
        std = math.sqrt(self._squares[band] / self.count)
        return float(self._sums[band] / self.count), 1.0 if constant else std

    def percentiles(self, band: int) -> tuple[float, float]:
        cumulative = np.cumsum(self._uppers[band])

        def value_at(rank: int) -> float:
            upper = int(np.searchsorted(cumulative, rank, side="right"))
            below = int(cumulative[upper - 1]) if upper else 0
            within = np.cumsum(self._lowers[band][upper])
            lower = int(np.searchsorted(within, rank - below, side="right"))
            return _value_of_key(upper << 16 | lower, self._dtype)

        return _interpolated(value_at, self.count, 2), _interpolated(value_at, self.count, 98)


def _ordered_keys(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return keys in 0 … 2^32-1 that order as the values do; float64 is rounded to float32."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64) - int(np.iinfo(values.dtype).min)
    limits = np.finfo(np.float32)
    single = np.clip(values, limits.min, limits.max).astype(np.float32)
    bits = single.view(np.uint32).astype(np.int64)
    # Negative floats order against their bits.
    keys: NDArray[np.int64] = np.where(bits >= 2**31, 2**32 - 1 - bits, bits + 2**31)
    return keys


def _value_of_key(key: int, dtype: np.dtype[Any]) -> float:
    """Return the value whose ordered key this is."""
    if dtype.kind in "iu":
        return float(key + int(np.iinfo(dtype).min))
    bits = key - 2**31 if key >= 2**31 else 2**32 - 1 - key
    return float(np.uint32(bits).view(np.float32))


def _ranks(count: int, percent: int) -> tuple[int, int, float]:
    """Return the two order statistics (from 0) beside a percentile, and the share of the second."""
    position = Fraction(percent, 100) * (count - 1)
    lower = math.floor(position)
    return lower, min(lower + 1, count - 1), float(position - lower)


def _interpolated(value_at: Callable[[int], float], count: int, percent: int) -> float:
    lower, upper, share = _ranks(count, percent)
    return value_at(lower) + (value_at(upper) - value_at(lower)) * share
