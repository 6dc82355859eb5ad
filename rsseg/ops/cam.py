"""Class activation maps (CAM): the loss that makes them, their pooling, and how they are read out.

A CAM is the classifier's last feature map before pooling, one channel per foreground class; its
values are logits. torch is imported where a tensor comes in: the array functions also serve worker
processes that never load it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-5


def normalise(cam: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the CAM's positive part, each class stretched by its minimum and maximum to [0, 1].

    Args:
        cam: (K, h, w) float32, any range.
        present: (K,) bool, the classes in the image's label; or (K, h, w) bool where labels hold
            for parts of the image only. Absent classes become 0 and a class is stretched by the
            values where it is present.

    Returns:
        (K, h, w) float32 in [0, 1]; 1 is reached by every present class whose positive part
        varies by 1e-5 or more, a constant one becomes 0.

    Source: SAN (Remote Sens. 2025, 17, 808), section 4.3; IRN's and SEAM's code.
    """
    mask = present[:, None, None] if present.ndim == 1 else present
    mask = np.broadcast_to(mask, cam.shape)
    positive = np.maximum(cam, np.float32(0))
    low = _extreme(np.min, positive, mask, np.inf)
    high = _extreme(np.max, positive, mask, -np.inf)
    stretched = (positive - low) / np.maximum(high - low, np.float32(_EPS))
    return np.where(mask, stretched, np.float32(0))


def multi_scale(
    forward: Callable[[Tensor], Tensor],
    image: Tensor,
    scales: Sequence[float],
    flips: bool,
    output_size: tuple[int, int],
    *,
    positive: bool = True,
) -> Tensor:
    """Return the mean of the (positive) CAMs over image scales and horizontal flips.

    Flipping the image flips the result where ``flips`` is on, whatever the network.

    Args:
        forward: images (B, C, H', W') to CAMs (B, K, h', w').
        image: (B, C, H, W) float, normalised.
        scales: factors of the image's size, each > 0; shrinking is antialiased.
        flips: add the mirrored image's CAM, mirrored back.
        output_size: (h, w) of the result.
        positive: take the positive part of each CAM; False takes CAMs as they are.

    Returns:
        (B, K, h, w) float, bilinear (pixel corners aligned as rasters are).

    Source: SAN section 4.3 (scales and flips of PSA, CVPR 2018).
    """

    def seen(view: Tensor) -> Tensor:
        cam = forward(view)
        return cam.relu() if positive else cam

    total: Tensor | None = None
    for scale in scales:
        scaled = _rescaled(image, scale)
        cam = seen(scaled)
        if flips:
            cam = (cam + seen(scaled.flip(-1)).flip(-1)) / 2
        cam = resized(cam, output_size)
        total = cam if total is None else total + cam
    assert total is not None, "no scales"
    return total / len(scales)


def shares(
    cam: NDArray[np.float32], present: NDArray[np.bool_], *, background: bool
) -> NDArray[np.float32]:
    """Return the share of each class in a cell: softmax over the classes that may be there.

    What classes that compete were trained to say (`competitive_pool`). By `normalise`, a class that
    the tags allow wins cells even where it is hardly there; here nothing is stretched.

    Args:
        cam: (K, h, w) float32, logits.
        present: (K,) or (K, h, w) bool, the classes in the label, as for `normalise`.
        background: whether cells may belong to no class; that class's CAM is 0 everywhere.

    Returns:
        (K, h, w) float32 in [0, 1]. Over the classes they sum to 1, with a background to at most 1;
        all are 0 where no class is present.
    """
    mask = present[:, None, None] if present.ndim == 1 else present
    mask = np.broadcast_to(mask, cam.shape)
    logits = np.where(mask, cam, np.float32(-np.inf))
    highest = logits.max(axis=0, initial=0 if background else -np.inf)
    highest = np.where(np.isfinite(highest), highest, np.float32(0))
    powers = np.exp(logits - highest)
    total = powers.sum(axis=0) + (np.exp(-highest) if background else 0)
    return np.where(mask, powers / np.where(total > 0, total, 1), 0).astype(np.float32)


