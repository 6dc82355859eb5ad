"""Proposals: SAM's own on a grid; where adaptive prompting asks, and which answers count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from small_sams import roughened, small_sam
from torch import Tensor

from rsseg.config import ProposalConfig
from rsseg.nets import proposals as module
from rsseg.nets.prompting import Drawn, Prompter, stability
from rsseg.nets.proposals import Proposals, propose
from rsseg.nets.sam import FirstSam, load_sam
from rsseg.ops.segments import PART, SUBPART, WHOLE

# --- On a grid, by the rules of SAM's own generator -----------------------------------------------


def official_rules(per_side: int, score: float, stability: float) -> ProposalConfig:
    return ProposalConfig(
        prompting="grid",
        points_per_side=per_side,
        score=score,
        whole_score=score,
        stability=stability,
        prefer_whole=False,
        max_share=1,
        min_area=0,
    )


def drawn_image(size: tuple[int, int]) -> NDArray[np.uint8]:
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([3 * x % 256, 5 * y % 256, (x + 2 * y) % 256], axis=-1).astype(np.uint8)
    image[5:15, 8:30] = (200, 30, 30)
    image[np.hypot(x - 35, y - 25) < 9] = (20, 220, 90)
    return image


@pytest.fixture(scope="module")
def sam() -> Sam:
    """Random weights, but with masks that are not the whole image and differ between points."""
    torch.manual_seed(5)
    sam = roughened(small_sam(64), contrast=15)
    for pen in sam.mask_decoder.output_hypernetworks_mlps:
        pen.layers[-1].bias -= 3
    for layer in sam.mask_decoder.transformer.layers:
        layer.cross_attn_image_to_token.out_proj.weight *= 4
    return sam


@pytest.mark.parametrize("size", [(64, 64), (40, 61), (90, 33)])
def test_a_grid_gives_the_masks_of_sams_own_generator(
    sam: Sam, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Masks of random weights are not as stable at another size.
    monkeypatch.setattr(module, "_NEAR_STABILITY", 1.0)
    image = drawn_image(size)
    # Their boxes are much alike, so none is dropped for that; test_segments.py is about it.
    loose = SamAutomaticMaskGenerator(
        sam, 5, pred_iou_thresh=-9, stability_score_thresh=0, box_nms_thresh=1
    ).generate(image)
    assert len(loose) == 75
    # Bars that most but not all masks pass, halfway between two of them.
    score, steady = (
        float(np.sort([one[key] for one in loose])[[20, 21]].mean())
        for key in ("predicted_iou", "stability_score")
    )
    theirs = [
        one for one in loose if one["predicted_iou"] > score and one["stability_score"] > steady
    ]
    assert 10 < len(theirs) < 55
    prompter = Prompter(FirstSam(sam), torch.float32)
    config = replace(official_rules(5, score, steady), nms=1.0)
    (ours,) = propose(prompter, [image], config)
    assert ours.prompts == 25
    np.testing.assert_allclose(
        ours.masks.score, [one["predicted_iou"] for one in theirs], rtol=0, atol=1e-4
    )
    for mask, one in zip(ours.masks.masks, theirs, strict=True):
        assert (mask != one["segmentation"]).mean() < 2e-3
    assert 0.1 < ours.masks.masks.mean() < 0.9
    areas = ours.masks.areas()
    assert len(set(areas.tolist())) > len(areas) / 2


def matched(some: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Share of some masks (N, H, W) that have an IoU of 0.95 or more with one of the others."""
    flat = [masks.reshape(len(masks), -1).astype(np.float32) for masks in (some, others)]
    common = flat[0] @ flat[1].T
    union = flat[0].sum(axis=1)[:, None] + flat[1].sum(axis=1) - common
    return float(((common / union).max(axis=1) >= 0.95).mean())


