"""Stages: what tags allow is all that comes out, and how a run is cut changes nothing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NORTH_UP, Listener, noise, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from rsseg.api import tile as make_site
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    CrfConfig,
    LabelConfig,
    ProposalConfig,
    TileConfig,
)
from rsseg.errors import RunError
from rsseg.grid import Tile, Window
from rsseg.io.layers import LayerSpec
from rsseg.io.masks import SceneObjects
from rsseg.nets.checkpoint import Card, Checkpoint, save_checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.ops.cam import competitive_pool, normalise, with_background
from rsseg.ops.maskpack import PackedMasks
from rsseg.ops.objects import Objects
from rsseg.ops.segments import Masks, superpixels
from rsseg.progress import SILENT
from rsseg.run import read_tile, run
from rsseg.stages import sam
from rsseg.stages.cam import CamStage
from rsseg.stages.crf import CrfStage
from rsseg.stages.objects import number_objects
from rsseg.stages.sam import LabelStage, MaskStage
from rsseg.stages.stage import TileData

CPU = torch.device("cpu")
CORE, HALO = 32, 16
SIDE = CORE + 2 * HALO
BANDS = Bands((1, 2, 3), "uint8", (120.0,) * 3, (60.0,) * 3, (0, 1, 2), (0.0,) * 3, (255.0,) * 3)
EVERYWHERE = Tile(0, 0, Window(0, 0, CORE, CORE), Window(-HALO, -HALO, SIDE, SIDE))


def tile_of(
    allowed=(True, True),
    image=None,
    valid=True,
    labelled=True,
    halo_allowed=None,
    objects=None,
    **layers,
):
    """A tile of one core; ``allowed`` per class in the core, ``halo_allowed`` around it."""
    around = allowed if halo_allowed is None else halo_allowed
    maps = np.ones((len(allowed), SIDE, SIDE), bool) & np.array(around)[:, None, None]
    maps[:, HALO:-HALO, HALO:-HALO] = np.array(allowed)[:, None, None]
    ones = np.ones((SIDE, SIDE), bool)
    picture = noise((3, SIDE, SIDE)) if image is None else image
    return TileData(EVERYWHERE, picture, ones & valid, maps, ones & labelled, layers, objects)


def columns(*bounds):
    """Objects of a core, each the columns from one bound to the next."""
    masks = np.zeros((len(bounds) - 1, CORE, CORE), np.bool_)
    for mask, (left, right) in zip(masks, pairwise(bounds), strict=True):
        mask[:, left:right] = True
    count = len(masks)
    whole = Masks(masks, np.full(count, 2, np.int8), np.ones(count, np.float32))
    return Objects(whole, np.arange(1, count + 1, dtype=np.uint32))


def two_tone():
    image = np.full((3, SIDE, SIDE), 40, np.uint8)
    image[..., SIDE // 2 :] = 210
    return image


def full(*values):
    """Layers of constant planes, (K, S, S) uint8."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None], (len(values), SIDE, SIDE))


# --- CAM -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return classifier_file(tmp_path_factory)


@pytest.fixture(scope="module")
def refining(tmp_path_factory):
    return classifier_file(tmp_path_factory, affinity=True, cross=1.0)


def classifier_file(tmp_path_factory, **options):
    torch.manual_seed(0)
    config = ClassifierConfig("test_efficientnet", "none", (8,), hidden=4, **options)
    path = tmp_path_factory.mktemp("classifier") / "c.safetensors"
    network = Classifier(config, 3, 3)
    torch.manual_seed(2)
    for head in network.heads:
        torch.nn.init.normal_(head[-1].weight)
    card = Card("classifier", config, Classes.from_names(["a", "b", "other", "c"]), BANDS)
    save_checkpoint(path, network, card)
    return path


def cam_stage(checkpoint, scores="minmax", **config):
    return CamStage(checkpoint, CamConfig(scores, **config), CPU, 2, 8, (0, 1, 3))


@pytest.mark.parametrize("scores", ["minmax", "softmax"])
@pytest.mark.parametrize("absent", [0, 1, 3])
def test_a_class_that_is_absent_has_no_cam(checkpoint, absent, scores):
    stage = cam_stage(checkpoint, scores)
    allowed = np.arange(4) != absent
    (cam,) = stage([tile_of(tuple(allowed))])
    assert (cam.shape, cam.dtype) == ((3, 4, 4), np.uint8)
    there = [index for index, one in enumerate(stage.foreground) if one != absent]
    assert cam[there].any(axis=(1, 2)).all()
    assert not np.delete(cam, there, axis=0).any()


