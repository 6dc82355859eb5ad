"""Self-training: a segmenter's scores in the place of CAMs, within what the tags allow."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Listener, noise, write_raster
from numpy.testing import assert_array_equal
from torch import nn

from rsseg.api import pseudo_label, tag, tile
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    CrfConfig,
    ProposalConfig,
    Settings,
    TileConfig,
    TrainConfig,
)
from rsseg.errors import InputError
from rsseg.grid import Tile, Window
from rsseg.io.site import Site
from rsseg.nets.checkpoint import Card, Checkpoint, save_checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.nets.segmenter import Tiny
from rsseg.stages.segmenter import CELL, SegmenterStage
from rsseg.stages.stage import TileData

CPU = torch.device("cpu")
CORE, HALO = 32, 16
NAMES = ("field", "wood", "water")


def bands_of(count=3, dtype="uint8"):
    third = (0.0,) * 3
    levels = (120.0,) * count, (60.0,) * count
    return Bands(tuple(range(1, count + 1)), dtype, *levels, (0, 0, 0), third, (255.0,) * 3)


def saved(path, *shares, names=NAMES, bands=3, dtype="uint8", seed=0):
    """A segmenter that gives classes the same shares everywhere, or without them varied ones."""
    torch.manual_seed(seed)
    classes = Classes.from_names(names)
    network = Tiny(bands, len(classes))
    last = network.layers[-1]
    with torch.no_grad():
        nn.init.normal_(last.weight, std=5)
        if shares:
            last.weight.zero_()
            last.bias.copy_(torch.tensor(shares).log())
    config = TrainConfig(arch="tiny", window=64)
    save_checkpoint(path, network, Card("segmenter", config, classes, bands_of(bands, dtype)))
    return path


# --- The stage -----------------------------------------------------------------------------------


def tile_of(allowed=(True,) * 3, core=CORE, seed=0, valid=True):
    """A tile of one core; ``allowed`` per class."""
    side = core + 2 * HALO
    whole = Tile(0, 0, Window(0, 0, core, core), Window(-HALO, -HALO, side, side))
    maps = np.ones((len(allowed), side, side), bool) & np.array(allowed)[:, None, None]
    ones = np.ones((side, side), bool)
    return TileData(whole, noise((3, side, side), seed=seed), ones & valid, maps, ones, {})


def stage_of(model, flips=False, foreground=(0, 1, 2)):
    return SegmenterStage(model, flips, CPU, 2, foreground)


def probabilities(model, image):
    """What the network itself says of a tile's image, (K, S, S)."""
    network = Checkpoint(model, "segmenter").segmenter()
    shown = bands_of().normalise(image, np.ones(image.shape[1:], bool))
    with torch.inference_mode():
        return network(torch.from_numpy(shown)[None]).softmax(dim=1)[0].numpy()


def cells_of(maps):
    """Means of 4 x 4 pixels of the core."""
    inner = maps[:, HALO:-HALO, HALO:-HALO]
    count, side, _ = inner.shape
    return inner.reshape(count, side // 4, 4, side // 4, 4).mean(axis=(2, 4))


@pytest.fixture
def varied(tmp_path):
    return saved(tmp_path / "varied.pt")


@pytest.fixture
def constant(tmp_path):
    return saved(tmp_path / "constant.pt", 0.5, 0.3, 0.2)


def test_scores_are_the_probabilities_of_cells(varied):
    stage, data = stage_of(varied), tile_of()
    (scores,) = stage([data])
    assert (scores.shape, scores.dtype) == ((3, 8, 8), np.uint8)
    assert (stage.writes.name, stage.writes.channels, stage.writes.cell) == ("cam", 3, CELL)
    expected = cells_of(probabilities(varied, data.image))
    assert expected.std() > 0.1
    assert np.abs(scores / 255 - expected).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ((True, True, True), (0.5, 0.3, 0.2)),
        ((False, True, True), (0, 0.6, 0.4)),
        ((True, False, True), (5 / 7, 0, 2 / 7)),
        ((False, False, True), (0, 0, 1)),
        ((False, False, False), (0, 0, 0)),
    ],
)
def test_classes_that_the_tags_exclude_leave_their_share_to_the_others(constant, allowed, expected):
    (scores,) = stage_of(constant)([tile_of(allowed)])
    for found, share in zip(scores, expected, strict=True):
        assert set(found.ravel()) == {round(255 * share)}


def test_each_pixel_of_a_cell_goes_by_its_own_tags(constant):
    data = tile_of()
    data.allowed[0, :, : HALO + 2] = False  # half of the first column of cells
    (scores,) = stage_of(constant)([data])
    # The shares of its pixels are (0, 0.3, 0.2) and (0.5, 0.3, 0.2).
    assert_array_equal(scores[:, 3, 0], np.rint(255 * np.array([0.25, 0.3, 0.2]) / 0.75))
    assert_array_equal(scores[:, 3, 1], np.rint(255 * np.array([0.5, 0.3, 0.2])))


