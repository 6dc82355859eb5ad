from __future__ import annotations

import numpy as np
import pytest
import shapely
from class_maps import (
    class_map,
    class_maps,
    geometries,
    lines,
    rings,
    turns,
    whole_arcs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsseg.ops.arcs import ELSEWHERE, OUTSIDE, Pieces, concatenated, take
from rsseg.ops.regions import find_regions
from rsseg.ops.rings import Polygons, assemble
from rsseg.ops.visvalingam import simplify

Point = tuple[int, int]
HUGE = 10**9
LIMITS = st.sampled_from([1, 2, 3, 5, 9, 20, 200, HUGE])


def simplified(classes: NDArray[np.uint8], limit: int) -> Polygons:
    arcs, bits = whole_arcs(classes)
    return assemble(simplify(arcs, bits, limit), len(find_regions(classes)))


def doubled(a: Point, b: Point, c: Point) -> int:
    """Return twice the area of a triangle; positive if b is left of the way from a to c."""
    return (c[0] - a[0]) * (b[1] - a[1]) - (c[1] - a[1]) * (b[0] - a[0])


def in_triangle(point: Point, a: Point, b: Point, c: Point) -> bool:
    """Return whether a point lies in a triangle or on its rim, also in one that is flat."""
    turns = [doubled(p, point, q) for p, q in ((a, b), (b, c), (c, a))]
    if not (min(turns) >= 0 or max(turns) <= 0):
        return False
    return all(min(axis) <= at <= max(axis) for at, *axis in zip(point, a, b, c, strict=True))


def slowly(line: list[Point], occupied: set[Point], limit: int) -> list[Point]:
    """The rule word for word: everything is measured anew for each point that goes."""
    line, refused = list(line), set[tuple[Point, Point, Point]]()
    original = {point: place for place, point in enumerate(line[:-1])}
    occupied = set(occupied)
    while True:
        triples = zip(line, line[1:], line[2:], strict=False)
        waiting = [
            (abs(doubled(*triple)), original[triple[1]], triple)
            for triple in triples
            if abs(doubled(*triple)) < limit and triple not in refused
        ]
        if not waiting or (line[0] == line[-1] and len(line) == 4):
            return line
        _, _, (one, point, other) = min(waiting)
        straight = one[0] == other[0] or one[1] == other[1]
        last_on_the_right = len(line) == 3 and (straight or doubled(one, point, other) < 0)
        blocked = any(
            in_triangle(corner, one, point, other) for corner in occupied - {one, point, other}
        )
        if blocked or last_on_the_right:
            refused.add((one, point, other))
        else:
            line.remove(point)
            occupied.remove(point)


@given(classes=class_maps(14), limit=LIMITS)
def test_the_rule_word_for_word(classes: NDArray[np.uint8], limit: int) -> None:
    labels = find_regions(classes).labels
    occupied = {(row, col) for row, col in np.argwhere(turns(labels)).tolist()}
    arcs, bits = whole_arcs(classes)
    result = lines(simplify(arcs, bits, limit))
    for line, sides, found in zip(lines(arcs), arcs.sides, result, strict=True):
        expected = line if OUTSIDE in sides else slowly(line, occupied, limit)
        assert found == expected


@given(classes=class_maps(24), limit=LIMITS)
def test_the_map_stays_whole(classes: NDArray[np.uint8], limit: int) -> None:
    before = assemble(whole_arcs(classes)[0], len(find_regions(classes)))
    after = simplified(classes, limit)
    shapes = geometries(after)
    assert shapely.is_valid(shapes).all()
    assert shapely.coverage_is_valid(shapes)
    assert (after.doubled_area > 0).all()
    assert after.doubled_area.sum() == before.doubled_area.sum()  # so nothing overlaps, as …
    covered, expected = shapely.union_all(shapes), shapely.union_all(geometries(before))
    assert shapely.equals(covered, expected)  # … all is covered, and nothing else
    np.testing.assert_array_equal(shapely.area(shapes) * 2, after.doubled_area)
    for index in range(len(shapes)):
        assert len(rings(after, index)) == len(rings(before, index))
        assert rings(after, index)[1:] == sorted(rings(after, index)[1:])
        points = {point for ring in rings(before, index) for point in ring}
        for ring in rings(after, index):
            assert points.issuperset(ring)
            assert len(set(ring)) == len(ring) - 1 >= 3
            assert ring[0] == ring[-1] == min(ring)


@given(classes=class_maps(24), limit=LIMITS)
def test_what_lies_along_no_class_stays_as_it_is(classes: NDArray[np.uint8], limit: int) -> None:
    arcs, bits = whole_arcs(classes)
    outer = (arcs.sides == OUTSIDE).any(axis=1)
    before, after = take(arcs, outer), take(simplify(arcs, bits, limit), outer)
    assert lines(after) == lines(before)


@settings(max_examples=50)
@given(classes=class_maps(24), limit=LIMITS, seed=st.integers(0, 99))
def test_each_arc_comes_out_the_same_in_any_order_and_by_itself(
    classes: NDArray[np.uint8], limit: int, seed: int
) -> None:
    arcs, bits = whole_arcs(classes)
    expected = lines(simplify(arcs, bits, limit))
    order = np.random.default_rng(seed).permutation(len(expected))
    if len(order):
        each = [take(arcs, np.arange(len(order)) == index) for index in order]
        shuffled = simplify(concatenated(each), bits, limit)
        assert lines(shuffled) == [expected[index] for index in order]
        assert lines(simplify(each[0], bits, limit)) == [expected[order[0]]]


@given(classes=class_maps(24), limit=LIMITS)
def test_the_corners_are_afterwards_as_they_were(classes: NDArray[np.uint8], limit: int) -> None:
    arcs, bits = whole_arcs(classes)
    before, points = bits.copy(), arcs.points.copy()
    simplify(arcs, bits, limit)
    np.testing.assert_array_equal(bits, before)
    np.testing.assert_array_equal(arcs.points, points)


def inner_lines(arcs: Pieces) -> list[list[Point]]:
    """The arcs with a class on both sides."""
    return lines(take(arcs, (arcs.sides != OUTSIDE).all(axis=1)))


def thinned(limit: int, *rows: str) -> list[list[Point]]:
    arcs, bits = whole_arcs(class_map(*rows))
    return inner_lines(simplify(arcs, bits, limit))


STAIRCASE = "100", "110", "111"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [(0, 1), (1, 1), (1, 2), (2, 2), (2, 3)]),  # every triangle is half a pixel
        # The first two steps go; what they leave of the third is a pixel.
        (2, [(0, 1), (2, 2), (2, 3)]),
        # The last point lies on the right of the way, and stays.
        (3, [(0, 1), (2, 2), (2, 3)]),
        (HUGE, [(0, 1), (2, 2), (2, 3)]),
    ],
)
def test_a_staircase(limit: int, expected: list[Point]) -> None:
    assert thinned(limit, *STAIRCASE) == [expected]


