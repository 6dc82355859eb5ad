"""train: the segmenter learns from the pseudo-labels, or from labels the user has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.config import TrainConfig, checked, fingerprint
from rsseg.errors import InputError
from rsseg.grid import Tile
from rsseg.io.files import check_output, replacing
from rsseg.io.labels import LabelSource, open_labels
from rsseg.io.site import Site, describe_source
from rsseg.io.tags import split_blocks
from rsseg.io.vector import split_layer
from rsseg.learn.data import LabelWindows
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.supervised import SupervisedObjective
from rsseg.learn.team import assembled
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.device import pick_device
from rsseg.nets.segmenter import build_segmenter
from rsseg.progress import SILENT, Progress


def train(
    site: str | Path,
    out: str | Path,
    *,
    labels: Sequence[str | Path] = (),
    field: str | None = None,
    only: str | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Train a segmenter on a site and write its checkpoint; go on where an earlier run stopped.

    Beside ``model.pt`` lie ``model_metrics.csv`` and ``model_curve.png``.

    Under ``torchrun`` all its processes train the one network, each on its share of every batch;
    the first one writes and reports.

    Args:
        site: the site.
        out: the checkpoint to write.
        labels: class rasters or vector files; the layer ``labels`` (pseudo-labels) by default.
        field: field of vector features that holds the class name or id.
        only: the class that all vector features are of.
        config: architecture, encoder and schedule.
        device: where to train.
        overwrite: replace existing outputs.
        progress: shows what is going on.

    Returns:
        The checkpoint's path.

    Raises:
        InputError: there are no labels, or the outputs cannot be written.
    """
    opened, out = Site(site), Path(out)
    checked(config)
    outputs = _Outputs(out)
    where = pick_device(device)
    with assembled() as team:
        team.check(config.batch_size)
        progress = progress if team.leads else SILENT
        if team.leads:
            outputs.check(overwrite, opened.path)
        source = open_labels(opened, [Path(path) for path in labels], field, only)
        torch.manual_seed(config.seed)
        network = build_segmenter(config, len(opened.bands), len(opened.classes))
        counts = _count_labels(opened, source, progress)
        _check_counts(opened, counts, progress)
        tiles = _split(opened, counts)
        run_key = fingerprint(
            config,
            describe_labels(opened, labels),
            [field, only],
            [[name, *map(str, (t.row, t.col))] for name, part in tiles[1].items() for t in part],
            opened.classes.to_dict(),
            opened.bands.to_dict(),
        )
        if team.leads:
            outputs.prepare(run_key)
        team.wait()
        objective = SupervisedObjective(network, config, len(opened.classes))
        schedule = Schedule(config.epochs, config.min_steps, config.batch_size, config.seed)
        sets = [LabelWindows(opened, part, source, config.window, config.seed) for part in tiles]
        work = outputs.work
        metrics = fit(
            objective, sets[0], sets[1], schedule, work, where, progress, "training", team
        )
        if team.leads:
            outputs.write_report(metrics)
            gsd = opened.ground_sample_distance
            card = Card("segmenter", config, opened.classes, opened.bands, gsd)
            save_checkpoint(out, network, card)
            shutil.rmtree(work)
    return out


@dataclass(frozen=True)
class _Outputs:
    """The files a training leaves, and its folder while it runs.

    Args:
        model: the checkpoint.
    """

    model: Path

    @property
    def metrics(self) -> Path:
        """Losses and scores per epoch."""
        return self.model.with_name(f"{self.model.stem}_metrics.csv")

    @property
    def curve(self) -> Path:
        """The same as a picture."""
        return self.model.with_name(f"{self.model.stem}_curve.png")

    def check(self, overwrite: bool, site: Path) -> None:
        """Raise InputError where an output would hurt something that is there."""
        for path in (self.model, self.metrics, self.curve):
            check_output(path, overwrite, [site])

    @property
    def work(self) -> Path:
        """The folder of the resume file."""
        return self.model.with_name(self.model.name + ".partial")

    def prepare(self, key: str) -> None:
        """Make the folder of the resume file; empty it where it belongs to another training."""
        folder = self.work
        note = folder / "run.json"
        if folder.exists() and not note.exists():
            raise InputError(f"{folder}: is in the way and not ours; move it elsewhere")
        if folder.exists() and json.loads(note.read_text(encoding="utf-8")) != {"run": key}:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        with replacing(note, overwrite=True) as temporary:
            temporary.write_text(json.dumps({"run": key}), encoding="utf-8")

    def write_report(self, metrics: Path) -> None:
        """Keep the metrics, as a table and as a picture."""
        with replacing(self.metrics, overwrite=True) as temporary:
            shutil.copyfile(metrics, temporary)
        with replacing(self.curve, overwrite=True) as temporary:
            draw_curve(metrics, temporary)


