"""Polygons of a class map that comes strip by strip: what a strip holds, and how strips join.

A region within one strip is finished with it. One that touches the next strip gets a number of its
own and is finished when no strip below continues it. Where two numbers turn out to be one region,
the lower one stands for both. Only what is not finished is remembered, the pieces of its arcs not
even here: they are handed to whoever keeps them (``Keeper``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.arcs import ELSEWHERE, OUTSIDE, Pieces, concatenated, take, trace
from rsseg.ops.compiled import compiled
from rsseg.ops.regions import find_regions, find_root

NONE = -1
"""The number of what has no region, or no number."""


@dataclass(frozen=True, eq=False)
class Strip:
    """Some rows of a class map, drawn by themselves.

    Attributes:
        index: which strip of the raster it is, from 0.
        top: its first row.
        shape: (height, width) in pixels.
        rims: (2, W) int32, the regions in its first and in its last row; 0 is no class.
        first: (N + 1,) int64, the first pixel in the raster of each of the N regions.
        classes: (N + 1,) uint8, the class of each region.
        sums: (N + 1, 4) int64 of ``Regions.sums``.
        above: (W,) bool, where its first row continues the class of the row above.
        pieces: the pieces of arcs.
        corners: (lines, ceil((W + 1) / 8)) uint8, a bit where arcs turn or end.
        last: whether it is the raster's last one.
    """

    index: int
    top: int
    shape: tuple[int, int]
    rims: NDArray[np.int32]
    first: NDArray[np.int64]
    classes: NDArray[np.uint8]
    sums: NDArray[np.int64]
    above: NDArray[np.bool_]
    pieces: Pieces
    corners: NDArray[np.uint8]
    last: bool


def draw_strip(
    classes: NDArray[np.uint8],
    above: NDArray[np.uint8] | None,
    *,
    index: int,
    top: int,
    last: bool,
    weights: NDArray[np.int64] | None = None,
    values: NDArray[np.uint8] | None = None,
    nodata: int = 255,
) -> Strip:
    """Draw the arcs in some rows of a class map.

    Args:
        classes: (h, W) uint8.
        above: (W,) uint8, the row above; None for the first strip.
        index: which strip it is.
        top: its first row.
        last: whether it is the last.
        weights: (h,) int64, what a pixel of each row counts for; 1 by default.
        values: (h, W) uint8, what is summed over each region, 255 being no value.
        nodata: the class value that is no class.
    """
    found = find_regions(classes, nodata)
    counts = np.ones(len(classes), np.int64) if weights is None else weights
    pieces, corners = trace(classes, found.labels, above, top=top, last=last, nodata=nodata)
    return Strip(
        index=index,
        top=top,
        shape=(len(classes), classes.shape[1]),
        rims=found.labels[[0, -1]],
        first=found.first + top * classes.shape[1],
        classes=classes.ravel()[found.first],
        sums=found.sums(counts, values),
        above=continues(classes, above, nodata),
        pieces=pieces,
        corners=np.packbits(corners, axis=1),
        last=last,
    )


def continues(
    classes: NDArray[np.uint8], above: NDArray[np.uint8] | None, nodata: int
) -> NDArray[np.bool_]:
    """Return where the first row of a strip continues the class of the row above, (W,) bool."""
    if above is None:
        return np.zeros(classes.shape[1], bool)
    same: NDArray[np.bool_] = (classes[0] == above) & (above != nodata)
    return same


class Keeper(Protocol):
    """Keeps the pieces of arcs around regions that are not finished."""

    def keep(self, strip: int, pieces: Pieces) -> None:
        """Keep the pieces of a strip; their sides are numbers of regions."""

    def kept(self, strip: int) -> Pieces:
        """Return the pieces of a strip."""

    def drop(self, before: int) -> None:
        """Forget the strips before this one."""


@dataclass(frozen=True, eq=False)
class Finished:
    """N regions that are finished, in the order of their first pixels.

    Attributes:
        classes: (N,) uint8.
        first: (N,) int64, their first pixels in the raster.
        sums: (N, 4) int64.
        pieces: all pieces of arcs around them; the sides are 0 … N - 1, or negative.
    """

    classes: NDArray[np.uint8]
    first: NDArray[np.int64]
    sums: NDArray[np.int64]
    pieces: Pieces


class Seams:
    """Joins strips, given from top to bottom, across their seams.

    Args:
        width: pixels in a row.
        keeper: keeps the pieces of arcs around what is not finished.
    """

    def __init__(self, width: int, keeper: Keeper) -> None:
        self._keeper = keeper
        self._numbers = Numbers.none()
        self._seam = np.full(width, NONE, np.int64)
        self._open = np.empty(0, np.int64)

    def add(self, strip: Strip) -> Finished:
        """Take in the next strip; return the regions that are finished with it."""
        own = self._number(strip)
        above = self._seam
        self._seam = np.full_like(above, NONE) if strip.last else own[strip.rims[1]]
        unfinished = np.concatenate((self._open, own[own != NONE]))
        self._open = np.unique(self._numbers.roots(self._seam[self._seam != NONE]))
        ended = np.setdiff1d(self._numbers.roots(unfinished), self._open)
        inside = np.flatnonzero(own[1:] == NONE) + 1
        first = np.concatenate((strip.first[inside], self._numbers.first[ended]))
        order = np.argsort(first)
        places = np.argsort(order)
        of_labels = np.full(len(own), ELSEWHERE, np.int64)
        of_labels[inside], of_labels[0] = places[: len(inside)], OUTSIDE
        of_numbers = np.full(len(self._numbers), ELSEWHERE, np.int64)
        of_numbers[ended] = places[len(inside) :]
        pieces = self._collect(strip, own, above, of_labels, of_numbers)
        self._keeper.drop(self._since(self._open, strip.index + 1))
        classes = np.concatenate((strip.classes[inside], self._numbers.classes[ended]))
        sums = np.concatenate((strip.sums[inside], self._numbers.sums[ended]))
        return Finished(classes[order], first[order], sums[order], pieces)

    def _number(self, strip: Strip) -> NDArray[np.int64]:
        """Return the number of every region of a strip that crosses a seam, NONE for others."""
        rims = strip.rims
        own = numbered(rims, strip.above, strip.last, len(strip.classes), len(self._numbers))
        crossing = own != NONE
        self._numbers = self._numbers.extended(
            strip.first[crossing], strip.classes[crossing], strip.sums[crossing], strip.index
        )
        self._numbers.unite(self._seam[strip.above], own[rims[0][strip.above]])
        return own

    def _collect(
        self,
        strip: Strip,
        own: NDArray[np.int64],
        above: NDArray[np.int64],
        of_labels: NDArray[np.int64],
        of_numbers: NDArray[np.int64],
    ) -> Pieces:
        """Return the pieces around what is finished; keep those around what is not."""
        sides = strip.pieces.sides
        numbers = np.where(sides > 0, own[np.maximum(sides, 0)], ELSEWHERE)
        upper = sides < 0
        numbers[upper] = above[-1 - sides[upper]]
        numbers[sides == 0] = OUTSIDE
        numbers[(sides > 0) & (numbers == NONE)] = ELSEWHERE
        places = self._placed(numbers, of_numbers)
        local = (sides > 0) & (numbers == ELSEWHERE)
        places[local] = of_labels[sides[local]]
        parts = [take(strip.pieces._replace(sides=places), _any(places >= 0))]
        still = _any((numbers >= 0) & (self._placed(numbers, of_numbers) < 0))
        self._keeper.keep(strip.index, take(strip.pieces._replace(sides=numbers), still))
        ended = np.flatnonzero(of_numbers >= 0)
        for index in range(self._since(ended, strip.index), strip.index):
            kept = self._keeper.kept(index)
            places = self._placed(kept.sides, of_numbers)
            parts.append(take(kept._replace(sides=places), _any(places >= 0)))
        return concatenated(parts)

    def _placed(
        self, numbers: NDArray[np.int64], of_numbers: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the places of regions given by number; negative ones stay as they are."""
        places = numbers.copy()
        known = numbers >= 0
        places[known] = of_numbers[self._numbers.roots(numbers[known])]
        return places

    def _since(self, numbers: NDArray[np.int64], otherwise: int) -> int:
        return int(self._numbers.since[numbers].min(initial=otherwise))


