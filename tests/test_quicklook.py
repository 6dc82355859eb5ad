"""Previews, the figure, and ``rsseg quicklook``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import calculate_default_transform, reproject

from rsseg.api import quicklook
from rsseg.api.picturing import Mapped, legend_of, percent
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid
from rsseg.io import preview
from rsseg.io.preview import class_picture, id_picture, picture, preview_grid
from rsseg.io.raster import Raster
from rsseg.ops.figure import ground_length
from rsseg.ops.picture import error_colours, errors, overlay, round_length, shares

LAND = Classes.from_names(["water", "field", "wood"])
MERCATOR = rasterio.crs.CRS.from_epsg(3857).to_wkt()
DEGREES = rasterio.crs.CRS.from_epsg(4326).to_wkt()
UTM_WKT = rasterio.crs.CRS.from_string(UTM).to_wkt()


def blocky(shape=(60, 80), count=3, side=10, seed=0):
    """Class ids in squares."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, count, [length // side for length in shape], dtype=np.uint8)
    return cells.repeat(side, axis=0).repeat(side, axis=1)


def seen(path):
    """The pixels of a PNG, (H, W, 3) uint8."""
    return (imread(path)[..., :3] * 255 + 0.5).astype(np.uint8)


def has_colour(path, colour):
    return bool((seen(path) == np.uint8(colour)).all(axis=-1).any())


# --- The grid of a preview ----------------------------------------------------------------------


@pytest.mark.parametrize("crs", [UTM_WKT, MERCATOR])
def test_a_raster_with_north_up_keeps_its_extent(crs):
    grid = preview_grid(Grid((300, 400), NORTH_UP, crs), 100)
    assert grid.shape == (75, 100)
    assert grid.bounds == pytest.approx(Grid((300, 400), NORTH_UP, crs).bounds)


def test_a_small_raster_is_not_magnified():
    own = Grid((30, 40), NORTH_UP, UTM_WKT)
    assert preview_grid(own, 1000).coincides(own)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_north_is_up_and_all_of_the_raster_is_covered(name):
    own = Grid((200, 300), TRANSFORMS[name], UTM_WKT)
    grid = preview_grid(own, 150)
    a, b, _, d, e, _ = grid.transform[:6]
    assert a > 0 > e
    assert b == d == 0
    assert grid.bounds == pytest.approx(own.bounds)
    assert max(grid.shape) == 150
    assert a == pytest.approx(-e, rel=0.01)


def test_pixels_in_degrees_become_square_on_the_ground():
    own = Grid((400, 400), Affine(1e-5, 0, 7, 0, -1e-5, 60), DEGREES)  # cos 60° = 1/2
    grid = preview_grid(own, 100)
    assert grid.shape == (100, 50)
    along_row, along_column = grid.ground_steps
    assert along_row == pytest.approx(along_column, rel=0.01)
    assert along_column == pytest.approx(4e-5 * 111_400, rel=0.01)


def test_ground_metres_in_web_mercator_are_true():
    # Near 60° north a metre of Web Mercator is half a metre on the ground.
    own = Grid((100, 100), Affine(1, 0, 0, 0, -1, 8_399_737), MERCATOR)
    assert preview_grid(own, 50).ground_sample_distance == pytest.approx(1, rel=0.01)


def test_without_crs_the_raster_lies_as_it_is_stored():
    own = Grid((100, 50), TRANSFORMS["rotated"])
    grid = preview_grid(own, 20)
    assert grid.shape == (20, 10)
    assert grid.corners[2] == pytest.approx(own.corners[2])


def test_a_thin_raster_keeps_a_pixel():
    assert preview_grid(Grid((1, 5000), NORTH_UP, UTM_WKT), 100).shape == (1, 100)


# --- Reading ------------------------------------------------------------------------------------


