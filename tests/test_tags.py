from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from helpers import NORTH_UP, Listener, write_features, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal
from pyproj import CRS, Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Tiling
from rsseg.io.tag_sheet import class_fields, is_sheet
from rsseg.io.tags import (
    SceneTiles,
    advise,
    check,
    read_csv,
    read_sheet,
    read_tags,
    shares,
    split_blocks,
    tags_from_raster,
    tags_from_vectors,
    write_sheet,
)

UTM = CRS.from_epsg(32633).to_wkt()
LAEA = CRS.from_epsg(3035).to_wkt()
TRANSFORMS = {
    "north-up": NORTH_UP,
    "south-up": Affine(2, 0, 500_000, 0, 2, 4_999_000),
    "rotated": Affine(1.8, 0.9, 500_000, 0.9, -1.8, 5_000_000),
}
BUILDING = Classes.from_names(["building"])
LAND = Classes.from_names(["water", "forest", "field"])


def scene(name="a", shape=(64, 96), transform=NORTH_UP, crs=UTM, core=32, invalid=()):
    tiling = Tiling(shape, core, 0)
    valid = np.ones(tiling.counts, bool)
    for tile in invalid:
        valid[tile] = False
    return SceneTiles(name, Grid(shape, transform, crs), tiling, valid)


def chip(name, shape=(32, 32)):
    return scene(name, shape, Affine.identity(), None)


def in_pixels(scene_tiles, *bounds):
    """The box (left, top, right, bottom) in pixels of a scene, as a polygon on its map."""
    t = scene_tiles.grid.transform
    numbers = [t.a, t.b, t.d, t.e, t.c, t.f]
    return shapely.affinity.affine_transform(shapely.box(*bounds), numbers)


def random_tags(scenes, classes, seed=0):
    """Tags of foreground classes, a third of the tiles unlabelled, the background as it must be."""
    rng = np.random.default_rng(seed)
    tags = {}
    for one in scenes:
        values = rng.integers(-1, 2, (*one.tiling.counts, len(classes))).astype(np.int8)
        values[(rng.random(one.tiling.counts) < 1 / 3) | ~one.valid] = -1
        if classes.background is not None:
            others = np.delete(values, classes.background, axis=-1)
            values[..., classes.background] = np.where((others >= 0).any(-1), 1, -1)
        tags[one.name] = values
    return tags


def assert_tags_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_array_equal(found[name], expected[name], err_msg=name)
        assert found[name].dtype == np.int8


# --- the sheet -----------------------------------------------------------------------------------

SITES = {
    "one": [scene(invalid=[(0, 1)])],
    "two systems": [scene(), scene("b", (40, 70), Affine(2, 0, 4.6e6, 0, -2, 2.6e6), LAEA)],
    "rotated": [scene(transform=TRANSFORMS["rotated"])],
    "chips": [chip("p"), chip("q"), chip("r", (20, 30))],
    "degrees": [
        scene(transform=Affine(1e-5, 0, 15, 0, -1e-5, 45), crs=CRS.from_epsg(4326).to_wkt())
    ],
}
AWKWARD = Classes.from_names(
    ["bare soil", "bare_soil", "Row", "tile", "été/1", "Water", "water", "fid"]
)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("classes", [BUILDING, LAND, AWKWARD], ids=["one", "three", "awkward"])
def test_sheet_round_trip(tmp_path, site, classes):
    tags = random_tags(SITES[site], classes)
    path = tmp_path / "tags.gpkg"
    write_sheet(path, SITES[site], classes, tags)
    assert is_sheet(path)
    assert_tags_equal(read_sheet(path, SITES[site], classes), tags)
    assert_tags_equal(read_tags([path], SITES[site], classes), tags)


