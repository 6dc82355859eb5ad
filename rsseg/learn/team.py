"""Team: the processes that torchrun started to train one network together.

Each computes its share of every batch, and DDP averages the gradients, so a step is the one that a
single process would take, up to rounding and to the statistics of batch norm, which on CPUs each
process keeps of its own share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from rsseg.errors import InputError

LEAST_SHARE = 2
"""Samples of a batch per process at the least (batch norm)."""


@dataclass(frozen=True)
class Team:
    """Which of how many processes this one is.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
        local_size: how many of them are on this machine, with a GPU each where there are GPUs.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> Team:
        """Return what torchrun has told this process; a team of one without it."""
        if not distributed.is_torchelastic_launched():
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return self.size // self.local_size

    def check(self, batch_size: int) -> None:
        """Raise InputError where a batch cannot be shared equally."""
        if batch_size % self.size or batch_size // self.size < min(LEAST_SHARE, batch_size):
            fits = max(LEAST_SHARE, -(-batch_size // self.size)) * self.size
            raise InputError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes, at least "
                f"{LEAST_SHARE} samples each; give --batch-size {fits}"
            )

    def wait(self) -> None:
        """Wait for all others to come here."""
        if self.size > 1:
            # On the CPU: no process has a GPU yet.
            distributed.all_reduce(torch.zeros(1))


@contextmanager
def assembled() -> Iterator[Team]:
    """Connect the processes of a team, as long as the context lasts."""
    team = Team.of_environment()
    if team.size == 1:
        yield team
        return
    # Scores are gathered on the CPU.
    gpus = torch.cuda.is_available()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    try:
        yield team
    finally:
        distributed.destroy_process_group()
