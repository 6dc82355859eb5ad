"""What a tile costs from the image to its labels, beside the forwards of the networks alone.

The classifier is fitted before. Timers stand around the forwards while the verb ``pseudo_label``
runs, so both are of the same windows: all forwards of the classifier (scales and flips), of SAM's
image encoder, and of its prompt encoder and mask decoder. The rest is reading, resizing, CRF,
upsampling and comparing masks, numbering objects, labels, and writing.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accuracy_bench import Bench
from accuracy_data import TILE, DataSet, Image, make_site, read_rows
from sam_profile import REST, Timers

from rsseg.api import pseudo_label
from rsseg.config import Settings
from rsseg.grid import Window
from rsseg.io.mapfile import write_map
from rsseg.io.raster import Raster
from rsseg.io.site import Site
from rsseg.io.tag_table import plain_name
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import pick_device
from rsseg.nets.prompting import Prompter

CHIPS = 16
"""Chips of what is timed."""
SIDE = 8 * TILE
"""Side of the part of a scene that is timed, pixels."""
STEPS = 2
"""Optimiser steps of the classifier, for what it has learned costs no time."""

FORWARDS = (
    (Classifier, "forward", "classifier"),
    (Classifier, "refined", "classifier"),
    (Prompter, "look", "SAM's image encoder"),
    (Prompter, "ask", "SAM's prompt encoder and mask decoder"),
    (Prompter, "logits", "SAM's prompt encoder and mask decoder"),
)
"""Class, method, and the network that it is."""


def cost(bench: Bench, settings: Settings) -> dict[str, Any]:
    """Time the labelling of a few tiles with a classifier that is there.

    Args:
        bench: data, checkpoint and device.
        settings: of the row.

    Returns:
        ``seconds`` in all and in each of the ``parts``, the number of ``tiles``, and ``ratio``,
        how often the networks' seconds go into all.
    """
    folder = bench.out / "cost"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    few = replace(bench.data, learn=_few(bench.data, folder), choose=())
    quick = replace(settings, classifier=replace(settings.classifier, min_steps=STEPS))
    # Twice, for what is loaded, compiled or tuned at its first use is not what a tile costs.
    for turn in ("first", "second"):
        site = make_site(few, folder / turn / "site.zarr", bench.progress)
        timers = _timed_labels(site, quick, bench)
    tiles = sum(int(scene.tile_valid.sum()) for scene in site.scenes.values())
    shutil.rmtree(folder)
    total = sum(timers.seconds.values())
    return {
        "seconds": total,
        "parts": dict(timers.seconds),
        "tiles": tiles,
        "ratio": total / (total - timers.seconds[REST]),
    }


def _timed_labels(site: Site, settings: Settings, bench: Bench) -> Timers:
    """Make the pseudo-labels of a site after its classifier, and time that."""
    # The CAM of another scale leaves a classifier, and nothing else that is of use later.
    other = replace(settings, cam=replace(settings.cam, scales=(0.75,)))
    progress, device = bench.progress, bench.device
    pseudo_label(site.path, settings=other, until="cam", device=device, progress=progress)
    timers = Timers(pick_device(device))
    with ExitStack() as stack:
        for owner, method, part in FORWARDS:
            timed = timers.wrapped(getattr(owner, method), part)
            stack.enter_context(patch.object(owner, method, _bound(timed)))
        with timers.part(REST):
            pseudo_label(
                site.path,
                settings=settings,
                sam=None if bench.sam is None else str(bench.sam),
                device=device,
                workers=bench.protocol.workers,
                progress=progress,
            )
    return timers


def _bound(timed: Any) -> Any:
    """Return a function that becomes a method of its class."""

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return timed(self, *arguments, **options)

    return method


def _few(data: DataSet, folder: Path) -> tuple[Image, ...]:
    """Return chips of all classes, or the middle of the first scene as a raster of its own."""
    if data.tags is not None:
        return _few_chips(data, data.tags)
    scene = data.learn[0]
    return (
        replace(
            scene,
            path=_middle(scene.path, folder / scene.path.name),
            truth=_middle(scene.truth, folder / scene.truth.name),
        ),
    )


def _few_chips(data: DataSet, tags: Path) -> tuple[Image, ...]:
    """Return a chip of each class, for a site needs them all, and then evenly spaced ones."""
    present = {plain_name(row["image"]): row for row in read_rows(tags)}
    of_classes = [
        next(chip for chip in data.learn if present[chip.name][name] == "1")
        for name in data.classes.names
    ]
    step = max(1, len(data.learn) // CHIPS)
    return tuple(dict.fromkeys([*of_classes, *data.learn[::step]]))[:CHIPS]


def _middle(path: Path, out: Path) -> Path:
    raster = Raster(path)
    height, width = raster.grid.shape
    row, col = (max(0, (side - SIDE) // 2) for side in (height, width))
    window = Window(row, col, SIDE, SIDE).clipped(raster.grid.shape)
    image, _ = raster.read(window)
    whole = window.relative_to(window)
    nodata = 255 if len(image) == 1 else None
    write_map(out, raster.grid[window], [(whole, image)], count=len(image), nodata=nodata)
    return out
