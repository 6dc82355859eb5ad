"""Segment proposals of images from SAM, without being asked for anything (SAN section 3.3.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rsseg.config import ProposalConfig
from rsseg.nets.decoder import Answers
from rsseg.nets.device import free_memory, is_out_of_memory
from rsseg.nets.prompting import Drawn, Prompter, Seen, stability
from rsseg.ops.seeds import grid_points, superpixel_points
from rsseg.ops.segments import WHOLE, Masks, priority_nms

# Adaptive prompting ends when so many points in a row have brought less than that share of the
# window. How all of these were chosen: docs/results.md.
_PATIENCE = 48
_LEAST_GAIN = 0.002
# A mask that misses the bars by no more is asked for again, by its box, unless so much of it is
# covered meanwhile. Stability is judged at the network's size, where that of small masks is coarse,
# so masks this near are brought to the image's pixels in any case, and judged again.
_NEAR_STABILITY = 0.22
_NEAR_SCORE = 0.1
_COVERED = 0.8


@dataclass(frozen=True)
class Proposals:
    """What SAM proposes for an image.

    Args:
        masks: the proposals, by falling priority.
        prompts: how many points and boxes were asked for.
    """

    masks: Masks
    prompts: int


def propose(
    prompter: Prompter, images: Sequence[NDArray[np.uint8]], config: ProposalConfig
) -> list[Proposals]:
    """Propose the segments of images, none of which knows of the others.

    Args:
        prompter: the network.
        images: (H, W, 3) uint8 RGB, of one size.
        config: where to ask, and which answers count.

    Returns:
        For each image the masks that are good by SAN's rules 1 and 2: predicted IoU, stability,
        area, and box NMS in which a whole outranks its parts. They may overlap.
    """
    seen = _looked_at(prompter, images)
    return [_propose(prompter, *pair, config) for pair in zip(seen, images, strict=True)]


def _looked_at(prompter: Prompter, images: Sequence[NDArray[np.uint8]]) -> list[Seen]:
    """Encode images all at once, or as many as the memory allows."""
    try:
        return prompter.look(images)
    except RuntimeError as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    free_memory()
    half = len(images) // 2
    return _looked_at(prompter, images[:half]) + _looked_at(prompter, images[half:])


@dataclass(frozen=True)
class _Candidate:
    """A mask that was found, in few bytes, for a fine grid finds thousands.

    Args:
        level: of SAM's three answers to a prompt.
        score: predicted IoU.
        stability: as in ``Drawn``.
        area: pixels of the mask.
        box: (y0, x0, y1, x1), ends exclusive.
        bits: the pixels of the box, packed.
    """

    level: int
    score: float
    stability: float
    area: int
    box: tuple[int, int, int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, level: int, score: float, drawn: Drawn) -> _Candidate:
        """Pack a mask."""
        bits = np.packbits(drawn.mask)
        return cls(level, score, drawn.stability, drawn.area, drawn.box, bits)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The pixels of the box."""
        y0, x0, y1, x1 = self.box
        pixels = np.unpackbits(self.bits, count=(y1 - y0) * (x1 - x0))
        return pixels.view(np.bool_).reshape(y1 - y0, x1 - x0)


class _Search:
    """The search for the segments of one image.

    Args:
        prompter: the network.
        seen: the image, looked at.
        config: which answers count.
    """

    def __init__(self, prompter: Prompter, seen: Seen, config: ProposalConfig) -> None:
        self._prompter, self._seen, self._config = prompter, seen, config
        self._adaptive = config.prompting == "adaptive"
        # On a GPU a large round costs no more than a small one.
        self.step = 4 if prompter.device.type == "cpu" else 64
        self.asked = 0
        self.covered = np.zeros(seen.size, np.bool_)
        self.good: list[_Candidate] = []
        self.near: list[_Candidate] = []

    def at_points(self, points: NDArray[np.float64]) -> int:
        """Ask at points (B, 2), one at a time; return how many pixels that newly covered."""
        return self._judge(len(points), self._prompter.ask(self._seen, points[:, None]))

    def in_boxes(self, wanted: Sequence[_Candidate]) -> None:
        """Ask again for masks that were nearly good."""
        boxes = np.array([one.box for one in wanted], np.float64)[:, [1, 0, 3, 2]]
        self._judge(len(boxes), self._prompter.ask(self._seen, boxes=boxes))

    def _judge(self, asked: int, answers: Answers) -> int:
        """Sort answers into good, nearly good and useless; return the pixels newly covered."""
        self.asked += asked
        config = self._config
        slack = _NEAR_SCORE if self._adaptive else 0.0
        bars = torch.full_like(answers.scores[0], config.score)
        bars[WHOLE] = config.whole_score
        wanted = answers.scores >= bars - slack
        logits = self._prompter.logits(self._seen, answers, wanted)
        height, width = self._seen.inside
        nearly = stability(logits[:, :height, :width]) >= config.stability - _NEAR_STABILITY
        levels = wanted.nonzero()[nearly, 1].tolist()
        scores = answers.scores[wanted][nearly].tolist()
        passing = (answers.scores >= bars)[wanted][nearly].tolist()
        drawn = self._prompter.drawn(self._seen, logits[nearly])
        gained = 0
        for level, score, passes, mask in zip(levels, scores, passing, drawn, strict=True):
            if not max(1, config.min_area) <= mask.area <= config.max_share * self.covered.size:
                continue
            candidate = _Candidate.of(level, score, mask)
            if passes and mask.stability >= config.stability:
                self.good.append(candidate)
                gained += _cover(self.covered, candidate)
            elif self._adaptive:
                self.near.append(candidate)
        return gained

    def best(self) -> Masks:
        """The good masks that priority NMS keeps, by falling priority."""
        kept = _kept(self.good, self._config.nms, prefer_whole=self._config.prefer_whole)
        masks = np.zeros((len(kept), *self.covered.shape), np.bool_)
        for mask, one in zip(masks, kept, strict=True):
            _cover(mask, one)
        level = np.array([one.level for one in kept], np.int8)
        return Masks(masks, level, np.array([one.score for one in kept], np.float32))


