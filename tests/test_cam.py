import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import multilabel_soft_margin_loss

from rsseg.ops import cam as ops


def random_cam(seed, shape=(3, 5, 7)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(seed=0, classes=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, classes, 3, 1, 1))


@given(seed=st.integers(0, 99))
def test_normalised_cam_reaches_0_and_1_in_every_present_class(seed):
    present = np.array([True, False, True])
    scaled = ops.normalise(random_cam(seed), present)
    assert scaled.dtype == np.float32
    assert scaled.max(axis=(1, 2)) == pytest.approx([1, 0, 1])
    assert scaled.min() == 0


def test_absent_class_never_wins():
    cam = random_cam(0)
    cam[1] += 100
    scaled = ops.normalise(cam, np.array([True, False, True]))
    somewhere = scaled.max(axis=0) > 0
    assert not (scaled.argmax(axis=0)[somewhere] == 1).any()


def test_normalise_by_hand():
    cam = np.array([[[-3.0, 1.0, 2.0, 4.0]]], np.float32)
    assert ops.normalise(cam, np.array([True])).ravel() == pytest.approx([0, 0.25, 0.5, 1])


def test_normalise_stretches_a_class_by_the_part_where_it_is_present():
    cam = np.array([[[1.0, 2.0, 3.0, 50.0]]], np.float32)
    present = np.array([[[True, True, True, False]]])
    assert ops.normalise(cam, present).ravel() == pytest.approx([0, 0.5, 1, 0])


@pytest.mark.parametrize("value", [-1.0, 0.0, 7.0])
def test_constant_cam_becomes_0(value):
    cam = np.full((2, 3, 3), value, np.float32)
    assert not ops.normalise(cam, np.array([True, True])).any()


def test_normalise_without_any_class_is_0():
    assert not ops.normalise(random_cam(1), np.zeros(3, np.bool_)).any()


@pytest.mark.parametrize("size", [(32, 32), (33, 46)])
@torch.no_grad()
def test_flipping_the_image_flips_the_cam(size):
    net, image = network(), torch.randn(2, 3, *size)
    scales = (0.5, 1.0, 1.5, 2.0)
    cam = ops.multi_scale(net, image, scales, True, (8, 9))
    flipped = ops.multi_scale(net, image.flip(-1), scales, True, (8, 9))
    torch.testing.assert_close(flipped.flip(-1), cam, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_flips_a_lopsided_network_is_seen():
    net, image = network(), torch.randn(1, 3, 32, 32)
    cam = ops.multi_scale(net, image, (1.0,), False, (8, 8))
    flipped = ops.multi_scale(net, image.flip(-1), (1.0,), False, (8, 8))
    assert (flipped.flip(-1) - cam).abs().max() > 1e-3


@torch.no_grad()
def test_scales_are_averaged_and_each_is_positive():
    net, image = network(), torch.randn(1, 3, 32, 32)
    one = ops.multi_scale(net, image, (1.0,), False, (8, 8))
    two = ops.multi_scale(net, image, (2.0,), False, (8, 8))
    both = ops.multi_scale(net, image, (1.0, 2.0), False, (8, 8))
    torch.testing.assert_close(one, net(image).relu())
    torch.testing.assert_close(both, (one + two) / 2)
    assert both.min() >= 0
    assert both.shape == (1, 2, 8, 8)


def test_shrinking_is_antialiased():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    seen = []
    ops.multi_scale(lambda x: seen.append(x) or x, stripes, (0.25,), False, (8, 8))
    assert seen[0].shape == (1, 1, 8, 8)
    assert seen[0].sub(0.5).abs().max() < 0.1


@torch.no_grad()
def test_images_of_a_batch_do_not_mix():
    net, images = network(), torch.randn(3, 3, 32, 32)
    together = ops.multi_scale(net, images, (0.5, 1.0), True, (8, 8))
    alone = ops.multi_scale(net, images[1:2], (0.5, 1.0), True, (8, 8))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("power", "expected"), [(1.0, [0.8, 0.5, 0]), (2.0, [0.64, 0.25, 0])])
