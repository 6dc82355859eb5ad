"""What several test files need: rasters and features on disk, and a Progress that listens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from rsseg.classes import Classes
from rsseg.io.mapfile import CLASSES_TAG
from rsseg.progress import Silent

UTM = "EPSG:32633"
NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)

TRANSFORMS = {
    "north up": Affine(0.1, 0, 500_000 + 1 / 3, 0, -0.1, 5_000_000 + 2 / 3),
    "south up": Affine(0.1, 0, 500_000.5, 0, 0.1, 5_000_000.25),
    "rotated": Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000) @ Affine.rotation(20),
}
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


class Listener(Silent):
    """A Progress that remembers the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Return pixels at random that are never 0 in unsigned types and never 255 in uint8."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(100, 30, shape).astype(dtype)
    top = 250 if dtype == "uint8" else 30_000
    bottom = -1000 if np.dtype(dtype).kind == "i" else 1
    return random.integers(bottom, top, shape).astype(dtype)


def write_raster(
    path: Path,
    pixels: ArrayLike,
    transform: Affine | None = NORTH_UP,
    crs: str | None = UTM,
    *,
    mask: NDArray[np.bool_] | None = None,
    colours: Sequence[ColorInterp] | None = None,
    table: Mapping[int, tuple[int, ...]] | None = None,
    classes: Classes | None = None,
    **options: Any,
) -> Path:
    """Write pixels, (C, H, W) or (H, W), as GDAL would and not through the code under test.

    Args:
        path: the file.
        pixels: of the type to write.
        transform: None for none.
        crs: None for none.
        mask: (H, W), becomes a mask band.
        colours: what the bands show.
        table: colour table.
        classes: what the map says its classes are.
        options: rasterio's, ``nodata`` or ``tiled`` for example.
    """
    image = np.asarray(pixels)
    image = image if image.ndim == 3 else image[None]
    count, height, width = image.shape
    profile = {"driver": "GTiff", "crs": crs, "transform": transform, **options}
    plain = colours is None and profile.get("compress") != "jpeg" and "alpha" not in profile
    if profile["driver"] == "GTiff" and plain:
        profile["photometric"] = "minisblack"  # or GDAL takes the last of four bands for alpha
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", width=width, height=height, count=count, dtype=image.dtype, **profile
            ) as target,
        ):
            if colours is not None:
                target.colorinterp = colours
            target.write(image)
            if mask is not None:
                target.write_mask(mask)
            if table is not None:
                target.write_colormap(1, table)
            if classes is not None:
                target.update_tags(**{CLASSES_TAG: json.dumps(classes.to_dict())})
    return path


def write_features(
    path: Path,
    geometries: Sequence[Any],
    crs: Any = UTM,
    to: Any = None,
    **fields: Sequence[Any],
) -> Path:
    """Write features with their fields, brought into the CRS ``to`` where one is given."""
    frame = geopandas.GeoDataFrame(fields, geometry=list(geometries), crs=crs)
    (frame if to is None else frame.to_crs(to)).to_file(path)
    return path
