import csv
import json
import math

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from helpers import NORTH_UP, UTM, Listener, write_features, write_raster
from rasterio.enums import Resampling
from rasterio.warp import calculate_default_transform, reproject

from rsseg.api import evaluate
from rsseg.classes import Classes
from rsseg.errors import InputError, RunError
from rsseg.io.mapfile import CLASSES_TAG

LAND = Classes.from_names(["water", "field", "wood"])
ROOFS = Classes.from_names(["building"])


def pixel_box(row, col, height, width, transform=NORTH_UP):
    """The outline of a block of pixels in map coordinates."""
    left, top = transform @ (col, row)
    right, bottom = transform @ (col + width, row + height)
    return shapely.box(left, bottom, right, top)


def ids(seed=0, shape=(30, 40), count=3):
    return np.random.default_rng(seed).integers(0, count, shape, dtype=np.uint8)


@pytest.fixture
def small(tmp_path):
    """A map and a truth of 2 x 4 pixels, worked out by hand."""
    mapped = [[0, 0, 1, 255], [1, 1, 2, 2]]
    truth = [[0, 1, 1, 1], [1, 1, 2, 255]]
    return (
        write_raster(tmp_path / "map.tif", np.uint8(mapped), classes=LAND, nodata=255),
        write_raster(tmp_path / "truth.tif", np.uint8(truth), nodata=255),
    )


def test_numbers_by_hand(small):
    found = evaluate(*small)
    assert found.classes == LAND
    assert found.matrix.tolist() == [[1, 0, 0, 0], [1, 3, 0, 1], [0, 0, 1, 0]]
    assert (found.compared, found.unpredicted) == (7, 1)
    assert found.scores.iou == pytest.approx([1 / 2, 3 / 5, 1])
    assert found.scores.precision == pytest.approx([1 / 2, 1, 1])
    assert found.scores.recall == pytest.approx([1, 3 / 5, 1])
    assert found.scores.f1 == pytest.approx([2 / 3, 3 / 4, 1])
    assert found.scores.miou == pytest.approx(0.7)
    assert found.scores.mf1 == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)
    assert found.scores.oa == pytest.approx(5 / 7)


def test_rows_end_with_the_means(small):
    rows = evaluate(*small).rows()
    assert [row.name for row in rows] == ["water", "field", "wood", "mIoU", "mF", "OA", "mBIoU"]
    assert [row.pixels for row in rows] == [1, 5, 1, 7, 7, 7, 7]
    assert rows[1].share == pytest.approx(5 / 7)
    assert rows[3].iou == pytest.approx(0.7)
    assert rows[4].f1 == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)
    assert rows[5].recall == pytest.approx(5 / 7)
    assert rows[3].f1 is rows[4].iou is rows[5].precision is rows[6].iou is None


