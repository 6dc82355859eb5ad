"""The teacher of a student: the same network, its weights a moving average of the student's."""

from __future__ import annotations

import copy

import torch
from torch import nn


def new_teacher(student: nn.Module) -> nn.Module:
    """Return a copy of a network that takes no gradient, in eval mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: int, decay: float = 0.996) -> None:
    """Move the teacher's weights towards the student's, in place.

    Its parameters become ``m * teacher + (1 - m) * student`` with ``m = min(1 - 1 / (step + 1),
    decay)``: the plain mean of the student's states at first, which forgets the beginning sooner
    than ``decay`` alone would. So do the statistics of batch norm: the student's latest ones do not
    fit the mean of its weights. Counts are copied.

    Args:
        teacher: the same architecture as ``student``.
        student: as it is after the step.
        step: number of the step from 0; after step 0 the teacher is the student.
        decay: greatest share of itself that the teacher keeps, in [0, 1].

    Source: SemiEarth section III-A; the momentum's rise is UniMatch V2's.
    """
    momentum = min(1 - 1 / (step + 1), decay)
    pairs = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    for mean, new in pairs:
        if mean.is_floating_point():
            mean.lerp_(new, 1 - momentum)
        else:
            mean.copy_(new)
