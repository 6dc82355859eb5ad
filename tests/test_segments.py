from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segment_anything.utils.amg import batched_mask_to_box
from torchvision.ops import batched_nms

from rsseg.ops.segments import (
    IGNORE,
    PART,
    SUBPART,
    WHOLE,
    Masks,
    assign,
    background_score,
    class_scores,
    confident,
    overlap_filter,
    priority_nms,
    superpixels,
)

H, W = 20, 30


def rectangle(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((H, W), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def proposals(*each: tuple[NDArray[np.bool_], int, float]) -> Masks:
    return Masks(
        np.array([mask for mask, _, _ in each], dtype=np.bool_).reshape(-1, H, W),
        np.array([level for _, level, _ in each], dtype=np.int8),
        np.array([score for _, _, score in each], dtype=np.float32),
    )


def nms_of(masks: Masks, nms: float = 0.7) -> list[int]:
    return priority_nms(masks.boxes(), masks.level, masks.score, nms=nms).tolist()


@st.composite
def any_proposals(draw: st.DrawFn) -> Masks:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 12))
    x = np.sort(rng.integers(0, W + 1, (count, 2)), axis=1)
    y = np.sort(rng.integers(0, H + 1, (count, 2)), axis=1)
    return proposals(
        *(
            (rectangle(*x[i, :1], *y[i, :1], *x[i, 1:], *y[i, 1:]), level, score)
            for i, (level, score) in enumerate(
                zip(rng.integers(0, 3, count), rng.random(count), strict=True)
            )
        )
    )


def test_indexing_gives_masks_in_that_order() -> None:
    three = proposals(
        (rectangle(0, 0, 1, 1), SUBPART, 0.1),
        (rectangle(0, 0, 2, 2), PART, 0.2),
        (rectangle(0, 0, 3, 3), WHOLE, 0.3),
    )
    assert three[np.array([2, 0])].areas().tolist() == [9, 1]
    assert three[three.areas() > 1].level.tolist() == [PART, WHOLE]


def test_boxes_are_half_open_and_zero_for_an_empty_mask() -> None:
    two = proposals((rectangle(3, 4, 10, 12), WHOLE, 1), (rectangle(0, 0, 0, 0), WHOLE, 1))
    assert two.boxes().tolist() == [[3, 4, 10, 12], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("level", "score", "passes"),
    [
        (WHOLE, 0.77, True),
        (WHOLE, 0.76, True),
        (WHOLE, 0.75, False),
        (PART, 0.77, False),
        (PART, 0.86, True),
        (SUBPART, 0.77, False),
        (SUBPART, 0.86, True),
    ],
)
def test_wholes_pass_a_lower_bar(level: int, score: float, passes: bool) -> None:
    assert confident(np.array([level], np.int8), np.array([score], np.float32)) == [passes]


def test_whole_beats_part_of_the_same_box() -> None:
    box = rectangle(2, 2, 12, 12)
    pair = proposals((box, PART, 0.99), (box, WHOLE, 0.80))
    assert nms_of(pair) == [1]


def test_score_decides_within_a_level() -> None:
    box = rectangle(2, 2, 12, 12)
    pair = proposals((box, PART, 0.90), (box, PART, 0.95))
    assert nms_of(pair) == [1]


@pytest.mark.parametrize(("width", "kept"), [(15, [0, 1]), (16, [0])])
def test_nms_threshold_is_the_box_iou(width: int, kept: list[int]) -> None:
    # From outermost to outermost pixel 20 and `width - 1` columns: IoU 0.70 stays, 0.75 goes.
    pair = proposals((rectangle(0, 0, 21, 10), WHOLE, 0.9), (rectangle(0, 0, width, 10), PART, 0.9))
    assert nms_of(pair) == kept


def test_of_equal_priorities_the_first_wins_and_the_order_is_by_priority() -> None:
    box, other = rectangle(2, 2, 12, 12), rectangle(20, 2, 28, 12)
    four = proposals((box, PART, 0.9), (box, PART, 0.9), (other, WHOLE, 0.8), (other, PART, 0.9))
    assert nms_of(four) == [2, 0]


def test_nms_does_not_mind_which_axis_comes_first() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (30, 2))
    boxes = np.concatenate([corner, corner + rng.integers(2, 20, (30, 2))], axis=1)
    level, score = np.zeros(30, np.int8), rng.random(30).astype(np.float32)
    kept = priority_nms(boxes, level, score, nms=0.3)
    assert 1 < len(kept) < 30
    turned = priority_nms(boxes[:, [1, 0, 3, 2]], level, score, nms=0.3)
    np.testing.assert_array_equal(turned, kept)


def test_without_levels_nms_keeps_what_sams_generator_keeps() -> None:
    rng = np.random.default_rng(0)
    x0, y0 = rng.integers(0, 12, (2, 80))
    x1, y1 = x0 + rng.integers(2, 18, 80), y0 + rng.integers(2, 8, 80)
    masks = proposals(
        *((rectangle(*box), PART, rng.random()) for box in zip(x0, y0, x1, y1, strict=True))
    )
    boxes = batched_mask_to_box(torch.from_numpy(masks.masks)).float()
    scores = torch.from_numpy(masks.score)
    for nms in (0.3, 0.5, 0.7):
        expected = batched_nms(boxes, scores, torch.zeros(80), nms).tolist()
        assert len(expected) < 80
        assert nms_of(masks, nms) == expected