def test_pictures_average_and_classes_are_sampled(tmp_path):
    grain = np.random.default_rng(0).integers(0, 2, (40, 40))
    ramp = np.linspace(0, 200, 40)[:, None] + grain * 40
    image = write_raster(tmp_path / "image.tif", ramp.astype(np.uint8))
    ids = write_raster(tmp_path / "ids.tif", (grain * 2).astype(np.uint8))
    grid = preview_grid(Raster(image).grid, 10)
    smooth = picture(image, grid).rgb
    assert smooth.std(axis=1).mean() < 10  # of single pixels it would be 25
    assert set(np.unique(class_picture(ids, grid, LAND)).tolist()) == {0, 2}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_classes_lie_where_they_lie_on_the_ground(tmp_path, name):
    ids = blocky((120, 160), side=20)
    path = write_raster(tmp_path / "ids.tif", ids, TRANSFORMS[name], classes=LAND)
    own = Raster(path).grid
    grid = preview_grid(own, 90)
    found = class_picture(path, grid, LAND)
    rows, cols = np.indices(grid.shape) + 0.5
    in_cols, in_rows = ~own.transform @ (grid.transform @ (cols, rows))
    inside = (in_rows >= 0) & (in_rows < 120) & (in_cols >= 0) & (in_cols < 160)
    expected = ids[in_rows[inside].astype(int), in_cols[inside].astype(int)]
    assert (found[~inside] == 255).all()
    assert (found[inside] == expected).mean() > 0.9  # all but the edges of the squares
    assert inside.mean() > 0.4


def test_a_map_in_another_crs_lies_under_the_same_ground(tmp_path):
    ids = blocky((120, 160), side=20)
    image = write_raster(tmp_path / "image.tif", noise((3, 120, 160)))
    transform, width, height = calculate_default_transform(
        UTM, "EPSG:4326", 160, 120, *Raster(image).grid.bounds
    )
    warped = np.full((3 * height, 3 * width), 255, np.uint8)
    reproject(
        ids, warped, src_transform=NORTH_UP, src_crs=UTM,
        dst_transform=transform @ Affine.scale(1 / 3), dst_crs="EPSG:4326",
        dst_nodata=255, resampling=Resampling.nearest,
    )  # fmt: skip
    mapped = write_raster(
        tmp_path / "map.tif", warped, transform @ Affine.scale(1 / 3), "EPSG:4326", nodata=255
    )
    found = class_picture(mapped, preview_grid(Raster(image).grid, 80), LAND)
    assert (found == ids[1::2, 1::2]).mean() > 0.9


def test_only_the_part_of_a_large_map_under_the_grid_is_read(tmp_path):
    ids = blocky((400, 400), side=10)
    path = write_raster(tmp_path / "ids.tif", ids)
    part = Grid((20, 30), NORTH_UP @ Affine.translation(100, 200), UTM_WKT)
    assert np.array_equal(class_picture(path, part, LAND), ids[200:220, 100:130])


def test_beyond_a_map_there_is_no_class(tmp_path):
    path = write_raster(tmp_path / "ids.tif", np.zeros((10, 10), np.uint8))
    wider = Grid((10, 20), NORTH_UP, UTM_WKT)
    found = class_picture(path, wider, LAND)
    assert (found[:, :10] == 0).all()
    assert (found[:, 10:] == 255).all()
    elsewhere = Grid((10, 20), NORTH_UP @ Affine.translation(1000, 0), UTM_WKT)
    assert (class_picture(path, elsewhere, LAND) == 255).all()


@pytest.mark.parametrize("nodata", ["value", "alpha", "mask", "nan"])
def test_what_was_not_measured_is_not_valid(tmp_path, nodata):
    image = noise((3, 40, 40), "float32" if nodata == "nan" else "uint8")
    hidden = np.zeros((40, 40), bool)
    hidden[:, 20:] = True
    options = {}
    if nodata == "value":
        image[:, hidden], options = 0, {"nodata": 0}
    elif nodata == "nan":
        image[:, hidden] = np.nan
    elif nodata == "mask":
        options = {"mask": ~hidden}
    else:
        image = np.concatenate([image, np.where(hidden, 0, 255).astype(np.uint8)[None]])
        colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
        options = {"colours": colours}
    path = write_raster(tmp_path / "image.tif", image, **options)
    found = picture(path, preview_grid(Raster(path).grid, 20))
    assert found.valid[:, :10].all()
    assert not found.valid[:, 10:].any()
    assert not found.rgb[:, 10:].any()
    assert found.rgb[:, :10].std() > 10


