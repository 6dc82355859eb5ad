"""What masks are worth, measured without asking a person.

Pure functions of arrays. Masks are (N, H, W) bool, of any size and overlapping as they like.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label, maximum_filter
from skimage.segmentation import find_boundaries

from rsseg.classes import IGNORE
from rsseg.ops.boundary import bands
from rsseg.ops.segments import Masks

NEAR = 2
"""Pixels by which a segment's outline may miss a true one."""
SAME = 0.95
"""IoU from which two masks are the same."""


def covered_share(masks: NDArray[np.bool_]) -> float:
    """Return the share of the pixels that lie in a mask."""
    return float(masks.any(axis=0).mean())


def partition(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Cut a tile into the segments that masks make of it.

    Masks are painted by falling area, the smaller over the larger (of equal ones the later over the
    earlier); what can still be seen of a mask is one segment, in one piece or not. What no mask
    covers is cut into its connected components (by edges, not corners).

    Returns:
        (H, W) int64: the segments' numbers, from 1; numbers of hidden masks do not occur.
    """
    painted = np.zeros(masks.shape[1:], np.int64)
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    for number, index in enumerate(order, start=1):
        painted[masks[index]] = number
    rest, _ = label(painted == 0)
    return np.where(painted > 0, painted, rest.astype(np.int64) + len(masks))


def achievable_accuracy(
    segments: NDArray[np.int64], truth: NDArray[np.uint8], ignore: int = IGNORE
) -> float:
    """Return the accuracy of the best labelling that gives each segment one class.

    Every segment takes the class that most of its labelled pixels have; the accuracy is the share
    of all labelled pixels that then have their class. Finer segments are never worse, up to 1 for
    single pixels, so the number of segments belongs beside it.

    Args:
        segments: (H, W) numbers, from 0 or 1.
        truth: (H, W) class indices; pixels of ``ignore`` do not count.
        ignore: the index that is no class.

    Returns:
        In [0, 1], nan where nothing is labelled.

    Source: Liu et al., "Entropy Rate Superpixel Segmentation", CVPR 2011 (achievable segmentation
    accuracy), with classes in the place of objects.
    """
    labelled = truth != ignore
    if not labelled.any():
        return float("nan")
    pairs = segments[labelled] * 256 + truth[labelled]
    counts = np.bincount(pairs, minlength=256 * (int(segments.max()) + 1)).reshape(-1, 256)
    return float(counts.max(axis=1).sum() / labelled.sum())


def boundary_recall(
    segments: NDArray[np.int64],
    truth: NDArray[np.uint8],
    near: int = NEAR,
    ignore: int = IGNORE,
) -> float:
    """Return the share of the true boundary that has a segment's boundary near it.

    True boundary pixels are labelled ones with another class among their 8 neighbours; the edge
    of the tile and of unlabelled ground is no boundary. Near is at most ``near`` rows and columns.

    Args:
        segments: (H, W) numbers.
        truth: (H, W) class indices, ``ignore`` where there is none.
        near: pixels.
        ignore: the index that is no class.

    Returns:
        In [0, 1], nan where the truth has no boundary.
    """
    true = bands(truth, truth != ignore, 1)
    if not true.any():
        return float("nan")
    drawn = find_boundaries(segments, connectivity=2, mode="thick")
    reached = maximum_filter(drawn, 2 * near + 1, mode="constant", cval=False)
    return float(reached[true].mean())


def matched(
    masks: NDArray[np.bool_], others: NDArray[np.bool_], least: float = SAME
) -> NDArray[np.bool_]:
    """Return (N,) bool: which of the masks have one of an IoU of at least ``least`` in the others.

    Args:
        masks: (N, H, W) bool.
        others: (M, H, W) bool.
        least: in (0, 1].
    """
    if not len(masks) or not len(others):
        return np.zeros(len(masks), np.bool_)
    one, two = (m.reshape(len(m), -1).astype(np.float32) for m in (masks, others))
    common = one @ two.T
    union = one.sum(axis=1)[:, None] + two.sum(axis=1)[None] - common
    found: NDArray[np.bool_] = (common >= least * union).any(axis=1) & (one.any(axis=1))
    return found


def thinned(found: Masks, *, min_area: int, max_share: float) -> Masks:
    """Return the masks that rsseg's rules of area, in pixels, and share of the tile leave."""
    areas = found.areas()
    size = found.masks.shape[1] * found.masks.shape[2]
    return found[(areas >= min_area) & (areas <= max_share * size)]
