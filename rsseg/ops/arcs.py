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
        nodes: (P, 2) bool, whether it starts and ends at a node.
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
    first = above is None
    rim = np.full((height + 2, width + 2), nodata, np.uint8)
    rim[1:-1, 1:-1] = classes
    regions = np.zeros((height + 2, width + 2), np.int32)
    regions[1:-1, 1:-1] = labels
    if above is not None:
        rim[0, 1:-1] = above
        regions[0, 1:-1] = np.where(above == nodata, 0, -1 - np.arange(width, dtype=np.int32))
    lines = height + last
    corners = np.zeros((height + 1, width + 1), np.uint8)
    counts = _find_corners(rim, lines, corners)
    pieces = Pieces(*_follow(corners, regions, lines, top, first, *counts))
    return pieces, corners[:lines] >= _NODE


def take(pieces: Pieces, chosen: NDArray[np.bool_]) -> Pieces:
    """Return some of the pieces; ``chosen`` is (P,) bool."""
    lengths = np.diff(pieces.offsets)[chosen]
    return Pieces(
        *(field[chosen] for field in pieces[:4]),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        points=pieces.points[gathered(pieces.offsets[:-1][chosen], lengths)],
    )


def concatenated(parts: Sequence[Pieces]) -> Pieces:
    """Return the pieces of several lists in one."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    *fields, _, points = (np.concatenate(field) for field in zip(*parts, strict=True))
    return Pieces(*fields, offsets=np.concatenate(([0], np.cumsum(lengths))), points=points)


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
    first: bool,
    most_pieces: int,
    most_turns: int,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int8],
    NDArray[np.bool_],
    NDArray[np.int64],
    NDArray[np.int32],
]:
    width = corners.shape[1]
    sides = np.empty((most_pieces, 2), np.int64)
    ends = np.empty((most_pieces, 2), np.int64)
    directions = np.empty((most_pieces, 2), np.int8)
    nodes = np.empty((most_pieces, 2), np.bool_)
    offsets = np.zeros(most_pieces + 1, np.int64)
    points = np.empty((most_turns + 2 * most_pieces, 2), np.int32)
    row_steps, col_steps = (0, 1, 0, -1), (1, 0, -1, 0)
    count = 0
    filled = 0
    # From nodes, and from where arcs come in from above; what is left then are circles.
    for circles in (False, True):
        for start_row in range(lines):
            for start_col in range(width):
                code = corners[start_row, start_col]
                entering = start_row == 0 and not first and code & (1 << NORTH) != 0
                if circles:
                    if code & _NODE or entering or code & _SIDES != 1 << EAST | 1 << SOUTH:
                        continue
                elif not (code & _NODE or entering):
                    continue
                for start in range(4):
                    if not corners[start_row, start_col] >> start & 1:
                        continue
                    if start == NORTH and entering:
                        continue
                    row, col, way = start_row, start_col, start
                    upper, lower = row + (way == SOUTH or way == EAST), row
                    if way == EAST:
                        left, right = regions[row, col + 1], regions[row + 1, col + 1]
                    elif way == SOUTH:
                        left, right = regions[row + 1, col + 1], regions[row + 1, col]
                    elif way == WEST:
                        left, right = regions[row + 1, col], regions[row, col]
                    else:
                        left, right = regions[row, col], regions[row, col + 1]
                    sides[count, 0], sides[count, 1] = left, right
                    ends[count, 0] = (top + row) * width + col
                    directions[count, 0] = way
                    nodes[count, 0] = code & _NODE != 0
                    points[filled, 0], points[filled, 1] = top + row, col
                    filled += 1
                    while True:
                        corners[row, col] &= ~(1 << way) & 255
                        row += row_steps[way]
                        col += col_steps[way]
                        if row == lines:
                            break
                        corners[row, col] &= ~(1 << (way + 2 & 3)) & 255
                        here = corners[row, col]
                        if here & _NODE or here & _SIDES == 0:
                            break
                        if row == 0 and not first and here & (1 << NORTH):
                            break
                        if not here >> way & 1:
                            points[filled, 0], points[filled, 1] = top + row, col
                            filled += 1
                            way = way + 1 & 3 if here >> (way + 1 & 3) & 1 else way + 3 & 3
                    ends[count, 1] = (top + row) * width + col
                    directions[count, 1] = way
                    nodes[count, 1] = row < lines and corners[row, col] & _NODE != 0
                    points[filled, 0], points[filled, 1] = top + row, col
                    filled += 1
                    count += 1
                    offsets[count] = filled
    return (
        sides[:count].copy(),
        ends[:count].copy(),
        directions[:count].copy(),
        nodes[:count].copy(),
        offsets[: count + 1].copy(),
        points[:filled].copy(),
    )
