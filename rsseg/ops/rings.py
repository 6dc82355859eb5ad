"""Rings: the arcs around each region, put together to polygons with holes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.arcs import EAST, NORTH, SOUTH, WEST, Pieces, first_of, gathered, room_for
from rsseg.ops.compiled import compiled


class Polygons(NamedTuple):
    """N polygons on the corners of pixels, as rings of points.

    Exterior rings run counterclockwise on the picture and come first, holes run clockwise and are
    sorted by their first two points; every ring is closed and begins at its uppermost, of those its
    leftmost point. No ring touches itself.

    Attributes:
        polygon_offsets: (N + 1,) int64, where each polygon's rings begin.
        ring_offsets: (R + 1,) int64, where each ring's points begin.
        points: (V, 2) int32, row and column; float64 where right angles moved them off the pixels.
        doubled_area: (N,) int64 or float64, twice the area in pixels, holes taken off.
    """

    polygon_offsets: NDArray[np.int64]
    ring_offsets: NDArray[np.int64]
    points: NDArray[np.int32] | NDArray[np.float64]
    doubled_area: NDArray[np.int64] | NDArray[np.float64]

    def take(self, chosen: NDArray[np.int64]) -> Polygons:
        """Return some of the polygons, by their indices."""
        counts = np.diff(self.polygon_offsets)[chosen]
        rings = gathered(self.polygon_offsets[:-1][chosen], counts)
        lengths = np.diff(self.ring_offsets)[rings]
        return Polygons(
            polygon_offsets=np.concatenate(([0], np.cumsum(counts))),
            ring_offsets=np.concatenate(([0], np.cumsum(lengths))),
            points=self.points[gathered(self.ring_offsets[:-1][rings], lengths)],
            doubled_area=self.doubled_area[chosen],
        )


def join(pieces: Pieces) -> Pieces:
    """Join pieces to whole arcs, which end at nodes or run in circles.

    Of every arc all pieces must be there. What comes out depends on the arcs alone, not on how they
    were cut, but for their order and the ``ends`` of circles, which are any corner of theirs. An
    arc runs from the lower corner to the higher; where both are the same, and in circles, which
    begin at their uppermost leftmost point, it sets out in the first of the two directions (east,
    south, west, north). Points in which an arc does not turn are gone.
    """
    arcs = room_for(len(pieces.ends), len(pieces.points))
    return first_of(arcs, _join(pieces, _partners(pieces), arcs))


def assemble(arcs: Pieces, count: int) -> Polygons:
    """Put polygons together from whole arcs.

    Args:
        arcs: all arcs around the regions wanted, joined; ``sides`` are 0 ... count - 1 for these
            and negative for all others.
        count: how many regions are wanted.
    """
    piece, side = np.nonzero(arcs.sides >= 0)
    region = arcs.sides[piece, side]
    start = arcs.ends[piece, side]
    order = np.lexsort((start, region))
    halves = region[order], start[order], piece[order], side[order]
    ring_region, sizes, steps = _close(arcs, *halves)
    points, ring_offsets, doubled = _draw(arcs, halves[2], halves[3], sizes, steps)
    # Two holes of a simplified polygon may begin at one corner, in which they touch.
    first_two = (points[ring_offsets[:-1] + at, axis] for at in (1, 0) for axis in (1, 0))
    order = np.lexsort((*first_two, doubled < 0, ring_region))
    area = np.zeros(count, np.int64)
    np.add.at(area, ring_region, doubled)
    lengths = np.diff(ring_offsets)[order]
    return Polygons(
        polygon_offsets=np.searchsorted(ring_region[order], np.arange(count + 1)),
        ring_offsets=np.concatenate(([0], np.cumsum(lengths))),
        points=points[gathered(ring_offsets[:-1][order], lengths)],
        doubled_area=area,
    )


def _partners(pieces: Pieces) -> NDArray[np.int64]:
    """Return for every end (2 * piece + 0 or 1) the end that continues it; -1 at nodes."""
    partners = np.full(2 * len(pieces.ends), -1, np.int64)
    loose = np.flatnonzero(~pieces.nodes.ravel())
    corners = pieces.ends.ravel()[loose]
    order = np.argsort(corners, kind="stable")
    # An end by itself lies at a node of the strip below, which its own strip could not know.
    pairs = np.flatnonzero(np.diff(corners[order]) == 0)
    ones, others = loose[order[pairs]], loose[order[pairs + 1]]
    partners[ones], partners[others] = others, ones
    return partners


@compiled
def _join(pieces: Pieces, partners: NDArray[np.int64], arcs: Pieces) -> int:
    """Write down the arcs; return how many."""
    used = np.zeros(len(pieces.ends), np.bool_)
    count = 0
    # From nodes first; what is left then are circles.
    for circles in (False, True):
        for origin in range(2 * len(pieces.ends)):
            if not used[origin // 2] and (circles or partners[origin] == -1):
                _join_one(pieces, partners, arcs, count, origin, used, circles)
                count += 1
    return count


@compiled
def _join_one(
    pieces: Pieces,
    partners: NDArray[np.int64],
    arcs: Pieces,
    count: int,
    origin: int,
    used: NDArray[np.bool_],
    circle: bool,
) -> None:
    begin = arcs.offsets[count]
    far, stop = _walk(pieces, partners, origin, used, arcs.points, begin)
    first, last = _inward(pieces, origin), _inward(pieces, far) ^ 2
    if circle:
        stop = _from_uppermost(arcs.points, begin, stop, first == last)
        first = EAST if arcs.points[begin + 1, 0] == arcs.points[begin, 0] else SOUTH
        last = NORTH if first == EAST else WEST
    start, end = _corner(pieces, origin), _corner(pieces, far)
    backward = start > end or (start == end and first > last ^ 2)
    if backward:
        arcs.points[begin:stop] = arcs.points[begin:stop][::-1].copy()
        first, last = last ^ 2, first ^ 2
        start, end = end, start
    left = origin + backward & 1
    arcs.sides[count, 0] = pieces.sides[origin // 2, left]
    arcs.sides[count, 1] = pieces.sides[origin // 2, 1 - left]
    arcs.ends[count, 0], arcs.ends[count, 1] = start, end
    arcs.directions[count, 0], arcs.directions[count, 1] = first, last
    arcs.nodes[count] = not circle
    arcs.offsets[count + 1] = stop


@compiled
def _corner(pieces: Pieces, end: int) -> int:
    return pieces.ends[end // 2, end % 2]  # type: ignore[no-any-return]


@compiled
def _inward(pieces: Pieces, end: int) -> int:
    """Return the direction in which a walk that enters a piece through an end sets out."""
    return pieces.directions[end // 2, end % 2] ^ (2 * (end % 2))  # type: ignore[no-any-return]


@compiled
def _walk(
    pieces: Pieces,
    partners: NDArray[np.int64],
    origin: int,
    used: NDArray[np.bool_],
    points: NDArray[np.int32],
    stop: int,
) -> tuple[int, int]:
    """Copy the points of the pieces of one arc, from one of its ends; return the other end."""
    end, came = origin, -1
    while True:
        piece = end // 2
        used[piece] = True
        low, high = pieces.offsets[piece], pieces.offsets[piece + 1]
        # A piece begins where the one before it ends, which is no point if it goes straight on.
        skipped = int(came == _inward(pieces, end))
        stop -= int(came >= 0)
        for index in range(skipped, high - low):
            points[stop] = pieces.points[high - 1 - index if end % 2 else low + index]
            stop += 1
        far = end ^ 1
        came = _inward(pieces, far) ^ 2
        end = partners[far]
        if end == -1 or used[end // 2]:
            return far, stop


@compiled
def _from_uppermost(points: NDArray[np.int32], begin: int, stop: int, straight: bool) -> int:
    """Let a closed ring begin at its uppermost leftmost point; return where it stops.

    ``straight`` says that it does not turn where it begins, which then is no point of it.
    """
    ring = points[begin + int(straight) : stop - 1].copy()
    best = 0
    for index in range(1, len(ring)):
        higher = ring[index, 0] < ring[best, 0]
        if higher or (ring[index, 0] == ring[best, 0] and ring[index, 1] < ring[best, 1]):
            best = index
    for index in range(len(ring) + 1):
        points[begin + index] = ring[(best + index) % len(ring)]
    return begin + len(ring) + 1


@compiled
def _close(
    arcs: Pieces,
    regions: NDArray[np.int64],
    starts: NDArray[np.int64],
    pieces: NDArray[np.int64],
    sides: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Follow the sides of arcs around their regions.

    The sides are sorted by region and the corner at which a walk with the region on its left sets
    out. Returned are each ring's region and number of arcs, and the arcs' places in that order.
    """
    count = len(regions)
    ring_regions = np.empty(count, np.int64)
    sizes = np.zeros(count, np.int64)
    steps = np.empty(count, np.int64)
    used = np.zeros(count, np.bool_)
    rings = 0
    filled = 0
    for origin in range(count):
        if used[origin]:
            continue
        ring_regions[rings] = regions[origin]
        half = origin
        while not used[half]:
            used[half] = True
            steps[filled] = half
            filled += 1
            sizes[rings] += 1
            end = 2 * pieces[half] + 1 - sides[half]
            half = _next(arcs, regions, starts, pieces, sides, half, end)
        rings += 1
    return ring_regions[:rings].copy(), sizes[:rings].copy(), steps


