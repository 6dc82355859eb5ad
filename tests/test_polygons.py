from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import shapely
from class_maps import (
    NODATA,
    ArrayPixels,
    MemoryKeeper,
    around,
    class_map,
    class_maps,
    degrees,
    geometries,
    lines,
    rings,
    strips_of,
    turns,
    whole_arcs,
)
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_sieve import sieved

from rsseg.io.pieces import CornerFile, PieceFiles
from rsseg.ops.arcs import EAST, NORTH, SOUTH, WEST, Pieces, take, trace
from rsseg.ops.regions import find_regions
from rsseg.ops.rings import Polygons, assemble, join
from rsseg.ops.strips import Seams
from rsseg.progress import SILENT
from rsseg.stages.polygonise import (
    Batch,
    default_strip_rows,
    doubled_limit,
    polygonise,
)

PINCHED = {
    "checkerboard": ["0101", "1010", "0101"],
    "checkerboard with nodata": [".1.1", "1.1.", ".1.1"],
    "touches itself at a corner": ["11100", "10100", "11011", "00111"],
    "hole touches the exterior at a corner": ["1111.", "1011.", "1101.", "1111."],
    "hole touches the edge of the map at a corner": ["011", "101", "111"],
    "holes touch at a corner": ["11111", "10111", "11011", "11101", "11111"],
    "holes around a pixel": ["11111", "11011", "10101", "11011", "11111"],
    "ring around a corner twice": ["000000", "011100", "010100", "011010", "000110", "000000"],
    "islands in islands": [
        "1111111",
        "1000001",
        "1011101",
        "1010101",
        "1011101",
        "1000001",
        "1111111",
    ],
    "three meet": ["001", "201", "221"],
    "nodata holes": ["0000", "0.10", "01.0", "0000"],
    "one pixel": ["0"],
    "one row": ["0.0110"],
    "one column": list("0.0110"),
    "nothing": ["..", ".."],
}
pinched = pytest.mark.parametrize("drawn", PINCHED.values(), ids=PINCHED.keys())


def polygons_of(classes: NDArray[np.uint8]) -> Polygons:
    return assemble(whole_arcs(classes)[0], len(find_regions(classes)))


def as_records(batch: Batch) -> list[tuple[Any, ...]]:
    """All that is said of each polygon."""
    found, polygons = batch.regions, batch.polygons
    return [
        (
            int(found.first[index]),
            int(found.classes[index]),
            tuple(found.sums[index].tolist()),
            int(polygons.doubled_area[index]),
            tuple(tuple(ring) for ring in rings(polygons, index)),
        )
        for index in range(len(found.first))
    ]


def records(
    classes: NDArray[np.uint8], rows: int, tolerance: float = 0, workers: int = 0
) -> list[tuple[Any, ...]]:
    """Polygonise in strips; everything there is to say of all polygons, by first pixels."""
    with TemporaryDirectory() as scratch, SILENT.step("", 1, "") as step:
        batches = polygonise(
            ArrayPixels(classes),
            Path(scratch),
            step,
            confidence=ArrayPixels(classes * np.uint8(37)),
            strip_rows=rows,
            tolerance=tolerance,
            workers=workers,
        )
        found = [as_records(batch) for batch in batches]
    assert all(group == sorted(group) for group in found)
    return sorted(record for group in found for record in group)


def assert_right(classes: NDArray[np.uint8]) -> None:
    labels, polygons = find_regions(classes).labels, polygons_of(classes)
    shapes = geometries(polygons)
    assert len(shapes) == labels.max()
    assert shapely.is_valid(shapes).all(), shapely.is_valid_reason(shapes)
    assert shapely.coverage_is_valid(shapes)
    rows, cols = np.indices(labels.shape)
    for index, shape in enumerate(shapes):
        inside = labels == index + 1
        centres = shapely.contains_xy(shape, cols + 0.5, -rows - 0.5)
        np.testing.assert_array_equal(centres, inside)
        assert polygons.doubled_area[index] == 2 * inside.sum() == 2 * shape.area
        assert_rings_in_order(polygons, index)
        drawn = Counter(point for ring in rings(polygons, index) for point in ring[:-1])
        assert drawn == expected_points(labels, index + 1)


def assert_rings_in_order(polygons: Polygons, index: int) -> None:
    outlines = rings(polygons, index)
    for place, ring in enumerate(outlines):
        assert ring[0] == ring[-1] == min(ring)
        assert len(set(ring)) == len(ring) - 1, "touches itself"
        ways = shapely.LinearRing([(col, -row) for row, col in ring])
        assert shapely.is_ccw(ways) == (place == 0)
    assert outlines[1:] == sorted(outlines[1:], key=lambda ring: ring[0])


