"""Few labels: which tiles keep theirs, and what a student learns from its teacher of the others."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import NORTH_UP, Listener, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch import nn

from rsseg.api import tile, train
from rsseg.api.lots import cast_lots, draw_tiles, tiles_of
from rsseg.api.ways import Samples
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.cli.shell import share_or_number
from rsseg.config import SemiConfig, TileConfig, TrainConfig, checked
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.labels import TileLabels, of_tiles, open_labels
from rsseg.io.layers import LayerSpec
from rsseg.io.opinions import OPINIONS, SURE, SiteOpinions
from rsseg.io.site import Site
from rsseg.learn.augment import Crop, strengthened
from rsseg.learn.semi import SemiObjective
from rsseg.nets.checkpoint import Checkpoint
from rsseg.nets.segmenter import Tiny
from rsseg.progress import SILENT

CORE = 32
CONFIG = TrainConfig(arch="tiny", window=32, epochs=2, batch_size=4, lr=5e-3)
NAMES = ["dark", "bright", "rare"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A site of 6 x 6 tiles: left dark, right bright, one tile of a rare class; all labelled."""
    folder = tmp_path_factory.mktemp("semi")
    image = noise((3, 6 * CORE, 6 * CORE)) // 4
    image[..., 3 * CORE :] += 120
    labels = np.zeros(image.shape[1:], np.uint8)
    labels[:, 3 * CORE :] = 1
    labels[:CORE, :CORE] = 2
    labels[-CORE:, :CORE] = 2
    write_raster(folder / "a.tif", image)
    write_raster(folder / "labels.tif", labels)
    classes = Classes.from_names(NAMES)
    tile([folder / "a.tif"], folder / "site.zarr", classes, config=TileConfig(CORE, 0))
    return folder


@pytest.fixture(scope="module")
def site(folder):
    return Site(folder / "site.zarr")


@pytest.fixture(scope="module")
def source(folder, site):
    return open_labels(site, [folder / "labels.tif"], None, None)


def write_opinions(folder, values):
    """Store opinions (K, H, W) as the site's current layer."""
    site = Site(folder / "site.zarr")
    scene = site.scenes["a"]
    spec = LayerSpec(OPINIONS, "uint8", len(NAMES))
    scene.layer(spec, "0123").write(scene.grid.window, values)
    site.set_layer(OPINIONS, "0123")


def with_opinions(folder, tmp_path, values):
    """Copy the site and give it opinions."""
    classes = Classes.from_names(NAMES)
    tile([folder / "a.tif"], tmp_path / "site.zarr", classes, config=TileConfig(CORE, 0))
    write_opinions(tmp_path, values)
    return tmp_path / "site.zarr"


def fit(site, out, folder, **options):
    """Train, and return the weights and the metrics."""
    options = {"config": CONFIG, "device": "cpu", **options}
    train(site, out, labels=[folder / "labels.tif"], overwrite=True, **options)
    with out.with_name(f"{out.stem}_metrics.csv").open(newline="") as file:
        return Checkpoint(out, "segmenter").tensors(), list(csv.DictReader(file))


# --- The labelled share -------------------------------------------------------------------------


