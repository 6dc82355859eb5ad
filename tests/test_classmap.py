from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from affine import Affine
from helpers import NORTH_UP, UTM, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pyproj import CRS, Transformer
from rasterio.enums import ColorInterp

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.classmap import ClassMap, ClassRaster, scenes_under

LAND = Classes(("water", "forest", "field"), (3, 0, 7), ((0, 0, 255), (0, 255, 0), (255, 255, 0)))
WKT = CRS.from_user_input(UTM).to_wkt()
GRID = Grid((30, 40), NORTH_UP, WKT)
LEFT = np.arange(40) < 20
GREY_ALPHA = [ColorInterp.gray, ColorInterp.alpha]


def ids(shape=GRID.shape, dtype="uint8", seed=0):
    return np.random.default_rng(seed).choice(np.array(LAND.ids), shape).astype(dtype)


def moved(grid, col, row, scale=1.0):
    """The grid from a pixel on, of coarser or finer pixels."""
    transform = grid.transform @ Affine.translation(col, row) @ Affine.scale(scale)
    return Grid(grid.shape, transform, grid.crs)


def read(path, grid=GRID, classes=LAND):
    with ClassRaster(path) as raster, raster.on(grid, "the map") as laid:
        return ClassMap(laid, classes).read(grid.window)


def looked_up(values, grid, source=GRID):
    """Class indices by the definition: of the pixel that a pixel's centre lies in."""
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]] + 0.5
    cols, rows = (~source.transform @ grid.transform) @ (cols, rows)
    rows, cols = np.floor(rows).astype(int), np.floor(cols).astype(int)
    inside = (rows >= 0) & (rows < values.shape[0]) & (cols >= 0) & (cols < values.shape[1])
    found = values[np.clip(rows, 0, values.shape[0] - 1), np.clip(cols, 0, values.shape[1] - 1)]
    return np.where(inside, LAND.from_ids(found), IGNORE)


# --- where a pixel is read ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("nodata", [None, 7])
@pytest.mark.parametrize(
    "place", [(0, 0, 1), (5, -3, 1), (-8, 20, 1), (0.3, 0.2, 1), (-2, 4, 3), (2.25, 1, 0.5)]
)
def test_the_nearest_pixel_on_any_grid(tmp_path, dtype, nodata, place):
    values = ids(dtype=dtype)
    path = write_raster(tmp_path / "c.tif", values, nodata=nodata)
    grid = moved(GRID, *place)
    expected = looked_up(values, grid)
    if nodata is not None:
        expected[expected == LAND.index(nodata)] = IGNORE
    assert_array_equal(read(path, grid), expected)


@pytest.mark.parametrize("turn", [Affine.scale(1, -1), Affine.rotation(25), Affine.rotation(180)])
def test_grids_that_are_turned(tmp_path, turn):
    values = ids()
    centre = Affine.translation(20, 15)
    grid = Grid(GRID.shape, NORTH_UP @ centre @ turn @ ~centre, WKT)
    path = write_raster(tmp_path / "c.tif", values)
    # GDAL interpolates coordinates, so a pixel next to a border may go either way.
    assert (read(path, grid) == looked_up(values, grid)).mean() > 0.99


def test_another_crs(tmp_path):
    values = ids((6, 8)).repeat(10, axis=0).repeat(10, axis=1)
    path = write_raster(tmp_path / "c.tif", values)
    to_laea = Transformer.from_crs(UTM, 3035, always_xy=True)
    x, y = to_laea.transform(*(NORTH_UP @ (30, 20)))
    grid = Grid((40, 50), Affine(1, 0, x, 0, -1, y), CRS.from_epsg(3035).to_wkt())
    xs, ys = grid.transform @ tuple(np.mgrid[:50, :40] + 0.5)
    back = Transformer.from_crs(3035, UTM, always_xy=True).transform(xs, ys)
    cols, rows = (np.floor(v).astype(int) for v in ~NORTH_UP @ back)
    assert (read(path, grid) == LAND.from_ids(values)[rows, cols].T).mean() > 0.98


