"""Where to ask: points of an image from which segments are likely to be found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_position
from skimage.segmentation import felzenszwalb, find_boundaries

# Small enough for every roof to have a superpixel of its own; chosen for the accuracy that the
# masks found could achieve, see docs/results.md.
_SCALE = 50.0
_SMOOTHING = 0.8
_LEAST = 16


def grid_points(per_side: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Centres of per_side x per_side equal cells of an image (H, W): (n * n, 2) x, y in pixels."""
    centre = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(centre * size[1], centre * size[0])
    return np.stack([x.ravel(), y.ravel()], axis=1)


def superpixel_points(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The innermost point of every superpixel, those of the largest superpixels first.

    A segment of the image is one or several superpixels, so nearly every segment has such a point
    well inside, and ground without structure has few.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (N, 2) float64 x, y in pixels, at pixel centres.

    Source: Felzenszwalb and Huttenlocher, IJCV 2004, 59(2), for the superpixels.
    """
    segments = felzenszwalb(image, scale=_SCALE, sigma=_SMOOTHING, min_size=_LEAST)
    # The frame counts as a boundary: what touches it may go on beyond it.
    edges: NDArray[np.bool_] = find_boundaries(segments, mode="thick")  # type: ignore[no-untyped-call]
    inside = np.pad(~edges, 1)
    depth = distance_transform_edt(inside)[1:-1, 1:-1]
    area = np.bincount(segments.ravel())
    order = np.argsort(-area, kind="stable")
    innermost = np.array(maximum_position(depth, segments, order), np.float64)
    return innermost[:, ::-1] + 0.5