def test_boundary_iou_by_hand(tmp_path):
    # The edge of the wood lies one column further right in the map; bands are one pixel wide.
    drawn = [np.repeat(np.uint8([[0] * n + [2] * (10 - n)]), 6, axis=0) for n in (5, 4)]
    mapped = write_raster(tmp_path / "map.tif", drawn[0], classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", drawn[1])
    found = evaluate(mapped, truth, boundary=1)
    # Bands of "water" are column 4 and column 3, those of "wood" 5 and 4: nothing in common.
    assert found.boundary.tolist() == [[0, 0, 0], [6, 0, 6], [6, 0, 6]]
    # Two pixels wide, one of three columns is common to both.
    found = evaluate(mapped, truth, boundary=2)
    assert found.boundary_iou[0][[0, 2]] == pytest.approx([1 / 3, 1 / 3])
    assert found.rows()[-1].boundary_iou == pytest.approx(1 / 3)
    assert found.rows()[1].boundary_iou is None
    assert found.to_dict()["mean_boundary_iou"] == pytest.approx(1 / 3)
    assert found.to_dict()["boundary_width_pixels"] == 2
    assert found.to_dict()["classes"][2]["boundary_iou"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("width", [0, -1, 257])
def test_boundary_out_of_range(small, width):
    with pytest.raises(InputError, match=f"--boundary {width}: give 1 to 256 pixels"):
        evaluate(*small, boundary=width)


def test_json_and_csv(small, tmp_path):
    found = evaluate(*small)
    found.write_json(tmp_path / "scores.json")
    found.write_csv(tmp_path / "scores.csv")
    read = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert read == found.to_dict()
    assert read["miou"] == pytest.approx(0.7)
    assert read["classes"][1]["name"] == "field"
    assert read["confusion"]["pixels"] == found.matrix.tolist()
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][3:] == ["mIoU", "mF", "OA", "mBIoU"]
    assert rows[0].keys() >= {"iou", "boundary_iou", "pixels"}
    assert float(rows[0]["iou"]) == pytest.approx(0.5)
    assert rows[5]["iou"] == ""


def test_outputs_are_not_overwritten_unasked(small, tmp_path):
    found = evaluate(*small)
    path = tmp_path / "scores.json"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        found.write_json(path)
    assert path.read_text() == "mine"
    found.write_json(path, overwrite=True)
    assert json.loads(path.read_text())["compared_pixels"] == 7


def test_undefined_scores_become_null(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", np.uint8([[0, 1]]), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", np.uint8([[0, 1]]))
    found = evaluate(mapped, truth)
    assert math.isnan(found.scores.iou[2])
    assert found.to_dict()["classes"][2]["iou"] is None
    assert found.rows()[2].f1 is None
    assert found.scores.miou == 1


@pytest.mark.parametrize("block", [16, 23])
def test_blocks_add_up_to_the_whole(tmp_path, monkeypatch, block):
    def drawn(seed):  # squares of 10 pixels, some of them of an id that is no class
        return ids(seed, (5, 7), 4).repeat(10, axis=0).repeat(10, axis=1)

    mapped = write_raster(tmp_path / "map.tif", drawn(1), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", drawn(2))
    told, told_whole = Listener(), Listener()
    whole = evaluate(mapped, truth, boundary=3, progress=told_whole)
    monkeypatch.setattr("rsseg.io.map_classes.BLOCK", block)
    found = evaluate(mapped, truth, boundary=3, progress=told)
    assert np.array_equal(found.matrix, whole.matrix)
    assert np.array_equal(found.boundary, whole.boundary)
    assert np.array_equal(found.preview.map, whole.preview.map)
    assert np.array_equal(found.preview.truth, whole.preview.truth)
    assert told.warnings == told_whole.warnings
    assert len(told.warnings) == 2


def test_the_preview_is_a_sample_of_map_and_truth(tmp_path, monkeypatch):
    monkeypatch.setattr("rsseg.api.evaluation.PREVIEW_SIDE", 20)
    mapped = write_raster(tmp_path / "map.tif", ids(1, (60, 80)), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", ids(2, (60, 80)))
    grid, seen, true = evaluate(mapped, truth).preview
    assert grid.shape == seen.shape == true.shape == (15, 20)
    assert np.array_equal(seen, ids(1, (60, 80))[2::4, 2::4])
    assert np.array_equal(true, ids(2, (60, 80))[2::4, 2::4])


def test_the_preview_of_a_south_up_map_has_north_up(tmp_path):
    south_up = NORTH_UP @ Affine.translation(0, 30) @ Affine.scale(1, -1)
    mapped = write_raster(tmp_path / "map.tif", ids(), transform=south_up, classes=LAND)
    found = evaluate(mapped, mapped)
    assert np.array_equal(found.preview.map, ids()[::-1])


# --- Grids --------------------------------------------------------------------------------------


def test_finer_truth_is_resampled_to_the_nearest_pixel(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    finer = ids().repeat(3, axis=0).repeat(3, axis=1)
    truth = write_raster(tmp_path / "truth.tif", finer, transform=NORTH_UP @ Affine.scale(1 / 3))
    found = evaluate(mapped, truth)
    assert found.scores.oa == 1
    assert found.compared == 30 * 40


@pytest.mark.parametrize("nodata", [None, 0])
def test_shifted_truth_counts_where_both_lie(tmp_path, nodata):
    mapped = write_raster(tmp_path / "map.tif", ids() + 1, classes=None)
    shifted = NORTH_UP @ Affine.translation(10, 5)
    truth = write_raster(
        tmp_path / "truth.tif", (ids() + 1)[5:, 10:], transform=shifted, nodata=nodata
    )
    found = evaluate(mapped, truth)
    assert found.compared == 25 * 30
    assert found.scores.oa == 1
    assert found.classes.ids == (1, 2, 3)


def test_id_0_does_not_spread_beyond_a_truth_without_nodata(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", np.zeros((20, 20), np.uint8), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", np.ones((20, 10), np.uint8), transform=NORTH_UP)
    found = evaluate(mapped, truth)
    assert found.matrix.sum(axis=1).tolist() == [0, 200, 0]


def test_south_up_truth(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    south_up = NORTH_UP @ Affine.translation(0, 30) @ Affine.scale(1, -1)
    truth = write_raster(tmp_path / "truth.tif", ids()[::-1], transform=south_up)
    assert evaluate(mapped, truth).scores.oa == 1


def test_truth_in_another_crs(tmp_path):
    blocky = ids(shape=(6, 8)).repeat(10, axis=0).repeat(10, axis=1)
    mapped = write_raster(tmp_path / "map.tif", blocky, classes=LAND)
    bounds = rasterio.transform.array_bounds(60, 80, NORTH_UP)
    transform, width, height = calculate_default_transform(UTM, "EPSG:4326", 80, 60, *bounds)
    finer = transform @ Affine.scale(1 / 4)
    warped = np.full((4 * height, 4 * width), 255, np.uint8)
    reproject(
        blocky,
        warped,
        src_transform=NORTH_UP,
        src_crs=UTM,
        dst_transform=finer,
        dst_crs="EPSG:4326",
        dst_nodata=255,
        resampling=Resampling.nearest,
    )
    truth = write_raster(tmp_path / "t.tif", warped, transform=finer, crs="EPSG:4326", nodata=255)
    found = evaluate(mapped, truth)
    assert found.compared > 0.97 * 60 * 80
    assert found.scores.oa > 0.97


@pytest.mark.parametrize("shift", [0, 1])
def test_alpha_of_the_truth_leaves_pixels_out(tmp_path, shift):
    mapped = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:, :20] = 255
    transform = NORTH_UP @ Affine.translation(shift, 0)
    bands = np.stack([np.roll(ids(), -shift, axis=1), alpha])
    truth = write_raster(tmp_path / "truth.tif", bands, transform=transform, alpha="yes")
    found = evaluate(mapped, truth)
    assert found.compared == 30 * 20
    assert found.scores.oa == 1


def test_without_any_georeference_pixels_meet_pixels(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids(), transform=None, crs=None, classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", ids(), transform=None, crs=None)
    listener = Listener()
    assert evaluate(mapped, truth, progress=listener).scores.oa == 1
    assert listener.warnings == []


def test_without_crs_but_with_a_place_grids_are_respected(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids(), crs=None, classes=LAND)
    shifted = NORTH_UP @ Affine.translation(10, 5)
    truth = write_raster(tmp_path / "truth.tif", ids()[5:, 10:], transform=shifted, crs=None)
    found = evaluate(mapped, truth)
    assert (found.compared, found.scores.oa) == (25 * 30, 1)


@pytest.mark.parametrize("bare", ["map.tif", "truth.tif"])
def test_crs_on_one_side_only_needs_the_same_shape(tmp_path, bare):
    for name in ("map.tif", "truth.tif"):
        place = {"transform": None, "crs": None} if name == bare else {}
        write_raster(tmp_path / name, ids(), classes=LAND, **place)
    listener = Listener()
    assert evaluate(tmp_path / "map.tif", tmp_path / "truth.tif", progress=listener).scores.oa == 1
    assert len(listener.warnings) == 1
    assert f"{bare}: has no CRS" in listener.warnings[0]


@pytest.mark.parametrize("bare", ["map.tif", "truth.tif"])
def test_a_transform_without_crs_is_taken_to_be_in_the_others(tmp_path, bare):
    shifted = NORTH_UP @ Affine.translation(10, 5)
    places = {"map.tif": (ids(), NORTH_UP), "truth.tif": (ids()[5:, 10:], shifted)}
    for name, (values, transform) in places.items():
        crs = None if name == bare else UTM
        write_raster(tmp_path / name, values, transform, crs, classes=LAND)
    listener = Listener()
    found = evaluate(tmp_path / "map.tif", tmp_path / "truth.tif", progress=listener)
    assert (found.compared, found.scores.oa) == (25 * 30, 1)
    assert len(listener.warnings) == 1
    assert f"{bare}: has no CRS, so it is taken to be in the other's" in listener.warnings[0]


@pytest.mark.parametrize("bare", ["map.tif", "truth.tif"])
def test_crs_on_one_side_only_and_another_shape_is_refused(tmp_path, bare):
    for name, shape in (("map.tif", (30, 40)), ("truth.tif", (20, 40))):
        place = {"transform": None, "crs": None} if name == bare else {}
        write_raster(tmp_path / name, ids(shape=shape), classes=LAND, **place)
    with pytest.raises(InputError, match=f"{bare}: has no CRS.*40 x 20.*40 x 30"):
        evaluate(tmp_path / "map.tif", tmp_path / "truth.tif")


# --- Classes ------------------------------------------------------------------------------------


def test_given_classes_win_and_a_difference_is_told(small):
    other = Classes.from_names(["water", "wood", "field"])
    listener = Listener()
    assert evaluate(*small, classes=other, progress=listener).classes == other
    assert "its own classes are 0 water, 1 field, 2 wood" in listener.warnings[0]


def test_classes_of_a_foreign_map_are_the_ids_of_map_and_truth(tmp_path):
    colours = {1: (10, 20, 30, 255), 7: (1, 2, 3, 255)}
    mapped = write_raster(tmp_path / "map.tif", np.uint8([[1, 7, 255]]), table=colours)
    truth = write_raster(tmp_path / "truth.tif", np.float32([[1, 9, np.nan]]))
    found = evaluate(mapped, truth)
    assert found.classes.names == ("1", "7", "9")
    assert found.classes.ids == (1, 7, 9)
    assert found.classes.colours[:2] == ((10, 20, 30), (1, 2, 3))
    assert found.matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_ids_are_told_apart_from_indices(tmp_path):
    classes = Classes.from_dict({"classes": [{"name": "a", "id": 40}, {"name": "b", "id": 10}]})
    mapped = write_raster(tmp_path / "map.tif", np.uint8([[40, 10, 10]]), classes=classes)
    truth = write_raster(tmp_path / "truth.tif", np.int16([[40, 40, 10]]))
    assert evaluate(mapped, truth).matrix.tolist() == [[1, 1, 0], [0, 1, 0]]


def test_strange_ids_are_counted_in_one_warning_per_file(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", np.uint8([[0, 1, 9, 2]]), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", np.int16([[0, 77, 1, -5]]))
    listener = Listener()
    found = evaluate(mapped, truth, progress=listener)
    assert found.matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert len(listener.warnings) == 2
    assert "map.tif: 1 pixels with ids that are no class (9)" in listener.warnings[0]
    assert "truth.tif: 2 pixels with ids that are no class (-5, 77)" in listener.warnings[1]


def test_255_is_no_class_even_where_nodata_is_not_set(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", np.uint8([[0, 255, 1]]), classes=LAND)
    truth = write_raster(tmp_path / "truth.tif", np.uint8([[0, 1, 255]]))
    listener = Listener()
    found = evaluate(mapped, truth, progress=listener)
    assert (found.compared, found.unpredicted) == (2, 1)
    assert listener.warnings == []


# --- Polygons -----------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_pixels_outside_polygons_are_background(tmp_path, crs):
    mapped = np.zeros((10, 10), np.uint8)
    mapped[2:6, 2:6] = 1
    write_raster(tmp_path / "map.tif", mapped, classes=ROOFS)
    roof = geopandas.GeoSeries([pixel_box(2, 2, 4, 3)], crs=UTM).to_crs(crs)
    truth = write_features(tmp_path / "roofs.gpkg", roof, crs)
    found = evaluate(tmp_path / "map.tif", truth)
    assert found.classes.names == ("background", "building")
    assert found.matrix.tolist() == [[84, 4, 0], [0, 12, 0]]


def test_no_background_is_assumed_where_there_is_no_map(tmp_path):
    mapped = np.zeros((10, 10), np.uint8)
    mapped[:, 5:] = 255
    write_raster(tmp_path / "map.tif", mapped, classes=ROOFS, nodata=255)
    truth = write_features(tmp_path / "roofs.gpkg", [pixel_box(0, 4, 1, 2)])
    assert evaluate(tmp_path / "map.tif", truth).matrix.tolist() == [[49, 0, 0], [1, 0, 1]]


def test_without_background_only_polygons_are_compared(tmp_path):
    write_raster(tmp_path / "map.tif", np.full((10, 10), 2, np.uint8), classes=LAND)
    boxes = [pixel_box(0, 0, 5, 2), pixel_box(5, 5, 2, 2)]
    truth = write_features(tmp_path / "t.gpkg", boxes, kind=["wood", "water"])
    found = evaluate(tmp_path / "map.tif", truth, field="kind")
    assert found.matrix.tolist() == [[0, 0, 4, 0], [0, 0, 0, 0], [0, 0, 10, 0]]


def test_polygons_of_one_class(tmp_path):
    write_raster(tmp_path / "map.tif", np.full((10, 10), 2, np.uint8), classes=LAND)
    truth = write_features(tmp_path / "t.gpkg", [pixel_box(0, 0, 5, 2)])
    assert evaluate(tmp_path / "map.tif", truth, only="field").matrix[1].tolist() == [0, 0, 10, 0]


def test_polygons_and_a_map_without_crs_share_coordinates(tmp_path):
    write_raster(tmp_path / "map.tif", np.ones((10, 10), np.uint8), classes=ROOFS, crs=None)
    truth = write_features(tmp_path / "t.gpkg", [pixel_box(0, 0, 5, 2)], crs=None)
    listener = Listener()
    assert evaluate(tmp_path / "map.tif", truth, progress=listener).matrix[1, 1] == 10
    assert "has no CRS" in listener.warnings[0]


# --- Bad input ----------------------------------------------------------------------------------


def far_away(tmp_path):
    elsewhere = NORTH_UP @ Affine.translation(1000, 0)
    return write_raster(tmp_path / "truth.tif", ids(), transform=elsewhere), {}


def far_away_polygons(tmp_path):
    return write_features(tmp_path / "t.gpkg", [pixel_box(900, 0, 5, 5)]), {"only": "wood"}


def picture(tmp_path):
    return write_raster(tmp_path / "truth.tif", np.stack([ids(), ids(), ids()])), {}


def all_nodata(tmp_path):
    return write_raster(tmp_path / "truth.tif", np.full((30, 40), 255, np.uint8)), {}


def missing(tmp_path):
    return tmp_path / "nothing.tif", {}


def text(tmp_path):
    (tmp_path / "truth.txt").write_text("hello")
    return tmp_path / "truth.txt", {}


def points(tmp_path):
    point = shapely.Point(NORTH_UP @ (3, 3))
    return write_features(tmp_path / "t.gpkg", [point]), {"only": "wood"}


def undecided(tmp_path):
    return write_features(tmp_path / "t.gpkg", [pixel_box(0, 0, 5, 2)]), {}


def another_planet(tmp_path):
    moon = "+proj=longlat +a=1737400 +b=1737400 +no_defs"
    return write_raster(tmp_path / "truth.tif", ids(), crs=moon), {}


def local_crs(tmp_path):
    return write_raster(tmp_path / "truth.tif", ids(), crs='LOCAL_CS["site",UNIT["metre",1]]'), {}


def field_for_a_raster(tmp_path):
    return write_raster(tmp_path / "truth.tif", ids()), {"field": "kind"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (far_away, "does not overlap"),
        (far_away_polygons, "does not overlap"),
        (picture, "has 3 bands"),
        (all_nodata, "no class anywhere"),
        (missing, "no such file"),
        (text, "not a raster"),
        (local_crs, "cannot be brought into the CRS"),
        (another_planet, "cannot be brought into the CRS"),
        (points, "no polygons"),
        (undecided, "--field NAME"),
        (field_for_a_raster, "--field is for polygons"),
    ],
)
def test_a_truth_that_does_not_serve_is_refused_in_one_line(tmp_path, make, message):
    mapped = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    truth, options = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        evaluate(mapped, truth, **options)
    assert "\n" not in str(caught.value)


def test_polygons_need_a_map_with_a_place(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids(), transform=None, crs=None, classes=ROOFS)
    truth = write_features(tmp_path / "t.gpkg", [pixel_box(0, 0, 5, 2)])
    with pytest.raises(InputError, match="has no georeference"):
        evaluate(mapped, truth)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0.25, 0.5]]), r"0\.25 is no class id"),
        (np.int16([[-1, 3]]), "-1 is no class id"),
        (np.uint16([[0, 1000]]), "1000 is no class id"),
        (np.uint8([[4, 4]]), "only the id 4 occurs"),
        (np.uint8([[255, 255]]), "no id occurs"),
    ],
)
def test_a_map_without_classes_must_hold_ids(tmp_path, values, message):
    mapped = write_raster(tmp_path / "map.tif", values)
    with pytest.raises(InputError, match=message):
        evaluate(mapped, write_raster(tmp_path / "truth.tif", values))