@compiled
def _next(
    arcs: Pieces,
    regions: NDArray[np.int64],
    starts: NDArray[np.int64],
    pieces: NDArray[np.int64],
    sides: NDArray[np.int64],
    half: int,
    end: int,
) -> int:
    region, corner = regions[half], _corner(arcs, end)
    low, high = 0, len(regions)
    while low < high:
        middle = (low + high) // 2
        if (regions[middle], starts[middle]) < (region, corner):
            low = middle + 1
        else:
            high = middle
    # Where a region meets itself at a corner two arcs set out. The ring turns right there, to stay
    # with what is on its other side: so it closes without touching itself.
    turn = (_inward(arcs, end) ^ 2) + 1 & 3
    twice = low + 1 < len(regions) and (regions[low + 1], starts[low + 1]) == (region, corner)
    if twice and _inward(arcs, 2 * pieces[low] + sides[low]) != turn:
        return low + 1
    return low


@compiled
def _draw(
    arcs: Pieces,
    pieces: NDArray[np.int64],
    sides: NDArray[np.int64],
    sizes: NDArray[np.int64],
    steps: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the points of the rings, where each begins, and twice the area on its left."""
    total = len(sizes)
    for step in steps:
        total += arcs.offsets[pieces[step] + 1] - arcs.offsets[pieces[step]] - 1
    points = np.empty((total, 2), np.int32)
    offsets = np.zeros(len(sizes) + 1, np.int64)
    doubled = np.zeros(len(sizes), np.int64)
    stop = 0
    taken = 0
    for ring in range(len(sizes)):
        begin = stop
        for step in steps[taken : taken + sizes[ring]]:
            low, high = arcs.offsets[pieces[step]], arcs.offsets[pieces[step] + 1]
            for index in range(high - low - 1):
                points[stop] = arcs.points[high - 1 - index if sides[step] else low + index]
                stop += 1
        points[stop] = points[begin]
        stop = _from_uppermost(points, begin, stop + 1, False)
        taken += sizes[ring]
        offsets[ring + 1] = stop
        for index in range(begin, stop - 1):
            doubled[ring] += np.int64(points[index, 0]) * points[index + 1, 1]
            doubled[ring] -= np.int64(points[index + 1, 0]) * points[index, 1]
    return points, offsets, doubled
