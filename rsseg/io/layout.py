"""Layouts: how a raster's pixels lie in its file, known from the header alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError

from rsseg.io.opening import open_dataset, open_raster, vrt_sources

SEQUENTIAL_DRIVERS = ("PNG", "JPEG", "GIF", "WEBP")
"""Formats without any index: what lies below is read by decoding all that lies above."""

MOST_SOURCES = 8
"""Sources of a mosaic that are looked at, evenly spread."""


@dataclass(frozen=True)
class Layout:
    """How a raster's pixels lie in its file.

    Args:
        path: the file; of a mosaic (VRT), one of its sources.
        shape: (height, width) of the raster in pixels.
        block: (height, width) of the blocks in which it is read.
        pixel_bytes: bytes of a pixel, all bands together, uncompressed.
        sequential: whether a pixel can only be read by decoding everything above it.
    """

    path: Path
    shape: tuple[int, int]
    block: tuple[int, int]
    pixel_bytes: int
    sequential: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the raster."""
        return math.prod(self.shape)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, all bands together, uncompressed."""
        return math.prod(self.block) * self.pixel_bytes

    @property
    def is_tiled(self) -> bool:
        """Whether blocks divide the raster from left to right."""
        return self.block[1] < self.shape[1]


@dataclass(frozen=True)
class Header:
    """What the header of a raster says.

    Args:
        layouts: of the file, or of sources of a mosaic.
        summary: size, bands, pixel type, CRS, nodata and blocks, in words.
    """

    layouts: Sequence[Layout]
    summary: str


def read_header(path: Path) -> Header:
    """Read the header of a raster; no pixel is decoded.

    Raises:
        InputError: it cannot be opened.
    """
    with open_raster(path) as dataset:
        if not dataset.count:  # whoever reads it will say so
            return Header([], f"{path.name}: no bands")
        layouts = [_layout(dataset, path)]
        sources = vrt_sources(dataset, path)
        summary = _summary(dataset, path)
    return Header(_of_sources(sources) or layouts, summary)


def _of_sources(sources: Sequence[Path]) -> list[Layout]:
    found = []
    for path in sources[:: math.ceil(len(sources) / MOST_SOURCES) or 1]:
        try:
            with open_dataset(path) as dataset:
                found.append(_layout(dataset, path))
        except RasterioError:  # a source may be missing where nothing is read of it
            continue
    return found


def _layout(dataset: Any, path: Path) -> Layout:
    size = sum(np.dtype(dtype).itemsize for dtype in map(_numpy_name, dataset.dtypes))
    height, width = dataset.shape
    block_height, block_width = dataset.block_shapes[0]
    block = min(block_height, height), min(block_width, width)
    return Layout(path, (height, width), block, size, _is_sequential(dataset))


def _numpy_name(dtype: str) -> str:
    return {"complex_int16": "complex64"}.get(dtype, dtype)


def _is_sequential(dataset: Any) -> bool:
    if dataset.driver in SEQUENTIAL_DRIVERS:
        return True
    if dataset.driver != "GTiff" or dataset.compression is None or dataset.shape[0] == 1:
        return False
    # GDAL cuts a strip that is the whole image into rows; the file has one piece for all of them.
    return (
        dataset.block_shapes[0] == (1, dataset.width)
        and dataset.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1) is None
    )


def _summary(dataset: Any, path: Path) -> str:
    height, width = dataset.block_shapes[0]
    bands = f"{dataset.count} band{'s' if dataset.count > 1 else ''}"
    crs = re.sub(r"\s+", " ", dataset.crs.to_string())[:40] if dataset.crs else "no CRS"
    nodata = "no nodata value" if dataset.nodata is None else f"nodata {dataset.nodata:g}"
    return (
        f"{path.name}: {dataset.width} x {dataset.height} px, {bands} of {dataset.dtypes[0]}, "
        f"{crs}, {nodata}, blocks of {width} x {height} px"
    )
