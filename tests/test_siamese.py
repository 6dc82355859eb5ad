"""Two branches: views that agree cost nothing, views that differ are told so, constants alarm."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch
from helpers import Listener
from torch import nn
from torch.nn.functional import avg_pool2d

from rsseg.config import RECIPES, ClassifierConfig, Settings, checked
from rsseg.errors import InputError
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.tags import TagObjective, _Collapse
from rsseg.nets.classifier import Classifier
from rsseg.ops.cam import multilabel_loss, normalise, pool
from rsseg.ops.consistency import consistency_loss, cross_loss, spread, stretched
from rsseg.ops.views import View
from rsseg.progress import SILENT

CPU = torch.device("cpu")
CELL, COUNT, HALO = 8, 2, 16
SIDE = 96
"""Pixels of a window: two cores of 32 px a side and the halo."""

CONFIG = ClassifierConfig(
    "test_efficientnet", "none", (8,), hidden=0, pooling="mean", consistency=1.0, dropout=0.0
)
REFINING = replace(CONFIG, affinity=True, cross=1.0)


class Local(nn.Module):
    """Maps whose cells see their own pixels alone, plus, if wanted, the row they lie in."""

    affinity = None

    def __init__(self, row_bias=0.0, offset=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Conv2d(3, 2, 1, bias=False)
        self.row_bias = row_bias
        self.offset = offset

    def forward(self, images):
        maps = avg_pool2d(self.backbone(images), CELL) + self.offset
        rows = torch.linspace(0, self.row_bias, maps.shape[-2])
        return maps + rows[:, None]

    def refined(self, images, allowed=None, weight=None):
        self.seen = allowed, weight
        maps = self(images)
        return maps, maps


def batch_of(tags=((1, 1), (1, 1)), seed=0):
    """Two windows, each with the same four cores' tags (of two classes)."""
    generator = torch.Generator().manual_seed(seed)
    tag = torch.as_tensor(tags, dtype=torch.int8)
    tag = tag[..., None].expand(2, 2, 2) if tag.ndim == 2 else tag
    return {
        "image": torch.randn(2, 3, SIDE, SIDE, generator=generator),
        "weight": torch.ones(2, 1, 8, 8),
        "tags": tag.expand(2, 2, 2, 2).contiguous(),
    }


def objective_of(network, config=CONFIG, classes=2):
    return TagObjective(network, config, HALO, COUNT, classes, False)


def consistency_of(network, view, config=CONFIG, batch=None):
    """What the consistency term adds to the tag loss of both branches."""
    batch = batch or batch_of()
    silent = replace(config, consistency=0.0)
    with_term, without = (
        objective_of(network, one)._siamese_loss(batch, view).item() for one in (config, silent)
    )
    return with_term - without


ORIENTED = [View(1), View(2), View(3), View(0, True), View(1, True), View(3, True)]


# --- Equivariance --------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ORIENTED)
def test_a_local_network_sees_the_same_in_every_orientation(view):
    assert consistency_of(Local(), view) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("view", [View(1), View(2), View(3, True)])
def test_a_network_that_knows_the_row_does_not(view):
    assert consistency_of(Local(row_bias=3.0), view) > 0.05


def test_a_mirror_leaves_rows_where_they_are():
    assert consistency_of(Local(row_bias=3.0), View(0, True)) == pytest.approx(0, abs=1e-6)


def test_another_size_costs_no_more_than_its_blur():
    smooth = batch_of()
    ramp = torch.linspace(-1, 1, SIDE)
    smooth["image"] = (ramp[:, None] + 2 * ramp[None]).expand(2, 3, SIDE, SIDE).clone()
    assert 0 < consistency_of(Local(), View(1, True, 0.5), batch=smooth) < 0.03