@given(
    pixels=st.lists(
        st.lists(st.sampled_from([0, 1, 50, 400]), min_size=4, max_size=4).filter(any),
        min_size=4,
        max_size=30,
    ),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_every_class_is_drawn_where_the_number_allows(pixels, data, seed):
    table = np.array(pixels)
    count = data.draw(st.integers(1, len(table)))
    drawn = draw_tiles(table, count, seed)
    assert drawn == draw_tiles(table, count, seed)
    assert len(set(drawn)) == len(drawn) == count
    if count >= 4:
        assert_array_equal(table[drawn].any(axis=0), table.any(axis=0))


def test_all_tiles_have_the_same_chance_where_classes_do_not_matter():
    seen = np.zeros(20)
    for seed in range(400):
        seen[draw_tiles(np.ones((20, 2), np.int64), 5, seed)] += 1
    assert 60 < seen.min() <= seen.max() < 140


def test_a_trace_of_a_class_does_not_show_it():
    pixels = np.array([[1000, 1], [1000, 2], [600, 400], [1000, 3]])
    assert all(2 in draw_tiles(pixels, 2, seed) for seed in range(10))


def drawn(site, source, share, seed):
    lots = cast_lots(site, source, share, seed, SILENT)
    return lots, [(t.row, t.col) for t in tiles_of(site, lots.labelled)["a"]]


def test_the_share_is_of_the_tiles_outside_validation(site, source):
    whole, everything = drawn(site, source, None, 0)
    lots, some = drawn(site, source, 0.2, 3)
    assert len(some) == round(0.2 * len(everything))
    assert set(some) < set(everything)
    assert drawn(site, source, 0.2, 3)[1] == some
    assert drawn(site, source, 0.2, 4)[1] != some
    assert drawn(site, source, len(some), 3)[1] == some
    for name in ("held", "whole", "validation"):  # decided before, and whatever the share
        assert_array_equal(getattr(lots, name)["a"], getattr(whole, name)["a"])
    assert whole.complete
    assert not lots.complete
    shown = {int(source("a", site.scenes["a"].tiling[at].core)[0, 0]) for at in some}
    assert shown == {0, 1, 2}


def test_no_tile_is_in_two_lots(site, source):
    lots, _ = drawn(site, source, 0.2, 0)
    labelled, validation, held, whole = (
        getattr(lots, name)["a"] for name in ("labelled", "validation", "held", "whole")
    )
    assert held.any()
    assert not (labelled & held).any()
    assert not (whole & held).any()
    assert (validation <= held).all()
    assert (whole | held).all()
    assert (labelled <= whole).all()


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("12", 12), ("100%", 1.0), (None, None)]
)
def test_shares_as_typed(text, value):
    found = share_or_number("--labelled", text)
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["few", "5 percent", "%", ""])
def test_no_shares(text):
    with pytest.raises(InputError, match=r"^--labelled .*: give a share like 5% or 0.05"):
        share_or_number("--labelled", text)


# --- What is looked at --------------------------------------------------------------------------


def test_a_tiles_value_is_that_of_its_core():
    table = np.array([[True, False], [False, True]])
    assert_array_equal(of_tiles(table, 2, Window(1, 0, 2, 4)), [[1, 1, 0, 0], [0, 0, 1, 1]])


def test_labels_of_other_tiles_are_hidden():
    ones = lambda _, window: np.ones((window.height, window.width), np.uint8)  # noqa: E731
    labels = TileLabels(ones, {"a": np.array([[True, False]])}, 2)
    assert_array_equal(labels("a", Window(0, 1, 2, 2)), [[1, 255], [1, 255]])
    assert_array_equal(labels("a", Window(0, 2, 2, 2)), np.full((2, 2), 255))


@pytest.mark.parametrize("resize", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.5, 2.0)])
def test_marks_go_with_the_pixels(resize):
    """Two halves, however they are turned and resized, have the same border in image and marks."""
    grid = Grid((200, 200), NORTH_UP)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        crop = Crop.draw(Window(64, 64, 32, 32), 48, grid, rng, resize)
        side = crop.window.height
        assert side == pytest.approx(48 / resize[0], abs=1) or resize[0] != resize[1]
        halves = np.zeros((side, side), np.float32)
        halves[: side // 3] = 1
        image, marks = crop.image(halves[None])[0], crop.marks(halves > 0.5)
        assert image.shape == marks.shape == (48, 48)
        assert ((image > 0.5) == marks).mean() > 0.97
        assert 0 < marks.mean() < 0.5


def bands_of(count, rgb, dtype="uint8"):
    return Bands(
        tuple(range(1, count + 1)), dtype, (110.0,) * count, (50.0,) * count, rgb,
        (10.0,) * 3, (240.0,) * 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "rgb"), [(3, (0, 1, 2)), (1, (0, 0, 0)), (5, (2, 1, 0)), (2, (0, 0, 0))]
)
def test_the_strong_view_of_any_imagery(count, rgb):
    bands = bands_of(count, rgb)
    image = bands.normalise(noise((count, 24, 24)), np.ones((24, 24), bool))
    before = image.copy()
    views = [strengthened(image, bands, np.random.default_rng(seed)) for seed in range(30)]
    assert_array_equal(image, before)
    assert {view.shape for view in views} == {image.shape}
    assert {view.dtype for view in views} == {np.dtype(np.float32)}
    changed = [not np.array_equal(view, image) for view in views]
    assert 0.7 < np.mean(changed) < 1
    again = strengthened(image, bands, np.random.default_rng(5))
    assert_array_equal(again, views[5])
    assert all(np.isfinite(view).all() for view in views)


