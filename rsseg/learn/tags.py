"""Image tags: the classifier whose activation maps seed the pseudo-labels (SAN §3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from rsseg.config import ClassifierConfig
from rsseg.learn.objective import Batch, two_speed_groups
from rsseg.ops.cam import competitive_pool, multilabel_loss, pool


class TagObjective:
    """Multi-label classification of tile cores by pooled CAMs.

    Args:
        network: gives CAMs.
        config: pooling and learning rates.
        halo: pixels around the cores that are seen but not pooled.
        count: cores per side of a window.
        classes: number of foreground classes.
        background: whether cells may belong to none of them.
    """

    def __init__(
        self,
        network: nn.Module,
        config: ClassifierConfig,
        halo: int,
        count: int,
        classes: int,
        background: bool,
    ) -> None:
        self.network = network
        self._config = config
        self._border = halo // config.cell
        self._count = count
        self._background = background
        # torchmetrics has no multi-label task of one label.
        self._metric = (
            BinaryAveragePrecision(ignore_index=-1)
            if classes == 1
            else MultilabelAveragePrecision(classes, average="macro", ignore_index=-1)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the pretrained backbone learns more slowly."""
        config = self._config
        backbone = self.network.get_submodule("backbone")
        slow = list(backbone.parameters())
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
        if self._config.pooling == "mean":
            return pool(cam, batch["weight"], self._count)
        return competitive_pool(cam, batch["weight"], self._count, background=self._background)

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
