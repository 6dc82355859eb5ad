"""CutMix: boxes, partners, and everything that moves with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsseg.ops.cutmix import CutMix


def draw(seed=0, count=6, size=(64, 64), **kind):
    return CutMix.draw(count, size, torch.Generator().manual_seed(seed), **kind)


def sides(box):
    """Height and width of a box, which must be one."""
    rows, cols = box.any(dim=1).nonzero()[:, 0], box.any(dim=0).nonzero()[:, 0]
    height, width = (int(at.max() - at.min()) + 1 for at in (rows, cols))
    assert box.sum() == height * width
    return height, width


@pytest.mark.parametrize("size", [(256, 256), (128, 320)])
def test_boxes_have_the_area_and_aspect_that_was_asked_for(size):
    boxes = draw(count=400, size=size, probability=1).inside
    shares = torch.tensor([sides(box) for box in boxes]) / torch.tensor(size)
    area, aspect = shares.prod(dim=1), shares[:, 0] / shares[:, 1]
    assert area.min() > 0.015
    assert area.max() < 0.42
    assert area.min() < 0.04
    assert area.max() > 0.38
    assert area.mean() == pytest.approx(0.21, abs=0.02)
    assert (shares == 1).float().mean() < 0.005, "boxes do not fit"
    assert aspect.min() > 0.25
    assert aspect.max() < 1 / 0.25
    assert aspect.log().mean() == pytest.approx(0, abs=0.1)


def test_boxes_lie_anywhere_in_the_image():
    covered = draw(count=400, size=(40, 60), probability=1).inside.float().mean(dim=0)
    assert covered.min() > 0
    torch.testing.assert_close(covered, covered.flip(0), atol=0.12, rtol=0)
    torch.testing.assert_close(covered, covered.flip(1), atol=0.12, rtol=0)


def test_half_of_the_images_get_a_box():
    share = draw(count=2000, size=(16, 16)).inside.any(dim=(1, 2)).float().mean()
    assert share == pytest.approx(0.5, abs=0.05)
    assert not draw(probability=0).inside.any()


def test_chance_comes_from_the_generator():
    one, same, other = draw(1), draw(1), draw(2)
    assert torch.equal(one.inside, same.inside)
    assert torch.equal(one.partner, same.partner)
    assert not torch.equal(one.inside, other.inside)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_image_is_the_partner_of_one_other(count):
    for seed in range(10):
        partner = draw(seed, count).partner
        assert sorted(partner.tolist()) == list(range(count))
        assert (partner != torch.arange(count)).all()


def test_an_image_alone_is_left_as_it_is():
    maps = torch.rand((1, 3, 8, 8))
    assert torch.equal(draw(count=1, size=(8, 8), probability=1).apply(maps), maps)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 20), st.integers(1, 20))
def test_all_that_belongs_to_a_pixel_moves_with_it(seed, count, height, width):
    mix = draw(seed, count, (height, width), probability=1)
    place = torch.arange(count * height * width).reshape(count, height, width)
    moved = mix.apply(place)
    image = mix.apply(torch.stack([place, place + 1], dim=1).double())
    label = mix.apply(torch.where(place % 3 == 0, 255, place % 3))
    weights = mix.apply(place / place.numel())
    assert torch.equal(image, torch.stack([moved, moved + 1], dim=1).double())
    assert torch.equal(label == 255, moved % 3 == 0)
    assert torch.equal(weights, moved / place.numel())
    came_from = torch.where(
        mix.inside, mix.partner[:, None, None], torch.arange(count)[:, None, None]
    )
    assert torch.equal(moved // (height * width), came_from)
    assert torch.equal(moved % (height * width), place % (height * width))


def test_an_empty_batch_has_no_boxes():
    assert draw(count=0).apply(torch.zeros(0, 64, 64)).shape == (0, 64, 64)


def test_what_is_given_is_not_written_to():
    maps = torch.rand((4, 64, 64))
    before = maps.clone()
    assert not torch.equal(draw(count=4, probability=1).apply(maps), before)
    assert torch.equal(maps, before)
