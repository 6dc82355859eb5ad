"""train: the segmenter learns from the pseudo-labels, or from labels the user has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rsseg.api.lots import cast_lots
from rsseg.api.ways import Samples, Way
from rsseg.config import Method, Purify, SemiConfig, TrainConfig, checked, fingerprint
from rsseg.errors import InputError
from rsseg.io.files import check_output, replacing
from rsseg.io.labels import open_labels
from rsseg.io.opinions import SiteOpinions
from rsseg.io.remote import as_path, describe_source, workplace
from rsseg.io.site import Site
from rsseg.io.vector import split_layer
from rsseg.learn.fit import Schedule, fit
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
    method: Method = "supervised",
    labelled: float | None = None,
    purify: Purify = "none",
    config: TrainConfig = TrainConfig(),  # noqa: B008  # frozen
    semi: SemiConfig = SemiConfig(),  # noqa: B008  # frozen
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
        method: ``supervised``, or ``semi``: also learn from all other tiles outside validation,
            which a teacher labels.
        labelled: share (a float, 0 to 1) or number (an int) of the labelled tiles to learn from;
            the others count as unlabelled. ``config.seed`` draws them, the same for both methods.
        purify: ``vlm`` mends the teacher's labels by the site's layer ``opinions``.
        config: architecture, encoder and schedule.
        semi: what ``method`` and ``labelled`` go by.
        device: where to train.
        overwrite: replace existing outputs.
        progress: shows what is going on.

    Returns:
        The checkpoint's path.

    Raises:
        InputError: there are no labels, or no tiles without or no opinions where they are needed,
            or the outputs cannot be written.
    """
    opened, out = Site(site), as_path(out)
    way = Way(method, labelled, purify, checked(semi))
    way.check()
    outputs, where = _Outputs(out), pick_device(device)
    checked(config)
    with assembled() as team:
        team.check(config.batch_size)
        progress = progress if team.leads else SILENT
        if team.leads:
            outputs.check(overwrite, opened.path)
        opinions = SiteOpinions(opened) if purify == "vlm" else None
        source = open_labels(opened, [as_path(path) for path in labels], field, only)
        torch.manual_seed(config.seed)
        network = build_segmenter(config, len(opened.bands), len(opened.classes))
        lots = cast_lots(opened, source, labelled, config.seed, progress)
        way.check_lots(lots)
        samples = Samples(opened, source, lots, config.window, config.seed)
        if team.leads:
            described = [describe_labels(opened, labels), [field, only], *samples.describe()]
            outputs.prepare(fingerprint(config, *described, *way.describe(opinions)))
        team.wait()
        objective = way.objective(network, config, len(opened.classes))
        sets = way.sets(samples, opinions, progress)
        schedule = Schedule(config.epochs, config.min_steps, config.batch_size, config.seed)
        metrics = fit(objective, *sets, schedule, outputs.work, where, progress, "training", team)
        if team.leads:
            outputs.write_report(metrics)
            gsd = opened.ground_sample_distance
            card = Card("segmenter", config, opened.classes, opened.bands, gsd)
            save_checkpoint(out, objective.trained, card)
            shutil.rmtree(outputs.work)
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
        place = workplace(self.model)
        return place.with_name(place.name + ".partial")

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
