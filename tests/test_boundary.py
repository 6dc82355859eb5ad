import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_cdt

from rsseg.grid import Tiling
from rsseg.ops.boundary import bands, boundary_counts, boundary_iou

WHOLE = (slice(None), slice(None))


def regions(seed, shape=(37, 53), count=4, share_ignored=0.1):
    """Class indices in blobs, some pixels 255."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, count, (9, 11), dtype=np.uint8)
    rows, cols = (
        np.sort(random.integers(0, n, side)) for n, side in zip((9, 11), shape, strict=True)
    )
    drawn = coarse[rows][:, cols]
    drawn[random.random(shape) < 0.02] = 0
    drawn[random.random(shape) < share_ignored / 4] = 255
    drawn[: int(share_ignored * shape[0])] = 255
    return drawn


def band_by_distance(indices, compared, width, value):
    """The inner band of one class by the Chebyshev distance to the nearest pixel of another."""
    other = compared & (indices != value)
    if not other.any():
        return np.zeros(indices.shape, bool)
    distance = distance_transform_cdt(~other, metric="chessboard")
    return compared & (indices == value) & (distance <= width)


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_bands_are_those_of_a_distance_transform(seed, width):
    truth, mapped = regions(seed), regions(seed + 1)
    compared = truth != 255
    counts = boundary_counts(truth, mapped, 4, width, WHOLE)
    for value in range(4):
        true = band_by_distance(truth, compared, width, value)
        found = band_by_distance(mapped, compared, width, value)
        assert counts[:, value].tolist() == [(true & found).sum(), true.sum(), found.sum()]


def test_a_band_is_what_repeated_erosion_takes_away():
    disc = np.hypot(*np.mgrid[-20:21, -25:26]) < 15
    eroded = binary_erosion(disc, np.ones((3, 3)), iterations=4)
    found = bands(disc.astype(np.uint8), np.ones_like(disc), 4)
    assert np.array_equal(found & disc, disc & ~eroded)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40))
def test_blocks_with_a_halo_add_up_to_the_whole(seed, width, block):
    truth, mapped = regions(seed), regions(seed + 1)
    total = np.zeros((3, 4), np.int64)
    for tile in Tiling(truth.shape, block, width):
        read = tile.read.clipped(truth.shape)
        core = tile.core.relative_to(read).slices
        total += boundary_counts(truth[read.slices], mapped[read.slices], 4, width, core)
    assert np.array_equal(total, boundary_counts(truth, mapped, 4, width, WHOLE))


def test_a_shifted_square_by_hand():
    truth, mapped = np.zeros((2, 20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    mapped[5:15, 6:16] = 1
    # Rings of one pixel around 10 x 10: 36 pixels; of two such, one column apart, 18 are common.
    counts = boundary_counts(truth, mapped, 2, 1, WHOLE)
    assert counts[:, 1].tolist() == [18, 36, 36]
    iou, mean = boundary_iou(counts)
    assert iou[1] == pytest.approx(18 / 54)
    assert mean == pytest.approx(iou.mean())


def test_edges_of_the_raster_and_of_the_truth_are_no_boundaries():
    truth = np.zeros((10, 10), np.uint8)
    truth[:, 6:] = 255
    mapped = np.zeros((10, 10), np.uint8)
    mapped[:, 6:] = 1  # where nothing is known, whatever the map says is left out
    iou, mean = boundary_iou(boundary_counts(truth, mapped, 2, 3, WHOLE))
    assert np.isnan(iou).all()
    assert math.isnan(mean)


def test_a_hole_in_the_map_has_a_boundary():
    truth = np.zeros((9, 9), np.uint8)
    truth[:, 6:] = 1
    mapped = truth.copy()
    mapped[3, 1] = 255
    both, true, found = boundary_counts(truth, mapped, 2, 1, WHOLE)
    assert (both[0], true[0], found[0]) == (9, 9, 9 + 8)


def test_wider_than_everything_it_is_the_plain_iou():
    truth, mapped = regions(3, share_ignored=0), regions(4, share_ignored=0)
    iou, _ = boundary_iou(boundary_counts(truth, mapped, 4, 100, WHOLE))
    plain = [
        ((truth == c) & (mapped == c)).sum() / ((truth == c) | (mapped == c)).sum()
        for c in range(4)
    ]
    assert iou == pytest.approx(plain)


def test_a_class_without_boundary_in_the_truth_is_not_in_the_mean():
    truth = np.zeros((8, 8), np.uint8)
    truth[:, 4:] = 1
    mapped = truth.copy()
    mapped[0, 0] = 2
    iou, mean = boundary_iou(boundary_counts(truth, mapped, 3, 1, WHOLE))
    assert iou[2] == 0
    assert mean == pytest.approx(iou[:2].mean())