@pytest.mark.parametrize(("dtype", "count"), [("uint16", 1), ("int16", 4), ("float32", 2)])
def test_any_type_is_stretched_to_bytes(tmp_path, dtype, count):
    path = write_raster(tmp_path / "image.tif", noise((count, 50, 50), dtype))
    rgb = picture(path, preview_grid(Raster(path).grid, 50)).rgb
    assert rgb.dtype == np.uint8
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert 0.01 < (rgb[..., 0] == 255).mean() < 0.04


def test_bands_can_be_chosen(tmp_path):
    path = write_raster(tmp_path / "image.tif", noise((4, 30, 30)))
    grid = preview_grid(Raster(path).grid, 30)
    default, chosen = picture(path, grid).rgb, picture(path, grid, rgb=(4, 1, 1)).rgb
    assert np.array_equal(chosen[..., 1], default[..., 0])
    assert np.array_equal(chosen[..., 1], chosen[..., 2])
    assert not np.array_equal(chosen[..., 0], default[..., 0])
    with pytest.raises(InputError, match="asks for band 5"):
        picture(path, grid, rgb=(5, 1, 1))


def test_nothing_valid_is_told(tmp_path):
    path = write_raster(tmp_path / "image.tif", np.zeros((3, 20, 20), np.uint8), nodata=0)
    with pytest.raises(InputError, match=r"image\.tif: no valid pixel"):
        picture(path, preview_grid(Raster(path).grid, 20))


# --- Any size -----------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """How many pixels of a band each read asked for, in the overview that it could use."""
    sizes, read_reduced = [], Raster.read_reduced

    def counted(raster, window, shape, **how):
        factor = math.sqrt(window.area / math.prod(shape))
        sizes.append(window.area / raster.reduction(factor) ** 2)
        return read_reduced(raster, window, shape, **how)

    monkeypatch.setattr(Raster, "read_reduced", counted)
    return sizes


