"""The two generators of masks, side by side: segment_anything's own and rsseg's.

A *way* is a generator with its number of points: ``official 32`` and ``grid 32`` take a grid of
32 x 32, by the same rules and in single precision; ``adaptive`` is rsseg as it comes, ``adaptive
64`` with at most 64 points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from torch import Tensor, nn

from rsseg.config import ProposalConfig, fingerprint
from rsseg.nets import decoder, prompting, proposals
from rsseg.nets import sam as first_sam
from rsseg.nets.device import fast_dtype
from rsseg.nets.prompting import Prompter
from rsseg.nets.proposals import Proposals, propose
from rsseg.nets.sam import load_sam
from rsseg.ops import seeds, segments
from rsseg.ops.segments import Masks

T = TypeVar("T")
Image = NDArray[np.uint8]

OFFICIAL, GRID, ADAPTIVE = "official", "grid", "adaptive"


@dataclass(frozen=True)
class Way:
    """A generator and how many points it may ask.

    Args:
        kind: ``official``, ``grid`` or ``adaptive``.
        count: points per side of the grid; of ``adaptive`` most points, None for its default.
    """

    kind: str
    count: int | None = None

    @property
    def name(self) -> str:
        """As on the command line and in tables."""
        return self.kind if self.count is None else f"{self.kind} {self.count}"

    @property
    def key(self) -> str:
        """The name in one word."""
        return self.name.replace(" ", "-")

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read a name.

        Raises:
            ValueError: it is none.
        """
        kind, _, count = text.strip().partition(" ")
        if kind not in (OFFICIAL, GRID, ADAPTIVE) or (not count and kind != ADAPTIVE):
            raise ValueError(f"{text!r}: a way is 'official N', 'grid N', 'adaptive [N]'")
        return cls(kind, int(count) if count else None)

    @property
    def config(self) -> ProposalConfig:
        """Settings of rsseg's generator; of the official one the thresholds are taken."""
        default = ProposalConfig()
        if self.kind == ADAPTIVE:
            most = default.max_points if self.count is None else self.count
            return replace(default, prompting="adaptive", max_points=most)
        return replace(
            default,
            prompting="grid",
            points_per_side=self.count or default.points_per_side,
            whole_score=default.score,
            prefer_whole=False,
            max_share=1.0,
            min_area=0,
        )


class Heavy(nn.Module):
    """A ViT-H of random weights that costs its time, and an encoder whose features are used.

    Random features have no masks, and then nothing would be left to upsample and to filter.

    Args:
        encoder: the encoder that is used.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.img_size = encoder.img_size
        self.encoder = encoder
        self.heavy = sam_model_registry["vit_h"]().image_encoder

    def forward(self, x: Tensor) -> Tensor:
        """The encoder's features."""
        features: Tensor = self.encoder(x)
        # No compiler leaves this out, for 0 times infinity would not be 0.
        return features + 0 * self.heavy(x)


def load(checkpoint: Path, device: torch.device, *, heavy: bool) -> Any:
    """Return a SAM on a device; ``heavy`` adds the time of a ViT-H to its encoder's."""
    net: Any = load_sam(checkpoint)
    if heavy:
        net.sam.image_encoder = Heavy(net.sam.image_encoder)
    return net.to(device).eval().requires_grad_(False)


def state(way: Way) -> str:
    """Return what stands for all that decides a way's masks: settings and, of rsseg's, code."""
    config = way.config
    if way.kind == OFFICIAL:
        return fingerprint(config.points_per_side, config.score, config.stability, config.nms)
    return fingerprint(config, _sources())


@cache
def _sources() -> str:
    files = (decoder, prompting, proposals, first_sam, seeds, segments)
    return "".join(Path(str(file.__file__)).read_text(encoding="utf-8") for file in files)


def generate(net: Any, way: Way, image: Image) -> Proposals:
    """Return a way's masks of one image.

    Args:
        net: from ``load_sam``, on the device to run on.
        way: which generator.
        image: (H, W, 3) uint8.
    """
    if way.kind == OFFICIAL:
        return Official(net.sam, way.config)(image)
    return propose(prompter(net, exact=way.kind == GRID), [image], way.config)[0]


