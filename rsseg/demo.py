"""demo: the whole way on a drawn orthophoto, offline, with scores against its exact truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from rsseg.api import evaluate, export, predict, pseudo_label, tag, tile, train
from rsseg.classes import Classes
from rsseg.config import Proposals, Settings, TileConfig, TrainConfig, with_options
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.classmap import ClassRaster
from rsseg.io.files import replacing
from rsseg.io.mapfile import strips, write_map
from rsseg.io.preview import class_picture, picture, preview_grid
from rsseg.ops.confusion import Scores
from rsseg.ops.figure import Entry, draw_figure
from rsseg.ops.picture import paint
from rsseg.ops.synthetic import CLASS_NAMES, draw_orthophoto, gaussian_classifier
from rsseg.progress import SILENT, Progress

COLOURS = ("#d7301f", "#6e6e6e", "#e8c547", "#1b7837", "#2b83ba")
TILE = TileConfig(size=96, overlap=1 / 3)
"""Tags are given for cores of 64 px (19 m): coarse enough to tick, fine enough to learn from."""
TRAIN = TrainConfig(window=192, min_steps=250, batch_size=8)
CLASSIFIER_STEPS = 200
"""Both shorter than the defaults, for a first look within minutes."""
PICTURE_SIDE = 560
"""Longest side of each picture of the quicklook, pixels."""
NOTE = ".rsseg-demo"
"""Marks a folder that a demo made, so that ``overwrite`` never clears another."""


@dataclass(frozen=True)
class DemoReport:
    """What a demo made.

    Args:
        orthophoto: the drawn orthophoto.
        map: the map made of it.
        vectors: its polygons.
        quicklook: PNG of orthophoto, truth and map side by side.
        site: the site.
        scores: name → scores against the exact truth: pseudo-labels, map, and the control that
            knows nothing but colour.
        classes: the classes.
    """

    orthophoto: Path
    map: Path
    vectors: Path
    quicklook: Path
    site: Path
    scores: dict[str, Scores]
    classes: Classes


def run_demo(
    folder: str | Path,
    *,
    size: int = 1024,
    seed: int = 0,
    proposals: Proposals | None = None,
    sam: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> DemoReport:
    """Draw an orthophoto, tag its tiles, learn from the tags alone, map it and score the map.

    Args:
        folder: where everything goes.
        size: side of the orthophoto, pixels of 0.3 m; at least 512.
        seed: another seed is another place.
        proposals: ``sam``, ``superpixels`` or ``none``, the default.
        sam: SAM's weights, by registry name or path, where ``proposals`` is ``sam``.
        device: where networks run.
        overwrite: replace what an earlier demo left in the folder.
        progress: shows what is going on.

    Raises:
        InputError: the folder is in use, or the size is too small.
    """
    folder = Path(folder)
    if size < 512:
        raise InputError(f"--size {size}: colour alone solves scenes that small; use 512 or more")
    settings = _settings(proposals)
    _prepare(folder, {"size": size, "seed": seed}, overwrite)
    files = _Files(folder)
    classes = _classes()
    image, truth = draw_orthophoto(size, seed)
    control = gaussian_classifier(image, truth)
    _write_inputs(files, image, truth, control, classes)
    if not files.site.exists():
        tile([files.orthophoto], files.site, classes, config=TILE, progress=progress)
    tag(files.site, [files.truth], progress=progress)
    pseudo_label(files.site, settings=settings, sam=sam, device=device, progress=progress)
    export(files.site, "labels", files.labels, overwrite=True, progress=progress)
    if not files.model.exists():
        train(
            files.site,
            files.model,
            config=TRAIN,
            device=device,
            overwrite=True,
            progress=progress,
        )
    predict(
        [files.orthophoto],
        files.model,
        files.map,
        vectors=files.vectors,
        device=device,
        progress=progress,
    )
    compared = {"pseudo-labels": files.labels, "map": files.map, "colour alone": files.control}
    scores = {name: evaluate(path, files.truth).scores for name, path in compared.items()}
    _draw_quicklook(files.quicklook, files, classes)
    return DemoReport(
        files.orthophoto, files.map, files.vectors, files.quicklook, files.site, scores, classes
    )


class _Files:
    """The files of a demo.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.orthophoto = folder / "ortho.tif"
        self.truth = folder / "truth.tif"
        self.control = folder / "colour_alone.tif"
        self.site = folder / "site.zarr"
        self.labels = folder / "pseudo_labels.tif"
        self.model = folder / "model.pt"
        self.map = folder / "map.tif"
        self.vectors = folder / "map.gpkg"
        self.quicklook = folder / "quicklook.png"


def _prepare(folder: Path, what: dict[str, int], overwrite: bool) -> None:
    """Make the folder, empty unless an interrupted demo of the same kind is to go on there."""
    note = folder / NOTE
    if folder.exists() and any(folder.iterdir()):
        if not note.is_file():
            raise InputError(f"{folder}: holds files that no demo made; give another --out")
        same = json.loads(note.read_text(encoding="utf-8")) == what
        if overwrite or not same:
            if not overwrite:
                raise InputError(f"{folder}: holds another demo; give another --out or --overwrite")
            shutil.rmtree(folder)
        elif _Files(folder).map.exists():
            raise InputError(f"{folder}: holds this demo already; --overwrite runs it anew")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(what), encoding="utf-8")


def _classes() -> Classes:
    rows = zip(CLASS_NAMES, COLOURS, strict=True)
    return Classes.from_dict({"classes": [{"name": n, "colour": c} for n, c in rows]})


def _settings(proposals: Proposals | None) -> Settings:
    settings = Settings()
    changed = with_options(settings.proposals, proposals=proposals)
    classifier = replace(settings.classifier, min_steps=CLASSIFIER_STEPS)
    return replace(settings, classifier=classifier, proposals=changed)


def _write_inputs(
    files: _Files,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    control: NDArray[np.uint8],
    classes: Classes,
) -> None:
    grid = Grid(truth.shape[:2], Affine(0.3, 0, 500_000, 0, -0.3, 5_400_000), CRS(32633).to_wkt())
    if not files.orthophoto.exists():
        blocks = [(window, image[(slice(None), *window.slices)]) for window in strips(grid.shape)]
        write_map(files.orthophoto, grid, blocks, count=3, nodata=None)
    for path, indices in ((files.truth, truth), (files.control, control)):
        ids = classes.to_ids(indices)
        strip_ids = [(window, ids[window.slices]) for window in strips(grid.shape)]
        write_map(path, grid, strip_ids, classes=classes, overwrite=True)


def _draw_quicklook(out: Path, files: _Files, classes: Classes) -> None:
    """Draw the orthophoto, the truth and the map side by side, as a PNG."""
    with ClassRaster(files.truth) as truth:
        grid = preview_grid(truth.grid, PICTURE_SIDE)
    panels = [("orthophoto", picture(files.orthophoto, grid).rgb)]
    for title, path in (("exact truth", files.truth), ("map from tile tags", files.map)):
        panels.append((title, paint(class_picture(path, grid, classes), classes.colours)))
    legend = [Entry(name, c) for name, c in zip(classes.names, classes.colours, strict=True)]
    with replacing(out, overwrite=True) as temporary:
        draw_figure(temporary, "", panels, legend, grid.ground_sample_distance)
