"""One data set's run of the accuracy benchmark: what a unit is, and what it leaves for later ones.

All work is done by rsseg's own verbs. Sites keep what does not differ between rows: masks of SAM,
which hang on the image alone, and classifiers, CAMs and posteriors of equal settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_data import DataSet, Image, Part, hold_back, make_site, read_classes
from accuracy_rows import (
    Control,
    Protocol,
    Row,
    control_config,
    settings_of,
    state_of_labels,
)
from kept import Results
from numpy.typing import NDArray
from PIL import Image as Picture

from rsseg.api import predict, pseudo_label, train
from rsseg.classes import Classes
from rsseg.config import Settings, TrainConfig, fingerprint
from rsseg.grid import Window
from rsseg.io.files import replacing
from rsseg.io.labels import LayerLabels
from rsseg.io.raster import Raster
from rsseg.io.site import Site
from rsseg.nets.checkpoint import Checkpoint
from rsseg.nets.device import pick_device
from rsseg.nets.segmenter import Forward
from rsseg.ops.confusion import confusion, scores
from rsseg.progress import Progress

Unit = Callable[[], dict[str, Any]]

STRIDE = 32
"""Sides of images that go through a segmenter are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class MapBench:
    """One part of a data set, whose images are mapped by segmenters and scored.

    Args:
        out: folder of the data set's results.
        data: the data set, in the protocol's size.
        part: what is learned and scored on.
        results: what was measured.
        device: where networks run.
        progress: shows what is going on.
    """

    out: Path
    data: DataSet
    part: Part
    results: Results
    device: str
    progress: Progress

    def name(self, kind: str, key: str) -> str:
        """Return what a unit is kept under."""
        return f"{self.part} {kind} {key}"

    def need(self, kind: str, key: str, unit: Unit, state: str) -> None:
        """Measure a unit, with its time, if that has not been done yet."""
        self.results.need(self.name(kind, key), partial(timed, unit), state)

    def best(self, keys: Sequence[str]) -> str | None:
        """Return the key whose map is best on the choosing part; None until all were measured."""
        names = {key: f"choosing map {key}" for key in keys}
        if any(name not in self.results.units for name in names.values()):
            return None
        counts = {key: np.array(self.results.units[name]["matrix"]) for key, name in names.items()}
        return max(counts, key=lambda key: scores(counts[key]).miou)

    def model(self, key: str) -> Path:
        """Return where the checkpoint of a row and seed lies; its maps are beside it."""
        slug = "-".join("".join(c if c.isalnum() else " " for c in key).split())
        return self.out / self.part / f"{slug}.pt"

    def state(self, labels: str) -> str:
        """Return what stands for labels and for the images that are learned and scored on."""
        learned, held = (
            [image.name for image in images]
            for images in (self.data.learned(self.part), self.data.mapped(self.part))
        )
        return fingerprint(labels, learned, held)

    def map_of(self, key: str, image: Image) -> Path:
        """Return where the map of an image is kept."""
        suffix = "png" if self.data.chips else "tif"
        return self.model(key).with_suffix("") / f"{image.name}.{suffix}"

    def score_maps(self, key: str) -> dict[str, Any]:
        """Map the images to be scored whole, and count the pixels by true and mapped class."""
        images, classes, model = self.data.mapped(self.part), self.data.classes, self.model(key)
        maps = [self.map_of(key, image) for image in images]
        maps[0].parent.mkdir(exist_ok=True)
        if self.data.chips:
            map_chips(images, maps, model, self.device, self.progress)
        else:
            for image, out in zip(images, maps, strict=True):
                predict(
                    image.path,
                    model,
                    out,
                    device=self.device,
                    overwrite=True,
                    progress=self.progress,
                )
        pairs = (
            (image.read_truth(classes), read_classes(path, classes))
            for image, path in zip(images, maps, strict=True)
        )
        return {"matrix": counted(pairs, classes)}