def test_other_bands_are_not_greyed():
    bands = bands_of(4, (0, 1, 2))
    image = bands.normalise(noise((4, 24, 24)), np.ones((24, 24), bool))
    grey = [
        view
        for seed in range(80)
        if np.allclose(
            (view := strengthened(image, bands, np.random.default_rng(seed)))[0], view[1], atol=1e-5
        )
    ]
    assert 5 < len(grey) < 30
    assert not any(np.allclose(view[0], view[3], atol=0.1) for view in grey)


def pairs_of(site, source, share=0.2, **options):
    lots = cast_lots(site, source, share, 0, SILENT)
    samples = Samples(site, source, lots, 32, 0)
    given = {"resize": (0.5, 2.0), "opinions": None, "trust": None, **options}
    return lots, samples, samples.pairs(**given)


def test_labelled_samples_are_the_same_with_and_without_a_teacher(site, source):
    _, samples, pairs = pairs_of(site, source)
    alone = samples.few((0.5, 2.0))
    assert len(alone) == len(pairs)
    for address in [(0, 0), (1, 5), (3, 2)]:
        for name in ("image", "label"):
            assert torch.equal(pairs[address][name], alone[address][name])


def test_labelled_tiles_are_visited_equally_often_and_never_look_the_same(site, source):
    lots, samples, _ = pairs_of(site, source, 4)
    few = samples.few((0.5, 2.0))
    asked = []
    few._labelled = type(
        "Spy", (), {"__len__": lambda _: 4, "__getitem__": lambda _, a: asked.append(a)}
    )()
    for epoch in range(3):
        for index in range(len(few)):
            few[epoch, index]
    visits = np.bincount([index for _, index in asked])
    assert len(asked) == 3 * lots.whole["a"].sum()
    assert visits.max() - visits.min() <= 1
    assert len(set(asked)) == len(asked)  # every visit has an augmentation of its own


def test_no_pixel_of_a_validation_tile_is_learnt_from(folder, site, tmp_path):
    """Tiles held back are bright pink and labelled with a class of their own: neither is seen."""
    lots = cast_lots(site, open_labels(site, [folder / "labels.tif"], None, None), 0.5, 0, SILENT)
    held = of_tiles(lots.held["a"], CORE, site.scenes["a"].grid.window)
    told = lambda _, window: np.where(held[window.slices], 2, 0).astype(np.uint8)  # noqa: E731
    samples = Samples(site, told, lots, 64, 0)
    place = np.where(held, np.uint8(1), np.uint8(0))
    opinions = lambda _, window: place[None][..., *window.slices]  # noqa: E731
    pairs = samples.pairs((1.0, 1.0), opinions, None)
    seen = 0
    for epoch in range(2):
        for index in range(len(pairs)):
            sample = pairs[epoch, index]
            assert not (sample["label"] == 2).any()
            of_held = sample["opinions"][0] > 0
            seen += int(of_held.sum())
            assert not (sample["valid"] & of_held).any()
            assert (sample["valid"] | of_held).all()
    assert seen > 0
    scored = samples.few_held_back()
    values = [scored[-1, index]["label"].unique().tolist() for index in range(len(scored))]
    assert {value for some in values for value in some} == {2, 255}


