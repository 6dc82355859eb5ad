import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from rsseg.ops.confusion import confusion, scores


def uint8(*values):
    return np.array(values, np.uint8)


def maps(seed, classes=4, shape=(40, 30)):
    """Truth with ignored pixels, and a map that is right half of the time."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape, dtype=np.uint8)
    other = rng.integers(0, classes, shape, dtype=np.uint8)
    prediction = np.where(rng.random(shape) < 0.5, truth, other).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    return truth, prediction


def test_confusion_by_hand():
    truth = uint8(0, 0, 0, 1, 1, 255, 255, 0)
    prediction = uint8(0, 1, 0, 1, 0, 0, 255, 255)
    matrix = confusion(truth, prediction, 2)
    assert matrix.tolist() == [[2, 1, 1], [1, 1, 0]]
    assert matrix.dtype == np.int64


def test_scores_by_hand():
    found = scores(np.array([[6, 2, 0], [1, 3, 0]]))
    assert found.iou == pytest.approx([6 / 9, 3 / 6])
    assert found.precision == pytest.approx([6 / 7, 3 / 5])
    assert found.recall == pytest.approx([6 / 8, 3 / 4])
    assert found.f1 == pytest.approx([12 / 15, 6 / 9])
    assert found.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert found.mf1 == pytest.approx((12 / 15 + 6 / 9) / 2)
    assert found.oa == pytest.approx(9 / 12)


def test_a_missing_prediction_is_a_miss_but_no_false_alarm():
    found = scores(np.array([[5, 0, 5], [0, 10, 0]]))
    assert found.iou == pytest.approx([0.5, 1])
    assert found.recall == pytest.approx([0.5, 1])
    assert found.precision == pytest.approx([1, 1])
    assert found.oa == pytest.approx(0.75)


def test_a_class_in_neither_truth_nor_map_is_undefined_and_in_no_mean():
    found = scores(np.array([[3, 0, 1], [0, 0, 0], [1, 0, 3]]))
    for values in (found.iou, found.precision, found.recall, found.f1):
        assert np.isnan(values).tolist() == [False, True, False]
    assert found.miou == pytest.approx(0.6)
    assert found.mf1 == pytest.approx(0.75)


def test_a_class_the_map_never_finds_scores_0():
    found = scores(np.array([[4, 0], [4, 0]]))
    assert found.iou == pytest.approx([0.5, 0])
    assert math.isnan(found.precision[1])
    assert found.recall[1] == 0
    assert found.miou == pytest.approx(0.25)


def test_a_class_only_in_the_map_scores_0_and_is_in_no_mean():
    found = scores(np.array([[3, 1], [0, 0]]))
    assert found.iou == pytest.approx([0.75, 0])
    assert math.isnan(found.recall[1])
    assert (found.miou, found.mf1) == pytest.approx((0.75, 6 / 7))


def test_nothing_compared_is_undefined_everywhere():
    found = scores(confusion(uint8(255, 255), uint8(0, 1), 2))
    assert np.isnan([found.miou, found.mf1, found.oa, *found.iou, *found.f1]).all()


def test_square_matrix_is_one_without_missing_predictions():
    matrix = np.array([[6, 2], [1, 3]])
    padded = np.array([[6, 2, 0], [1, 3, 0]])
    assert vars(scores(matrix)).keys() == vars(scores(padded)).keys()
    assert scores(matrix).oa == scores(padded).oa
    assert scores(matrix).iou.tolist() == scores(padded).iou.tolist()


@given(seed=st.integers(0, 999), row=st.integers(0, 40))
def test_matrices_of_parts_add_up(seed, row):
    truth, prediction = maps(seed)
    parts = [confusion(truth[s], prediction[s], 4) for s in (slice(row), slice(row, None))]
    assert np.array_equal(sum(parts), confusion(truth, prediction, 4))


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_agrees_with_torchmetrics(seed):
    truth, prediction = maps(seed)
    matrix = confusion(truth, prediction, 4)
    found = scores(matrix)
    pair = torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()
    options = {"num_classes": 4, "ignore_index": 255}
    expected = multiclass_confusion_matrix(*pair, **options)
    assert np.array_equal(matrix[:, :4], expected.numpy())
    for ours, theirs in (
        (found.iou, multiclass_jaccard_index),
        (found.precision, multiclass_precision),
        (found.recall, multiclass_recall),
        (found.f1, multiclass_f1_score),
    ):
        assert ours == pytest.approx(theirs(*pair, average=None, **options).numpy(), abs=1e-6)
    for mean, theirs, average in (
        (found.miou, multiclass_jaccard_index, "macro"),
        (found.mf1, multiclass_f1_score, "macro"),
        (found.oa, multiclass_accuracy, "micro"),
    ):
        assert mean == pytest.approx(theirs(*pair, average=average, **options).item(), abs=1e-6)
