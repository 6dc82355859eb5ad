"""SAM: class-agnostic masks of each window, and the labels that CRF posteriors give them.

Masks are kept apart from labels, so that changing classes or CRF settings never runs SAM again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.classes import IGNORE
from rsseg.config import LabelConfig, ProposalConfig
from rsseg.io.layers import LABELS, LayerSpec
from rsseg.io.masks import MASKS, OBJECTS, masks_spec
from rsseg.io.opinions import OPINIONS, SURE
from rsseg.ops.maskpack import pack
from rsseg.ops.purify import TAU_CONF, purify
from rsseg.ops.segments import (
    Masks,
    assign,
    background_score,
    class_scores,
    overlap_filter,
    superpixels,
)
from rsseg.stages.stage import Pool, TileData

_IMAGES_ON_GPU = 8
"""Windows whose images are encoded together on a GPU; a CPU gains nothing from more than one."""


@dataclass(frozen=True)
class MaskStage:
    """Proposals from SAM or superpixels: all masks of each window, packed.

    Args:
        config: which proposals, and SAM's thresholds.
        bands: for the 8-bit view.
        checkpoint: SAM's weights; None for superpixels.
        device: where SAM runs.
        core: side of the windows' cores, pixels.
        halo: pixels of context around them; masks reach into it.
    """

    config: ProposalConfig
    bands: Bands
    checkpoint: Path | None
    device: str
    core: int
    halo: int

    @property
    def label(self) -> str:
        """What the progress bar calls it."""
        return "superpixels" if self.checkpoint is None else "SAM masks"

    @property
    def batch_size(self) -> int:
        """Windows computed together."""
        on_gpu = self.checkpoint is not None and self.device.startswith("cuda")
        return _IMAGES_ON_GPU if on_gpu else 1

    @property
    def pool(self) -> Pool:
        """Superpixels are plain Python and numpy; SAM uses all cores or the GPU by itself."""
        return "processes" if self.checkpoint is None else "none"

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing but the image."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``masks``, a cell per window."""
        return masks_spec(self.core, self.halo)

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        size = self.writes.channels
        assert size is not None
        images = [self.bands.to_rgb(tile.image, tile.valid) for tile in tiles]
        return [pack(masks, size)[:, None, None] for masks in self._proposals(images)]

    def _proposals(self, images: Sequence[NDArray[np.uint8]]) -> list[Masks]:
        config = self.config
        if self.checkpoint is None:
            scale, least = config.superpixel_scale, config.superpixel_min_area
            return [superpixels(image, scale=scale, min_size=least) for image in images]
        return _sam_masks(load_prompter(self.checkpoint, self.device), images, config)


@lru_cache(maxsize=1)
def load_prompter(checkpoint: Path, device: str) -> Any:
    """Return the ``Prompter`` of SAM's weights; the one asked for last is kept."""
    from rsseg.nets.prompting import Prompter
    from rsseg.nets.sam import load_sam

    network: Any = load_sam(checkpoint)
    return Prompter(network.to(device))


def _sam_masks(
    prompter: Any, images: Sequence[NDArray[np.uint8]], config: ProposalConfig
) -> list[Masks]:
    from rsseg.nets.proposals import propose

    return [found.masks for found in propose(prompter, images, config)]


@dataclass(frozen=True)
class LabelStage:
    """Labels: each proposal's class by the CRF posterior inside it, the CRF's own elsewhere.

    Tiles whose tags allow one class alone get it without further ado; what no tag covers, and
    what was not measured, is 255. Where the posterior is unsure, a vision-language model's opinions
    on classes that the tags allow have the last word (SemiEarth eqs. 5, 10, 11).

    Args:
        crf: fingerprint of the ``crf`` layer.
        masks: fingerprint of the ``masks`` layer; None labels by the CRF alone.
        objects: fingerprint of the ``objects`` layer; None as well without masks.
        config: how posteriors become labels.
        overlap: share of a segment that coarser ones may cover before it is left out.
        background: index of the background class, or None.
        opinions: fingerprint of the ``opinions`` layer; None asks nobody.
        tau_conf: posterior below which opinions are heard.
    """

    crf: str
    masks: str | None
    objects: str | None
    config: LabelConfig
    overlap: float
    background: int | None
    opinions: str | None = None
    tau_conf: float = TAU_CONF
    label: str = "labels"
    batch_size: int = 1
    pool: Pool = "none"

    @property
    def reads(self) -> Mapping[str, str]:
        """Layers ``crf``, ``masks`` and ``objects``, ``opinions``."""
        wanted = {"crf": self.crf, OPINIONS: self.opinions}
        if self.masks is not None and self.objects is not None:
            wanted |= {MASKS: self.masks, OBJECTS: self.objects}
        return {name: key for name, key in wanted.items() if key is not None}

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
        labels = self._painted(labels, tile, allowed, posterior, likely, present)
        if self.opinions is None:
            return labels
        return self._purified(labels, tile.layers[OPINIONS][inner], allowed, likely.max(axis=0))

    def _painted(
        self,
        labels: NDArray[np.uint8],
        tile: TileData,
        allowed: NDArray[np.bool_],
        posterior: NDArray[np.float32],
        likely: NDArray[np.float32],
        present: NDArray[np.intp],
    ) -> NDArray[np.uint8]:
        """Return labels with the segments' classes, and without those that are not sure enough."""
        unsure = likely.max(axis=0) < self.config.min_confidence
        if tile.objects is None:
            return np.where(unsure, np.uint8(IGNORE), labels)
        masks = tile.objects.masks
        masks = masks[overlap_filter(masks, t_overlap=self.overlap)]
        scores, ids = self._scored(masks, posterior, present)
        pure = scores.max(axis=1, initial=0) >= self.config.purity
        masks = masks[pure]
        painted = assign(masks, scores[pure], labels, ids=ids.astype(np.uint8))
        # A segment may reach into a core whose tags exclude its class.
        ids = np.minimum(painted, len(allowed) - 1)[None]
        labels = np.where(np.take_along_axis(allowed, ids, axis=0)[0], painted, labels)
        labels[unsure & ~masks.masks.any(axis=0)] = IGNORE
        return labels

    def _purified(
        self,
        labels: NDArray[np.uint8],
        opinions: NDArray[np.uint8],
        allowed: NDArray[np.bool_],
        confidence: NDArray[np.float32],
    ) -> NDArray[np.uint8]:
        """Return labels (H, W) that opinions (K, H, W) on allowed classes have rectified."""
        heard = np.where(allowed, opinions, 0) / np.float32(SURE)
        purified = purify(
            torch.from_numpy(labels)[None].long(),
            torch.from_numpy(confidence)[None],
            torch.from_numpy(heard)[None],
            self.tau_conf,
        )
        return purified.label[0].numpy().astype(np.uint8)

    def _scored(
        self, masks: Masks, posterior: NDArray[np.float32], present: NDArray[np.intp]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Return the segments' scores (N, L), and which class each column is."""
        if not self.config.stretch:  # the posterior has the background's own share
            return class_scores(masks, posterior[present], stretch=False), present
        foreground = present[present != self.background]
        scores = class_scores(masks, posterior[foreground])
        if self.background is None:
            return scores, foreground
        rest = background_score(scores, alpha=self.config.background_power)
        return np.column_stack([scores, rest]), np.append(foreground, self.background)
