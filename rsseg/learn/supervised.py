"""Dense labels: the segmenter learns from pseudo-labels or from a class raster."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassJaccardIndex

from rsseg.classes import IGNORE
from rsseg.config import TrainConfig
from rsseg.learn.objective import Batch, two_speed_groups
from rsseg.nets.segmenter import encoder_parameters


class SupervisedObjective:
    """Pixel-wise cross entropy.

    Args:
        network: (B, C, S, S) -> logits (B, K, S, S).
        config: learning rates.
        classes: number of classes K.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, classes: int) -> None:
        self.learner = network
        self._config = config
        self._metric = MulticlassJaccardIndex(classes, ignore_index=IGNORE)

    @property
    def network(self) -> nn.Module:
        """All that has weights."""
        return self.learner

    @property
    def trained(self) -> nn.Module:
        """The network to keep in the end."""
        return self.learner

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the pretrained encoder learns more slowly."""
        config = self._config
        slow = list(encoder_parameters(self.learner))
        return two_speed_groups(
            self.learner, slow, config.lr, config.encoder_lr_factor, config.weight_decay
        )

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross entropy over the labelled pixels; 0 where there is none."""
        return label_loss(self.learner(batch["image"]), batch["label"])

    def parts(self) -> dict[str, Tensor]:
        """Return nothing: the loss is all there is."""
        return {}

    def stepped(self) -> None:
        """Do nothing."""

    def warnings(self) -> list[str]:
        """Return nothing: a cross entropy that stays high shows in the loss."""
        return []

    def validate(self, batch: Batch) -> None:
        """Take note of held-back crops."""
        logits: Tensor = self.network(batch["image"]).float()
        self._metric.update(logits.argmax(dim=1).cpu(), batch["label"].cpu())

    def validation_scores(self) -> dict[str, float]:
        """Return the mIoU against the labels trained on, which may be pseudo-labels."""
        value = float(self._metric.compute())
        self._metric.reset()
        return {"val_miou": value}


def label_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the mean cross entropy over the labelled pixels; 0 where there is none.

    Args:
        logits: (B, K, S, S).
        label: (B, S, S) int64 class indices, 255 = unlabelled.
    """
    total = cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)
