"""The drawn orthophoto is deterministic, holds every class and does not give in to colour."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from rsseg.ops.synthetic import (
    BUILDING,
    CLASS_NAMES,
    FIELD,
    ROAD,
    TREE,
    WATER,
    draw_orthophoto,
    gaussian_classifier,
)

SEEDS = range(4)
TILE = 64


@cache
def scene(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return draw_orthophoto(768, seed)


def miou(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    pairs = [(predicted == i, truth == i) for i in range(len(CLASS_NAMES))]
    return float(np.mean([(p & t).sum() / (p | t).sum() for p, t in pairs]))


def test_class_ids_follow_their_names():
    assert CLASS_NAMES == ("building", "road", "field", "tree", "water")
    ids = [BUILDING, ROAD, FIELD, TREE, WATER]
    assert ids == list(range(5))


@pytest.mark.parametrize(
    ("size", "shape"), [(96, (96, 96)), ((80, 130), (80, 130)), ((300, 64), (300, 64))]
)
def test_shapes_and_dtypes(size, shape):
    image, truth = draw_orthophoto(size, 0)
    assert image.shape == (3, *shape)
    assert truth.shape == shape
    assert image.dtype == truth.dtype == np.uint8
    assert truth.max() < len(CLASS_NAMES)


def test_a_seed_draws_the_same_picture_again():
    for first, second in zip(draw_orthophoto(256, 5), draw_orthophoto(256, 5), strict=True):
        assert np.array_equal(first, second)


def test_another_seed_draws_another_picture():
    (image, truth), (other_image, other_truth) = scene(0), scene(1)
    assert (image != other_image).mean() > 0.9
    assert (truth != other_truth).mean() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_every_class_has_its_share(seed):
    shares = np.bincount(scene(seed)[1].ravel(), minlength=len(CLASS_NAMES)) / 768**2
    assert shares.min() >= 0.03
    assert shares.max() <= 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_tile_tags_have_something_to_say(seed):
    """Every class is present in some tiles and absent from others."""
    truth = scene(seed)[1]
    tiles = truth.reshape(768 // TILE, TILE, 768 // TILE, TILE)
    for i in range(len(CLASS_NAMES)):
        assert 0.08 <= (tiles == i).any(axis=(1, 3)).mean() <= 0.88


@pytest.mark.parametrize("seed", SEEDS)
def test_colour_alone_does_not_solve_it(seed):
    image, truth = scene(seed)
    predicted = gaussian_classifier(image, truth)
    assert predicted.shape == truth.shape
    assert predicted.dtype == np.uint8
    assert miou(predicted, truth) <= 0.60


def test_gaussian_classifier_separates_what_colour_separates():
    truth = np.repeat(np.array([[1, 4]], np.uint8), [40, 24], axis=1).repeat(8, axis=0)
    noise = np.random.default_rng(0).integers(0, 20, (3, *truth.shape))
    image = (noise + 50 * truth).astype(np.uint8)
    assert np.array_equal(gaussian_classifier(image, truth), truth)


def test_gaussian_classifier_takes_flat_colours():
    truth = np.array([[0, 0, 3, 3]], np.uint8)
    assert np.array_equal(gaussian_classifier(np.stack([40 * truth] * 3), truth), truth)
