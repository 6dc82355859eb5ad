"""The whole way in small: from tile tags to a map that knows better than the majority."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from helpers import NORTH_UP, Listener, write_features, write_raster
from scipy.ndimage import gaussian_filter
from shapely.geometry import box

from rsseg.api import evaluate, export, predict, pseudo_label, tag, tile, train
from rsseg.classes import Classes
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    CrfConfig,
    LabelConfig,
    ProposalConfig,
    Settings,
    TileConfig,
    TrainConfig,
)
from rsseg.errors import InputError
from rsseg.io.site import Site
from rsseg.ops.segments import superpixels

SIDE = 256
TILES = TileConfig(48, 1 / 3)
SETTINGS = Settings(
    classifier=ClassifierConfig(
        "test_efficientnet", "none", (8,), hidden=16, window=96, min_steps=80, dropout=0.0
    ),
    cam=CamConfig(scales=(1.0,)),
    crf=CrfConfig(bilateral_sxy=20),
    proposals=ProposalConfig(proposals="superpixels", window=128, halo=32),
)
TRAIN = TrainConfig("tiny", window=64, min_steps=60, lr=5e-3)


def blobs(seed, share):
    """Smooth shapes that cover a share of the picture, (H, W) bool."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 24)
    return field > np.quantile(field, 1 - share)


def drawn(truth, count=3, dtype="uint8", seed=1):
    """A noisy picture (C, H, W) in which the classes have overlapping colours."""
    random = np.random.default_rng(seed)
    colours = random.uniform(0.2, 0.8, (int(truth.max()) + 1, count))
    values = np.moveaxis(colours[truth], -1, 0) + random.normal(0, 0.06, (count, SIDE, SIDE))
    top = {"uint8": 250, "uint16": 12_000}[dtype]
    return (np.clip(values, 0.02, 1) * top).astype(dtype)


class Way:
    """The verbs, on one raster of one folder."""

    def __init__(self, folder, classes, truth, image):
        self.folder, self.classes = folder, classes
        self.raster = write_raster(folder / "a.tif", image, nodata=0)
        self.truth = write_raster(folder / "truth.tif", truth, nodata=255, classes=classes)
        self.site = folder / "site.zarr"
        self.model = folder / "model.pt"
        self.map = folder / "map.tif"

    def tagged(self):
        tile([self.raster], self.site, self.classes, config=TILES)
        tag(self.site, [self.truth])
        return self

    def labelled(self, settings=SETTINGS, **options):
        return pseudo_label(self.site, settings=settings, workers=1, device="cpu", **options)

    def mapped(self):
        train(self.site, self.model, config=TRAIN, device="cpu", overwrite=True)
        predict([self.raster], self.model, self.map, device="cpu", overwrite=True)
        return self.map

    def scores(self, what=None):
        if what is None:
            what = self.folder / "labels.tif"
            export(self.site, "labels", what, overwrite=True)
        return evaluate(what, self.truth).scores


def kinds():
    two = blobs(3, 0.4).astype(np.uint8)
    yield "two classes", Classes.from_names(["field", "wood"]), two, drawn(two)
    small = blobs(5, 0.25).astype(np.uint8)
    yield "one class", Classes.from_names(["building"]), small, drawn(small)
    many = drawn(small, 4, "uint16")
    yield "four bands of 16 bits", Classes.from_names(["building"]), small, many


@pytest.mark.parametrize(
    ("classes", "truth", "image"), [pytest.param(*rest, id=name) for name, *rest in kinds()]
)
def test_the_whole_way(tmp_path, classes, truth, image):
    image[:, :20, :30] = 0
    way = Way(tmp_path, classes, truth, image).tagged()
    site = way.labelled()
    assert set(site.layers) == {"cam", "crf", "masks", "objects", "labels"}
    majority = max(np.mean(truth == 0), np.mean(truth == 1))
    labels = way.scores()
    assert labels.oa > majority + 0.1
    assert labels.miou > 0.6
    found = way.scores(way.mapped())
    assert found.oa > majority + 0.1
    assert found.miou > 0.7
    with rasterio.open(way.map) as dataset:
        values = dataset.read(1)
        assert (dataset.transform, dataset.nodata) == (NORTH_UP, 255)
        assert (values[:20, :30] == 255).all()
        assert set(np.unique(values[20:])) == {0, 1}


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """A labelled site; whoever changes it must restore it."""
    truth = blobs(3, 0.4).astype(np.uint8)
    classes = Classes.from_names(["field", "wood"])
    made = Way(tmp_path_factory.mktemp("way"), classes, truth, drawn(truth)).tagged()
    made.labelled()
    return made


