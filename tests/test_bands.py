from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from rsseg.bands import Bands

BANDS = Bands(
    indices=(4, 2, 1),
    dtype="int16",
    mean=(10.0, -20.0, 0.5),
    std=(2.0, 5.0, 1.0),
    rgb=(2, 0, 1),
    low=(0.0, 10.0, -100.0),
    high=(100.0, 10.0, 155.0),
)
images = arrays(np.int16, (3, 2, 4), elements=st.integers(-300, 300))
masks = arrays(np.bool_, (2, 4))


@given(images, masks)
def test_normalised_pixels(image, valid):
    found = BANDS.normalise(image, valid)
    assert found.dtype == np.float32
    assert found.shape == image.shape
    for band, row, col in np.ndindex(*image.shape):
        value = (int(image[band, row, col]) - BANDS.mean[band]) / BANDS.std[band]
        expected = value if valid[row, col] else 0
        assert found[band, row, col] == pytest.approx(expected, abs=1e-5)


@given(images, masks)
def test_the_view_for_the_eye(image, valid):
    found = BANDS.to_rgb(image, valid)
    assert found.dtype == np.uint8
    assert found.shape == (2, 4, 3)
    for row, col, colour in np.ndindex(*found.shape):
        low, high = BANDS.low[colour], BANDS.high[colour]
        value = int(image[BANDS.rgb[colour], row, col])
        share = min(max((value - low) / max(high - low, 1e-12), 0), 1)
        expected = math.floor(share * 255 + 0.5) if valid[row, col] else 0
        # In float32 a half may go either way.
        assert abs(int(found[row, col, colour]) - expected) <= (abs(share * 255 % 1 - 0.5) < 1e-3)


def test_the_stretch_goes_from_black_to_white():
    grey = Bands((1,), "uint16", (0.0,), (1.0,), (0, 0, 0), (100.0,) * 3, (355.0,) * 3)
    ramp = np.arange(0, 500, dtype=np.uint16)[None, None]
    shown = grey.to_rgb(ramp, np.ones((1, 500), bool))
    assert_array_equal(shown[0, :, 0], np.clip(np.arange(-100, 400), 0, 255))
    assert_array_equal(shown[..., 0], shown[..., 2])


def test_what_was_not_measured_is_the_mean_even_where_it_is_nan():
    image = np.full((3, 1, 2), np.nan, np.float32)
    image[:, 0, 1] = BANDS.mean
    assert_array_equal(BANDS.normalise(image, np.array([[False, True]])), np.zeros((3, 1, 2)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_any_type_of_pixels(dtype):
    image = np.arange(24).reshape(3, 2, 4).astype(dtype)
    valid = np.ones((2, 4), bool)
    expected = BANDS.normalise(image.astype(np.int16), valid)
    assert_allclose(BANDS.normalise(image, valid), expected)
    assert_array_equal(BANDS.to_rgb(image, valid), BANDS.to_rgb(image.astype(np.int16), valid))


def test_a_description_gives_the_same_bands():
    assert Bands.from_dict(BANDS.to_dict()) == BANDS
    assert Bands.from_dict(json.loads(json.dumps(BANDS.to_dict()))) == BANDS
    assert len(BANDS) == 3


def test_a_description_may_say_more():
    assert Bands.from_dict({**BANDS.to_dict(), "added": "later"}) == BANDS
