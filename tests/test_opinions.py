"""Opinions: what answers about windows become, with a model that says what tests want."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from helpers import Listener, noise, write_raster
from numpy.testing import assert_array_equal
from safetensors.torch import save_file
from small_sams import roughened, small_sam

from rsseg.api import export, tile
from rsseg.api.opinions import BOXES, ask_opinions
from rsseg.classes import Classes
from rsseg.config import TileConfig, VlmConfig
from rsseg.errors import InputError, RunError
from rsseg.grid import Window
from rsseg.io.site import Site
from rsseg.nets.prompting import Prompter
from rsseg.nets.sam import FirstSam
from rsseg.nets.vision import NoAnswerError
from rsseg.ops.answers import Coordinates, question
from rsseg.run import read_tile
from rsseg.stages import opinions as stage_module
from rsseg.stages.opinions import filled

CLASSES = Classes.parse("building,road,other")
CONFIG = VlmConfig(window=64, halo=16, side=224)


@dataclass
class Scripted:
    """A model that says what it is told to, and remembers what it was asked."""

    says: object = "[]"
    coordinates: Coordinates = "pixels"
    batch_size: int = 1
    workers: int = 0
    label: str = "a script"
    version: int = 1
    asked: list = field(default_factory=list)
    prompts: set = field(default_factory=set)
    ready: int = 0

    @property
    def identity(self):
        return {"script": self.version}

    def prepare(self):
        self.ready += 1

    def frame(self, size):
        return (50, 100)

    def ask(self, images, prompt):
        self.prompts.add(prompt)
        texts = []
        for image in images:
            self.asked.append(image)
            texts.append(self.says(len(self.asked) - 1) if callable(self.says) else self.says)
        if any(isinstance(text, Exception) for text in texts):
            raise next(text for text in texts if isinstance(text, Exception))
        return texts


def named(*boxes: tuple) -> str:
    """An answer of boxes (name, x0, y0, x1, y1) in shares of the window."""
    scale = (100, 50, 100, 50)  # of the frame
    return json.dumps(
        [{"bbox_2d": np.multiply(box, scale).tolist(), "label": name} for name, *box in boxes]
    )


def site_of(folder: Path, height: int = 64, width: int = 64, **options) -> Site:
    """Cores of 32 px; each window is a core with a halo of 16."""
    raster = write_raster(folder / "ortho.tif", noise((3, height, width)), **options)
    return tile([raster], folder / "s.zarr", CLASSES, config=TileConfig(64, 0.5))


@pytest.fixture
def site(tmp_path) -> Site:
    return site_of(tmp_path)


def ask(site, model, **options):
    options = {"sam": BOXES, "config": CONFIG, "device": "cpu"} | options
    return ask_opinions(site.path, vlm=model, **options)


def layer(site, scene="ortho"):
    """The whole layer (K, H, W) that is current."""
    made = Site(site.path).scenes[scene]
    found = made.find_layer("opinions", Site(site.path).layers["opinions"])
    return found.read(made.grid.window)


# --- What is asked -------------------------------------------------------------------------------


def test_the_question_leaves_the_background_out(site):
    model = Scripted()
    ask(site, model)
    assert model.prompts == {question(["building", "road"], "pixels")}


def test_windows_are_shown_with_their_halo_enlarged_in_eight_bits(site):
    model = Scripted()
    ask(site, model)
    assert [image.shape for image in model.asked] == [(224, 224, 3)] * 4
    assert model.asked[0].dtype == np.uint8
    scene = site.scenes["ortho"]
    (first, *_) = scene.tiling
    seen = site.bands.to_rgb(*scene.read(first.read))  # 64 px
    outside = model.asked[0][:48, :48]
    assert outside.max() <= 8  # beyond the raster nothing was measured
    shrunk = model.asked[0][56:].reshape(24, 7, 32, 7, 3).mean(axis=(1, 3))  # 7 px for 2
    halved = seen[16:].reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(shrunk.ravel(), halved.ravel())[0, 1] > 0.97


def test_windows_without_a_pixel_are_not_asked_about(tmp_path):
    mask = np.full((64, 64), 255, np.uint8)
    mask[:32] = 0
    model = Scripted(named(("building", 0, 0, 1, 1)))
    site = site_of(tmp_path, mask=mask)
    report = ask(site, model)
    assert report.windows == len(model.asked) == 2
    values = layer(site)
    assert not values[:, :32].any()
    assert (values[0, 32:] == 254).all()


def test_only_the_tiles_wanted_are_asked_about(site):
    model = Scripted(named(("building", 0, 0, 1, 1)))
    wanted = {"ortho": [site.scenes["ortho"].tiling[1, 0]]}
    assert ask(site, model, tiles=wanted).windows == 1
    values = layer(site)[0]
    assert (values[32:, :32] == 254).all()
    assert values.astype(bool).sum() == 32 * 32
    assert ask(site, model).windows == 4
    assert len(model.asked) == 4  # one of them before


def test_chips_are_windows_of_their_own(tmp_path):
    (tmp_path / "chips").mkdir()
    for name in "abc":
        write_raster(tmp_path / "chips" / f"{name}.tif", noise((3, 48, 48)), None, None)
    site = tile([tmp_path / "chips"], tmp_path / "s.zarr", CLASSES, chips=True)
    model = Scripted(named(("road", 0, 0, 0.5, 1)))
    assert ask(site, model).windows == 3
    for name in site.scenes:
        assert_array_equal(np.unique(layer(site, name)[1, :, :24]), [254])
        assert not layer(site, name)[1, :, 24:].any()


# --- What comes of it ----------------------------------------------------------------------------


def test_a_box_becomes_pixels_of_its_core(site):
    # In windows of 64 px whose core begins at 16: half of the core's columns.
    ask(site, Scripted(named(("building", 0.25, 0.25, 0.5, 0.75))))
    expected = np.zeros((3, 64, 64), np.uint8)
    expected[0, :, :16] = expected[0, :, 32:48] = 254
    assert_array_equal(layer(site), expected)


def test_classes_share_the_confidence_of_an_answer(site):
    ask(site, Scripted(named(("building", 0, 0, 0.5, 1), ("road", 0.25, 0, 1, 1))))
    values = layer(site)
    assert_array_equal(np.unique(values), [0, 127])
    assert_array_equal(values[0, 0, :32] > 0, np.arange(32) < 16)
    assert (values[1] == 127).all()
    assert not values[2].any()


def test_an_empty_answer_is_no_opinion(site):
    report = ask(site, Scripted(lambda count: ["", "[]", "nothing", named()][count]))
    assert not layer(site).any()
    assert (report.answered, report.empty, report.readable) == (4, 1, 2)


def test_what_was_not_measured_has_no_opinion(tmp_path):
    mask = np.full((64, 64), 255, np.uint8)
    mask[10:20, 10:20] = 0
    site = site_of(tmp_path, mask=mask)
    ask(site, Scripted(named(("building", 0, 0, 1, 1))))
    assert_array_equal(layer(site)[0] == 0, mask == 0)


def test_filled_boxes_are_the_pixels_they_touch():
    mask = filled(np.array([1.5, 0, 3.2, 1], np.float32), (3, 5))
    assert_array_equal(np.argwhere(mask), [[0, 1], [0, 2], [0, 3]])


def test_masks_of_boxes_are_sams_best(site, tmp_path, monkeypatch):
    torch.manual_seed(3)
    prompter = Prompter(FirstSam(roughened(small_sam(64), contrast=4)), torch.float32)
    monkeypatch.setattr(stage_module, "load_prompter", lambda checkpoint, device: prompter)
    monkeypatch.setattr(stage_module, "_BOXES_AT_ONCE", 2)
    weights = tmp_path / "sam.safetensors"
    save_file({"x": torch.zeros(1)}, weights)
    boxes = [(0.1, 0.1, 0.6, 0.7), (0.5, 0.4, 0.9, 0.8), (0.2, 0.5, 0.9, 0.9)]
    ask(site, Scripted(named(*(("road", *box) for box in boxes))), sam=str(weights))
    values = layer(site)[1]
    scene = site.scenes["ortho"]
    for one in scene.tiling:
        data = read_tile(site, scene, one, {})
        (seen,) = prompter.look([site.bands.to_rgb(data.image, data.valid)])
        masks, _ = prompter.segment(seen, boxes=np.array(boxes, np.float32) * 64)
        assert_array_equal(values[one.core.slices] > 0, masks.any(axis=0)[one.inner.slices])
    assert 0 < np.mean(values > 0) < 1


# --- Runs ----------------------------------------------------------------------------------------


def test_answers_and_questions_can_be_read(site):
    report = ask(site, Scripted(named(("building", 0, 0, 1, 1))))
    asked = json.loads((report.answers / "question.json").read_text())
    assert asked["model"] == {"script": 1}
    assert "building, road" in asked["question"]
    record = json.loads((report.answers / "ortho" / "1_0.json").read_text())
    assert record["window"] == [32, 0, 32, 32]
    assert record["answer"] == named(("building", 0, 0, 1, 1))


def test_other_models_and_windows_are_asked_anew_and_other_masks_are_not(site, tmp_path):
    first = ask(site, Scripted())
    for changed, again in [
        ({"model": Scripted()}, 0),
        ({"model": Scripted(version=2)}, 4),
        ({"model": Scripted(coordinates="thousandths")}, 4),
        ({"model": Scripted(), "config": VlmConfig(window=64, halo=0, side=224)}, 1),
        ({"model": Scripted(), "config": VlmConfig(window=64, halo=16, side=448)}, 4),
    ]:
        report = ask(site, **changed)
        assert len(changed["model"].asked) == again
        assert (report.layer == first.layer) == (again == 0)
        assert changed["model"].ready == bool(again)


def test_batches_keep_what_is_there(site):
    report = ask(site, Scripted("[]", batch_size=3))
    kept = report.answers / "ortho"
    (kept / "0_1.json").unlink()
    model = Scripted("no", batch_size=3)
    ask(site, model)
    assert len(model.asked) == 3  # a batch is a function of the windows, as in all of rsseg
    texts = {path.name: json.loads(path.read_text())["answer"] for path in kept.iterdir()}
    assert texts == {"0_0.json": "[]", "0_1.json": "no", "1_0.json": "[]", "1_1.json": "[]"}


def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path):
    def says(count):
        return named(("building", 0.1 * count, 0, 1, 1), ("road", 0, 0.2, 0.5, 0.5 + 0.1 * count))

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole, cut = site_of(tmp_path / "one"), site_of(tmp_path / "two")
    ask(whole, Scripted(says))
    with pytest.raises(KeyboardInterrupt):
        ask(cut, Scripted(lambda n: says(n) if n < 2 else _interrupted()))
    model = Scripted(lambda n: says(n + 2))
    ask(cut, model)
    assert len(model.asked) == 2
    assert_array_equal(layer(cut), layer(whole))


def _interrupted():
    raise KeyboardInterrupt


def test_windows_without_an_answer(tmp_path):
    site = site_of(tmp_path, 64, 128)
    good = named(("building", 0, 0, 1, 1))
    bad = NoAnswerError("the model is tired")
    listener = Listener()
    report = ask(site, Scripted(lambda n: bad if n in (1, 3, 4, 6) else good), progress=listener)
    assert (report.windows, report.answered) == (8, 4)
    assert "4 windows" in listener.warnings[0]
    assert "tired" in listener.warnings[0]
    assert np.mean(layer(site)[0] == 254) == 0.5
    model = Scripted(good)
    assert ask(site, model).answered == 8
    assert len(model.asked) == 4
    assert (layer(site)[0] == 254).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_three_in_a_row_without_an_answer_end_a_run(tmp_path, workers):
    site = site_of(tmp_path, 64, 128)
    bad = NoAnswerError("the model is tired")
    model = Scripted(lambda n: "[]" if n == 0 else bad, workers=workers)
    with pytest.raises(RunError, match="tired; all answers so far are kept, run again to go on"):
        ask(site, model)
    assert len(model.asked) < 8
    assert "opinions" not in Site(site.path).layers


def test_an_answer_that_was_edited_is_named(site):
    report = ask(site, Scripted())
    path = report.answers / "ortho" / "0_0.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"0_0\.json.*delete it"):
        ask(site, Scripted())


def test_opinions_are_exported(site, tmp_path):
    ask(site, Scripted(named(("road", 0.25, 0.25, 0.5, 0.5))))
    export(site.path, "opinions", tmp_path / "all.tif")
    export(site.path, "opinions:road", tmp_path / "road.tif")
    with rasterio.open(tmp_path / "all.tif") as file, rasterio.open(tmp_path / "road.tif") as one:
        assert file.descriptions == CLASSES.names
        assert_array_equal(file.read(), layer(site))
        assert_array_equal(one.read(), layer(site)[1:2])
    with pytest.raises(InputError, match="pond"):
        export(site.path, "opinions:pond", tmp_path / "no.tif")


def test_windows_of_several_cores(tmp_path):
    site = site_of(tmp_path, 80, 96)
    model = Scripted(named(("building", 0, 0, 1, 1)))
    report = ask(site, model, config=VlmConfig(window=96, halo=16, side=224))
    assert report.windows == len(model.asked) == 4
    assert (layer(site)[0] == 254).all()
    found = site.scenes["ortho"].find_layer("opinions", report.layer)
    assert found.has(Window(0, 0, 80, 96))
