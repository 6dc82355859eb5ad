"""Checkpoints for the prediction benchmark: random but fixed weights, or trained ones."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from predict_nets import PIXEL, Card
from torch import Tensor, nn

from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import TrainConfig
from rsseg.nets import checkpoint
from rsseg.nets.backbone import TIMM_NAMES

CLASSES = 6
TRAINED = "trained"
"""The model that was given instead of being drawn."""

SPREAD = 3.0
"""Standard deviation of a class's logits over the sample: much as in a trained network."""


@dataclass(frozen=True)
class Model:
    """A network of random weights.

    Args:
        arch: as in ``TrainConfig``, or ``pixel``.
        encoder: as in ``TrainConfig``.
    """

    arch: str
    encoder: str


MODELS = {
    PIXEL: Model(PIXEL, "none"),
    "deeplab": Model("deeplabv3plus", "resnet18"),
    "deeplab50": Model("deeplabv3plus", "resnet50"),
}


def make(path: Path, model: Model, sample: NDArray[np.uint8]) -> None:
    """Write a checkpoint of random weights that gives every class its share, and its card.

    Args:
        path: the file.
        model: what it holds.
        sample: (B, 3, S, S) uint8, windows on which the weights are adjusted.
    """
    let_in(PIXEL)
    bands = Bands((1, 2, 3), "uint8", (0.0,) * 3, (255.0,) * 3, (0, 1, 2), (0,) * 3, (255,) * 3)
    config = TrainConfig(
        arch=model.arch, encoder=model.encoder, weights="none", window=512, overlap=0.25
    )
    torch.manual_seed(0)
    network = checkpoint.build_segmenter(config, len(bands), CLASSES, pretrained=False)
    adjust(network, torch.from_numpy(sample).float() / 255)
    classes = Classes.from_names([f"class {k}" for k in range(CLASSES)])
    Card(model.arch, model.encoder, CLASSES).write(path)
    card = checkpoint.Card("segmenter", config, classes, bands, 0.5)
    checkpoint.save_checkpoint(path, network, card)


def adjust(network: nn.Module, sample: Tensor) -> None:
    """Give random weights the statistics of trained ones, in place.

    Batch norms get those of the sample, logits mean 0 and a common spread in each class: else one
    class would win nearly everywhere, and maps would agree whatever was wrong with them.

    Args:
        network: its last convolution gives the logits.
        sample: (B, C, S, S), normalised.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(sample)
        network.eval()
        logits = network(sample)
        last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        assert last.bias is not None
        gain = SPREAD / logits.std(dim=(0, 2, 3))
        last.weight *= gain[:, None, None, None]
        last.bias.copy_((last.bias - logits.mean(dim=(0, 2, 3))) * gain)


def take(path: Path, trained: Path) -> None:
    """Copy a trained checkpoint, and write its card."""
    card = checkpoint.Checkpoint(trained, "segmenter").card
    config, bands = card.config, card.bands
    assert isinstance(config, TrainConfig)
    if bands.indices != (1, 2, 3):
        sys.exit(f"{trained}: sees bands {bands.indices}; the other tools are given 1, 2, 3")
    timm = TIMM_NAMES.get(config.encoder)
    encoder = config.encoder if timm is None else f"tu-{timm}"
    Card(config.arch, encoder, len(card.classes), bands.mean, bands.std).write(path)
    shutil.copyfile(trained, path)


def let_in(arch: str) -> None:
    """Let rsseg build the network of one convolution, in this process alone.

    No product has a use for it; here it shows what all but the network costs.
    """
    usual = checkpoint.build_segmenter

    def build(
        config: TrainConfig, in_channels: int, classes: int, *, pretrained: bool = True
    ) -> nn.Module:
        if config.arch == arch:
            return nn.Conv2d(in_channels, classes, 1)
        return usual(config, in_channels, classes, pretrained=pretrained)

    checkpoint.build_segmenter = build
