"""Confusion matrices and the scores read off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Scores:
    """How well a map agrees with the truth; every number in [0, 1], or nan where undefined.

    Attributes:
        iou: (K,) float64, intersection over union; nan for a class in neither truth nor map.
        precision: (K,) float64, share of a class's map that is right; nan if it is not in the map.
        recall: (K,) float64, share of a class's truth that is found; nan if not in the truth.
        f1: (K,) float64, harmonic mean of both (Dice); nan for a class in neither.
        miou: mean IoU over the classes that occur in the truth.
        mf1: mean F1 over the classes that occur in the truth.
        oa: overall accuracy, the share of pixels that are right.
    """

    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    miou: float
    mf1: float
    oa: float


def confusion(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], count: int, ignore: int = 255
) -> NDArray[np.int64]:
    """Count pixels by true and predicted class.

    Args:
        truth: any shape, class indices below ``count``; pixels of ``ignore`` are left out.
        prediction: same shape; ``ignore`` where there is no prediction.
        count: number of classes K.
        ignore: the index that is no class.

    Returns:
        (K, K + 1) int64: rows are the truth, columns the prediction; the last column counts
        pixels without a prediction. Matrices of parts of a raster add up to that of the whole.
    """
    compared = truth != ignore
    rows = truth[compared].astype(np.int64)
    columns = prediction[compared].astype(np.int64)
    columns[columns == ignore] = count
    assert rows.max(initial=0) < count
    assert columns.max(initial=0) <= count
    cells = np.bincount(rows * (count + 1) + columns, minlength=count * (count + 1))
    return cells.reshape(count, count + 1).astype(np.int64)


def scores(matrix: NDArray[np.int64]) -> Scores:
    """Compute the scores of a confusion matrix.

    Args:
        matrix: (K, K) or (K, K + 1) of ``confusion``; a missing prediction is a wrong one.

    Returns:
        The scores; the means and the accuracy are nan where nothing was compared.
    """
    classes = len(matrix)
    right = np.diag(matrix).astype(np.float64)
    true = matrix.sum(axis=1).astype(np.float64)
    mapped = matrix[:, :classes].sum(axis=0).astype(np.float64)
    iou = _ratio(right, true + mapped - right)
    f1 = _ratio(2 * right, true + mapped)
    return Scores(
        iou=iou,
        precision=_ratio(right, mapped),
        recall=_ratio(right, true),
        f1=f1,
        miou=_mean(iou[true > 0]),
        mf1=_mean(f1[true > 0]),
        oa=float(_ratio(right.sum(), true.sum())),
    )


def _ratio(
    part: NDArray[np.float64] | np.float64, whole: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(part, whole), np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