@cache
def prompter(net: Any, *, exact: bool) -> Prompter:
    """Return what asks a network for rsseg.

    Args:
        net: from ``load``.
        exact: single precision, in which masks are the official ones; else whatever is fastest.
    """
    return Prompter(net, torch.float32 if exact else None)


class Official:
    """``SamAutomaticMaskGenerator`` as it is, with rsseg's thresholds.

    It does not say which of the three masks of a point it took. That is found by overhearing its
    predictor: the mask of a point whose predicted IoU is the one that was returned.

    Args:
        sam: segment_anything's own network.
        config: thresholds and points per side.
    """

    def __init__(self, sam: Any, config: ProposalConfig) -> None:
        self._points = config.points_per_side
        self._generator = SamAutomaticMaskGenerator(
            sam,
            points_per_side=config.points_per_side,
            pred_iou_thresh=config.score,
            stability_score_thresh=config.stability,
            box_nms_thresh=config.nms,
        )
        self._heard: list[tuple[Tensor, Tensor]] = []
        predictor = self._generator.predictor
        answer = predictor.predict_torch

        def overheard(points: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
            found: tuple[Tensor, Tensor, Tensor] = answer(points, *rest, **options)
            self._heard.append((points[:, 0], found[1]))
            return found

        predictor.predict_torch = overheard

    def __call__(self, image: Image) -> Proposals:
        self._heard.clear()
        records = self._generator.generate(image)
        points = torch.cat([points for points, _ in self._heard]).cpu().numpy()
        scores = torch.cat([scores for _, scores in self._heard]).float().cpu().numpy()
        size = (image.shape[0], image.shape[1])
        asked = np.array([one["point_coords"][0] for one in records]).reshape(-1, 2)
        scaled = self._generator.predictor.transform.apply_coords(asked, size)
        found = np.array([one["predicted_iou"] for one in records], np.float32)
        masks = np.array([one["segmentation"] for one in records], np.bool_).reshape(-1, *size)
        return Proposals(
            Masks(masks, levels(scaled, found, points, scores), found), self._points**2
        )


def levels(
    points: NDArray[np.float64],
    found: NDArray[np.float32],
    asked: NDArray[np.float64],
    scores: NDArray[np.float32],
) -> NDArray[np.int8]:
    """Return which of the masks of their points these are.

    Args:
        points: (N, 2) x, y of the masks.
        found: (N,) their predicted IoU.
        asked: (P, 2) x, y of all points.
        scores: (P, 3) predicted IoU of the three masks of each, sub-part, part, whole.

    Returns:
        (N,) int8: 0, 1 or 2.

    Raises:
        ValueError: a point was not asked, or none of its masks has that predicted IoU.
    """
    rows = {(float(x), float(y)): row for (x, y), row in zip(asked, scores, strict=True)}
    level = np.zeros(len(points), np.int8)
    for index, ((x, y), score) in enumerate(zip(points, found, strict=True)):
        row = rows.get((float(x), float(y)))
        if row is None or score not in row:
            raise ValueError(f"no mask of predicted IoU {score} at ({x}, {y}) was overheard")
        level[index] = int(np.argmax(row == score))
    return level


def timed(device: torch.device, call: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns, and the seconds until the device had done with it."""
    synchronise(device)
    start = time.perf_counter()
    found = call()
    synchronise(device)
    return found, time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def encoder_seconds(net: Any, device: torch.device, repeats: int, *, exact: bool) -> float:
    """Return the median seconds of the image encoder's own forward, of one image.

    Args:
        net: from ``load``.
        device: where it is.
        repeats: how often it is timed.
        exact: single precision, as the official generator has it; else as rsseg runs it.
    """
    pixels = torch.zeros(1, 3, net.frame, net.frame, device=device)
    dtype = torch.float32 if exact else fast_dtype(device)
    if not exact:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        spent = [timed(device, lambda: net.embed(pixels))[1] for _ in range(repeats)]
    return float(np.median(spent))


def together_seconds(
    net: Any, device: torch.device, way: Way, images: Sequence[Image]
) -> tuple[list[Proposals], float]:
    """Return the proposals of all images asked in one call, and the seconds of that call."""
    return timed(device, lambda: propose(prompter(net, exact=False), images, way.config))
