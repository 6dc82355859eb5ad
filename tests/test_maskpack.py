"""Masks as bytes: what goes in comes out, and what does not fit is lost from the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rsseg.ops.maskpack import PackedMasks, capacity, pack, side_of
from rsseg.ops.segments import Masks


@st.composite
def proposals(draw, most=7):
    """Masks of a window of at most 40 pixels a side, scattered in boxes; some may be empty."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(0, most))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    masks = np.zeros((count, height, width), np.bool_)
    for mask in masks:
        y0, y1 = np.sort(random.integers(0, height + 1, 2))
        x0, x1 = np.sort(random.integers(0, width + 1, 2))
        mask[y0:y1, x0:x1] = random.random((y1 - y0, x1 - x0)) < random.uniform(0.1, 1.1)
    levels = random.integers(0, 3, count).astype(np.int8)
    return Masks(masks, levels, random.random(count).astype(np.float32))


def opened(masks, size=None):
    return PackedMasks.of(pack(masks, capacity(80) if size is None else size))


def everything(masks):
    return tuple(slice(0, side) for side in masks.masks.shape[1:])


@given(masks=proposals())
@settings(max_examples=200)
def test_what_goes_in_comes_out_in_its_order(masks):
    packed = opened(masks)
    assert_array_equal(packed.level, masks.level)
    assert_array_equal(packed.score, masks.score)
    assert (packed.level.dtype, packed.score.dtype) == (np.int8, np.float32)
    index, found = packed.cut(*everything(masks))
    assert_array_equal(index, np.flatnonzero(masks.areas()))
    assert_array_equal(found.masks, masks.masks[index])
    assert_array_equal(found.level, masks.level[index])
    assert_array_equal(found.score, masks.score[index])


@given(masks=proposals(), data=st.data())
@settings(max_examples=200)
def test_a_rectangle_is_cut_out(masks, data):
    rows, cols = (
        slice(*sorted(data.draw(st.tuples(st.integers(0, side), st.integers(0, side)))))
        for side in masks.masks.shape[1:]
    )
    expected = masks.masks[:, rows, cols]
    there = expected.any(axis=(1, 2))
    index, found = opened(masks).cut(rows, cols)
    assert_array_equal(index, np.flatnonzero(there))
    assert_array_equal(found.masks, expected[there])
    assert_array_equal(opened(masks).meet(rows, cols), there)


@given(masks=proposals(), size=st.integers(4, 400))
def test_what_does_not_fit_is_left_out_from_the_end(masks, size):
    packed = opened(masks, size)
    index, found = packed.cut(*everything(masks))
    assert_array_equal(packed.level, masks.level[: len(packed)])
    assert_array_equal(found.masks, masks.masks[index])
    # One more would not have fitted: 4 bytes, and 13 and the bits of its box for each.
    x0, y0, x1, y1 = masks.boxes().T
    ends = 4 + np.cumsum(13 + np.ceil((x1 - x0) * (y1 - y0) / 8))
    assert len(packed) == (ends <= size).sum()


@pytest.mark.parametrize(("size", "count"), [(4 + 15 + 15, 2), (4 + 15 + 14, 1), (4, 0)])
def test_the_last_byte_is_used(size, count):
    masks = Masks(np.ones((2, 4, 4), bool), np.zeros(2, np.int8), np.ones(2, np.float32))
    assert len(opened(masks, size)) == count


def test_a_large_mask_that_does_not_fit_takes_the_smaller_ones_after_it_along():
    masks = np.zeros((3, 20, 20), np.bool_)
    masks[0, :2, :2], masks[1], masks[2, :2, :2] = True, True, True
    assert len(opened(Masks(masks, np.zeros(3, np.int8), np.ones(3, np.float32)), 60)) == 1


@pytest.mark.parametrize("side", [1, 16, 31, 512, 1024])
def test_the_size_tells_the_side(side):
    assert side_of(capacity(side)) == side


def test_a_vector_that_was_never_written_has_no_masks():
    packed = PackedMasks.of(np.zeros(capacity(32), np.uint8))
    assert len(packed) == 0
    index, found = packed.cut(slice(0, 32), slice(4, 9))
    assert (len(index), found.masks.shape) == (0, (0, 32, 5))
    assert packed.meet(slice(0, 32), slice(4, 9)).shape == (0,)


def test_a_bit_per_pixel_of_the_box_and_zeros_behind():
    masks = np.zeros((1, 64, 64), np.bool_)
    masks[0, 10:20, 30:42] = True
    vector = pack(Masks(masks, np.array([2], np.int8), np.array([0.5], np.float32)), 1000)
    assert (vector.shape, vector.dtype) == ((1000,), np.uint8)
    assert vector[:5].tolist() == [1, 0, 0, 0, 2]
    assert vector[9:17].view("<u2").tolist() == [10, 30, 20, 42]
    assert (vector[17:32] == 255).all()
    assert not vector[32:].any()