@pytest.mark.parametrize("config", [CONFIG, REFINING])
@pytest.mark.parametrize("pooling", ["mean", "softmax"])
@pytest.mark.parametrize("view", [View(), View(3, True, 0.5), View(2, False, 1.5)])
def test_any_size_of_view_fits_network_and_cells(config, pooling, view):
    torch.manual_seed(0)
    config = replace(config, strides=(8, 16), hidden=4, pooling=pooling)
    loss = objective_of(Classifier(config, 3, 2), config)._siamese_loss(batch_of(), view)
    loss.backward()
    assert bool(loss.isfinite())


def test_tags_follow_their_cores_through_a_view():
    """The second branch alone learns the tags of the cores as they lie in the first frame."""
    tags = [[[1, 0], [0, 1]], [[0, 0], [1, -1]]]
    network = Local()
    batch = batch_of(tags)
    config = replace(CONFIG, consistency=1e-9)
    single = objective_of(network, replace(CONFIG, consistency=0.0)).loss(batch)
    for view in ORIENTED:
        both = objective_of(network, config)._siamese_loss(batch, view)
        assert both.item() == pytest.approx(single.item(), abs=1e-6)


def test_the_tag_loss_is_the_mean_of_both_branches():
    network, batch = Local(row_bias=4.0), batch_of()
    nn.init.ones_(network.backbone.weight)
    batch["image"] += torch.linspace(-1, 1, SIDE)  # brighter along the rows, then down them
    turned = {**batch, "image": batch["image"].rot90(1, (-2, -1))}
    alone = objective_of(network, replace(CONFIG, consistency=0.0))
    straight, other = (alone.loss(one).item() for one in (batch, turned))
    assert abs(straight - other) > 0.01
    both = objective_of(network, replace(CONFIG, consistency=1e-9))
    found = both._siamese_loss(batch, View(1)).item()
    assert found == pytest.approx((straight + other) / 2, abs=1e-6)


@pytest.mark.parametrize("view", [View(), *ORIENTED])
def test_only_what_the_tags_allow_seeds_in_every_view(view):
    tags = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, -1]]])
    network, batch = Local(), batch_of(tags)
    objective_of(network, REFINING)._siamese_loss(batch, view)
    cores = (tags != 0).permute(2, 0, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    window = nn.functional.pad(cores.float(), [2] * 4).expand(2, 2, 12, 12)
    allowed, weight = network.seen  # the second branch's
    assert torch.equal(allowed, view.apply(window) > 0)
    assert torch.equal(weight, nn.functional.pad(batch["weight"], [2] * 4))


def test_the_halo_and_what_was_not_measured_have_no_say():
    network = Local(row_bias=1.0)
    batch = batch_of()
    batch["weight"][..., :3] = 0
    other = {**batch, "image": batch["image"].clone()}
    other["image"][..., : HALO + 3 * CELL] += 7  # left halo and what is invalid
    other["image"][..., -HALO:] -= 5
    other["image"][..., :HALO, :] *= 3
    losses = [objective_of(network)._siamese_loss(one, View(2, True)) for one in (batch, other)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)


def test_absent_classes_are_not_compared_and_unknown_ones_are():
    absent, unknown, present = (
        consistency_of(Local(row_bias=3.0), View(2), batch=batch_of([[[tag, 1]] * 2] * 2))
        for tag in (0, -1, 1)
    )
    assert unknown == pytest.approx(present)
    assert absent < present


def test_one_branch_draws_no_view_and_gives_what_it_gave(monkeypatch):
    monkeypatch.setattr(View, "draw", None)
    config = replace(CONFIG, consistency=0.0)
    network, batch = Local(), batch_of()
    state = torch.get_rng_state()
    loss = objective_of(network, config).loss(batch)
    assert torch.equal(torch.get_rng_state(), state)
    cam = network(batch["image"])[..., 2:-2, 2:-2]
    expected = multilabel_loss(pool(cam, batch["weight"], COUNT), batch["tags"])
    assert loss.item() == expected.item()


def test_two_branches_draw_their_view_from_the_epochs_chance():
    network = Local(row_bias=2.0)
    losses = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        losses.append(objective_of(network).loss(batch_of()).item())
    assert losses[0] == losses[1]
    assert len(set(losses)) > 2


# --- Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, consistency=0.0)])
def test_the_tag_loss_of_zero_logits_is_ln_2(config):
    network = Local()
    nn.init.zeros_(network.backbone.weight)
    assert objective_of(network, config).loss(batch_of()).item() == pytest.approx(math.log(2))


def test_pooling_then_classifying_is_classifying_then_pooling():
    torch.manual_seed(0)
    linear = nn.Conv2d(6, 3, 1, bias=False)
    features, weight = torch.randn(2, 6, 8, 8), torch.ones(2, 1, 8, 8)
    pooled = pool(features, weight, 2)
    torch.testing.assert_close(
        pool(linear(features), weight, 2), nn.functional.linear(pooled, linear.weight[..., 0, 0])
    )


def test_stretching_is_the_one_of_the_maps_that_are_read():
    cam = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    allowed[0, 1] = False
    cam[1, 2] = -1  # present, but seen nowhere
    expected = [normalise(c.numpy(), a.numpy()) for c, a in zip(cam, allowed, strict=True)]
    for maps, wanted in zip(stretched(cam, allowed), expected, strict=True):
        torch.testing.assert_close(maps, torch.from_numpy(wanted))
    cam.requires_grad_()
    stretched(cam, allowed).sum().backward()
    assert bool(cam.grad.isfinite().all())


def test_consistency_by_hand():
    first, second = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 0.0]]]])
    ones = torch.ones(1, 1, 1, 2)
    assert consistency_loss(first, second, ones).item() == pytest.approx(0.75)
    half = torch.tensor([[[[1.0, 0.0]]]])
    assert consistency_loss(first, second, half).item() == pytest.approx(0.5)
    assert consistency_loss(first, second, 0 * ones).item() == 0


