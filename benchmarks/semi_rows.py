"""The rows of the few-labels benchmark, and its protocols.

Whole chips are labelled; which ones is the product's own draw, the same for every row of a seed.
Network, images and seeds are those of the accuracy benchmark's protocols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import accuracy_rows
from accuracy_data import Part
from semi_vlm import FAIR, GOOD, POOR, USELESS, Quality

from rsseg.config import Method, SemiConfig, TrainConfig

RATIOS = (0.01, 0.05, 0.1)
"""Shares of the training chips that are labelled."""
CHOICE = 0.05
"""The ratio at which semi-supervised settings are chosen, and at which single rows are measured."""


@dataclass(frozen=True)
class Setting:
    """A candidate: what is chosen on the choosing part.

    Args:
        lr: peak learning rate.
        steps: least optimiser steps.
        batch_size: labelled crops per step; semi-supervised, as many unlabelled ones beside them.
        gate: the teacher's confidence from which its labels are learnt from.
        ema: greatest share of itself that the teacher keeps in a step.
    """

    lr: float
    steps: int
    batch_size: int
    gate: float = 0.95
    ema: float = 0.996

    @property
    def name(self) -> str:
        """What results are kept under."""
        return f"lr {self.lr:g} steps {self.steps} gate {self.gate:g} ema {self.ema:g}"


@dataclass(frozen=True)
class Row:
    """One way to use the labels.

    Args:
        name: as in tables.
        method: with the labelled chips alone, or with all.
        quality: of the simulated VLM; None where it is off.
        literal: the paper's hard filter in the place of weights.
        once: measured at ``CHOICE`` with the first seed alone.
    """

    name: str
    method: Method = "semi"
    quality: Quality | None = None
    literal: bool = False
    once: bool = False


BASELINE = Row("supervised only", "supervised")
CONTROL = Row("control: VLM off")
"""FixMatch with an EMA teacher: the same code without opinions."""
PURIFIED = Row("good simulated VLM", quality=GOOD)
MISLED = Row("useless simulated VLM", quality=USELESS)
LITERAL = Row("good simulated VLM, hard filter", quality=GOOD, literal=True, once=True)
ROWS = (
    BASELINE,
    CONTROL,
    PURIFIED,
    MISLED,
    LITERAL,
    Row("fair simulated VLM", quality=FAIR, once=True),
    Row("poor simulated VLM", quality=POOR, once=True),
)


@dataclass(frozen=True)
class SemiProtocol:
    """How large everything is.

    Args:
        base: the accuracy benchmark's protocol, of which images, network and seeds are taken.
        supervised: candidates for the baseline; its best one is taken at each ratio.
        semi: candidates for the control, whose best one all semi-supervised rows take.
    """

    base: accuracy_rows.Protocol
    supervised: tuple[Setting, ...]
    semi: tuple[Setting, ...]

    @property
    def name(self) -> str:
        """As in results."""
        return self.base.name

    def candidates(self, row: Row) -> tuple[Setting, ...]:
        """Return the settings of which a row takes one."""
        return self.supervised if row.method == "supervised" else self.semi


CPU = SemiProtocol(
    base=accuracy_rows.CPU,
    supervised=(*(Setting(lr, 180, 8) for lr in (3e-4, 1e-3, 3e-3)), Setting(1e-3, 360, 8)),
    semi=(
        Setting(1e-3, 180, 4),
        Setting(3e-3, 180, 4, ema=0.98),
        *(Setting(lr, 180, 4, gate=0.8, ema=0.98) for lr in (1e-3, 3e-3)),
    ),
)
"""For two cores: a training takes five to ten minutes on one of them. Both methods show the student
as many crops a step. The baseline may take twice as many steps; the others' are what there is time
for. Where there are so few, a teacher that keeps 0.996 of itself is the mean of all students since
the first, and none is ever sure of much: hence the quicker teacher and the lower gate."""

FULL = SemiProtocol(
    base=accuracy_rows.FULL,
    supervised=(*(Setting(lr, 4000, 16) for lr in (3e-4, 1e-3, 3e-3)), Setting(1e-3, 8000, 16)),
    semi=(
        *(Setting(lr, 8000, 8) for lr in (3e-4, 1e-3, 3e-3)),
        Setting(1e-3, 8000, 8, gate=0.8),
    ),
)
"""For a GPU."""

PROTOCOLS = {protocol.name: protocol for protocol in (CPU, FULL)}


@dataclass(frozen=True)
class Run:
    """A row at a ratio, with the settings and the seed it is trained with.

    Args:
        row: which one.
        ratio: share of the training chips that are labelled.
        setting: learning rate and the like.
        seed: of the draw of the labelled chips, of weights, order and augmentation, and of the
            simulated VLM's mistakes.
    """

    row: Row
    ratio: float
    setting: Setting
    seed: int

    @property
    def key(self) -> str:
        """What results are kept under."""
        return f"{self.row.name}, {self.ratio:.0%} labelled, {self.setting.name}, seed {self.seed}"

    def config(self, base: accuracy_rows.Protocol) -> TrainConfig:
        """Return how the segmenter is trained."""
        return TrainConfig(
            arch=base.arch,
            encoder=base.encoder,
            weights=base.weights,
            window=base.window,
            min_steps=self.setting.steps,
            batch_size=self.setting.batch_size,
            lr=self.setting.lr,
            seed=self.seed,
        )

    @property
    def semi(self) -> SemiConfig:
        """What is special to few labels."""
        setting = self.setting
        return SemiConfig(gate=setting.gate, ema=setting.ema, literal=self.row.literal)


def candidate_runs(row: Row, ratio: float, protocol: SemiProtocol) -> list[Run]:
    """Return the runs of the choosing part among which a row's setting at a ratio is chosen.

    Those of the baseline are its own at that ratio. All semi-supervised rows take what is best for
    the control at ``CHOICE``, so that no VLM, not even a simulated one, has a say.
    """
    if row.method == "semi":
        row, ratio = CONTROL, CHOICE
    first = protocol.base.seeds[0]
    return [Run(row, ratio, setting, first) for setting in protocol.candidates(row)]


def places(part: Part, protocol: SemiProtocol) -> Iterator[tuple[Row, float, int]]:
    """Yield row, ratio and seed of all that a part measures.

    The choosing part has all rows with one seed at ``CHOICE``, to see whether they do what they
    should; nothing is chosen among them.
    """
    first = protocol.base.seeds[0]
    for ratio in RATIOS:
        for row in ROWS:
            if row.once or part == "choosing":
                if ratio == CHOICE:
                    yield row, ratio, first
            else:
                yield from ((row, ratio, seed) for seed in protocol.base.seeds)
