from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pyproj import CRS, Geod
from scipy.ndimage import correlate

from rsseg.errors import InputError
from rsseg.grid import TILE_MULTIPLE, Grid, Tiling, Window, split_overlap, window_starts
from rsseg.io.raster import mirror

NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)
SOUTH_UP = Affine(2, 0, 500_000, 0, 2, 5_000_000)
ROTATED = NORTH_UP @ Affine.rotation(30)
TRANSFORMS = {"north up": NORTH_UP, "south up": SOUTH_UP, "rotated": ROTATED}
UTM = CRS.from_epsg(32633).to_wkt()

sides = st.integers(1, 90)
shapes = st.tuples(sides, sides)
windows = st.builds(Window, st.integers(-40, 40), st.integers(-40, 40), sides, sides)
tilings = st.builds(Tiling, shapes, st.integers(1, 40), st.integers(0, 30))


# --- windows ------------------------------------------------------------------------------------


def pixels(window: Window) -> set[tuple[int, int]]:
    rows = range(window.row, window.row + window.height)
    return {(row, col) for row in rows for col in range(window.col, window.col + window.width)}


@given(windows, windows)
def test_an_intersection_is_what_both_have(one, other):
    common = one.intersection(other)
    assert common.area == len(pixels(common))
    assert pixels(common) == pixels(one) & pixels(other)


@given(windows, shapes)
def test_clipped_is_what_the_raster_has(window, shape):
    assert pixels(window.clipped(shape)) == pixels(window) & pixels(Window(0, 0, *shape))


@given(windows, windows)
def test_relative_windows_move_the_origin(window, other):
    moved = window.relative_to(other)
    back = {(row + other.row, col + other.col) for row, col in pixels(moved)}
    assert back == pixels(window)