def test_fresh_sheet(tmp_path):
    one = scene(shape=(64, 90), invalid=[(0, 1)])
    path = tmp_path / "tags.gpkg"
    write_sheet(path, [one], LAND)
    info = pyogrio.read_info(path, layer="tags")
    assert list(info["fields"]) == ["tile", "scene", "row", "col", *LAND.names, "reviewed"]
    assert list(info["ogr_subtypes"])[4:] == ["OFSTBoolean"] * 4
    sheet = geopandas.read_file(path, layer="tags")
    assert sheet["tile"].tolist() == ["a/0/0", "a/0/2", "a/1/0", "a/1/1", "a/1/2"]
    assert not sheet[[*LAND.names, "reviewed"]].any(axis=None)
    assert sheet.area.sum() == pytest.approx((64 * 90 - 32 * 32) * 4)
    assert sheet.crs == CRS.from_wkt(UTM)
    assert (read_sheet(path, [one], LAND)["a"] == -1).all()


def test_chips_stand_in_a_row(tmp_path):
    path = tmp_path / "tags.gpkg"
    write_sheet(path, SITES["chips"], LAND)
    assert geopandas.read_file(path, layer="tags").bounds.to_numpy().tolist() == [
        [0, -32, 32, 0],
        [32, -32, 64, 0],
        [64, -20, 94, 0],
    ]


def test_class_fields_are_unique_and_valid():
    fields = class_fields(AWKWARD)
    assert fields == (
        "bare_soil_0", "bare_soil_1", "Row_2", "tile_3", "été_1", "Water_5", "water_6", "fid_7",
    )  # fmt: skip
    assert class_fields(Classes.from_names(["row", "row_0"])) == ("row_0_", "row_0")


def test_sheets_are_not_overwritten(tmp_path):
    path = tmp_path / "tags.gpkg"
    write_sheet(path, [scene()], LAND)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_sheet(path, [scene()], BUILDING)
    assert path.read_bytes() == before
    write_sheet(path, [scene()], BUILDING, overwrite=True)
    assert "building" in pyogrio.read_info(path, layer="tags")["fields"]
    (tmp_path / "tags.gpkg-wal").touch()
    with pytest.raises(InputError, match="open in another program"):
        write_sheet(path, [scene()], BUILDING, overwrite=True)
    assert not list(tmp_path.glob(".*"))


def edit(path, change):
    """Change a sheet as an editor would."""
    sheet = geopandas.read_file(path, layer="tags")
    change(sheet)
    sheet.to_file(path, layer="tags")


def test_reviewed_tiles_count_and_ticks_elsewhere_are_named(tmp_path):
    path, heard = tmp_path / "tags.gpkg", Listener()
    write_sheet(path, [scene()], BUILDING)

    def tick(sheet):
        sheet.loc[0, ["building", "reviewed"]] = True
        sheet.loc[1, "reviewed"] = True
        sheet.loc[2, "building"] = True

    edit(path, tick)
    tags = read_sheet(path, [scene()], BUILDING, heard)["a"]
    assert tags[0].tolist() == [[1, 1], [1, 0], [-1, -1]]
    assert (tags[1] == -1).all()
    assert len(heard.warnings) == 1
    assert "1 tiles have ticks" in heard.warnings[0]


def test_a_sheet_saved_elsewhere_still_fits(tmp_path):
    tags = random_tags([scene()], LAND)
    write_sheet(tmp_path / "tags.gpkg", [scene()], LAND, tags)
    sheet = geopandas.read_file(tmp_path / "tags.gpkg", layer="tags")
    sheet.iloc[::-1].to_crs(4326).to_file(tmp_path / "mine.geojson")
    assert_tags_equal(read_tags([tmp_path / "mine.geojson"], [scene()], LAND), tags)


@pytest.mark.parametrize(
    ("other", "classes", "message"),
    [
        (scene(core=16), BUILDING, "made for other tiles: 'a/0/0' lies elsewhere"),
        (scene("b"), BUILDING, "made for other tiles: the site has no tile 'a/0/0'"),
        (scene(transform=Affine(2, 0, 5e5 + 60, 0, -2, 5e6)), BUILDING, "made for other tiles"),
        (scene(), LAND, "made for other classes: it has no field 'water', .* building"),
    ],
)
def test_sheets_of_other_sites(tmp_path, other, classes, message):
    write_sheet(tmp_path / "tags.gpkg", [scene()], BUILDING)
    with pytest.raises(InputError, match=message):
        read_tags([tmp_path / "tags.gpkg"], [other], classes)


