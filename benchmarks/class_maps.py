"""Class maps for the benchmarks: two kinds drawn from a seed, strip by strip, and real ones."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numba
import numpy as np
import pandas
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.windows import Window

CLASSES = 8
NODATA = 255
PIXEL = 0.5
STRIP = 512

_BITS = 0xFFFFFFFF


def draw(path: Path, kind: str, size: int, seed: int = 0) -> None:
    """Write a square map of 8 classes, 0.5 m in UTM, with a corner that was not measured.

    Args:
        path: the GeoTIFF, tiled and compressed; it is complete when it appears.
        kind: ``mosaic``, parcels with ragged edges and islands; or ``islands``, a background that
            takes three fifths and hangs together, so that it is one polygon with very many holes.
        size: pixels on a side.
        seed: another seed, another map.
    """
    part = path.with_suffix(".part")
    profile = {
        **{"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint8"},
        **{"tiled": True, "compress": "deflate", "zlevel": 1, "nodata": NODATA},
        **{"crs": "EPSG:32633", "transform": Affine(PIXEL, 0, 500_000, 0, -PIXEL, 5_000_000)},
    }
    with rasterio.open(part, "w", **profile) as dataset:
        for top in range(0, size, STRIP):
            rows = min(STRIP, size - top)
            labels = _strip(top, rows, size, kind == "mosaic", seed)
            dataset.write(labels, 1, window=Window(0, top, size, rows))
    part.replace(path)


def amsterdam(path: Path, data: Path) -> None:
    """Write the class map of Amsterdam's polygons: 1 positive, 0 negative, the rest no class."""
    folder = data / "ortho" / "amsterdam"
    with rasterio.open(folder / "test_image_1210x718.tif") as image:
        shape, transform, crs = image.shape, image.transform, image.crs
    names = ("negative", "positive")
    files = [folder / f"test_image_labels_{name}_1210x718.gpkg" for name in names]
    layers = [geopandas.read_file(file).to_crs(crs).assign(id=i) for i, file in enumerate(files)]
    drawn = pandas.concat(layers)
    labels = rasterize(
        zip(drawn.geometry, drawn["id"], strict=True),
        out_shape=shape,
        transform=transform,
        fill=NODATA,
        dtype="uint8",
    )
    profile = {"driver": "GTiff", "width": shape[1], "height": shape[0], "count": 1}
    profile |= {"dtype": "uint8", "nodata": NODATA, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(labels, 1)


def real(data: Path, folder: Path) -> dict[str, Path]:
    """Return the real class maps under a folder of test data, by name.

    Args:
        data: the test data.
        folder: where a map that has to be rasterised first is kept.
    """
    found = {f"tanzania_{n}": data / "ortho" / "tanzania" / f"buildings_{n}.tif" for n in "ab"}
    found["amsterdam"] = folder / "amsterdam.tif"
    if not found["amsterdam"].exists():
        amsterdam(found["amsterdam"], data)
    scenes = sorted((data / "dubai").glob("scene*_classes.tif"))
    return found | {f"dubai_{path.name.partition('_')[0]}": path for path in scenes}


@numba.njit
def _strip(top: int, rows: int, size: int, mosaic: bool, seed: int) -> NDArray[np.uint8]:
    labels = np.empty((rows, size), np.uint8)
    for row in range(rows):
        for x in range(size):
            y = top + row
            if x + y < size // 8:
                labels[row, x] = NODATA
            elif mosaic:
                labels[row, x] = _parcel(y, x, seed)
            else:
                labels[row, x] = _island(y, x, seed)
    return labels


@numba.njit
def _parcel(y: int, x: int, seed: int) -> int:
    """Return the class of a pixel of a mosaic."""
    label = int(_nearest(*_bent(y, x, seed), 80, seed) * CLASSES)
    if _noise(y, x, 9, seed + 5) + 0.1 * _random(y, x, seed + 6) > 0.97:
        label += 1 + int(_random(y // 64, x // 64, seed + 7) * (CLASSES - 1))
    return label % CLASSES


@numba.njit
def _island(y: int, x: int, seed: int) -> int:
    """Return the class of a pixel of islands in a background, class 0."""
    bent = _bent(y, x, seed)
    height = 0.6 * _noise(*bent, 60, seed + 5) + 0.4 * _noise(y, x, 9, seed + 6)
    if height + 0.04 * _random(y, x, seed + 7) < 0.56:
        return 0
    return 1 + int(_nearest(*bent, 90, seed) * (CLASSES - 1))


@numba.njit
def _bent(y: int, x: int, seed: int) -> tuple[float, float]:
    """Return where a pixel looks for its class: edges that follow this are ragged."""
    down = 40 * _noise(y, x, 50, seed + 1) + 10 * _noise(y, x, 5, seed + 2)
    right = 40 * _noise(y, x, 50, seed + 3) + 10 * _noise(y, x, 5, seed + 4)
    return y + down, x + right


@numba.njit
def _nearest(y: float, x: float, scale: int, seed: int) -> float:
    """Return the number, 0 ... 1, of the nearest of random points, one per ``scale``² pixels."""
    row, col = int(y // scale), int(x // scale)
    best, found = np.inf, 0.0
    for i in range(row - 1, row + 2):
        for j in range(col - 1, col + 2):
            down = (i + _random(i, j, seed + 8)) * scale - y
            right = (j + _random(i, j, seed + 9)) * scale - x
            distance = down * down + right * right
            if distance < best:
                best, found = distance, _random(i, j, seed + 10)
    return found


@numba.njit
def _noise(y: float, x: float, scale: int, seed: int) -> float:
    """Return smooth noise, 0 ... 1, with bumps about ``scale`` pixels apart."""
    row, col = int(y // scale), int(x // scale)
    down, right = y / scale - row, x / scale - col
    down, right = down * down * (3 - 2 * down), right * right * (3 - 2 * right)
    upper = _random(row, col, seed) * (1 - right) + _random(row, col + 1, seed) * right
    lower = _random(row + 1, col, seed) * (1 - right) + _random(row + 1, col + 1, seed) * right
    return upper * (1 - down) + lower * down


@numba.njit
def _random(y: int, x: int, seed: int) -> float:
    """Return a random number, 0 ... 1, that belongs to a place: any strip draws the same map."""
    bits = (y * 374_761_393 + x * 668_265_263 + seed * 974_634_599) & _BITS
    bits = ((bits ^ (bits >> 13)) * 1_274_126_177) & _BITS
    bits = ((bits ^ (bits >> 16)) * 1_181_783_497) & _BITS
    return (bits ^ (bits >> 15)) / (_BITS + 1)
