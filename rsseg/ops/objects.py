"""Objects: masks of neighbouring windows that show one thing, under one number in the scene.

Two windows that overlap see the same pixels. Masks that agree there are the same object, however
differently they go on beyond: each window knows its own part best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from rsseg.ops.segments import Masks

LEAST_PIXELS = 16
"""A mask with fewer pixels in what two windows share says nothing of what it belongs to."""


@dataclass(frozen=True, eq=False, slots=True)
class Objects:
    """The objects of a piece of a scene.

    Attributes:
        masks: (N, H, W) what there is of each.
        number: (N,) uint32, rising; from 1 on, unique in the scene.
    """

    masks: Masks
    number: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.number)

    def overlaps(self) -> NDArray[np.uint32]:
        """Return the numbers of objects that share a pixel, (E, 2), the smaller one first."""
        flat = _flat(self.masks.masks)
        common = (flat @ flat.T).tocoo()
        upper = common.row < common.col
        pairs: NDArray[np.uint32] = self.number[np.stack([common.row, common.col], axis=1)[upper]]
        return pairs

    def paint(self, bands: NDArray[np.uint32], band: NDArray[np.int8]) -> None:
        """Write each object's number into its band.

        Args:
            bands: (B, H, W), written where objects are.
            band: which band an object of each number has; -1 for none.
        """
        for number, mask in zip(self.number, self.masks.masks, strict=True):
            if band[number] >= 0:
                bands[band[number]][mask] = number


def matches(
    one: NDArray[np.bool_], two: NDArray[np.bool_], *, join: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Find which masks of two windows are one object, from the pixels that both windows see.

    Each mask is matched once at most; pairs of a higher IoU come first, then of lower indices.

    Args:
        one: (M, H, W) the first window's masks, cut to the shared pixels.
        two: (N, H, W) the second window's.
        join: least IoU of a pair in the shared pixels, 0 to 1.

    Returns:
        (P, 2) indices into ``one`` and ``two``, and (P,) the IoU of each pair.
    """
    first, second = _flat(one), _flat(two)
    areas = one.sum(axis=(1, 2)), two.sum(axis=(1, 2))
    # Only pairs that share a pixel have an entry.
    common = (first @ second.T).tocoo()
    rows, cols = common.row, common.col
    iou = common.data / (areas[0][rows] + areas[1][cols] - common.data)
    large = (areas[0][rows] >= LEAST_PIXELS) & (areas[1][cols] >= LEAST_PIXELS)
    good = np.flatnonzero((iou >= join) & large)
    good = good[np.lexsort((cols[good], rows[good], -iou[good]))]
    free = np.ones(len(one), np.bool_), np.ones(len(two), np.bool_)
    chosen = []
    for pair in good:
        if free[0][rows[pair]] and free[1][cols[pair]]:
            free[0][rows[pair]] = free[1][cols[pair]] = False
            chosen.append(pair)
    pairs = np.stack([rows[chosen], cols[chosen]], axis=1).astype(np.intp)
    return pairs, iou[chosen]


def numbers(
    pairs: NDArray[np.intp],
    iou: NDArray[np.float64],
    window: NDArray[np.intp],
    shown: NDArray[np.bool_],
) -> NDArray[np.uint32]:
    """Number the objects that the masks of a scene make up.

    Pairs are joined by falling IoU, but never so that two masks of one window become one object
    by way of other windows: what a window has told apart is different things.

    Args:
        pairs: (P, 2) masks that match.
        iou: (P,) how well.
        window: (N,) which window a mask is of.
        shown: (N,) whether a mask has a pixel in its own window's core.

    Returns:
        (N,) uint32 each mask's object, from 1 on in the order of their first shown masks;
        0 for masks of an object that is never shown.
    """
    group = _groups(pairs[np.lexsort((pairs[:, 1], pairs[:, 0], -iou))], window)
    groups, first = np.unique(group[shown], return_index=True)
    of_group = np.zeros(len(shown), np.uint32)
    of_group[groups[np.argsort(first)]] = np.arange(1, len(groups) + 1)
    number: NDArray[np.uint32] = of_group[group]
    return number


def _groups(pairs: NDArray[np.intp], window: NDArray[np.intp]) -> NDArray[np.intp]:
    """Join pairs in their order, unless a group would have two masks of a window: (N,) groups."""
    group = np.arange(len(window))
    members: dict[int, list[int]] = {}
    for one, two in pairs.tolist():
        ends = [members.setdefault(int(group[end]), [int(group[end])]) for end in (one, two)]
        small, large = sorted(ends, key=len)
        # A pair within one group ends here too, for a group shares all windows with itself.
        if not set(window[small].tolist()) & set(window[large].tolist()):
            large += small
            group[small] = group[large[0]]
    return group


def united(
    parts: Sequence[tuple[NDArray[np.uint32], Masks, tuple[slice, slice]]],
    shape: tuple[int, int],
) -> Objects:
    """Put the pieces of objects together that several windows have.

    Args:
        parts: of each window the pieces' numbers, the pieces, and where in the whole they lie.
        shape: (H, W) of the whole.

    Returns:
        The objects of the whole, each of the highest level and the highest score of its pieces.
    """
    every = np.concatenate([np.zeros(0, np.uint32), *(number for number, _, _ in parts)])
    number = np.unique(every)
    masks = np.zeros((len(number), *shape), np.bool_)
    level = np.zeros(len(number), np.int8)
    score = np.full(len(number), -np.inf, np.float32)
    for of_part, pieces, place in parts:
        index = np.searchsorted(number, of_part)
        masks[(index, *place)] = pieces.masks
        np.maximum.at(level, index, pieces.level)
        np.maximum.at(score, index, pieces.score)
    return Objects(Masks(masks, level, score), number)


def bands_of(count: int, overlaps: NDArray[np.uint32], bands: int) -> NDArray[np.int8]:
    """Give each object the first band in which it meets no object of a smaller number.

    Args:
        count: number of objects; they are numbered from 1 on.
        overlaps: (E, 2) objects that share a pixel, the smaller number first.
        bands: how many there are.

    Returns:
        (count + 1,) int8 band of each number; -1 for objects that no band has room for.
    """
    band = np.zeros(count + 1, np.int8)
    pairs = np.unique(overlaps[:, ::-1], axis=0)
    later, starts = np.unique(pairs[:, 0], return_index=True)
    for number, earlier in zip(later, np.split(pairs[:, 1], starts[1:]), strict=False):
        free = np.setdiff1d(np.arange(bands), band[earlier])
        band[number] = free[0] if len(free) else -1
    return band


def _flat(masks: NDArray[np.bool_]) -> csr_array:
    """(N, H, W) bool as a sparse (N, H * W) of ones, whose products count common pixels."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    pixels = np.flatnonzero(flat) % max(1, flat.shape[1])
    starts = np.concatenate([[0], np.cumsum(flat.sum(axis=1))])
    return csr_array((np.ones(len(pixels), np.int32), pixels, starts), shape=flat.shape)
