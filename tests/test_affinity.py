"""Affinity: what alike cells give each other, and that they give nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from rsseg.config import ClassifierConfig
from rsseg.nets.affinity import Affinity
from rsseg.nets.classifier import Classifier
from rsseg.ops.affinity import normalised_embedding, one_hot_max, propagate, strongest_only

SHAPE = (2, 3, 5, 7)


def maps(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeds_of(seed=0):
    return one_hot_max(maps(seed))


def embedding_of(seed=0, channels=4):
    return normalised_embedding(maps(seed + 100, (2, channels, 5, 7)))


# --- Seeds ---------------------------------------------------------------------------------------


def test_seeds_by_hand():
    cam = torch.tensor([[[[4.0, 1.0, -1.0]], [[-3.0, 2.0, -2.0]]]])
    seeds = one_hot_max(cam)
    assert seeds[0, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-4)
    assert seeds[0, 1, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-4)  # 2 is its maximum


@given(seed=st.integers(0, 99))
def test_a_cell_seeds_one_class_that_is_its_strongest(seed):
    cam = maps(seed)
    seeds = one_hot_max(cam)
    assert ((seeds >= 0) & (seeds < 1)).all()
    share = cam.relu() / cam.amax(dim=(-2, -1), keepdim=True)
    best, next_best = share.topk(2, dim=1).values.unbind(dim=1)
    clear = (best - next_best > 1e-3)[:, None]  # of two that reach 1, either may stay
    expected = share * (share == best[:, None])
    torch.testing.assert_close(seeds * clear, expected * clear, atol=1e-4, rtol=0)


def test_a_class_that_is_not_allowed_seeds_nothing_and_hides_nothing():
    cam = maps(1)
    cam[:, 0] += 50
    allowed = torch.ones(SHAPE, dtype=torch.bool)
    allowed[:, 0] = False
    seeds = one_hot_max(cam, allowed)
    assert not seeds[:, 0].any()
    torch.testing.assert_close(seeds[:, 1:], one_hot_max(cam[:, 1:]))


def test_a_class_is_stretched_by_what_it_is_where_it_is_allowed():
    cam = torch.tensor([[[[1.0, 2.0, 9.0]]]])
    allowed = torch.tensor([[[[True, True, False]]]])
    assert one_hot_max(cam, allowed).ravel().tolist() == pytest.approx([0.5, 1, 0], abs=1e-4)


def test_a_faint_cam_seeds_nothing():
    assert not one_hot_max(torch.full(SHAPE, 1e-6)).any()
    assert not one_hot_max(-maps().abs()).any()


# --- Propagation ---------------------------------------------------------------------------------


def test_equal_features_spread_the_mean():
    seeds = seeds_of()
    constant = normalised_embedding(torch.full((2, 4, 5, 7), 3.0))
    out = propagate(seeds, constant)
    torch.testing.assert_close(out, seeds.mean(dim=(-2, -1), keepdim=True).expand_as(out))


def test_features_of_0_spread_nothing():
    embedding = normalised_embedding(torch.zeros(2, 4, 5, 7))
    assert torch.equal(embedding, torch.zeros(2, 4, 5, 7))
    assert not propagate(seeds_of(), embedding).any()


def test_orthogonal_features_leave_the_cam_as_it_is():
    eye = torch.eye(35).reshape(1, 35, 5, 7).expand(2, -1, -1, -1)
    seeds = seeds_of()
    torch.testing.assert_close(propagate(seeds, eye), seeds, atol=1e-4, rtol=0)


def test_opposite_cells_give_each_other_nothing():
    embedding = torch.tensor([[[[1.0, 1.0, -1.0]]]])
    seeds = torch.tensor([[[[1.0, 0.0, 0.4]]]])
    assert propagate(seeds, embedding).ravel().tolist() == pytest.approx([0.5, 0.5, 0.4], abs=1e-4)


@given(seed=st.integers(0, 99))
def test_shuffled_cells_give_shuffled_maps(seed):
    order = torch.randperm(35, generator=torch.Generator().manual_seed(seed))

    def shuffled(values):
        return values.flatten(2)[..., order].reshape(values.shape)

    seeds, embedding = seeds_of(seed), embedding_of(seed)
    torch.testing.assert_close(
        propagate(shuffled(seeds), shuffled(embedding)), shuffled(propagate(seeds, embedding))
    )


@given(seed=st.integers(0, 99))
def test_maps_stay_between_0_and_the_largest_seed(seed):
    seeds = seeds_of(seed)
    out = propagate(seeds, embedding_of(seed))
    assert (out >= 0).all()
    assert (out <= seeds.amax(dim=(-2, -1), keepdim=True) + 1e-6).all()


def test_propagation_is_the_formula():
    seeds, embedding = seeds_of(), embedding_of()
    f = embedding.flatten(2)
    affinity = (f.transpose(1, 2) @ f).relu()
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    expected = (seeds.flatten(2) @ affinity).reshape(SHAPE)
    torch.testing.assert_close(propagate(seeds, embedding), expected)


def test_cells_without_weight_have_no_say():
    seeds, embedding = seeds_of(), embedding_of()
    weight = torch.ones(2, 1, 5, 7)
    weight[..., 4:] = 0
    out = propagate(seeds, embedding, weight)
    alone = propagate(seeds[..., :4], embedding[..., :4])
    torch.testing.assert_close(out[..., :4], alone)
    torch.testing.assert_close(propagate(seeds, embedding, weight * 0.5), out, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pairs", [1, 35 * 2 * 4, 35 * 2 * 34])
def test_blocks_change_neither_maps_nor_gradients(pairs):
    seeds = seeds_of()
    found = []
    for held in (10**6, pairs):
        features = maps(7, (2, 4, 5, 7)).requires_grad_()
        out = propagate(seeds, normalised_embedding(features), pairs=held)
        out.square().sum().backward()
        found += [out.detach(), features.grad]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])
    assert found[1].abs().sum() > 0


def test_embeddings_have_unit_length():
    features = maps(3, (2, 6, 5, 7)) * 40
    torch.testing.assert_close(normalised_embedding(features), normalize(features))
    assert normalised_embedding(features.bfloat16()).dtype == torch.float32


def test_only_the_strongest_class_stays():
    values = torch.tensor([[[[1.0, 0.0, 2.0]], [[3.0, 0.0, 2.0]]]])
    kept = [[[[0.0, 0.0, 2.0]], [[3.0, 0.0, 2.0]]]]
    assert strongest_only(values).tolist() == kept


# --- The module ----------------------------------------------------------------------------------


def test_only_the_three_convolutions_learn_from_refined_maps():
    torch.manual_seed(0)
    module = Affinity(3, 8, 16)
    assert [name for name, _ in module.named_parameters()] == [
        "low.weight",
        "high.weight",
        "mix.weight",
    ]
    inputs = [
        torch.randn(2, count, *size, requires_grad=True)
        for count, size in ((4, (6, 6)), (8, (6, 6)), (16, (3, 3)))
    ]
    cam, low, high = inputs
    refined = module(cam, torch.randn(2, 3, 48, 48), low, high)
    assert refined.shape == cam.shape
    refined.square().sum().backward()
    assert [one.grad for one in inputs] == [None] * 3
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def classifier(**options):
    torch.manual_seed(0)
    config = ClassifierConfig(
        "test_efficientnet", "none", hidden=4, affinity=True, cross=1.0, **options
    )
    return Classifier(config, 3, 2)


@pytest.mark.parametrize(
    ("strides", "own", "cells", "low", "high"),
    [((8, 16), (), 8, 32, 48), ((8,), (), 8, 32, 32), ((8,), (4, 16), 8, 24, 48)],
)
def test_the_levels_of_a_classifier(strides, own, cells, low, high):
    network = classifier(strides=strides, affinity_strides=own)
    assert network.affinity.low.in_channels == low
    assert network.affinity.high.in_channels == high
    assert len(network.heads) == len(strides)
    plain, refined = network.eval().refined(torch.randn(2, 3, 64, 64))
    assert plain.shape == refined.shape == (2, 2, 64 // cells, 64 // cells)


def test_the_plain_map_of_a_classifier_is_the_one_without_affinity():
    network = classifier(strides=(8, 16)).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.refined(images)[0], network(images))
    without = Classifier(ClassifierConfig("test_efficientnet", "none", hidden=4), 3, 2)
    rest = {k: v for k, v in network.state_dict().items() if not k.startswith("affinity.")}
    assert without.affinity is None
    without.load_state_dict(rest, strict=True)
    torch.testing.assert_close(without.eval()(images), network(images))


def test_affinity_costs_no_random_numbers_of_the_rest():
    torch.manual_seed(0)
    plain = Classifier(ClassifierConfig("test_efficientnet", "none", hidden=4), 3, 2).state_dict()
    refining = classifier(strides=(8, 16)).state_dict()
    assert all(torch.equal(tensor, refining[name]) for name, tensor in plain.items())