def draw_curve(metrics: Path, out: Path) -> None:
    """Draw loss and validation mIoU over the epochs, from Lightning's CSV, as a PNG."""
    import csv

    from matplotlib.figure import Figure

    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    axes = {"loss": left, "val_miou": left.twinx()}
    for name, colour in (("loss", "#0072b2"), ("val_miou", "#d55e00")):
        points = [(int(row["epoch"]) + 1, float(row[name])) for row in rows if row.get(name)]
        if points:
            axes[name].plot(*zip(*points, strict=True), color=colour, marker=".")
        axes[name].set_ylabel(name.replace("_", " "), color=colour)
    left.set_xlabel("epoch")
    left.set_title("training loss and mIoU against held-back labels")
    figure.savefig(out, dpi=120, metadata={"Software": None})


def describe_labels(site: Site, labels: Sequence[str | Path]) -> object:
    """Return what the labels are, JSON-ready, to recognise them when a training resumes."""
    files = [split_layer(Path(path)) for path in labels]
    described = [[describe_source(file), layer] for file, layer in files]
    return described or site.layers.get("labels")


def _count_labels(
    site: Site, source: LabelSource, progress: Progress
) -> dict[str, NDArray[np.int64]]:
    """Return labelled pixels per tile and class: scene name → (rows, cols, K)."""
    counts: dict[str, NDArray[np.int64]] = {}
    total = sum(len(scene.tiling) for scene in site.scenes.values())
    with progress.step("reading labels", total, "tiles") as step:
        for name, scene in site.scenes.items():
            table = np.zeros((*scene.tiling.counts, len(site.classes)), np.int64)
            for tile in scene.tiling:
                if scene.tile_valid[tile.row, tile.col]:
                    found = np.bincount(source(name, tile.core).ravel(), minlength=256)
                    table[tile.row, tile.col] = found[: len(site.classes)]
                step.advance()
            counts[name] = table
    return counts


def _check_counts(site: Site, counts: Mapping[str, NDArray[np.int64]], progress: Progress) -> None:
    total = sum(table.sum(axis=(0, 1)) for table in counts.values())
    if not np.any(total):
        raise InputError(f"no labelled pixel lies on {site.path}; check the labels' CRS and ids")
    for name, pixels in zip(site.classes.names, np.atleast_1d(total), strict=True):
        if pixels == 0:
            progress.warn(f"class {name!r} has no labelled pixel: it will never be predicted")


def _split(
    site: Site, counts: Mapping[str, NDArray[np.int64]]
) -> tuple[dict[str, list[Tile]], dict[str, list[Tile]]]:
    """Return the labelled tiles for training and for validation, in whole spatial blocks.

    The split is the one made with the tags, where there are any.
    """
    scenes = site.scenes
    labelled = {name: np.asarray(table.any(axis=-1)) for name, table in counts.items()}
    if all(scene.tags is not None for scene in scenes.values()):
        held = {name: scene.validation for name, scene in scenes.items()}
    else:
        tags = {
            name: np.where(labelled[name][..., None], table > 0, -1).astype(np.int8)
            for name, table in counts.items()
        }
        held = split_blocks([scene.tiles for scene in scenes.values()], tags)
    parts: tuple[dict[str, list[Tile]], dict[str, list[Tile]]] = ({}, {})
    for part, wanted in zip(parts, (False, True), strict=True):
        for name, scene in scenes.items():
            chosen = labelled[name] & (held[name] == wanted)
            part[name] = [tile for tile in scene.tiling if chosen[tile.row, tile.col]]
    if not any(parts[0].values()):
        return parts[1], {}
    return parts