def test_a_window_allows_what_any_of_its_cores_does(checkpoint):
    tile = tile_of((True,) * 4)
    half = np.arange(SIDE) < SIDE // 2
    tile.allowed[0] = half  # the class is in the left cores alone
    (cam,) = cam_stage(checkpoint)([tile])
    assert cam[0, :, :2].any()
    assert not cam[0, :, 2:].any()
    assert cam[1, :, 2:].any()


def test_what_was_not_measured_has_no_cam(checkpoint):
    valid = np.ones((SIDE, SIDE), bool)
    valid[:, : SIDE // 2] = False
    (cam,) = cam_stage(checkpoint)([tile_of((True,) * 4, valid=valid)])
    assert not cam[..., :2].any()
    assert cam[..., 2:].any()


def test_shares_are_a_softmax_over_what_the_tags_allow(checkpoint):
    """Logits of all views are averaged first; negative ones count as well."""
    tile = tile_of((True, True, True, False))
    (cam,) = cam_stage(checkpoint, "softmax", flips=True)([tile])
    network = Checkpoint(checkpoint, "classifier").classifier()
    image = torch.from_numpy(BANDS.normalise(tile.image, tile.valid))[None]
    with torch.inference_mode():
        logits = (network(image) + network(image.flip(-1)).flip(-1)) / 2
    with_background = torch.cat([logits[:, :2], torch.zeros_like(logits[:, :1])], dim=1)
    expected = with_background.softmax(dim=1)[0, :2, 2:-2, 2:-2].numpy()
    assert np.abs(cam[:2] / 255 - expected).max() < 0.01
    assert not cam[2].any()


@pytest.mark.parametrize("scores", ["minmax", "softmax"])
def test_flipping_the_tile_flips_the_cam(checkpoint, scores):
    image = noise((3, SIDE, SIDE))
    stage = cam_stage(checkpoint, scores, scales=(1.0, 0.5), flips=True)
    straight, mirrored = stage([tile_of((True,) * 4, i) for i in (image, image[..., ::-1].copy())])
    assert np.abs(straight.astype(int) - mirrored[..., ::-1]).max() <= 1


def test_the_stage_reads_refined_maps_unless_told_otherwise(refining, checkpoint):
    tile = tile_of((True,) * 4)
    (cam,), (unrefined,) = (cam_stage(refining, refined=one)([tile]) for one in (True, False))
    (plain,) = cam_stage(checkpoint)([tile])  # of the same weights, but for the affinity
    assert not np.array_equal(cam, plain)
    assert np.array_equal(unrefined, plain)


def test_refined_maps_turn_with_the_tile_and_keep_to_the_tags(refining):
    image = noise((3, SIDE, SIDE))
    tiles = [tile_of((False, True, True, True), i) for i in (image, image[..., ::-1].copy())]
    straight, mirrored = cam_stage(refining, scales=(1.0, 0.5))(tiles)
    assert np.abs(straight.astype(int) - mirrored[..., ::-1]).max() <= 1
    assert not straight[0].any()
    assert straight[1:].any()


def test_a_class_that_is_not_allowed_seeds_no_refined_map(refining):
    """The strongest class of a cell must not keep it from the classes that may be there."""
    stage = cam_stage(refining, scales=(1.0,), flips=False)
    network = Checkpoint(refining, "classifier").classifier()
    tile = tile_of((False, True, True, True))
    image = torch.from_numpy(BANDS.normalise(tile.image, tile.valid))[None]
    allowed = torch.tensor([False, True, True])[None, :, None, None].expand(1, 3, 8, 8)
    with torch.inference_mode():
        refined = network.refined(image, allowed)[1][0].numpy()
    (cam,) = stage([tile])
    expected = normalise(refined, allowed[0].numpy())[:, 2:-2, 2:-2]
    assert np.abs(cam / 255 - expected).max() < 0.01


def test_what_was_not_measured_gives_refined_maps_nothing(refining):
    """Its share of the mean is left out, not counted as 0."""
    stage = cam_stage(refining, scales=(1.0,), flips=False)
    network = Checkpoint(refining, "classifier").classifier()
    valid = np.ones((SIDE, SIDE), bool)
    valid[: SIDE // 2] = False
    tile = tile_of((True,) * 4, valid=valid)
    (cam,) = stage([tile])
    measured = torch.from_numpy(valid[4::8, 4::8])[None, None]
    image = torch.from_numpy(BANDS.normalise(tile.image, valid))[None]
    allowed = measured.expand(1, 3, 8, 8)
    with torch.inference_mode():
        refined = network.refined(image, allowed, measured.float())[1][0].numpy()
    expected = normalise(refined, allowed[0].numpy())[:, 2:-2, 2:-2]
    assert np.abs(cam / 255 - expected).max() < 0.01


def test_a_changed_classifier_is_loaded_anew(checkpoint, tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint.read_bytes())
    tile = tile_of((True,) * 4)
    (before,) = cam_stage(path)([tile])
    torch.manual_seed(5)
    config = ClassifierConfig("test_efficientnet", "none", (8,), hidden=4)
    card = Card("classifier", config, Classes.from_names(["a", "b", "other", "c"]), BANDS)
    save_checkpoint(path, Classifier(config, 3, 3), card)
    (after,) = cam_stage(path)([tile])
    assert not np.array_equal(before, after)


# --- CRF -----------------------------------------------------------------------------------------


def crf_stage(background=None, classes=2, **config):
    return CrfStage("0", replace(CrfConfig(), **config), BANDS, classes, background, 2.0)


def test_absent_classes_get_no_posterior():
    cam = np.full((3, 8, 8), 200, np.uint8)
    (crf,) = crf_stage(classes=3)([tile_of((True, False, True), cam=cam)])
    assert (crf.shape, crf.dtype) == ((3, CORE, CORE), np.uint8)
    assert not crf[1].any()
    assert (np.abs(crf.sum(axis=0, dtype=int) - 255) <= 1).all()


def test_one_class_that_is_allowed_is_certain():
    cam = np.zeros((2, 8, 8), np.uint8)
    (crf,) = crf_stage()([tile_of((False, True), cam=cam)])
    assert (crf[0].max(), crf[1].min()) == (0, 255)


def test_cams_snap_to_the_edge_of_the_image():
    cam = np.full((2, 8, 8), 110, np.uint8)
    cam[0, :, :5], cam[1, :, 5:] = 140, 140  # the image's edge is a cell further left
    (crf,) = crf_stage()([tile_of((True, True), two_tone(), cam=cam)])
    assert_array_equal(crf.argmax(axis=0)[0], np.arange(CORE) >= CORE // 2)


@pytest.mark.parametrize("position", [0, 1])
def test_a_single_class_is_set_against_the_background(position):
    cam = np.zeros((1, 8, 8), np.uint8)
    cam[0, :, :4] = 230
    (crf,) = crf_stage(background=position)([tile_of((True, True), two_tone(), cam=cam)])
    assert crf.shape == (2, CORE, CORE)
    building = crf.argmax(axis=0) != position
    assert building[:, : CORE // 2].all()
    assert not building[:, CORE // 2 :].any()


def test_without_steps_the_posterior_is_the_score():
    cam = np.full((1, 8, 8), 102, np.uint8)  # 0.4, so the background has 0.6 ** 2
    (crf,) = crf_stage(background=0, iterations=0)([tile_of((True, True), cam=cam)])
    assert crf[1, 0, 0] == round(255 * 0.4 / (0.4 + 0.36))
    scores = with_background(np.full((1, 1, 1), 0.4, np.float32), 2.0, 0)
    assert scores.ravel().tolist() == pytest.approx([0.36, 0.4])


# --- Masks ---------------------------------------------------------------------------------------


def mask_stage(core=CORE, halo=HALO, checkpoint=None, device="cpu"):
    config = ProposalConfig(proposals="superpixels")
    return MaskStage(config, BANDS, checkpoint, device, core, halo)


def test_superpixels_become_masks_of_the_whole_window():
    stage = mask_stage()
    (cell,) = stage([tile_of(image=two_tone())])
    assert (cell.shape, cell.dtype) == ((stage.writes.channels, 1, 1), np.uint8)
    expected = superpixels(two_tone().transpose(1, 2, 0), scale=60, min_size=64)
    packed = PackedMasks.of(cell[:, 0, 0])
    _, found = packed.cut(slice(0, SIDE), slice(0, SIDE))
    assert_array_equal(found.masks, expected.masks)
    assert_array_equal(found.level, expected.level)
    assert len(found) > 1


def test_sam_sees_several_images_at_once_on_a_gpu(monkeypatch):
    seen = []

    def propose(prompter, images, config):
        seen.append(len(images))
        return [superpixels(image, scale=60, min_size=64) for image in images]

    monkeypatch.setattr(sam, "load_prompter", lambda checkpoint, device: None)
    monkeypatch.setattr(sam, "_sam_masks", propose)
    weights = Path("sam.pt")
    assert mask_stage(checkpoint=weights).batch_size == 1
    assert mask_stage(device="cuda").batch_size == 1
    stage = mask_stage(checkpoint=weights, device="cuda")
    cells = stage([tile_of(image=two_tone())] * stage.batch_size)
    assert seen == [stage.batch_size]
    assert stage.batch_size == len(cells) > 1


# --- Labels --------------------------------------------------------------------------------------


def label_stage(masks=None, background=None, **config):
    """Paints every segment, unless the configuration says which."""
    config = LabelConfig(**{"purity": 0.0, **config})
    return LabelStage("0", masks, masks, config, 0.3, background)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("allowed", "label"),
    [
        ((True, False, False), 0),
        ((False, False, True), 2),
        ((False, False, False), 255),
        ((True, False, True), 2),  # the posterior prefers class 1, which is absent
        ((True, True, True), 1),
    ],
)
def test_absent_classes_are_never_labels(allowed, label, masked):
    stage = label_stage("0" if masked else None)
    objects = columns(0, CORE) if masked else None
    (labels,) = stage([tile_of(allowed, objects=objects, crf=full(20, 150, 85))])
    assert (labels.shape, labels.dtype) == ((CORE, CORE), np.uint8)
    assert set(labels.ravel()) == {label}


def test_classes_of_the_neighbours_do_not_count():
    # No step before has looked at a core of a single class: its layers are empty.
    nothing = np.zeros((3, SIDE, SIDE), np.uint8)
    tile = tile_of((False, False, True), halo_allowed=(True, True, True), crf=nothing)
    (labels,) = label_stage()([tile])
    assert set(labels.ravel()) == {2}


def test_what_lies_around_the_core_does_not_count():
    crf = np.stack([full(0, 140)[1], full(0, 115)[1]])
    crf[:, :HALO] = np.array([0, 255], np.uint8)[:, None, None]
    (labels,) = label_stage("0")([tile_of((True, True), crf=crf, objects=columns(0, CORE))])
    assert set(labels.ravel()) == {0}


def test_a_segment_stays_in_the_cores_that_allow_its_class():
    tile = tile_of((True, True), crf=full(100, 155), objects=columns(0, CORE))
    tile.allowed[1, :, : SIDE // 2] = False
    (labels,) = label_stage("0")([tile])
    assert_array_equal(labels[0], np.arange(CORE) >= CORE // 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("allowed", [(True, False), (True, True)])
def test_what_is_untagged_or_not_measured_has_no_label(allowed, masked):
    shown, tagged = np.ones((2, SIDE, SIDE), bool)
    shown[: HALO + 8], tagged[:, : HALO + 8] = False, False
    objects = columns(0, CORE) if masked else None
    tile = tile_of(allowed, valid=shown, labelled=tagged, crf=full(200, 55), objects=objects)
    (labels,) = label_stage("0" if masked else None)([tile])
    assert (labels[:8] == 255).all()
    assert (labels[:, :8] == 255).all()
    assert (labels[8:, 8:] == 0).all()


def test_unsure_pixels_have_no_label_unless_a_proposal_covers_them():
    for objects, expected in [(None, {255}), (columns(0, CORE // 2), {0, 255})]:
        tile = tile_of((True, True), crf=full(140, 115), objects=objects)
        (labels,) = label_stage(objects and "0", min_confidence=0.6)([tile])
        assert set(labels.ravel()) == expected
    assert_array_equal(labels[0] == 0, np.arange(CORE) < CORE // 2)


@pytest.mark.parametrize(("start", "kept"), [(10, False), (14, True)])
def test_segments_that_coarser_ones_cover_already_are_left_out(start, kept):
    objects = columns(0, 16, CORE)
    objects.masks.masks[1] = (start <= np.arange(CORE)) & (np.arange(CORE) < 24)
    objects.masks.level[1] = 0
    tile = tile_of((True, True), crf=full(140, 115), objects=objects)
    # Pixels without a segment are too unsure for a label.
    (labels,) = label_stage("0", min_confidence=0.6)([tile])
    assert_array_equal(labels[0] != 255, np.arange(CORE) < (24 if kept else 16))


def test_the_background_takes_segments_that_no_class_wants():
    crf = np.zeros((2, SIDE, SIDE), np.uint8)
    crf[1, :, : SIDE // 2], crf[1, :, SIDE // 2 :] = 200, 30
    crf[0] = 255 - crf[1]
    tile = tile_of((True, True), crf=crf, objects=columns(0, CORE // 2, CORE))
    (labels,) = label_stage("0", background=0)([tile])
    assert_array_equal(labels[0], np.arange(CORE) < CORE // 2)


def posterior_of(*halves):
    """Layer ``crf`` of classes that have one value left and another right, shares of 1."""
    left = np.arange(SIDE) < SIDE // 2
    planes = [np.broadcast_to(np.where(left, *values), (SIDE, SIDE)) for values in halves]
    return np.rint(255 * np.stack(planes)).astype(np.uint8)


@pytest.mark.parametrize("background", [None, 0])
def test_a_class_that_is_hardly_there_wins_its_best_segment_by_stretching_alone(background):
    crf = posterior_of((0.95, 0.9), (0.05, 0.1))
    tile = tile_of((True, True), crf=crf, objects=columns(0, CORE // 2, CORE))
    (labels,) = label_stage("0", background, stretch=True)([tile])
    assert_array_equal(labels[0], np.arange(CORE) >= CORE // 2)
    (labels,) = label_stage("0", background, stretch=False)([tile])
    assert not labels.any()


@pytest.mark.parametrize("background", [0, 2])
def test_without_stretching_the_background_has_its_own_share_of_a_segment(background):
    """And not what the strongest of the classes leaves it, 0.6."""
    crf = posterior_of((0.3, 0.3), (0.4, 0.4), (0.3, 0.3))
    tile = tile_of((True,) * 3, crf=crf, objects=columns(0, CORE))
    (stretched,) = label_stage("0", background, stretch=True)([tile])
    assert set(stretched.ravel()) == {background}
    (labels,) = label_stage("0", background, stretch=False)([tile])
    assert set(labels.ravel()) == {1}


def test_without_stretching_the_background_takes_the_segments_that_it_fills():
    crf = posterior_of((0.8, 0.2), (0.2, 0.8))
    objects = columns(0, CORE // 2, CORE)
    for background in (0, 1, None):
        tile = tile_of((True, True), crf=crf, objects=objects)
        (labels,) = label_stage("0", background, stretch=False, background_power=50.0)([tile])
        assert_array_equal(labels[0], np.arange(CORE) >= CORE // 2)


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize(("purity", "painted"), [(0.0, True), (0.69, True), (0.71, False)])
def test_segments_that_no_class_fills_are_left_to_the_crf(purity, painted, stretch):
    """One segment, whose score is the mean of the best class inside it: 0.7."""
    crf = posterior_of((0.9, 0.5), (0.1, 0.5))
    crf[:, :, -HALO - 4 :] = np.array([0, 255])[:, None, None]  # 4 of 32 columns
    tile = tile_of((True, True), crf=crf, objects=columns(0, CORE))
    mean = crf[0, :, HALO:-HALO].mean() / 255
    (labels,) = label_stage("0", purity=purity + mean - 0.7, stretch=stretch)([tile])
    expected = np.zeros(CORE) if painted else np.arange(CORE) >= CORE - 4
    assert_array_equal(labels[0], expected)


def test_pixels_of_segments_left_to_the_crf_can_be_unsure():
    tile = tile_of((True, True), crf=full(140, 115), objects=columns(0, CORE))
    for purity, label in ((0.5, 0), (0.6, 255)):
        (labels,) = label_stage("0", purity=purity, min_confidence=0.6)([tile])
        assert set(labels.ravel()) == {label}


def test_without_stretching_a_segment_has_one_label_by_its_mean():
    """Pixels whose own posterior differs follow it, and absent classes have no say."""
    crf = posterior_of((0.1, 0.3), (0.5, 0.5), (0.4, 0.2))
    tile = tile_of((True, False, True), crf=crf, objects=columns(0, CORE))
    (labels,) = label_stage("0", stretch=False)([tile])
    assert set(labels.ravel()) == {2}


# --- run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brightest:
    """The brightest pixel near, and a stamp that tells which tiles were computed together."""

    radius: int
    batch_size: int = 1
    pool: str = "none"
    label: str = "brightest"
    note: Path | None = None

    @property
    def reads(self) -> Mapping[str, str]:
        return {}

    @property
    def writes(self) -> LayerSpec:
        return LayerSpec("brightest", "uint8", fill=255)

    def __call__(self, tiles):
        if self.note is not None:
            stamp = ",".join(f"{t.tile.row}/{t.tile.col}" for t in tiles)
            name = hashlib.sha256(stamp.encode()).hexdigest()[:8]
            (self.note / name).write_text(stamp)
        return [self._of(tile) for tile in tiles]

    def _of(self, tile) -> NDArray[np.uint8]:
        pixels = np.where(tile.valid, tile.image[0], 0)
        near = maximum_filter(pixels, size=2 * self.radius + 1, mode="constant")
        return near[tile.tile.inner.slices].astype(np.uint8)


def site_of(folder, name="site.zarr", seed=0):
    image = noise((1, 100, 150), seed=seed)
    image[0, :40, :40] = 0
    raster = write_raster(folder / f"{name}.tif", image, NORTH_UP, nodata=0)
    classes = Classes.from_names(["a", "b"])
    site = make_site([raster], folder / name, classes, config=TileConfig(64, 0.25))
    return site, image[0]


def ran(site, stage, tiling, key="0", workers=1):
    tiles = {name: list(tiling) for name in site.scenes}
    run(stage, site, key, tiles, workers=workers, progress=SILENT)
    layer = site.scenes[next(iter(site.scenes))].find_layer(stage.writes.name, key)
    return layer.read(tiling[0, 0].core.__class__(0, 0, *tiling.shape))


def chunks(site, key="0"):
    (folder,) = site.path.rglob(f"brightest-{key}")
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.mark.parametrize(("count", "halo"), [(1, 5), (2, 16), (3, 5)])
def test_tiled_is_whole_for_a_filter_whose_radius_is_the_halo(tmp_path, count, halo):
    site, image = site_of(tmp_path)
    found = ran(site, Brightest(5), site.scenes["site.zarr"].tiling.merged(count, halo))
    assert_array_equal(found, maximum_filter(image, size=11, mode="constant"))


def test_a_pool_of_processes_gives_the_same_bytes(tmp_path):
    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    stage = replace(mask_stage(2 * tiling.core), bands=site.bands)
    for key, workers in [("serial", 1), ("pool", 2)]:
        tiles = {"site.zarr": list(tiling.merged(2, HALO))}
        run(stage, site, key, tiles, workers=workers, progress=SILENT)
    assert stage.pool == "processes"
    serial, pooled = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (
            site.path / "scenes/site.zarr" / f"masks-{key}" for key in ("serial", "pool")
        )
    )
    assert serial == pooled


@dataclass(frozen=True)
class Noted(Brightest):
    """Notes in which thread it works, and how many threads torch takes there."""

    def __call__(self, tiles):
        noted.add((threading.current_thread().name, torch.get_num_threads()))
        return super().__call__(tiles)


noted: set[tuple[str, int]] = set()


def test_a_pool_of_threads_gives_the_same_bytes_with_one_thread_of_torch_each(tmp_path):
    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    ran(site, Brightest(3), tiling, "serial")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ran(site, Noted(3, pool="threads"), tiling, "pool", workers=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threading.current_thread().name not in {name for name, _ in noted}
    assert {count for _, count in noted} == {1}
    serial, pooled = (
        {name: data for name, (data, _) in chunks(site, key).items()} for key in ("serial", "pool")
    )
    assert serial == pooled


@dataclass(frozen=True)
class Failing(Brightest):
    def __call__(self, tiles):
        raise RunError("the disk is full")


@pytest.mark.parametrize("pool", ["none", "threads"])
def test_what_fails_in_a_stage_ends_the_run_and_leaves_no_layer(tmp_path, pool):
    site, _ = site_of(tmp_path)
    with pytest.raises(RunError, match="disk is full"):
        ran(site, Failing(3, pool=pool), site.scenes["site.zarr"].tiling, workers=2)
    assert "brightest" not in site.layers


@pytest.mark.parametrize("lost", [["0/0"], ["2/3"], ["1/1", "1/2"]])
def test_batches_are_a_function_of_the_tiling_alone(tmp_path, lost):
    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    notes = [tmp_path / "first", tmp_path / "second"]
    for note in notes:
        note.mkdir()
    stage = Brightest(3, batch_size=5, note=notes[0])
    ran(site, stage, tiling)
    before = chunks(site)
    for name in lost:
        (site.path / "scenes/site.zarr/brightest-0/brightest/c" / name).unlink()
    ran(site, replace(stage, note=notes[1]), tiling)
    after = chunks(site)
    assert {name: data for name, (data, _) in before.items()} == {
        name: data for name, (data, _) in after.items()
    }
    whole, again = ({path.read_text() for path in note.iterdir()} for note in notes)
    assert again == {batch for batch in whole if set(batch.split(",")) & set(lost)}
    batches = sorted(len(batch.split(",")) for batch in whole)
    assert batches == [2, 5, 5]


def test_what_is_done_is_not_done_again(tmp_path):
    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    ran(site, Brightest(3), tiling)
    before = chunks(site)
    ran(site, Brightest(3), tiling)
    assert chunks(site) == before
    ran(site, Brightest(3), tiling, "1")
    assert chunks(site) == before
    assert site.layers["brightest"] == "1"


def test_what_exists_is_never_written_again(tmp_path):
    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    first = list(tiling)[:3]
    run(Brightest(3), site, "0", {"site.zarr": first}, workers=1, progress=SILENT)
    before = chunks(site)
    # Other tiles are wanted now, so the batches are other ones, and the old tiles in them too.
    ran(site, Brightest(3, batch_size=5), tiling)
    assert len(chunks(site)) == 12
    assert before.items() <= chunks(site).items()


def test_a_scene_with_nothing_to_do_has_an_empty_layer(tmp_path):
    site, _ = site_of(tmp_path)
    run(Brightest(3), site, "0", {"site.zarr": []}, workers=1, progress=SILENT)
    layer = site.scenes["site.zarr"].find_layer("brightest", "0")
    assert (layer.read(Window(0, 0, 100, 150)) == 255).all()


def test_labels_see_the_objects_of_windows_of_another_size(tmp_path):
    site, _ = site_of(tmp_path)
    scene = site.scenes["site.zarr"]
    core = scene.tiling.core
    stage = replace(mask_stage(2 * core), bands=site.bands)
    windows = list(scene.tiling.merged(2, HALO))
    run(stage, site, "m", {scene.name: windows}, workers=1, progress=SILENT)
    number_objects(site, "m", "o", {scene.name: windows}, join=0.5, progress=SILENT)
    whole = SceneObjects(scene, "m", "o").read(scene.grid.window)
    assert whole.masks.masks.sum(axis=0).min() == 1  # superpixels leave no pixel out
    crf = scene.layer(LayerSpec("crf", "uint8", 2), "c")
    for tile in scene.tiling.merged(3, 8):
        crf.write(tile.core, np.zeros((2, tile.core.height, tile.core.width), np.uint8))
        reads = {"crf": "c", "masks": "m", "objects": "o"}
        found = read_tile(site, scene, tile, reads)
        assert set(found.layers) == {"crf"}
        expected = whole.masks.masks[(slice(None), *tile.core.slices)]
        there = expected.any(axis=(1, 2))
        assert_array_equal(found.objects.number, whole.number[there])
        assert_array_equal(found.objects.masks.masks, expected[there])


def test_a_site_made_anew_is_read_anew(tmp_path):
    site, _ = site_of(tmp_path)
    ran(site, Brightest(3), site.scenes["site.zarr"].tiling)
    for path in (tmp_path / "site.zarr", tmp_path / "site_tags.gpkg"):
        path.rename(path.with_name(f"old_{path.name}"))
    other, image = site_of(tmp_path, seed=9)
    found = ran(other, Brightest(3), other.scenes["site.zarr"].tiling)
    assert_array_equal(found, maximum_filter(image, size=7, mode="constant"))


def test_progress_counts_tiles_and_knows_what_is_done(tmp_path):
    class Counter(Listener):
        def step(self, label, total, unit, done=0):
            self.steps = (label, total, unit, done)
            return super().step(label, total, unit, done)

    site, _ = site_of(tmp_path)
    tiling = site.scenes["site.zarr"].tiling
    ran(site, Brightest(3), tiling)
    (site.path / "scenes/site.zarr/brightest-0/brightest/c/0/1").unlink()
    counter = Counter()
    run(Brightest(3), site, "0", {"site.zarr": [*tiling]}, workers=1, progress=counter)
    assert counter.steps == ("brightest", 12, "tiles", 11)


def test_a_tile_knows_the_tags_around_it(tmp_path):
    site, _ = site_of(tmp_path)
    scene = site.scenes["site.zarr"]
    free = read_tile(site, scene, scene.tiling[1, 1], {})
    assert free.allowed.all()
    assert not free.labelled.any()
    tags = np.zeros((3, 4, 2), np.int8)
    tags[1, 1], tags[1, 2], tags[0, 1] = [1, 0], [0, 1], [-1, -1]
    scene.set_tags(tags, np.zeros((3, 4), bool))
    tile = read_tile(site, scene, scene.tiling[1, 1], {})
    inner = (slice(None), *tile.tile.inner.slices)
    assert tile.allowed[inner].any(axis=(1, 2)).tolist() == [True, False]
    assert tile.allowed[:, 30, -1].tolist() == [False, True]
    assert tile.allowed[:, 0, 30].tolist() == [True, True]
    assert (tile.labelled[0, 30], tile.labelled[30, 30], tile.labelled[30, -1]) == (0, 1, 1)
    corner = read_tile(site, scene, scene.tiling[2, 3], {})
    assert corner.labelled.all()
    assert not corner.valid[-1].any()


# --- Competitive pooling -------------------------------------------------------------------------


def probability(cam, background=False, power=4.0, weight=None):
    cam = torch.as_tensor(cam, dtype=torch.float32)
    weight = torch.ones(len(cam), 1, *cam.shape[-2:]) if weight is None else weight
    pooled = competitive_pool(cam, weight, 1, background=background, power=power)
    return torch.sigmoid(pooled)[:, 0, 0]


maps = st.integers(0, 999).map(
    lambda seed: np.random.default_rng(seed).normal(0, 3, (1, 3, 4, 4)).astype(np.float32)
)


@given(cam=maps, background=st.booleans(), power=st.sampled_from([1.0, 4.0, 9.0]))
def test_presence_lies_between_the_mean_and_the_maximum(cam, background, power):
    shares = torch.as_tensor(cam)
    if background:
        shares = torch.cat([shares, torch.zeros(1, 1, 4, 4)], 1)
    shares = shares.softmax(1)[:, :3].flatten(2)
    found = probability(cam, background, power)
    assert (found >= shares.mean(2) - 1e-4).all()
    assert (found <= shares.amax(2) + 1e-4).all()


@given(cam=maps, seed=st.integers(0, 99), background=st.booleans())
def test_where_a_class_lies_in_a_core_does_not_matter(cam, seed, background):
    order = np.random.default_rng(seed).permutation(16)
    shuffled = cam.reshape(1, 3, 16)[..., order].reshape(cam.shape)
    torch.testing.assert_close(probability(cam, background), probability(shuffled, background))


@given(cam=maps, more=st.floats(0.1, 3), background=st.booleans())
def test_more_of_a_class_is_more_of_it_and_less_of_the_others(cam, more, background):
    grown = cam.copy()
    grown[0, 1] += more
    before, after = probability(cam, background)[0], probability(grown, background)[0]
    assert after[1] >= before[1]
    assert after[0] <= before[0] + 1e-6
    assert after[2] <= before[2] + 1e-6


@given(cam=maps)
@settings(max_examples=20)
def test_a_background_takes_from_all_classes(cam):
    assert (probability(cam, True) <= probability(cam, False) + 1e-6).all()


def test_without_a_background_some_class_must_be_there():
    low = np.full((1, 3, 4, 4), -20.0)
    assert probability(low).tolist() == [pytest.approx([1 / 3] * 3, abs=1e-3)]
    assert probability(low, background=True).max() < 1e-4


def test_cells_that_were_not_measured_have_no_say():
    cam = torch.zeros(1, 2, 2, 2)
    cam[0, 0, 0, 0] = 50
    weight = torch.ones(1, 1, 2, 2)
    weight[0, 0, 0, 0] = 0
    assert probability(cam, weight=weight).tolist() == [pytest.approx([0.5, 0.5], abs=1e-3)]
    assert torch.isfinite(competitive_pool(cam, weight * 0, 1, background=False)).all()


def test_its_slope_is_finite_everywhere():
    for value in (-200.0, 0.0, 200.0):
        cam = torch.full((1, 2, 2, 2), value)
        cam[:, 1] = 0
        cam.requires_grad_()
        competitive_pool(cam, torch.ones(1, 1, 2, 2), 1, background=True).sum().backward()
        assert torch.isfinite(cam.grad).all()