def times(site, *names):
    """When each chunk of the layers was written."""
    return {
        path: path.stat().st_mtime_ns
        for name in names
        for path in site.rglob(f"{name}-*/{name}/c/**/*")
        if path.is_file()
    }


def test_again_is_nothing(way):
    names = ("cam", "crf", "masks", "objects", "labels")
    before = times(way.site, *names)
    models = {path: path.stat().st_mtime_ns for path in (way.site / "models").iterdir()}
    assert len(before) > 3 * 20
    way.labelled()
    assert times(way.site, *names) == before
    assert {path: path.stat().st_mtime_ns for path in (way.site / "models").iterdir()} == models


def test_each_setting_makes_its_own_layers_anew(way):
    first = Site(way.site).layers
    kept = times(way.site, "cam", "crf", "masks", "objects", "labels")
    proposals = SETTINGS.proposals
    for part, anew in [
        (replace(SETTINGS, crf=CrfConfig(iterations=1)), {"crf", "labels"}),
        (
            replace(SETTINGS, proposals=replace(proposals, superpixel_scale=10)),
            {"masks", "objects", "labels"},
        ),
        (replace(SETTINGS, proposals=replace(proposals, join=0.9)), {"objects", "labels"}),
        (replace(SETTINGS, proposals=replace(proposals, overlap=0.9)), {"labels"}),
        # The settings of SAM are nothing to superpixels.
        (replace(SETTINGS, proposals=replace(proposals, score=0.5, nms=0.9)), set()),
        (replace(SETTINGS, cam=CamConfig(scales=(1.0,), flips=False)), {"cam", "crf", "labels"}),
    ]:
        layers = way.labelled(part).layers
        assert {name for name, key in layers.items() if key != first[name]} == anew
        assert kept.items() <= times(way.site, *first).items()
    assert way.labelled().layers == first


@pytest.mark.parametrize(("until", "made"), [("cam", {"cam"}), ("crf", {"cam", "crf"})])
def test_until(way, until, made):
    Site(way.site).forget_layers(["cam", "crf", "masks", "objects", "labels"])
    assert set(way.labelled(until=until).layers) == made
    way.labelled()


def test_other_tags_forget_what_was_made_of_them(way):
    before = times(way.site, "cam", "masks", "objects", "labels")
    listener = Listener()
    tag(way.site, [way.truth], min_share=0.2, progress=listener)
    assert set(Site(way.site).layers) <= {"masks", "objects"}
    with pytest.raises(InputError, match="no pseudo-labels"):
        train(way.site, way.model, config=TRAIN, device="cpu")
    tag(way.site, [way.truth])
    way.labelled()
    assert times(way.site, "cam", "masks", "objects", "labels") == before


def test_area_of_interest(way):
    left, top = NORTH_UP @ (10, 10)
    right, bottom = NORTH_UP @ (60, 90)
    area = write_features(way.folder / "aoi.gpkg", [box(left, bottom, right, top)])
    before, masks = Site(way.site).layers, times(way.site, "masks")
    site = way.labelled(aoi=area)
    # Fewer windows of the same masks, which are numbered by themselves.
    assert site.layers["masks"] == before["masks"]
    assert site.layers["objects"] != before["objects"]
    assert times(way.site, "masks") == masks
    assert len(times(way.site, "objects")) > len(masks)
    scene = site.scenes["a"]
    labels = scene.find_layer("labels", site.layers["labels"]).read(scene.grid.window)
    assert (labels[10:90, 10:60] != 255).all()
    assert (labels[96:] == 255).all()
    assert (labels[:, 96:] == 255).all()
    assert way.labelled().layers == before


