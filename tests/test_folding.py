"""Batch normalisation folded into convolutions, for inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsseg.config import TrainConfig
from rsseg.nets.folding import folded
from rsseg.nets.segmenter import Forward, Tiny, build_segmenter
from rsseg.progress import SILENT


def lived_in(network: nn.Module) -> nn.Module:
    """Give batch norms the statistics and weights that training would."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("encoder", [None, "resnet18", "efficientnet_lite0"])
def test_a_folded_network_says_the_same_without_batch_norms(encoder: str | None) -> None:
    config = TrainConfig(encoder=encoder or "", weights="none")
    network = lived_in(
        Tiny(4, 3) if encoder is None else build_segmenter(config, 4, 3, pretrained=False)
    )
    before = norms(network)
    fast = folded(network, 4, 64)
    assert (norms(network), norms(fast)) == (before, 0)
    images = torch.randn(2, 4, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), network(images), rtol=1e-4, atol=1e-4)
    seen = Forward(network, torch.device("cpu"), SILENT)(images[..., :64].numpy())
    again = Forward(fast, torch.device("cpu"), SILENT)(images[..., :64].numpy())
    np.testing.assert_allclose(again, seen, atol=1e-4)


class Misleading(nn.Module):
    """Names a norm after a convolution that it does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.convolution(self.norm(images).relu())
        return answer


def test_what_does_not_belong_together_is_left_alone() -> None:
    network = lived_in(Misleading())
    assert folded(network, 3, 8) is network


def test_nothing_to_fold() -> None:
    network = nn.Conv2d(3, 2, 1)
    assert folded(network, 3, 8) is network
