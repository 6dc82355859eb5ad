"""Statistics of pixels that are seen piece by piece: mean, deviation and percentiles of bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tally(Protocol):
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


def new_tally(bands: int, dtype: str, shown: Sequence[int]) -> Tally:
    """Return what measures pixels of a type.

    Args:
        bands: number of bands C.
        dtype: numpy dtype name.
        shown: the bands (from 0) whose percentiles will be asked for.
    """
    if np.dtype(dtype).itemsize <= 2:
        return CountTally(bands, dtype)
    return SumTally(bands, dtype, shown)


class CountTally:
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


class SumTally:
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