def test_numbers_belong_to_the_masks_of_their_settings(way, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    before = Site(way.site).layers
    other = replace(SETTINGS, proposals=replace(SETTINGS.proposals, superpixel_scale=200))
    with monkeypatch.context() as patch:
        patch.setattr("rsseg.api.labelling.number_objects", die)
        with pytest.raises(KeyboardInterrupt):
            way.labelled(other)
    assert Site(way.site).layers["masks"] != before["masks"]
    with pytest.raises(InputError, match="no layer 'masks'"):
        export(way.site, "masks", way.folder / "masks.tif")
    assert way.labelled().layers == before


def test_sam_runs_once_for_an_image_and_its_own_settings(way, monkeypatch):
    seen = []

    def propose(prompter, images, config):
        seen.extend(images)
        return [superpixels(image) for image in images]

    before = Site(way.site).layers
    for name in ("labelling._sam_weights", "sam.load_prompter", "sam._sam_masks"):
        room = "rsseg.api" if name.startswith("labelling") else "rsseg.stages"
        found = propose if name.endswith("masks") else lambda *_: Path("some_sam.pt")
        monkeypatch.setattr(f"{room}.{name}", found)
    proposals = replace(SETTINGS.proposals, proposals="sam")
    settings = replace(SETTINGS, proposals=proposals)
    way.labelled(settings)
    windows = len(seen)
    assert windows > 9
    for changes in (
        {"crf": CrfConfig(iterations=2)},
        {"labels": LabelConfig(min_confidence=0.3)},
        {"proposals": replace(proposals, join=0.9, overlap=0.9, superpixel_scale=10)},
    ):
        way.labelled(replace(settings, **changes))
    tag(way.site, [way.truth], min_share=0.2)
    way.labelled(settings)
    tag(way.site, [way.truth])
    assert len(seen) == windows
    way.labelled(replace(settings, proposals=replace(proposals, score=0.5)))
    assert len(seen) == 2 * windows
    monkeypatch.undo()
    assert way.labelled().layers == before


def test_polygons_that_lie_elsewhere(way):
    area = write_features(way.folder / "far.gpkg", [box(0, 0, 1, 1)])
    with pytest.raises(InputError, match="lie wholly outside the raster"):
        way.labelled(aoi=area)


def quickly_labelled(folder, rasters, tags):
    """A site of rasters with the rows of a tag sheet, labelled after next to no training."""
    sheet = folder / "tags.csv"
    sheet.write_text("\n".join(["tile,field,wood", *tags]))
    classes = Classes.from_names(["field", "wood"])
    site = tile(rasters, folder / "site.zarr", classes, config=TILES).path
    tag(site, [sheet])
    short = replace(SETTINGS, classifier=replace(SETTINGS.classifier, min_steps=3))
    return pseudo_label(site, settings=short, workers=1, device="cpu")


def test_scenes_of_one_tile_beside_larger_ones(tmp_path):
    truth = blobs(3, 0.4).astype(np.uint8)
    image = drawn(truth)
    rasters, tags = [], []
    for name, side in (("a", 32), ("b", 160)):
        rasters.append(write_raster(tmp_path / f"{name}.tif", image[:, :side, :side]))
        for row, col in np.ndindex(side // 32, side // 32):
            here = truth[32 * row : 32 * row + 32, 32 * col : 32 * col + 32]
            tags.append(f"{name}/{row}/{col},{int((here == 0).any())},{int((here == 1).any())}")
    made = quickly_labelled(tmp_path, rasters, tags)
    for scene in made.scenes.values():
        labels = scene.find_layer("labels", made.layers["labels"]).read(scene.grid.window)
        assert (labels != 255).all()


def test_a_scene_whose_tags_leave_no_choice(tmp_path):
    truth = blobs(3, 0.4).astype(np.uint8)
    rasters, tags = [], []
    for name in "ab":
        rasters.append(write_raster(tmp_path / f"{name}.tif", drawn(truth)[:, :96, :96]))
        for row, col in np.ndindex(3, 3):
            tags.append(f"{name}/{row}/{col},1,{int(name == 'b' and row == col)}")
    made = quickly_labelled(tmp_path, rasters, tags)
    for scene, values in zip(made.scenes.values(), ({0}, {0, 1}), strict=True):
        labels = scene.find_layer("labels", made.layers["labels"]).read(scene.grid.window)
        assert set(np.unique(labels)) <= values
    paths = export(made.path, "masks", tmp_path / "masks.tif")
    with rasterio.open(paths[0]) as empty, rasterio.open(paths[1]) as full:
        assert not empty.read().any()
        assert full.read(1).all()


def test_nothing_to_learn_from(tmp_path):
    truth = np.zeros((SIDE, SIDE), np.uint8)
    way = Way(tmp_path, Classes.from_names(["field", "wood"]), truth, drawn(blobs(1, 0.5) * 1))
    tile([way.raster], way.site, way.classes, config=TILES)
    with pytest.raises(InputError, match="no tile is tagged with 'wood'"):
        tag(way.site, [way.truth])
    with pytest.raises(InputError, match="has no tags"):
        way.labelled()
    with pytest.raises(InputError, match="no pseudo-labels: run rsseg pseudo-label"):
        train(way.site, way.model, config=TRAIN, device="cpu")