def test_the_cross_term_is_the_mean_of_the_hardest_fifth():
    plain = torch.arange(10.0).reshape(1, 1, 2, 5) / 10
    refined = torch.zeros(1, 1, 2, 5)
    weight = torch.ones(1, 1, 2, 5)
    assert cross_loss(plain, refined, weight).item() == pytest.approx((0.9 + 0.8) / 2)
    weight[..., 1, 4] = 0
    assert cross_loss(plain, refined, weight).item() == pytest.approx((0.8 + 0.7) / 2)


def test_only_the_maximal_class_of_the_other_view_is_a_target():
    plain = torch.tensor([0.9, 0.8])[None, :, None, None]
    refined = torch.tensor([0.9, 0.0])[None, :, None, None]
    assert cross_loss(plain, refined, torch.ones(1, 1, 1, 1)).item() == 0


def test_targets_of_the_cross_term_carry_no_gradient():
    plain, refined = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    cross_loss(plain, refined, torch.ones(2, 1, 4, 4)).backward()
    assert plain.grad is None
    assert refined.grad.abs().sum() > 0


def test_each_refined_map_is_held_against_the_other_views_plain_one():
    network, batch, view = Local(row_bias=3.0), batch_of(), View(2)
    turned = view.undo(network(view.apply(batch["image"])), (12, 12))
    here, there = (
        stretched(maps[..., 2:-2, 2:-2], torch.ones(2, 2, 8, 8, dtype=torch.bool))
        for maps in (network(batch["image"]), turned)
    )
    weight = batch["weight"]
    crossed = cross_loss(there, here, weight) + cross_loss(here, there, weight)
    own = cross_loss(here, here, weight) + cross_loss(there, there, weight)
    assert abs(crossed.item() - own.item()) > 0.01
    with_term, without = (
        objective_of(network, replace(REFINING, cross=one))._siamese_loss(batch, view).item()
        for one in (1.0, 0.0)
    )
    assert with_term - without == pytest.approx(crossed.item(), abs=1e-5)


