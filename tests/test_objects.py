"""Objects: masks of neighbouring windows that show one thing have one number in the scene."""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pytest
from helpers import NORTH_UP, Listener, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rsseg.api import tile as make_site
from rsseg.classes import Classes
from rsseg.config import TileConfig
from rsseg.grid import Window
from rsseg.io.masks import SceneObjects, masks_spec
from rsseg.io.site import Site
from rsseg.ops.maskpack import pack
from rsseg.ops.objects import Objects, bands_of, matches, numbers, united
from rsseg.ops.segments import Masks
from rsseg.progress import SILENT
from rsseg.stages.objects import number_objects

SHAPE = (100, 150)
CORE, HALO = 32, 16


def rectangle(*places, shape=(20, 20)):
    """Masks (N, H, W), each of the rows and columns y0, x0, y1, x1."""
    masks = np.zeros((len(places), *shape), np.bool_)
    for mask, (y0, x0, y1, x1) in zip(masks, places, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


# --- Two windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "join", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0, True),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5, True),  # an IoU of the bar itself
        ((0, 0, 10, 10), (0, 0, 10, 4), 0.5, False),
        ((0, 0, 10, 5), (0, 5, 10, 10), 0.01, False),  # they touch
        ((0, 0, 10, 5), (0, 5, 10, 10), 0.0, False),
        ((0, 0, 4, 4), (0, 0, 4, 4), 0.5, True),
        ((0, 0, 3, 5), (0, 0, 3, 5), 0.5, False),  # the same, but next to nothing
        ((0, 0, 3, 5), (0, 0, 3, 10), 0.5, False),
        ((0, 0, 3, 10), (0, 0, 3, 5), 0.5, False),
    ],
)
def test_masks_that_agree_are_one_object(one, two, join, expected):
    pairs, iou = matches(rectangle(one), rectangle(two), join=join)
    assert (len(pairs), len(iou)) == (expected, expected)


def test_each_mask_is_matched_once_and_the_best_pair_comes_first():
    one = rectangle((0, 0, 10, 10), (0, 0, 10, 9))
    two = rectangle((0, 0, 10, 8), (0, 0, 10, 9), (12, 12, 20, 20))
    pairs, iou = matches(one, two, join=0.5)
    assert pairs.tolist() == [[1, 1], [0, 0]]
    assert iou.tolist() == [1, 0.8]


def test_equal_masks_are_matched_in_their_order():
    same = rectangle(*[(0, 0, 10, 10)] * 3)
    assert matches(same, same, join=0.5)[0].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0)])
def test_no_masks_have_no_match(counts):
    one, two = (rectangle(*[(0, 0, 10, 10)] * count) for count in counts)
    assert matches(one, two, join=0.5)[0].shape == (0, 2)


@given(seed=st.integers(0, 999), join=st.floats(0.05, 0.95))
def test_matches_are_the_greedy_ones(seed, join):
    random = np.random.default_rng(seed)
    truth = random.random((6, 15, 15)) < random.uniform(0.1, 0.6, (6, 1, 1))
    one = truth ^ (random.random(truth.shape) < 0.05)
    two = random.permutation(truth) ^ (random.random(truth.shape) < 0.05)
    common = (one[:, None] & two[None]).sum(axis=(2, 3))
    iou = common / (one[:, None] | two[None]).sum(axis=(2, 3))
    expected = []
    while iou.max() >= join:
        best = np.unravel_index(iou.argmax(), iou.shape)
        expected.append(best)
        iou[best[0]], iou[:, best[1]] = -1, -1
    assert_array_equal(matches(one, two, join=join)[0], np.array(expected).reshape(-1, 2))


# --- Numbers, pieces, bands ----------------------------------------------------------------------


def test_numbers_follow_the_first_mask_that_is_shown():
    pairs = np.array([[4, 1], [2, 5], [0, 6]])
    shown = np.array([0, 1, 1, 1, 0, 0, 0], np.bool_)
    iou, window = np.full(3, 0.7), np.arange(7)
    assert numbers(pairs, iou, window, shown).tolist() == [0, 1, 2, 3, 1, 2, 0]
    assert numbers(pairs[::-1, ::-1], iou, window, shown).tolist() == [0, 1, 2, 3, 1, 2, 0]


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 1, 1, 2]),
        ([0.7, 0.8, 0.9], [1, 2, 2, 2]),
        ([0.8, 0.7, 0.9], [1, 1, 2, 2]),
    ],
)
def test_what_a_window_has_told_apart_stays_apart(iou, expected):
    pairs, window = np.array([[0, 1], [1, 2], [2, 3]]), np.array([0, 1, 2, 0])
    everything = np.ones(4, np.bool_)
    assert numbers(pairs, np.array(iou), window, everything).tolist() == expected
    assert numbers(pairs[::-1], np.array(iou)[::-1], window, everything).tolist() == expected


