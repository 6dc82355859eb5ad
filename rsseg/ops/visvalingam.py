"""Simplification of arcs by the areas of their corners (Visvalingam and Whyatt 1993).

M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", The
Cartographic Journal 30(1), 1993: the point whose triangle with its two neighbours is smallest goes
first, of equal ones the first along the arc; one that had to stay is tried again when a neighbour
of it goes. A point stays, however small its triangle, where it is needed to keep the map whole:

- no other point may lie in the triangle or on its rim, so that no line runs over another;
- a circle keeps three points, and an arc from a node to itself two besides the node;
- the last point between two nodes goes only if it lies on the left and the nodes do not lie in one
  row or column. Two arcs between the same nodes can both become straight only from opposite sides,
  so one of them keeps its point and what lies between them keeps an area. In one row or column the
  other arc may have been straight from the start.

The other points are those of the map before simplification. So each arc can be simplified by
itself, in any order, and comes out the same.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.arcs import OUTSIDE, Pieces
from rsseg.ops.compiled import compiled


def simplify(arcs: Pieces, corners: NDArray[np.uint8], limit: int) -> Pieces:
    """Simplify arcs; those along what has no class stay as they are.

    Args:
        arcs: whole arcs, joined; a negative side is ``OUTSIDE`` or any other region.
        corners: (H + 1, ceil((W + 1) / 8)) uint8, a bit for each corner of the raster, of
            ``numpy.packbits``, set where an arc turns or ends. Is changed on the way, and is as it
            was afterwards.
        limit: twice the area in pixels from which on a triangle stays.
    """
    offsets, points = _simplify(arcs, corners, limit)
    return arcs._replace(offsets=offsets, points=points)


@compiled
def _simplify(
    arcs: Pieces, corners: NDArray[np.uint8], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    offsets = np.zeros(len(arcs.offsets), np.int64)
    points = np.empty_like(arcs.points)
    stop = 0
    for arc in range(len(arcs.sides)):
        line = arcs.points[arcs.offsets[arc] : arcs.offsets[arc + 1]]
        outer = arcs.sides[arc, 0] == OUTSIDE or arcs.sides[arc, 1] == OUTSIDE
        if outer or len(line) < 3:
            stays = np.ones(len(line), np.bool_)
        else:
            stays = _thin(line, corners, limit)
        for index in range(len(line)):
            if stays[index]:
                points[stop] = line[index]
                stop += 1
        offsets[arc + 1] = stop
    return offsets, points[:stop].copy()


@compiled
def _thin(line: NDArray[np.int32], corners: NDArray[np.uint8], limit: int) -> NDArray[np.bool_]:
    """Return which points of an arc stay, (n,) bool."""
    last = len(line) - 1
    closed = line[0, 0] == line[last, 0] and line[0, 1] == line[last, 1]
    before = np.arange(-1, last)
    after = np.arange(1, last + 2)
    stays = np.ones(last + 1, np.bool_)
    left = last - 1
    heap = [(0, 0) for _ in range(0)]  # tells the compiler what will be in it
    for index in range(1, last):
        area = abs(_doubled(line[index - 1], line[index], line[index + 1]))
        if area < limit:
            heapq.heappush(heap, (area, index))
    while heap:
        area, index = heapq.heappop(heap)
        one, other = before[index], after[index]
        if not stays[index]:
            continue
        signed = _doubled(line[one], line[index], line[other])
        if abs(signed) != area:  # an entry from before a neighbour went
            continue
        if closed and left == 2:
            break
        if left == 1 and not closed:
            along = line[one, 0] == line[other, 0] or line[one, 1] == line[other, 1]
            if along or signed < 0:
                continue
        if not _is_empty(line[one], line[index], line[other], corners):
            continue
        stays[index] = False
        _put(corners, line[index], False)
        left -= 1
        after[one], before[other] = other, one
        for neighbour in (one, other):
            if 0 < neighbour < last:
                a, b, c = before[neighbour], neighbour, after[neighbour]
                area = abs(_doubled(line[a], line[b], line[c]))
                if area < limit:
                    heapq.heappush(heap, (area, neighbour))
    for index in range(1, last):
        _put(corners, line[index], True)
    return stays


@compiled
def _doubled(a: NDArray[np.int32], b: NDArray[np.int32], c: NDArray[np.int32]) -> int:
    """Return twice the signed area of a triangle; positive if b is left of the way from a to c."""
    rows, cols = int(c[0]) - int(a[0]), int(c[1]) - int(a[1])
    return rows * (int(b[1]) - int(a[1])) - cols * (int(b[0]) - int(a[0]))


@compiled
def _put(corners: NDArray[np.uint8], point: NDArray[np.int32], value: bool) -> None:
    bit = np.uint8(128 >> (point[1] & 7))
    if value:
        corners[point[0], point[1] >> 3] |= bit
    else:
        corners[point[0], point[1] >> 3] &= ~bit


@compiled
def _is_empty(
    a: NDArray[np.int32], b: NDArray[np.int32], c: NDArray[np.int32], corners: NDArray[np.uint8]
) -> bool:
    """Return whether no other point lies in a triangle or on its rim."""
    for row in range(min(a[0], b[0], c[0]), max(a[0], b[0], c[0]) + 1):
        low, high = _span(a, b, c, row)
        for col in range(low, high + 1):
            if not corners[row, col >> 3] >> (7 - (col & 7)) & 1:
                continue
            own = (
                (row == a[0] and col == a[1])
                or (row == b[0] and col == b[1])
                or (row == c[0] and col == c[1])
            )
            if not own:
                return False
    return True


@compiled
def _span(
    a: NDArray[np.int32], b: NDArray[np.int32], c: NDArray[np.int32], row: int
) -> tuple[int, int]:
    """Return the first and the last column of a row that lie in a triangle."""
    low, high = 1 << 40, -(1 << 40)
    for p, q in ((a, b), (b, c), (c, a)):
        top, bottom = (p, q) if p[0] <= q[0] else (q, p)
        if not top[0] <= row <= bottom[0]:
            continue
        start, rows, cols = int(top[1]), int(bottom[0]) - int(top[0]), int(bottom[1]) - int(top[1])
        if rows == 0:  # the other two sides know its ends
            continue
        # Exact: the column where the side crosses the row, rounded to both sides.
        crossing = (row - int(top[0])) * cols
        low = min(low, start - (-crossing // rows))
        high = max(high, start + crossing // rows)
    return low, high