@given(any_proposals())
def test_nms_keeps_no_two_alike_and_drops_nothing_else(masks: Masks) -> None:
    kept = nms_of(masks)
    priority = masks.score + (masks.level == WHOLE)
    assert (np.diff(priority[kept]) <= 0).all()

    def alike(i: int, j: int) -> bool:
        # From outermost to outermost pixel.
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = masks.boxes()[[i, j]] - [0, 0, 1, 1]
        common = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
        union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - common
        return bool(common > 0.7 * union)

    assert not any(alike(i, j) for i in kept for j in kept if i != j)
    for gone in set(range(len(masks))) - set(kept):
        assert any(alike(gone, j) and priority[j] >= priority[gone] for j in kept)


@pytest.mark.parametrize(("shared", "kept"), [(29, [0, 1]), (30, [0])])
def test_overlap_of_29_percent_stays_and_of_30_goes(shared: int, kept: list[int]) -> None:
    whole, part = np.zeros((2, H, W), dtype=np.bool_)
    whole.ravel()[:200] = True
    part.ravel()[200 - shared : 300 - shared] = True
    assert overlap_filter(proposals((whole, WHOLE, 0.8), (part, PART, 0.9))).tolist() == kept


def test_masks_of_one_level_do_not_filter_each_other() -> None:
    pair = proposals((rectangle(0, 0, 10, 10), PART, 0.9), (rectangle(0, 0, 10, 9), PART, 0.95))
    assert overlap_filter(pair).tolist() == [1, 0]


def test_dropped_mask_filters_nothing() -> None:
    whole, part, subpart = (
        (rectangle(0, 0, 10, 10), WHOLE, 0.8),
        (rectangle(5, 0, 15, 10), PART, 0.9),
        (rectangle(11, 0, 15, 10), SUBPART, 0.9),
    )
    assert overlap_filter(proposals(whole, part, subpart)).tolist() == [0, 2]
    assert overlap_filter(proposals(part, subpart)).tolist() == [0]


@given(any_proposals(), st.floats(0.05, 1))
def test_overlap_filter_follows_its_definition(masks: Masks, t_overlap: float) -> None:
    expected: list[int] = []
    for level in (WHOLE, PART, SUBPART):
        coarser = masks.masks[expected]
        for i in sorted(np.flatnonzero(masks.level == level), key=lambda i: -masks.score[i]):
            new = masks.masks[i]
            common = max(((new & kept).sum() for kept in coarser), default=0)
            if new.any() and common < t_overlap * new.sum():
                expected.append(i)
    assert overlap_filter(masks, t_overlap=t_overlap).tolist() == expected


def test_class_scores_are_means_scaled_over_the_masks() -> None:
    three = proposals(*((rectangle(10 * i, 0, 10 * i + 10, H), WHOLE, 1) for i in range(3)))
    posterior = np.zeros((2, H, W), dtype=np.float32)
    for i, mean in enumerate((0.2, 0.4, 0.6)):
        posterior[0, :, 10 * i : 10 * i + 10] = mean
    scores = class_scores(three, posterior)
    np.testing.assert_allclose(scores, [[0, 0], [0.5, 0], [1, 0]], atol=1e-6)