def test_opinions_are_warped_like_the_pixels_and_scaled_by_trust(folder, tmp_path):
    values = np.zeros((3, 6 * CORE, 6 * CORE), np.uint8)
    values[0, :, : 3 * CORE] = SURE
    values[1, :, 3 * CORE :] = SURE // 2
    path = with_opinions(folder, tmp_path, values)
    site = Site(path)
    source = open_labels(site, [folder / "labels.tif"], None, None)
    trust = torch.tensor([0.5, 1.0, 1.0])
    _, _, pairs = pairs_of(site, source, opinions=SiteOpinions(site), trust=trust)
    bands = site.bands
    for index in range(len(pairs)):
        sample = pairs[0, index]
        bright = sample["weak"][0] * bands.std[0] + bands.mean[0] > 90
        says = sample["opinions"]
        assert set(says.unique().tolist()) <= {0, 0.5}
        assert ((says[1] > 0) == bright).float().mean() > 0.95
        assert torch.equal(says[0] > 0, says[1] == 0)
        assert not says[2].any()


# --- The objective ------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Says the same of every pixel of an image: its first channel is the logit of class 1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return torch.stack([torch.zeros_like(images[:, 0]), images[:, 0] * self.scale], dim=1)


def logit(confidence):
    return float(np.log(confidence / (1 - confidence)))


def batch_of(confidences, opinions=None, size=8, labelled=False):
    """Unlabelled images of which the teacher is as sure as given that they are class 1."""
    weak = torch.stack([torch.full((3, size, size), logit(c)) for c in confidences])
    label = torch.full((len(weak), size, size), 1 if labelled else 255)
    batch = {
        "image": torch.zeros_like(weak),
        "label": label,
        "weak": weak,
        "strong": weak.clone(),
        "valid": torch.ones(len(weak), size, size, dtype=torch.bool),
    }
    return batch if opinions is None else {**batch, "opinions": opinions}


@pytest.fixture
def unmixed(monkeypatch):
    """No CutMix, so that images keep to themselves."""
    from rsseg.ops.cutmix import CutMix

    monkeypatch.setattr(
        "rsseg.learn.semi.CutMix.draw",
        lambda count, size: CutMix(
            torch.zeros(count, *size, dtype=torch.bool), torch.arange(count)
        ),
    )


def semi_of(**settings):
    return SemiObjective(Fixed(), CONFIG, SemiConfig(**settings), 2)


def gradient(objective, batch):
    """Return the gradient of the loss by each strong image."""
    batch = {**batch, "strong": batch["strong"].clone().requires_grad_()}
    objective.loss(batch).backward()
    return batch["strong"].grad[:, 0]


def test_only_pixels_past_the_gate_have_a_gradient(unmixed):
    batch = batch_of([0.94, 0.96, 0.04, 0.06])
    reached = gradient(semi_of(), batch).abs().amax(dim=(1, 2)) > 0
    assert reached.tolist() == [False, True, True, False]


def test_pixels_that_were_not_measured_have_no_gradient(unmixed):
    batch = batch_of([0.96, 0.96])
    batch["valid"][0, :4] = False
    reached = gradient(semi_of(), batch) != 0
    assert not reached[0, :4].any()
    assert reached[0, 4:].all()
    assert reached[1].all()


def test_the_loss_is_the_mean_of_both_over_all_valid_pixels(unmixed):
    batch = batch_of([0.96, 0.5], labelled=True)
    labelled, unlabelled = np.log(2), -np.log(0.96) / 2  # half of the valid pixels pass
    objective = semi_of()
    assert objective.loss(batch).item() == pytest.approx((labelled + unlabelled) / 2, rel=1e-5)
    parts = {name: float(value) for name, value in objective.parts().items()}
    expected = {"labelled_loss": labelled, "unlabelled_loss": unlabelled, "confident_share": 0.5}
    assert parts == pytest.approx(expected, rel=1e-5)
    batch["valid"][1] = False
    expected = (labelled + 3 * 2 * unlabelled) / 4
    assert semi_of(unlabelled_weight=3.0).loss(batch).item() == pytest.approx(expected, rel=1e-5)
    assert semi_of(unlabelled_weight=0.0).loss(batch).item() == pytest.approx(labelled, rel=1e-5)


