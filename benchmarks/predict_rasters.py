"""Rasters for the prediction benchmark: of any size, made from one picture, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window

from rsseg.ops.synthetic import draw_orthophoto

PICTURE = 2048
"""Side of the picture that is repeated, pixels."""

STRIP = 512
PIXEL = 0.25
GRAIN = 3
"""Greatest change by noise: a camera's, without which the repeated picture would compress away."""


def picture_of(ortho: Path | None, side: int = PICTURE) -> NDArray[np.uint8]:
    """Return the middle of an orthophoto, or a drawn one: (3, side, side) uint8, or smaller."""
    if ortho is None:
        return draw_orthophoto(side, 0)[0]
    with rasterio.open(ortho) as source:
        height, width = (min(side, length) for length in source.shape)
        window = Window((source.width - width) // 2, (source.height - height) // 2, width, height)
        image = source.read([1, 2, 3], window=window)
    if image.dtype != np.uint8 or min(height, width) < STRIP:
        raise ValueError(f"{ortho}: this benchmark wants {STRIP} x {STRIP} uint8 at the least")
    found: NDArray[np.uint8] = image
    return found


def write(path: Path, size: int, picture: NDArray[np.uint8], seed: int = 0) -> None:
    """Write a square raster: the picture, mirrored again and again, in changing light, with grain.

    Args:
        path: the GeoTIFF, tiled and compressed; it is complete when it appears. No pixel is 0,
            which some tools take for nodata.
        size: pixels on a side.
        picture: (3, h, w).
        seed: of the grain.
    """
    part = path.with_suffix(".part")
    profile = {
        **{"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8"},
        **{"tiled": True, "blockxsize": 512, "blockysize": 512, "photometric": "rgb"},
        **{"compress": "deflate", "predictor": 2, "num_threads": "all_cpus", "bigtiff": "if_safer"},
        **{"crs": "EPSG:32633", "transform": Affine(PIXEL, 0, 500_000, 0, -PIXEL, 5_000_000)},
    }
    rng = np.random.default_rng(seed)
    with rasterio.open(part, "w", **profile) as target:
        for top in range(0, size, STRIP):
            rows = np.arange(top, min(top + STRIP, size))
            for left in range(0, size, PICTURE):
                cols = np.arange(left, min(left + PICTURE, size))
                window = Window(left, top, len(cols), len(rows))
                target.write(block(picture, rows, cols, rng), window=window)
    part.replace(path)


def block(
    picture: NDArray[np.uint8],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return the pixels of these rows and columns of the endless raster, (3, rows, cols)."""
    height, width = picture.shape[1:]
    seen = picture[:, mirrored(rows, height)[:, None], mirrored(cols, width)]
    light = 1 + 0.1 * np.sin(rows / 3000)[:, None] * np.cos(cols / 4100)
    grain = rng.integers(-GRAIN, GRAIN + 1, (len(rows), len(cols)), dtype=np.int8)
    return np.clip(seen * light.astype(np.float32) + grain, 1, 255).astype(np.uint8)


def mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return where a picture of that length is met if it is mirrored at its ends, for ever."""
    there = places % (2 * length)
    return np.minimum(there, 2 * length - 1 - there)


def windows_of(picture: NDArray[np.uint8], window: int, count: int = 4) -> NDArray[np.uint8]:
    """Return windows of the picture along its diagonal, (count, 3, window, window)."""
    height, width = picture.shape[1:]
    places = np.linspace((0, 0), (height - window, width - window), count).astype(int)
    return np.stack([picture[:, r : r + window, c : c + window] for r, c in places])