@pytest.mark.parametrize(
    ("limit", "expected"), [(2, [(0, 2), (2, 1), (2, 0)]), (3, [(0, 2), (2, 0)])]
)
def test_a_staircase_to_the_left_becomes_straight(limit: int, expected: list[Point]) -> None:
    # From (0, 2) by (1, 2), (1, 1), (2, 1) to (2, 0).
    assert thinned(limit, *(row[::-1].translate({48: 49, 49: 48}) for row in STAIRCASE)) == [
        expected
    ]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [(0, 3), (3, 3), (3, 4), (4, 4), (4, 6)]),
        # (3, 4) has 1; without it (3, 3) still has 3, and (4, 4) still 2
        (2, [(0, 3), (3, 3), (4, 4), (4, 6)]),
        # (4, 4) is next; now (3, 3) has 9, and is on the right besides
        (3, [(0, 3), (3, 3), (4, 6)]),
        (9, [(0, 3), (3, 3), (4, 6)]),
    ],
)
def test_the_smallest_triangle_goes_first(limit: int, expected: list[Point]) -> None:
    drawn = "111000", "111000", "111000", "111100", "111111", "111111"
    assert thinned(limit, *drawn) == [expected]


@pytest.mark.parametrize(
    ("limit", "island", "stays"),
    [
        (16, (), True),  # twice the area of the triangle (1, 0), (1, 4), (5, 4)
        (17, (), False),
        (HUGE, (2, 2), True),  # in the triangle
        (HUGE, (3, 1), True),  # touches its rim at (3, 2)
        (HUGE, (4, 1), False),  # beside it
        (HUGE, (0, 3), True),  # touches its rim at (1, 3) from outside
    ],
)
def test_a_corner_stays_where_something_lies_in_its_triangle(
    limit: int, island: tuple[int, ...], stays: bool
) -> None:
    classes = class_map("000000", "111100", "111100", "111100", "111100")
    if island:
        classes[island] = 2
    arcs, bits = whole_arcs(classes)
    points = {point for line in inner_lines(simplify(arcs, bits, limit)) for point in line}
    assert ((1, 4) in points) == stays


