"""The rows of the accuracy benchmark, each a ``Settings`` of rsseg, and the protocols.

The rows follow the paper's Table 4 (SAN, section 4.4): each adds one module to the row that it
stands on, and nothing else. Backbone, schedule and segmenter are those of the protocol in all of
them. To try something, add a ``Row`` to ``BEYOND``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rsseg.config import SECTIONS, Settings, TrainConfig, fingerprint

CONTROL = "supervised control"
"""The same segmenter, trained on the true classes."""


@dataclass(frozen=True)
class Control:
    """A candidate for the supervised control; the best one on the choosing part is taken.

    Args:
        lr: peak learning rate.
        steps: least optimiser steps.
    """

    lr: float
    steps: int

    @property
    def name(self) -> str:
        """What results are kept under."""
        return f"{CONTROL} {self.lr:g} {self.steps}"


@dataclass(frozen=True)
class Protocol:
    """How large everything is; the rows and the code are the same.

    Args:
        name: as in results.
        side: side of chips in pixels; larger ones are reduced to it.
        window: side of the segmenter's windows, pixels.
        every: one of so many chips to learn on is taken.
        largest: scenes to learn and choose on are cut to this side; 0 takes them whole.
        classifier_steps: least optimiser steps of the classifier.
        segmenter_steps: least optimiser steps of the segmenter.
        batch_size: of both.
        encoder: backbone of both.
        weights: ImageNet weights of both.
        arch: the segmenter's architecture.
        seeds: of the rows that carry a threshold; the others take the first.
        sam: registry name of SAM's checkpoint; empty for superpixels in its place.
        controls: candidates for the supervised control. Some take more steps than the rows, to show
            where its plateau is.
        device: where networks run, unless told.
        workers: processes for CRF and superpixels; all cores by default.
    """

    name: str
    side: int
    window: int
    every: int
    largest: int
    classifier_steps: int
    segmenter_steps: int
    batch_size: int
    encoder: str
    weights: str
    arch: str
    seeds: tuple[int, ...]
    sam: str
    controls: tuple[Control, ...]
    device: str
    workers: int | None = None


CPU = Protocol(
    name="cpu",
    side=256,
    window=256,
    every=2,
    largest=2048,
    classifier_steps=300,
    segmenter_steps=220,
    batch_size=8,
    encoder="efficientnet_lite0",
    weights="auto",
    arch="deeplabv3plus",
    seeds=(0, 1, 2),
    sam="mobile_sam",
    controls=(*(Control(lr, 220) for lr in (1e-3, 3e-3)), Control(1e-3, 440)),
    device="cpu",
)
"""For two cores: units take minutes, all of them three hours."""

FULL = replace(
    CPU,
    name="full",
    side=512,
    window=512,
    every=1,
    largest=0,
    classifier_steps=4000,
    segmenter_steps=8000,
    batch_size=16,
    controls=(
        *(Control(lr, 8000) for lr in (3e-4, 1e-3, 3e-3)),
        *(Control(lr, 16000) for lr in (1e-3, 3e-3)),
    ),
    device="auto",
)
"""For a GPU."""

PROTOCOLS = {protocol.name: protocol for protocol in (CPU, FULL)}

HALO = 16
"""Pixels of context around the tiles of scenes for the classifier."""

Changes = Mapping[str, Mapping[str, Any]]
"""Section of the settings → key → value, as in rsseg's TOML."""


@dataclass(frozen=True)
class Row:
    """One way from tags to a map.

    Args:
        name: as in tables.
        on: name of the row whose settings it changes; empty for the plain ones.
        changes: what it adds.
        every_seed: whether it carries a threshold, and so is repeated with all seeds.
        again: whether its labels come from the model of the row it stands on (self-training).
        map_once: whether its threshold is one of labels, so that one map suffices.
    """

    name: str
    on: str = ""
    changes: Changes = field(default_factory=dict)
    every_seed: bool = False
    map_once: bool = False
    again: bool = False


PLAIN: Changes = {
    "classifier": {"strides": (16,), "hidden": 0, "pooling": "mean"},
    "cam": {"scores": "minmax", "scales": (1.0,), "flips": False},
    "crf": {"iterations": 0},
    "proposals": {"proposals": "none"},
}
"""The CAM of the papers: linear in the deepest level of stride 16, global average pooling, one
scale, taken as it comes: argmax among the tagged classes."""