@pytest.mark.data
@pytest.mark.slow
def test_mobile_sam_proposes_the_masks_of_its_own_generator(
    data_root: Path, weights_root: Path
) -> None:
    with rasterio.open(data_root / "ortho" / "banepa" / "banepa_train_3857.tif") as raster:
        tile = raster.read((1, 2, 3), window=Window(1024, 1024, 512, 512))
    image = np.ascontiguousarray(tile.transpose(1, 2, 0))
    net = load_sam(weights_root / "mobile_sam.pt", "vit_t")
    theirs = SamAutomaticMaskGenerator(
        net.sam, 8, pred_iou_thresh=0.86, stability_score_thresh=0.92
    ).generate(image)
    (ours,) = propose(Prompter(net, torch.float32), [image], official_rules(8, 0.86, 0.92))
    own = np.array([one["segmentation"] for one in theirs])
    assert len(own) > 20
    assert matched(own, ours.masks.masks) >= 0.99
    assert matched(ours.masks.masks, own) >= 0.99


# --- In a world of discs --------------------------------------------------------------------------


@dataclass(frozen=True)
class Disc:
    """A disc that answers if it is asked for, by a point in it or a box around it.

    Args:
        x: of its centre, pixels.
        y: of its centre.
        radius: pixels.
        scores: predicted IoU of each level; the levels' radii differ by a pixel.
        slope: logits per pixel at its edge; steep ones are stable.
        box_scores: what the scores are if it is asked for by its box.
        box_slope: what the slope is then.
    """

    x: float
    y: float
    radius: float
    scores: tuple[float, float, float] = (0.0, 0.0, 0.9)
    slope: float = 20
    box_scores: tuple[float, float, float] | None = None
    box_slope: float | None = None


class World:
    """A Prompter that sees discs; remembers what it was asked.

    Args:
        size: (H, W) of the images.
        discs: those of each image.
    """

    device = torch.device("cpu")

    def __init__(self, size: tuple[int, int], *discs: Sequence[Disc]) -> None:
        self._size, self._discs = size, discs
        self.points: list[list[float]] = []
        self.boxes: list[list[float]] = []

    def look(self, images: Sequence[NDArray[np.uint8]]) -> list[Any]:
        assert len(images) == len(self._discs)
        return [
            SimpleNamespace(size=self._size, inside=self._size, discs=discs)
            for discs in self._discs
        ]

    def ask(
        self, seen: Any, points: NDArray[Any] | None = None, boxes: NDArray[Any] | None = None
    ) -> Any:
        if points is not None:
            assert points.shape[1:] == (1, 2)
            self.points += points[:, 0].tolist()
            found = [self._under(seen.discs, x, y) for x, y in points[:, 0]]
        else:
            assert boxes is not None
            self.boxes += boxes.tolist()
            found = [self._within(seen.discs, *box) for box in boxes]
        scores = [one.scores if one else (0.0, 0.0, 0.0) for one in found]
        return SimpleNamespace(scores=torch.tensor(scores), found=found)

    def _under(self, discs: Sequence[Disc], x: float, y: float) -> Disc | None:
        return next((d for d in discs if math.hypot(x - d.x, y - d.y) <= d.radius), None)

    def _within(
        self, discs: Sequence[Disc], x0: float, y0: float, x1: float, y1: float
    ) -> Disc | None:
        for one in discs:
            corners = (
                one.x - one.radius,
                one.y - one.radius,
                one.x + one.radius,
                one.y + one.radius,
            )
            if np.allclose(corners, (x0, y0, x1, y1), atol=3):
                slope = one.box_slope or one.slope
                return replace(one, slope=slope, scores=one.box_scores or one.scores)
        return None

    def logits(self, seen: Any, answers: Any, wanted: Tensor) -> Tensor:
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in seen.size), indexing="ij")
        drawn = torch.zeros(0, *seen.size)
        for prompt, level in wanted.nonzero().tolist():
            one = answers.found[prompt]
            assert one is not None, "a mask that the network gives no chance was drawn"
            away = torch.hypot(x - one.x, y - one.y) - (one.radius + 0.4 * (level - 1))
            drawn = torch.cat([drawn, -one.slope * away[None]])
        return drawn

    def drawn(self, seen: Any, logits: Tensor) -> list[Drawn]:
        found = []
        for logit, stable in zip(logits, stability(logits).tolist(), strict=True):
            mask = (logit > 0).numpy()
            y, x = mask.nonzero()
            box = (int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1)
            part = mask[box[0] : box[2], box[1] : box[3]]
            found.append(Drawn(part, box, stable, int(mask.sum())))
        return found


