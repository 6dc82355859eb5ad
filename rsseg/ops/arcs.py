"""Arcs: the lines between the regions of a class map, each drawn once for both its sides.

Corners of pixels are numbered row by row: corner (row, column) of a raster of width W is
row * (W + 1) + column. A *node* is a corner where three or four boundaries meet. An *arc* runs from
node to node, or in a circle around a region that has none. A strip of rows of the raster knows the
*pieces* of the arcs in it; a piece ends at a node or where its arc leaves the strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.columns import stacked
from rsseg.ops.compiled import compiled

EAST, SOUTH, WEST, NORTH = 0, 1, 2, 3
"""Directions along the sides of pixels, clockwise on the picture: +1 turns right."""

OUTSIDE = -1
"""The side of an arc that lies along what has no class."""

ELSEWHERE = -2
"""The side of an arc whose region is of no concern."""

_SIDES = 15
_NODE = 16
_TURN = 32


class Pieces(NamedTuple):
    """P pieces of arcs, with V points in all.

    Attributes:
        sides: (P, 2) int64, the regions on the left and on the right of each piece: a number of
            the strip's own, 0 for no class, or -1 - column for the region of the pixel above the
            strip in that column.
        ends: (P, 2) int64, the corners where it starts and ends.
        directions: (P, 2) int8, its first and its last direction.
        nodes: (P, 2) bool, whether it starts and ends at a node; not known, and False, where it
            leaves the strip below.
        offsets: (P + 1,) int64, where each piece's points begin.
        points: (V, 2) int32, row and column of the corners where it starts, turns and ends.
    """

    sides: NDArray[np.int64]
    ends: NDArray[np.int64]
    directions: NDArray[np.int8]
    nodes: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    points: NDArray[np.int32]


def trace(
    classes: NDArray[np.uint8],
    labels: NDArray[np.int32],
    above: NDArray[np.uint8] | None,
    *,
    top: int,
    last: bool,
    nodata: int = 255,
) -> tuple[Pieces, NDArray[np.bool_]]:
    """Draw the pieces of arcs in a strip of rows.

    A strip owns the upper and the left sides of its pixels, the last strip the lower edge of the
    raster as well; so the strips of a raster own every boundary once, however it is cut.

    Args:
        classes: (h, W) uint8.
        labels: (h, W) int32, regions of ``find_regions``; 0 where there is no class.
        above: (W,) uint8, the row above the strip; None for the first strip.
        top: the row of the raster in which the strip begins.
        last: whether it is the last one.
        nodata: the value that is no class.

    Returns:
        The pieces; and (h + last, W + 1) bool, the corners that are nodes or turns.
    """
    height, width = classes.shape
    rim = np.full((height + 2, width + 2), nodata, np.uint8)
    rim[1:-1, 1:-1] = classes
    regions = np.zeros((height + 2, width + 2), np.int32)
    regions[1:-1, 1:-1] = labels
    if above is not None:
        rim[0, 1:-1] = above
        regions[0, 1:-1] = np.where(above == nodata, 0, -1 - np.arange(width, dtype=np.int32))
    lines = height + last
    corners = np.zeros((height + 1, width + 1), np.uint8)
    ends, turns = _find_corners(rim, lines, corners)
    pieces = room_for(ends, turns + 2 * ends)
    count = _follow(corners, regions, lines, top, above is not None, pieces)
    return first_of(pieces, count), corners[:lines] >= _NODE


def room_for(count: int, points: int) -> Pieces:
    """Return a list to be filled with at most so many pieces and points."""
    return Pieces(
        sides=np.empty((count, 2), np.int64),
        ends=np.empty((count, 2), np.int64),
        directions=np.empty((count, 2), np.int8),
        nodes=np.empty((count, 2), np.bool_),
        offsets=np.zeros(count + 1, np.int64),
        points=np.empty((points, 2), np.int32),
    )


def first_of(pieces: Pieces, count: int) -> Pieces:
    """Return the first pieces of a list, without the room that is left in it."""
    return Pieces(
        sides=pieces.sides[:count].copy(),
        ends=pieces.ends[:count].copy(),
        directions=pieces.directions[:count].copy(),
        nodes=pieces.nodes[:count].copy(),
        offsets=pieces.offsets[: count + 1].copy(),
        points=pieces.points[: pieces.offsets[count]].copy(),
    )


def take(pieces: Pieces, chosen: NDArray[np.bool_]) -> Pieces:
    """Return some of the pieces; ``chosen`` is (P,) bool."""
    lengths = np.diff(pieces.offsets)[chosen]
    return Pieces(
        sides=pieces.sides[chosen],
        ends=pieces.ends[chosen],
        directions=pieces.directions[chosen],
        nodes=pieces.nodes[chosen],
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        points=pieces.points[gathered(pieces.offsets[:-1][chosen], lengths)],
    )


def concatenated(parts: Sequence[Pieces]) -> Pieces:
    """Return the pieces of several lists in one."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    # Offsets are one longer than the other columns, and do not just follow each other.
    return stacked([part._replace(offsets=part.ends[:, 0]) for part in parts])._replace(
        offsets=offsets
    )


