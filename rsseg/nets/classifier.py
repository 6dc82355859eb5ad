"""The image-level classifier: a backbone and 1 x 1 convolutions whose maps are the CAMs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from rsseg.config import ClassifierConfig
from rsseg.nets.affinity import Affinity
from rsseg.nets.backbone import build_backbone, freeze


class Classifier(nn.Module):
    """Multi-label classifier that pools class activation maps.

    The CAM is the sum of one map per level of the backbone, each made by 1 x 1 convolutions, the
    last without bias, so that "pool, then classify" equals "classify, then pool" (SAN §3.1).
    Deep levels know what a thing is, shallow ones where it ends.

    Where the affinity module is configured, its low and high features are the finest and the
    coarsest of these levels, or of levels of its own (``affinity_strides``); a single level serves
    as both.

    Args:
        config: backbone, levels, hidden layer, dropout and affinity.
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
            strides=[stride for stride, _ in _levels(config)],
            weights=config.weights if pretrained else "none",
            output_stride=config.output_stride,
        )
        self._still = freeze(self.backbone, config.frozen_blocks, config.freeze_bn)
        channels: list[int] = self.backbone.feature_info.channels()  # type: ignore[union-attr, operator]
        self.dropout = nn.Dropout2d(config.dropout)
        owners = [owner for _, owner in _levels(config)]
        self._cam_levels = [index for index, owner in enumerate(owners) if owner == "cam"]
        own = [index for index, owner in enumerate(owners) if owner == "affinity"]
        self._affinity_levels = [(own or self._cam_levels)[end] for end in (0, -1)]
        self.heads = nn.ModuleList(
            _head(channels[level], config.hidden, classes) for level in self._cam_levels
        )
        low, high = (channels[level] for level in self._affinity_levels)
        self.affinity = Affinity(in_channels, low, high) if config.affinity else None

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all modules but the frozen ones, which stay in eval mode."""
        super().train(mode)
        for module in self._still:
            module.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return plain CAMs, not yet relu'd: (B, C, H, W) -> (B, K, H/cell, W/cell)."""
        return self._cam(images, self.backbone(images))

    def refined(
        self, images: Tensor, allowed: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return plain CAMs and those refined by affinity, which has to be configured.

        Args:
            images: (B, C, H, W) normalised.
            allowed: (B, K, h, w) bool, where the tags allow a class; everywhere by default.
            weight: (B, 1, h, w) float in [0, 1], how much a cell counts for others; 1 by default.

        Returns:
            Two of (B, K, h, w) with h = H/cell, w = W/cell: plain, of any range; refined, in
            [0, 1). The refined one hands no gradient to backbone and CAM.
        """
        assert self.affinity is not None
        levels = self.backbone(images)
        cam = self._cam(images, levels)
        low, high = (levels[level] for level in self._affinity_levels)
        return cam, self.affinity(cam, images, low, high, allowed, weight)

    def _cam(self, images: Tensor, levels: Sequence[Tensor]) -> Tensor:
        size = images.shape[-2] // self.cell, images.shape[-1] // self.cell
        maps = [
            interpolate(
                head(self.dropout(features)).float(), size, mode="bilinear", align_corners=False
            )
            for head, features in zip(
                self.heads, (levels[level] for level in self._cam_levels), strict=True
            )
        ]
        total: Tensor = sum(maps[1:], start=maps[0])
        return total


def _levels(config: ClassifierConfig) -> list[tuple[int, str]]:
    """Return stride and purpose of each of the backbone's maps, in their order.

    Of maps with the same stride the affinity's are the shallower ones: ``affinity`` sorts before
    ``cam``.
    """
    own = config.affinity_strides if config.affinity else ()
    return sorted([(stride, "affinity") for stride in own] + [(s, "cam") for s in config.strides])


def _head(channels: int, hidden: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    if hidden:
        layers = [nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
    last = nn.Conv2d(hidden or channels, classes, 1, bias=False)
    nn.init.normal_(last.weight, std=0.01)
    return nn.Sequential(*layers, last)
