"""Maps by the verb: what it checks, what it writes, and where it goes on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from helpers import NORTH_UP, UTM, Listener, write_features, write_raster
from numpy.testing import assert_array_equal
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import box
from torch import nn

from rsseg.api import predict
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import TrainConfig
from rsseg.errors import InputError
from rsseg.io.mapfile import CLASSES_TAG
from rsseg.io.style import category_names_xml, raster_qml
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.segmenter import CPU_PIXELS, TTA, Forward, Tiny
from rsseg.progress import SILENT

CLASSES = Classes(("dark", "bright"), (4, 9), ((10, 20, 30), (200, 210, 220)))
SHAPE = (150, 200)


def bands(dtype="uint8", count=3):
    third = (0.0,) * 3
    levels = (100.0,) * count, (50.0,) * count
    return Bands(tuple(range(1, count + 1)), dtype, *levels, (0, 0, 0), third, (200.0,) * 3)


def threshold():
    """A network that calls a pixel bright where its first band is above the mean."""
    network = Tiny(3, 2)
    with torch.no_grad():
        for layer in network.layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
        convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
        first, *middle, last = convolutions
        first.weight[0, 0, 1, 1], first.weight[1, 0, 1, 1] = 1, -1
        for layer in middle:
            layer.weight[0, 0, 1, 1] = layer.weight[1, 1, 1, 1] = 1
        last.weight[1, 0, 0, 0] = last.weight[0, 1, 0, 0] = 8
        last.bias.zero_()
    return network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model.pt")


def save(path, gsd=2.0, dtype="uint8"):
    config = TrainConfig(arch="tiny", window=64, overlap=0.25)
    save_checkpoint(path, threshold(), Card("segmenter", config, CLASSES, bands(dtype), gsd))
    return path


def image(seed=0, shape=SHAPE, dtype="uint8"):
    values = np.random.default_rng(seed).integers(1, 255, (3, *shape))
    return np.where(values == 100, 101, values).astype(dtype)


def truth(pixels):
    return np.where(pixels[0] > 100, 9, 4).astype(np.uint8)


def opened(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1), dataset.profile, dataset.tags(), dataset.colormap(1)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- One raster ----------------------------------------------------------------------------------


def test_a_map_is_what_the_network_says_on_the_rasters_grid(tmp_path, model):
    pixels = image()
    pixels[:, :40, :50] = 0
    source = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    (made,) = predict(source, model, tmp_path / "map.tif")
    labels, profile, tags, colours = opened(made.out)
    assert_array_equal(labels[:40, :50], 255)
    assert_array_equal(labels[60:], truth(pixels)[60:])
    assert (profile["transform"], profile["crs"], profile["nodata"]) == (NORTH_UP, UTM, 255)
    assert colours[9] == (200, 210, 220, 255)
    assert json.loads(tags[CLASSES_TAG]) == CLASSES.to_dict()
    assert tags["RSSEG_SOURCE"] == "a.tif"
    assert len(tags["RSSEG_MODEL"]) == 16
    assert tags["RSSEG_MODEL"] == hashlib.sha256(model.read_bytes()).hexdigest()[:16]
    command = "rsseg predict a.tif --model=model.pt --window=64 --overlap=0.25 --batch-size="
    assert tags["RSSEG_COMMAND"].startswith(command)
    assert not any("TIME" in name for name in tags)
    assert str(tmp_path) not in str(tags)


def test_confidence(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    out = tmp_path / "conf.tif"
    predict([source], model, tmp_path / "map.tif", confidence=out)
    with rasterio.open(out) as dataset:
        confidence = dataset.read(1)
    assert confidence.min() >= 127
    assert confidence.max() <= 254


def test_probabilities(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    (made,) = predict(source, model, tmp_path / "map.tif", probabilities=tmp_path / "p.tif")
    assert made.files == [tmp_path / "map.tif", tmp_path / "p.tif"]
    with rasterio.open(tmp_path / "p.tif") as dataset:
        shares, tags = dataset.read(), dataset.tags()
        assert (dataset.descriptions, dataset.nodata) == (("dark", "bright"), 255)
    assert_array_equal(np.where(shares[1] > shares[0], 9, 4), truth(image()))
    assert tags == {key: value for key, value in opened(made.out)[2].items() if key != CLASSES_TAG}
    assert cog_validate(tmp_path / "p.tif", strict=True)[0]
    assert cog_validate(made.out, strict=True)[0]


def test_the_command_names_files_but_no_folders(tmp_path, model):
    source = write_raster(tmp_path / "a b.tif", image())
    corners = NORTH_UP @ (0, 0), NORTH_UP @ (90, 70)
    aoi = write_features(tmp_path / "aoi.gpkg", [box(*corners[0], *corners[1])])
    predict(source, model, tmp_path / "map.tif", aoi=aoi, gsd=2.5, batch_size=3, overlap=0.5)
    assert opened(tmp_path / "map.tif")[2]["RSSEG_COMMAND"] == (
        "rsseg predict 'a b.tif' --model=model.pt --window=64 --overlap=0.5 --batch-size=3 "
        "--blend=ramp --tta=none --precision=float32 --gsd=2.5 --aoi=aoi.gpkg"
    )


def test_a_map_opens_finished_in_a_gis(tmp_path, model):
    predict(write_raster(tmp_path / "a.tif", image()), model, tmp_path / "map.tif")
    assert (tmp_path / "map.qml").read_text(encoding="utf-8") == raster_qml(CLASSES)
    names = (tmp_path / "map.tif.aux.xml").read_text(encoding="utf-8")
    assert names == category_names_xml(CLASSES)


@pytest.mark.parametrize("settings", [{"block_rows": 7}, {"workers": 0}, {"block_rows": 500}])
def test_blocks_and_workers_change_no_byte(tmp_path, model, settings):
    source = write_raster(tmp_path / "a.tif", image())
    predict(source, model, tmp_path / "one.tif")
    predict(source, model, tmp_path / "two.tif", **settings)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


def test_area_of_interest(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    left, top = NORTH_UP @ (20, 30)
    right, bottom = NORTH_UP @ (90, 70)
    aoi = write_features(tmp_path / "aoi.gpkg", [box(left, bottom, right, top)])
    predict(source, model, tmp_path / "map.tif", aoi=aoi)
    labels = opened(tmp_path / "map.tif")[0]
    inside = np.zeros(SHAPE, bool)
    inside[30:70, 20:90] = True
    assert_array_equal(labels != 255, inside)


def test_another_resolution_still_writes_the_rasters_grid(tmp_path, model):
    pixels = np.repeat(np.repeat(image(shape=(75, 100)), 2, axis=1), 2, axis=2)
    source = write_raster(tmp_path / "a.tif", pixels, NORTH_UP @ Affine.scale(0.5))
    listener = Listener()
    # The last rows and columns of resampled pixels mix what lies beside them.
    predict(source, model, tmp_path / "map.tif", gsd=2.0, progress=listener)
    labels, profile, *_ = opened(tmp_path / "map.tif")
    assert labels.shape == SHAPE
    assert profile["transform"] == NORTH_UP @ Affine.scale(0.5)
    assert (labels == truth(pixels)).mean() > 0.9
    assert listener.warnings == []


def test_a_dry_run_writes_nothing(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    before = files(tmp_path)
    (planned,) = predict([source], model, tmp_path / "map.tif", dry_run=True)
    assert files(tmp_path) == before
    assert planned.plan.windows == (3, 4)
    assert planned.seconds > 0


# --- Several rasters -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("a", "b")):
        write_raster(tmp_path / "in" / f"{name}.tif", image(seed))
    return tmp_path / "in"


def test_a_folder_gives_a_map_each(tmp_path, folder, model):
    out, sure = tmp_path / "maps", tmp_path / "sure"
    shares = tmp_path / "shares"
    made = predict(folder, model, out, confidence=sure, probabilities=shares)
    assert [one.out for one in made] == [out / "a.tif", out / "b.tif"]
    assert [one.probabilities for one in made] == [shares / "a.tif", shares / "b.tif"]
    assert sorted(path.name for path in shares.iterdir()) == ["a.tif", "b.tif"]
    assert_array_equal(opened(out / "b.tif")[0], truth(image(1)))
    assert sorted(path.name for path in sure.iterdir()) == ["a.tif", "b.tif"]


def test_an_interrupted_folder_goes_on(tmp_path, folder, model):
    out = tmp_path / "maps"
    predict(folder, model, out)
    undisturbed = files(out)
    (out / "b.tif").unlink()
    kept = (out / "a.tif").stat().st_mtime_ns
    made = predict(folder, model, out)
    assert [one.source.name for one in made] == ["b.tif"]
    assert files(out) == undisturbed
    assert (out / "a.tif").stat().st_mtime_ns == kept


def test_maps_of_other_settings_are_not_taken_for_ours(tmp_path, folder, model):
    out = tmp_path / "maps"
    predict(folder, model, out)
    (out / "b.tif").unlink()
    with pytest.raises(InputError, match=r"a\.tif: exists already"):
        predict(folder, model, out, overlap=0.5)
    assert sorted(name for name in files(out) if name.endswith(".tif")) == ["a.tif"]


def test_a_folder_interrupted_before_its_last_map_goes_on(tmp_path, folder, model, monkeypatch):
    whole, again = tmp_path / "whole", tmp_path / "again"
    for place in (whole, again):
        place.mkdir()
    predict(folder, model, whole / "maps", probabilities=whole / "shares")
    plain, calls = Classes.to_ids, []

    def stops(self, indices):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, indices)

    monkeypatch.setattr(Classes, "to_ids", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(folder, model, again / "maps", probabilities=again / "shares")
    assert (again / "shares" / "b.tif").exists()
    assert not (again / "maps" / "b.tif").exists()
    made = predict(folder, model, again / "maps", probabilities=again / "shares")
    assert [one.source.name for one in made] == ["b.tif"]
    assert files(again) == files(whole)


def test_a_style_of_the_users_in_a_folder_of_maps(tmp_path, folder, model):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "b.qml").write_text("mine")
    with pytest.raises(InputError, match=r"b\.qml: exists already"):
        predict(folder, model, tmp_path / "maps")
    assert sorted(files(tmp_path / "maps")) == ["b.qml"]


def test_a_finished_folder_is_not_made_again(tmp_path, folder, model):
    predict(folder, model, tmp_path / "maps")
    with pytest.raises(InputError, match="exists already"):
        predict(folder, model, tmp_path / "maps")
    assert len(predict(folder, model, tmp_path / "maps", overwrite=True)) == 2


def test_all_rasters_are_checked_before_the_first_is_mapped(tmp_path, folder, model):
    write_raster(folder / "c.tif", image()[:1])
    with pytest.raises(InputError, match=r"c\.tif: asks for band 2, the raster has 1"):
        predict(folder, model, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_rasters_outside_the_area_are_left_out(tmp_path, folder, model):
    far = NORTH_UP @ Affine.translation(1000, 0)
    write_raster(folder / "c.tif", image(), far)
    corner, opposite = far @ (0, 0), far @ (50, 50)
    aoi = write_features(tmp_path / "aoi.gpkg", [box(*corner, *opposite)])
    (made,) = predict(folder, model, tmp_path / "maps", aoi=aoi)
    assert made.source.name == "c.tif"


def test_maps_of_one_name(tmp_path, folder, model):
    other = write_raster(tmp_path / "a.vrt.tif", image()).rename(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"both be mapped to a\.tif"):
        predict([folder, other], model, tmp_path / "maps")


def test_an_interruption_within_a_raster(tmp_path, model, monkeypatch):
    source = write_raster(tmp_path / "a.tif", image())
    predict(source, model, tmp_path / "whole.tif", block_rows=32)
    calls = []
    plain = Forward.logits

    def stops(self, images):
        calls.append(len(images))
        if len(calls) == 5:  # in the last row of windows
            raise KeyboardInterrupt
        return plain(self, images)

    monkeypatch.setattr(Forward, "logits", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(source, model, tmp_path / "map.tif", block_rows=32, batch_size=2)
    assert not (tmp_path / "map.tif").exists()
    first = len(calls)
    monkeypatch.setattr(Forward, "logits", lambda self, i: calls.append(0) or plain(self, i))
    predict(source, model, tmp_path / "map.tif", block_rows=32, batch_size=2)
    assert len(calls) - first < 6, "finished blocks were made again"
    assert_array_equal(opened(tmp_path / "map.tif")[0], opened(tmp_path / "whole.tif")[0])


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 100}, "multiple of 32; use 96"),
        ({"window": 0}, "multiple of 32; use 32"),
        ({"overlap": 0.9}, "overlap 0.9 is out of range"),
        ({"batch_size": 0}, "batch size 0"),
        ({"blend": "smear"}, "blend 'smear' is unknown: choose ramp or gaussian or hann or crop"),
        ({"tta": "turns"}, "tta 'turns' is unknown: choose none or flips"),
        ({"block_rows": 0}, "block rows 0"),
        ({"workers": -1}, "workers -1"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"gsd": -1.0}, "not a positive number"),
    ],
)
def test_options(tmp_path, model, options, message):
    source = write_raster(tmp_path / "a.tif", image())
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        predict(source, model, tmp_path / "map.tif", **options)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.tif", {"overwrite": True}, "is an input of this run"),
        ("map.png", {}, "name that ends in .tif"),
        ("map.tif", {"confidence": "map.tif"}, "different places"),
        ("map.tif", {"probabilities": "map.tif"}, "different places"),
        ("map.tif", {"confidence": "x.tif", "probabilities": "./x.tif"}, "different places"),
        ("map.tif", {"probabilities": "map.png"}, "name that ends in .tif"),
        ("map.tif", {"probabilities": "nowhere/p.tif"}, "does not exist"),
        ("map.tif", {"probabilities": "map.tiff"}, "QGIS would draw map.tiff"),
        ("styled.tif", {}, r"styled\.qml: exists already"),
        ("named.tif", {}, r"named\.tif\.aux\.xml: exists already"),
        ("map.tif", {"confidence": "named.tif"}, r"named\.tif\.aux\.xml: exists already"),
        ("a.tiff", {}, "QGIS would draw a.tif"),
        ("nowhere/map.tif", {}, "does not exist"),
        ("map.tif", {"confidence": "a.tif", "overwrite": True}, "is an input of this run"),
    ],
)
def test_outputs(tmp_path, model, monkeypatch, out, options, message):
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", image())
    for mine in ("styled.qml", "named.tif.aux.xml"):
        (tmp_path / mine).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        predict("a.tif", model, out, **options)
    assert files(tmp_path) == before


def test_a_scratch_folder_of_someone_else(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    (tmp_path / "map.tif.partial").mkdir()
    (tmp_path / "map.tif.partial" / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="is in the way"):
        predict(source, model, tmp_path / "map.tif")


def test_several_rasters_into_a_file(tmp_path, folder, model):
    (tmp_path / "maps").write_text("mine")
    with pytest.raises(InputError, match="several inputs or a folder need a folder"):
        predict(folder, model, tmp_path / "maps", overwrite=True)


def test_nothing_to_map(tmp_path, model):
    with pytest.raises(InputError, match="no raster to map"):
        predict([], model, tmp_path / "map.tif")


def test_integers_of_another_type_are_refused(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image(dtype="uint16"))
    with pytest.raises(InputError, match=r"uint16 pixels, .* uint8; .*-ot Byte"):
        predict(source, model, tmp_path / "map.tif")


def test_floats_where_integers_were_learnt_are_warned_of(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image(dtype="float32"))
    listener = Listener()
    predict(source, model, tmp_path / "map.tif", progress=listener)
    (warning,) = listener.warnings
    assert "has float32 pixels, the checkpoint learnt uint8" in warning
    assert_array_equal(opened(tmp_path / "map.tif")[0], truth(image()))


def test_floats_of_another_precision_are_fine(tmp_path):
    model = save(tmp_path / "model.pt", dtype="float32")
    source = write_raster(tmp_path / "a.tif", image(dtype="float64"))
    listener = Listener()
    predict(source, model, tmp_path / "map.tif", progress=listener)
    assert listener.warnings == []


def test_no_crs_is_a_warning(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image(), crs=None)
    listener = Listener()
    predict(source, model, tmp_path / "map.tif", progress=listener)
    (warning,) = listener.warnings
    assert "has no CRS" in warning


@pytest.mark.parametrize(("gsd", "warned"), [(2.0, 0), (1.4, 0), (1.2, 1), (3.2, 1), (None, 0)])
def test_another_ground_resolution_is_one_warning(tmp_path, gsd, warned):
    model = save(tmp_path / "model.pt", gsd)
    source = write_raster(tmp_path / "a.tif", image())
    listener = Listener()
    predict(source, model, tmp_path / "map.tif", progress=listener)
    assert len(listener.warnings) == warned
    assert all("2 m per pixel" in w and f"--gsd {gsd}" in w for w in listener.warnings)


@pytest.mark.parametrize(("free", "refused"), [(100_000, False), (10_000, True)])
def test_a_small_disk(tmp_path, model, monkeypatch, free, refused):
    source = write_raster(tmp_path / "a.tif", image())
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(sys.modules["rsseg.api.preflight"].shutil, "disk_usage", lambda _: usage)
    listener = Listener()
    if refused:
        with pytest.raises(InputError, match="GB of disk are needed"):
            predict(source, model, tmp_path / "map.tif", progress=listener)
    else:
        predict(source, model, tmp_path / "map.tif", progress=listener)
        assert "if it fills up" in listener.warnings[0]


def test_a_classifier_is_no_segmenter(tmp_path):
    card = Card("classifier", TrainConfig(), CLASSES, bands())
    path = tmp_path / "model.pt"
    save_checkpoint(path, threshold(), card)
    with pytest.raises(InputError):
        predict(write_raster(tmp_path / "a.tif", image()), path, tmp_path / "map.tif")


@pytest.mark.parametrize("settings", [{"blend": "crop"}, {"tta": "flips"}])
def test_blend_and_flips_are_settings_of_their_own(tmp_path, model, settings):
    source = write_raster(tmp_path / "a.tif", image())
    out = tmp_path / "map.tif"
    predict(source, model, out)
    usual = opened(out)
    with pytest.raises(InputError, match="exists already"):
        predict(source, model, out, **settings)
    predict(source, model, out, overwrite=True, **settings)
    labels, _, tags, _ = opened(out)
    assert_array_equal(labels, usual[0])  # a network that sees one pixel, the same mirrored
    (name, value), *_ = settings.items()
    assert f"--{name}={value}" in tags["RSSEG_COMMAND"]
    assert tags["RSSEG_RUN"] != usual[2]["RSSEG_RUN"]


def test_predicting_loads_no_training_code(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    heavy = ("lightning", "torchmetrics", "timm", "segmentation_models_pytorch", "rsseg.learn")
    code = (
        "import sys; from rsseg.api import predict; predict(*sys.argv[1:]);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(source), str(model), str(tmp_path / "map.tif")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- The network as a function -------------------------------------------------------------------


class Spy(nn.Module):
    """Notes the batches it sees, and has memory for so many windows."""

    def __init__(self, room=1000):
        super().__init__()
        self.seen = []
        self.room = room

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise RuntimeError("out of memory")
        return torch.stack([images[:, 0], -images[:, 0]], dim=1)


@pytest.mark.parametrize(("side", "batches"), [(256, [4, 4, 1]), (512, [1] * 9), (64, [9])])
def test_a_cpu_takes_a_bounded_number_of_pixels_at_once(side, batches):
    assert side**2 * max(batches) <= CPU_PIXELS
    spy = Spy()
    images = np.random.default_rng(0).normal(size=(9, 3, side, side)).astype(np.float32)
    scores = Forward(spy, torch.device("cpu"), SILENT)(images)
    assert spy.seen == batches
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    assert_array_equal(scores[:, 0] > 0.5, images[:, 0] > 0)


def test_logits_are_what_a_softmax_makes_the_probabilities_of():
    network = Tiny(3, 4).eval()
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    for tta in TTA:
        forward = Forward(network, torch.device("cpu"), SILENT, tta)
        logits = torch.from_numpy(np.stack(list(forward.logits(images))))
        assert logits.dtype == torch.float32
        np.testing.assert_allclose(logits.softmax(dim=1), forward(images), atol=1e-6)


def test_flips_average_the_four_mirrorings():
    network = Tiny(3, 4).eval()
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    plain = Forward(network, torch.device("cpu"), SILENT)
    both = [(), (2,), (3,), (2, 3)]
    seen = [np.flip(plain(np.flip(images, axes).copy()), axes) for axes in both]
    flips = Forward(network, torch.device("cpu"), SILENT, "flips")
    np.testing.assert_allclose(flips(images), np.mean(seen, axis=0), atol=1e-6)
    mirrored = flips(np.flip(images, 3).copy())
    np.testing.assert_allclose(np.flip(mirrored, 3), flips(images), atol=1e-6)


def test_bfloat16_is_what_the_network_computes_in_and_float32_what_comes_out():
    seen = []

    class Seeing(torch.nn.Conv2d):
        def forward(self, images):
            scores = super().forward(images)
            seen.append(scores.dtype)
            return scores

    torch.manual_seed(0)
    network = Seeing(3, 4, 1)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    plain, reduced = (
        np.stack(list(Forward(network, torch.device("cpu"), SILENT, tta, precision).logits(images)))
        for tta, precision in (("none", "float32"), ("none", "bfloat16"))
    )
    assert seen == [torch.float32, torch.bfloat16]
    assert reduced.dtype == np.float32
    assert 0 < np.abs(reduced - plain).max() < 0.05


def test_bfloat16_where_it_would_be_slower_is_refused(tmp_path, model, monkeypatch):
    source = write_raster(tmp_path / "a.tif", image())
    monkeypatch.setattr("rsseg.api.cutting.fast_dtype", lambda _: torch.float32)
    with pytest.raises(InputError, match="precision bfloat16: cpu has no instructions"):
        predict(source, model, tmp_path / "map.tif", precision="bfloat16", device="cpu")
    with pytest.raises(InputError, match="precision 'double' is unknown"):
        predict(source, model, tmp_path / "map.tif", precision="double", device="cpu")
    assert not (tmp_path / "map.tif").exists()


def test_a_map_of_another_precision_is_not_gone_on_with(tmp_path, model, monkeypatch):
    """Their pixels differ, so their run keys do."""
    source = write_raster(tmp_path / "a.tif", image())
    monkeypatch.setattr("rsseg.api.cutting.fast_dtype", lambda _: torch.bfloat16)
    keys = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / f"{precision}.tif"
        predict(source, model, out, precision=precision, device="cpu")
        with rasterio.open(out) as made:
            keys.append(made.tags()["RSSEG_RUN"])
            assert f"--precision={precision}" in made.tags()["RSSEG_COMMAND"]
    assert keys[0] != keys[1]


def test_memory_that_did_not_suffice_once_is_not_asked_for_again():
    spy, listener = Spy(room=2), Listener()
    forward = Forward(spy, torch.device("cpu"), listener)
    images = np.zeros((8, 1, 32, 32), np.float32)
    forward(images)
    assert spy.seen == [8, 4, 2, 2, 2, 2]
    forward(images)
    assert spy.seen[6:] == [2, 2, 2, 2]
    assert len(listener.warnings) == 2


def test_a_path_may_be_text(tmp_path, model):
    source = write_raster(tmp_path / "a.tif", image())
    (made,) = predict(str(source), str(model), str(tmp_path / "map.tif"))
    assert made.out == Path(tmp_path / "map.tif")
