"""What is learnt from, in which order, how fast, and what happens when it goes wrong."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Listener, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch import nn

from rsseg.api import pseudo_label, tile
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import ClassifierConfig, Settings, TileConfig, TrainConfig
from rsseg.errors import InputError, RunError
from rsseg.learn.augment import colour_jittered
from rsseg.learn.data import Batches, LabelWindows, TagWindows
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.objective import two_speed_groups
from rsseg.learn.supervised import SupervisedObjective
from rsseg.learn.tags import TagObjective
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import halving
from rsseg.nets.segmenter import Tiny, build_segmenter
from rsseg.progress import SILENT

CPU = torch.device("cpu")
CORE, HALO = 32, 8
COUNTS = (4, 5)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site whose pixels are the number of their core, from 1."""
    folder = tmp_path_factory.mktemp("site")
    numbers = np.arange(1, 21, dtype=np.float32).reshape(COUNTS)
    image = np.repeat(np.repeat(numbers, CORE, 0), CORE, 1)[:, : 4 * CORE + 20]  # the last is cut
    raster = write_raster(folder / "a.tif", np.stack([image, image]))
    return tile(
        [raster], folder / "site.zarr", Classes.from_names(["x", "y"]), config=TileConfig(48, 1 / 3)
    )


@pytest.fixture
def plain(monkeypatch):
    """No jitter, so that pixels keep their meaning."""
    monkeypatch.setattr("rsseg.learn.data.jittered", lambda image, random: image)


def numbers_of(site, image):
    """Undo the normalisation: the number of the core that each pixel is of."""
    bands = site.bands
    return torch.round(image[0] * bands.std[0] + bands.mean[0]).numpy().astype(int)


# --- Batches -------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 40),
    size=st.integers(2, 9),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_batches_are_of_one_size_and_visit_every_sample(count, size, seed, epoch):
    batches = Batches(count, size, seed)
    batches.epoch = epoch
    drawn = list(batches)
    assert len(drawn) == len(batches)
    assert {len(batch) for batch in drawn} == {size}
    assert {address for batch in drawn for address in batch} == {(epoch, i) for i in range(count)}
    assert list(batches) == drawn


def test_batches_differ_by_seed_and_epoch_alone():
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            batches = Batches(50, 8, seed)
            batches.epoch = epoch
            orders.add(str([[index for _, index in batch] for batch in batches]))
    assert len(orders) == 9


def test_validation_keeps_order_and_asks_for_no_augmentation():
    assert list(Batches(5, 2, 0, shuffle=False)) == [
        [(-1, 0), (-1, 1)],
        [(-1, 2), (-1, 3)],
        [(-1, 4)],
    ]


# --- Samples -------------------------------------------------------------------------------------


def tag_windows(site, count=2, halo=HALO, cell=8):
    """Windows of cores whose tags are their numbers, so one can tell them apart."""
    tiling = site.scenes["a"].tiling.merged(count, halo)
    numbers = np.arange(1, 21, dtype=np.int8).reshape(COUNTS)
    tags = np.stack([numbers, numbers + 50], axis=-1)
    return TagWindows(site, {"a": list(tiling)}, {"a": tags}, cell, seed=3)


@pytest.mark.parametrize("epoch", [-1, *range(8)])
def test_tags_and_weights_turn_with_the_image(site, plain, epoch):
    windows = tag_windows(site)
    for index in range(len(windows)):
        sample = windows[epoch, index]
        assert sample["image"].shape == (2, 80, 80)
        assert sample["weight"].shape == (1, 8, 8)
        assert sample["tags"].shape == (2, 2, 2)
        numbers = numbers_of(site, sample["image"])
        for row, col in np.ndindex(2, 2):
            number, other = sample["tags"][row, col].tolist()
            weight = sample["weight"][0, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4]
            if number == -1:
                assert (other, float(weight.sum())) == (-1, 0)
                continue
            assert other == number + 50
            top, left = HALO + CORE * row, HALO + CORE * col
            core = numbers[top : top + CORE, left : left + CORE]
            measured = np.kron(weight.numpy() == 1, np.ones((8, 8), bool))
            assert measured.any()
            assert set(core[measured]) == {number}


