"""Consistency of two views of one image: the losses of the siamese branch (SAN §3.2).

Both maps of a pair lie in the same frame. What is compared is not the CAM, whose scale is free, but
its positive part, each class stretched to [0, 1] and gated by the tags.
"""

from __future__ import annotations

from torch import Tensor

from rsseg.ops.affinity import strongest_only

_EPS = 1e-5

HARDEST = 0.2
"""Share of the cross term's differences that count: the largest ones (SEAM)."""


def stretched(cam: Tensor, allowed: Tensor) -> Tensor:
    """Return the CAM's positive part, each class stretched by its minimum and maximum to [0, 1].

    ``ops.cam.normalise`` for batches, with a gradient.

    Args:
        cam: (B, K, h, w) float, any range.
        allowed: (B, K, h, w) bool; elsewhere a class is 0, and its range is taken where it is
            allowed.

    Returns:
        (B, K, h, w) float in [0, 1].

    Source: SAN (Remote Sens. 2025, 17, 808), section 3.2, as SEAM's code (CVPR 2020) does it.
    """
    positive = cam.relu()
    high = (positive * allowed).amax(dim=(-2, -1), keepdim=True)
    low = positive.masked_fill(~allowed, float("inf")).amin(dim=(-2, -1), keepdim=True)
    low = low.masked_fill(low.isinf(), 0)
    return (positive - low) / (high - low).clamp(min=_EPS) * allowed


def consistency_loss(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Return the mean absolute difference of two maps over all classes and all valid cells.

    Args:
        first: (B, K, h, w) float, of the image itself.
        second: (B, K, h, w) float, of the other view, brought back.
        weight: (B, 1, h, w) float in [0, 1], share of valid pixels of each cell.

    Returns:
        Scalar in [0, 1] for maps in [0, 1]; absent classes are 0 in both and dilute it, as in
        SEAM's code. 0 where no cell is valid.

    Source: SAN eq. 5, as a mean.
    """
    classes = first.shape[1]
    total = ((first - second).abs() * weight).sum()
    return total / (weight.sum() * classes).clamp(min=_EPS)


def cross_loss(plain: Tensor, refined: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of the largest fifth of |plain - refined| over cells and classes.

    The refined map of one view is held against the plain one of the other, which keeps propagation
    from smoothing everything into one constant.

    Args:
        plain: (B, K, h, w) float, the other view's plain map, of which each cell's maximal class is
            the target; no gradient goes into it.
        refined: (B, K, h, w) float, this view's refined map.
        weight: (B, 1, h, w) float in [0, 1], share of valid pixels of each cell.

    Returns:
        Scalar, the mean over the images.

    Source: the equivariant cross regularisation of SEAM (Wang et al., CVPR 2020).
    """
    difference = ((strongest_only(plain.detach()) - refined).abs() * weight).flatten(1)
    hardest = max(1, int(difference.shape[1] * HARDEST))
    return difference.topk(hardest, dim=1).values.mean()


def spread(maps: Tensor, allowed: Tensor) -> float:
    """Return the spatial variance of maps where a class is allowed, averaged over the classes.

    Args:
        maps: (B, K, h, w) float in [0, 1].
        allowed: (B, K, h, w) bool.

    Returns:
        The mean over all (image, class) with an allowed cell; 0 when propagation has made each
        map one constant.
    """
    cells = allowed.sum(dim=(-2, -1))
    counted = cells.clamp(min=1)
    mean = (maps * allowed).sum(dim=(-2, -1)) / counted
    square = (maps.square() * allowed).sum(dim=(-2, -1)) / counted
    there = cells > 0
    variance = (square - mean.square()) * there
    return float(variance.sum() / there.sum().clamp(min=1))