def test_an_agreeing_and_a_rectified_pixel_reach_the_loss(unmixed):
    """Two classes: the teacher is never below 0.5, and a hard gate would shut these out."""
    opinions = torch.zeros(3, 2, 8, 8)
    opinions[0, 1] = 0.9  # the teacher says 1 as well
    opinions[1, 0] = 0.9  # the teacher says 1
    batch = batch_of([0.6, 0.6, 0.6], opinions)
    objective = semi_of()
    slopes = gradient(objective, batch).mean(dim=(1, 2))
    assert slopes[0] < 0 < slopes[1]  # towards 1, towards 0
    assert slopes[2] == 0
    parts = objective.parts()
    shares = [float(parts[f"{name}_share"]) for name in ("confident", "agreed", "rectified")]
    assert shares == pytest.approx([0, 1 / 3, 1 / 3])
    literal = gradient(semi_of(literal=True), batch).mean(dim=(1, 2))
    assert literal[0] == 0 < literal[1]


def test_no_opinion_is_like_no_model(unmixed):
    torch.manual_seed(0)
    network, images = Tiny(3, 2), torch.randn(3, 4, 3, 32, 32)
    batch = {
        "image": images[0],
        "label": torch.randint(0, 2, (4, 32, 32)),
        "weak": images[1],
        "strong": images[2],
        "valid": torch.ones(4, 32, 32, dtype=torch.bool),
    }
    nn.init.normal_(network.layers[-1].weight, std=10)  # sure of some pixels
    without = SemiObjective(network, CONFIG, SemiConfig(), 2)
    loss = without.loss(batch)
    empty = without.loss({**batch, "opinions": torch.zeros(4, 2, 32, 32)})
    assert torch.equal(loss, empty)
    assert 0 < without.parts()["confident_share"] < 1
    some = without.loss({**batch, "opinions": torch.ones(4, 2, 32, 32)})
    assert not torch.equal(loss, some)


def test_labels_are_mixed_with_the_images():
    """A sure image of class 1 and one of class 0: whatever is mixed, the student is right."""
    batch = batch_of([0.999, 0.001, 0.999, 0.001], size=16)
    for seed in range(20):
        torch.manual_seed(seed)
        objective = semi_of()
        objective.loss(batch)
        assert float(objective.parts()["unlabelled_loss"]) == pytest.approx(
            -np.log(0.999), rel=1e-3
        )
        objective.loss(batch_of([0.999, 0.6, 0.999, 0.6], size=16))  # 0.6 counts nowhere
        assert float(objective.parts()["unlabelled_loss"]) < 0.002
    # The same, where labels stay while images move, would be wrong in the boxes.
    batch["weak"] = -batch["weak"]
    objective.loss(batch)
    assert float(objective.parts()["unlabelled_loss"]) > 5


def test_the_teacher_follows_the_student():
    torch.manual_seed(0)
    objective = SemiObjective(Tiny(3, 2), CONFIG, SemiConfig(ema=0.5), 2)
    student, teacher = objective.learner, objective.trained
    assert student is not teacher
    weights = list(student.parameters())
    means = list(teacher.parameters())
    with torch.no_grad():
        weights[0].add_(1)
    objective.stepped()
    assert all(torch.equal(a, b) for a, b in zip(means, weights, strict=True))
    before = means[0].clone()
    with torch.no_grad():
        weights[0].add_(1)
    objective.stepped()
    torch.testing.assert_close(means[0], before + 0.5)
    assert not any(mean.requires_grad for mean in means)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(objective.network.eval()(images), teacher(images))  # what is validated
    trained = {id(p) for group in objective.parameter_groups() for p in group["params"]}
    assert trained == {id(weight) for weight in weights}