def test_two_groups_become_one():
    pairs, iou = np.array([[0, 1], [2, 3], [1, 2]]), np.array([0.9, 0.9, 0.6])
    found = numbers(pairs, iou, np.arange(5), np.ones(5, np.bool_))
    assert found.tolist() == [1, 1, 1, 1, 2]


def test_windows_in_a_ring_are_one_object():
    pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    found = numbers(pairs, np.full(6, 0.5), np.arange(4), np.ones(4, np.bool_))
    assert found.tolist() == [1, 1, 1, 1]


def test_no_masks_have_no_numbers():
    none = np.zeros(0, np.intp)
    assert numbers(none.reshape(0, 2), np.zeros(0), none, none.astype(np.bool_)).shape == (0,)


def test_pieces_of_an_object_are_united():
    place = slice(0, 4), slice(4, 8)
    pieces = [
        Masks(np.ones((2, 4, 4), bool), np.array(levels, np.int8), np.array(scores, np.float32))
        for levels, scores in (([0, 2], [0.5, 0.25]), ([1, 0], [0.25, 0.75]))
    ]
    parts = [
        (np.array([7, 3], np.uint32), pieces[0], (slice(0, 4), slice(0, 4))),
        (np.array([9, 7], np.uint32), pieces[1], place),
    ]
    found = united(parts, (4, 8))
    assert found.number.tolist() == [3, 7, 9]
    assert found.masks.areas().tolist() == [16, 32, 16]
    assert found.masks.level.tolist() == [2, 0, 1]
    assert found.masks.score.tolist() == [0.25, 0.75, 0.25]
    assert len(united([], (4, 8))) == 0


def test_an_object_has_the_first_band_where_it_meets_no_other():
    masks = rectangle((0, 0, 9, 9), (0, 0, 4, 4), (3, 3, 5, 5), (10, 10, 12, 12), (1, 1, 2, 2))
    many = Masks(masks, np.zeros(5, np.int8), np.ones(5, np.float32))
    found = Objects(many, np.array([2, 3, 5, 6, 9], np.uint32))
    overlaps = {tuple(pair) for pair in found.overlaps().tolist()}
    assert overlaps == {(2, 3), (2, 5), (3, 5), (2, 9), (3, 9)}
    band = bands_of(9, np.concatenate([found.overlaps()] * 2), 2)
    assert band.tolist() == [0, 0, 0, 1, 0, -1, 0, 0, 0, -1]
    bands = np.zeros((2, 20, 20), np.uint32)
    found.paint(bands, band)
    assert (bands[0][masks[0]] == 2).all()
    assert (bands[1][masks[1]] == 3).all()
    assert set(np.unique(bands)) == {0, 2, 3, 6}
    assert bands_of(9, found.overlaps(), 3).tolist() == [0, 0, 0, 1, 0, 2, 0, 0, 0, 2]
    assert bands_of(0, np.zeros((0, 2), np.uint32), 2).tolist() == [0]


# --- A scene -------------------------------------------------------------------------------------


class Drawn:
    """A site whose windows see what is drawn: masks of the whole scene, cut to each window.

    Args:
        folder: where to make the site.
        masks: (N, H, W) of the scene; a window's masks are the pieces it sees.
        levels: of the N masks.
        count: tile cores per window.
        tamper: changes what a window sees, called with its tile and (N, S, S).
    """

    def __init__(self, folder, masks, levels=None, count=1, tamper=None, halo=HALO):
        raster = write_raster(folder / "a.tif", noise((1, *SHAPE)), NORTH_UP)
        classes = Classes.from_names(["a", "b"])
        config = TileConfig(CORE, 0)
        self.path = make_site([raster], folder / "site.zarr", classes, config=config).path
        self.tiling = self.scene.tiling.merged(count, halo)
        self.spec = masks_spec(self.tiling.core, halo)
        self.masks = masks
        self.levels = np.full(len(masks), 2, np.int8) if levels is None else levels
        self.tamper = tamper or (lambda tile, seen: seen)
        for tile in self.tiling:
            self.write(tile)

    @property
    def scene(self):
        return Site(self.path).scenes["a"]

    def write(self, tile):
        """Write the masks of a window, best seen first."""
        window = tile.read
        padded = np.pad(self.masks, [(0, 0), *[(CORE * 4, CORE * 4)] * 2])
        rows, cols = Window(
            window.row + CORE * 4, window.col + CORE * 4, *[self.tiling.size] * 2
        ).slices
        seen = self.tamper(tile, padded[:, rows, cols].copy())
        order = np.argsort(-seen.sum(axis=(1, 2)), kind="stable")
        order = order[seen[order].any(axis=(1, 2))]
        scores = np.ones(len(order), np.float32)
        vector = pack(Masks(seen[order], self.levels[order], scores), self.spec.channels)
        self.scene.layer(self.spec, "m").write(tile.core, vector[:, None, None])

    def numbered(self, key="o", windows=None, progress=SILENT, join=0.5):
        tiles = list(self.tiling) if windows is None else windows
        number_objects(Site(self.path), "m", key, {"a": tiles}, join=join, progress=progress)
        return SceneObjects(self.scene, "m", key)

    def bytes_of(self, key="o"):
        folder = self.path / "scenes/a" / f"objects-{key}"
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def scene_of(*places):
    return rectangle(*places, shape=SHAPE)


