"""Segment proposals of images from SAM, without being asked for anything (SAN section 3.3.1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rsseg.config import ProposalConfig
from rsseg.nets.decoder import PromptNet
from rsseg.nets.prompting import Drawn, Prompter, Seen, stability
from rsseg.ops.seeds import grid_points, superpixel_points
from rsseg.ops.segments import WHOLE, Masks, priority_nms

# Masks are judged at the network's size first; nearly stable ones are judged again in the image's
# pixels, as SAM's own generator does.
_DOUBT = 0.05
# Adaptive prompting ends when so many points in a row have brought less than that share of the
# window.
_PATIENCE = 48
_LEAST_GAIN = 0.002


@dataclass(frozen=True)
class Proposals:
    """What SAM proposes for an image.

    Args:
        masks: the proposals, by falling priority.
        points: how many points were asked.
    """

    masks: Masks
    points: int


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
    seen = prompter.look(images)
    return [_propose(prompter, *pair, config) for pair in zip(seen, images, strict=True)]


@dataclass(frozen=True)
class _Candidate:
    level: int
    score: float
    drawn: Drawn


def _propose(
    prompter: Prompter, seen: Seen, image: NDArray[np.uint8], config: ProposalConfig
) -> Proposals:
    adaptive = config.prompting == "adaptive"
    points = _innermost(seen, image) if adaptive else grid_points(config.points_per_side, seen.size)
    # On a GPU a large round costs as much as a small one.
    step = 4 if prompter.device.type == "cpu" else 64
    covered = np.zeros(seen.size, np.bool_)
    gains: deque[int] = deque(maxlen=-(-_PATIENCE // step))
    found: list[_Candidate] = []
    asked = 0
    for batch in _uncovered(points, covered, step):
        new = _answers(prompter, seen, batch, config)
        found += new
        asked += len(batch)
        if adaptive:
            gains.append(sum(_cover(covered, one.drawn) for one in new))
            idle = len(gains) == gains.maxlen and sum(gains) < _LEAST_GAIN * covered.size
            if idle or asked >= config.max_points:
                break
    return Proposals(_best(found, seen.size, config.nms), asked)


def _innermost(seen: Seen, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Points to ask under adaptive prompting, in pixels of the image, most promising first."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, seen.inside, mode="area")[0].permute(1, 2, 0)
    scale = np.array(seen.size[::-1]) / seen.inside[::-1]
    return superpixel_points(small.round().to(torch.uint8).numpy()) * scale


def _uncovered(
    points: NDArray[np.float64], covered: NDArray[np.bool_], step: int
) -> Iterator[NDArray[np.float64]]:
    """Batches of the points that are not covered when their turn comes."""
    batch = []
    for point in points:
        if not covered[int(point[1]), int(point[0])]:
            batch.append(point)
        if len(batch) == step:
            yield np.array(batch)
            batch = []
    if batch:
        yield np.array(batch)


def _answers(
    prompter: Prompter, seen: Seen, points: NDArray[np.float64], config: ProposalConfig
) -> list[_Candidate]:
    """The good masks of some points."""
    answers = prompter.ask(seen, points[:, None])
    bars = torch.full_like(answers.scores[0], config.score)
    bars[WHOLE] = config.whole_score
    wanted = answers.scores >= bars
    logits = prompter.logits(seen, answers, wanted)
    hopeful = stability(logits[:, : seen.inside[0], : seen.inside[1]]) >= config.stability - _DOUBT
    levels = wanted.nonzero()[hopeful, 1].tolist()
    scores = answers.scores[wanted][hopeful].tolist()
    most = config.max_share * seen.size[0] * seen.size[1]
    candidates = map(_Candidate, levels, scores, prompter.drawn(seen, logits[hopeful]))
    return [
        one
        for one in candidates
        if one.drawn.stability >= config.stability
        and max(1, config.min_area) <= one.drawn.mask.sum() <= most
    ]


def _cover(covered: NDArray[np.bool_], drawn: Drawn) -> int:
    """Add a mask to what is covered; return how many pixels are new."""
    y0, x0, y1, x1 = drawn.box
    part = covered[y0:y1, x0:x1]
    new = int((drawn.mask & ~part).sum())
    part |= drawn.mask
    return new


def _best(found: Sequence[_Candidate], size: tuple[int, int], nms: float) -> Masks:
    """The candidates that priority NMS keeps, by falling priority."""
    level = np.array([one.level for one in found], np.int8)
    score = np.array([one.score for one in found], np.float32)
    boxes = np.array([one.drawn.box for one in found], np.int64).reshape(-1, 4)
    kept = priority_nms(boxes, level, score, nms=nms)
    masks = np.zeros((len(kept), *size), np.bool_)
    for mask, index in zip(masks, kept, strict=True):
        _cover(mask, found[index].drawn)
    return Masks(masks, level[kept], score[kept])
