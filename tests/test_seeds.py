"""Where to ask: the innermost points of superpixels, and grids."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from rsseg.ops import seeds as module
from rsseg.ops.seeds import grid_points, superpixel_points


def blocks() -> NDArray[np.uint8]:
    """Flat colours: a frame around a tall, a small and a round area."""
    image = np.full((90, 140, 3), 60, np.uint8)
    image[10:80, 10:50] = (200, 40, 40)
    image[20:36, 70:90] = (40, 200, 40)
    y, x = np.mgrid[:90, :140]
    image[np.hypot(y - 60, x - 105) < 22] = (40, 40, 200)
    return image


def scene(seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 6, (90, 140, 3))
    return np.clip(blocks() + noise, 0, 255).astype(np.uint8)


def test_every_area_has_a_point_well_inside_the_largest_first() -> None:
    points = superpixel_points(blocks())
    assert points.dtype == np.float64
    x, y = points.T
    # Ground, rectangle of 2800 pixels, disc of 1521; then edges, and the rectangle of 320.
    colours = blocks()[y.astype(int), x.astype(int)]
    assert colours[:3].tolist() == [[60, 60, 60], [200, 40, 40], [40, 40, 200]]
    assert 27 <= x[1] <= 33
    np.testing.assert_allclose(points[2], [105.5, 60.5], atol=2)
    assert np.hypot(x - 80, y - 28).min() < 3


def test_points_are_pixel_centres_inside_their_superpixels() -> None:
    image = scene()
    points = superpixel_points(image)
    assert (points % 1 == 0.5).all()
    x, y = points.astype(int).T
    segments = felzenszwalb(
        image, scale=module._SCALE, sigma=module._SMOOTHING, min_size=module._LEAST
    )
    hit = segments[y, x]
    assert sorted(hit) == list(range(segments.max() + 1))
    assert (np.diff(np.bincount(segments.ravel())[hit]) <= 0).all()


def test_the_frame_is_a_boundary_too() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    # Halves of 40 x 30: away from the edge between them alone, the frame itself would be deepest.
    (x0, y0), (x1, y1) = sorted(superpixel_points(image)[:2].tolist())
    assert 10 < x0 < 20
    assert 40 < x1 < 50
    assert 10 < y0 < 30
    assert 10 < y1 < 30


def test_an_image_of_one_colour_has_one_point_in_its_middle() -> None:
    ((x, y),) = superpixel_points(np.full((41, 61, 3), 128, np.uint8))
    assert y == 20.5
    assert 20 <= x <= 41


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 2)])
def test_tiny_images_have_a_point(size: tuple[int, int]) -> None:
    points = superpixel_points(np.full((*size, 3), 9, np.uint8))
    assert len(points) == 1
    assert (points < size[::-1]).all()


def test_equal_images_give_equal_points_and_remain_as_they_are() -> None:
    image = scene()
    np.testing.assert_array_equal(superpixel_points(image), superpixel_points(image.copy()))
    np.testing.assert_array_equal(image, scene())
    assert superpixel_points(scene(1)).tolist() != superpixel_points(image).tolist()


def test_a_grid_is_the_centres_of_equal_cells_row_by_row() -> None:
    expected = [[50, 10], [150, 10], [50, 30], [150, 30]]
    assert grid_points(2, (40, 200)).tolist() == expected
    assert grid_points(1, (41, 61)).tolist() == [[30.5, 20.5]]
