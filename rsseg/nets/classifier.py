"""The image-level classifier: a backbone and 1 x 1 convolutions whose maps are the CAMs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

from rsseg.config import ClassifierConfig
from rsseg.nets.backbone import build_backbone


class Classifier(nn.Module):
    """Multi-label classifier that pools class activation maps.

    The CAM is the sum of one map per level of the backbone, each made by 1 x 1 convolutions, the
    last without bias, so that "pool, then classify" equals "classify, then pool" (SAN §3.1).
    Deep levels know what a thing is, shallow ones where it ends.

    Args:
        config: backbone, levels, hidden layer and dropout.
        in_channels: bands of the images.
        classes: number of foreground classes.
        pretrained: load ImageNet weights; False where a checkpoint follows.
    """

    def __init__(
        self, config: ClassifierConfig, in_channels: int, classes: int, *, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.cell = config.cell
        self.backbone = build_backbone(
            config.backbone,
            in_channels=in_channels,
            strides=sorted(config.strides),
            weights=config.weights if pretrained else "none",
        )
        channels: list[int] = self.backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.dropout = nn.Dropout2d(config.dropout)
        self.heads = nn.ModuleList(_head(width, config.hidden, classes) for width in channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return plain CAMs, not yet relu'd: (B, C, H, W) -> (B, K, H/cell, W/cell)."""
        size = images.shape[-2] // self.cell, images.shape[-1] // self.cell
        maps = [
            interpolate(
                head(self.dropout(features)).float(), size, mode="bilinear", align_corners=False
            )
            for head, features in zip(self.heads, self.backbone(images), strict=True)
        ]
        total: Tensor = sum(maps[1:], start=maps[0])
        return total


def _head(channels: int, hidden: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    if hidden:
        layers = [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
    last = nn.Conv2d(hidden or channels, classes, 1, bias=False)
    nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(*layers, last)
