"""Scores of a trained segmenter in the place of CAMs: a round of self-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.io.layers import LayerSpec
from rsseg.nets.checkpoint import Checkpoint
from rsseg.nets.segmenter import Forward
from rsseg.progress import SILENT
from rsseg.stages.stage import Pool, TileData

CELL = 4
"""Side of the cells in which scores are kept, pixels: as fine as DeepLabV3+ draws."""

_STRIDE = 32
"""Sides of images that go through a segmenter are multiples of it."""


@dataclass(frozen=True)
class SegmenterStage:
    """What a segmenter that learnt from pseudo-labels says of the tiles it learnt from.

    A class that the tags of a pixel's core exclude has no part, and the others share what it had.
    Stored as the CAMs are (layer ``cam``, uint8, 255 = 1), without the background, which has the
    rest.

    Args:
        checkpoint: the segmenter.
        flips: also look at the mirrored image.
        device: where the network runs.
        batch_size: windows at a time.
        foreground: indices of the classes but the background.
    """

    checkpoint: Path
    flips: bool
    device: torch.device
    batch_size: int
    foreground: tuple[int, ...]
    label: str = "scores of the segmenter"
    pool: Pool = "none"

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing but the image."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``cam``."""
        return LayerSpec("cam", "uint8", len(self.foreground), CELL)

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        changed = self.checkpoint.stat().st_mtime_ns
        forward, bands = _load(self.checkpoint, changed, self.device)
        images = np.stack([bands.normalise(tile.image, tile.valid) for tile in tiles])
        side: int = images.shape[-1]
        # Beyond what is read there is nothing: the mean.
        images = np.pad(images, [(0, 0), (0, 0), *[(0, -side % _STRIDE)] * 2])
        probabilities = forward(images)
        if self.flips:
            mirrored = forward(np.ascontiguousarray(images[..., ::-1]))[..., ::-1]
            probabilities = (probabilities + mirrored) / np.float32(2)
        seen = probabilities[..., :side, :side]
        return [self._finished(one, tile) for one, tile in zip(seen, tiles, strict=True)]

    def _finished(self, probability: NDArray[np.float32], tile: TileData) -> NDArray[np.uint8]:
        gated = probability * (tile.allowed & tile.valid)
        count, height, width = gated.shape
        cells = gated.reshape(count, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4))
        total = cells.sum(axis=0)
        cells = cells[list(self.foreground)] / np.where(total > 0, total, 1)
        cells = cells[(slice(None), *tile.tile.inner.scaled(CELL).slices)]
        stored: NDArray[np.uint8] = np.rint(cells * 255).astype(np.uint8)
        return stored


@lru_cache(maxsize=1)
def _load(checkpoint: Path, changed: int, device: torch.device) -> tuple[Forward, Bands]:
    opened = Checkpoint(checkpoint, "segmenter")
    return Forward(opened.segmenter(), device, SILENT), opened.card.bands