def halves(*planes: tuple[float, float]) -> tuple[Masks, NDArray[np.float32]]:
    """Two proposals, left and right, and posteriors that are constant in each."""
    left = rectangle(0, 0, W // 2, H)
    both = proposals((left, WHOLE, 1), (~left, WHOLE, 1))
    posterior = np.stack([np.where(left, *values) for values in planes]).astype(np.float32)
    return both, posterior


def test_a_class_that_is_hardly_there_wins_a_segment_by_stretching_alone() -> None:
    masks, posterior = halves((0.97, 0.92), (0.03, 0.08))
    stretched = class_scores(masks, posterior)
    np.testing.assert_allclose(stretched, [[1, 0], [0, 1]], atol=1e-5)
    scores = class_scores(masks, posterior, stretch=False)
    np.testing.assert_allclose(scores, [[0.97, 0.03], [0.92, 0.08]], atol=1e-5)
    assert scores.dtype == np.float32
    crf = np.full((H, W), IGNORE - 1, np.uint8)
    assert set(assign(masks, stretched, crf).ravel()) == {0, 1}
    assert set(assign(masks, scores, crf).ravel()) == {0}


@given(any_proposals(), st.integers(0, 2**32 - 1))
def test_without_stretching_scores_are_the_means_of_what_a_mask_covers(
    masks: Masks, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    posterior = rng.dirichlet(np.ones(3), (H, W)).transpose(2, 0, 1).astype(np.float32)
    scores = class_scores(masks, posterior, stretch=False)
    assert (scores.shape, scores.dtype) == ((len(masks), 3), np.float32)
    for mask, score in zip(masks.masks, scores, strict=True):
        expected = posterior[:, mask].mean(axis=1) if mask.any() else [0, 0, 0]
        np.testing.assert_allclose(score, expected, atol=1e-5)


def test_one_mask_scores_its_mean() -> None:
    posterior = np.stack([np.full((H, W), 0.3), np.full((H, W), 0.7)]).astype(np.float32)
    scores = class_scores(proposals((rectangle(0, 0, 5, 5), WHOLE, 1)), posterior)
    np.testing.assert_allclose(scores, [[0.3, 0.7]], atol=1e-6)


@given(any_proposals(), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_scores_are_finite_and_labels_come_from_the_classes(
    masks: Masks, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    posterior = rng.dirichlet(np.ones(classes), (H, W)).transpose(2, 0, 1).astype(np.float32)
    crf = posterior.argmax(axis=0).astype(np.uint8)
    scores = class_scores(masks, posterior)
    assert scores.shape == (len(masks), classes)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert (scores >= -1e-6).all()
    assert (scores <= 1 + 1e-6).all()
    labels = assign(masks, scores, crf)
    covered = masks.masks.any(axis=0)
    np.testing.assert_array_equal(labels[~covered], crf[~covered])
    assert labels.dtype == np.uint8
    assert (labels < classes).all()


@given(any_proposals(), st.permutations(range(4)))
def test_permuting_the_classes_commutes(masks: Masks, order: list[int]) -> None:
    rng = np.random.default_rng(0)
    posterior = rng.dirichlet(np.ones(4), (H, W)).transpose(2, 0, 1).astype(np.float32)
    scores = class_scores(masks, posterior)
    permuted = class_scores(masks, posterior[order])
    np.testing.assert_allclose(permuted, scores[:, order], atol=1e-4)


def test_background_takes_what_no_class_wants() -> None:
    scores = np.array([[0.9, 0.1], [0.1, 0.2]], dtype=np.float32)
    np.testing.assert_allclose(background_score(scores), [0.1, 0.8], atol=1e-6)
    np.testing.assert_allclose(background_score(scores, alpha=2), [0.01, 0.64], atol=1e-6)


def test_uncovered_pixels_keep_the_crf_label() -> None:
    crf = np.full((H, W), 3, dtype=np.uint8)
    labels = assign(
        proposals((rectangle(0, 0, 5, 5), WHOLE, 1)), np.array([[0, 1]], np.float32), crf
    )
    assert (labels[:5, :5] == 1).all()
    assert (np.delete(labels.ravel(), np.flatnonzero(rectangle(0, 0, 5, 5))) == 3).all()
    assert (crf == 3).all()


def test_no_proposals_leave_the_crf_labels() -> None:
    crf = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 4
    nothing = proposals()
    scores = class_scores(nothing, np.ones((4, H, W), dtype=np.float32))
    assert len(nms_of(nothing)) == len(overlap_filter(nothing)) == 0
    np.testing.assert_array_equal(assign(nothing, scores, crf), crf)


def test_ignored_pixels_stay_ignored() -> None:
    crf = np.zeros((H, W), dtype=np.uint8)
    crf[:2] = IGNORE
    everything = proposals((rectangle(0, 0, W, H), WHOLE, 1))
    labels = assign(everything, np.array([[0, 1]], np.float32), crf)
    assert (labels[:2] == IGNORE).all()
    assert (labels[2:] == 1).all()


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ((PART, 0.9, 0.9), (WHOLE, 0.1, 0.1), 1),  # the coarser level,
        ((WHOLE, 0.5, 0.9), (WHOLE, 0.6, 0.1), 1),  # then the higher class score,
        ((WHOLE, 0.5, 0.9), (WHOLE, 0.5, 0.8), 0),  # then the higher proposal score
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_overlaps_go_to_the_stronger(
    first: tuple[int, float, float],
    second: tuple[int, float, float],
    winner: int,
    swapped: bool,
) -> None:
    order = [1, 0] if swapped else [0, 1]
    box = rectangle(4, 4, 10, 10)
    pair = proposals(*((box, level, score) for level, _, score in (first, second)))
    scores = np.diag([first[1], second[1]]).astype(np.float32)
    labels = assign(pair[np.array(order)], scores[order], np.full((H, W), 9, dtype=np.uint8))
    assert (labels[box] == winner).all()


def test_columns_map_to_class_ids() -> None:
    labels = assign(
        proposals((rectangle(0, 0, W, H), WHOLE, 1)),
        np.array([[0.2, 0.7]], np.float32),
        np.zeros((H, W), dtype=np.uint8),
        ids=np.array([4, 7], dtype=np.uint8),
    )
    assert (labels == 7).all()


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_superpixels_partition_the_image(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = superpixels(image)
    assert (masks.masks.sum(axis=0) == 1).all()
    assert (masks.level == WHOLE).all()


def test_superpixels_follow_an_edge() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 40:] = 200
    left = np.arange(64) < 40
    shares = [mask[:, left].sum() / mask.sum() for mask in superpixels(image, sigma=0.1).masks]
    assert set(shares) == {0.0, 1.0}
