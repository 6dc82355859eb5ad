"""Segment proposals and how they turn a CRF posterior into a label map.

The SAM stage of SAN (Remote Sens. 2025, 17, 808, section 3.3): proposals are thinned by a priority
NMS and an overlap filter, classified by the posterior inside them (eq. 8-10) and painted over the
CRF's labels. Superpixels are proposals too, for when there is no SAM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

SUBPART, PART, WHOLE = 0, 1, 2
IGNORE = 255

# A smaller spread over the masks is rounding noise, which min-max would blow up to [0, 1].
_FLAT = 1e-5


@dataclass(frozen=True, eq=False, slots=True)
class Masks:
    """Segment proposals of one image.

    Attributes:
        masks: (N, H, W) bool, True inside the segment; N may be 0.
        level: (N,) int8, SUBPART (0), PART (1) or WHOLE (2); a higher level is coarser.
        score: (N,) float32, the proposer's own confidence (SAM: the predicted IoU, about [0, 1]).
    """

    masks: NDArray[np.bool_]
    level: NDArray[np.int8]
    score: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.masks.ndim == 3
        assert self.level.shape == self.score.shape == self.masks.shape[:1]
        assert self.masks.dtype == np.bool_
        assert self.level.dtype == np.int8
        assert self.score.dtype == np.float32

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Masks:
        """The proposals at index, (M,) integers or (N,) bool, in that order."""
        return Masks(self.masks[index], self.level[index], self.score[index])

    def areas(self) -> NDArray[np.int64]:
        """Areas in pixels, (N,) int64."""
        areas: NDArray[np.int64] = self.masks.sum(axis=(1, 2), dtype=np.int64)
        return areas

    def boxes(self) -> NDArray[np.int64]:
        """Bounding boxes, (N, 4) int64 as x0, y0, x1, y1 with x1, y1 exclusive; 0s if empty."""
        x0, x1 = _extent(np.asarray(self.masks.any(axis=1)))
        y0, y1 = _extent(np.asarray(self.masks.any(axis=2)))
        return np.stack([x0, y0, x1, y1], axis=1)


def confident(
    level: NDArray[np.int8],
    score: NDArray[np.float32],
    *,
    t_score: float = 0.86,
    t_whole: float = 0.76,
) -> NDArray[np.bool_]:
    """Which proposals pass the score bar, which is lower for whole objects (SAN 3.3.1, rule 1).

    Args:
        level: any shape, int8 levels.
        score: same shape, predicted IoU.
        t_score: least score of a part or sub-part.
        t_whole: least score of a whole.

    Returns:
        bool of the same shape.
    """
    # Compared as float32, so that a float32 score equal to the bar passes it.
    bar = np.where(level == WHOLE, np.float32(t_whole), np.float32(t_score))
    return score >= bar


def priority_nms(
    boxes: NDArray[np.int64],
    level: NDArray[np.int8],
    score: NDArray[np.float32],
    *,
    nms: float = 0.7,
) -> NDArray[np.intp]:
    """Greedy box NMS in which any whole outranks any part (SAN 3.3.1, rule 2).

    The priority is the score, plus 1 for a whole; a proposal goes if its box has an IoU above
    `nms` with that of a kept one.

    Args:
        boxes: (N, 4) y0, x0, y1, x1 (or x first), ends exclusive.
        level: (N,) int8.
        score: (N,) float32.
        nms: largest IoU of two boxes kept.

    Returns:
        Indices of the kept proposals, (M,), highest priority first.
    """
    # Imported here because superpixels do without, and their workers start faster so.
    import torch
    from torchvision.ops import nms as box_nms

    priority = score + (level == WHOLE)
    # Sorted here, so that of equal priorities the first one wins. From outermost pixel to outermost
    # pixel, as SAM's own generator measures boxes, so that the same ones are kept.
    order = np.argsort(-priority, kind="stable")
    rank = torch.arange(len(order), 0, -1, dtype=torch.float64)
    corners = torch.from_numpy(boxes[order] - np.array([0, 0, 1, 1])).double()
    kept = box_nms(corners, rank, nms)
    indices: NDArray[np.intp] = order[kept.numpy()]
    return indices


def overlap_filter(proposals: Masks, *, t_overlap: float = 0.3) -> NDArray[np.intp]:
    """Drop what coarser masks already cover (SAN 3.3.1, rule 3).

    In the order whole, part, sub-part a mask is kept if |new & kept| / |new| < `t_overlap` for
    every kept mask of a coarser level. Empty masks are dropped.

    Returns:
        Indices of the kept proposals, (M,), coarsest first, then by falling score.
    """
    bits = _packed(proposals.masks)
    areas = proposals.areas()
    kept = np.empty(0, dtype=np.intp)
    for level in (WHOLE, PART, SUBPART):
        new = np.flatnonzero((proposals.level == level) & (areas > 0))
        new = new[np.argsort(-proposals.score[new], kind="stable")]
        coarser = bits[kept]
        common = np.array([_largest_common(bits[i], coarser) for i in new], dtype=np.int64)
        kept = np.concatenate([kept, new[common < t_overlap * areas[new]]])
    return kept


def class_scores(
    proposals: Masks, posterior: NDArray[np.float32], *, stretch: bool = True
) -> NDArray[np.float32]:
    """Class score of each proposal: mean posterior inside it, min-max over proposals (SAN eq. 8).

    Where there is nothing to normalise by (one proposal, or a class that is the same in all of
    them) the mean itself is the score.

    Args:
        proposals: N proposals of (H, W).
        posterior: (K, H, W) float32 in [0, 1], the refined map M* of each class.
        stretch: False leaves the min-max out: the mean itself is the score.

    Returns:
        (N, K) float32 in [0, 1].
    """
    count = len(proposals)
    maps = posterior.reshape(len(posterior), -1).T  # (H*W, K)
    # One mask at a time: all of them as float32 would be 4 N H W bytes.
    total = np.array([m.ravel().astype(np.float32) @ maps for m in proposals.masks], np.float32)
    mean = total.reshape(count, len(posterior)) / np.maximum(proposals.areas(), 1)[:, None]
    if count == 0 or not stretch:
        return mean.astype(np.float32)
    low, high = mean.min(axis=0), mean.max(axis=0)
    flat = high - low < _FLAT
    scaled = (mean - low) / np.where(flat, 1, high - low)
    return np.where(flat, mean, scaled).astype(np.float32)


def background_score(scores: NDArray[np.float32], *, alpha: float = 1.0) -> NDArray[np.float32]:
    """Background score of each proposal, (1 - max_c S_c) ** alpha (SAN eq. 9).

    Args:
        scores: (N, K) float32 in [0, 1], the foreground classes of `class_scores`, K >= 1.
        alpha: a larger one suppresses the background.

    Returns:
        (N,) float32 in [0, 1].
    """
    background: NDArray[np.float32] = np.power(1 - scores.max(axis=1), alpha, dtype=np.float32)
    return background


def assign(
    proposals: Masks,
    scores: NDArray[np.float32],
    crf: NDArray[np.uint8],
    *,
    ids: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Paint each proposal's best class over the CRF's labels (SAN eq. 10 and section 3.3.3).

    Where proposals overlap, the coarser level wins, then the higher class score, then the higher
    proposal score. Uncovered pixels keep the CRF's label; ignored pixels stay ignored.

    Args:
        proposals: N proposals of (H, W).
        scores: (N, L) float32, a column per class (and one for the background, if there is one).
        crf: (H, W) uint8 class ids, 255 = ignore.
        ids: (L,) uint8, the class id of each column; 0, 1, 2 ... by default.

    Returns:
        (H, W) uint8 class ids, 255 = ignore.
    """
    columns = np.arange(scores.shape[1], dtype=np.uint8) if ids is None else ids
    labels = crf.copy()
    if len(proposals) == 0:
        return labels
    best = scores.argmax(axis=1)
    # The last key is the first to sort by; what is painted last wins.
    order = np.lexsort((proposals.score, scores.max(axis=1), proposals.level))
    for i in order:
        labels[proposals.masks[i]] = columns[best[i]]
    labels[crf == IGNORE] = IGNORE
    return labels