def found_in(objects, window=None):
    """What there is of the objects in a window: {mask as bytes}."""
    whole = Window(0, 0, *SHAPE) if window is None else window
    return {mask.tobytes() for mask in objects.read(whole).masks.masks}


# Cores end at rows and columns 32, 64, 96 ...
@pytest.mark.parametrize(
    ("place", "pieces"),
    [
        ((4, 4, 20, 20), 1),
        ((10, 20, 25, 50), 2),
        ((20, 10, 50, 25), 2),
        ((20, 20, 50, 50), 4),
        ((5, 5, 95, 145), 15),
    ],
)
def test_a_rectangle_across_windows_is_one_object(tmp_path, place, pieces):
    masks = scene_of(place)
    drawn = Drawn(tmp_path, masks)
    objects = drawn.numbered()
    found = objects.read(Window(0, 0, *SHAPE))
    assert found.number.tolist() == [1]
    assert_array_equal(found.masks.masks, masks)
    met = [tile for tile in drawn.tiling if masks[0][tile.core.slices].any()]
    assert len(met) == pieces


def test_different_roofs_that_touch_stay_two(tmp_path):
    masks = scene_of((10, 20, 25, 45), (25, 20, 40, 45), (10, 45, 40, 60))
    assert found_in(Drawn(tmp_path, masks).numbered()) == {mask.tobytes() for mask in masks}


def test_windows_that_meet_at_a_corner_alone_know_each_other(tmp_path):
    masks = scene_of((20, 20, 50, 50))
    drawn = Drawn(tmp_path, masks)
    only = [drawn.tiling[0, 0], drawn.tiling[1, 1]]
    assert drawn.numbered("falling", only).read(Window(0, 0, *SHAPE)).number.tolist() == [1]
    only = [drawn.tiling[0, 1], drawn.tiling[1, 0]]
    assert drawn.numbered("rising", only).read(Window(0, 0, *SHAPE)).number.tolist() == [1]


def test_masks_that_disagree_where_both_see_stay_apart(tmp_path):
    def tamper(tile, seen):
        seen[:, : 42 * tile.col] = False  # the window on the right sees rows 26 to 40 alone
        return seen

    drawn = Drawn(tmp_path, scene_of((4, 20, 40, 50)), tamper=tamper)
    first_row = [drawn.tiling[0, col] for col in (0, 1)]
    found = drawn.numbered(windows=first_row).read(Window(0, 0, 32, 64))
    assert found.number.tolist() == [1, 2]
    # Each side has what its own window saw.
    assert (found.masks.masks[0].any(axis=0) == (np.arange(64) < 32) & (np.arange(64) >= 20)).all()
    again = drawn.numbered("loose", windows=first_row, join=0.1).read(Window(0, 0, 32, 64))
    assert again.number.tolist() == [1]


def test_what_lies_beyond_the_raster_does_not_count(tmp_path):
    def tamper(tile, seen):
        seen[:, :HALO] = tile.col == 0  # mirrored rows that the window on the left takes along
        return seen

    drawn = Drawn(tmp_path, scene_of((0, 20, 12, 50)), tamper=tamper)
    first_row = [drawn.tiling[0, col] for col in (0, 1)]
    assert drawn.numbered(windows=first_row).read(Window(0, 0, 32, 64)).number.tolist() == [1]


def test_without_context_nothing_is_joined(tmp_path):
    found = Drawn(tmp_path, scene_of((20, 20, 50, 50)), halo=0).numbered()
    assert len(found.read(Window(0, 0, *SHAPE))) == 4


def test_levels_may_differ_and_the_highest_counts(tmp_path):
    drawn = Drawn(tmp_path, scene_of((10, 20, 25, 50)))
    drawn.levels = np.zeros(1, np.int8)
    drawn.write(drawn.tiling[0, 0])
    found = drawn.numbered()
    assert found.read(Window(0, 0, *SHAPE)).masks.level.tolist() == [2]
    assert found.read(Window(0, 0, 30, 30)).masks.level.tolist() == [0]