def test_weights_are_shares_of_measured_pixels(site, plain):
    sample = tag_windows(site)[-1, 2]  # the last column of cores: 20 of 32 pixels are measured
    assert sample["weight"][0, 0].tolist() == [1, 1, 0.5, 0, 0, 0, 0, 0]
    assert sample["tags"][:, 1].tolist() == [[-1, -1], [-1, -1]]


def test_a_sample_is_drawn_from_seed_epoch_and_index_alone(site):
    one, two = tag_windows(site), tag_windows(site)
    for address in [(0, 1), (5, 2), (5, 0)]:
        for name, value in one[address].items():
            assert torch.equal(value, two[address][name])
    assert not torch.equal(one[0, 1]["image"], one[1, 1]["image"])
    assert torch.equal(one[-1, 1]["image"], tag_windows(site)[-1, 1]["image"])


def test_the_background_has_no_tag_to_learn(tmp_path):
    raster = write_raster(tmp_path / "a.tif", noise((3, 64, 64)))
    classes = Classes.from_names(["a", "other", "b"])
    site = tile([raster], tmp_path / "s.zarr", classes, config=TileConfig(48, 1 / 3))
    tags = np.broadcast_to(np.array([1, 9, 0], np.int8), (2, 2, 3))
    windows = TagWindows(site, {"a": [*site.scenes["a"].tiling]}, {"a": tags}, 8, 0)
    assert windows[0, 0]["tags"].tolist() == [[[1, 0]]]


@pytest.mark.parametrize("size", [64, 96, 256])
@pytest.mark.parametrize("epoch", [-1, 0, 1, 2, 3])
def test_labels_turn_with_the_image(site, plain, size, epoch):
    scene = site.scenes["a"]
    truth = scene.read(scene.grid.window)[0][0].astype(np.uint8)

    def labels(name, window):
        assert name == "a"
        assert window.clipped(scene.grid.shape) == window
        return truth[window.slices]

    windows = LabelWindows(site, {"a": list(scene.tiling)}, labels, size, seed=1)
    for index in range(0, len(windows), 3):
        sample = windows[epoch, index]
        assert sample["image"].shape == (2, size, size)
        label = sample["label"].numpy()
        labelled = label != 255
        # A raster smaller than the crop is mirrored in the image; nothing is learnt from that.
        assert labelled.sum() == min(size, 128) * min(size, 148)
        assert_array_equal(numbers_of(site, sample["image"])[labelled], label[labelled])


def test_crops_move_about_their_tile(site, plain):
    scene = site.scenes["a"]
    windows = LabelWindows(
        site,
        {"a": [scene.tiling[1, 2]]},
        lambda _, window: np.full((64, 64), window.col, np.uint8),
        64,
        seed=0,
    )
    columns = {int(windows[epoch, 0]["label"].max()) for epoch in range(40)}
    assert len(columns) > 10
    assert min(columns) >= 80 - 32 - 16
    assert max(columns) <= 80 - 32 + 16
    assert int(windows[-1, 0]["label"].max()) == 80 - 32


def test_nodata_is_not_learnt(tmp_path):
    image = noise((1, 64, 64))
    image[:, :10] = 0
    raster = write_raster(tmp_path / "a.tif", image, nodata=0)
    classes = Classes.from_names(["x", "y"])
    site = tile([raster], tmp_path / "s.zarr", classes, config=TileConfig(48, 1 / 3))
    scene = site.scenes["a"]
    ones = lambda _, window: np.ones((window.height, window.width), np.uint8)  # noqa: E731
    label = LabelWindows(site, {"a": [scene.tiling[0, 0]]}, ones, 64, 0)[-1, 0]["label"]
    assert (label[:10] == 255).all()
    assert (label[10:] == 1).all()


COLOURS = Bands(
    (1, 2, 3),
    "uint8",
    (90.0, 110.0, 70.0),
    (60.0, 50.0, 40.0),
    (0, 1, 2),
    (20.0,) * 3,
    (200.0,) * 3,
)