def test_what_was_not_measured_has_no_say(varied):
    valid = np.ones((CORE + 2 * HALO,) * 2, bool)
    valid[HALO : HALO + 6] = False  # a row of cells and half of the next
    valid[: HALO + 6, :HALO] = False
    data = tile_of(valid=valid)
    (scores,) = stage_of(varied)([data])
    assert not scores[:, 0].any()
    data.image[:, ~valid] = 0  # whatever stands there
    (again,) = stage_of(varied)([data])
    assert_array_equal(again, scores)
    total = scores.sum(axis=0, dtype=int)
    assert (np.abs(total[1:] - 255) <= 1).all()


def test_pixels_that_were_not_measured_do_not_dilute_their_cell(constant):
    valid = np.ones((CORE + 2 * HALO,) * 2, bool)
    valid[: HALO + 3] = False
    (scores,) = stage_of(constant)([tile_of(valid=valid)])
    assert_array_equal(scores[:, 0, 0], np.rint(255 * np.array([0.5, 0.3, 0.2])))


def test_the_background_is_left_out_and_has_the_rest(tmp_path):
    model = saved(tmp_path / "m.pt", 0.5, 0.3, 0.2, names=("a", "other", "b"))
    stage = stage_of(model, foreground=(0, 2))
    assert stage.writes.channels == 2
    for allowed, expected in [
        ((True, True, True), (0.5, 0.2)),
        ((True, True, False), (0.625, 0)),
        ((True, False, True), (5 / 7, 2 / 7)),
        ((False, True, False), (0, 0)),
    ]:
        (scores,) = stage([tile_of(allowed)])
        assert scores.shape == (2, 8, 8)
        assert_array_equal(scores[:, 0, 0], [round(255 * share) for share in expected])


def test_with_flips_the_mirrored_tile_gives_mirrored_scores(varied):
    data = tile_of()
    mirrored = replace(data, image=data.image[..., ::-1].copy())
    for flips in (True, False):
        straight, turned = stage_of(varied, flips)([data, mirrored])
        unlike = np.abs(straight.astype(int) - turned[..., ::-1]).max()
        assert unlike <= 1 if flips else unlike > 20
    both = cells_of(probabilities(varied, data.image))
    both += cells_of(probabilities(varied, mirrored.image))[..., ::-1]
    (straight,) = stage_of(varied, True)([data])
    assert np.abs(straight / 255 - both / 2).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(("core", "seen"), [(32, 64), (48, 96), (16, 64)])
def test_networks_see_sides_that_are_multiples_of_32(varied, monkeypatch, core, seen, flips):
    shapes = []
    forward = Tiny.forward

    def noted(self, images):
        shapes.append(tuple(images.shape[-2:]))
        return forward(self, images)

    data = tile_of(core=core)
    expected = cells_of(probabilities(varied, data.image))
    mirrored = cells_of(probabilities(varied, data.image[..., ::-1].copy()))[..., ::-1]
    monkeypatch.setattr(Tiny, "forward", noted)
    (scores,) = stage_of(varied, flips)([data])
    assert set(shapes) == {(seen, seen)}
    assert scores.shape == (3, core // 4, core // 4)
    # The network sees 8 pixels around each, so what lies beyond the halo changes nothing.
    expected = (expected + mirrored) / 2 if flips else expected
    assert np.abs(scores / 255 - expected).max() <= 0.5 / 255 + 1e-4


def test_tiles_of_a_batch_have_their_own_tags_and_pixels(varied):
    tiles = [tile_of(seed=1), tile_of((True, False, True), seed=2)]
    together = stage_of(varied)(tiles)
    for scores, data in zip(together, tiles, strict=True):
        (alone,) = stage_of(varied)([data])
        assert np.abs(scores.astype(int) - alone).max() <= 1
    assert not together[1][1].any()
    assert together[0][1].any()


def test_a_changed_segmenter_is_loaded_anew(constant):
    stage, data = stage_of(constant), tile_of()
    (before,) = stage([data])
    stamp = constant.stat().st_mtime_ns
    saved(constant, 0.2, 0.3, 0.5)
    os.utime(constant, ns=(stamp + 10**9, stamp + 10**9))
    (after,) = stage([data])
    assert_array_equal(after, before[::-1])


# --- pseudo_label --------------------------------------------------------------------------------

SETTINGS = Settings(
    classifier=ClassifierConfig("test_efficientnet", "none", window=64, halo=16),
    crf=CrfConfig(iterations=0),
    proposals=ProposalConfig(proposals="none"),
)
ROWS, COLS = 3, 4
LAYERS = {"cam", "crf", "labels"}


def site_of(folder, names=("field", "wood"), bands=3):
    """A site of 3 x 4 cores: the first column is of the first class alone, the last untagged."""
    raster = write_raster(folder / "a.tif", noise((bands, ROWS * CORE, COLS * CORE)))
    made = tile(
        [raster], folder / "s.zarr", Classes.from_names(names), config=TileConfig(48, 1 / 3)
    )
    rows = [f"a/{row}/{col},1,{int(col > 0)}" for row in range(ROWS) for col in range(COLS - 1)]
    sheet = folder / "tags.csv"
    sheet.write_text("\n".join(["tile," + ",".join(made.classes.names), *rows]))
    tag(made.path, [sheet])
    return made.path


@pytest.fixture
def site(tmp_path):
    return site_of(tmp_path)


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "model.pt", 0.3, 0.7, names=("field", "wood"))


