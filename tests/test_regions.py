from __future__ import annotations

import numpy as np
import pytest
from class_maps import NODATA, class_map, class_maps
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import label

from rsseg.ops.regions import find_regions


def numbered_by_skimage(classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    # Its background is 0; nodata takes that place.
    return np.asarray(label((classes.astype(int) + 1) % (NODATA + 1), connectivity=1))


@given(classes=class_maps(40))
def test_regions_are_numbered_as_scikit_image_does(classes: NDArray[np.uint8]) -> None:
    found = find_regions(classes)
    expected = numbered_by_skimage(classes)
    np.testing.assert_array_equal(found.labels, expected)
    assert len(found) == expected.max()
    numbers, first = np.unique(expected, return_index=True)
    assert found.first[1:].tolist() == first[numbers > 0].tolist()


@pytest.mark.parametrize(
    ("drawn", "labels", "first"),
    [
        (["0"], [[1]], [0]),
        (["."], [[0]], []),
        (["0110"], [[1, 2, 2, 3]], [0, 1, 3]),
        (["01", "10"], [[1, 2], [3, 4]], [0, 1, 2, 3]),
        ([".1", "1."], [[0, 1], [2, 0]], [1, 2]),
        # two legs that meet below; and legs that meet twice around a hole
        (["101", "111"], [[1, 2, 1], [1, 1, 1]], [0, 1]),
        (["11011", "10101", "11111"], [[1, 1, 2, 1, 1], [1, 3, 1, 4, 1], [1] * 5], [0, 2, 6, 8]),
        (["1.1.1", "1.111", "111.."], [[1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 1, 0, 0]], [0]),
    ],
)
def test_regions_drawn_by_hand(drawn: list[str], labels: list[list[int]], first: list[int]) -> None:
    found = find_regions(class_map(*drawn))
    assert found.labels.tolist() == labels
    assert found.first[1:].tolist() == first


def test_more_regions_than_were_expected() -> None:
    rows, cols = np.indices((150, 130))
    board = ((rows + cols) % 2).astype(np.uint8)
    found = find_regions(board)
    assert len(found) == board.size
    np.testing.assert_array_equal(found.labels.ravel(), np.arange(1, board.size + 1))
    np.testing.assert_array_equal(found.first[1:], np.arange(board.size))


def test_another_value_can_be_nodata() -> None:
    found = find_regions(class_map("0.0"), nodata=0)
    assert found.labels.tolist() == [[0, 1, 0]]


@given(classes=class_maps(20), seed=st.integers(0, 99), ignore=st.sampled_from([0, 7, 255]))
def test_sums_of_pixels_weights_and_values(
    classes: NDArray[np.uint8], seed: int, ignore: int
) -> None:
    rng = np.random.default_rng(seed)
    found = find_regions(classes)
    weights = rng.integers(1, 10**12, len(classes))
    values = rng.choice(np.array([0, 1, 7, 254, 255], np.uint8), classes.shape)
    sums = found.sums(weights, values, ignore)
    for number in range(1, len(found) + 1):
        rows, cols = np.nonzero(found.labels == number)
        here = values[rows, cols].astype(int)
        there = here[here != ignore]
        expected = [len(rows), weights[rows].sum(), there.sum(), len(there)]
        assert sums[number].tolist() == expected


def test_without_values_nothing_has_one() -> None:
    sums = find_regions(class_map("001")).sums(np.array([5]), None)
    assert sums[1:].tolist() == [[2, 10, 0, 0], [1, 5, 0, 0]]