def gradients(config):
    """Sum of the gradients of each part, without what tags teach."""
    torch.manual_seed(0)
    network = Classifier(config, 3, 2)
    for head in network.heads:
        nn.init.normal_(head[-1].weight)
    untagged = batch_of([[-1, -1]] * 2)
    objective_of(network, config)._siamese_loss(untagged, View(1)).backward()
    return {
        part: sum(
            float(p.grad.abs().sum())
            for name, p in network.named_parameters()
            if name.startswith(part) and p.grad is not None
        )
        for part in ("backbone", "heads", "affinity")
    }


def test_the_cross_term_teaches_the_affinity_alone():
    found = gradients(replace(REFINING, consistency=0.0))
    assert found["affinity"] > 0
    assert found["backbone"] == found["heads"] == 0


def test_consistency_teaches_the_classifier_or_what_refines():
    plain = gradients(CONFIG)
    assert plain["backbone"] > 0
    assert plain["heads"] > 0
    literal = gradients(replace(REFINING, cross=0.0, consistency_on="refined"))
    assert literal["affinity"] > 0
    assert literal["backbone"] == literal["heads"] == 0


# --- The alarm -----------------------------------------------------------------------------------


def test_spread_by_hand():
    maps = torch.tensor([[[[0.0, 1.0, 0.5]], [[0.3, 0.3, 0.3]]]])
    everywhere = torch.ones(1, 2, 1, 3, dtype=torch.bool)
    assert spread(maps, everywhere) == pytest.approx((1 / 6 + 0) / 2)
    gate = everywhere.clone()
    gate[0, 1] = False
    assert spread(maps, gate) == pytest.approx(1 / 6)
    gate[0, 0, 0, 2] = False
    assert spread(maps, gate) == pytest.approx(1 / 4)
    assert spread(maps, ~everywhere) == 0


class Windows(torch.utils.data.Dataset):
    """Noise; class 0 is bright, class 1 dark."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 8

    def __getitem__(self, address):
        epoch, index = address
        if epoch == self.broken:
            raise OSError("pulled the plug")
        sample = batch_of([[[1, 0], [0, 1]]] * 2, seed=100 * index + epoch)
        image = sample["image"][0].clone()
        image[..., : SIDE // 2] += 1
        image[..., SIDE // 2 :] -= 1
        return {"image": image, "weight": sample["weight"][0], "tags": sample["tags"][0]}


def fitted(folder, config, schedule, samples=None, progress=SILENT, change=None):
    torch.manual_seed(0)
    network = Classifier(config, 3, 2)
    if change is not None:
        change(network)
    objective = objective_of(network, config)
    metrics = fit(objective, samples or Windows(), None, schedule, folder, CPU, progress, "fit")
    with metrics.open(newline="") as file:
        return network, list(csv.DictReader(file))


def constant_affinity(network):
    """Make every cell's embedding the same and keep it so."""
    nn.init.zeros_(network.affinity.mix.weight)
    network.affinity.mix.bias = nn.Parameter(torch.ones(192), requires_grad=False)
    network.affinity.requires_grad_(False)


def test_refined_maps_that_stay_constant_raise_an_alarm_once(tmp_path, monkeypatch):
    monkeypatch.setattr("rsseg.learn.tags.PATIENCE", 3)
    listener = Listener()
    fitted(tmp_path, REFINING, Schedule(3, 0, 4, 0), progress=listener, change=constant_affinity)
    (warning,) = listener.warnings
    assert "constant for 4 steps" in warning  # an epoch has two
    assert 'consistency_on = "plain"' in warning
    assert "\n" not in warning


def test_maps_that_vary_raise_none(tmp_path, monkeypatch):
    monkeypatch.setattr("rsseg.learn.tags.PATIENCE", 1)
    listener = Listener()
    fitted(tmp_path, REFINING, Schedule(2, 0, 4, 0), progress=listener)
    assert listener.warnings == []


