"""Evaluation: what the comparison of a map with the truth says; as a table, JSON and CSV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.grid import Grid
from rsseg.io.tables import Tabular, defined
from rsseg.ops.boundary import boundary_iou
from rsseg.ops.confusion import Scores, scores


class Row(NamedTuple):
    """One line of the table of scores; None where a score is undefined or does not apply."""

    name: str
    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    boundary_iou: float | None
    pixels: int
    share: float | None


class Preview(NamedTuple):
    """Map and truth at a regular sample of the compared pixels, to be looked at.

    Args:
        grid: where its pixels lie; north up, in the map's CRS.
        map: (H, W) uint8, predicted class indices; 255 where there is none.
        truth: (H, W) uint8, true class indices; 255 where there is none.
    """

    grid: Grid
    map: NDArray[np.uint8]
    truth: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Evaluation(Tabular):
    """A map compared with the truth.

    Args:
        map: the map's path.
        truth: the truth's path.
        classes: the K classes that were compared.
        matrix: (K, K + 1) int64, pixels by true (row) and predicted class (column); the last
            column counts pixels with a true class for which the map has none.
        boundary: (3, K) int64, pixels of the boundary bands of each class: common to truth and
            map, of the truth, of the map; see ``rsseg.ops.boundary``.
        boundary_width: width of those bands, pixels of the map.
        grid: the map's grid.
        preview: both at fewer pixels.
    """

    map: str
    truth: str
    classes: Classes
    matrix: NDArray[np.int64]
    boundary: NDArray[np.int64]
    boundary_width: int
    grid: Grid
    preview: Preview

    @cached_property
    def scores(self) -> Scores:
        """IoU, precision, recall and F1 of each class, and the means."""
        return scores(self.matrix)

    @cached_property
    def boundary_iou(self) -> tuple[NDArray[np.float64], float]:
        """Boundary IoU (K,) of each class, nan where undefined, and its mean."""
        return boundary_iou(self.boundary)

    @property
    def compared(self) -> int:
        """Pixels that have a true class."""
        return int(self.matrix.sum())

    @property
    def unpredicted(self) -> int:
        """Those of them for which the map has no class; they count as wrong."""
        return int(self.matrix[:, -1].sum())

    def rows(self) -> list[Row]:
        """Return the table: a row per class, then the means and the overall accuracy.

        These are mIoU, mF (under F1), OA (under recall) and mBIoU, the mean boundary IoU.

        ``pixels`` is the support, the pixels that are truly of the class; ``share`` its part of
        all that were compared. Overall accuracy stands under recall because it is the recall of
        all classes together.
        """
        found, total = self.scores, self.compared
        outlines, mean_outline = self.boundary_iou
        table = [
            Row(
                name,
                defined(found.iou[index]),
                defined(found.precision[index]),
                defined(found.recall[index]),
                defined(found.f1[index]),
                defined(outlines[index]),
                support,
                defined(support / total if total else math.nan),
            )
            for index, (name, support) in enumerate(
                zip(self.classes.names, self.matrix.sum(axis=1).tolist(), strict=True)
            )
        ]
        summary = Row("", None, None, None, None, None, total, 1.0 if total else None)
        return [
            *table,
            summary._replace(name="mIoU", iou=defined(found.miou)),
            summary._replace(name="mF", f1=defined(found.mf1)),
            summary._replace(name="OA", recall=defined(found.oa)),
            summary._replace(name="mBIoU", boundary_iou=defined(mean_outline)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; undefined scores are None."""
        found = self.scores
        per_class = zip(self.classes.ids, self.rows()[: len(self.classes)], strict=True)
        return {
            "map": self.map,
            "truth": self.truth,
            "compared_pixels": self.compared,
            "unpredicted_pixels": self.unpredicted,
            "miou": defined(found.miou),
            "mf1": defined(found.mf1),
            "oa": defined(found.oa),
            "mean_boundary_iou": defined(self.boundary_iou[1]),
            "boundary_width_pixels": self.boundary_width,
            "classes": [{"id": class_id, **row._asdict()} for class_id, row in per_class],
            "confusion": {
                "rows": list(self.classes.names),
                "columns": [*self.classes.names, "no prediction"],
                "pixels": self.matrix.tolist(),
            },
        }