def test_the_teacher_is_kept_with_the_student_and_never_trains():
    objective = SemiObjective(Tiny(3, 2), CONFIG, SemiConfig(), 2)
    objective.stepped()
    names = set(objective.network.state_dict())
    assert "steps" in names
    assert int(objective.network.state_dict()["steps"]) == 1
    assert {name.partition(".")[0] for name in names} == {"student", "teacher", "steps"}
    objective.network.train()
    assert objective.learner.training
    assert not objective.trained.training
    running = objective.trained.layers[1].running_mean.clone()
    objective.loss(
        {
            "image": torch.randn(2, 3, 32, 32),
            "label": torch.zeros(2, 32, 32, dtype=torch.int64),
            "weak": torch.randn(2, 3, 32, 32),
            "strong": torch.randn(2, 3, 32, 32),
            "valid": torch.ones(2, 32, 32, dtype=torch.bool),
        }
    )
    assert torch.equal(objective.trained.layers[1].running_mean, running)


# --- train --------------------------------------------------------------------------------------


def test_semi_learns_and_says_what_it_learnt_from(folder, tmp_path):
    config, settings = replace(CONFIG, epochs=6, lr=1e-2), SemiConfig(gate=0.6)
    options = {"method": "semi", "labelled": 0.2, "config": config, "semi": settings}
    weights, rows = fit(folder / "site.zarr", tmp_path / "m.pt", folder, **options)
    last = rows[-1]
    assert len(rows) == 6
    assert float(last["val_miou"]) > 0.5
    assert float(rows[0]["confident_share"]) < float(last["confident_share"]) <= 1
    assert float(last["unlabelled_loss"]) > 0
    assert "agreed_share" not in last
    assert set(weights) == set(Tiny(3, 3).state_dict())


def test_supervised_with_few_labels(folder, tmp_path):
    _, rows = fit(folder / "site.zarr", tmp_path / "m.pt", folder, labelled=4)
    _, semi = fit(folder / "site.zarr", tmp_path / "n.pt", folder, labelled=4, method="semi")
    assert "unlabelled_loss" not in rows[0]
    assert [row["step"] for row in rows] == [row["step"] for row in semi]


def test_the_teacher_is_what_is_saved(folder, tmp_path, monkeypatch):
    seen = []
    step = SemiObjective.stepped
    monkeypatch.setattr(SemiObjective, "stepped", lambda self: (seen.append(self), step(self)))
    config = replace(CONFIG, epochs=1)
    options = {"method": "semi", "labelled": 0.2, "config": config}
    saved, _ = fit(folder / "site.zarr", tmp_path / "m.pt", folder, **options)
    last = seen[-1]
    assert len(seen) == 7
    assert all(torch.equal(saved[name], t) for name, t in last.trained.state_dict().items())
    assert not torch.equal(saved["layers.0.weight"], last.learner.state_dict()["layers.0.weight"])


class _UnpluggedError(Exception):
    pass


def test_an_interrupted_training_ends_in_the_same_weights(folder, tmp_path, monkeypatch):
    options = {"method": "semi", "labelled": 0.2, "config": replace(CONFIG, epochs=3)}
    whole, rows = fit(folder / "site.zarr", tmp_path / "whole.pt", folder, **options)
    left = iter(range(10))  # of 7 steps an epoch
    step = SemiObjective.stepped

    def mortal(self):
        if next(left, None) is None:
            raise _UnpluggedError
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(SemiObjective, "stepped", mortal)
        with pytest.raises(_UnpluggedError):
            fit(folder / "site.zarr", tmp_path / "parts.pt", folder, **options)
    assert (tmp_path / "parts.pt.partial" / "last.ckpt").exists()
    parts, again = fit(folder / "site.zarr", tmp_path / "parts.pt", folder, **options)
    assert again == rows
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