@settings(max_examples=40)
@given(
    row=st.integers(-30, 50), col=st.integers(-30, 60), side=st.integers(1, 40), same=st.booleans()
)
def test_any_window_is_a_piece_of_the_whole(tmp_path_factory, row, col, side, same):
    path = tmp_path_factory.mktemp("window") / "c.tif"
    write_raster(path, ids(), nodata=0)
    grid = GRID if same else moved(GRID, 3, -2, 1.5)
    window = Window(row, col, side, side)
    with ClassRaster(path) as raster, raster.on(grid, "the map") as laid:
        pixels = ClassMap(laid, LAND)
        whole = np.pad(pixels.read(grid.window), 100, constant_values=IGNORE)
        part = whole[Window(row + 100, col + 100, side, side).slices]
        assert_array_equal(pixels.read(window), part)


# --- which pixels count -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "255", "nan"])
@pytest.mark.parametrize("shift", [0, 4, 0.25])
def test_pixels_without_a_class(tmp_path, kind, shift):
    values = ids(dtype="float32" if kind == "nan" else "uint8")
    options = {}
    if kind == "nodata":
        values[:, ~LEFT], options = 99, {"nodata": 99}
    elif kind == "mask":
        options = {"mask": np.broadcast_to(LEFT, values.shape)}
    elif kind == "alpha":
        alpha = np.broadcast_to(np.where(LEFT, 255, 0), values.shape)
        values, options = np.stack([values, alpha.astype("uint8")]), {"colours": GREY_ALPHA}
    else:
        values[:, ~LEFT] = np.nan if kind == "nan" else 255
    path = write_raster(tmp_path / "c.tif", values, **options)
    grid = moved(GRID, shift, 0)
    plain = values[0] if values.ndim == 3 else values
    expected = looked_up(np.where(LEFT, plain, 200).astype("uint8"), grid)
    assert_array_equal(read(path, grid), expected)


def test_ids_that_are_no_class_are_remembered(tmp_path):
    values = np.int16([[3, 0, 7, 255, -5, 77], [8, 9, 10, 11, 9, -1]])
    path = write_raster(tmp_path / "c.tif", values, nodata=-1)
    with ClassRaster(path) as raster:
        pixels = ClassMap(raster, LAND)
        assert (pixels.strange_pixels, pixels.strange_ids) == (0, ())
        for row in (0, 1):
            pixels.read(Window(row, 0, 1, 6))
    assert pixels.strange_pixels == 7
    assert pixels.strange_ids == (-5, 8, 9, 10, 11)


# --- whether it fits ----------------------------------------------------------------------------

BARE = {"transform": None, "crs": None}
BARE_GRID = Grid((30, 40), Affine.identity())


@pytest.mark.parametrize(
    ("source", "grid", "expected"),
    [
        ({}, GRID, True),
        ({}, moved(GRID, 39, 29), True),
        ({}, moved(GRID, 40, 0), False),
        ({}, moved(GRID, -50, -50, 10), True),
        ({}, Grid((30, 40), NORTH_UP, None), True),
        ({}, BARE_GRID, True),
        ({}, Grid((30, 41), Affine.identity()), False),
        ({"crs": None}, GRID, True),
        ({"crs": None}, moved(GRID, 40, 0), False),
        (BARE, GRID, True),
        (BARE, BARE_GRID, True),
        (BARE, Grid((40, 30), NORTH_UP, WKT), False),
    ],
)
def test_what_lies_on_what(tmp_path, source, grid, expected):
    with ClassRaster(write_raster(tmp_path / "c.tif", ids(), **source)) as raster:
        assert raster.lies_on(grid) == expected
        if expected:
            assert raster.on(grid, "x").read(Window(0, 0, 30, 40))[0].shape == (30, 40)
        else:
            with pytest.raises(InputError):
                raster.on(grid, "x")


@pytest.mark.parametrize("crs", [None, UTM])
def test_without_a_place_pixels_meet_pixels(tmp_path, crs):
    values = ids()
    path = write_raster(tmp_path / "c.tif", values, **BARE)
    grid = Grid((30, 40), NORTH_UP, WKT if crs else None)
    assert_array_equal(read(path, grid), LAND.from_ids(values))


