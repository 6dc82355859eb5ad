"""The affinity module: an embedding of cells under which what belongs together is alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseg.ops.affinity import normalised_embedding, one_hot_max, propagate
from rsseg.ops.cam import resized

LOW, HIGH, EMBEDDING = 64, 128, 192
"""Channels of the two compressed levels and of the embedding (SEAM's)."""


class Affinity(nn.Module):
    """Refines class activation maps by the affinity of cells (SAN eq. 2-4).

    Image colours, low and high features are compressed by 1 x 1 convolutions and mixed by a third
    into an embedding. These three are all that learns here: features and maps come in without
    gradient. There is neither batch norm nor dropout.

    Args:
        in_channels: bands of the images.
        low: channels of the low-level features.
        high: channels of the high-level features.
    """

    def __init__(self, in_channels: int, low: int, high: int) -> None:
        super().__init__()
        self.low = nn.Conv2d(low, LOW, 1, bias=False)
        self.high = nn.Conv2d(high, HIGH, 1, bias=False)
        self.mix = nn.Conv2d(in_channels + LOW + HIGH, EMBEDDING, 1, bias=False)
        nn.init.kaiming_normal_(self.low.weight)
        nn.init.kaiming_normal_(self.high.weight)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)

    def forward(
        self,
        cam: Tensor,
        images: Tensor,
        low: Tensor,
        high: Tensor,
        allowed: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return refined maps.

        Args:
            cam: (B, K, h, w) plain CAMs.
            images: (B, C, H, W) normalised.
            low: (B, L, ., .) features, any size.
            high: (B, M, ., .) features, any size.
            allowed: (B, K, h, w) bool, where the tags allow a class; everywhere by default.
            weight: (B, 1, h, w) float in [0, 1], how much a cell counts for others; 1 by default.

        Returns:
            (B, K, h, w) float32 in [0, 1), 0 where a class has no seed that is alike. It is not cut
            by ``allowed``.
        """
        size = cam.shape[-2], cam.shape[-1]
        levels = (
            resized(images, size, antialias=True),
            resized(self.low(low.detach()).relu().float(), size),
            resized(self.high(high.detach()).relu().float(), size),
        )
        embedding = normalised_embedding(self.mix(torch.cat(levels, dim=1)))
        return propagate(one_hot_max(cam, allowed), embedding, weight)