def sparse(path, side, *overviews):
    """A huge GeoTIFF of which one block is on disk."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": UTM, "transform": NORTH_UP}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
    with rasterio.open(path, "w", width=side, height=side, **profile, **tiles) as target:
        block = np.full((512, 512), 7, np.uint8)
        target.write(block, 1, window=rasterio.windows.Window(512, 512, 512, 512))
        if overviews:
            target.build_overviews(overviews, Resampling.nearest)
    return path


def test_a_huge_raster_without_overviews_is_read_in_blocks(tmp_path, reads):
    path = sparse(tmp_path / "huge.tif", 30_000)
    ids, _ = id_picture(path, preview_grid(Raster(path).grid, 500))
    assert len(reads) > 50
    assert max(reads) <= preview.MAX_READ
    assert sum(reads) == 30_000**2
    # 512 pixels at 60 to one.
    assert np.argwhere(ids == 7).min(axis=0).tolist() == [9, 9]
    assert (ids == 7).sum() == 8 * 8


def test_overviews_are_read_instead_of_the_pixels(tmp_path, reads):
    path = tmp_path / "image.tif"
    write_raster(path, np.full((2048, 2048), 50, np.uint8), tiled=True, blockxsize=256)
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2, 4, 8, 16], Resampling.average)
    with rasterio.open(path, "r+") as target:
        target.write(np.full((2048, 2048), 99, np.uint8), 1)  # the overviews stay as they were
    ids, _ = id_picture(path, preview_grid(Raster(path).grid, 128))
    assert (ids == 50).all()
    assert reads == [128**2]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(5, 60), st.integers(50, 5000))
def test_blocks_cover_a_window_once_and_are_bounded(height, width, side, most):
    class Plain:
        def reduction(self, factor):
            return 1

    own = Grid((height, width), NORTH_UP, UTM_WKT)
    shape = preview_grid(own, side).shape
    counts, sources = np.zeros(shape, int), np.zeros(own.shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "MAX_READ", most)
        for source, target in preview._blocks(Plain(), own.window, shape):
            counts[target.slices] += 1
            sources[source.slices] += 1
            one = math.ceil(height / shape[0]) * math.ceil(width / shape[1])
            assert source.area <= max(1.3 * most, 2 * one) + height + width
    assert (counts == 1).all()
    assert (sources == 1).all()


def test_blocks_do_not_change_the_picture(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "image.tif", noise((3, 400, 600)))
    grid = preview_grid(Raster(path).grid, 150)
    whole = picture(path, grid).rgb
    monkeypatch.setattr(preview, "MAX_READ", 4**2 * 50)
    assert np.array_equal(picture(path, grid).rgb, whole)


# --- Painting -----------------------------------------------------------------------------------


def test_overlay_leaves_background_and_nodata_clear():
    rgb = np.full((1, 4, 3), 100, np.uint8)
    indices = np.uint8([[0, 1, 2, 255]])
    found = overlay(rgb, indices, [(200, 0, 0), (0, 200, 0), (0, 0, 200)], 0.25, clear=1)
    assert found[0].tolist() == [[125, 75, 75], [100] * 3, [75, 75, 125], [100] * 3]


def test_errors_stand_out_of_what_is_right():
    truth, mapped = np.uint8([[0, 0, 1, 255, 1]]), np.uint8([[0, 1, 0, 1, 255]])
    colours = [(222, 222, 214), (213, 94, 0)]
    right, false_alarm, missed, unknown, unmapped = errors(truth, mapped, colours)[0].tolist()
    assert missed == [213, 94, 0]
    assert false_alarm == list(error_colours(colours)[0])
    assert max(false_alarm) < 80  # the pale background's errors are dark
    assert unknown == [255] * 3
    assert len({tuple(c) for c in (right, false_alarm, missed, unknown, unmapped)}) == 5


def test_shares_are_of_the_ground():
    indices = np.uint8([[0, 0, 255], [1, 255, 255]])
    assert shares(indices, 3, np.array([1.0, 2.0])).tolist() == [0.5, 0.5, 0]
    assert shares(np.full((2, 2), 255, np.uint8), 2, np.ones(2)).tolist() == [0, 0]


@given(st.floats(1e-3, 1e8))
def test_round_lengths_fill_at_least_two_fifths(longest):
    found = round_length(longest)
    assert 0.39 * longest < found <= longest * 1.001
    assert f"{found:.0e}"[0] in "125"


@pytest.mark.parametrize(
    ("metres", "text"), [(0.5, "0.5 m"), (200, "200 m"), (1000, "1 km"), (5e4, "50 km")]
)
def test_ground_lengths(metres, text):
    assert ground_length(metres) == text


def test_the_legend_has_what_occurs():
    mapped = Mapped(np.uint8([[0, 0, 0, 2], [0, 0, 0, 255]]), LAND)
    found = legend_of(mapped, Grid((2, 4), NORTH_UP, UTM_WKT), clear=0)
    assert [(e.name, e.note) for e in found] == [("water", "86 %"), ("wood", "14 %")]
    assert found[0].colour is None
    assert found[1].colour == LAND.colours[2]


def test_shares_in_degrees_are_of_the_ground():
    # A row around the pole and one at the equator: sin 90° - sin 80° against sin 10°.
    indices = np.full((9, 1), 255, np.uint8)
    indices[0], indices[8] = 0, 1
    found = legend_of(Mapped(indices, LAND), Grid((9, 1), Affine(1, 0, 0, 0, -10, 90), DEGREES))
    assert [entry.note for entry in found] == ["8.1 %", "92 %"]


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100 %"), (0.123, "12 %"), (0.0123, "1.2 %"), (1e-5, "< 0.1 %")]
)
def test_percent(share, text):
    assert percent(share) == text


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A picture and a map of the same place."""
    image = write_raster(tmp_path / "ortho.tif", noise((3, 120, 160)))
    return image, write_raster(tmp_path / "map.tif", blocky((120, 160)), classes=LAND)


