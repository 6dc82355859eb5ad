"""Whether a raster is of the kind that a checkpoint has learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rsseg.bands import Bands
from rsseg.errors import InputError
from rsseg.io.raster import Raster
from rsseg.nets.checkpoint import Card
from rsseg.progress import Progress

GSD_TOLERANCE = 1.5
"""Ground resolutions that differ by a larger factor from the training's are warned of."""


def open_suitable(
    path: Path, card: Card, gsd: float | None, progress: Progress
) -> tuple[Raster, Raster | None]:
    """Open a raster as the network is to see it, and as it is on disk where that differs.

    Args:
        path: the raster.
        card: of the checkpoint.
        gsd: metres per pixel to resample to, or None.
        progress: is warned of what may make the map worthless.

    Raises:
        InputError: the raster cannot be read, or its bands or pixels are not those learnt.
    """
    bands = card.bands
    plain = Raster(path, bands.indices)
    _check_dtype(plain, bands, progress)
    if not plain.grid.is_georeferenced or plain.grid.crs is None:
        progress.warn(f"{path}: has no CRS, so its map has none either")
    raster = plain if gsd is None else Raster(path, bands.indices, gsd)
    _compare_resolution(raster, card, progress)
    return raster, None if raster.grid == plain.grid else plain


def _check_dtype(raster: Raster, bands: Bands, progress: Progress) -> None:
    """Raise InputError for integers of another type than those of the training.

    Their ranges differ (0 … 255, 0 … 10000), so the normalisation would make nonsense of them.
    """
    found, learnt = np.dtype(raster.dtype), np.dtype(bands.dtype)
    if found == learnt or {found.kind, learnt.kind} == {"f"}:
        return
    if "f" in (found.kind, learnt.kind):
        progress.warn(
            f"{raster.path}: has {found} pixels, the checkpoint learnt {learnt}, mostly from "
            f"{bands.low[0]:g} to {bands.high[0]:g}; "
            "the map is worthless unless the values mean the same"
        )
        return
    raise InputError(
        f"{raster.path}: has {found} pixels, the checkpoint learnt {learnt}; bring them to the "
        f"same scale and type with gdal_translate -scale -ot {_gdal_type(learnt)}, or train on "
        "rasters like this one"
    )


def _gdal_type(dtype: np.dtype[np.generic]) -> str:
    return "Byte" if dtype == np.uint8 else dtype.name.replace("u", "U").replace("int", "Int")


def _compare_resolution(raster: Raster, card: Card, progress: Progress) -> None:
    own, learnt = raster.grid.ground_sample_distance, card.ground_sample_distance
    if own is None or learnt is None:
        return
    if max(own / learnt, learnt / own) > GSD_TOLERANCE:
        progress.warn(
            f"{raster.path}: {own:.3g} m per pixel, the checkpoint learnt at {learnt:.3g} m; "
            f"things look other than it knows them, so try --gsd {learnt:.3g}"
        )