def pixels_of(normal, bands):
    mean, std = (np.array(v)[:, None, None] for v in (bands.mean, bands.std))
    return normal * std + mean


@pytest.mark.parametrize("seed", range(5))
def test_colour_jitter_keeps_to_the_papers_bounds(seed):
    image = np.broadcast_to(np.linspace(60, 120, 64, dtype=np.float32).reshape(8, 8), (3, 8, 8))
    normal = COLOURS.normalise(image, np.ones((8, 8), bool))
    changed = colour_jittered(normal, COLOURS, np.random.default_rng(seed))
    assert changed.dtype == np.float32
    grey = pixels_of(changed, COLOURS)
    # A grey image has neither saturation nor hue; brightness and contrast are linear.
    np.testing.assert_allclose(grey, np.broadcast_to(grey[:1], grey.shape), atol=0.2)
    slope = np.polyfit(image[0].ravel(), grey[0].ravel(), 1)[0]
    assert 0.7**2 <= slope <= 1.3**2
    assert 0.69 <= grey.mean() / image.mean() <= 1.31
    again = colour_jittered(normal, COLOURS, np.random.default_rng(seed))
    assert_array_equal(again, changed)


def test_colour_jitter_turns_hues_a_little():
    red = np.zeros((3, 4, 4), np.float32)
    red[0] = 200
    hues = set()
    for seed in range(20):
        normal = COLOURS.normalise(red, np.ones((4, 4), bool))
        rng = np.random.default_rng(seed)
        r, g, b = pixels_of(colour_jittered(normal, COLOURS, rng), COLOURS)[:, 0, 0]
        assert r > max(g, b)
        hues.add(int(np.sign(round(float(g - b)))))
    assert hues >= {-1, 1}


def test_colour_jitter_knows_the_order_of_bands():
    reverse = replace(COLOURS, mean=COLOURS.mean[::-1], std=COLOURS.std[::-1], rgb=(2, 1, 0))
    image = noise((3, 8, 8)).astype(np.float32)
    one = COLOURS.normalise(image, np.ones((8, 8), bool))
    straight, reversed_ = (
        colour_jittered(values, bands, np.random.default_rng(4))
        for values, bands in ((one, COLOURS), (one[::-1], reverse))
    )
    assert_array_equal(straight, reversed_[::-1])


def test_windows_are_jittered_as_told(tmp_path):
    raster = write_raster(tmp_path / "a.tif", noise((3, 64, 64)))
    classes = Classes.from_names(["x", "y"])
    site = tile([raster], tmp_path / "s.zarr", classes, config=TileConfig(48, 1 / 3))
    tiling = site.scenes["a"].tiling.merged(2, 0)
    tags = {"a": np.ones((2, 2, 2), np.int8)}
    samples = [
        TagWindows(site, {"a": list(tiling)}, tags, 8, 0, jitter) for jitter in ("bands", "colour")
    ]
    bands, colour = (windows[0, 0]["image"] for windows in samples)
    assert not torch.equal(bands, colour)
    assert torch.equal(samples[0][-1, 0]["image"], samples[1][-1, 0]["image"])
    pixels = pixels_of(colour.numpy(), site.bands)
    assert -1 < pixels.min() <= pixels.max() < 256


@pytest.mark.parametrize("bands", [1, 4])
def test_colour_jitter_of_other_imagery_is_refused(tmp_path, bands):
    raster = write_raster(tmp_path / "a.tif", noise((bands, 64, 64)))
    classes = Classes.from_names(["x", "y"])
    tile([raster], tmp_path / "s.zarr", classes, config=TileConfig(48, 1 / 3))
    settings = Settings(classifier=ClassifierConfig(jitter="colour"))
    with pytest.raises(InputError, match=f"needs three bands.* the site has {bands}; use jitter"):
        pseudo_label(tmp_path / "s.zarr", settings=settings)


# --- Rates ---------------------------------------------------------------------------------------