def test_background_score_by_hand(power, expected):
    cam = np.array([[[0.2, 0.5, 0.0]], [[0.1, 0.5, 1.0]]], np.float32)
    full = ops.with_background(cam, power, 1)
    assert full.dtype == np.float32
    assert full.shape == (3, 1, 3)
    assert full[1].ravel() == pytest.approx(expected)
    assert np.array_equal(full[[0, 2]], cam)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_background_takes_its_position(position):
    full = ops.with_background(np.zeros((2, 4, 4), np.float32), 2.0, position)
    assert (full.argmax(axis=0) == position).all()


def softmax_of(cam, background):
    """torch's softmax over the classes, of which the background (last, left out) has CAM 0."""
    logits = torch.from_numpy(cam)
    if background:
        logits = torch.cat([logits, torch.zeros_like(logits[:1])])
    return logits.softmax(dim=0)[: len(cam)].numpy()


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1.0, 30.0]), background=st.booleans())
def test_shares_of_classes_that_are_all_there_are_torchs_softmax(seed, scale, background):
    cam = scale * random_cam(seed)
    found = ops.shares(cam, np.ones(3, np.bool_), background=background)
    assert (found.dtype, found.shape) == (np.float32, cam.shape)
    np.testing.assert_allclose(found, softmax_of(cam, background), atol=1e-6)


@given(seed=st.integers(0, 99), background=st.booleans())
def test_an_absent_class_has_no_share_and_takes_none(seed, background):
    cam = random_cam(seed)
    cam[1] += 100
    found = ops.shares(cam, np.array([True, False, True]), background=background)
    assert not found[1].any()
    np.testing.assert_allclose(found[[0, 2]], softmax_of(cam[[0, 2]], background), atol=1e-6)


@given(seed=st.integers(0, 99))
def test_shares_sum_to_1_where_a_class_is_present(seed):
    cam, present = random_cam(seed), np.random.default_rng(seed).random((3, 5, 7)) < 0.4
    found = ops.shares(cam, present, background=False)
    assert not found[~present].any()
    np.testing.assert_allclose(found.sum(axis=0), present.any(axis=0), atol=1e-6)