def test_a_picture_alone_is_in_the_png_pixel_by_pixel(pair, tmp_path):
    image, _ = pair
    quicklook(image, tmp_path / "out.png", size=4096)
    rgb = picture(image, Raster(image).grid).rgb.repeat(3, axis=0).repeat(3, axis=1)
    page = seen(tmp_path / "out.png")
    places = np.argwhere((page == rgb[3, 3]).all(axis=-1))
    inner = rgb[3:-3, 3:-3]  # a thin frame is drawn over the edge

    def lies_at(row, col):
        there = page[row : row + len(inner), col : col + inner.shape[1]]
        return there.shape == inner.shape and np.array_equal(there, inner)

    assert any(lies_at(row, col) for row, col in places)


def test_a_map_is_blended_over_its_picture(pair, tmp_path):
    faint = quicklook(*pair[:1], tmp_path / "a.png", pair[1], opacity=0)
    strong = quicklook(*pair[:1], tmp_path / "b.png", pair[1], opacity=1)
    assert (seen(faint) == np.uint8(LAND.colours[1])).all(axis=-1).sum() < 3000  # legend only
    assert (seen(strong) == np.uint8(LAND.colours[1])).all(axis=-1).sum() > 20_000


def test_side_by_side_is_twice_as_wide(pair, tmp_path):
    over = quicklook(pair[0], tmp_path / "a.png", pair[1])
    beside = quicklook(pair[0], tmp_path / "b.png", pair[1], side_by_side=True)
    assert seen(beside).shape[1] > 1.7 * seen(over).shape[1]
    assert all(has_colour(beside, colour) for colour in LAND.colours)


def test_equal_runs_give_equal_bytes(pair, tmp_path):
    one, two = (quicklook(pair[0], tmp_path / f"{n}.png", pair[1]) for n in "ab")
    assert one.read_bytes() == two.read_bytes()


def described(tmp_path):
    return write_raster(tmp_path / "ids.tif", blocky(), classes=LAND), LAND.colours[1], {}


def with_colour_table(tmp_path):
    table = {0: (9, 8, 7, 255), 1: (90, 80, 70, 255), 2: (3, 2, 1, 255)}
    return write_raster(tmp_path / "ids.tif", blocky(), table=table), (90, 80, 70), {}


def with_classes_given(tmp_path):
    given = Classes.from_dict({"classes": [{"name": n, "colour": "#123456"} for n in "abc"]})
    path = write_raster(tmp_path / "ids.tif", blocky().astype(np.int16))
    return path, (0x12, 0x34, 0x56), {"classes": given}


def with_few_values(tmp_path):
    return write_raster(tmp_path / "ids.tif", blocky(), nodata=255), LAND.colours[1], {}


@pytest.mark.parametrize(
    "make", [described, with_colour_table, with_classes_given, with_few_values]
)
def test_a_class_raster_alone_is_drawn_as_a_map(tmp_path, make):
    path, colour, options = make(tmp_path)
    quicklook(path, tmp_path / "out.png", **options)
    assert has_colour(tmp_path / "out.png", colour)


def test_a_grey_photograph_is_no_map(tmp_path):
    path = write_raster(tmp_path / "grey.tif", noise((1, 60, 80)))
    page = seen(quicklook(path, tmp_path / "out.png"))
    assert (page.max(axis=-1) - page.min(axis=-1)).max() <= 1


def test_the_zeros_of_a_nameless_mask_are_clear(pair, tmp_path):
    mask = write_raster(tmp_path / "mask.tif", blocky((120, 160), 2))
    drawn = quicklook(pair[0], tmp_path / "a.png", mask, opacity=1)
    first, second = Classes.from_names(["0", "1"]).colours
    assert not has_colour(drawn, first)
    assert has_colour(drawn, second)


def test_names_are_not_taken_for_formulas(tmp_path):
    classes = Classes.from_names(["a$b$c", "$\\frac$", "Wald und Wiese & <x>"])
    path = write_raster(tmp_path / "a$b_{c}$.tif", blocky(), classes=classes)
    assert quicklook(path, tmp_path / "out.png").exists()