def with_background(
    cam: NDArray[np.float32], power: float | None, position: int
) -> NDArray[np.float32]:
    """Insert the background's score as a class of its own.

    Args:
        cam: (K, H, W) float32 in [0, 1], the foreground classes, K >= 1.
        power: exponent > 0 of (1 - max_c CAM_c)^power; a larger one suppresses the background. None
            is for shares of cells: the background has the rest, 1 - sum_c CAM_c.
        position: index that the background gets among the K + 1 classes.

    Returns:
        (K + 1, H, W) float32 in [0, 1].

    Source: SAN eq. 9, on pixels instead of segments.
    """
    taken = cam.sum(axis=0) if power is None else cam.max(axis=0)
    background = (1 - np.clip(taken, 0, 1)) ** np.float32(1 if power is None else power)
    return np.insert(cam, position, background.astype(np.float32), axis=0)


def multilabel_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Return the multi-label soft margin loss, averaged over the tags that are known.

    With every tag known this is torch's ``multilabel_soft_margin_loss`` (SAN eq. 6 with the
    "1 +" that its print lacks); it is ln 2 at zero logits.

    Args:
        logits: (B, ..., K) float.
        tags: same shape, any integer type: 1 present, 0 absent, -1 unknown (left out).

    Returns:
        Scalar; 0, with a gradient of 0, where no tag is known.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    known = (tags >= 0).to(logits.dtype)
    target = tags.clamp(min=0).to(logits.dtype)
    loss = binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def pool(cam: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return each tile core's logits: the mean of its CAM cells, weighted by validity.

    Args:
        cam: (B, K, h, w) float, over a block of ``count`` x ``count`` equal cores and no halo.
        weight: (B, 1, h, w) float in [0, 1], share of valid pixels of each cell.
        count: cores per side; divides h and w.

    Returns:
        (B, count, count, K) float, rows before columns; 0 for a core without a valid pixel.

    Source: global average pooling of CAM (Zhou et al., CVPR 2016), per core.
    """
    from torch.nn.functional import avg_pool2d

    height, width = cam.shape[-2:]
    assert height % count == width % count == 0, (height, width, count)
    kernel = (height // count, width // count)
    total = avg_pool2d(cam * weight, kernel)
    share = avg_pool2d(weight, kernel)
    return (total / share.clamp(min=_EPS)).permute(0, 2, 3, 1)


def competitive_pool(
    cam: Tensor, weight: Tensor, count: int, *, background: bool, power: float = 4.0
) -> Tensor:
    """Return each tile core's logits where the classes compete for every cell.

    A cell belongs to one class: p = softmax over the classes. A class is present in a core with the
    probability P = (mean over cells of p^power)^(1/power), between the mean (power 1) and the
    maximum (power infinite): a few cells suffice to be present, but every cell counts. Global
    average pooling, in contrast, asks every class to fill the core.

    Args:
        cam: (B, K, h, w) float, over a block of ``count`` x ``count`` equal cores and no halo.
        weight: (B, 1, h, w) float in [0, 1], share of valid pixels of each cell.
        count: cores per side; divides h and w.
        background: whether cells may belong to no class; that class's CAM is 0 everywhere.
        power: of the mean.

    Returns:
        (B, count, count, K) float: log(P / (1 - P)).

    Source: generalised-mean pooling (Radenović et al., TPAMI 2019) on softmax maps.
    """
    import torch

    classes = cam.shape[1]
    if background:
        cam = torch.cat([cam, torch.zeros_like(cam[:, :1])], dim=1)
    cells = cam.softmax(dim=1)[:, :classes].pow(power)
    # Bounded before the root, whose slope at 0 is infinite.
    mean = pool(cells, weight, count).clamp(min=_EPS**power)
    return torch.logit(mean.pow(1 / power).clamp(max=1 - _EPS))


def _extreme(
    reduce: Callable[..., NDArray[np.float32]],
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    empty: float,
) -> NDArray[np.float32]:
    """Minimum or maximum of (K, h, w) where the mask is set, (K, 1, 1); 0 where it never is."""
    found = reduce(values, axis=(1, 2), keepdims=True, where=mask, initial=empty)
    return np.where(np.isfinite(found), found, 0).astype(np.float32)


def _rescaled(image: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
    return resized(image, (height, width), antialias=scale < 1)


def resized(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Return (B, C, H, W) at another size, bilinear; the same tensor where the size is the same."""
    from torch.nn.functional import interpolate

    if image.shape[-2:] == size:
        return image
    return interpolate(image, size, mode="bilinear", align_corners=False, antialias=antialias)