def _propose(
    prompter: Prompter, seen: Seen, image: NDArray[np.uint8], config: ProposalConfig
) -> Proposals:
    search = _Search(prompter, seen, config)
    if config.prompting == "grid":
        points = grid_points(config.points_per_side, seen.size)
        for start in range(0, len(points), search.step):
            search.at_points(points[start : start + search.step])
    else:
        _ask_where_nothing_is(search, _innermost(seen, image), config.max_points)
        _ask_again(search, config.nms)
    return Proposals(search.best(), search.asked)


def _ask_where_nothing_is(search: _Search, points: NDArray[np.float64], most: int) -> None:
    """Ask at the points that no good mask covers yet, until that brings nothing more."""
    rounds = -(-_PATIENCE // search.step)
    gains: deque[int] = deque(maxlen=rounds)
    open_points = (one for one in points if not search.covered[int(one[1]), int(one[0])])
    while search.asked < most and (
        len(gains) < rounds or sum(gains) >= _LEAST_GAIN * search.covered.size
    ):
        batch = list(islice(open_points, min(search.step, most - search.asked)))
        if not batch:
            break
        gains.append(search.at_points(np.array(batch)))


def _ask_again(search: _Search, nms: float) -> None:
    """Ask by their boxes for the masks that points brought nearly, the most stable ones first.

    In smooth ground most points give a mask that is right but blurred at its ends; asked for what
    is in the mask's box, SAM draws the same mask clearly.
    """
    waiting = iter(_kept(search.near, nms, prefer_whole=False, by=lambda one: one.stability))
    open_masks = (one for one in waiting if _covered_share(search.covered, one) <= _COVERED)
    while batch := list(islice(open_masks, search.step)):
        search.in_boxes(batch)


def _kept(
    found: Sequence[_Candidate],
    nms: float,
    *,
    prefer_whole: bool,
    by: Callable[[_Candidate], float] = lambda one: one.score,
) -> list[_Candidate]:
    """The candidates that NMS keeps, best first."""
    level = np.array([one.level if prefer_whole else 0 for one in found], np.int8)
    rank = np.array([by(one) for one in found], np.float32)
    boxes = np.array([one.box for one in found], np.int64).reshape(-1, 4)
    return [found[index] for index in priority_nms(boxes, level, rank, nms=nms)]


def _innermost(seen: Seen, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Points to ask under adaptive prompting, in pixels of the image, most promising first."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, seen.inside, mode="area")[0].permute(1, 2, 0)
    scale = np.array(seen.size[::-1]) / seen.inside[::-1]
    points: NDArray[np.float64] = superpixel_points(small.round().to(torch.uint8).numpy()) * scale
    return points


def _cover(covered: NDArray[np.bool_], one: _Candidate) -> int:
    """Add a mask to what is covered; return how many pixels are new."""
    y0, x0, y1, x1 = one.box
    part, mask = covered[y0:y1, x0:x1], one.mask
    new = int((mask & ~part).sum())
    part |= mask
    return new


def _covered_share(covered: NDArray[np.bool_], one: _Candidate) -> float:
    """The share of a mask that is covered already."""
    y0, x0, y1, x1 = one.box
    return float((covered[y0:y1, x0:x1] & one.mask).sum() / one.area)