def gathered(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of runs of ``lengths`` elements that begin at ``starts``, in a row."""
    ends = np.cumsum(lengths)
    shifts = np.repeat(starts - (ends - lengths), lengths)
    return shifts + np.arange(len(shifts))


@compiled
def _find_corners(
    rim: NDArray[np.uint8], lines: int, corners: NDArray[np.uint8]
) -> tuple[int, int]:
    """Note at each corner which sides are boundaries; return how many pieces and points may be."""
    ends = 0
    turns = 0
    for row in range(lines):
        for col in range(corners.shape[1]):
            northwest, northeast = rim[row, col], rim[row, col + 1]
            southwest, southeast = rim[row + 1, col], rim[row + 1, col + 1]
            east, south = int(northeast != southeast), int(southwest != southeast)
            west, north = int(northwest != southwest), int(northwest != northeast)
            degree = east + south + west + north
            if degree == 0:
                continue
            code = east | south << 1 | west << 2 | north << 3
            if degree > 2:
                code |= _NODE
                ends += degree
            elif east != west:
                code |= _TURN
                turns += 1
            if row == 0 and north:
                ends += 1
            if code & _SIDES == 1 << EAST | 1 << SOUTH:
                ends += 2
            corners[row, col] = code
    return ends, turns


@compiled
def _follow(
    corners: NDArray[np.uint8],
    regions: NDArray[np.int32],
    lines: int,
    top: int,
    continues: bool,
    pieces: Pieces,
) -> int:
    """Write down all pieces of a strip; return how many.

    Sides of pixels are taken out of ``corners`` as they are drawn. ``continues`` says that there
    is a strip above, which owns what leads up from the first line.
    """
    count = 0
    # From nodes, and from where arcs come in from above; what is left then are circles, and arches
    # that stand on the next strip.
    for rest in (False, True):
        for row in range(lines):
            inner = row > 0 or not continues
            for col in range(corners.shape[1]):
                code = corners[row, col]
                if code & _SIDES == 0:
                    continue
                starts = code & _NODE != 0 or (not inner and code >> NORTH & 1 != 0)
                if rest:
                    starts = not starts and code & _SIDES == 1 << EAST | 1 << SOUTH
                for way in range(3 + inner):
                    if starts and corners[row, col] >> way & 1:
                        _follow_one(
                            corners, regions, lines, top, continues, pieces, count, row, col, way
                        )
                        count += 1
    return count


@compiled
def _follow_one(
    corners: NDArray[np.uint8],
    regions: NDArray[np.int32],
    lines: int,
    top: int,
    continues: bool,
    pieces: Pieces,
    count: int,
    row: int,
    col: int,
    way: int,
) -> None:
    """Write down the piece that leaves a corner in a direction."""
    width = corners.shape[1]
    stop = pieces.offsets[count]
    left, right = _beside(regions, row, col, way)
    pieces.sides[count, 0], pieces.sides[count, 1] = left, right
    pieces.ends[count, 0] = (top + row) * width + col
    pieces.directions[count, 0] = way
    pieces.nodes[count, 0] = corners[row, col] & _NODE != 0
    turned = True
    while True:
        if turned:
            pieces.points[stop, 0], pieces.points[stop, 1] = top + row, col
            stop += 1
        corners[row, col] &= ~(1 << way) & 255
        row += (0, 1, 0, -1)[way]
        col += (1, 0, -1, 0)[way]
        if row == lines:
            break
        corners[row, col] &= ~(1 << (way ^ 2)) & 255
        here = corners[row, col]
        if here & _NODE or here & _SIDES == 0 or (row == 0 and continues and here >> NORTH & 1):
            break
        turned = here >> way & 1 == 0
        if turned:
            way = way + 1 & 3 if here >> (way + 1 & 3) & 1 else way + 3 & 3
    pieces.points[stop, 0], pieces.points[stop, 1] = top + row, col
    pieces.ends[count, 1] = (top + row) * width + col
    pieces.directions[count, 1] = way
    pieces.nodes[count, 1] = row < lines and corners[row, col] & _NODE != 0
    pieces.offsets[count + 1] = stop + 1


@compiled
def _beside(regions: NDArray[np.int32], row: int, col: int, way: int) -> tuple[int, int]:
    """Return the regions on the left and on the right of a way out of a corner."""
    northwest, northeast = regions[row, col], regions[row, col + 1]
    southwest, southeast = regions[row + 1, col], regions[row + 1, col + 1]
    if way == EAST:
        return northeast, southeast
    if way == SOUTH:
        return southeast, southwest
    if way == WEST:
        return southwest, northwest
    return northwest, northeast
