"""Validity: which pixels of a dataset were measured, by nodata, alpha, mask bands and NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.windows import Window as RasterioWindow

from rsseg.io.opening import alpha_bands


@dataclass(frozen=True)
class Validity:
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
    def of(cls, dataset: Any, bands: Sequence[int], dtype: str) -> Validity:
        """Look at what a dataset declares of the bands in use."""
        flags = {band: dataset.mask_flag_enums[band - 1] for band in bands}
        shared = [b for b, f in flags.items() if MaskFlags.per_dataset in f]
        if any(MaskFlags.alpha in flags[band] for band in shared):
            shared = []
        return cls(
            bands=tuple(bands),
            alpha=tuple(alpha_bands(dataset)),
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
        self,
        dataset: Any,
        area: RasterioWindow,
        image: NDArray[Any] | None = None,
        shape: tuple[int, int] | None = None,
    ) -> NDArray[np.bool_]:
        """Return (h, w), True where measured; ``image`` (C, h, w) if the caller has it already.

        With a ``shape`` (h, w) of fewer pixels than the area, each tells of its nearest pixel.
        """
        shape = shape or (area.height, area.width)
        valid = np.ones(shape, np.bool_)
        for band in self.alpha:
            valid &= dataset.read(band, window=area, out_shape=shape) > 0
        for band in self.masks:
            valid &= dataset.read_masks(band, window=area, out_shape=shape) > 0
        if self._is_in_values:
            if image is None:
                image = dataset.read(self.bands, window=area, out_shape=(len(self.bands), *shape))
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
