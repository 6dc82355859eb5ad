"""Purification: the paper's equations, what reaches the loss, and whom to trust."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsseg.ops.purify import loss_weights, purify, vlm_confidence, weighted_cross_entropy
from rsseg.ops.trust import Trust, wilson_lower

IGNORE = 255
KINDS = pytest.mark.parametrize("classes", [2, 5])


def pixel(label, confidence, opinions):
    """One pixel of one image: what the teacher and the VLM say of it."""
    return purify(
        torch.tensor([[[label]]]),
        torch.tensor([[[confidence]]]),
        torch.tensor(opinions, dtype=torch.float32)[None, :, None, None],
    )


def random_case(seed, classes=4, size=(2, 9, 7)):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, size, generator=generator)
    label[torch.rand(size, generator=generator) < 0.2] = IGNORE
    opinions = torch.rand((size[0], classes, *size[1:]), generator=generator)
    opinions *= torch.rand(opinions.shape, generator=generator) < 0.3
    return label, torch.rand(size, generator=generator), opinions


def gradient(purified, classes, **kind):
    """Absolute gradient of the loss at each pixel, (B, H, W)."""
    generator = torch.Generator().manual_seed(1)
    size = purified.label.shape
    logits = torch.randn((size[0], classes, *size[1:]), generator=generator, requires_grad=True)
    weights = loss_weights(purified, **kind)
    weighted_cross_entropy(logits, purified.label, weights).backward()
    return logits.grad.abs().sum(dim=1)


# Equations


def test_the_classes_that_an_answer_names_share_its_confidence():
    mentioned = torch.tensor([[True, False, False], [True, True, False], [False] * 3])
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])
    for gamma in (1.0, 0.95):
        torch.testing.assert_close(vlm_confidence(mentioned, gamma), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("confidence", "opinion", "fused"),
    [(0.35, 1.0, 0.675), (0.21, 1.0, 0.763), (0.50, 1.0, 0.643), (0.35, 0.5, 0.425)],
)
def test_agreement_fuses_both_confidences(confidence, opinion, fused):
    out = pixel(1, confidence, [0, opinion, 0])
    assert out.label.item() == 1
    assert out.confidence.item() == pytest.approx(fused, abs=5e-4)
    assert out.agreed.item()
    assert out.touched.item()
    assert not out.rectified.item()


def test_a_conflict_gives_the_pixel_to_the_vlm():
    opinion = vlm_confidence(torch.tensor([False, False, True]))
    out = pixel(1, 0.6, opinion.tolist())
    assert out.label.item() == 2
    assert out.confidence.item() == pytest.approx(1, abs=1e-5)
    assert out.rectified.item()
    assert out.touched.item()
    assert not out.agreed.item()


def test_a_conflict_takes_the_confidence_of_the_class_it_goes_to():
    out = pixel(1, 0.6, [0.2, 0.1, 0.4])
    assert out.label.item() == 2
    assert out.confidence.item() == pytest.approx(0.4)


@pytest.mark.parametrize("confidence", [0.7, 0.8, 1.0])
@pytest.mark.parametrize("opinions", [[0, 1, 0], [0, 0, 1]])
def test_a_sure_teacher_is_not_touched(confidence, opinions):
    out = pixel(1, confidence, opinions)
    assert out.label.item() == 1
    assert out.confidence.item() == pytest.approx(confidence)
    assert not out.touched.item()


@pytest.mark.parametrize(
    ("label", "opinions", "expected"),
    [(2, [0, 0.5, 0.5], 2), (1, [0, 0.5, 0.5], 1), (0, [0, 0.5, 0.5], 1), (0, [0.2, 0, 0.5], 2)],
)
def test_among_equal_opinions_the_teacher_decides_then_the_lowest_class(label, opinions, expected):
    out = pixel(label, 0.4, opinions)
    assert out.label.item() == expected
    assert out.agreed.item() == (label == expected)


def test_an_empty_answer_leaves_the_control():
    label, confidence, opinions = random_case(0)
    empty = vlm_confidence(torch.zeros((2, 4), dtype=torch.bool))
    out = purify(label, confidence, torch.zeros_like(opinions) + empty[:, :, None, None])
    assert torch.equal(out.label, label)
    assert torch.equal(out.confidence, confidence)
    assert not out.touched.any()
    control = ((confidence >= 0.95) & (label != IGNORE)).float()
    assert torch.equal(loss_weights(out), control)
    assert torch.equal(loss_weights(out, literal=True), control)


@given(st.integers(0, 2**31))
def test_what_holds_at_every_pixel(seed):
    label, confidence, opinions = random_case(seed)
    out = purify(label, confidence, opinions)
    strongest = opinions.amax(dim=1)
    assert torch.equal(out.touched, (confidence < 0.7) & (strongest > 0) & (label != IGNORE))
    assert not (out.agreed & out.rectified).any()
    assert torch.equal(out.label[~out.rectified], label[~out.rectified])
    assert (out.label != label)[out.rectified].all()
    assert torch.equal(out.confidence[~out.touched], confidence[~out.touched])
    lower, upper = torch.minimum(confidence, strongest), torch.maximum(confidence, strongest)
    inside = (out.confidence >= lower - 1e-6) & (out.confidence <= upper + 1e-6)
    assert inside[out.touched].all()


# What reaches the loss


@KINDS
def test_an_agreeing_pixel_reaches_the_loss(classes):
    out = pixel(1, 0.6, [0, 1] + [0] * (classes - 2))
    assert gradient(out, classes).item() > 0.01


@KINDS
def test_a_rectified_pixel_reaches_the_loss(classes):
    out = pixel(1, 0.6, [1, 0] + [0] * (classes - 2))
    assert out.label.item() == 0
    assert gradient(out, classes).item() > 0.01


@KINDS
def test_an_unsure_pixel_without_an_opinion_does_not(classes):
    assert gradient(pixel(1, 0.94, [0] * classes), classes).item() == 0
    assert gradient(pixel(1, 0.96, [0] * classes), classes).item() > 0.01


@pytest.mark.parametrize(
    ("label", "confidence", "opinions", "passes"),
    [
        (1, 0.29, [0, 1, 0], True),
        (1, 0.31, [0, 1, 0], False),
        (1, 0.60, [0, 1, 0], False),
        (1, 0.60, [1, 0, 0], True),
        (1, 0.60, [0.5, 0, 0.5], False),
    ],
)
def test_the_literal_variant_filters_once_more(label, confidence, opinions, passes):
    out = pixel(label, confidence, opinions)
    assert loss_weights(out, literal=True).item() == float(passes)
    assert (gradient(out, 3, literal=True).item() > 0) == passes


def test_a_touched_pixel_counts_by_its_confidence():
    assert loss_weights(pixel(1, 0.35, [0, 0.5, 0])).item() == pytest.approx(0.425)
    assert loss_weights(pixel(1, 0.35, [0.3, 0, 0])).item() == pytest.approx(0.3)


def test_ignored_pixels_stay_ignored():
    label, confidence, opinions = random_case(3)
    confidence[0] = 1
    out = purify(label, confidence, opinions.clamp(min=0.1))
    gone = label == IGNORE
    assert gone.any()
    assert (out.label[gone] == IGNORE).all()
    for literal in (False, True):
        assert (loss_weights(out, literal=literal)[gone] == 0).all()
    slope = gradient(out, 4)
    assert (slope[gone] == 0).all()
    assert (slope[~gone & out.touched] > 0).all()


def test_the_loss_is_over_the_labelled_pixels_and_zero_without_any():
    logits = torch.zeros((1, 2, 1, 4))
    label = torch.tensor([[[0, 1, 1, IGNORE]]])
    weights = torch.tensor([[[1.0, 0.5, 0.0, 1.0]]])
    loss = weighted_cross_entropy(logits, label, weights)
    assert loss.item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    nothing = torch.full_like(label, IGNORE)
    assert weighted_cross_entropy(logits, nothing, weights).item() == 0


# Trust


def tiles(count, right, says=1, side=10):
    """Opinions for one of three classes in half of each tile, and truths of all three.

    ``right`` is the share of the tiles in which that half is of the class.
    """
    opinions = torch.zeros((count, 3, side, side))
    opinions[:, says, : side // 2] = 0.5
    truth = torch.zeros((count, side, side), dtype=torch.int64)
    truth[:, side // 2 :, : side // 2] = 2
    truth[: round(count * right), : side // 2] = says
    return opinions, truth


def trust_of(*cases):
    trust = Trust(3)
    for case in cases:
        trust.add(*case)
    return trust


def test_precision_and_base_rate_are_of_labelled_pixels():
    opinions, truth = tiles(4, 0.75)
    truth[0, :5] = IGNORE
    trust = trust_of((opinions, truth))
    assert trust.said.tolist() == [0, 150, 0]
    assert trust.right.tolist() == [0, 100, 0]
    assert trust.tiles.tolist() == [0, 3, 0]
    assert trust.labelled.tolist() == [150, 100, 100]
    assert trust.precision().tolist() == pytest.approx([0, 2 / 3, 0])
    assert trust.base_rates().tolist() == pytest.approx([150 / 350, 100 / 350, 100 / 350])


def test_tiles_may_come_in_any_batches():
    opinions, truth = tiles(6, 0.5)
    opinions[0, :, 3:] = 0
    parts = [(opinions[i : i + 1], truth[i : i + 1]) for i in range(6)]
    together = trust_of((opinions, truth))
    assert together.vouched()[1] > 0
    assert torch.equal(trust_of(*parts).vouched(), together.vouched())


def test_weight_comes_with_tiles_not_with_pixels():
    weights = [
        trust_of(tiles(n, 1, side=side)).vouched()[1] for n in (1, 3, 30) for side in (4, 40)
    ]
    assert weights == pytest.approx([0.27, 0.27, 0.526, 0.526, 0.917, 0.917], abs=1e-3)


def test_a_large_tile_among_small_ones_is_nearly_the_only_witness():
    opinions, truth = tiles(5, 1)
    opinions[1:, :, 0, 1:] = opinions[1:, :, 1:] = 0
    alone = wilson_lower(torch.tensor(1.0), torch.tensor(1.0))
    assert trust_of((opinions, truth)).vouched()[1] == pytest.approx(alone.item(), abs=0.04)


def test_a_class_no_better_than_chance_is_switched_off_and_the_log_says_so():
    trust = trust_of(tiles(20, 0.9), tiles(20, 0.1, says=2))
    weights = trust.weights()
    assert weights[0] == 0
    assert weights[2] == 0
    assert 0.7 < weights[1] < 0.9
    no_opinion, by_chance = trust.switched_off(["field", "roof", "road"])
    assert no_opinion.startswith("field: opinions switched off; no labelled pixel")
    assert by_chance.startswith("road: opinions switched off; on 20 labelled tiles 10% of")
    assert trust.switched_off([None, "roof", "road"]) == [by_chance]


def test_few_tiles_that_happen_to_be_right_are_not_enough():
    common = tiles(2, 1)
    assert common[1].eq(1).float().mean() == 0.5
    few, many = trust_of(common), trust_of(tiles(40, 1))
    assert few.precision()[1] == many.precision()[1] == 1
    assert few.weights()[1] == 0
    assert many.weights()[1] > 0.9


def test_random_opinions_seldom_pass_for_knowledge():
    # One-sided 95 %: chance takes in one of twenty, even where a tile is right or wrong as a whole.
    generator = torch.Generator().manual_seed(0)
    trusted = []
    for _ in range(300):
        truth, said = torch.randint(0, 3, (2, 60), generator=generator)
        opinions = torch.eye(3)[said][:, :, None, None].expand(60, 3, 2, 2)
        trust = trust_of((opinions, truth[:, None, None].expand(60, 2, 2)))
        trusted += (trust.weights() > 0).tolist()
    assert sum(trusted) / len(trusted) < 0.07


def test_nothing_seen_nothing_trusted():
    trust = Trust(2)
    assert trust.weights().tolist() == [0, 0]
    assert len(trust.switched_off(["building", "other"])) == 2


def test_a_class_switched_off_leaves_the_teacher_alone():
    label, confidence, opinions = random_case(5, classes=3)
    weights = trust_of(tiles(20, 0.9), tiles(20, 0.1, says=2)).weights()
    out = purify(label, confidence, opinions * weights[:, None, None])
    only = (opinions[:, 1] == 0) & (opinions.amax(dim=1) > 0)
    assert only.any()
    assert not out.touched[only].any()
    assert (out.label[out.rectified] == 1).all()


def test_wilson_against_published_values():
    # 81 of 263, two-sided 95 %: Newcombe, Statistics in Medicine 17 (1998), table I.
    low = wilson_lower(torch.tensor(81 / 263), torch.tensor(263.0), 1.96)
    assert low.item() == pytest.approx(0.2553, abs=1e-4)
    edges = wilson_lower(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([9.0, 9.0, 0.0]))
    assert edges.tolist() == pytest.approx([0, 9 / (9 + 1.645**2), 0])