SIZE = (120, 200)
ADAPTIVE = ProposalConfig(min_area=50)
GRID = ProposalConfig(min_area=50, prompting="grid", points_per_side=10)
UNSURE = (0.0, 0.0, 0.70)
STEEP, BLURRED, SHAPELESS = 20, 2, 0.5
"""Slopes; for a radius of 10 the stability is about 0.98, 0.82, 0.44."""


def at_points(
    monkeypatch: pytest.MonkeyPatch,
    points: Sequence[tuple[float, float]],
    discs: Sequence[Disc],
    config: ProposalConfig = ADAPTIVE,
) -> tuple[World, Proposals]:
    """What adaptive prompting makes of points in that order."""
    monkeypatch.setattr(
        module, "superpixel_points", lambda image: np.array(points, np.float64).reshape(-1, 2)
    )
    world = World(SIZE, discs)
    (found,) = propose(world, [np.zeros((*SIZE, 3), np.uint8)], config)
    return world, found


def on_grid(
    discs: Sequence[Disc], config: ProposalConfig = GRID, size: tuple[int, int] = SIZE
) -> tuple[World, Proposals]:
    world = World(size, discs)
    (found,) = propose(world, [np.zeros((*size, 3), np.uint8)], config)
    return world, found


def painted(size: tuple[int, int], discs: Sequence[Disc]) -> NDArray[np.uint8]:
    image = np.full((*size, 3), 90, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    for i, one in enumerate(discs):
        image[np.hypot(x - one.x, y - one.y) <= one.radius] = (250, 200 - 30 * i, 20 + 40 * i)
    return image


def nothing(count: int) -> list[tuple[float, float]]:
    """Different points at the top, where no disc is."""
    return [(0.5 + i % 200, 0.5 + i // 200) for i in range(count)]


THREE = (Disc(40, 30, 15), Disc(150, 60, 25), Disc(60, 95, 10))


def centres(found: Proposals) -> list[tuple[float, float]]:
    return sorted(tuple(np.argwhere(one).mean(axis=0)[::-1] + 0.5) for one in found.masks.masks)


@pytest.mark.parametrize("size", [(120, 200), (200, 180), (130, 190)])
def test_adaptive_prompting_finds_what_is_in_the_image(size: tuple[int, int]) -> None:
    world = World(size, THREE)
    (found,) = propose(world, [painted(size, THREE)], ADAPTIVE)
    assert found.masks.masks.shape == (3, *size)
    np.testing.assert_allclose(centres(found), [(40, 30), (60, 95), (150, 60)], atol=0.1)
    assert found.prompts == len(world.points) + len(world.boxes)
    assert len(world.points) < 100


def test_points_of_a_smaller_view_are_brought_to_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def points(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        looked.append(image)
        return np.array([[20.0, 10.0]])

    monkeypatch.setattr(module, "superpixel_points", points)
    world = World(SIZE, THREE)
    (seen,) = world.look([None])
    seen.inside = (60, 50)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, 100:] = 200
    assert module._innermost(seen, image).tolist() == [[80.0, 20.0]]
    assert looked[0].shape == (60, 50, 3)
    assert looked[0].dtype == np.uint8
    assert (looked[0][:, :25] == 0).all()
    assert (looked[0][:, 25:] == 200).all()


def test_images_do_not_know_of_each_other() -> None:
    discs = THREE[:1], THREE[1:], ()
    world = World(SIZE, *discs)
    images = [painted(SIZE, one) for one in discs]
    found = propose(world, images, ADAPTIVE)
    assert [len(one.masks) for one in found] == [1, 2, 0]
    np.testing.assert_allclose(centres(found[0]), [(40, 30)], atol=0.1)


class Narrow(World):
    """Has memory for so many images at once."""

    most = 2
    error: type[RuntimeError] = torch.OutOfMemoryError

    def look(self, images: Sequence[NDArray[np.uint8]]) -> list[Any]:
        if len(images) > self.most:
            raise self.error("what the device says")
        # Which disc an image shows is told by its pixels.
        discs = [[self._discs[0][int(image[0, 0, 0])]] for image in images]
        return [SimpleNamespace(size=self._size, inside=self._size, discs=one) for one in discs]


def test_images_beyond_the_memory_are_looked_at_in_parts() -> None:
    discs = [Disc(20 + 30 * i, 60, 14) for i in range(5)]
    images = [np.full((*SIZE, 3), i, np.uint8) for i in range(5)]
    found = propose(Narrow(SIZE, discs), images, GRID)
    assert [centres(one)[0][0] for one in found] == pytest.approx([20, 50, 80, 110, 140], abs=0.1)


def test_other_failures_and_an_image_beyond_the_memory_are_told() -> None:
    world = Narrow(SIZE, THREE)
    world.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        propose(world, [np.zeros((*SIZE, 3), np.uint8)] * 3, GRID)
    world.most, world.error = 1, RuntimeError
    with pytest.raises(RuntimeError, match="what the device says"):
        propose(world, [np.zeros((*SIZE, 3), np.uint8)] * 3, GRID)


def test_covered_points_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = [(41.0, 30.0), (40.0, 38.0), (30.0, 30.0)]
    outside = [(100.0, 100.0), (40.0, 50.0)]
    points = [(40.0, 30.0), *nothing(3), *inside, *outside]
    world, found = at_points(monkeypatch, points, THREE[:1])
    assert [tuple(one) for one in world.points] == [points[0], *nothing(3), *outside]
    assert found.prompts == 6
    assert len(found.masks) == 1


def test_what_is_no_good_covers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for disc in (
        Disc(40, 30, 15, slope=BLURRED),
        Disc(40, 30, 15, scores=UNSURE),
        Disc(40, 30, 3, scores=(0.9,) * 3),
        Disc(100, 60, 90),
    ):
        points = [(disc.x, disc.y), *nothing(3), (disc.x + 1, disc.y)]
        world, found = at_points(monkeypatch, points, [disc])
        assert len(world.points) == 5
        assert found.masks.masks.shape == (0, *SIZE)


def test_the_search_ends_when_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    world, found = at_points(monkeypatch, nothing(300), [])
    assert world.points == [list(one) for one in nothing(48)]
    assert found.prompts == 48
    assert found.masks.masks.shape == (0, *SIZE)


def test_the_search_goes_on_while_something_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    # One disc of 1.3 percent of the image after 40 points each.
    points = [*nothing(40), (40.0, 30.0), *nothing(80)[40:], (60.0, 95.0), *nothing(300)[80:]]
    world, found = at_points(monkeypatch, points, [THREE[0], THREE[2]])
    assert len(found.masks) == 2
    # The 48 points after the round of the second disc, point 82 in round 21, are the last.
    assert len(world.points) == 84 + 48


def test_little_gain_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc of less than 0.2 percent of the image (48 pixels) does not prolong the search."""
    config = replace(ADAPTIVE, min_area=0)
    small, enough = Disc(40, 30, 3.3, scores=(0.0, 0.9, 0.0), slope=50), Disc(40, 30, 5, slope=50)
    points = [*nothing(20), (40.0, 30.0), *nothing(300)[20:]]
    for disc, last in ((small, 48), (enough, 24 + 48)):
        world, found = at_points(monkeypatch, points, [disc], config)
        assert len(found.masks) == 1
        assert len(world.points) == last


@pytest.mark.parametrize("most", [1, 10, 46])
def test_there_is_a_most_of_points(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    config = replace(ADAPTIVE, max_points=most)
    world, found = at_points(monkeypatch, nothing(300), [], config)
    assert len(world.points) == found.prompts == most


def test_no_points_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    world, found = at_points(monkeypatch, [], THREE)
    assert world.points == world.boxes == []
    assert len(found.masks) == found.prompts == 0


@pytest.mark.parametrize(
    "near",
    [
        Disc(150, 40, 10, slope=BLURRED, box_slope=STEEP),
        Disc(150, 40, 10, scores=UNSURE, box_scores=(0.0, 0.0, 0.9)),
        Disc(150, 40, 10, scores=(0.0, 0.8, 0.0), box_scores=(0.0, 0.9, 0.0)),
    ],
    ids=["stability", "score of a whole", "score of a part"],
)
def test_near_misses_are_asked_again_by_their_box(
    monkeypatch: pytest.MonkeyPatch, near: Disc
) -> None:
    world, found = at_points(monkeypatch, [(150.0, 40.0), *nothing(3), (151.0, 40.0)], [near])
    # Both points brought the same mask: it is asked for once.
    ((x0, y0, x1, y1),) = world.boxes
    np.testing.assert_allclose([x0, y0, x1, y1], [140, 30, 160, 50], atol=1)
    assert found.prompts == 6
    np.testing.assert_allclose(centres(found), [(150, 40)], atol=0.1)


@pytest.mark.parametrize(
    "far",
    [
        Disc(150, 40, 10, slope=SHAPELESS, box_slope=STEEP),
        Disc(150, 40, 10, scores=(0.0, 0.0, 0.65), box_scores=(0.0, 0.0, 0.9)),
        Disc(150, 40, 10, scores=(0.0, 0.75, 0.0), box_scores=(0.0, 0.9, 0.0)),
        Disc(150, 40, 3, slope=BLURRED, box_slope=STEEP),
    ],
    ids=["stability", "score of a whole", "score of a part", "area"],
)
def test_far_misses_are_not_asked_again(monkeypatch: pytest.MonkeyPatch, far: Disc) -> None:
    world, found = at_points(monkeypatch, [(150.0, 40.0)], [far])
    assert world.boxes == []
    assert len(found.masks) == 0


def test_boxes_that_stay_near_misses_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    world, found = at_points(monkeypatch, [(150.0, 40.0)], [Disc(150, 40, 10, slope=BLURRED)])
    assert len(world.boxes) == 1
    assert len(found.masks) == 0


def test_near_misses_that_others_cover_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    near = Disc(150, 40, 10, slope=BLURRED, box_slope=STEEP)
    points = [(150.0, 40.0), *nothing(3), (150.0, 60.0)]
    for cover, asked in ((Disc(150, 60, 35), 0), (Disc(150, 60, 14), 1)):
        world, _ = at_points(monkeypatch, points, [near, cover])
        assert len(world.boxes) == asked


def test_a_near_miss_found_covers_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most stable are asked first; what they cover then is not asked."""
    many = [Disc(25 + 35 * i, 20, 8, slope=2.2, box_slope=STEEP) for i in range(5)]
    small = Disc(100, 80, 15, slope=0.9, box_slope=STEEP)  # stability 0.74
    large = Disc(100, 82, 22, slope=1.0, box_slope=STEEP)  # stability 0.83
    points = [(one.x, one.y) for one in many] + [(100.0, 80.0), (100.0, 102.0)]
    world, found = at_points(monkeypatch, points, [*many, small, large])
    assert len(world.boxes) == 6
    assert world.boxes[0] == pytest.approx([78, 60, 122, 104], abs=2)
    assert len(found.masks) == 6


def test_a_grid_asks_everywhere_and_never_by_box() -> None:
    near = Disc(60, 95, 10, slope=BLURRED, box_slope=STEEP)
    world, found = on_grid([*THREE[:2], near])
    assert found.prompts == len(world.points) == 100
    assert world.points[0] == [10, 6]
    assert world.points[-1] == [190, 114]
    assert world.boxes == []
    np.testing.assert_allclose(centres(found), [(40, 30), (150, 60)], atol=0.1)


@pytest.mark.parametrize(
    ("scores", "levels"),
    [
        ((0.87, 0.5, 0.5), [SUBPART]),
        ((0.5, 0.87, 0.5), [PART]),
        ((0.77, 0.77, 0.77), [WHOLE]),
        ((0.85, 0.85, 0.75), []),
    ],
)
def test_each_level_has_its_bar(scores: tuple[float, float, float], levels: list[int]) -> None:
    _, found = on_grid([Disc(60, 60, 30, scores=scores)])
    assert found.masks.level.tolist() == levels
    assert found.masks.masks.shape == (len(levels), *SIZE)
    assert found.masks.level.dtype == np.int8
    assert found.masks.score.dtype == np.float32


def test_unstable_masks_are_dropped() -> None:
    for slope, count in ((BLURRED, 0), (STEEP, 1)):
        assert len(on_grid([Disc(70, 54, 10, slope=slope)])[1].masks) == count
    config = replace(GRID, stability=0.8)
    assert len(on_grid([Disc(70, 54, 10, slope=BLURRED)], config)[1].masks) == 1


def test_too_small_and_too_large_masks_are_dropped() -> None:
    disc = Disc(70, 60, 20, scores=(0.9, 0.0, 0.0))  # of 19.6: 1207 pixels, 0.0503 of the image
    for least, most, count in ((1190, 1, 1), (1230, 1, 0), (0, 0.051, 1), (0, 0.049, 0)):
        _, found = on_grid([disc], replace(GRID, min_area=least, max_share=most))
        assert len(found.masks) == count


def test_a_whole_outranks_its_parts_if_it_should() -> None:
    disc = Disc(70, 60, 30, scores=(0.88, 0.95, 0.8))
    assert on_grid([disc])[1].masks.level.tolist() == [WHOLE]
    _, found = on_grid([disc], replace(GRID, prefer_whole=False))
    assert found.masks.level.tolist() == [PART]
    assert found.masks.score.tolist() == pytest.approx([0.95])


def test_the_best_come_first() -> None:
    discs = (
        Disc(30, 30, 15, scores=(0.0, 0.95, 0.0)),
        Disc(80, 30, 15, scores=(0.0, 0.0, 0.8)),
        Disc(130, 30, 15, scores=(0.9, 0.0, 0.0)),
        Disc(50, 90, 15, scores=(0.0, 0.0, 0.9)),
    )
    _, found = on_grid(discs)
    assert found.masks.level.tolist() == [WHOLE, WHOLE, PART, SUBPART]
    assert found.masks.score.tolist() == pytest.approx([0.9, 0.8, 0.95, 0.9])
    x = [np.argwhere(one)[:, 1].mean() + 0.5 for one in found.masks.masks]
    np.testing.assert_allclose(x, [50, 80, 30, 130], atol=0.1)
    _, found = on_grid(discs, replace(GRID, prefer_whole=False))
    assert found.masks.score.tolist() == pytest.approx([0.95, 0.9, 0.9, 0.8])


def test_masks_of_one_box_are_one() -> None:
    disc = Disc(100, 60, 45)
    _, once = on_grid([disc])
    assert len(once.masks) == 1
    # Without NMS as many as there are points in the disc.
    world, every = on_grid([disc], replace(GRID, nms=1.0))
    assert len(every.masks) == sum(math.hypot(x - 100, y - 60) <= 45 for x, y in world.points) > 9


def test_nothing_good_gives_no_masks() -> None:
    for discs in ([], [Disc(60, 60, 30, scores=UNSURE)], [Disc(70, 54, 10, slope=SHAPELESS)]):
        for config in (GRID, ADAPTIVE):
            world = World(SIZE, discs)
            (found,) = propose(world, [painted(SIZE, discs)], config)
            assert found.masks.masks.shape == (0, *SIZE)
            assert found.prompts > 0
