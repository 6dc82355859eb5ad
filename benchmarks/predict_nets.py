"""The networks of the prediction benchmark as plain modules, made without rsseg.

The other tools may live in an environment of their own; there nothing of rsseg can be imported.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

PIXEL = "pixel"
"""The architecture of one 1 x 1 convolution."""


@dataclass(frozen=True)
class Card:
    """What a plain module is made of.

    Args:
        arch: ``pixel``, or an architecture of segmentation-models-pytorch.
        encoder: of the architecture, as segmentation-models-pytorch names it.
        classes: their number.
        mean: taken from the bytes of each band.
        std: what they are divided by then.
    """

    arch: str
    encoder: str
    classes: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)

    def write(self, checkpoint: Path) -> None:
        """Write it beside the tensors of its network."""
        checkpoint.with_suffix(".json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, checkpoint: Path) -> Card:
        """Read it from beside the tensors of its network."""
        found = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
        return cls(**found | {name: tuple(found[name]) for name in ("mean", "std")})


def build(card: Card) -> nn.Module:
    """Return the untrained network (B, C, S, S) -> logits (B, K, S, S)."""
    bands = len(card.mean)
    if card.arch == PIXEL:
        return nn.Conv2d(bands, card.classes, 1)
    import segmentation_models_pytorch as smp

    network: nn.Module = smp.create_model(
        card.arch,
        encoder_name=card.encoder,
        encoder_weights=None,
        in_channels=bands,
        classes=card.classes,
    )
    return network


def load(checkpoint: Path) -> tuple[nn.Module, Card]:
    """Return the network whose tensors a file holds, in evaluation mode, and its card."""
    card = Card.read(checkpoint)
    network = build(card)
    network.load_state_dict(safetensors.torch.load_file(checkpoint))
    return network.eval(), card


class Fed(nn.Module):
    """A network that normalises what it is fed, and counts it.

    Args:
        network: takes normalised images.
        card: says how they are normalised.
        white: what the brightest byte has become when it arrives: 255, or 1.
    """

    def __init__(self, network: nn.Module, card: Card, white: float) -> None:
        super().__init__()
        self.network = network
        self.pixels = 0
        mean, std = (torch.tensor(v)[:, None, None] * white / 255 for v in (card.mean, card.std))
        # As rsseg's checkpoints of random weights have it, so that nothing is left to do.
        self.plain = bool((mean == 0).all() and (std == 1).all())
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), bytes or shares -> logits (B, K, H, W)."""
        self.pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
        if not self.plain:
            images = (images.float() - self.mean) / self.std
        logits: Tensor = self.network(images)
        return logits