@given(total=st.integers(1, 5000), share=st.floats(0, 1), warm_up=st.sampled_from([0.0, 0.05, 0.5]))
@pytest.mark.parametrize("decay", ["poly", "cosine"])
def test_the_rate_rises_and_then_falls(total, share, warm_up, decay):
    schedule = Schedule(1, 0, 2, 0, decay=decay, warm_up=warm_up)
    step = min(total - 1, int(share * total))
    rest = {"poly": (1 - step / total) ** 0.9, "cosine": np.cos(np.pi * step / total / 2) ** 2}
    warm = max(1, round(total * warm_up))
    expected = rest[decay] if step + 1 >= warm else (step + 1) / warm * rest[decay]
    assert schedule.rate(step, total) == pytest.approx(expected)
    assert 0 < schedule.rate(step, total) <= 1
    assert schedule.rate(total, total) == 0


def test_the_optimiser_has_what_the_configuration_says():
    config = TrainConfig("unet", "resnet18", "none", lr=0.01, encoder_lr_factor=0.2, weight_decay=3)
    network = build_segmenter(config, 3, 2)
    groups = SupervisedObjective(network, config, 2).parameter_groups()
    rates = {(round(group["lr"], 6), group["weight_decay"]) for group in groups}
    assert rates == {(0.01, 3), (0.01, 0), (0.002, 3), (0.002, 0)}
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in network.parameters())
    optimiser = torch.optim.AdamW(groups)
    assert [group["lr"] for group in optimiser.param_groups] == [group["lr"] for group in groups]


def test_pretrained_parameters_learn_more_slowly():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    slow = list(network[0].parameters())
    groups = two_speed_groups(network, slow, 1.0, 0.1, 0.5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    weight, bias = (found[id(parameter)] for parameter in slow)
    assert (weight, bias) == ((0.1, 0.5), (0.1, 0))
    assert found[id(network[1].weight)] == (1, 0)
    assert found[id(network[2].weight)] == (1, 0.5)


# --- Objectives ----------------------------------------------------------------------------------


def batch_of(tags):
    image = torch.randn(len(tags), 3, 64, 64)
    return {"image": image, "weight": torch.ones(len(tags), 1, 4, 4), "tags": torch.tensor(tags)}


@pytest.mark.parametrize("pooling", ["softmax", "mean"])
def test_unknown_tags_are_masked(pooling):
    config = ClassifierConfig("test_efficientnet", "none", (8,), hidden=0, pooling=pooling)
    objective = TagObjective(Classifier(config, 3, 2).eval(), config, 16, 1, 2, False)
    batch = batch_of([[[[1, -1]]], [[[-1, -1]]]])
    other = {**batch, "image": batch["image"].clone()}
    other["image"][1] += 5  # an untagged window has no say
    assert objective.loss(batch).item() == pytest.approx(objective.loss(other).item())
    silent = objective.loss(batch_of([[[[-1, -1]]]]))
    assert silent.item() == 0
    objective.validate(batch_of([[[[-1, -1]]]]))
    objective.validate(batch_of([[[[1, 0]]], [[[0, 1]]]]))
    assert 0 <= objective.validation_scores()["val_map"] <= 1


def test_labels_of_255_have_no_say():
    objective = SupervisedObjective(Tiny(3, 2).eval(), TrainConfig(arch="tiny"), 2)
    image = torch.randn(1, 3, 64, 64)
    label = torch.full((1, 64, 64), 255)
    assert objective.loss({"image": image, "label": label}).item() == 0
    label[0, 0, 0] = 1
    logits = objective.network(image)[0, :, 0, 0]
    expected = -logits.log_softmax(0)[1].item()
    assert objective.loss({"image": image, "label": label}).item() == pytest.approx(expected)
    objective.validate({"image": image, "label": label})
    assert objective.validation_scores()["val_miou"] in (0, 0.5, 1)


# --- fit -----------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset):
    """Noise, brighter where the label is 1."""

    def __init__(self, count=8):
        self.count = count
        self.seen = []

    def __len__(self):
        return self.count

    def __getitem__(self, address):
        self.seen.append(address)
        random = np.random.default_rng(address[1])
        label = np.zeros((32, 32), np.int64)
        label[:, int(random.integers(8, 24)) :] = 1
        image = random.normal(0, 0.5, (3, 32, 32)) + label
        return {"image": torch.tensor(image, dtype=torch.float32), "label": torch.tensor(label)}


def fitted(folder, schedule, network=None, held_back=None, samples=None, progress=SILENT):
    torch.manual_seed(0)
    network = network or Tiny(3, 2, width=8)
    objective = SupervisedObjective(network, TrainConfig(arch="tiny", lr=0.01), 2)
    metrics = fit(
        objective, samples or Samples(), held_back, schedule, folder, CPU, progress, "training"
    )
    with metrics.open(newline="") as file:
        return network, list(csv.DictReader(file))


def test_a_fit_learns_and_keeps_its_losses(tmp_path):
    _, rows = fitted(tmp_path, Schedule(6, 0, 4, 0), held_back=Samples(3))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10", "12"]
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < 0.7 * losses[0]
    assert float(rows[-1]["val_miou"]) > 0.7


def test_a_fit_that_goes_on_ends_the_same(tmp_path):
    samples = Samples()
    whole, rows = fitted(tmp_path / "whole", Schedule(4, 0, 4, 0), samples=samples)

    class Interrupted(Samples):
        def __getitem__(self, address):
            if address[0] == 2:
                raise OSError("pulled the plug")
            return super().__getitem__(address)

    with pytest.raises(OSError, match="plug"):
        fitted(tmp_path / "parts", Schedule(4, 0, 4, 0), samples=Interrupted())
    rest = Samples()
    parts, again = fitted(tmp_path / "parts", Schedule(4, 0, 4, 0), samples=rest)
    assert rest.seen == samples.seen[16:]
    assert again == rows
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


def test_a_fit_that_was_finished_is_not_done_again(tmp_path):
    first, rows = fitted(tmp_path, Schedule(2, 0, 4, 0))
    samples = Samples()
    second, again = fitted(tmp_path, Schedule(2, 0, 4, 0), samples=samples)
    assert (samples.seen, again) == ([], rows)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("epochs", "min_steps", "steps", "expected"), [(3, 100, 7, 3), (0, 100, 7, 15), (0, 7, 7, 1)]
)
def test_how_long(epochs, min_steps, steps, expected):
    assert Schedule(epochs, min_steps, 2, 0).total_epochs(steps) == expected


