"""Pictures for looking: a tile, its truth, and what rows make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from accuracy_bench import Bench
from accuracy_data import Image, read_classes
from accuracy_rows import FINAL, FLOOR, Row, settings_of
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rsseg.grid import Window
from rsseg.io.labels import LayerLabels
from rsseg.ops.picture import Colour, paint

COUNT = 6
"""Pictures of a part."""
SIDE = 512
"""Side of the tiles of scenes, pixels."""

Read = Callable[[Image], NDArray[np.uint8]]
"""Gives class indices (H, W) of a whole image."""


def draw(bench: Bench, control: str | None) -> None:
    """Draw the tiles of a part, one PNG each, with everything that was measured.

    In the part ``choosing`` pseudo-labels and maps are of the same images; in ``final`` only the
    maps are of images that nothing was learned from, so they alone are drawn.

    Args:
        bench: the part.
        control: key of the control's units, or None.
    """
    columns = _columns(bench, control)
    folder = bench.out / bench.part / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for image, window in tiles(bench):
        pixels = image.read()
        panels = {"image": pixels[window.slices]}
        for name, read in columns.items():
            panels[name] = paint(read(image)[window.slices], bench.data.classes.colours)
        path = folder / f"{image.name}-{window.row}-{window.col}.png"
        _write(path, panels, bench)


def tiles(bench: Bench) -> list[tuple[Image, Window]]:
    """Return evenly spaced images or, of the first scene, evenly spaced windows."""
    images = bench.data.mapped(bench.part)
    if bench.data.chips:
        chosen = [images[int((turn + 0.5) * len(images) / COUNT)] for turn in range(COUNT)]
        return [(one, _whole(one, bench)) for one in dict.fromkeys(chosen)]
    scene = images[0]
    height, width = scene.read_truth(bench.data.classes).shape
    windows = [
        Window(row, col, SIDE, SIDE).clipped((height, width))
        for row in range(0, height, SIDE)
        for col in range(0, width, SIDE)
    ]
    places = [windows[int((turn + 0.5) * len(windows) / COUNT)] for turn in range(COUNT)]
    return [(scene, window) for window in dict.fromkeys(places)]


def _whole(image: Image, bench: Bench) -> Window:
    height, width = image.read_truth(bench.data.classes).shape
    return Window(0, 0, height, width)


def _columns(bench: Bench, control: str | None) -> dict[str, Read]:
    classes = bench.data.classes
    columns: dict[str, Read] = {"truth": lambda image: image.read_truth(classes)}
    seed = bench.protocol.seeds[0]
    if bench.part == "choosing":
        for row in (FLOOR, FINAL):
            if bench.name("labels", f"{row.name} {seed}") in bench.results.units:
                columns[f"labels: {row.name}"] = _labels(bench, row, seed)
    keys = [f"{FLOOR.name} {seed}", f"{FINAL.name} {seed}", *([control] if control else [])]
    for key in keys:
        if bench.name("map", key) in bench.results.units:
            columns[f"map: {key}"] = _maps(bench, key)
    return columns


def _labels(bench: Bench, row: Row, seed: int) -> Read:
    site = bench.label(settings_of(row, bench.protocol, seed))
    layer = LayerLabels(site)
    return lambda image: layer(image.name, site.scenes[image.name].grid.window)


def _maps(bench: Bench, key: str) -> Read:
    return lambda image: read_classes(bench.map_of(key, image), bench.data.classes)


def _write(path: Path, panels: Mapping[str, NDArray[np.uint8]], bench: Bench) -> None:
    figure = Figure(figsize=(3 * len(panels), 3.6), layout="constrained")
    for axes, (name, pixels) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    colours = bench.data.classes.colours
    figure.legend(
        handles=[
            Patch(color=_shares(colour), label=name)
            for name, colour in zip(bench.data.classes.names, colours, strict=True)
        ],
        loc="outside lower center",
        ncols=len(colours),
        fontsize=8,
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _shares(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue
