"""The parts of benchmarks/sam that are calculated: metrics, tiles, and what belongs to what."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

# Behind the tests, two of whose helpers are named like benchmarks.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import deepglobe
from sam_generators import Way, levels
from sam_labels import labels_of
from sam_metrics import (
    achievable_accuracy,
    boundary_recall,
    covered_share,
    matched,
    partition,
    thinned,
)
from sam_tables import tables
from sam_tiles import datasets, is_mixed, limited, spaced

from rsseg.config import ProposalConfig
from rsseg.grid import Tile, Window
from rsseg.ops.segments import WHOLE, Masks
from rsseg.stages.stage import TileData

SIDE = 16


def box(row: int, col: int, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[row : row + height, col : col + width] = True
    return mask


def masks(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    return np.array([box(*one) for one in boxes], np.bool_).reshape(-1, SIDE, SIDE)


def halves(at: int = SIDE // 2) -> NDArray[np.uint8]:
    truth = np.zeros((SIDE, SIDE), np.uint8)
    truth[:, at:] = 1
    return truth


def test_covered_share_counts_a_pixel_once() -> None:
    assert covered_share(masks((0, 0, 8, 16), (4, 0, 4, 16))) == 0.5
    assert covered_share(masks()) == 0


def test_partition_paints_the_smaller_over_the_larger_whatever_their_order() -> None:
    for boxes in (((0, 0, 16, 16), (2, 2, 4, 4)), ((2, 2, 4, 4), (0, 0, 16, 16))):
        segments = partition(masks(*boxes))
        assert len(np.unique(segments)) == 2
        assert (segments[box(2, 2, 4, 4)] == segments[3, 3]).all()
        assert segments[0, 0] != segments[3, 3]


def test_partition_cuts_uncovered_ground_into_connected_pieces() -> None:
    segments = partition(masks((0, 7, 16, 2)))
    left, middle, right = segments[0, 0], segments[0, 7], segments[0, 15]
    assert len({left, middle, right}) == 3
    assert len(np.unique(segments)) == 3
    # Pieces that touch at a corner alone are two.
    corner = partition(masks((0, 0, 8, 8), (8, 8, 8, 8)))
    assert corner[0, 15] != corner[15, 0]


def test_partition_without_masks_is_one_segment() -> None:
    assert len(np.unique(partition(masks()))) == 1


def test_achievable_accuracy_gives_each_segment_its_commonest_class() -> None:
    truth = halves(12)
    assert achievable_accuracy(partition(masks()), truth) == 0.75
    assert achievable_accuracy(partition(masks((0, 12, 16, 4))), truth) == 1
    # A mask of 8 columns, half of each class, and the 8 columns of class 0 beside it.
    assert achievable_accuracy(partition(masks((0, 8, 16, 8))), truth) == 0.75


def test_achievable_accuracy_leaves_unlabelled_pixels_out() -> None:
    truth = halves(12)
    truth[:, 6:12] = 255
    assert achievable_accuracy(partition(masks()), truth) == pytest.approx(0.6)
    assert np.isnan(achievable_accuracy(partition(masks()), np.full_like(truth, 255)))


def test_single_pixels_achieve_everything() -> None:
    truth = np.random.default_rng(0).integers(0, 5, (SIDE, SIDE)).astype(np.uint8)
    assert achievable_accuracy(np.arange(SIDE**2).reshape(SIDE, SIDE), truth) == 1


@pytest.mark.parametrize(("off", "recall"), [(0, 1.0), (2, 1.0), (3, 0.5), (4, 0.0)])
def test_boundary_recall_forgives_two_pixels(off: int, recall: float) -> None:
    # The true boundary is two columns wide: 7 and 8. At 3 only the nearer is reached.
    segments = halves(8 + off).astype(np.int64)
    assert boundary_recall(segments, halves(8)) == recall


def test_boundary_recall_knows_no_boundary_to_unlabelled_ground_or_the_edge() -> None:
    truth = halves()
    truth[truth == 1] = 255
    assert np.isnan(boundary_recall(halves().astype(np.int64), truth))


def test_matched_asks_for_the_iou() -> None:
    one = masks((0, 0, 10, 10), (12, 12, 4, 4))
    other = masks((0, 0, 10, 9), (12, 12, 4, 4))
    assert matched(one, other).tolist() == [False, True]
    assert matched(one, other, least=0.9).tolist() == [True, True]
    assert matched(one, masks()).tolist() == [False, False]
    assert matched(masks(), one).shape == (0,)


def test_an_empty_mask_matches_nothing() -> None:
    assert not matched(masks((0, 0, 0, 0)), masks((0, 0, 0, 0))).any()


def test_thinned_applies_area_and_share() -> None:
    found = Masks(
        masks((0, 0, 16, 16), (0, 0, 8, 8), (1, 1, 2, 2), (0, 10, 1, 1)),
        np.zeros(4, np.int8),
        np.ones(4, np.float32),
    )
    assert thinned(found, min_area=4, max_share=0.25).areas().tolist() == [64, 4]


def test_levels_are_found_by_point_and_score() -> None:
    asked = np.array([[8.0, 8.0], [24.0, 8.0]])
    scores = np.array([[0.1, 0.5, 0.9], [0.9, 0.3, 0.5]], np.float32)
    points = np.array([[24.0, 8.0], [8.0, 8.0], [8.0, 8.0]])
    found = np.array([0.9, 0.9, 0.5], np.float32)
    assert levels(points, found, asked, scores).tolist() == [0, 2, 1]


@pytest.mark.parametrize(("point", "score"), [((8.0, 8.0), 0.4), ((9.0, 8.0), 0.9)])
def test_a_mask_that_was_not_overheard_is_an_error(
    point: tuple[float, float], score: float
) -> None:
    scores = np.array([[0.1, 0.5, 0.9]], np.float32)
    with pytest.raises(ValueError, match="overheard"):
        levels(np.array([point]), np.float32([score]), np.array([[8.0, 8.0]]), scores)


def test_ways_are_read_from_their_names() -> None:
    for name in ("official 32", "grid 8", "adaptive", "adaptive 64"):
        assert Way.parse(name).name == name
    for wrong in ("grid", "official", "fast 3", ""):
        with pytest.raises(ValueError, match="way"):
            Way.parse(wrong)


def test_the_grid_takes_the_official_rules_and_adaptive_the_defaults() -> None:
    assert Way.parse("adaptive").config == ProposalConfig()
    assert Way.parse("adaptive 64").config.max_points == 64
    grid = Way.parse("grid 16").config
    assert (grid.prompting, grid.points_per_side) == ("grid", 16)
    assert grid.whole_score == grid.score
    assert (grid.max_share, grid.min_area) == (1, 0)


def evidence(posterior: NDArray[np.float32], allowed: NDArray[np.bool_]) -> TileData:
    whole = Window(0, 0, SIDE, SIDE)
    everywhere = np.ones((SIDE, SIDE), np.bool_)
    crf = np.rint(255 * posterior).astype(np.uint8)
    image = np.zeros((3, SIDE, SIDE), np.uint8)
    return TileData(Tile(0, 0, whole, whole), image, everywhere, allowed, everywhere, {"crf": crf})


def test_labels_follow_the_masks_where_the_tags_allow() -> None:
    allowed = np.ones((2, SIDE, SIDE), np.bool_)
    allowed[1, :, :4] = False
    posterior = np.zeros((2, SIDE, SIDE), np.float32)
    posterior[0] = 1
    # The CRF has found a part of the roof alone.
    roof = box(4, 0, 8, 10)
    posterior[:, 4:12, 5:10] = [[[0]], [[1]]]
    found = Masks(np.array([roof, box(14, 0, 2, 16)]), np.int8([WHOLE] * 2), np.float32([1, 1]))
    labels = labels_of(found, evidence(posterior, allowed), None)
    assert (labels[roof & allowed[1]] == 1).all()
    assert (labels[roof & ~allowed[1]] == 0).all()
    assert (labels[~roof] == 0).all()


def test_labels_without_masks_or_tags() -> None:
    allowed = np.ones((2, SIDE, SIDE), np.bool_)
    allowed[:, :3] = False
    posterior = np.stack([1 - halves(), halves()]).astype(np.float32)
    none = Masks(masks(), np.zeros(0, np.int8), np.zeros(0, np.float32))
    for background in (None, 0):
        labels = labels_of(none, evidence(posterior, allowed), background)
        assert (labels[:3] == 255).all()
        assert (labels[3:] == halves()[3:]).all()


def test_is_mixed_wants_five_percent_of_two_classes() -> None:
    ids = np.zeros((20, 20), np.uint8)
    ids[0] = 1
    assert is_mixed(ids)
    ids[0, 0] = 0
    assert not is_mixed(ids)
    # What is unlabelled is no class.
    ids[:2] = 1
    assert is_mixed(ids)
    assert not is_mixed(np.where(ids == 0, 255, 1).astype(np.uint8))


def test_spaced_takes_the_middles_of_equal_parts() -> None:
    assert spaced(range(9), 3) == [1, 4, 7]
    assert spaced(range(2), 3) == [0, 1]


def test_the_table_of_nothing_is_a_heading() -> None:
    class Nothing:
        units = {"about": {"device": "cpu"}}  # noqa: RUF012

        def of(self, prefix: str) -> list[object]:
            return []

    lines = list(tables(Nothing(), [], [Way.parse("adaptive")]))  # type: ignore[arg-type]
    assert lines[0] == "device cpu"
    assert not any(line.startswith("|") for line in lines)


@pytest.mark.data
def test_the_fifth_of_deepglobe_is_what_its_rule_says(data_root: Path) -> None:
    chosen, rest = (deepglobe.training_chips(data_root, choosing=c) for c in (True, False))
    assert (len(chosen), len(rest)) == (154, 726)
    assert not {chip.scene for chip in chosen} & {chip.scene for chip in rest}
    listed = data_root / "deepglobe" / "train" / "image_labels.csv"
    with listed.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if deepglobe.is_for_choosing(r["scene"])]
    present = Counter(name for row in rows for name in deepglobe.CLASSES if row[name] == "1")
    assert min(present[name] for name in deepglobe.CLASSES) >= 0.05 * len(rows)


@pytest.mark.data
def test_scored_and_choosing_tiles_have_nothing_in_common(data_root: Path) -> None:
    scored, choosing = (datasets(data_root, choosing=c) for c in (False, True))
    names = [[tile.name for one in side for tile in one.tiles] for side in (scored, choosing)]
    assert [len(set(side)) for side in names] == [12, 12]
    assert not set(names[0]) & set(names[1])
    assert [len(one.tiles) for one in limited(scored, ["Dubai"], 2)] == [2]
    tile = scored[1].tiles[0]
    assert tile.read_image().shape == (512, 512, 3)
    assert is_mixed(tile.read_truth())
