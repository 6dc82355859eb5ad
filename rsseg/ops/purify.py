"""Purification: a vision-language model (VLM) mends what a teacher network is unsure of.

After SemiEarth (VLM-PP, "vision-language model purified"); numbers of equations are that paper's.
The teacher's label and confidence of a pixel are its most probable class and that class's
probability (eqs. 2 to 4). Where it is unsure and the VLM has an opinion, the two are fused if they
agree, and the VLM is followed if they do not. Where the VLM has none, the teacher stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TAU_CONF = 0.7
"""Confidence of the teacher below which the VLM is heard, as chosen for eq. 5."""

GATE = 0.95
"""Confidence from which a label that was not purified is learnt from (FixMatch, UniMatch)."""


@dataclass(frozen=True, eq=False)
class Purified:
    """Pseudo-labels after purification, and what happened to them.

    Attributes:
        label: (B, H, W) int64 class indices; ignored pixels as they came.
        confidence: (B, H, W) float32 in [0, 1].
        agreed: (B, H, W) bool, unsure pixels where the VLM says the same (eq. 10).
        rectified: (B, H, W) bool, unsure pixels where the label is now the VLM's (eq. 11).
    """

    label: Tensor
    confidence: Tensor
    agreed: Tensor
    rectified: Tensor

    @property
    def touched(self) -> Tensor:
        """(B, H, W) bool, the pixels on which the VLM was heard."""
        return self.agreed | self.rectified


def vlm_confidence(mentioned: Tensor, gamma: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Return how much of the VLM's confidence in an image goes to each class.

    Args:
        mentioned: (…, K) bool, whether the answer names the class.
        gamma: score of a named class, > 0; it cancels but for ``eps`` (the paper: 0.95).
        eps: keeps an empty answer from a division by zero.

    Returns:
        (…, K) float32 in [0, 1): one over the number of named classes for each of them, 0 for the
        others.

    Source: SemiEarth eqs. 8 and 9, the ratio as printed. The text calls it a softmax, which would
    give opinions on classes that were not named.
    """
    score = mentioned.float() * gamma
    return score / (score.sum(dim=-1, keepdim=True) + eps)


def purify(
    label: Tensor,
    confidence: Tensor,
    opinions: Tensor,
    tau_conf: float = TAU_CONF,
    ignore: int = 255,
) -> Purified:
    """Purify and rectify the teacher's pseudo-labels where it is unsure.

    The VLM's class is the one of its greatest opinion. Among equal ones it is the teacher's class
    if that is one of them, else the lowest index.

    Args:
        label: (B, H, W) int64, the teacher's class indices below K; ``ignore`` stays what it is.
        confidence: (B, H, W) float32 in [0, 1], the teacher's.
        opinions: (B, K, H, W) float32 in [0, 1], the VLM's confidence in class k, 0 where it has
            no opinion on it; each class may be scaled by how far it is trusted.
        tau_conf: only pixels of a lower confidence are touched (eq. 5), in (0, 1].
        ignore: the index that is no class.

    Returns:
        Labels and confidences, those of untouched pixels as they came.

    Source: SemiEarth eqs. 5, 10 and 11.
    """
    strongest, named = opinions.max(dim=1)
    own = opinions.gather(1, label.clamp(max=opinions.shape[1] - 1)[:, None])[:, 0]
    heard = (confidence < tau_conf) & (strongest > 0) & (label != ignore)
    agreed, rectified = heard & (own == strongest), heard & (own < strongest)
    alpha = confidence / tau_conf
    fused = alpha * confidence + (1 - alpha) * strongest
    return Purified(
        label=torch.where(rectified, named, label),
        confidence=torch.where(agreed, fused, torch.where(rectified, strongest, confidence)),
        agreed=agreed,
        rectified=rectified,
    )


def loss_weights(
    purified: Purified,
    gate: float = GATE,
    literal: bool = False,
    tau_conf: float = TAU_CONF,
    ignore: int = 255,
) -> Tensor:
    """Return how much each pixel counts in the loss of the unlabelled images.

    A touched pixel counts by its confidence. The gate of the others would shut out nearly every
    agreement: with a VLM that is sure (opinion 1) eq. 10 reaches 0.95 only where the teacher is
    below 0.04. The paper filters once more at ``tau_conf`` (its section III-C; the literal
    variant). Then every conflict with a sure VLM passes, but an agreement only where the teacher is
    below 0.3 (for ``tau_conf`` 0.7), so never with two classes, where it is at least 0.5.

    Args:
        purified: labels and confidences of B images.
        gate: pixels that the VLM did not touch count fully from this confidence on, else not.
        literal: filter touched pixels as the paper does, instead of weighing them.
        tau_conf: the confidence from which a touched pixel counts in the literal variant.
        ignore: the label of pixels that never count.

    Returns:
        (B, H, W) float32 in [0, 1].
    """
    sure = purified.confidence
    heard = (sure >= tau_conf).float() if literal else sure
    weights = torch.where(purified.touched, heard, (sure >= gate).float())
    return weights * (purified.label != ignore)


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor, ignore: int = 255
) -> Tensor:
    """Return the weighted cross entropy over all pixels that have a label.

    It is divided by the number of these, not by the sum of their weights, so that a teacher that
    is sure of little has little to say (as in UniMatch).

    Args:
        logits: (B, K, H, W) float, the student's.
        label: (B, H, W) int64 class indices, or ``ignore``.
        weights: (B, H, W) float in [0, 1].
        ignore: the index that is no class.

    Returns:
        Scalar; 0 where no pixel has a label.

    Source: SemiEarth eq. 1, second term.
    """
    each = cross_entropy(logits, label, ignore_index=ignore, reduction="none")
    return (each * weights).sum() / (label != ignore).sum().clamp(min=1)
