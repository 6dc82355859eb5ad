"""Slow depthwise convolutions compute in float32 under autocast, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rsseg.config import TrainConfig
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.supervised import SupervisedObjective
from rsseg.nets.depthwise import widen_depthwise
from rsseg.progress import SILENT

CPU = torch.device("cpu")


class Doubling(nn.Conv2d):
    """Has a way of its own to convolve, as those have that pad like TensorFlow."""

    def forward(self, images):
        return 2 * super().forward(images)


def network():
    """Convolutions by what should become of them."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "plain": nn.Conv2d(8, 8, 5, stride=2, padding=2),
            "narrow": nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "strided": nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
            "wide": nn.Conv2d(8, 8, 5, padding=2, groups=4, bias=False),
            "own": Doubling(8, 8, (1, 7), padding=(0, 3), groups=8),
        }
    )


SLOW = {"strided", "wide", "own"}


def outputs(layers, images, autocast=False):
    """What the layers make of the images, one after the other, by name."""
    found = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for name, layer in layers.items():
            images = found[name] = layer(images)
    return found


def images():
    return torch.randn(2, 8, 24, 24, generator=torch.Generator().manual_seed(1))


def gradients(layers, autocast=False):
    layers.zero_grad()
    shown = images().requires_grad_()
    outputs(layers, shown, autocast)["own"].float().square().sum().backward()
    return {"images": shown.grad, **{name: p.grad for name, p in layers.named_parameters()}}


def test_in_float32_nothing_changes():
    plain = network()
    widened = widen_depthwise(copy.deepcopy(plain))
    for of in (lambda layers: outputs(layers, images()), gradients):
        expected, found = of(plain), of(widened)
        assert set(found) == set(expected)
        for name, values in found.items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=0)


def test_only_slow_depthwise_convolutions_leave_bfloat16():
    found = outputs(widen_depthwise(network()), images(), autocast=True)
    assert {name for name, values in found.items() if values.dtype == torch.float32} == SLOW
    assert {found[name].dtype for name in set(found) - SLOW} == {torch.bfloat16}
    without = outputs(network(), images(), autocast=True)
    assert {values.dtype for values in without.values()} == {torch.bfloat16}


def test_under_autocast_values_and_gradients_are_those_of_float32_but_for_rounding():
    expected, found = gradients(network()), gradients(widen_depthwise(network()), autocast=True)
    for name, values in found.items():
        assert values.dtype == torch.float32
        error = (values - expected[name]).norm() / expected[name].norm()
        assert error < 0.03, name


def test_tensors_keep_their_names_and_values():
    plain = network()
    widened = widen_depthwise(copy.deepcopy(plain))
    before, after = plain.state_dict(), widened.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    nn.init.zeros_(widened["wide"].weight)
    assert not widened["wide"](images()).any()
    widened.load_state_dict(before)
    assert torch.equal(widened["wide"](images()), plain["wide"](images()))


def test_widening_again_and_copying_change_nothing():
    widened = network()
    assert widen_depthwise(widened) is widened
    again = copy.deepcopy(widen_depthwise(widened))
    nn.init.zeros_(widened["own"].weight)  # a copy computes with weights of its own
    found = outputs(again, images(), autocast=True)
    assert {name for name, values in found.items() if values.dtype == torch.float32} == SLOW
    torch.testing.assert_close(outputs(again, images()), outputs(network(), images()))


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, address):
        return {"image": torch.ones(3, 16, 16), "label": torch.ones(16, 16, dtype=torch.int64)}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_fit_on_a_cpu_widens_the_network(tmp_path, monkeypatch, precision):
    monkeypatch.setattr("rsseg.learn.fit.training_precision", lambda device: precision)
    wide = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    trained = nn.Sequential(nn.Conv2d(3, 8, 1), wide, nn.Conv2d(8, 2, 1))
    seen = []
    for layer in trained:
        layer.register_forward_hook(lambda _, __, values: seen.append(values.dtype))
    objective = SupervisedObjective(trained, TrainConfig(arch="tiny"), 2)
    fit(objective, Samples(), None, Schedule(1, 0, 2, 0), tmp_path, CPU, SILENT, "training")
    half = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert seen == [half, torch.float32, half]