def test_a_tile_may_be_gone_but_not_twice(tmp_path):
    path = tmp_path / "tags.gpkg"
    write_sheet(path, [scene()], BUILDING, {"a": np.ones((2, 3, 2), np.int8)})
    sheet = geopandas.read_file(path, layer="tags")
    sheet.drop(index=0).to_file(path, layer="tags")
    assert (read_sheet(path, [scene()], BUILDING)["a"] == -1).all(-1).sum() == 1
    sheet.loc[0, "tile"] = "a/1/1"
    sheet.to_file(path, layer="tags")
    with pytest.raises(InputError, match="'a/1/1' is in the sheet twice"):
        read_sheet(path, [scene()], BUILDING)


def test_a_large_sheet_is_quick(tmp_path):
    large = scene(shape=(16 * 300, 16 * 300), core=16)
    begin = time.perf_counter()
    write_sheet(tmp_path / "tags.gpkg", [large], LAND)
    read_sheet(tmp_path / "tags.gpkg", [large], LAND)
    assert time.perf_counter() - begin < 30


def test_a_sheet_is_a_plain_geopackage(tmp_path):
    write_sheet(tmp_path / "tags.gpkg", [scene()], LAND)
    with sqlite3.connect(tmp_path / "tags.gpkg") as base:
        kinds = {row[1]: row[2] for row in base.execute("pragma table_info(tags)")}
    assert kinds["water"] == kinds["reviewed"] == "BOOLEAN"


def test_a_sheet_carries_its_style(tmp_path):
    classes = Classes.from_names(["bare soil", "other"])
    write_sheet(tmp_path / "tags.gpkg", [scene()], classes)
    assert pyogrio.list_layers(tmp_path / "tags.gpkg")[:, 0].tolist() == ["tags", "layer_styles"]
    with sqlite3.connect(tmp_path / "tags.gpkg") as base:
        query = "select f_table_name, useAsDefault, styleQML from layer_styles"
        ((layer, default, style),) = base.execute(query)
    assert (layer, default) == ("tags", 1)
    assert 'field="bare_soil" name="bare soil"' in style
    assert "other" not in style


@pytest.mark.parametrize("site", SITES)
def test_equal_sheets_have_equal_bytes(tmp_path, site):
    written = []
    for _ in range(2):
        write_sheet(tmp_path / "tags.gpkg", SITES[site], LAND, overwrite=True)
        written.append((tmp_path / "tags.gpkg").read_bytes())
    assert written[0] == written[1]


# --- CSV -----------------------------------------------------------------------------------------


def csv(folder, text):
    path = folder / "tags.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "tile,building\na/0/1,1\na/1/2,0\na/0/0,\n",
        "scene,row,col,building\na,0,1,yes\na.tif,1,2,no\na,0,0,\n",
        "image;row;col;note;Building\na.tif;0;1;x;TRUE\na;1;2;y;f\na;0;0;z;\n",
        "\ufefftile\tbuilding\tbackground\na/0/1\t1.0\t1\na/1/2\t0.0\t1\na/0/0\tNA\t\n",
        "tile,building,reviewed\na/0/1,1,true\na/1/2,0,true\na/0/0,0,false\n",
    ],
    ids=["tile", "scene", "image", "tabs", "reviewed"],
)
def test_csv_forms(tmp_path, text):
    tags = read_csv(csv(tmp_path, text), [scene()], BUILDING)["a"]
    expected = np.full((2, 3, 2), -1, np.int8)
    expected[0, 1] = 1, 1
    expected[1, 2] = 1, 0
    assert_array_equal(tags, expected)


def test_csv_of_chips(tmp_path):
    path = csv(
        tmp_path, "image,scene,water,forest,field\n0001.jpg,4,1,0,\n0003,3,,,\nx y,1,0,1,1\n"
    )
    tags = read_csv(path, [chip("0001"), chip("0003"), chip("x_y")], LAND)
    assert tags["0001"].tolist() == [[[1, 0, -1]]]
    assert tags["0003"].tolist() == [[[-1, -1, -1]]]
    assert tags["x_y"].tolist() == [[[0, 1, 1]]]


