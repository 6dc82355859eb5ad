from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from class_maps import NODATA, ArrayPixels, class_map, class_maps
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsseg.grid import Window
from rsseg.io.pieces import Decisions, PixelFile
from rsseg.ops.regions import find_regions
from rsseg.ops.sieve import Clusters, Edges, Nodes, shared_edges
from rsseg.progress import SILENT
from rsseg.stages.sieve import PASSES, sieve


def sieved(
    classes: NDArray[np.uint8],
    least: int,
    rows: int | None = None,
    weights: NDArray[np.int64] | None = None,
    workers: int = 0,
) -> NDArray[np.uint8]:
    with TemporaryDirectory() as scratch, SILENT.step("", 1, "") as step:
        pixels = sieve(
            ArrayPixels(classes),
            Path(scratch),
            step,
            weights=np.ones(len(classes), np.int64) if weights is None else weights,
            least=least,
            strip_rows=rows or len(classes),
            workers=workers,
        )
        assert pixels.shape == classes.shape
        return pixels.read(Window(0, 0, *classes.shape))


class Slow:
    """The rule word for word, on pixels.

    A set of regions is known by the first pixel of its first region, and takes those that join it.
    A large set is one large region and what was merged into it; all others are small sets, also
    when they have grown.
    """

    def __init__(self, classes: NDArray[np.uint8], least: int, weights: NDArray[np.int64]) -> None:
        found = find_regions(classes)
        self.owner = np.where(found.labels > 0, found.first[found.labels], -1)
        self.classes = {int(first): int(classes.ravel()[first]) for first in found.first[1:]}
        area = found.sums(weights, None)[1:, 1].tolist()
        self.area = dict(zip(self.classes, area, strict=True))
        self.large = {first for first, size in self.area.items() if size >= least}
        self.least = least

    def shared(self, one: int) -> dict[int, int]:
        """Return how long an edge a set shares with each neighbour."""
        lengths: dict[int, int] = {}
        height, width = self.owner.shape
        for row, col in zip(*np.nonzero(self.owner == one), strict=True):
            for y, x in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                if 0 <= y < height and 0 <= x < width and self.owner[y, x] not in (one, -1):
                    other = int(self.owner[y, x])
                    lengths[other] = lengths.get(other, 0) + 1
        return lengths

    def run(self) -> NDArray[np.uint8]:
        alone: set[int] = set()
        while True:
            waiting = [
                (size, one)
                for one, size in self.area.items()
                if size < self.least and one not in self.large | alone
            ]
            if not waiting:
                break
            one = min(waiting)[1]
            lengths = self.shared(one)
            if lengths:
                self.merge(one, lengths)
            else:
                alone.add(one)
        table = {**self.classes, -1: NODATA}
        return np.vectorize(table.get, otypes=[np.uint8])(self.owner)

    def merge(self, one: int, lengths: dict[int, int]) -> None:
        best = max(lengths, key=lambda other: (lengths[other], -other))
        alike = [other for other in lengths if self.classes[other] == self.classes[best]]
        joined = [one, *(other for other in alike if other not in self.large)]
        hosts = [other for other in alike if other in self.large]
        host, new = (min(hosts) if hosts else min(joined)), self.classes[best]
        total = sum(self.area.pop(other) for other in joined)
        for other in joined:
            self.owner[self.owner == other] = host
            del self.classes[other]
        self.classes[host] = new
        self.area[host] = self.area.get(host, 0) + total


def assert_sieved(classes: NDArray[np.uint8], result: NDArray[np.uint8], least: int) -> None:
    np.testing.assert_array_equal(result == NODATA, classes == NODATA)
    ones = np.ones(len(classes), np.int64)
    before, after = find_regions(classes), find_regions(result)
    large = before.sums(ones, None)[:, 0] >= least
    large[0] = False
    kept = large[before.labels]
    np.testing.assert_array_equal(result[kept], classes[kept])
    sizes = after.sums(ones, None)[:, 0]
    for number in range(1, len(after) + 1):
        if sizes[number] < least:
            assert not neighbours(after.labels, number)


