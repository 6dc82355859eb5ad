"""CAM: class activation maps of a trained image-level classifier, gated by the tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.config import CamConfig, ClassifierConfig
from rsseg.io.layers import LayerSpec
from rsseg.nets.checkpoint import Card, Checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import halving, inference
from rsseg.ops.cam import multi_scale, normalise
from rsseg.progress import SILENT
from rsseg.stages.stage import TileData


@dataclass(frozen=True)
class CamStage:
    """Multi-scale, flipped CAMs of the foreground classes, stretched per window to [0, 1].

    A class that the tags of a core exclude is 0 there; within a window the other cores' tags still
    count, so the window allows their union. Stored as uint8 (255 = 1) at the network's stride.

    Args:
        checkpoint: the classifier.
        config: scales and flips.
        device: where the network runs.
        batch_size: windows at a time.
        cell: pixels per CAM cell.
        foreground: indices of the classes that have a CAM.
    """

    checkpoint: Path
    config: CamConfig
    device: torch.device
    batch_size: int
    cell: int
    foreground: tuple[int, ...]
    label: str = "class activation maps"
    in_processes: bool = False

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing but the image."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``cam``."""
        return LayerSpec("cam", "uint8", len(self.foreground), self.cell)

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        changed = self.checkpoint.stat().st_mtime_ns
        network, card = _load(self.checkpoint, changed, self.device)
        images = np.stack([card.bands.normalise(tile.image, tile.valid) for tile in tiles])
        cams = self._cams(network, images)
        return [self._finished(cam, tile) for cam, tile in zip(cams, tiles, strict=True)]

    def _cams(self, network: Classifier, images: NDArray[np.float32]) -> NDArray[np.float32]:
        cells = images.shape[-2] // self.cell, images.shape[-1] // self.cell

        def forward(batch_size: int) -> NDArray[np.float32]:
            with inference(self.device):
                parts = [
                    multi_scale(
                        network,
                        torch.from_numpy(images[start : start + batch_size]).to(self.device),
                        self.config.scales,
                        self.config.flips,
                        cells,
                    ).cpu()
                    for start in range(0, len(images), batch_size)
                ]
            return torch.cat(parts).float().numpy()

        return halving(forward, len(images), SILENT)

    def _finished(self, cam: NDArray[np.float32], tile: TileData) -> NDArray[np.uint8]:
        centre = slice(self.cell // 2, None, self.cell)
        allowed = (tile.allowed & tile.valid)[:, centre, centre]
        stretched = normalise(cam, allowed[list(self.foreground)])
        inner = stretched[(slice(None), *tile.tile.inner.scaled(self.cell).slices)]
        return np.rint(inner * 255).astype(np.uint8)


@lru_cache(maxsize=2)
def _load(checkpoint: Path, changed: int, device: torch.device) -> tuple[Classifier, Card]:
    opened = Checkpoint(checkpoint, "classifier")
    network = opened.classifier().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(network, Classifier)
    assert isinstance(opened.card.config, ClassifierConfig)
    return network, opened.card
