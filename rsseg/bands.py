"""Bands: what a raster's values mean to the networks and to the eye, frozen when a site is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import InputError


@dataclass(frozen=True)
class Bands:
    """The bands in use, their statistics, and the 8-bit view.

    Everything was computed once over all valid pixels of a site, so that a value never depends on
    the tiling; a checkpoint carries the same numbers to other rasters.

    Args:
        indices: GDAL band numbers (from 1) that the networks see, in order.
        dtype: numpy dtype name of the pixels.
        mean: one mean per band.
        std: one standard deviation (> 0) per band.
        rgb: positions in ``indices`` (from 0) of red, green and blue for the 8-bit view.
        low: 2nd percentile of red, green and blue: becomes 0 in the 8-bit view.
        high: 98th percentile of red, green and blue: becomes 255.
    """

    indices: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rgb: tuple[int, int, int]
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.indices)

    def normalise(
        self, image: NDArray[np.generic], valid: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Return (image - mean) / std, and 0 (the mean) where nothing was measured.

        Args:
            image: (C, H, W), any real dtype.
            valid: (H, W).

        Returns:
            (C, H, W) float32.
        """
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        return np.where(valid, (image.astype(np.float32) - mean) / std, np.float32(0))

    def to_rgb(self, image: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the 8-bit view: red, green, blue stretched from [low, high] to [0, 255].

        Args:
            image: (C, H, W), any real dtype.
            valid: (H, W); other pixels become 0.

        Returns:
            (H, W, 3) uint8.
        """
        low, high = (np.asarray(v, np.float32)[:, None, None] for v in (self.low, self.high))
        picked = np.where(valid, image[list(self.rgb)].astype(np.float32), low)
        stretched = np.clip((picked - low) / np.maximum(high - low, 1e-12), 0, 1)
        return np.moveaxis((stretched * 255 + 0.5).astype(np.uint8), 0, -1)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; ``from_dict`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Bands:
        """Build from what ``to_dict`` returned, through JSON or not."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = description[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def three_bands(rgb: Sequence[int] | None) -> tuple[int, int, int] | None:
    """Return what a user gave for red, green and blue as three; one number stands for all.

    Raises:
        InputError: there are neither three nor one.
    """
    if rgb is None:
        return None
    if len(rgb) not in (1, 3):
        raise InputError(f"--rgb {','.join(map(str, rgb))}: give three band numbers, or one")
    red, green, blue = rgb if len(rgb) == 3 else [*rgb] * 3
    return red, green, blue