def neighbours(labels: NDArray[np.int32], number: int) -> set[int]:
    inside = np.pad(labels == number, 1)
    padded = np.pad(labels, 1)
    around = [np.roll(inside, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
    return {int(label) for edge in around for label in padded[edge & ~inside]} - {0}


LEAST = st.sampled_from([1, 2, 5, 12, 40])


@given(classes=class_maps(24), least=LEAST)
def test_small_regions_are_gone_and_the_rest_is_as_it_was(
    classes: NDArray[np.uint8], least: int
) -> None:
    assert_sieved(classes, sieved(classes, least), least)


@given(classes=class_maps(12), least=LEAST)
def test_the_rule_word_for_word(classes: NDArray[np.uint8], least: int) -> None:
    slow = Slow(classes, least, np.ones(len(classes), np.int64)).run()
    np.testing.assert_array_equal(sieved(classes, least), slow)


@given(classes=class_maps(12), least=LEAST, seed=st.integers(0, 99))
def test_the_area_of_a_pixel_may_differ_from_row_to_row(
    classes: NDArray[np.uint8], least: int, seed: int
) -> None:
    weights = np.random.default_rng(seed).integers(1, 5, len(classes))
    slow = Slow(classes, 3 * least, weights).run()
    for rows in (2, len(classes)):
        np.testing.assert_array_equal(sieved(classes, 3 * least, rows, weights), slow)


@given(classes=class_maps(24), least=LEAST)
def test_strips_change_no_pixel(classes: NDArray[np.uint8], least: int) -> None:
    whole = sieved(classes, least)
    for rows in (1, 2, 3, 7):
        np.testing.assert_array_equal(sieved(classes, least, rows), whole)


def test_threads_change_no_pixel() -> None:
    classes = np.random.default_rng(5).integers(0, 3, (60, 20)).astype(np.uint8)
    np.testing.assert_array_equal(sieved(classes, 9, 4, workers=3), sieved(classes, 9))


EXAMPLES = {
    "the longest shared edge wins": (2, ["000", "212", "222"], ["000", "222", "222"]),
    "not the larger neighbour": (
        2,
        ["22222", "20002", "20102", "22222"],
        ["22222", "20002", "20002", "22222"],
    ),
    "of equal edges that with the region that begins first": (
        2,
        ["000", "012", "222"],
        ["000", "002", "222"],
    ),
    "so also where its class is higher": (2, ["222", "210", "000"], ["222", "220", "000"]),
    "edges with regions of one class are not added up": (
        2,
        ["..2..", "..2..", "00100"],
        ["..2..", "..2..", "00200"],
    ),
    "a region as large as the limit stays": (2, ["001100"], ["001100"]),
    "a smaller one does not": (3, ["00011"], ["00000"]),
    "one between two of one class makes them one": (2, ["00100"], ["00000"]),
    "small ones become large together": (3, ["000110"], ["000111"]),
    "a chain of small ones takes the class of the second": (4, ["0123"], ["1111"]),
    "what has grown goes on while it is small": (5, ["012222222"], ["222222222"]),
    "a small one of the same class comes along": (3, ["000", "212", "111"], ["000", "111", "111"]),
    "what merges with two large ones counts with the first": (
        2,
        ["...3", ".113", "1243", "1..."],
        ["...3", ".113", "1113", "1..."],
    ),
    "nothing crosses nodata": (2, ["0.111"], ["0.111"]),
    "nothing crosses a corner": (2, ["0.", ".1"], ["0.", ".1"]),
    "a region without neighbour stays": (9, ["...", ".5.", "..."], ["...", ".5.", "..."]),
    "a map of one small region stays": (9, ["11", "11"], ["11", "11"]),
    "nodata only": (9, ["..", ".."], ["..", ".."]),
    "nothing is small": (1, ["01", "10"], ["01", "10"]),
}


@pytest.mark.parametrize(
    ("least", "before", "after"), EXAMPLES.values(), ids=[key.replace(" ", "-") for key in EXAMPLES]
)
def test_worked_examples(least: int, before: list[str], after: list[str]) -> None:
    for rows in (1, 2, len(before)):
        assert sieved(class_map(*before), least, rows).tolist() == class_map(*after).tolist()


def test_areas_of_rows_decide_what_is_small() -> None:
    column = class_map("0", "1", "1")
    assert sieved(column, 5, 1, np.array([10, 1, 1])).tolist() == [[0], [0], [0]]
    assert sieved(column, 5, 1, np.array([1, 3, 3])).tolist() == [[1], [1], [1]]


def test_a_cluster_over_many_strips_is_decided_as_one() -> None:
    column = np.arange(40, dtype=np.uint8)[:, None].repeat(2, axis=1)
    whole = sieved(column, 9)
    assert_sieved(column, whole, 9)
    np.testing.assert_array_equal(sieved(column, 9, 1), whole)


def test_a_region_waits_for_its_longer_leg() -> None:
    # In the second strip of three rows the left leg ends, and the right one goes on.
    drawn = [*["00000"] * 2, "02220", "02020", "00020", *["11121"] * 8, "11111"]
    after = [*["00000"] * 2, "01110", "01010", "00010", *["11111"] * 9]
    for rows in (1, 2, 3, 14):
        assert sieved(class_map(*drawn), 15, rows).tolist() == class_map(*after).tolist()


@given(classes=class_maps(16), least=LEAST)
def test_shared_edges_are_counted_side_by_side(classes: NDArray[np.uint8], least: int) -> None:
    found = find_regions(classes)
    small = found.sums(np.ones(len(classes), np.int64), None)[:, 0] < least
    small[0] = False
    assert_edges(found.labels, small)


def test_more_shared_edges_than_were_expected() -> None:
    rows, cols = np.indices((40, 45))
    labels = find_regions(((rows + cols) % 2).astype(np.uint8)).labels
    assert_edges(labels, np.arange(labels.max() + 1) > 0)


def assert_edges(labels: NDArray[np.int32], small: NDArray[np.bool_]) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for one, other in ((labels[:-1], labels[1:]), (labels[:, :-1], labels[:, 1:])):
        for pair in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            if pair[0] != pair[1] and 0 not in pair and (small[pair[0]] or small[pair[1]]):
                expected[min(pair), max(pair)] += 1
    edges = shared_edges(labels, small).tolist()
    assert edges == [[*pair, length] for pair, length in sorted(expected.items())]


def test_a_cluster_waits_for_all_its_regions() -> None:
    clusters = Clusters(least=5)
    # 10 is small and hangs together with 20, which goes on below; 30 is by itself.
    first, classes = clusters.add(
        Nodes(
            np.array([0, 10, 20, 30]),
            np.array([99, 2, 3, 1]),
            np.array([7, 1, 2, 3], np.uint8),
            np.array([True, False, True, False]),
        ),
        Edges(np.array([0, 10, 0]), np.array([10, 20, 30]), np.array([1, 2, 1])),
    )
    assert (first.tolist(), classes.tolist()) == ([30], [7])
    first, classes = clusters.add(
        Nodes(np.array([20, 40]), np.array([3, 50]), np.array([2, 4], np.uint8), np.zeros(2, bool)),
        Edges(np.array([20]), np.array([40]), np.array([9])),
    )
    # 10 and 20 become 5 of class 2: large enough.
    assert (first.tolist(), classes.tolist()) == ([10, 20], [2, 2])
    first, _ = clusters.add(
        Nodes(*(np.empty(0, t) for t in (np.int64, np.int64, np.uint8, np.bool_))),
        Edges(*(np.empty(0, np.int64) for _ in range(3))),
    )
    assert first.tolist() == []


def test_the_step_is_told_of_every_pixel_in_every_pass(tmp_path: Path) -> None:
    class Count:
        done = 0.0

        def advance(self, amount: float = 1, note: str | None = None) -> None:
            self.done += amount

    step, classes = Count(), class_map("010", "212", "212", "333")
    ones = np.ones(4, np.int64)
    sieve(ArrayPixels(classes), tmp_path, step, weights=ones, least=2, strip_rows=3)
    assert step.done == PASSES * classes.size


def test_rows_on_disk(tmp_path: Path) -> None:
    file = PixelFile(tmp_path / "rows", (4, 3))
    rows = np.arange(12, dtype=np.uint8).reshape(4, 3)
    file.append(rows[:1])
    file.append(rows[1:])
    np.testing.assert_array_equal(file.read(Window(0, 0, 4, 3)), rows)
    np.testing.assert_array_equal(file.read(Window(2, 0, 1, 3)), rows[2:3])


def test_decisions_on_disk_by_the_strip_where_regions_begin(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path, 10)
    decisions.add(np.array([5, 9, 10]), np.array([1, 2, 3], np.uint8))
    decisions.add(np.array([3, 39]), np.array([4, 5], np.uint8))
    found = {strip: [part.tolist() for part in decisions.of(strip)] for strip in range(4)}
    assert found == {
        0: [[3, 5, 9], [4, 1, 2]],
        1: [[10], [3]],
        2: [[], []],
        3: [[39], [5]],
    }
