"""CAM: class activation maps of a trained image-level classifier, gated by the tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from rsseg.config import CamConfig, ClassifierConfig
from rsseg.io.layers import LayerSpec
from rsseg.nets.checkpoint import Card, Checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import halving, inference
from rsseg.ops.cam import multi_scale, normalise, shares
from rsseg.progress import SILENT
from rsseg.stages.stage import Pool, TileData


@dataclass(frozen=True)
class CamStage:
    """Multi-scale, flipped CAMs of the foreground classes as scores in [0, 1].

    Scores are the classes' shares of a cell, or CAMs stretched per window. Where the classifier has
    learnt an affinity, the stretched maps are the refined ones: the seeds of the classes that the
    tags allow, spread at each scale and flip by themselves.

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
    pool: Pool = "none"

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
        forward: Callable[[Tensor], Tensor] = network
        if network.affinity is not None and self.config.refined and self._stretches:
            # Where classes may be travels through scales and flips as bands do.
            images = np.concatenate([images, *self._gates(tiles)], axis=1, dtype=np.float32)
            forward = partial(_refined, network, len(card.bands))
        cams = self._cams(forward, images)
        background = card.classes.background is not None
        return [
            self._finished(cam, tile, background) for cam, tile in zip(cams, tiles, strict=True)
        ]

    @property
    def _stretches(self) -> bool:
        return self.config.scores == "minmax"

    def _gates(self, tiles: Sequence[TileData]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where something was measured (N, 1, S, S) and classes allowed (N, K, S, S)."""
        valid = np.stack([tile.valid[None] for tile in tiles])
        allowed = np.stack([tile.allowed[list(self.foreground)] for tile in tiles])
        return valid, allowed & valid

    def _cams(
        self, forward: Callable[[Tensor], Tensor], images: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return (N, K, h, w) means over scales and flips of what images (N, C, S, S) become."""
        cells = images.shape[-2] // self.cell, images.shape[-1] // self.cell

        def run(batch_size: int) -> NDArray[np.float32]:
            with inference(self.device):
                parts = [
                    multi_scale(
                        forward,
                        torch.from_numpy(images[start : start + batch_size]).to(self.device),
                        self.config.scales,
                        self.config.flips,
                        cells,
                        positive=self._stretches,
                    ).cpu()
                    for start in range(0, len(images), batch_size)
                ]
            return torch.cat(parts).float().numpy()

        return halving(run, len(images), SILENT)

    def _finished(
        self, cam: NDArray[np.float32], tile: TileData, background: bool
    ) -> NDArray[np.uint8]:
        centre = slice(self.cell // 2, None, self.cell)
        allowed = (tile.allowed & tile.valid)[list(self.foreground), centre, centre]
        if self._stretches:
            scores = normalise(cam, allowed)
        else:
            scores = shares(cam, allowed, background=background)
        inner = scores[(slice(None), *tile.tile.inner.scaled(self.cell).slices)]
        return np.rint(inner * 255).astype(np.uint8)


def _refined(network: Classifier, bands: int, stack: Tensor) -> Tensor:
    """Return the refined maps of images with their gates: bands, valid, allowed."""
    images, gates = stack[:, :bands], stack[:, bands:]
    cells = images.shape[-2] // network.cell, images.shape[-1] // network.cell
    gates = adaptive_avg_pool2d(gates, cells)
    refined: Tensor = network.refined(images, gates[:, 1:] > 0.5, gates[:, :1])[1]
    return refined


@lru_cache(maxsize=2)
def _load(checkpoint: Path, changed: int, device: torch.device) -> tuple[Classifier, Card]:
    opened = Checkpoint(checkpoint, "classifier")
    network = opened.classifier().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(network, Classifier)
    assert isinstance(opened.card.config, ClassifierConfig)
    return network, opened.card