def test_a_diverged_loss_ends_the_run(tmp_path):
    network = Tiny(3, 2, width=8)
    nn.init.constant_(network.layers[-1].weight, torch.nan)
    with pytest.raises(RunError, match=r"diverged in epoch 0 .*lower learning rate"):
        fitted(tmp_path, Schedule(1, 0, 4, 0), network)


class Greedy(Tiny):
    """Runs out of memory on batches that are too large, in training alone."""

    most = 2

    def forward(self, images):
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_a_fit_goes_on_with_smaller_batches(tmp_path):
    listener = Listener()
    _, rows = fitted(tmp_path, Schedule(1, 0, 8, 0), Greedy(3, 2, width=8), progress=listener)
    assert [row["step"] for row in rows] == ["4"]
    assert listener.warnings == [
        "out of memory: going on with a batch size of 4",
        "out of memory: going on with a batch size of 2",
    ]


def test_a_batch_of_one_is_never_tried(tmp_path):
    network = Greedy(3, 2, width=8)
    network.most = 1
    with pytest.raises(RunError, match="even with a batch of 2"):
        fitted(tmp_path, Schedule(1, 0, 4, 0), network)


@pytest.mark.parametrize(
    ("fits", "tried"), [(64, [16]), (5, [16, 8, 4]), (1, [16, 8, 4, 2, 1]), (3, [16, 8, 4, 2])]
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_halving(fits, tried, error):
    calls = []

    def run(size):
        calls.append(size)
        if size > fits:
            raise error
        return size * 10

    assert halving(run, 16, SILENT) == tried[-1] * 10
    assert calls == tried


def test_other_errors_are_not_out_of_memory():
    calls = []

    def run(size):
        calls.append(size)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        halving(run, 8, SILENT)
    assert calls == [8]