def expected_points(labels: NDArray[np.int32], region: int) -> dict[tuple[int, int], int]:
    """Return the points of a polygon and how often it passes them, corner by corner."""
    mask = labels == region
    a, b, c, d = around(mask)
    once = turns(mask) | ((degrees(mask) > 0) & (degrees(labels) > 2))
    times = once.astype(int) + ((a == d) & (b == c) & (a != b))
    return {(int(row), int(col)): int(times[row, col]) for row, col in np.argwhere(once)}


@given(classes=class_maps())
def test_polygons_are_their_pixels_with_a_point_at_every_node(classes: NDArray[np.uint8]) -> None:
    assert_right(classes)


@pinched
def test_polygons_where_regions_pinch(drawn: list[str]) -> None:
    assert_right(class_map(*drawn))


@pinched
def test_a_polygon_is_the_union_of_its_pixels(drawn: list[str]) -> None:
    labels = find_regions(class_map(*drawn)).labels
    for index, shape in enumerate(geometries(polygons_of(class_map(*drawn)))):
        rows, cols = np.nonzero(labels == index + 1)
        pixels = shapely.box(cols, -rows - 1, cols + 1, -rows)
        assert shapely.equals(shapely.union_all(pixels), shape)


def test_a_polygon_with_holes_point_by_point() -> None:
    polygons = polygons_of(class_map("1111", "1.01", "1111"))
    assert rings(polygons, 0) == [
        [(0, 0), (3, 0), (3, 4), (0, 4), (0, 0)],
        [(1, 1), (1, 2), (1, 3), (2, 3), (2, 2), (2, 1), (1, 1)],
    ]
    assert rings(polygons, 1) == [[(1, 2), (2, 2), (2, 3), (1, 3), (1, 2)]]
    assert polygons.doubled_area.tolist() == [20, 2]


def test_a_hole_that_touches_the_exterior_is_a_ring_of_its_own() -> None:
    classes = class_map("1110", "1010", "1101", "1111")
    assert rings(polygons_of(classes), 0) == [
        [(0, 0), (4, 0), (4, 4), (2, 4), (2, 3), (0, 3), (0, 0)],
        [(1, 1), (1, 2), (2, 2), (2, 1), (1, 1)],
        [(2, 2), (2, 3), (3, 3), (3, 2), (2, 2)],
    ]


def test_class_0_is_kept_and_nodata_is_not_drawn() -> None:
    (zero,) = records(class_map(".0", "00"), 1)
    assert zero[:3] == (1, 0, (3, 3, 0, 3))
    assert records(class_map(".."), 1) == []
    assert {record[1] for record in records(class_map("0.1", ".5."), 1)} == {0, 1, 5}


def test_some_polygons_of_many() -> None:
    polygons = polygons_of(class_map("1111", "1.01", "1111", "2.2."))
    some = polygons.take(np.array([3, 0]))
    assert [rings(some, 0), rings(some, 1)] == [rings(polygons, 3), rings(polygons, 0)]
    assert some.doubled_area.tolist() == [2, 20]
    none = polygons.take(np.array([], np.int64))
    assert none.polygon_offsets.tolist() == none.ring_offsets.tolist() == [0]


@given(classes=class_maps())
def test_corners_and_nodes_counted_by_hand(classes: NDArray[np.uint8]) -> None:
    labels = find_regions(classes).labels
    pieces, bits = trace(classes, labels, None, top=0, last=True)
    np.testing.assert_array_equal(bits, turns(labels))
    width, nodes = classes.shape[1] + 1, degrees(labels)
    ends = Counter(divmod(int(end), width) for end in pieces.ends[pieces.nodes])
    assert ends == {(row, col): nodes[row, col] for row, col in np.argwhere(nodes > 2).tolist()}


