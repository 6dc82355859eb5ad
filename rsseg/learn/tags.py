"""Image tags: the classifier whose activation maps seed the pseudo-labels (SAN §3.1, §3.2)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.classification import BinaryAveragePrecision, MultilabelAveragePrecision

from rsseg.config import ClassifierConfig
from rsseg.learn.objective import Batch, two_speed_groups
from rsseg.nets.classifier import Classifier
from rsseg.ops.cam import competitive_pool, multilabel_loss, pool
from rsseg.ops.consistency import consistency_loss, cross_loss, spread, stretched
from rsseg.ops.views import View

COLLAPSED = 1e-6
"""Spatial variance of refined maps below which they count as constant (a deviation of 0.001)."""

PATIENCE = 100
"""Steps in a row with constant maps that are an alarm; an untrained affinity begins with some."""


class TagObjective:
    """Multi-label classification of tile cores by pooled CAMs, of one view or of two.

    With two branches every batch is seen twice by the same network: as it is, and turned, mirrored
    and at another size, drawn once for all images of the batch from torch's generator. The second
    branch's maps are brought back to the first frame. There

        L = mean of both branches' tag losses (eq. 6)
            + consistency * |CAM1 - CAM2| (eq. 5)
            + cross * (|CAM2 - refined1| + |CAM1 - refined2|, SEAM's)

    on maps stretched to [0, 1] per window and class and gated by the tags of each core. Where a
    core's tags are unknown every class is allowed. The halo has no tags and no part in any loss.

    Args:
        network: gives CAMs.
        config: pooling, branches and learning rates.
        halo: pixels around the cores that are seen but not pooled.
        count: cores per side of a window.
        classes: number of foreground classes.
        background: whether cells may belong to none of them.
    """

    def __init__(
        self,
        network: Classifier,
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
        self._collapse = _Collapse()
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
        """Return the loss of the configured branches over all tagged cores."""
        if self._config.two_branches:
            return self._siamese_loss(batch, View.draw(self._config.view_scales))
        return self._tag_loss(self._plain(batch), batch)

    def _plain(self, batch: Batch) -> Tensor:
        """Return the CAMs of the cores, without halo."""
        cam: Tensor = self.network(batch["image"])
        return self._inner(cam.float())

    def _inner(self, maps: Tensor) -> Tensor:
        border = self._border
        return maps[..., border:-border, border:-border] if border else maps

    def _logits(self, cam: Tensor, batch: Batch) -> Tensor:
        if self._config.pooling == "mean":
            return pool(cam, batch["weight"], self._count)
        return competitive_pool(cam, batch["weight"], self._count, background=self._background)

    def _tag_loss(self, cam: Tensor, batch: Batch) -> Tensor:
        """Return the multi-label soft margin loss of one branch."""
        return multilabel_loss(self._logits(cam, batch), batch["tags"])

    def _siamese_loss(self, batch: Batch, view: View) -> Tensor:
        """Return the loss of the image and of its view."""
        config = self._config
        allowed = _allowed(batch)
        weight = batch["weight"]
        first, second = (self._branch(batch, allowed, one) for one in (View(), view))
        loss = (self._tag_loss(first.plain, batch) + self._tag_loss(second.plain, batch)) / 2
        plain1, plain2 = (stretched(branch.plain, allowed) for branch in (first, second))
        if first.refined is None or second.refined is None:
            return loss + config.consistency * consistency_loss(plain1, plain2, weight)
        self._collapse.look(first.refined.detach(), allowed)
        refined1, refined2 = (stretched(maps, allowed) for maps in (first.refined, second.refined))
        pair = (plain1, plain2) if config.consistency_on == "plain" else (refined1, refined2)
        consistency = consistency_loss(pair[0], pair[1], weight)
        cross = cross_loss(plain2, refined1, weight) + cross_loss(plain1, refined2, weight)
        return loss + config.consistency * consistency + config.cross * cross

    def _branch(self, batch: Batch, allowed: Tensor, view: View) -> _Branch:
        """Return the maps of a batch seen in a view, brought back, without halo."""
        image = batch["image"]
        cell = self._config.cell
        multiple = math.lcm(*self._config.strides)
        size = image.shape[-2] // cell, image.shape[-1] // cell
        seen = view.apply(image, multiple)
        if not self._config.affinity:
            return _Branch(self._inner(view.undo(self.network(seen).float(), size)), None)
        # The halo is neither a seed nor a part of any mean: it has no tags.
        around = [self._border] * 4
        share = view.apply(pad(batch["weight"], around), multiple // cell)
        seeds = view.apply(pad(allowed.to(share.dtype), around), multiple // cell) > 0.5
        maps = self.network.refined(seen, seeds, share)
        return _Branch(*(self._inner(view.undo(one.float(), size)) for one in maps))

    def parts(self) -> dict[str, Tensor]:
        """Return nothing: the loss is all there is."""
        return {}

    def stepped(self) -> None:
        """Do nothing."""

    def warnings(self) -> list[str]:
        """Return a warning where the refined maps stay constant; once."""
        return self._collapse.warnings()

    def validate(self, batch: Batch) -> None:
        """Take note of the tags of held-back cores."""
        logits = self._logits(self._plain(batch), batch).flatten(end_dim=-2)
        tags = batch["tags"].flatten(end_dim=-2)
        known = (tags >= 0).any(dim=-1)
        if bool(known.any()):
            self._metric.update(torch.sigmoid(logits[known]).cpu(), tags[known].long().cpu())

    def validation_scores(self) -> dict[str, float]:
        """Return the mean average precision over the classes."""
        value = float(self._metric.compute())
        self._metric.reset()
        return {"val_map": value}


class _Branch(NamedTuple):
    """Maps of one branch, (B, K, h, w) in the first branch's frame."""

    plain: Tensor
    refined: Tensor | None


class _Collapse:
    """Watches whether the refined maps become constant: losses fall then, and nothing is learnt."""

    def __init__(self) -> None:
        self._constant = 0
        self._warned = False

    def look(self, refined: Tensor, allowed: Tensor) -> None:
        """Take note of a step's maps."""
        self._constant = self._constant + 1 if spread(refined, allowed) < COLLAPSED else 0

    def warnings(self) -> list[str]:
        """Return what there is to say by now."""
        if self._warned or self._constant < PATIENCE:
            return []
        self._warned = True
        return [
            f"the refined maps have been constant for {self._constant} steps: the affinity has "
            'collapsed; set consistency_on = "plain" and cross = 1, or a lower lr'
        ]


def _allowed(batch: Batch) -> Tensor:
    """Return where the tags of the cores allow a class and something was measured.

    (B, K, h, w) bool over the cells of the cores.
    """
    tags = batch["tags"].permute(0, 3, 1, 2)
    repeats = [
        cells // cores
        for cells, cores in zip(batch["weight"].shape[-2:], tags.shape[-2:], strict=True)
    ]
    possible = (tags != 0).repeat_interleave(repeats[0], -2).repeat_interleave(repeats[1], -1)
    return possible & (batch["weight"] > 0)