@pytest.mark.parametrize("crs", [None, UTM])
@pytest.mark.parametrize("other", [None, WKT])
def test_without_crs_coordinates_count(tmp_path, crs, other):
    values = ids()
    path = write_raster(tmp_path / "c.tif", values, crs=crs)
    grid = moved(Grid((30, 40), NORTH_UP, other), 5, 3)
    assert_array_equal(read(path, grid), looked_up(values, grid))


@pytest.mark.parametrize(
    ("options", "grid", "message"),
    [
        ({}, moved(GRID, 1000, 0), r"c\.tif: does not overlap the map"),
        (BARE, Grid((9, 9), NORTH_UP, WKT), r"c\.tif: has no CRS, .*40 x 30 .*the map \(9 x 9\)"),
        ({}, Grid((9, 9), Affine.identity()), r"the map: has no CRS, .*40 x 30 .*\(9 x 9\)"),
        ({"crs": "+proj=longlat +R=1737400 +no_defs"}, GRID, "cannot be brought into the CRS"),
    ],
)
def test_rasters_that_do_not_fit(tmp_path, options, grid, message):
    path = write_raster(tmp_path / "c.tif", ids(), **options)
    with pytest.raises(InputError, match=message) as caught:
        read(path, grid)
    assert "\n" not in str(caught.value)


def test_a_picture_is_no_class_raster(tmp_path):
    with pytest.raises(InputError, match="has 3 bands; a raster of class ids has one"):
        ClassRaster(write_raster(tmp_path / "c.tif", np.stack([ids()] * 3)))


def test_scenes_are_found_by_their_place(tmp_path):
    path = write_raster(tmp_path / "c.tif", ids())
    grids = {"here": GRID, "beside": moved(GRID, 40, 0), "partly": moved(GRID, 20, 20)}
    with ClassRaster(path) as raster:
        assert scenes_under(raster, grids) == ["here", "partly"]
        with pytest.raises(InputError, match="lies on none of the site's scenes"):
            scenes_under(raster, {"beside": grids["beside"]})


def test_scenes_without_a_place_are_found_by_their_name(tmp_path):
    bare = Grid((30, 40), Affine.identity())
    with ClassRaster(write_raster(tmp_path / "a b.png", ids(), driver="PNG", **BARE)) as raster:
        assert scenes_under(raster, {"a_b": bare, "c": bare}) == ["a_b"]
        assert scenes_under(raster, {"c": bare}) == ["c"]
        for grids in ({"c": bare, "d": bare}, {"a_b": Grid((9, 9), Affine.identity())}):
            with pytest.raises(InputError, match="name and the size of its scene"):
                scenes_under(raster, grids)


# --- files and workers --------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [GRID, moved(GRID, 3, 3)])
def test_files_are_closed(tmp_path, grid):
    path = write_raster(tmp_path / "c.tif", ids())
    with ClassRaster(path) as raster, raster.on(grid, "x") as laid:
        first = laid.read(grid.window)[0]
        assert str(path) in {file.path for file in psutil.Process().open_files()}
    assert str(path) not in {file.path for file in psutil.Process().open_files()}
    assert_array_equal(laid.read(grid.window)[0], first)
    laid.close()


@pytest.mark.parametrize("grid", [GRID, moved(GRID, 3, 3, 0.3)])
def test_threads_and_copies_read_the_same(tmp_path, grid):
    path = write_raster(tmp_path / "c.tif", ids(), nodata=0)
    pixels = ClassMap(ClassRaster(path).on(grid, "x"), LAND)
    whole = pixels.read(grid.window)
    copy = pickle.loads(pickle.dumps(pixels))
    windows = [Window(row, col, 9, 11) for row in range(0, 20, 3) for col in range(0, 28, 5)]
    with ThreadPoolExecutor(4) as pool:
        for window, part in zip(windows, pool.map(copy.read, windows), strict=True):
            assert_array_equal(part, whole[window.slices])