def numbered(
    rims: NDArray[np.int32], above: NDArray[np.bool_], last: bool, count: int, start: int
) -> NDArray[np.int64]:
    """Return the numbers of the regions of a strip that cross a seam, NONE for others.

    Args:
        rims: (2, W) int32, the regions in its first and in its last row, 0 … count - 1; 0 is no
            class.
        above: (W,) bool, where its first row continues the row above.
        last: whether there is no strip below.
        count: number of labels.
        start: the first number to be given.
    """
    crossing = np.zeros(count, bool)
    crossing[rims[0][above]] = True
    if not last:
        crossing[rims[1]] = True
    crossing[0] = False
    numbers = np.full(count, NONE, np.int64)
    numbers[crossing] = start + np.arange(np.count_nonzero(crossing))
    return numbers


@dataclass(frozen=True, eq=False)
class Numbers:
    """The M regions that cross seams: a forest, whose roots know all of their region.

    Attributes:
        parents: (M,) int64.
        first: (M,) int64, the first pixel.
        classes: (M,) uint8.
        sums: (M, 4) int64.
        since: (M,) int64, the strip where the region begins.
    """

    parents: NDArray[np.int64]
    first: NDArray[np.int64]
    classes: NDArray[np.uint8]
    sums: NDArray[np.int64]
    since: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.parents)

    @classmethod
    def none(cls) -> Numbers:
        """Return the empty forest."""
        nothing = np.empty(0, np.int64)
        return cls(nothing, nothing, np.empty(0, np.uint8), np.empty((0, 4), np.int64), nothing)

    def extended(
        self,
        first: NDArray[np.int64],
        classes: NDArray[np.uint8],
        sums: NDArray[np.int64],
        strip: int,
    ) -> Numbers:
        """Return the forest with more regions."""
        added = len(self) + np.arange(len(first))
        return Numbers(
            np.concatenate((self.parents, added)),
            np.concatenate((self.first, first)),
            np.concatenate((self.classes, classes)),
            np.concatenate((self.sums, sums)),
            np.concatenate((self.since, np.full(len(first), strip))),
        )

    def unite(self, ones: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Say of pairs of numbers that they are one region."""
        _unite(self.parents, self.first, self.sums, self.since, ones, others)

    def roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the roots of numbers; any shape."""
        return _roots(self.parents, numbers.ravel()).reshape(numbers.shape)


def _any(sides: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for which pieces something holds on one side at least; (P, 2) to (P,) bool."""
    return sides[:, 0] | sides[:, 1]


@compiled
def _unite(
    parents: NDArray[np.int64],
    first: NDArray[np.int64],
    sums: NDArray[np.int64],
    since: NDArray[np.int64],
    ones: NDArray[np.int64],
    others: NDArray[np.int64],
) -> None:
    for index in range(len(ones)):
        one, other = find_root(parents, ones[index]), find_root(parents, others[index])
        if one == other:
            continue
        lower, higher = min(one, other), max(one, other)
        parents[higher] = lower
        first[lower] = min(first[lower], first[higher])
        sums[lower] += sums[higher]
        since[lower] = min(since[lower], since[higher])


@compiled
def _roots(parents: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    roots = np.empty_like(numbers)
    for index in range(len(numbers)):
        roots[index] = find_root(parents, numbers[index])
    return roots
