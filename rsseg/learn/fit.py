"""fit: one objective, trained by Lightning, resumable from its last epoch."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsseg.config import Decay, Optimiser
from rsseg.errors import RunError
from rsseg.io.files import replacing
from rsseg.learn.data import Batches
from rsseg.learn.objective import Batch, Objective
from rsseg.learn.team import Team
from rsseg.nets.depthwise import widen_depthwise
from rsseg.nets.device import halving, keep_freed_memory, training_precision
from rsseg.progress import Progress, Step

METRICS = "metrics.csv"
POLY_POWER = 0.9


@dataclass(frozen=True)
class Schedule:
    """How long, in what order and at which rate to train.

    Args:
        epochs: passes over the training samples; 0 = as many as make ``min_steps``.
        min_steps: optimiser steps at the least, when ``epochs`` is 0.
        batch_size: samples per step.
        seed: of order, augmentation and dropout.
        optimiser: ``adamw`` or ``sgd``.
        momentum: of the gradient: SGD's, or AdamW's first beta.
        decay: how the rate falls over the steps, ``poly`` or ``cosine``.
        warm_up: share of the steps in which the rate rises to its peak.
    """

    epochs: int
    min_steps: int
    batch_size: int
    seed: int
    optimiser: Optimiser = "adamw"
    momentum: float = 0.9
    decay: Decay = "poly"
    warm_up: float = 0.05

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Return the number of epochs."""
        return self.epochs or math.ceil(self.min_steps / steps_per_epoch)

    def rate(self, step: int, total: int) -> float:
        """Return the factor of the learning rate at step s of S: linear warm-up, times the decay.

        ``poly`` is (1 - s/S)^0.9 (SAN §4.3), ``cosine`` (1 + cos(pi s/S)) / 2.
        """
        warm = max(1, round(total * self.warm_up))
        done = min(step, total) / total
        rest: float = (1 - done) ** POLY_POWER
        if self.decay == "cosine":
            rest = (1 + math.cos(math.pi * done)) / 2
        return min(1.0, (step + 1) / warm) * rest

    def build_optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimiser of parameter groups, which say their rate and weight decay."""
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=self.momentum)
        return torch.optim.AdamW(groups, betas=(self.momentum, 0.999))


def fit(
    objective: Objective,
    train: Dataset[dict[str, Tensor]],
    validation: Dataset[dict[str, Tensor]] | None,
    schedule: Schedule,
    work: Path,
    device: torch.device,
    progress: Progress,
    label: str,
    team: Team = Team(),  # noqa: B008  # frozen
) -> Path:
    """Train an objective's network in place; go on from the last epoch found in ``work``.

    Args:
        objective: what to learn.
        train: samples addressed by (epoch, index).
        validation: held-back samples, or None.
        schedule: how long.
        work: folder of the resume file ``last.ckpt`` and of ``metrics.csv``.
        device: where to train.
        progress: shows the steps done.
        label: what the progress bar calls it.
        team: processes that do the same with the same arguments; the first one writes.

    Returns:
        The CSV of losses and scores per epoch.

    Raises:
        RunError: the loss is no longer a number, or the memory does not suffice.
    """
    work.mkdir(parents=True, exist_ok=True)

    def run(batch_size: int) -> None:
        args = (objective, train, validation, schedule, batch_size, work, device, progress, label)
        _fit(*args, team)

    # The others of a team would wait for ever for one that begins again.
    least = 2 if team.size == 1 else schedule.batch_size
    with _quiet():
        halving(run, schedule.batch_size, progress, least=least)
    return work / METRICS


def _fit(
    objective: Objective,
    train: Dataset[dict[str, Tensor]],
    validation: Dataset[dict[str, Tensor]] | None,
    schedule: Schedule,
    batch_size: int,
    work: Path,
    device: torch.device,
    progress: Progress,
    label: str,
    team: Team,
) -> None:
    samples: Any = train
    part = team.rank, team.size
    batches = Batches(len(samples), batch_size, schedule.seed, part=part)
    epochs = schedule.total_epochs(len(batches))
    last = work / "last.ckpt"
    total = epochs * len(batches)
    if device.type == "cpu":
        keep_freed_memory()
        widen_depthwise(objective.network)
    with progress.step(label, total, "steps") as step:
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            precision=training_precision(device),
            max_epochs=epochs,
            logger=False,
            callbacks=[
                _Report(step),
                _Table(work / METRICS),
                ModelCheckpoint(work, filename="last", enable_version_counter=False),
            ],
            gradient_clip_val=5.0,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **_placement(device, team),
        )
        trainer.fit(
            _Loop(objective, batches, total, schedule, progress),
            # A generator of its own: the loader would draw from the one that dropout draws from, at
            # another moment when a training is resumed.
            DataLoader(train, batch_sampler=batches, generator=torch.Generator()),
            _validation_loader(validation, batch_size, part),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )


def _validation_loader(
    validation: Dataset[dict[str, Tensor]] | None, batch_size: int, part: tuple[int, int]
) -> DataLoader[dict[str, Tensor]] | None:
    samples: Any = validation
    if validation is None or len(samples) == 0:
        return None
    batches = Batches(len(samples), batch_size, 0, shuffle=False, part=part)
    return DataLoader(validation, batch_sampler=batches)


def _placement(device: torch.device, team: Team) -> dict[str, Any]:
    """Return which devices Lightning trains on."""
    if team.size == 1:
        return {"devices": [device.index or 0] if device.type == "cuda" else 1}
    return {
        "devices": team.local_size,
        "num_nodes": team.machines,
        # A broadcast of buffers at each forward would stop a process that validates more batches.
        "strategy": DDPStrategy(broadcast_buffers=False),
        "sync_batchnorm": device.type == "cuda",  # PyTorch has none on CPUs
    }


class _Loop(LightningModule):
    """Lightning's view of an objective; all that is random is drawn from (seed, epoch)."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        total: int,
        schedule: Schedule,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.network = objective.network.to(memory_format=torch.channels_last)
        self._objective = objective
        self._batches = batches
        self._total = total
        self._schedule = schedule
        self._progress = progress

    def on_train_epoch_start(self) -> None:
        # Dropout too: an interrupted training ends like an undisturbed one.
        self._batches.epoch = self.current_epoch
        torch.manual_seed(self._schedule.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self._objective.loss(batch)
        if not bool(torch.isfinite(loss)):
            raise RunError(
                f"training diverged in epoch {self.current_epoch} (loss {float(loss)}); "
                "use a lower learning rate"
            )
        self.log_dict(
            {"loss": loss, **self._objective.parts()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(batch["image"]),
        )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self._objective.stepped()

    def on_train_epoch_end(self) -> None:
        for message in self._objective.warnings():
            self._progress.warn(message)

    def validation_step(self, batch: Batch, _: int) -> None:
        self._objective.validate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._objective.validation_scores())

    def configure_optimizers(self) -> Any:
        optimiser = self._schedule.build_optimiser(self._objective.parameter_groups())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: self._schedule.rate(step, self._total)
        )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Report(Callback):
    """Passes the steps and the loss on to the user."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step.advance(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        loss = trainer.callback_metrics.get("loss")
        self._step.advance(1, None if loss is None else f"loss {float(loss):.3f}")


class _Table(Callback):
    """Keeps the losses and scores, a row per epoch; a resumed training adds to those it finds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, **scores}
        # The checkpoint follows, so an epoch that is done again has left its row.
        rows = [*(old for old in self._rows() if int(old["epoch"]) < trainer.current_epoch), row]
        with (
            replacing(self._path, overwrite=True) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, list(row), lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def _rows(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's own remarks from the user; ours say what they need to know."""
    logger = logging.getLogger("lightning.pytorch")
    utilities = logging.getLogger("lightning.fabric")
    levels = logger.level, utilities.level
    logger.setLevel(logging.ERROR)
    utilities.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(levels[0])
        utilities.setLevel(levels[1])
