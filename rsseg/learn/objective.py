"""Objective: what is learnt when weights change. A new way of learning is one more file here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """A network, its loss, and how good it is on what was held back."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups: ``params``, ``lr``, ``weight_decay``."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the scalar training loss."""

    def parts(self) -> Mapping[str, Tensor]:
        """Return scalars that say more of the last loss, by name; kept as means of an epoch."""

    def stepped(self) -> None:
        """Do what follows a step of the optimiser."""

    def warnings(self) -> Sequence[str]:
        """Return what the user should know of the epoch that ends, a line each."""

    def validate(self, batch: Batch) -> None:
        """Take note of how a held-back batch comes out."""

    def validation_scores(self) -> dict[str, float]:
        """Return scores since the last call, by name, and begin anew."""


def two_speed_groups(
    network: nn.Module, slow: list[nn.Parameter], lr: float, factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups in which pretrained parameters learn more slowly, frozen ones not.

    Args:
        network: all parameters.
        slow: the pretrained ones.
        lr: learning rate of the others.
        factor: share of ``lr`` for the slow ones.
        weight_decay: of the convolutions; biases and norms get none.
    """
    slow_ids = {id(parameter) for parameter in slow}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        rate = lr * factor if id(parameter) in slow_ids else lr
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": params, "lr": rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
    ]
