"""Polygons of a class map that comes strip by strip: what a strip holds, and how strips join.

A region within one strip is finished with it. One that touches the next strip gets a number of its
own and is finished when no strip below continues it. Where two numbers turn out to be one region,
the lower one stands for both. Of a region with a number some 70 bytes are remembered to the end;
the pieces of its arcs are handed to whoever keeps them (``Keeper``), until it is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.arcs import ELSEWHERE, OUTSIDE, Pieces, concatenated, take, trace
from rsseg.ops.columns import stacked, taken
from rsseg.ops.compiled import compiled
from rsseg.ops.regions import find_regions, find_root

NONE = -1
"""The number of what has no region, or no number."""

INSIDE = -2
"""Region n of a strip, where it lies wholly inside, has the code -2 - n; others their number."""

GROUP_POINTS = 2_000_000
"""About how many points of finished regions are handed out at a time."""


class About(NamedTuple):
    """What is known of N regions.

    Attributes:
        first: (N,) int64, the first pixel of each in the raster.
        classes: (N,) uint8.
        sums: (N, 4) int64 of ``Regions.sums``.
        points: (N,) int64, about how many points run along each.
    """

    first: NDArray[np.int64]
    classes: NDArray[np.uint8]
    sums: NDArray[np.int64]
    points: NDArray[np.int64]


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
        points: (N + 1,) int64, the points of the pieces along each region.
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
    points: NDArray[np.int64]
    above: NDArray[np.bool_]
    pieces: Pieces
    corners: NDArray[np.uint8]
    last: bool

    def about(self, labels: NDArray[np.int64]) -> About:
        """Return what is known of some of its regions."""
        return taken(About(self.first, self.classes, self.sums, self.points), labels)


def draw_strip(
    classes: NDArray[np.uint8],
    above: NDArray[np.uint8] | None,
    *,
    index: int,
    top: int,
    last: bool,
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
        values: (h, W) uint8, what is summed over each region, 255 being no value.
        nodata: the class value that is no class.
    """
    found = find_regions(classes, nodata)
    pieces, corners = trace(classes, found.labels, above, top=top, last=last, nodata=nodata)
    return Strip(
        index=index,
        top=top,
        shape=(len(classes), classes.shape[1]),
        rims=found.labels[[0, -1]],
        first=found.first + top * classes.shape[1],
        classes=classes.ravel()[found.first],
        sums=found.sums(np.ones(len(classes), np.int64), values),
        points=_points(pieces, len(found.first)),
        above=continues(classes, above, nodata),
        pieces=pieces,
        corners=np.packbits(corners, axis=1),
        last=last,
    )


def _points(pieces: Pieces, count: int) -> NDArray[np.int64]:
    """Return how many points run along each region of a strip."""
    lengths = np.repeat(np.diff(pieces.offsets), 2)
    sides = np.maximum(pieces.sides.ravel(), 0)
    return np.bincount(sides, lengths, minlength=count).astype(np.int64)


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
        group_points: about how many points are handed out at a time, unless one region has more.
    """

    def __init__(self, width: int, keeper: Keeper, group_points: int = GROUP_POINTS) -> None:
        self._keeper = keeper
        self._group_points = group_points
        self._numbers = Numbers.none()
        self._seam = np.full(width, NONE, np.int64)
        self._open = np.empty(0, np.int64)

    def add(self, strip: Strip) -> Iterator[Finished]:
        """Take in the next strip; yield the regions that are finished with it, in groups.

        All groups must be taken before the next strip is added.
        """
        own = self._number(strip)
        pieces = strip.pieces._replace(sides=_coded(strip.pieces.sides, own, self._seam))
        self._seam = np.full_like(self._seam, NONE) if strip.last else own[strip.rims[1]]
        unfinished = np.concatenate((self._open, own[own != NONE]))
        self._open = np.unique(self._numbers.roots(self._seam[self._seam != NONE]))
        ended = np.setdiff1d(self._numbers.roots(unfinished), self._open)
        inside = np.flatnonzero(own[1:] == NONE) + 1
        within, across = strip.about(inside), self._numbers.about(ended)
        known, codes = stacked([within, across]), np.concatenate((INSIDE - inside, ended))
        order = np.argsort(known.first)
        groups = np.cumsum(known.points[order]) // self._group_points
        for chosen in np.split(order, np.flatnonzero(np.diff(groups)) + 1):
            about = taken(known, chosen)
            around = self._around(strip, pieces, codes[chosen])
            yield Finished(about.classes, about.first, about.sums, around)
        self._keep(strip.index, pieces)

    def _number(self, strip: Strip) -> NDArray[np.int64]:
        """Return the number of every region of a strip that crosses a seam, NONE for others."""
        rims = strip.rims
        own = numbered(rims, strip.above, strip.last, len(strip.classes), len(self._numbers))
        crossing = np.flatnonzero(own != NONE)
        self._numbers = self._numbers.extended(strip.about(crossing), strip.index)
        self._numbers.unite(self._seam[strip.above], own[rims[0][strip.above]])
        return own

    def _around(self, strip: Strip, pieces: Pieces, codes: NDArray[np.int64]) -> Pieces:
        """Return all pieces around N finished regions; their sides become 0 … N - 1."""
        across = codes >= 0
        places = _Places(
            self._numbers,
            np.full(len(self._numbers), ELSEWHERE, np.int64),
            np.full(len(strip.classes), ELSEWHERE, np.int64),
        )
        places.of_numbers[codes[across]] = np.flatnonzero(across)
        places.of_inside[INSIDE - codes[~across]] = np.flatnonzero(~across)
        here = places.around(pieces)
        before = range(self._since(codes[across], strip.index), strip.index)
        return concatenated([here, *(places.around(self._keeper.kept(n)) for n in before)])

    def _keep(self, strip: int, pieces: Pieces) -> None:
        """Keep the pieces around what is not finished, and no others any longer."""
        is_open = np.zeros(len(self._numbers), bool)
        is_open[self._open] = True
        across = pieces.sides >= 0
        still = np.zeros(across.shape, bool)
        still[across] = is_open[self._numbers.roots(pieces.sides[across])]
        kept = take(pieces, _any(still))
        sides = np.maximum(kept.sides, ELSEWHERE)
        self._keeper.keep(strip, kept._replace(sides=sides))
        self._keeper.drop(self._since(self._open, strip + 1))

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
class _Places:
    """Where regions stand in a list.

    Attributes:
        numbers: the regions that cross seams.
        of_numbers: (M,) int64, the place of each root, or ELSEWHERE.
        of_inside: (N + 1,) int64, the place of each region inside the strip, or ELSEWHERE.
    """

    numbers: Numbers
    of_numbers: NDArray[np.int64]
    of_inside: NDArray[np.int64]

    def around(self, pieces: Pieces) -> Pieces:
        """Return those of a strip's pieces that run along a region in the list."""
        places = np.full(pieces.sides.shape, ELSEWHERE, np.int64)
        across, inside = pieces.sides >= 0, pieces.sides < INSIDE
        places[across] = self.of_numbers[self.numbers.roots(pieces.sides[across])]
        places[inside] = self.of_inside[INSIDE - pieces.sides[inside]]
        places[pieces.sides == OUTSIDE] = OUTSIDE
        return take(pieces._replace(sides=places), _any(places >= 0))