@given(windows, st.integers(1, 20))
def test_scaled_windows_hold_every_cell_that_is_touched(window, factor):
    touched = {(row // factor, col // factor) for row, col in pixels(window)}
    assert pixels(window.scaled(factor)) == touched


@given(windows, st.integers(0, 20))
def test_padding_grows_every_side(window, halo):
    padded = window.padded(halo)
    assert window.relative_to(padded) == Window(halo, halo, window.height, window.width)
    assert (padded.height, padded.width) == (window.height + 2 * halo, window.width + 2 * halo)


def test_slices_cut_arrays():
    assert_array_equal(
        np.arange(20).reshape(4, 5)[Window(1, 2, 2, 3).slices], [[7, 8, 9], [12, 13, 14]]
    )


# --- grids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@given(one=windows, other=windows)
def test_a_window_of_a_window_is_a_window(transform, one, other):
    grid = Grid((100, 100), transform, UTM)
    direct = grid[Window(one.row + other.row, one.col + other.col, other.height, other.width)]
    nested = grid[one][other]
    assert (nested.shape, nested.crs) == (direct.shape, UTM)
    assert nested.transform.almost_equals(direct.transform, precision=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@given(window=windows)
def test_a_window_of_a_grid_stays_where_it_is(transform, window):
    grid = Grid((100, 100), transform, UTM)
    inner = (window.col + 3.5, window.row + 1.25)
    assert_allclose(grid[window].transform @ (3.5, 1.25), transform @ inner)


@pytest.mark.parametrize(
    ("transform", "bounds"),
    [
        (NORTH_UP, (500_000, 4_999_900, 500_060, 5_000_000)),
        (SOUTH_UP, (500_000, 5_000_000, 500_060, 5_000_100)),
        (Affine(0, 2, 10, 2, 0, 20), (10, 20, 110, 80)),
    ],
)
def test_bounds_hold_the_corners_however_a_grid_is_turned(transform, bounds):
    assert Grid((50, 30), transform).bounds == bounds


def test_the_whole_grid_is_its_own_window():
    grid = Grid((50, 30), ROTATED, UTM)
    assert grid[grid.window] == grid


@pytest.mark.parametrize(
    ("transform", "crs", "expected"),
    [
        (NORTH_UP, UTM, True),
        (NORTH_UP, None, True),
        (Affine.identity(), UTM, True),
        (Affine.identity(), None, False),
    ],
)
def test_georeferenced_is_what_has_a_place(transform, crs, expected):
    assert Grid((5, 5), transform, crs).is_georeferenced == expected


@given(shapes, st.integers(1, 20))
def test_coarse_cells_cover_the_grid(shape, factor):
    grid = Grid(shape, NORTH_UP, UTM)
    coarse = grid.coarsened(factor)
    assert coarse.shape == (math.ceil(shape[0] / factor), math.ceil(shape[1] / factor))
    assert coarse.transform @ (1, 1) == grid.transform @ (factor, factor)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_grids_coincide_up_to_rounding(transform):
    grid = Grid((50, 30), transform, UTM)
    nearly = transform @ Affine.translation(1e-4, -1e-4)
    assert grid.coincides(Grid((50, 30), nearly, CRS.from_epsg(32633).to_wkt("WKT1_GDAL")))
    for other in (
        Grid((50, 31), transform, UTM),
        Grid((50, 30), transform, None),
        Grid((50, 30), transform, CRS.from_epsg(32634).to_wkt()),
        Grid((50, 30), transform @ Affine.translation(0.01, 0), UTM),
        Grid((50, 30), transform @ Affine.scale(1.001), UTM),
    ):
        assert not grid.coincides(other)
        assert not other.coincides(grid)


def test_degenerate_grids_coincide_with_themselves():
    flat = Grid((2, 2), Affine(0, 0, 5, 0, 0, 5))
    assert flat.coincides(flat)
    assert not flat.coincides(Grid((2, 2), Affine(0, 0, 6, 0, 0, 5)))


# --- metres on the ground -----------------------------------------------------------------------


def metres(transform: Affine, epsg: int) -> float:
    found = Grid((10, 10), transform, CRS.from_epsg(epsg).to_wkt()).ground_sample_distance
    assert found is not None
    return found


@pytest.mark.parametrize("turn", [0, 30, 90, 200])
@pytest.mark.parametrize("mirrored", [1, -1])
def test_ground_metres_of_utm_are_its_scale(turn, mirrored):
    # On the central meridian UTM draws everything 0.9996 times as long.
    pixel = Affine.rotation(turn) @ Affine.scale(0.5, -0.5 * mirrored)
    centred = Affine.translation(500_000, 5_000_000) @ pixel @ Affine.translation(-5, -5)
    assert metres(centred, 32633) == pytest.approx(0.5 / 0.9996, rel=1e-6)


@pytest.mark.parametrize("latitude", [0, 45, 60, -60])
def test_web_mercator_is_not_metres(latitude):
    y = 6_378_137 * math.asinh(math.tan(math.radians(latitude)))
    centred = Affine(2, 0, 1e6, 0, -2, y) @ Affine.translation(-5, -5)
    # Spherical formulas on an ellipsoid: right up to its flattening.
    assert metres(centred, 3857) == pytest.approx(2 * math.cos(math.radians(latitude)), rel=0.007)


@pytest.mark.parametrize("latitude", [0, 45, -70])
def test_degrees_become_metres(latitude):
    step = 1e-4
    centred = Affine(step, 0, 15, 0, -step, latitude) @ Affine.translation(-5, -5)
    geod = Geod(ellps="WGS84")
    east = geod.inv(15, latitude, 15 + step, latitude)[2]
    south = geod.inv(15, latitude, 15, latitude - step)[2]
    assert metres(centred, 4326) == pytest.approx(math.sqrt(east * south), rel=1e-6)


def test_a_degree_at_the_equator():
    centred = Affine(1e-5, 0, 15, 0, -1e-5, 0) @ Affine.translation(-5, -5)
    # 111.320 km eastwards, 110.574 km northwards.
    assert metres(centred, 4326) == pytest.approx(math.sqrt(1.11320 * 1.10574), rel=1e-4)


def test_feet_become_metres():
    long_island = Affine(1, 0, 1_000_000, 0, -1, 200_000)
    assert metres(long_island, 2263) == pytest.approx(0.3048, rel=1e-3)


def test_ground_metres_without_an_earth():
    assert Grid((10, 10), NORTH_UP).ground_sample_distance is None
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    assert Grid((10, 10), Affine.scale(2, 8), local).ground_sample_distance == 4


# --- tilings ------------------------------------------------------------------------------------


@given(tilings)
def test_cores_partition_the_raster(tiling):
    times = np.zeros(tiling.shape, int)
    for tile in tiling:
        assert tile.core.clipped(tiling.shape) == tile.core
        times[tile.core.slices] += 1
    assert (times == 1).all()


@given(tilings)
def test_read_windows_are_of_one_size_around_their_core(tiling):
    for tile in tiling:
        assert (tile.read.height, tile.read.width) == (tiling.size, tiling.size)
        assert tile.core.intersection(tile.read) == tile.core
        assert (tile.inner.row, tile.inner.col) == (tiling.halo, tiling.halo)
        assert tile.core.row - tile.read.row == tile.core.col - tile.read.col == tiling.halo


@given(tilings)
def test_tiles_come_row_by_row(tiling):
    tiles = list(tiling)
    rows, cols = tiling.counts
    assert len(tiles) == len(tiling) == rows * cols
    assert [(tile.row, tile.col) for tile in tiles] == list(np.ndindex(rows, cols))
    assert all(tiling[tile.row, tile.col] == tile for tile in tiles)


@given(tilings, st.integers(1, 5), st.integers(0, 20))
def test_merged_tiles_share_out_the_tiles(tiling, count, halo):
    merged = tiling.merged(count, halo)
    assert (merged.core, merged.halo) == (tiling.core * count, halo)
    members = [member for tile in merged for member in tiling.members(tile.core)]
    assert sorted(members) == [(tile.row, tile.col) for tile in tiling]


@given(tilings, windows)
def test_members_are_the_tiles_whose_cores_meet_a_window(tiling, window):
    met = [(t.row, t.col) for t in tiling if t.core.intersection(window).area]
    found = tiling.members(window) if window.clipped(tiling.shape).area else []
    assert found == met


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    core=st.integers(1, 30),
    halo=st.integers(0, 12),
    radius=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_a_local_filter_in_tiles_is_that_of_the_whole(shape, core, halo, radius, seed):
    radius = min(radius, halo)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 100, shape)
    kernel = rng.integers(-3, 4, (2 * radius + 1, 2 * radius + 1))
    padded = np.pad(image, radius, mode="symmetric")
    whole = correlate(padded, kernel)[radius : radius + shape[0], radius : radius + shape[1]]
    stitched = np.zeros(shape, int)
    for tile in Tiling(shape, core, halo):
        within, rows, cols, _ = mirror(tile.read, shape)
        seen = image[within.slices][rows[:, None], cols]
        stitched[tile.core.slices] = correlate(seen, kernel)[tile.inner.slices]
    assert_array_equal(stitched, whole)


# --- sizes and starts ---------------------------------------------------------------------------


@given(st.integers(2, 64), st.floats(0, 0.75))
def test_core_and_halo_make_up_the_size(sixteenths, overlap):
    size = sixteenths * TILE_MULTIPLE
    core, halo = split_overlap(size, overlap)
    assert core % TILE_MULTIPLE == 0
    assert core + 2 * halo == size
    assert core == TILE_MULTIPLE or abs(size - core - overlap * size) <= TILE_MULTIPLE / 2


@pytest.mark.parametrize(
    ("size", "overlap", "expected"),
    [(256, 0.25, (192, 32)), (256, 0, (256, 0)), (32, 0.75, (16, 8)), (512, 0.5, (256, 128))],
)
def test_known_cores(size, overlap, expected):
    assert split_overlap(size, overlap) == expected


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (250, 0.25, "multiple of 16 from 32 on; use 256"),
        (16, 0, "use 32"),
        (0, 0, "use 32"),
        (-64, 0, "use 32"),
        (256, 0.8, "a share from 0 to 0.75"),
        (256, -0.1, "a share from 0 to 0.75"),
        (256, math.nan, "a share from 0 to 0.75"),
    ],
)
def test_sizes_that_do_not_fit(size, overlap, message):
    with pytest.raises(InputError, match=message):
        split_overlap(size, overlap)


@given(st.integers(1, 500), st.integers(1, 100), st.data())
def test_windows_cover_an_axis(length, size, data):
    stride = data.draw(st.integers(1, size))
    starts = window_starts(length, size, stride)
    assert starts == list(range(0, len(starts) * stride, stride))
    assert starts[-1] + size >= length
    # None too many: without the last one something would be left out.
    assert len(starts) == 1 or starts[-2] + size < length
