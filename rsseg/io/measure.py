"""Measuring rasters: the statistics of their bands over all valid pixels, streaming."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rsseg.bands import Bands
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.raster import Raster
from rsseg.ops.statistics import Tally, new_tally
from rsseg.progress import SILENT, Progress, Step


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
    tally = new_tally(len(first.bands), first.dtype, positions)
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


def _feed(tally: Tally, rasters: Sequence[Raster], step: Step) -> None:
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