def _coded(
    sides: NDArray[np.int64], own: NDArray[np.int64], seam: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the codes of the regions beside a strip's pieces.

    Args:
        sides: (P, 2) int64 of ``Pieces``.
        own: (N + 1,) int64, the numbers of the strip's regions, or NONE.
        seam: (W,) int64, the numbers of the regions in the row above.
    """
    codes = np.full(sides.shape, OUTSIDE, np.int64)
    here, above = sides > 0, sides < 0
    numbers = own[sides[here]]
    codes[here] = np.where(numbers == NONE, INSIDE - sides[here], numbers)
    codes[above] = seam[-1 - sides[above]]
    return codes


@dataclass(frozen=True, eq=False)
class Numbers:
    """The M regions that cross seams: a forest, whose roots know all of their region.

    Attributes:
        parents: (M,) int64.
        first: (M,) int64, the first pixel.
        classes: (M,) uint8.
        sums: (M, 4) int64.
        points: (M,) int64, about how many points run along it.
        since: (M,) int64, the strip where the region begins.
    """

    parents: NDArray[np.int64]
    first: NDArray[np.int64]
    classes: NDArray[np.uint8]
    sums: NDArray[np.int64]
    points: NDArray[np.int64]
    since: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.parents)

    @classmethod
    def none(cls) -> Numbers:
        """Return the empty forest."""
        nothing = np.empty(0, np.int64)
        sums = np.empty((0, 4), np.int64)
        return cls(nothing, nothing, np.empty(0, np.uint8), sums, nothing, nothing)

    def extended(self, about: About, strip: int) -> Numbers:
        """Return the forest with more regions, which begin in a strip."""
        count = len(about.first)
        return Numbers(
            np.concatenate((self.parents, len(self) + np.arange(count))),
            np.concatenate((self.first, about.first)),
            np.concatenate((self.classes, about.classes)),
            np.concatenate((self.sums, about.sums)),
            np.concatenate((self.points, about.points)),
            np.concatenate((self.since, np.full(count, strip))),
        )

    def about(self, numbers: NDArray[np.int64]) -> About:
        """Return what is known of regions given by their roots."""
        return taken(About(self.first, self.classes, self.sums, self.points), numbers)

    def unite(self, ones: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Say of pairs of numbers that they are one region."""
        _unite(self.parents, self.sums, self.points, ones, others)

    def roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the roots of numbers; any shape."""
        return _roots(self.parents, numbers.ravel()).reshape(numbers.shape)


def _any(sides: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for which pieces something holds on one side at least; (P, 2) to (P,) bool."""
    return sides[:, 0] | sides[:, 1]


@compiled
def _unite(
    parents: NDArray[np.int64],
    sums: NDArray[np.int64],
    points: NDArray[np.int64],
    ones: NDArray[np.int64],
    others: NDArray[np.int64],
) -> None:
    for index in range(len(ones)):
        one, other = find_root(parents, ones[index]), find_root(parents, others[index])
        if one == other:
            continue
        lower, higher = min(one, other), max(one, other)
        # The lower number was given first, so it knows the first pixel and the first strip.
        parents[higher] = lower
        sums[lower] += sums[higher]
        points[lower] += points[higher]


@compiled
def _roots(parents: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    roots = np.empty_like(numbers)
    for index in range(len(numbers)):
        roots[index] = find_root(parents, numbers[index])
    return roots