PAPER = (
    Row("plain CAM", every_seed=True, map_once=True),
    Row("+ siamese", "plain CAM", {"classifier": {"consistency": 1.0}}),
    Row("+ affinity", "+ siamese", {"classifier": {"affinity": True, "cross": 1.0}}),
    Row("+ multi-scale", "+ affinity", {"cam": {"scales": (0.5, 1.0, 1.5, 2.0), "flips": True}}),
    Row("+ CRF", "+ multi-scale", {"crf": {"iterations": 10}}),
    Row(
        "+ SAM",
        "+ CRF",
        {"proposals": {"proposals": "sam"}, "labels": {"stretch": True, "purity": 0.0}},
    ),
)

BEYOND = (
    Row(
        "competing classes",
        "plain CAM",
        {
            "classifier": {"strides": (8, 16), "hidden": 64, "pooling": "softmax"},
            "cam": {"scores": "softmax", "flips": True},
        },
    ),
    Row("competing + CRF", "competing classes", {"crf": {"iterations": 10}}, every_seed=True),
    Row("competing + CRF + SAM", "competing + CRF", {"proposals": {"proposals": "sam"}}),
    Row("competing + CRF again", "competing + CRF", again=True),
)
"""What the paper does not have: classes that compete for cells, whose shares are taken as they are
and not stretched; segments that are painted only where the posterior agrees; self-training."""

ROWS = (*PAPER, *BEYOND)
FLOOR = PAPER[0]
FINAL = BEYOND[1]
"""The row that is judged against the floor and the control."""
TIMED = (FINAL, BEYOND[2])
"""The rows whose labelling is timed: without segments and with."""


def named(name: str, rows: Sequence[Row] = ROWS) -> Row:
    """Return the row of a name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in rows}[name]


def lineage(row: Row, rows: Sequence[Row] = ROWS) -> list[Row]:
    """Return the rows that a row stands on, from the first to itself."""
    below = lineage(named(row.on, rows), rows) if row.on else []
    return [*below, row]


def settings_of(
    row: Row, protocol: Protocol, seed: int = 0, rows: Sequence[Row] = ROWS
) -> Settings:
    """Return the settings of a row.

    Args:
        row: which one.
        protocol: gives backbone and schedule.
        seed: of classifier and segmenter.
        rows: where the rows are that it stands on.
    """
    settings = changed(Settings(), PLAIN)
    for one in lineage(row, rows):
        settings = changed(settings, one.changes)
    if not protocol.sam and settings.proposals.proposals == "sam":
        settings = changed(settings, {"proposals": {"proposals": "superpixels"}})
    backbone = {
        "halo": HALO,
        "backbone": protocol.encoder,
        "weights": protocol.weights,
        "min_steps": protocol.classifier_steps,
        "batch_size": protocol.batch_size,
        "seed": seed,
    }
    segmenter = {
        "arch": protocol.arch,
        "encoder": protocol.encoder,
        "window": protocol.window,
        "weights": protocol.weights,
        "min_steps": protocol.segmenter_steps,
        "batch_size": protocol.batch_size,
        "seed": seed,
    }
    settings = changed(settings, {"classifier": backbone, "train": segmenter})
    settings.check()
    return settings


def changed(settings: Settings, changes: Changes) -> Settings:
    """Return settings with some keys of some sections changed."""
    sections = {name: replace(getattr(settings, name), **keys) for name, keys in changes.items()}
    return replace(settings, **sections)


def control_config(control: Control, protocol: Protocol, seed: int = 0) -> TrainConfig:
    """Return how the control is trained: like the rows but for learning rate and steps."""
    weak = settings_of(FLOOR, protocol, seed).train
    return replace(weak, lr=control.lr, min_steps=control.steps)


def state_of_labels(settings: Settings) -> str:
    """Return what stands for all that decides pseudo-labels."""
    return fingerprint(*(getattr(settings, name) for name in SECTIONS if name != "train"))


def seeds_of(row: Row, protocol: Protocol, part: str = "final") -> tuple[int, ...]:
    """Return the seeds that a row is repeated with; one suffices to choose."""
    return protocol.seeds if row.every_seed and part == "final" else protocol.seeds[:1]