def superpixels(
    image: NDArray[np.uint8], *, scale: float = 60.0, sigma: float = 0.8, min_size: int = 64
) -> Masks:
    """Superpixels as proposals: a partition of the image, every one a whole of score 1.

    Args:
        image: (H, W, 3) uint8 RGB.
        scale: larger gives larger segments.
        sigma: standard deviation in pixels of the smoothing before it.
        min_size: smaller segments are merged into a neighbour, pixels.

    Returns:
        Masks that cover each pixel exactly once.

    Source: Felzenszwalb and Huttenlocher, IJCV 2004, 59(2).
    """
    segments = felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size)
    count = int(segments.max()) + 1
    masks = segments[None] == np.arange(count)[:, None, None]
    return Masks(masks, np.full(count, WHOLE, np.int8), np.ones(count, np.float32))


def _extent(line: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last True along the last axis of (N, L); 0, 0 where there is none."""
    some = line.any(axis=1)
    first = line.argmax(axis=1)
    last = line.shape[1] - line[:, ::-1].argmax(axis=1)
    return np.where(some, first, 0), np.where(some, last, 0)


def _packed(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(N, H, W) bool as (N, words) uint64, 64 pixels a word, zero-padded."""
    count, height, width = masks.shape
    packed = np.packbits(masks.reshape(count, height * width), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def _largest_common(mask: NDArray[np.uint64], others: NDArray[np.uint64]) -> int:
    """Pixels that a packed mask (words,) shares with the one of (M, words) it shares most with."""
    return int(np.bitwise_count(others & mask).sum(axis=1, dtype=np.int64).max(initial=0))