def test_opinions_are_heard_as_far_as_they_are_right(folder, tmp_path):
    right = np.zeros((3, 6 * CORE, 6 * CORE), np.uint8)
    right[0, :, : 3 * CORE] = SURE
    right[1, :, 3 * CORE :] = SURE
    right[2, :, 3 * CORE :] = 1  # never right
    path = with_opinions(folder, tmp_path, right)
    listener = Listener()
    listener.note = listener.warnings.append
    options = {"method": "semi", "labelled": 0.9, "purify": "vlm", "progress": listener}
    _, rows = fit(path, tmp_path / "m.pt", folder, **options)
    assert {"agreed_share", "rectified_share"} <= set(rows[0])
    assert float(rows[0]["agreed_share"]) + float(rows[0]["rectified_share"]) > 0
    off = [message for message in listener.warnings if "switched off" in message]
    assert len(off) == 1
    assert off[0].startswith("rare: ")


def test_zero_opinions_train_like_none(folder, tmp_path):
    path = with_opinions(folder, tmp_path, np.zeros((3, 6 * CORE, 6 * CORE), np.uint8))
    options = {"method": "semi", "labelled": 0.2}
    plain, _ = fit(path, tmp_path / "m.pt", folder, **options)
    heard, _ = fit(path, tmp_path / "n.pt", folder, purify="vlm", **options)
    assert all(torch.equal(plain[name], heard[name]) for name in plain)


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labelled", "0"], "labelled = 0: give a share .* above 0"),
        (["--labelled", "0%"], "labelled = 0 .*above 0"),
        (["--labelled", "150%"], "labelled = 1.5 .*up to 100%"),
        (["--labelled", "-3"], "labelled = -3"),
        (["--labelled", "nan"], "labelled = nan"),
        (["--labelled", "some"], "--labelled some: give a share like 5%"),
        (["--labelled", "400"], "labelled = 400: only 2[0-9] tiles outside validation"),
        (["--method", "semi"], "every pixel outside validation has a label"),
        (["--method", "semi", "--labelled", "100%"], "every pixel outside validation has a label"),
        (["--purify", "vlm"], "--purify vlm mends .* give --method semi"),
        (
            ["--method", "semi", "--labelled", "5%", "--purify", "vlm"],
            "site.zarr has no opinions of a vision-language model: name one with --vlm",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(folder, tmp_path, capsys, options, message):
    out = tmp_path / "m.pt"
    words = ["train", folder / "site.zarr", "--labels", folder / "labels.tif", "--out", out]
    assert main([*map(str, words), "--arch", "tiny", "--window", "32", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": (2.0, 0.5)}, "smallest and the largest"),
        ({"resize": (1.0,)}, "smallest and the largest"),
        ({"gate": 1.5}, "semi gate = 1.5: must be from 0 to 1"),
        ({"ema": 1.0}, "semi ema = 1.0"),
        ({"tau_conf": 0.0}, "semi tau_conf"),
        ({"unlabelled_weight": -1.0}, "semi unlabelled_weight"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        checked(SemiConfig(**settings))


def test_the_command_passes_everything_on(folder, tmp_path, capsys):
    (tmp_path / "s.toml").write_text("[semi]\ngate = 0.8\nresize = [1, 1]\n")
    words = ["train", folder / "site.zarr", "--labels", folder / "labels.tif"]
    words += ["--out", tmp_path / "m.pt", "--method", "semi", "--labelled", "20%", "--seed", "3"]
    words += ["--arch", "tiny", "--window", "32", "--epochs", "1", "--config", tmp_path / "s.toml"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m.pt")
    options = {"method": "semi", "labelled": 0.2, "semi": SemiConfig((1.0, 1.0), gate=0.8)}
    config = TrainConfig(arch="tiny", window=32, epochs=1, seed=3)
    same, _ = fit(folder / "site.zarr", tmp_path / "n.pt", folder, config=config, **options)
    found = Checkpoint(tmp_path / "m.pt", "segmenter").tensors()
    assert all(torch.equal(found[name], same[name]) for name in same)