def test_maps_that_are_constant_for_a_while_raise_none(monkeypatch):
    monkeypatch.setattr("rsseg.learn.tags.PATIENCE", 3)
    watch = _Collapse()
    allowed = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    constant, varied = torch.full((1, 1, 2, 2), 0.3), torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    for maps in (constant, constant, varied, constant, constant):
        watch.look(maps, allowed)
        assert watch.warnings() == []
    watch.look(constant, allowed)
    assert len(watch.warnings()) == 1


# --- Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_two_branches_that_go_on_end_with_the_same_bytes(tmp_path, optimiser):
    config = replace(REFINING, dropout=0.3, hidden=4)
    schedule = Schedule(3, 0, 4, 0, optimiser=optimiser)
    whole, rows = fitted(tmp_path / "whole", config, schedule)
    with pytest.raises(OSError, match="plug"):
        fitted(tmp_path / "parts", config, schedule, Windows(broken=2))
    parts, again = fitted(tmp_path / "parts", config, schedule)
    assert again == rows
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


def test_two_branches_learn(tmp_path):
    config = replace(REFINING, lr=1e-2, backbone_lr_factor=1.0)
    _, rows = fitted(tmp_path, config, Schedule(12, 0, 4, 0))
    losses = [float(row["loss"]) for row in rows]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimisers_momentum_is_what_the_configuration_says(momentum):
    groups = objective_of(Local()).parameter_groups()
    sgd = Schedule(1, 0, 2, 0, optimiser="sgd", momentum=momentum).build_optimiser(groups)
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["momentum"], g["dampening"], g["nesterov"]) for g in sgd.param_groups} == {
        (momentum, 0, False)
    }
    adam = Schedule(1, 0, 2, 0, momentum=momentum).build_optimiser(groups)
    assert isinstance(adam, torch.optim.AdamW)
    assert {g["betas"] for g in adam.param_groups} == {(momentum, 0.999)}


def test_new_layers_learn_faster_than_the_backbone():
    config = replace(REFINING, lr=1e-2, backbone_lr_factor=0.1, weight_decay=5e-4)
    network = Classifier(config, 3, 2)
    groups = objective_of(network, config).parameter_groups()
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in network.named_parameters():
        rate = 1e-3 if name.startswith("backbone.") else 1e-2
        decay = 5e-4 if parameter.ndim > 1 else 0
        assert rates[id(parameter)] == pytest.approx((rate, decay)), name


# --- Configuration -------------------------------------------------------------------------------


def test_the_papers_recipe():
    RECIPES["paper"].check()
    paper = RECIPES["paper"].classifier
    assert (paper.batch_size, paper.momentum, paper.weight_decay) == (16, 0.9, 5e-4)
    assert paper.two_branches
    schedule = Schedule(1, 0, 16, 0, decay=paper.schedule, warm_up=paper.warm_up)
    assert [schedule.rate(s, 100) for s in range(100)] == pytest.approx(
        [(1 - s / 100) ** 0.9 for s in range(100)]
    )
    assert RECIPES["cover"] == Settings()
    assert not ClassifierConfig().two_branches


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cross": 1.0}, "cross needs the refined maps: set affinity = true"),
        ({"consistency": 1.0, "consistency_on": "refined"}, "needs the refined maps"),
        ({"affinity": True}, "nothing teaches it: set cross = 1"),
        ({"affinity": True, "consistency": 1.0}, "nothing teaches it"),
        ({"momentum": 1.0}, "momentum = 1.0: must be from 0 to 0.999"),
        ({"consistency": -1.0}, "consistency = -1"),
        ({"view_scales": (0.5, 3.0)}, "view_scales = 3"),
        ({"warm_up": 2.0}, "warm_up = 2"),
    ],
)
def test_branches_that_make_no_sense(options, said):
    with pytest.raises(InputError) as caught:
        checked(replace(ClassifierConfig(), **options))
    assert said in str(caught.value)