def test_csv_may_speak_of_the_background(tmp_path):
    path = csv(tmp_path, "tile,background,building\na/0/0,0,1\n")
    assert read_csv(path, [scene()], BUILDING)["a"][0, 0].tolist() == [0, 1]


def test_csv_with_the_fields_of_a_sheet(tmp_path):
    path = csv(tmp_path, "scene,row,col,row_0,x_y\na,1,2,1,0\n")
    tags = read_csv(path, [scene()], Classes.from_names(["row", "x y"]))
    assert tags["a"][1, 2].tolist() == [1, 0]


def test_csv_rows_of_other_scenes_are_counted(tmp_path):
    heard = Listener()
    path = csv(tmp_path, "tile,building\na/0/0,1\nz/0/0,1\nz/0/1,1\n")
    assert (read_csv(path, [scene()], BUILDING, heard)["a"] >= 0).sum() == 2
    assert ["2 of 3 rows are of other scenes" in w for w in heard.warnings] == [True]


def test_csv_cannot_tag_a_tile_without_pixels(tmp_path):
    path = csv(tmp_path, "tile,building\na/0/0,1\na/0/1,1\n")
    tags = read_csv(path, [scene(invalid=[(0, 1)])], BUILDING)["a"]
    assert tags[0].tolist() == [[1, 1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable CSV"),
        ("tile,building\n", "no rows"),
        ("tile,house\na/0/0,1\n", "no column for class 'building'; the columns are tile, house"),
        ("place,building\na,1\n", "a column 'tile', 'image' or 'scene' is needed"),
        ("tile,building\nz/0/0,1\n", r"none of its 1 rows is of a scene of this site \(a\)"),
        ("tile,building\na/0/0,1\na/0/0,0\n", "tile 'a/0/0' comes twice"),
        ("tile,building\na/2/0,1\n", "made for other tiles: row 2, column 0"),
        ("tile,building\na/0/0,maybe\n", "building='maybe' in row 1 is no tag"),
        ("scene,building\na,1\n", "give columns row and col"),
        ("tile,building\na/x/0,1\n", "row 'x' is not a tile's place"),
        ("tile,building\na,1\n", "row '' is not a tile's place"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_csv(csv(tmp_path, text), [scene()], BUILDING)


def test_missing_csv(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_tags([tmp_path / "x.csv"], [scene()], BUILDING)


# --- vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("crs", [None, 4326, 3857])
def test_presence_per_core(tmp_path, transform, crs):
    one = scene(transform=TRANSFORMS[transform])
    boxes = [in_pixels(one, 5, 5, 15, 15), in_pixels(one, 60, 30, 70, 36)]
    tags = tags_from_vectors(write_features(tmp_path / "v.gpkg", boxes, to=crs), [one], BUILDING)[
        "a"
    ]
    assert tags[..., 1].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert (tags[..., 0] == 1).all()


@pytest.mark.parametrize("crs", [None, 4326])
def test_a_shared_edge_is_no_overlap(tmp_path, crs):
    one = scene()
    path = write_features(tmp_path / "v.gpkg", [in_pixels(one, 32, 0, 64, 32)], to=crs)
    assert tags_from_vectors(path, [one], BUILDING)["a"][..., 1].tolist() == [[0, 1, 0], [0, 0, 0]]


def test_points_and_lines_count(tmp_path):
    one = scene()
    point = in_pixels(one, 4, 4, 6, 6).centroid
    border = shapely.Point(NORTH_UP.c + 64, NORTH_UP.f - 20)
    line = shapely.LineString(in_pixels(one, 70, 10, 80, 50).exterior.coords[:3])
    path = write_features(tmp_path / "v.gpkg", [point, line, border], name=["building"] * 3)
    found = tags_from_vectors(path, [one], BUILDING, "name", None, 1e9)["a"]
    assert found[..., 1].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("min_area", "expected"),
    [(0, [1, 1]), (119, [1, 1]), (121, [1, 0]), (203, [1, 0]), (205, [0, 0])],
)
def test_min_area_is_that_of_the_parts_inside_the_core(tmp_path, min_area, expected):
    one = scene(shape=(32, 64))
    # 50 + 1 pixels of 4 m² in the first core, 30 in the second
    boxes = [in_pixels(one, 22, 0, 38, 5), in_pixels(one, 0, 0, 1, 1)]
    path = write_features(tmp_path / "v.gpkg", boxes)
    found = tags_from_vectors(path, [one], BUILDING, min_area=min_area)["a"]
    assert found[0, :, 1].tolist() == expected


def test_min_area_is_on_the_ground_in_web_mercator(tmp_path):
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(15, 60)
    mercator = CRS.from_epsg(3857).to_wkt()
    one = scene(shape=(32, 32), transform=Affine(2, 0, x, 0, -2, y), crs=mercator)
    path = write_features(tmp_path / "v.gpkg", [in_pixels(one, 0, 0, 10, 10)], crs=mercator)
    # 400 map units², a quarter of that on the ground at 60° north
    for area, present in ((95, 1), (105, 0)):
        found = tags_from_vectors(path, [one], BUILDING, min_area=area)
        assert found["a"][0, 0].tolist() == [1, present]


def test_without_background_an_unmapped_tile_is_unlabelled(tmp_path):
    one = scene()
    path = write_features(tmp_path / "v.gpkg", [in_pixels(one, 0, 0, 40, 20)], kind=["forest"])
    tags = tags_from_vectors(path, [one], LAND, field="kind")["a"]
    assert tags[0].tolist() == [[0, 1, 0], [0, 1, 0], [-1, -1, -1]]
    assert (tags[1] == -1).all()


def test_scenes_without_features_stay_unlabelled(tmp_path):
    heard = Listener()
    scenes = [scene(), scene("b", transform=Affine(2, 0, 6e5, 0, -2, 5e6))]
    path = write_features(tmp_path / "v.gpkg", [in_pixels(scenes[0], 5, 5, 6, 6)])
    tags = read_tags([path], scenes, BUILDING, progress=heard)
    assert (tags["a"] >= 0).all()
    assert (tags["b"] == -1).all()
    assert ["no feature meets b" in w for w in heard.warnings] == [True]


def test_scenes_in_two_systems_share_one_file(tmp_path):
    scenes = SITES["two systems"]
    wide = shapely.union_all(
        [
            geopandas.GeoSeries([in_pixels(s, 0, 0, 20, 20)], crs=s.grid.crs).to_crs(4326)[0]
            for s in scenes
        ]
    )
    path = write_features(tmp_path / "v.geojson", [wide], crs="EPSG:4326")
    tags = tags_from_vectors(path, scenes, BUILDING)
    assert all((table[..., 1] == 1).sum() == 1 == table[0, 0, 1] for table in tags.values())


def test_features_elsewhere(tmp_path):
    path = write_features(tmp_path / "v.gpkg", [in_pixels(scene(), 500, 500, 510, 510)])
    with pytest.raises(InputError, match="none of its features meets a raster"):
        read_tags([path], [scene()], BUILDING)


def test_many_features_and_tiles_are_quick(tmp_path):
    large = scene(shape=(16 * 300, 16 * 300), core=16)
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 4790, (50_000, 2))
    boxes = shapely.box(
        *(corner.T * 2 + [[5e5], [5e6 - 9600]]), *(corner.T * 2 + [[5e5 + 9], [5e6 - 9590]])
    )
    path = tmp_path / "v.fgb"
    pyogrio.write_dataframe(geopandas.GeoDataFrame(geometry=boxes, crs=UTM), path)
    begin = time.perf_counter()
    tags_from_vectors(path, [large], BUILDING, min_area=5)
    assert time.perf_counter() - begin < 30


# --- class rasters -------------------------------------------------------------------------------


def test_shares_of_the_classified_pixels(tmp_path):
    ids = np.full((64, 96), 255, np.uint8)
    ids[:32, :32] = 0
    ids[0, :5] = 1  # 0.5 %
    ids[:20, 32:64] = 1  # more than half classified
    ids[:10, 64:] = 2  # less than half
    path = write_raster(tmp_path / "c.tif", ids)
    tags = tags_from_raster(path, [scene()], LAND)["a"]
    assert tags[0].tolist() == [[1, 0, 0], [0, 1, 0], [-1, -1, 1]]
    assert (tags[1] == -1).all()
    low = tags_from_raster(path, [scene()], LAND, min_share=0.001)["a"]
    assert low[0, 0].tolist() == [1, 1, 0]


def test_class_ids_are_the_users(tmp_path):
    classes = Classes(("a", "b"), (200, 7), ((0, 0, 0), (1, 1, 1)))
    path = write_raster(tmp_path / "c.tif", np.full((64, 96), 7, np.uint8))
    assert (tags_from_raster(path, [scene()], classes)["a"] == [0, 1]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_coarse_rasters_in_another_system(tmp_path, dtype, transform):
    one = scene(transform=TRANSFORMS[transform])
    left, bottom, right, top = (
        geopandas.GeoSeries([in_pixels(one, 0, 0, 96, 64)], crs=UTM).to_crs(LAEA).total_bounds
    )
    there = Affine(10, 0, left - 100, 0, -10, top + 100)
    size = int((top - bottom) // 10 + 20), int((right - left) // 10 + 20)
    path = write_raster(tmp_path / "c.tif", np.ones(size, dtype), there, LAEA)
    assert (tags_from_raster(path, [one], LAND)["a"] == [0, 1, 0]).all()


def test_beyond_the_raster_nothing_is_class_0(tmp_path):
    half = write_raster(tmp_path / "c.tif", np.zeros((64, 20), np.int16))
    tags = tags_from_raster(half, [scene()], LAND)["a"]
    assert (tags[:, 0] == [1, 0, 0]).all()
    assert (tags[:, 1:] == -1).all()


def test_nodata_is_not_classified(tmp_path):
    ids = np.zeros((64, 96), np.uint8)
    ids[:32, :32] = 1
    path = write_raster(tmp_path / "c.tif", ids, nodata=0)
    tags = tags_from_raster(path, [scene()], LAND)["a"]
    assert tags[0, 0].tolist() == [0, 1, 0]
    assert (tags >= 0).any(-1).sum() == 1


def test_rasters_side_by_side(tmp_path):
    left = write_raster(tmp_path / "l.tif", np.zeros((64, 48), np.uint8))
    right = write_raster(
        tmp_path / "r.tif", np.ones((64, 48), np.uint8), Affine(2, 0, 500_096, 0, -2, 5e6)
    )
    tags = tags_from_raster([left, right], [scene()], LAND)["a"]
    assert tags[0].tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_chips_find_their_mask_by_name(tmp_path, recwarn):
    for number, name in enumerate("pq"):
        write_raster(
            tmp_path / f"{name}.tif", np.full((32, 32), number, np.uint8), Affine.identity(), None
        )
    paths = [tmp_path / "p.tif", tmp_path / "q.tif"]
    recwarn.clear()
    tags = read_tags(paths, [chip("p"), chip("q")], LAND)
    assert tags["p"].tolist() == [[[1, 0, 0]]]
    assert tags["q"].tolist() == [[[0, 1, 0]]]
    assert not [w for w in recwarn if issubclass(w.category, NotGeoreferencedWarning)]


def test_rasters_without_crs_on_one_map(tmp_path):
    path = write_raster(
        tmp_path / "c.tif", np.ones((16, 24), np.uint8), Affine(8, 0, 5e5, 0, -8, 5e6), None
    )
    for crs in (None, UTM):
        assert (tags_from_raster(path, [scene(crs=crs)], LAND)["a"] == [0, 1, 0]).all()


def test_bad_class_rasters(tmp_path):
    ids = np.full((64, 96), 9, np.uint8)
    far = Affine(2, 0, 0, 0, -2, 0)
    for name, message, pixels, transform in (
        ("ids.tif", "no pixel on the site has a class id .*its values are 9", ids, NORTH_UP),
        ("bands.tif", "has 3 bands", np.stack([ids] * 3), NORTH_UP),
        ("far.tif", "lies on none of the site's scenes", ids, far),
    ):
        path = write_raster(tmp_path / name, pixels, transform)
        with pytest.raises(InputError, match=message):
            read_tags([path], [scene()], LAND)
    (tmp_path / "x.tif").write_text("no raster")
    with pytest.raises(InputError, match="not a raster that GDAL can read"):
        read_tags([tmp_path / "x.tif"], [scene()], LAND)


def test_truncated_class_raster(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (64, 96)).astype(np.uint8)
    path = write_raster(tmp_path / "c.tif", noise)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"truncated|cannot be read"):
        read_tags([path], [scene()], LAND)


@settings(max_examples=25, deadline=None)
@given(
    cells=arrays(np.uint8, (8, 12), elements=st.integers(0, 2)), core=st.sampled_from([16, 32, 48])
)
def test_polygons_and_their_raster_say_the_same(tmp_path_factory, cells, core):
    folder = tmp_path_factory.mktemp("same")
    ids = np.kron(cells, np.ones((8, 8), np.uint8))
    one = scene(core=core)
    outlines = [(shapely.geometry.shape(s), int(v)) for s, v in shapes(ids, transform=NORTH_UP)]
    polygons, kinds = zip(*outlines, strict=True)
    vectors = write_features(folder / "v.gpkg", list(polygons), kind=list(kinds))
    raster = write_raster(folder / "c.tif", ids)
    expected = tags_from_raster(raster, [one], LAND, min_share=0)
    assert_tags_equal(tags_from_vectors(vectors, [one], LAND, field="kind"), expected)


# --- several sources, and judging ----------------------------------------------------------------


def test_later_sources_fill_what_is_unknown(tmp_path):
    first = csv(tmp_path, "tile,water,forest,field\na/0/0,1,,0\n")
    ids = np.zeros((64, 96), np.uint8)
    ids[:, :32] = 1
    second = write_raster(tmp_path / "c.tif", ids)
    tags = read_tags([first, second], [scene()], LAND)["a"]
    assert tags[0].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_tiles_without_pixels_are_never_tagged(tmp_path):
    one = scene(invalid=[(1, 1)])
    vectors = write_features(tmp_path / "v.gpkg", [in_pixels(one, 0, 0, 96, 64)])
    raster = write_raster(tmp_path / "c.tif", np.ones((64, 96), np.uint8))
    for path in (vectors, raster):
        tags = read_tags([path], [one], BUILDING)["a"]
        assert_array_equal((tags == -1).all(-1), ~one.valid)


def table(values):
    return {"a": np.asarray(values, np.int8)}


def test_shares_and_check():
    tags = table([[[1, 0], [1, 1], [-1, -1]]])
    assert shares(tags, BUILDING) == [(2, 2), (1, 2)]
    check(tags, BUILDING)
    with pytest.raises(InputError, match="no tile has a tag"):
        check(table(np.full((2, 2, 2), -1)), BUILDING)
    with pytest.raises(InputError, match="no tile is tagged with 'building'"):
        check(table([[[1, 0]]]), BUILDING)
    with pytest.raises(InputError, match="'water', 'field'"):
        check(table([[[0, 1, 0]]]), LAND)


def blobs(share, clump, seed=0, side=48):
    rng = np.random.default_rng(seed)
    present = np.kron(rng.random((side // clump,) * 2) < share, np.ones((clump, clump), bool))
    return np.stack([np.ones_like(present), present], -1).astype(np.int8)


def advice(values, core=128):
    one = scene(shape=(core * values.shape[0], core * values.shape[1]), core=core)
    return advise({"a": values}, [one], BUILDING, core)


def test_advice_where_nothing_can_be_learnt():
    assert advice(blobs(0.3, 2)) == []
    (common,) = advice(blobs(0.95, 1))
    assert "'building' is in 9" in common
    assert "try --size 64" in common
    (rare,) = advice(blobs(0.01, 1))
    assert "hardly any" in rare
    assert "try --size 256" in rare
    (everywhere,) = advice(np.ones((20, 20, 2), np.int8))
    assert "100.0%" in everywhere
    (smallest,) = advice(blobs(0.95, 1), core=16)
    assert "no other tile size" in smallest


def test_split_is_by_blocks_and_keeps_every_class():
    rng = np.random.default_rng(1)
    scenes = [scene(shape=(640, 640)), scene("b", (320, 320))]
    tags = {s.name: (rng.random((*s.tiling.counts, 3)) < 0.2).astype(np.int8) for s in scenes}
    tags["a"][..., 2] = 0
    tags["b"][..., 2] = 0
    tags["b"][3, 3, 2] = 1
    held = split_blocks(scenes, tags)
    total = sum(mask.sum() for mask in held.values())
    assert total == pytest.approx(0.2 * 500, abs=8)
    assert not held["b"][3, 3]
    for mask in held.values():
        for row, col in np.ndindex(-(-mask.shape[0] // 4), -(-mask.shape[1] // 4)):
            block = mask[row * 4 : row * 4 + 4, col * 4 : col * 4 + 4]
            assert block.all() or not block.any()
    again = split_blocks(scenes, tags)
    assert all(np.array_equal(held[name], again[name]) for name in held)
    other = split_blocks(scenes, tags, seed=1)
    assert any((held[name] != other[name]).any() for name in held)


def test_split_of_chips_and_of_little():
    chips = [chip(f"c{i}") for i in range(50)]
    tags = {c.name: np.full((1, 1, 3), 1, np.int8) for c in chips}
    assert sum(mask.sum() for mask in split_blocks(chips, tags).values()) == 10
    one = scene(shape=(160, 224))
    ones = {"a": np.ones((5, 7, 2), np.int8)}
    assert 4 <= split_blocks([one], ones)["a"].sum() <= 10
    single = scene(shape=(20, 20))
    assert not split_blocks([single], {"a": np.ones((1, 1, 2), np.int8)})["a"].any()
    assert not split_blocks([one], ones, val_share=0)["a"].any()


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(
        np.int8,
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
        elements=st.integers(-1, 1),
    ),
    share=st.floats(0, 0.9),
    block=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_split_always_leaves_enough_to_learn_from(values, share, block, seed):
    one = scene(shape=(32 * values.shape[0], 32 * values.shape[1]))
    held = split_blocks([one], {"a": values}, share, block, seed)["a"]
    tagged = (values >= 0).any(-1)
    assert (tagged & ~held).any() or not tagged.any()
    for index in range(3):
        positive = values[..., index] == 1
        assert (positive & ~held).any() or not positive.any()


# --- real data -----------------------------------------------------------------------------------


def scene_of(path: Path, core: int) -> SceneTiles:
    with rasterio.open(path) as source:
        grid = Grid(source.shape, source.transform, source.crs.to_wkt())
    tiling = Tiling(grid.shape, core, 0)
    return SceneTiles(path.stem, grid, tiling, np.ones(tiling.counts, bool))


@pytest.mark.data
def test_tanzania_polygons_and_mask_agree(data_root):
    folder = data_root / "ortho" / "tanzania"
    one = scene_of(folder / "ortho_a.tif", 256)
    vectors = read_tags([folder / "buildings.geojson"], [one], BUILDING)["ortho_a"]
    raster = read_tags([folder / "buildings_a.tif"], [one], BUILDING, min_share=0)["ortho_a"]
    assert vectors.shape == (16, 32, 2)
    assert (vectors == raster).mean() > 0.99
    assert 0.25 < (vectors[..., 1] == 1).mean() < 0.42


@pytest.mark.data
def test_amsterdam_polygons_tag_both_sides(data_root):
    folder = data_root / "ortho" / "amsterdam"
    one = scene_of(folder / "test_image_1210x718.tif", 96)
    tags = {}
    for sign in ("positive", "negative"):
        path = folder / f"test_image_labels_{sign}_1210x718.gpkg"
        tags[sign] = tags_from_vectors(path, [one], BUILDING)[one.name][..., 1] == 1
    assert all(0 < table.mean() < 1 for table in tags.values())
    assert (tags["positive"] != tags["negative"]).any()


@pytest.mark.data
def test_dubai_large_tiles_contain_everything(data_root):
    names = ["building", "land", "road", "vegetation", "water"]
    classes = Classes.from_names(names)
    path = data_root / "dubai" / "scene1_classes.tif"
    counts = {}
    for core in (512, 128):
        one = scene_of(path, core)
        tags = tags_from_raster(path, [one], classes)
        counts[core] = len(advise(tags, [one], classes, core))
    assert counts[128] < counts[512]