def test_damaged_classes_tag_is_named(tmp_path):
    mapped = write_raster(tmp_path / "map.tif", ids())
    with rasterio.open(mapped, "r+") as target:
        target.update_tags(**{CLASSES_TAG: "{oops"})
    with pytest.raises(InputError, match="tag RSSEG_CLASSES is damaged"):
        evaluate(mapped, write_raster(tmp_path / "truth.tif", ids()))


@pytest.mark.parametrize("shift", [0, 1])
def test_damage_inside_a_file_ends_the_run_in_one_line(tmp_path, shift):
    noise = ids(shape=(512, 512))
    mapped = write_raster(tmp_path / "map.tif", noise, classes=LAND)
    transform = NORTH_UP @ Affine.translation(shift, 0)
    truth = write_raster(tmp_path / "truth.tif", noise, transform=transform, compress="deflate")
    data = bytearray(truth.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    truth.write_bytes(data)
    with pytest.raises(RunError, match=r"truth\.tif: cannot be read") as caught:
        evaluate(mapped, truth)
    assert "\n" not in str(caught.value)


@pytest.mark.data
def test_building_mask_agrees_with_its_polygons(data_root):
    folder = data_root / "ortho" / "tanzania"
    found = evaluate(folder / "buildings_b.tif", folder / "buildings.geojson", classes=ROOFS)
    assert found.classes == ROOFS
    assert found.scores.iou[1] > 0.95