@pytest.mark.parametrize(
    ("island", "expected"),
    [
        ((4, 3), [(1, 5), (1, 1), (9, 1), (9, 5)]),  # touches both triangles
        ((4, 4), [(1, 5), (9, 1), (9, 5)]),  # half a pixel to the right of its long side
    ],
)
def test_the_long_side_of_a_triangle_is_exact(
    island: tuple[int, int], expected: list[Point]
) -> None:
    drawn = "00000", *["01111"] * 8, "00000"
    classes = class_map(*drawn)
    classes[island] = 2
    arcs, bits = whole_arcs(classes)
    assert expected in inner_lines(simplify(arcs, bits, 33))


@pytest.mark.parametrize(
    ("island", "expected"),
    [((6, 3), [(5, 0), (5, 6), (5, 12)]), ((5, 3), [(5, 0), (2, 6), (5, 12)])],
)
def test_a_corner_on_the_lower_side_of_a_triangle_is_in_its_way(
    island: tuple[int, int], expected: list[Point]
) -> None:
    # A bump on a line; the island touches the line below it, or does not.
    drawn = *["0" * 12] * 2, *["001111000000"] * 3, *["1" * 12] * 4
    classes = class_map(*drawn)
    classes[island] = 2
    arcs, bits = whole_arcs(classes)
    assert expected in lines(simplify(arcs, bits, HUGE))


LENS = "000", "120", "111"
"""A pixel whose two arcs both run from (1, 1) to (2, 2)."""


def test_of_two_arcs_between_two_nodes_the_one_on_the_left_becomes_straight() -> None:
    result = simplified(class_map(*LENS), HUGE)
    assert rings(result, 2) == [[(1, 1), (2, 1), (2, 2), (1, 1)]]
    assert result.doubled_area[2] == 1


@pytest.mark.parametrize(
    ("drawn", "ring"),
    [
        # a bump on a line in a row, above it; the other arc was straight from the start
        (["0000", "0220", "1111"], [(1, 3), (2, 1), (2, 3), (1, 3)]),
        # and on a line in a column, to the east of it: on the left on the way down
        (["100", "120", "120", "100"], [(1, 1), (3, 1), (3, 2), (1, 1)]),
    ],
)
def test_between_nodes_in_one_row_or_column_a_point_stays(
    drawn: list[str], ring: list[Point]
) -> None:
    classes = class_map(*drawn)
    (index,) = np.flatnonzero(classes.ravel()[find_regions(classes).first[1:]] == 2)
    assert rings(simplified(classes, HUGE), index) == [ring]


def test_an_island_keeps_three_points() -> None:
    result = simplified(class_map("00000", "01110", "01110", "00000"), HUGE)
    assert rings(result, 1) == [[(1, 1), (3, 1), (3, 4), (1, 1)]]
    assert rings(result, 0)[1] == rings(result, 1)[0][::-1]


def test_an_arc_from_a_node_to_itself_keeps_two_points_besides() -> None:
    # The islands touch at (3, 3), the only node.
    classes = class_map("000000", "011000", "011000", "000110", "000110", "000000")
    result = simplified(classes, HUGE)
    assert [len(ring) for index in (1, 2) for ring in rings(result, index)] == [4, 4]
    assert all((3, 3) in rings(result, index)[0] for index in (1, 2))


def test_sides_elsewhere_are_simplified_and_sides_outside_are_not() -> None:
    arcs, bits = whole_arcs(class_map(*STAIRCASE))
    inner = take(arcs, (arcs.sides != OUTSIDE).all(axis=1))
    for side, count in ((ELSEWHERE, 3), (OUTSIDE, 5)):
        for column in (0, 1):
            sides = inner.sides.copy()
            sides[:, column] = side
            assert len(simplify(inner._replace(sides=sides), bits, 2).points) == count


def test_areas_may_need_more_than_32_bits() -> None:
    side = 2**16
    points = np.array([[0, 0], [0, side], [side, side], [side, 0], [0, 0]], np.int32)
    arcs, _ = whole_arcs(class_map("000", "010", "000"))
    circle = take(arcs, (arcs.sides != OUTSIDE).all(axis=1))._replace(points=points)
    bits = np.zeros((side + 1, side // 8 + 1), np.uint8)
    assert lines(simplify(circle, bits, 2**32)) == lines(circle)