@given(classes=class_maps())
def test_arcs_know_what_is_beside_them(classes: NDArray[np.uint8]) -> None:
    labels = find_regions(classes).labels
    arcs, _ = whole_arcs(classes)
    drawn = Counter[frozenset[tuple[int, int]]]()
    for line, (left, right), way in zip(lines(arcs), arcs.sides, arcs.directions, strict=True):
        for one, other in pairwise(line):
            for side, region in side_by_side(labels, one, other):
                assert region - 1 == (left, right)[side]
            length = abs(one[0] - other[0]) + abs(one[1] - other[1])
            step = [(b - a) // length for a, b in zip(one, other, strict=True)]
            for at in range(length):
                ends = [(one[0] + k * step[0], one[1] + k * step[1]) for k in (at, at + 1)]
                drawn[frozenset(ends)] += 1
        assert [heading(*line[:2]), heading(*line[-2:])] == way.tolist()
    assert set(drawn.values()) <= {1}
    padded = np.pad(labels, 1)
    sides = (np.diff(padded, axis=0) != 0).sum() + (np.diff(padded, axis=1) != 0).sum()
    assert len(drawn) == sides


def test_a_strip_names_regions_above_by_their_columns() -> None:
    classes, above = class_map("0011"), class_map("0.21")[0]
    pieces, _ = trace(classes, find_regions(classes).labels, above, top=5, last=False)
    drawn = dict(zip(map(tuple, lines(pieces)), pieces.sides.tolist(), strict=True))
    assert drawn == {
        ((5, 0), (6, 0)): [1, 0],
        ((5, 1), (5, 2)): [0, 1],  # nodata above
        ((5, 2), (5, 3)): [-3, 2],  # the region above in column 2
        ((5, 2), (6, 2)): [2, 1],
        ((5, 4), (6, 4)): [0, 2],
    }


def heading(one: tuple[int, int], other: tuple[int, int]) -> int:
    if one[0] == other[0]:
        return EAST if one[1] < other[1] else WEST
    return SOUTH if one[0] < other[0] else NORTH


def side_by_side(
    labels: NDArray[np.int32], one: tuple[int, int], other: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield 0 (left) or 1 (right) and the region there, for each pixel along a straight line."""
    padded = np.pad(labels, 1)
    way = heading(one, other)
    low, high = min(one, other), max(one, other)
    if way in (EAST, WEST):
        for col in range(low[1], high[1]):
            upper, lower = padded[low[0] : low[0] + 2, col + 1]
            yield int(way == WEST), upper
            yield int(way == EAST), lower
    else:
        for row in range(low[0], high[0]):
            west, east = padded[row + 1, low[1] : low[1] + 2]
            yield int(way == SOUTH), west
            yield int(way == NORTH), east


STRIPS = (1, 2, 3, 7)


@given(classes=class_maps(24), tolerance=st.sampled_from([0, 1, 1.5, 4, 1000]))
def test_strips_change_no_polygon(classes: NDArray[np.uint8], tolerance: float) -> None:
    whole = records(classes, len(classes), tolerance)
    for rows in STRIPS:
        assert records(classes, rows, tolerance) == whole


@pytest.mark.parametrize("seed", range(4))
def test_strips_change_no_polygon_of_noise(seed: int) -> None:
    classes = np.random.default_rng(seed).integers(0, 3, (50, 50)).astype(np.uint8)
    for tolerance in (4, 1000):
        whole = records(classes, 50, tolerance)
        for rows in (1, 7):
            assert records(classes, rows, tolerance) == whole


@pinched
def test_strips_change_no_pinched_polygon(drawn: list[str]) -> None:
    tall = np.repeat(class_map(*drawn), 2, axis=0)
    for rows in STRIPS:
        assert records(tall, rows) == records(tall, len(tall))


def test_holes_that_begin_at_one_corner_are_in_the_same_order_in_all_strips() -> None:
    # Without (2, 4) the hole on the left begins at (2, 5), as does that on the right.
    classes = class_map("1111111", "1110011", "1110101", "1100111", "1001111", "1001111", "1111111")
    whole = records(classes, 7, 900)
    assert [ring[0] for ring in whole[0][-1]] == [(0, 0), (2, 5), (2, 5)]
    for rows in STRIPS:
        assert records(classes, rows, 900) == whole


def test_threads_change_no_polygon() -> None:
    classes = np.random.default_rng(5).integers(0, 3, (60, 20)).astype(np.uint8)
    assert records(classes, 4, 2, workers=3) == records(classes, 4, 2)


@given(classes=class_maps(24), rows=st.sampled_from(STRIPS))
def test_arcs_do_not_depend_on_how_they_were_cut(classes: NDArray[np.uint8], rows: int) -> None:
    def outlines(height: int) -> Counter[tuple[Any, ...]]:
        found, seams = Counter[tuple[Any, ...]](), Seams(classes.shape[1], MemoryKeeper())
        for strip in strips_of(classes, height):
            for done in seams.add(strip):
                arcs = join(done.pieces)
                drawn, ways, nodes = lines(arcs), arcs.directions.tolist(), arcs.nodes.tolist()
                for arc, side in np.argwhere(arcs.sides >= 0).tolist():
                    region = int(done.first[arcs.sides[arc, side]])
                    found[side, region, *ways[arc], *nodes[arc], *drawn[arc]] += 1
        return found

    assert outlines(rows) == outlines(len(classes))


def test_arcs_run_from_the_lower_corner_and_set_out_in_the_first_direction() -> None:
    arcs, _ = whole_arcs(class_map("1110", "1000", "1011", "1111"))
    for line, ends, ways in zip(lines(arcs), arcs.ends, arcs.directions, strict=True):
        assert line[0] <= line[-1]
        assert ends[0] <= ends[1]
        if line[0] == line[-1]:
            assert ways[0] < ways[1] ^ 2


def test_regions_of_strips_know_their_pixels_and_values() -> None:
    classes = class_map("01", "01", "11")
    values = np.array([[10, 20], [255, 30], [40, 255]], np.uint8)
    seams = Seams(2, MemoryKeeper())
    *early, (found,) = [list(seams.add(strip)) for strip in strips_of(classes, 1, values)]
    assert [len(group.first) for groups in early for group in groups] == [0, 0]
    assert found.first.tolist() == [0, 1]
    assert found.classes.tolist() == [0, 1]
    assert found.sums.tolist() == [[2, 2, 10, 1], [4, 4, 90, 3]]


def test_a_region_is_finished_as_soon_as_no_strip_below_continues_it() -> None:
    classes = class_map("010", "212", "212", "333")
    with TemporaryDirectory() as scratch, SILENT.step("", 1, "") as step:
        batches = polygonise(ArrayPixels(classes), Path(scratch), step, strip_rows=1, workers=0)
        found = [batch.regions.first.tolist() for batch in batches]
    assert found == [[], [0, 2], [], [1, 3, 5, 9]]


@given(classes=class_maps(24), rows=st.sampled_from([1, 2, 3]))
@example(class_map("0001", "1101", "2101", "1101", "0001", "3333"), 1)
def test_only_strips_of_unfinished_regions_stay_on_disk(
    classes: NDArray[np.uint8], rows: int
) -> None:
    labels = find_regions(classes).labels
    with TemporaryDirectory() as scratch:
        seams = Seams(classes.shape[1], PieceFiles(Path(scratch), memory=0))
        for strip in strips_of(classes, rows):
            list(seams.add(strip))
            going_on = set() if strip.last else set(labels[strip.top + strip.shape[0] - 1]) - {0}
            begun = [np.argwhere(labels == number)[0, 0] // rows for number in going_on]
            expected = range(min(begun, default=strip.index + 1), strip.index + 1)
            files = sorted(path.name for path in Path(scratch).iterdir())
            assert files == [f"{index:06d}.npz" for index in expected]
        assert files == []


@given(classes=class_maps(24), points=st.sampled_from([1, 30, 200]))
def test_groups_change_no_polygon(classes: NDArray[np.uint8], points: int) -> None:
    at_once = Seams(classes.shape[1], MemoryKeeper())
    in_groups = Seams(classes.shape[1], MemoryKeeper(), points)
    for strip in strips_of(classes, 7):
        (whole,) = at_once.add(strip)
        groups = list(in_groups.add(strip))
        batches = [Batch(found, assemble(join(found.pieces), len(found.first))) for found in groups]
        expected = as_records(Batch(whole, assemble(join(whole.pieces), len(whole.first))))
        assert [record for batch in batches for record in as_records(batch)] == expected
        if points == 1 and expected:
            assert [len(found.first) for found in groups] == [1] * len(expected)


def test_points_in_all_strips_count_for_the_size_of_a_group() -> None:
    tall = class_map("01").repeat(40, axis=0)
    for points, expected in ((50, [1, 1]), (1000, [2])):
        seams = Seams(2, MemoryKeeper(), points)
        groups = [group for strip in strips_of(tall, 1) for group in seams.add(strip)]
        assert [len(found.first) for found in groups if len(found.first)] == expected


@given(classes=class_maps(24), rows=st.sampled_from([1, 2, 3]))
def test_pieces_come_back_from_disk_as_from_memory(classes: NDArray[np.uint8], rows: int) -> None:
    with TemporaryDirectory() as scratch:
        from_memory = Seams(classes.shape[1], MemoryKeeper())
        from_disk = Seams(classes.shape[1], PieceFiles(Path(scratch), memory=1000))
        for strip in strips_of(classes, rows):
            for one, other in zip(from_memory.add(strip), from_disk.add(strip), strict=True):
                for expected, found in zip(one.pieces, other.pieces, strict=True):
                    np.testing.assert_array_equal(found, expected)


def some_pieces() -> Pieces:
    classes = class_map("0010", "0110", "0000")
    return trace(classes, find_regions(classes).labels, None, top=0, last=True)[0]


def test_pieces_on_disk_are_plain_arrays(tmp_path: Path) -> None:
    files, pieces = PieceFiles(tmp_path, memory=0), some_pieces()
    files.keep(0, pieces)
    files.keep(1, take(pieces, np.zeros(len(pieces.ends), bool)))
    with np.load(tmp_path / "000000.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted(Pieces._fields)
        assert not any(arrays[name].dtype.hasobject for name in arrays)
    for kept, expected in zip(files.kept(0), pieces, strict=True):
        assert kept.dtype == expected.dtype
        np.testing.assert_array_equal(kept, expected)
    assert len(files.kept(1).ends) == 0
    files.drop(1)
    files.drop(1)
    assert [path.name for path in tmp_path.iterdir()] == ["000001.npz"]


def test_the_oldest_pieces_go_to_disk_when_memory_runs_out(tmp_path: Path) -> None:
    pieces = some_pieces()
    size = sum(column.nbytes for column in pieces)
    files = PieceFiles(tmp_path, memory=2 * size)
    names = []
    for strip in range(4):
        files.keep(strip, pieces)
        names.append(sorted(path.stem for path in tmp_path.iterdir()))
    assert names == [[], [], ["000000"], ["000000", "000001"]]
    for strip in range(4):
        np.testing.assert_array_equal(files.kept(strip).points, pieces.points)
    files.drop(3)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(files.kept(3).points, pieces.points)
    files.drop(4)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16])
def test_corner_bits_on_disk_start_empty_and_remember(tmp_path: Path, width: int) -> None:
    file = CornerFile(tmp_path / "corners", (2, width))
    assert file.open().shape == (3, math.ceil((width + 1) / 8))
    assert not file.open().any()
    file.open()[1, -1] = 5
    assert file.open()[:, -1].tolist() == [0, 5, 0]


@pytest.mark.parametrize(
    ("tolerance", "limit"),
    [(0.5, 1), (1, 2), (1.5, 5), (2, 8), (3, 18), (math.sqrt(5.25), 11), (1e300, 2**62)],
)
def test_triangles_smaller_than_the_square_of_the_tolerance_go(
    tolerance: float, limit: int
) -> None:
    assert doubled_limit(tolerance) == limit


@pytest.mark.parametrize(
    ("width", "rows"), [(1, 3_000_000), (1000, 3000), (46_875, 64), (46_876, 64), (10**7, 64)]
)
def test_default_strips_hold_some_million_pixels_or_some_rows(width: int, rows: int) -> None:
    assert default_strip_rows(width) == rows


def test_the_step_is_told_of_every_pixel() -> None:
    class Count:
        done = 0.0

        def advance(self, amount: float = 1, note: str | None = None) -> None:
            self.done += amount

    step, classes = Count(), class_map("010", "212", "212", "333")
    with TemporaryDirectory() as scratch:
        for _ in polygonise(ArrayPixels(classes), Path(scratch), step, strip_rows=3):
            pass
    assert step.done == classes.size


PLAIN = """
import json, sys
import numpy as np
import test_polygons
from rsseg.ops.regions import find_root
classes = np.array(json.loads(sys.argv[1]), np.uint8)
print(json.dumps(test_polygons.made_of(classes)))
assert not hasattr(find_root, "py_func"), "compiled"
"""


def made_of(classes: NDArray[np.uint8]) -> list[Any]:
    """What comes out of all compiled code."""
    return [records(classes, 4, 1.5), sieved(classes, 6, 4).tolist()]


def test_plain_python_gives_the_same() -> None:
    rng = np.random.default_rng(3)
    classes = np.kron(rng.integers(0, 3, (5, 5)), np.ones((3, 3))).astype(np.uint8)
    classes[rng.random(classes.shape) < 0.1] = NODATA
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(classes.tolist())],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(plain.stdout) == json.loads(json.dumps(made_of(classes)))
    assert plain.stderr == ""
