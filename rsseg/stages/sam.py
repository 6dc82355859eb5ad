"""SAM: class-agnostic masks of each tile, and the labels that CRF posteriors give them.

Masks are kept apart from labels, so that changing classes or CRF settings never runs SAM again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.classes import IGNORE
from rsseg.config import LabelConfig, ProposalConfig
from rsseg.io.layers import LABELS, LayerSpec
from rsseg.ops.segments import Masks, assign, background_score, class_scores, superpixels
from rsseg.stages.stage import TileData

PLANES = 4
"""Masks that may lie over each other in one pixel; any more are dropped."""
LEVEL_STEP = 20_000
"""Mask i of a level is stored as 1 + level * LEVEL_STEP + i; 0 is no mask."""


@dataclass(frozen=True)
class MaskStage:
    """Proposals from SAM or superpixels, stored as planes of mask numbers.

    Args:
        config: which proposals, and SAM's thresholds.
        bands: for the 8-bit view.
        checkpoint: SAM's weights; None for superpixels.
        device: where SAM runs.
    """

    config: ProposalConfig
    bands: Bands
    checkpoint: Path | None
    device: str
    batch_size: int = 1

    @property
    def label(self) -> str:
        """What the progress bar calls it."""
        return "SAM masks" if self.config.proposals == "sam" else "superpixels"

    @property
    def in_processes(self) -> bool:
        """Superpixels are plain Python and numpy; SAM uses all cores or the GPU by itself."""
        return self.config.proposals == "superpixels"

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing but the image."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``masks``."""
        return LayerSpec("masks", "uint16", PLANES)

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint16]]:
        return [
            pack(self._proposals(tile))[(slice(None), *tile.tile.inner.slices)] for tile in tiles
        ]

    def _proposals(self, tile: TileData) -> Masks:
        image = self.bands.to_rgb(tile.image, tile.valid)
        config = self.config
        if self.checkpoint is None:
            return superpixels(
                image, scale=config.superpixel_scale, min_size=config.superpixel_min_area
            )
        from rsseg.nets.sam import propose

        return propose(
            _load(self.checkpoint, self.device),
            image,
            points_per_side=config.points_per_side,
            device=self.device,
            t_score=config.score,
            t_whole=config.whole_score,
            t_stability=config.stability,
            nms=config.nms,
            min_area=config.min_area,
            max_share=config.max_share,
            t_overlap=config.overlap,
        )


@lru_cache(maxsize=1)
def _load(checkpoint: Path, device: str) -> Any:
    from rsseg.nets.sam import load_sam

    return load_sam(checkpoint).to(device)


def pack(masks: Masks) -> NDArray[np.uint16]:
    """Paint masks into planes, each into the first plane where it meets no other.

    Returns:
        (PLANES, H, W) uint16 mask numbers, 0 = none.
    """
    planes = np.zeros((PLANES, *masks.masks.shape[1:]), np.uint16)
    for index, (mask, level) in enumerate(zip(masks.masks, masks.level, strict=True)):
        free = next((plane for plane in planes if not plane[mask].any()), None)
        if free is not None:
            free[mask] = 1 + int(level) * LEVEL_STEP + index
    return planes


def unpack(planes: NDArray[np.uint16]) -> Masks:
    """Return the masks of packed planes (P, H, W); scores are all 1, for they are not kept."""
    found = [(plane, number) for plane in planes for number in np.unique(plane) if number]
    stacked = [plane == number for plane, number in found]
    levels = [(int(number) - 1) // LEVEL_STEP for _, number in found]
    masks = np.stack(stacked) if stacked else np.zeros((0, *planes.shape[1:]), np.bool_)
    return Masks(masks, np.array(levels, np.int8), np.ones(len(found), np.float32))


@dataclass(frozen=True)
class LabelStage:
    """Labels: each proposal's class by the CRF posterior inside it, the CRF's own elsewhere.

    Tiles whose tags allow one class alone get it without further ado; what no tag covers, and
    what was not measured, is 255.

    Args:
        crf: fingerprint of the ``crf`` layer.
        masks: fingerprint of the ``masks`` layer; None labels by the CRF alone.
        config: how posteriors become labels.
        background: index of the background class, or None.
    """

    crf: str
    masks: str | None
    config: LabelConfig
    background: int | None
    label: str = "labels"
    batch_size: int = 1
    in_processes: bool = False

    @property
    def reads(self) -> Mapping[str, str]:
        """Layers ``crf`` and ``masks``."""
        return {"crf": self.crf} | ({} if self.masks is None else {"masks": self.masks})

    @property
    def writes(self) -> LayerSpec:
        """Layer ``labels``."""
        return LABELS

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        return [self._labels(tile) for tile in tiles]

    def _labels(self, tile: TileData) -> NDArray[np.uint8]:
        # Beyond the tile's own cores lie other tiles' layers, or none.
        inner = (..., *tile.tile.inner.slices)
        allowed = tile.allowed[inner]
        wanted = (tile.valid & tile.labelled)[inner] & allowed.any(axis=0)
        present = np.flatnonzero((allowed & wanted).any(axis=(1, 2)))
        if len(present) <= 1:
            label = present[0] if len(present) else IGNORE
            return np.where(wanted, np.uint8(label), np.uint8(IGNORE))
        posterior = (tile.layers["crf"][inner] / np.float32(255)).astype(np.float32)
        likely = np.where(allowed, posterior, np.float32(-1))
        labels: NDArray[np.uint8] = likely.argmax(axis=0).astype(np.uint8)
        labels[~wanted] = IGNORE
        unsure = likely.max(axis=0) < self.config.min_confidence
        if self.masks is None:
            return np.where(unsure, np.uint8(IGNORE), labels)
        masks = unpack(tile.layers["masks"][inner])
        painted = self._assigned(masks, posterior, labels, present)
        # A segment may reach into a core whose tags exclude its class.
        ids = np.minimum(painted, len(allowed) - 1)[None]
        labels = np.where(np.take_along_axis(allowed, ids, axis=0)[0], painted, labels)
        labels[unsure & ~masks.masks.any(axis=0)] = IGNORE
        return labels

    def _assigned(
        self,
        masks: Masks,
        posterior: NDArray[np.float32],
        labels: NDArray[np.uint8],
        present: NDArray[np.intp],
    ) -> NDArray[np.uint8]:
        foreground = present[present != self.background]
        scores = class_scores(masks, posterior[foreground])
        ids = foreground
        if self.background is not None and len(masks):
            rest = background_score(scores, alpha=self.config.background_power)
            scores = np.column_stack([scores, rest])
            ids = np.append(foreground, self.background)
        return assign(masks, scores, labels, ids=ids.astype(np.uint8))
