"""Image tags: the classifier whose activation maps seed the pseudo-labels (SAN §3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision

from rsseg.config import ClassifierConfig
from rsseg.learn.objective import Batch, two_speed_groups
from rsseg.nets.classifier import Classifier
from rsseg.ops.cam import multilabel_loss, pool


class TagObjective:
    """Multi-label classification of tile cores by pooled CAMs.

    Args:
        network: gives CAMs.
        config: learning rates.
        halo: pixels around the cores that are seen but not pooled.
        count: cores per side of a window.
    """

    def __init__(
        self, network: Classifier, config: ClassifierConfig, halo: int, count: int
    ) -> None:
        self.network = network
        self._config = config
        self._border = halo // config.output_stride
        self._count = count
        self._metric = MultilabelAveragePrecision(
            num_labels=network.cam.out_channels, average="macro", ignore_index=-1
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the pretrained backbone learns more slowly."""
        config = self._config
        slow = list(self.network.backbone.parameters())
        return two_speed_groups(
            self.network, slow, config.lr, config.backbone_lr_factor, config.weight_decay
        )

    def loss(self, batch: Batch) -> Tensor:
        """Return the multi-label soft margin loss over all tagged cores."""
        return multilabel_loss(self._logits(batch), batch["tags"])

    def _logits(self, batch: Batch) -> Tensor:
        cam: Tensor = self.network(batch["image"]).float()
        border = self._border
        if border:
            cam = cam[..., border:-border, border:-border]
        return pool(cam, batch["weight"], self._count)

    def validate(self, batch: Batch) -> None:
        """Take note of the tags of held-back cores."""
        logits = self._logits(batch).flatten(end_dim=-2)
        tags = batch["tags"].flatten(end_dim=-2)
        known = (tags >= 0).any(dim=-1)
        if bool(known.any()):
            self._metric.update(torch.sigmoid(logits[known]).cpu(), tags[known].long().cpu())

    def validation_scores(self) -> dict[str, float]:
        """Return the mean average precision over the classes."""
        value = float(self._metric.compute())
        self._metric.reset()
        return {"val_map": value}
