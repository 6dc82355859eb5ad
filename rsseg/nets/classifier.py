"""The image-level classifier: a backbone and a 1 x 1 convolution whose maps are the CAMs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseg.config import ClassifierConfig
from rsseg.nets.backbone import build_backbone


class Classifier(nn.Module):
    """Multi-label classifier by global average pooling of class activation maps.

    A 1 x 1 convolution without bias after the backbone gives the CAMs; their mean over a region
    is the region's logits, for "pool, then classify" equals "classify, then pool" (SAN §3.1).

    Args:
        config: which backbone, stride and dropout.
        in_channels: bands of the images.
        classes: number of foreground classes.
        pretrained: load ImageNet weights; False where a checkpoint follows.
    """

    def __init__(
        self, config: ClassifierConfig, in_channels: int, classes: int, *, pretrained: bool = True
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(
            config.backbone,
            in_channels=in_channels,
            output_stride=config.output_stride,
            weights=config.weights if pretrained else "none",
        )
        info: list[dict[str, int]] = self.backbone.feature_info.get_dicts()  # type: ignore[union-attr, operator]
        self.dropout = nn.Dropout2d(config.dropout)
        self.cam = nn.Conv2d(info[-1]["num_chs"], classes, kernel_size=1, bias=False)
        nn.init.normal_(self.cam.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Return plain CAMs, not yet relu'd: (B, C, H, W) -> (B, K, H/stride, W/stride)."""
        features: Tensor = self.backbone(images)[-1]
        cam: Tensor = self.cam(self.dropout(features))
        return cam

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that no pretraining has seen."""
        return list(self.cam.parameters())


def class_probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class: independent sigmoids."""
    return torch.sigmoid(logits)