@dataclass(frozen=True, kw_only=True)
class Bench(MapBench):
    """One part of a data set, with pseudo-labels from tags.

    Args:
        protocol: how large everything is.
        sam: SAM's checkpoint; None for superpixels.
    """

    protocol: Protocol
    sam: Path | None

    # --- Rows -----------------------------------------------------------------------------------

    def row(self, row: Row, seed: int, *, map_too: bool = True) -> None:
        """Measure pseudo-labels and map of a row."""
        settings = settings_of(row, self.protocol, seed)
        model = self.model(f"{row.on} {seed}") if row.again else None
        label = partial(self.label, settings, model)
        state = self.state(f"{state_of_labels(settings)} {row.on if row.again else ''}")
        key = f"{row.name} {seed}"
        self.need("labels", key, partial(self.labels, label), state)
        if map_too:
            self._model(key, settings.train, label, state)

    def control(self, control: Control, seed: int) -> None:
        """Measure the map of a candidate for the control."""
        config = control_config(control, self.protocol, seed)
        truths = [image.truth for image in self.data.learned(self.part)]
        self._model(f"{control.name} {seed}", config, self.site, self.state("truth"), truths)

    def chosen_control(self) -> Control | None:
        """Return the candidate that is best on the choosing part; None until all were measured."""
        first = self.protocol.seeds[0]
        keys = {f"{control.name} {first}": control for control in self.protocol.controls}
        best = self.best(list(keys))
        return None if best is None else keys[best]

    def _model(
        self,
        key: str,
        config: TrainConfig,
        site: Callable[[], Site],
        state: str,
        labels: Sequence[Path] = (),
    ) -> None:
        """Train and score a segmenter.

        Args:
            key: of the units.
            config: how it is trained.
            site: returns the site, with the labels that are meant where no others are given.
            state: stands for the labels.
            labels: class rasters; the pseudo-labels by default.
        """
        state = fingerprint(config, state)
        model = self.model(key)

        def fit() -> dict[str, Any]:
            train(
                site().path,
                model,
                labels=labels,
                config=config,
                device=self.device,
                overwrite=True,
                progress=self.progress,
            )
            return {}

        self.need("model", key, fit, state)
        self.need("map", key, partial(self.score_maps, key), state)

    # --- Pseudo-labels --------------------------------------------------------------------------

    def site(self) -> Site:
        """Return the site of all training images; those held back in this part are validation."""
        site = make_site(self.data, self.out / "site.zarr", self.progress)
        learned = {image.name for image in self.data.learned(self.part)}
        hold_back(site, [image.name for image in self.data.training if image.name not in learned])
        (self.out / self.part).mkdir(exist_ok=True)
        return site

    def label(self, settings: Settings, model: Path | None = None) -> Site:
        """Return the site with the pseudo-labels of settings, made now where they are not there."""
        return pseudo_label(
            self.site().path,
            settings=settings,
            sam=None if self.sam is None else str(self.sam),
            model=model,
            device=self.device,
            workers=self.protocol.workers,
            progress=self.progress,
        )

    def labels(self, label: Callable[[], Site]) -> dict[str, Any]:
        """Make pseudo-labels and count their pixels by true and given class."""
        site = label()
        read = LayerLabels(site)
        classes = self.data.classes
        pairs = (
            (image.read_truth(classes), read(image.name, site.scenes[image.name].grid.window))
            for image in self.data.labelled(self.part)
        )
        return {"matrix": counted(pairs, classes)}


def map_chips(
    chips: Sequence[Image], maps: Sequence[Path], model: Path, device: str, progress: Progress
) -> None:
    """Map chips one by one, each whole in one forward, and write the class indices as PNGs."""
    checkpoint = Checkpoint(model, "segmenter")
    forward = Forward(checkpoint.segmenter(), pick_device(device), progress)
    bands = checkpoint.card.bands
    with progress.step("mapping", len(chips), "chips") as step:
        for chip, out in zip(chips, maps, strict=True):
            raster = Raster(chip.path, bands.indices)
            height, width = raster.grid.shape
            whole = Window(0, 0, _filled(height), _filled(width))  # mirrored beyond the edge
            pixels = bands.normalise(*raster.read(whole))
            indices = forward(pixels[None])[0, :, :height, :width].argmax(axis=0)
            with replacing(out, overwrite=True) as temporary:
                Picture.fromarray(indices.astype(np.uint8)).save(temporary, "png")
            step.advance()


def _filled(side: int) -> int:
    """Return the next multiple of the networks' greatest stride."""
    return -(-side // STRIDE) * STRIDE


def counted(
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: Classes
) -> list[list[int]]:
    """Return the confusion matrix (K, K + 1) of pairs of truth and labels."""
    total = np.zeros((len(classes), len(classes) + 1), np.int64)
    for truth, given in pairs:
        total += confusion(truth, given, len(classes))
    counts: list[list[int]] = total.tolist()
    return counts


def timed(unit: Unit) -> dict[str, Any]:
    """Return what a unit found and how long it took."""
    start = time.perf_counter()
    found = unit()
    return found | {"seconds": round(time.perf_counter() - start, 1)}