def test_shares_by_hand_with_tags_of_parts():
    cam = np.log(np.array([[[1.0, 1, 1, 1]], [[3, 3, 3, 3]]], np.float32))
    present = np.array([[[True, True, False, False]], [[True, False, True, False]]])
    found = [ops.shares(cam, present, background=one)[:, 0] for one in (False, True)]
    np.testing.assert_allclose(found[0], [[1 / 4, 1, 0, 0], [3 / 4, 0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(found[1], [[1 / 5, 1 / 2, 0, 0], [3 / 5, 0, 3 / 4, 0]], atol=1e-6)


@given(seed=st.integers(0, 99), shift=st.sampled_from([-500.0, -3.0, 7.0, 500.0]))
def test_shares_know_logits_only_by_their_differences_without_a_background(seed, shift):
    cam, present = random_cam(seed), np.array([True, True, False])
    moved = cam + np.float32(shift)
    found = ops.shares(cam, present, background=False)
    np.testing.assert_allclose(ops.shares(moved, present, background=False), found, atol=1e-4)
    before, after = (ops.shares(one, present, background=True) for one in (cam, moved))
    assert (np.sign(after - before) == np.sign(shift))[:2].all()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("value", [-1e30, -200.0, 200.0, 1e30])
def test_no_logit_is_too_large_for_shares(value, background):
    cam = np.array([value, value, 0], np.float32)[:, None, None]
    rest = {True: [0, 0, 1 / 2], False: [0, 0, 1]}[background]
    expected = [1 / 2, 1 / 2, 0] if value > 0 else rest
    with np.errstate(all="raise", under="ignore"):
        found = ops.shares(cam, np.ones(3, np.bool_), background=background)
        two = ops.shares(cam, np.array([True, True, False]), background=background)
        assert not ops.shares(cam, np.zeros(3, np.bool_), background=background).any()
    assert found.ravel() == pytest.approx(expected)
    assert two.ravel() == pytest.approx([0] * 3 if background and value < 0 else [0.5, 0.5, 0])


@given(seed=st.integers(0, 99), position=st.integers(0, 3))
def test_the_background_of_shares_has_the_rest(seed, position):
    cam = random_cam(seed)
    shares = ops.shares(cam, np.ones(3, np.bool_), background=True)
    full = ops.with_background(shares, None, position)
    assert full.dtype == np.float32
    np.testing.assert_array_equal(np.delete(full, position, axis=0), shares)
    np.testing.assert_allclose(full.sum(axis=0), 1, atol=1e-6)
    zero = np.insert(cam, position, 0, axis=0)
    np.testing.assert_allclose(full, softmax_of(zero, False), atol=1e-6)


def test_scores_that_are_rounded_above_1_leave_the_background_nothing():
    shares = np.array([[[0.6]], [[0.404]]], np.float32)
    assert ops.with_background(shares, None, 0)[0].item() == 0
    assert ops.with_background(shares, 1.0, 0)[0].item() == pytest.approx(0.4)


def test_loss_at_zero_logits_is_ln_2():
    tags = torch.tensor([[1, 0, -1], [0, 0, 1]], dtype=torch.int8)
    assert ops.multilabel_loss(torch.zeros(2, 3), tags).item() == pytest.approx(math.log(2))


@given(seed=st.integers(0, 99))
@settings(deadline=None)
def test_loss_is_torchs_where_all_tags_are_known(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(4, 6, generator=generator)
    tags = torch.randint(0, 2, (4, 6), generator=generator)
    expected = multilabel_soft_margin_loss(logits, tags)
    torch.testing.assert_close(ops.multilabel_loss(logits, tags), expected)


def test_unknown_tags_do_not_count():
    logits = torch.tensor([[2.0, -1.0, 9.0]], requires_grad=True)
    loss = ops.multilabel_loss(logits, torch.tensor([[1, 0, -1]]))
    known = ops.multilabel_loss(logits[:, :2], torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(known.item())
    loss.backward()
    assert logits.grad[0, 2] == 0
    assert (logits.grad[0, :2] != 0).all()


def test_loss_without_a_known_tag_is_0_and_has_a_gradient():
    logits = torch.randn(2, 2, 2, 3, requires_grad=True)
    loss = ops.multilabel_loss(logits, torch.full((2, 2, 2, 3), -1, dtype=torch.int8))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_pool_of_one_core_is_the_mean():
    cam = torch.randn(2, 3, 4, 4)
    pooled = ops.pool(cam, torch.ones(2, 1, 4, 4), 1)
    assert pooled.shape == (2, 1, 1, 3)
    torch.testing.assert_close(pooled[:, 0, 0], cam.mean((2, 3)))


def test_pool_keeps_cores_apart():
    cam = torch.zeros(1, 1, 4, 6)
    cam[0, 0, :2, 3:] = 5
    pooled = ops.pool(cam, torch.ones(1, 1, 4, 6), 2)
    assert pooled[0, :, :, 0].tolist() == [[0, 5], [0, 0]]


def test_pool_leaves_invalid_cells_out():
    cam = torch.tensor([[[[1.0, 100.0], [3.0, 8.0]]]])
    weight = torch.tensor([[[[1.0, 0.0], [1.0, 0.5]]]])
    assert ops.pool(cam, weight, 1).item() == pytest.approx((1 + 3 + 4) / 2.5)
    assert ops.pool(cam, torch.zeros(1, 1, 2, 2), 1).item() == 0


def test_pool_then_1x1_convolution_is_1x1_convolution_then_pool():
    features, weight = torch.randn(2, 5, 6, 6), torch.rand(2, 1, 6, 6)
    head = nn.Conv2d(5, 3, 1, bias=False)
    first = ops.pool(head(features), weight, 3)
    second = ops.pool(features, weight, 3) @ head.weight[:, :, 0, 0].T
    torch.testing.assert_close(first, second)


def test_module_loads_without_torch():
    code = "import sys, rsseg.ops.cam; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "False"