def blobs(seed, count=12):
    """Rectangles at random over the scene, of a thickness that no window misses."""
    random = np.random.default_rng(seed)
    corners = [random.integers(0, side - 8, count) for side in SHAPE]
    sides = random.integers(8, 60, (2, count))
    places = [(y, x, y + h, x + w) for y, x, h, w in zip(*corners, *sides, strict=True)]
    return scene_of(*places)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_any_window_is_cut_from_the_scene(tmp_path, count, seed):
    masks = blobs(seed)
    objects = Drawn(tmp_path, masks, count=count).numbered()
    whole = objects.read(Window(0, 0, *SHAPE))
    covered = whole.masks.masks.any(axis=0)
    assert_array_equal(covered, masks.any(axis=0))
    random = np.random.default_rng(seed)
    for _ in range(8):
        (top, bottom), (left, right) = (sorted(random.choice(side, 2, False)) for side in SHAPE)
        window = Window(int(top), int(left), int(bottom - top), int(right - left))
        part = objects.read(window)
        expected = whole.masks.masks[(slice(None), *window.slices)]
        there = expected.any(axis=(1, 2))
        assert_array_equal(part.number, whole.number[there])
        assert_array_equal(part.masks.masks, expected[there])
    painted = np.zeros((len(whole), *SHAPE), np.bool_)
    for block, found in objects.blocks():
        painted[(found.number - 1, *block.slices)] |= found.masks.masks
    assert_array_equal(painted, whole.masks.masks)


@pytest.mark.parametrize("seed", range(4))
def test_disjoint_masks_come_back_whole(tmp_path, seed):
    random = np.random.default_rng(seed)
    rows, cols = (np.unique([0, side, *random.choice(side // 8, 5) * 8]) for side in SHAPE)
    places = [(y0, x0, y1, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(cols)]
    masks = scene_of(*places)
    objects = Drawn(tmp_path, masks, count=1 + seed % 2).numbered()
    assert found_in(objects) == {mask.tobytes() for mask in masks}


def test_numbers_count_without_gaps_in_raster_order(tmp_path):
    drawn = Drawn(tmp_path, blobs(0))
    objects = drawn.numbered()
    met = np.concatenate([objects.read(tile.core).number for tile in drawn.tiling])
    assert list(dict.fromkeys(met.tolist())) == list(range(1, met.max() + 1))


@pytest.mark.parametrize("lost", [["0/0"], ["2/3", "0/1"]])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(tmp_path, lost):
    drawn = Drawn(tmp_path, blobs(1))
    drawn.numbered()
    before = drawn.bytes_of()
    for name in lost:
        (drawn.path / "scenes/a/objects-o/objects/c/0" / name).unlink()
    drawn.numbered()
    assert drawn.bytes_of() == before
    shutil.rmtree(drawn.path / "scenes/a/objects-o")
    drawn.numbered(windows=list(drawn.tiling)[::-1])
    assert drawn.bytes_of() == before


def test_what_is_numbered_is_not_numbered_again(tmp_path):
    class Counter(Listener):
        def step(self, label, total, unit, done=0):
            self.steps = (label, total, unit, done)
            return super().step(label, total, unit, done)

    drawn = Drawn(tmp_path, blobs(1))
    counter = Counter()
    drawn.numbered(progress=counter)
    assert counter.steps == ("objects", 20, "windows", 0)
    shutil.rmtree(drawn.path / "scenes/a/masks-m/masks/c")  # nobody looks at them any more
    drawn.numbered(progress=counter)
    assert counter.steps == ("objects", 20, "windows", 20)
    assert Site(drawn.path).layers == {"objects": "o"}


def test_a_run_that_died_before_its_first_window(tmp_path):
    drawn = Drawn(tmp_path, blobs(1))
    drawn.scene.group.create_group("objects-o")
    assert len(drawn.numbered().read(Window(0, 0, *SHAPE))) > 5


def test_windows_without_numbers_show_nothing(tmp_path):
    masks = scene_of((20, 20, 50, 50))
    drawn = Drawn(tmp_path, masks)
    some = drawn.numbered("some", [drawn.tiling[0, 0]])
    more = drawn.numbered("more", [drawn.tiling[0, 0], drawn.tiling[0, 1]])
    assert some.read(Window(0, 0, *SHAPE)).masks.areas().tolist() == [144]
    assert more.read(Window(0, 0, *SHAPE)).masks.areas().tolist() == [12 * 30]
    missing = SceneObjects(drawn.scene, "m", "never")
    assert len(missing.read(Window(0, 0, *SHAPE))) == 0
    assert list(missing.blocks()) == []
    assert len(SceneObjects(drawn.scene, "never", "never").read(Window(0, 0, 5, 5))) == 0


def test_a_scene_without_masks(tmp_path):
    objects = Drawn(tmp_path, scene_of()).numbered()
    assert len(objects.read(Window(0, 0, *SHAPE))) == 0
