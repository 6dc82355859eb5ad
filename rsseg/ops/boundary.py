"""Boundary IoU: how well the outlines of a class meet those of the truth.

Cheng, Girshick, Dollár, Berg and Kirillov (2021), "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation", section 4: the IoU of the two regions' *inner bands*, the pixels of a
region that lie no further than d from its contour. Errors inside large regions, which dominate the
plain IoU, do not count; a wrong outline does, whatever the region's size. With d larger than every
region it is the plain IoU.

What the paper leaves open is settled thus. Distance is Chebyshev's, as in the authors' own code,
which erodes d times by 3 x 3 pixels: a pixel is in the band if a pixel of another class lies in the
(2 d + 1)² square around it. There an image's edge is a contour; here it is none, and neither is an
edge towards pixels without truth: a crop through a field is not the field's outline. A pixel for
which the map has no class counts as one of a class of its own, as it does in the other scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter


def bands(indices: NDArray[np.uint8], compared: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the inner boundary bands of all regions.

    Args:
        indices: (H, W) uint8, any class indices.
        compared: (H, W), False where pixels are as if beyond the raster's edge.
        width: d, pixels, at least 1.

    Returns:
        (H, W) bool: True where a compared pixel of another class is at most ``width`` rows and
        columns away. A pixel closer than that to the array's edge sees only what the array holds.
    """
    side = 2 * width + 1
    # Neutral where not compared and, by nearest, beyond the edge: then no extremum comes from it.
    highest = maximum_filter(np.where(compared, indices, np.uint8(0)), side, mode="nearest")
    lowest = minimum_filter(np.where(compared, indices, np.uint8(255)), side, mode="nearest")
    found: NDArray[np.bool_] = compared & ((highest != indices) | (lowest != indices))
    return found


def boundary_counts(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    count: int,
    width: int,
    core: tuple[slice, slice],
    ignore: int = 255,
) -> NDArray[np.int64]:
    """Count the pixels of the bands of each class, alone and in common.

    Args:
        truth: (H, W) class indices below ``count``; pixels of ``ignore`` are left out.
        prediction: (H, W); ``ignore`` where there is no prediction.
        count: number of classes K.
        width: d, pixels.
        core: the part of the arrays that is counted. With ``width`` pixels around it, or the
            raster's edge, counts of the parts of a raster add up to those of the whole.
        ignore: the index that is no class.

    Returns:
        (3, K) int64: pixels in both bands, in the truth's, in the prediction's.
    """
    compared = truth != ignore
    true = np.where(bands(truth, compared, width), truth, np.uint8(ignore))[core]
    mapped = np.where(bands(prediction, compared, width), prediction, np.uint8(ignore))[core]
    common = mapped[mapped == true]
    parts = (np.bincount(part.ravel(), minlength=256)[:count] for part in (common, true, mapped))
    return np.stack(list(parts)).astype(np.int64)


def boundary_iou(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return the boundary IoU of each class, and their mean.

    Args:
        counts: (3, K) of ``boundary_counts``.

    Returns:
        (K,) float64, nan for a class without boundary in truth and map; and the mean over the
        classes that have one in the truth, nan if none has.
    """
    both, true, mapped = counts
    with np.errstate(invalid="ignore"):
        iou = np.divide(both, true + mapped - both).astype(np.float64)
    known = iou[true > 0]
    return iou, float(known.mean()) if known.size else float("nan")