def test_very_many_classes_and_very_long_names(tmp_path):
    classes = Classes.from_names([f"class {n} " + "x" * (n % 90) for n in range(200)])
    path = write_raster(tmp_path / f"{'n' * 120}.tif", blocky((200, 200), 200), classes=classes)
    height, width = seen(quicklook(path, tmp_path / "out.png")).shape[:2]
    assert height < 3 * width


def test_without_crs_there_is_neither_scale_nor_north(tmp_path):
    bare = write_raster(tmp_path / "bare.tif", noise((3, 60, 80)), crs=None, transform=None)
    placed = write_raster(tmp_path / "placed.tif", noise((3, 60, 80)))
    heights = [seen(quicklook(p, tmp_path / f"{p.stem}.png")).shape[0] for p in (bare, placed)]
    assert heights[0] < heights[1]


def test_a_map_without_georeference_lies_on_a_picture_of_its_size(pair, tmp_path):
    bare = write_raster(
        tmp_path / "bare.tif", blocky((120, 160)), crs=None, transform=None, classes=LAND
    )
    one = quicklook(pair[0], tmp_path / "a.png", pair[1], side_by_side=True)
    named = quicklook(pair[0], tmp_path / "b.png", bare, side_by_side=True)
    colour = np.uint8(LAND.colours[0])
    counts = [(seen(path) == colour).all(axis=-1).sum() for path in (one, named)]
    assert counts[0] == counts[1]


def test_the_command_names_the_picture(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["quicklook", "ortho.tif", "map.tif", "--size", "100"]) == 0
    assert capsys.readouterr().out == "map_quicklook.png\n"
    assert seen(tmp_path / "map_quicklook.png").shape[1] > 100
    assert main(["quicklook", "ortho.tif", "--rgb", "3,2,1", "-q", "--out", "x.png"]) == 0
    assert main(["quicklook", "ortho.tif", "--out", "x.png"]) == 2
    assert "x.png: exists already" in capsys.readouterr().err
    assert main(["quicklook", "ortho.tif", "--out", "x.png", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.tif"], "missing.tif: no such file"),
        (["text.tif"], "text.tif: not a raster"),
        (["ortho.tif", "missing.tif"], "missing.tif: no such file"),
        (["ortho.tif", "far.tif"], "far.tif: does not overlap ortho.tif"),
        (["ortho.tif", "ortho.tif"], "has 3 bands"),
        (["ortho.tif", "real.tif"], "0.5 is no class id"),
        (["ortho.tif", "other_size.tif"], "has no CRS"),
        (["ortho.tif", "map.tif", "--opacity", "1.5"], "--opacity 1.5"),
        (["ortho.tif", "--size", "10"], "--size 10"),
        (["ortho.tif", "--size", "100000"], "--size 100000"),
        (["ortho.tif", "--side-by-side"], "needs a MAP"),
        (["ortho.tif", "--classes", "a,b"], "has several bands"),
        (["ortho.tif", "--rgb", "1,2"], "--rgb 1,2"),
        (["ortho.tif", "--rgb", "1,2,9"], "asks for band 9"),
        (["ortho.tif", "--out", "a.jpg"], "ends in .png"),
        (["ortho.tif", "--out", "nowhere/a.png"], "does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    pair, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.tif").write_text("hello")
    far = NORTH_UP @ Affine.translation(10_000, 0)
    write_raster(tmp_path / "far.tif", blocky(), transform=far, classes=LAND)
    write_raster(tmp_path / "real.tif", np.full((120, 160), 0.5, np.float32))
    write_raster(tmp_path / "other_size.tif", blocky((30, 40)), crs=None, transform=None)
    before = sorted(tmp_path.iterdir())
    assert main(["quicklook", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_file_is_a_failed_run(tmp_path):
    path = write_raster(tmp_path / "image.tif", noise((3, 512, 512)), compress="deflate")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"image\.tif: cannot be read"):
        quicklook(path, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.data
def test_on_a_real_orthophoto(data_root, tmp_path):
    folder = data_root / "ortho" / "tanzania"
    out = quicklook(
        folder / "ortho_a.tif", tmp_path / "out.png", folder / "buildings_a.tif", size=800
    )
    assert seen(out).shape[1] >= 800