def labelled(site, model, settings=SETTINGS, **options):
    return pseudo_label(site, settings=settings, model=model, device="cpu", workers=1, **options)


def layer(site, name):
    scene = site.scenes["a"]
    return scene.find_layer(name, site.layers[name]).read(scene.grid.window)


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def chunks(site):
    """When each chunk of the layers was written."""
    return {path: when for path, when in contents(site).items() if "c" in path.parts}


@pytest.fixture
def no_classifier(monkeypatch):
    """Whoever fits a classifier or asks for SAM's weights is found out."""

    def refused(*_, **__):
        raise AssertionError

    for name in ("classifier_of", "_objects", "sam_at_hand", "find"):
        monkeypatch.setattr(f"rsseg.api.labelling.{name}", refused)


def test_labels_follow_the_segmenter_within_the_tags(site, model, no_classifier):
    made = labelled(site, model)
    assert set(made.layers) == LAYERS
    assert not made.models.exists() or not list(made.models.iterdir())
    cam = layer(made, "cam")
    assert cam.shape == (2, ROWS * CORE // CELL, COLS * CORE // CELL)
    mixed = cam[:, :, CORE // CELL : 3 * CORE // CELL]
    assert_array_equal(np.unique(mixed[0]), [round(255 * 0.3)])
    assert_array_equal(np.unique(mixed[1]), [round(255 * 0.7)])
    labels = layer(made, "labels")
    # Within half a cell of another core's tags its scores mix with these.
    inner = [labels[:, start + CELL : start + CORE - CELL] for start in range(0, 4 * CORE, CORE)]
    assert [set(column.ravel()) for column in inner] == [{0}, {1}, {1}, {255}]
    assert_array_equal(labels[0] == 255, np.arange(COLS * CORE) >= 3 * CORE)


@pytest.mark.parametrize(("until", "made"), [("cam", {"cam"}), ("crf", {"cam", "crf"})])
def test_until(site, model, no_classifier, until, made):
    assert set(labelled(site, model, until=until).layers) == made


@pytest.mark.parametrize("scores", ["softmax", "minmax"])
def test_the_background_has_the_rest_whatever_the_scores_of_cams_are(
    tmp_path, no_classifier, scores
):
    """By the power of stretched CAMs it would have (1 - 0.45) ** 2, less than the building."""
    site = site_of(tmp_path, ["background", "building"])
    model = saved(tmp_path / "m.pt", 0.55, 0.45, names=("background", "building"))
    made = labelled(site, model, replace(SETTINGS, cam=CamConfig(scores=scores)))
    assert layer(made, "cam").shape[0] == 1
    crf = layer(made, "crf")[:, :, CORE : 3 * CORE] / 255
    assert crf[0].min() == pytest.approx(0.55, abs=0.01)
    assert set(layer(made, "labels")[:, : 3 * CORE].ravel()) == {0}


def test_a_resumed_run_does_nothing(site, model, no_classifier, monkeypatch):
    first, before = labelled(site, model).layers, chunks(site)
    assert len(before) > 3 * 6
    monkeypatch.setattr(SegmenterStage, "__call__", lambda *_: 1 / 0)
    assert labelled(site, model).layers == first
    # Settings of what was not asked have no say.
    other = replace(SETTINGS, cam=CamConfig("minmax", background_power=7.0))
    assert labelled(site, model, other).layers == first
    assert chunks(site) == before


def test_another_segmenter_makes_all_layers_anew(site, model, no_classifier):
    first = labelled(site, model).layers
    stamp = model.stat().st_mtime_ns
    saved(model, 0.7, 0.3, names=("field", "wood"))
    os.utime(model, ns=(stamp + 10**9, stamp + 10**9))
    made = labelled(site, model)
    assert all(made.layers[name] != first[name] for name in LAYERS)
    assert set(layer(made, "labels")[:, : 3 * CORE].ravel()) == {0}


@pytest.mark.parametrize(
    "changed",
    [
        {"cam": CamConfig(flips=False)},
        {"classifier": replace(SETTINGS.classifier, window=96)},
        {"classifier": replace(SETTINGS.classifier, halo=32)},
    ],
    ids=["flips", "window", "halo"],
)
def test_what_the_segmenter_sees_makes_its_scores_anew(site, model, no_classifier, changed):
    first = labelled(site, model, until="cam").layers
    second = labelled(site, model, replace(SETTINGS, **changed), until="cam").layers
    assert first["cam"] != second["cam"]


def wrong(folder):
    """Segmenters that a site of field and wood in three bands cannot go by, and what is said."""
    two = {"names": ("field", "wood")}
    yield saved(folder / "more.pt"), "knows the classes field, wood, water, but .* field, wood;"
    turned = saved(folder / "turned.pt", names=("wood", "field"))
    yield turned, "knows the classes wood, field, but .*s.zarr has field, wood; give a model"
    four = saved(folder / "four.pt", bands=4, **two)
    yield four, "needs 4 bands of uint8, but .*s.zarr has 3 bands of uint8; give"
    deep = saved(folder / "deep.pt", dtype="uint16", **two)
    yield deep, "needs 3 bands of uint16, but .*s.zarr has 3 bands of uint8; give"
    yield folder / "gone.pt", "gone.pt: no such checkpoint"
    (folder / "text.pt").write_text("no model")
    yield folder / "text.pt", "text.pt: not a checkpoint of rsseg"
    config = ClassifierConfig("test_efficientnet", "none", (8,), hidden=4)
    card = Card("classifier", config, Classes.from_names(two["names"]), bands_of())
    save_checkpoint(folder / "tags.pt", Classifier(config, 3, 2), card)
    yield folder / "tags.pt", "holds a classifier, a segmenter is needed"


def test_what_the_classifier_cannot_learn_from_a_segmenter_can(tmp_path, no_classifier):
    site = site_of(tmp_path, bands=4)
    model = saved(tmp_path / "m.pt", 0.3, 0.7, names=("field", "wood"), bands=4)
    colour = replace(SETTINGS, classifier=replace(SETTINGS.classifier, jitter="colour"))
    with pytest.raises(InputError, match="jitter"):
        pseudo_label(site, settings=colour)
    assert set(labelled(site, model, colour, until="cam").layers) == {"cam"}


def test_a_segmenter_that_does_not_fit_is_refused_before_any_work(site, tmp_path):
    cases = list(wrong(tmp_path))
    before = contents(tmp_path)
    for model, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            labelled(site, model)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert Site(site).layers == {}


def test_on_the_command_line(site, model, tmp_path, monkeypatch, capsys, no_classifier):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("[crf]\niterations = 0\n[classifier]\nwindow = 64")
    command = "pseudo-label s.zarr --config settings.toml --proposals none --workers 1 --device cpu"
    assert main([*command.split(), "--model", "gone.pt"]) == 2
    assert "gone.pt: no such checkpoint" in capsys.readouterr().err
    assert main([*command.split(), "--model", "model.pt", "--export", "labels.tif"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "labels.tif\n"
    assert "warning" not in shown.err
    assert set(Site(site).layers) == LAYERS


# --- No proposals --------------------------------------------------------------------------------


def test_without_proposals_the_crf_alone_makes_the_labels(tmp_path, monkeypatch):
    """With the classifier as well; SAM's weights are not looked for, and nobody is warned."""
    for name in ("_objects", "sam_at_hand", "find"):
        monkeypatch.setattr(f"rsseg.api.labelling.{name}", lambda *_, **__: 1 / 0)
    listener = Listener()
    quick = replace(SETTINGS.classifier, strides=(8,), hidden=4, min_steps=2)
    settings = replace(SETTINGS, classifier=quick, crf=CrfConfig(iterations=1))
    made = pseudo_label(
        site_of(tmp_path), settings=settings, device="cpu", workers=1, progress=listener
    )
    assert listener.warnings == []
    assert set(made.layers) == LAYERS
    labels, crf = layer(made, "labels"), layer(made, "crf")
    mixed = slice(CORE, 3 * CORE)
    assert_array_equal(labels[:, mixed], crf[:, :, mixed].argmax(axis=0))
    assert not labels[:, :CORE].any()
    assert (labels[:, 3 * CORE :] == 255).all()


def test_proposals_that_are_switched_off_leave_the_masks_and_change_the_labels(site, model):
    with_masks = replace(SETTINGS, proposals=ProposalConfig(proposals="superpixels", window=128))
    made = labelled(site, model, with_masks)
    assert set(made.layers) == {*LAYERS, "masks", "objects"}
    assert set(layer(made, "labels")[:, CORE : 3 * CORE].ravel()) <= {0, 1}
    first, second = made.layers, labelled(site, model).layers
    assert {name for name in first if first[name] != second[name]} == {"labels"}
