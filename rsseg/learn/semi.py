"""Few labels: a student learns from them and from its teacher's labels of unlabelled tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseg.classes import IGNORE
from rsseg.config import SemiConfig, TrainConfig
from rsseg.learn.objective import Batch
from rsseg.learn.supervised import SupervisedObjective, label_loss
from rsseg.nets.teacher import new_teacher, update_teacher
from rsseg.ops.cutmix import CutMix
from rsseg.ops.purify import Purified, loss_weights, purify, weighted_cross_entropy


class SemiObjective(SupervisedObjective):
    """Cross entropy on labelled tiles, and against a teacher on all others.

    The teacher, an average of the student over the steps, labels the weak view of an unlabelled
    crop. The student sees the strong view of it, with boxes of other crops in it (CutMix), and
    learns these labels where the teacher is sure of them. With ``opinions`` in the batch they are
    purified first where it is not. The teacher is what is validated and kept. The loss is

        (L + w U) / (1 + w)

    with L the mean over the labelled pixels and U the sum over the pixels learnt from divided by
    the number of all valid ones, so a teacher that is sure of little has little to say (UniMatch).
    Labelled crops and strong views go through the student together and share its batch norm.

    Args:
        network: the student, (B, C, S, S) -> logits (B, K, S, S); the teacher is made from it.
        config: learning rates.
        semi: gate, weights, and the teacher's pace.
        classes: number of classes K.

    Source: SemiEarth (Wang et al.), section III and Algorithm 1, in the frame of UniMatch V2 (Yang
    et al., 2025), whose halving of the two losses is w = 1.
    """

    def __init__(
        self, network: nn.Module, config: TrainConfig, semi: SemiConfig, classes: int
    ) -> None:
        super().__init__(network, config, classes)
        self._semi = semi
        self._pair = _Pair(network)
        self._parts: dict[str, Tensor] = {}

    @property
    def network(self) -> nn.Module:
        """Student and teacher; as a function it is the teacher."""
        return self._pair

    @property
    def trained(self) -> nn.Module:
        """The teacher."""
        return self._pair.teacher

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of both kinds of crops.

        Args:
            batch: ``image`` (B, C, S, S) and ``label`` (B, S, S); ``weak`` and ``strong``
                (B, C, S, S), ``valid`` (B, S, S) bool and, if any, ``opinions`` (B, K, S, S).
        """
        weight = self._semi.unlabelled_weight
        if weight == 0:
            return label_loss(self.learner(batch["image"]), batch["label"])
        purified = self._teach(batch)
        weights = loss_weights(
            purified, self._semi.gate, self._semi.literal, self._semi.tau_conf, IGNORE
        )
        strong = batch["strong"]
        mixed = CutMix.draw(len(strong), (strong.shape[-2], strong.shape[-1]))
        logits = self.learner(torch.cat([batch["image"], mixed.apply(strong)]))
        labelled = label_loss(logits[: len(batch["image"])], batch["label"])
        unlabelled = weighted_cross_entropy(
            logits[len(batch["image"]) :].float(),
            mixed.apply(purified.label),
            mixed.apply(weights),
            IGNORE,
        )
        self._note(labelled, unlabelled, purified, heard="opinions" in batch)
        return (labelled + weight * unlabelled) / (1 + weight)

    @torch.no_grad()
    def _teach(self, batch: Batch) -> Purified:
        """Return the teacher's labels of the weak views, purified by the opinions there are."""
        shares = self._pair.teacher(batch["weak"]).float().softmax(dim=1)
        confidence, label = shares.max(dim=1)
        label = label.masked_fill(~batch["valid"], IGNORE)
        opinions = batch.get("opinions", torch.zeros_like(shares))
        return purify(label, confidence, opinions, self._semi.tau_conf, IGNORE)

    def _note(
        self, labelled: Tensor, unlabelled: Tensor, purified: Purified, *, heard: bool
    ) -> None:
        valid = purified.label != IGNORE
        sure = (purified.confidence >= self._semi.gate) & ~purified.touched
        shares = {"confident_share": sure & valid}
        if heard:
            shares |= {"agreed_share": purified.agreed, "rectified_share": purified.rectified}
        count = valid.sum().clamp(min=1)
        self._parts = {
            "labelled_loss": labelled.detach(),
            "unlabelled_loss": unlabelled.detach(),
            **{name: which.sum() / count for name, which in shares.items()},
        }

    def parts(self) -> dict[str, Tensor]:
        """Return both losses, and which shares of the valid unlabelled pixels were learnt from.

        ``confident_share`` passed the gate; ``agreed_share`` and ``rectified_share`` were purified.
        """
        return self._parts

    def stepped(self) -> None:
        """Move the teacher after the student."""
        self._pair.follow(self._semi.ema)


class _Pair(nn.Module):
    """Student and teacher, so that both are kept when a training is interrupted."""

    steps: Tensor

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = new_teacher(student)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.teacher(images)
        return logits

    def train(self, mode: bool = True) -> _Pair:
        """Set the student's mode; a teacher that labels does not drop features."""
        super().train(mode)
        self.teacher.eval()
        return self

    def follow(self, decay: float) -> None:
        """Move the teacher after a step of the student's."""
        update_teacher(self.teacher, self.student, int(self.steps), decay)
        self.steps += 1
