from __future__ import annotations

import pickle
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.testing import assert_array_equal
from pyproj import CRS

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.vector import Area, classify, is_vector, rasterise, read_features

UTM = CRS.from_epsg(32633).to_wkt()
GRID = Grid((60, 80), Affine(2, 0, 500_000, 0, -2, 5_000_000), UTM)
LAND = Classes.from_names(["water", "forest", "field"])


def square(col: float, row: float, side: float) -> shapely.Polygon:
    """A square whose upper left corner lies at a pixel of GRID."""
    corners = [(col, row), (col + side, row), (col + side, row + side), (col, row + side)]
    return shapely.Polygon([GRID.transform @ corner for corner in corners])


def save(path: Path, geometries: list, crs: str | None = UTM, **columns: list) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=geometries, crs=crs)
    frame.to_file(path, layer=None if path.suffix != ".gpkg" else "things")
    return path


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_formats_read_alike(tmp_path, suffix):
    frame = geopandas.GeoDataFrame({"id": [1]}, geometry=[square(3, 4, 10)], crs=UTM)
    path = tmp_path / f"one{suffix}"
    (frame.to_crs(4326) if suffix == ".geojson" else frame).to_file(path)
    features = read_features(path, UTM)
    assert_array_equal(np.round(features.total_bounds - frame.total_bounds, 3), 0)


def test_reprojects_into_the_rasters_crs(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[square(3, 4, 10)], crs=UTM)
    frame.to_crs(4326).to_file(tmp_path / "a.gpkg")
    features = read_features(tmp_path / "a.gpkg", UTM)
    assert features.crs == CRS.from_wkt(UTM)
    assert np.abs(features.total_bounds - frame.total_bounds).max() < 0.01


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_features_without_crs_are_the_rasters(tmp_path):
    path = save(tmp_path / "a.gpkg", [square(3, 4, 10)], crs=None)
    assert read_features(path, UTM).crs == CRS.from_wkt(UTM)
    assert read_features(path, None).crs is None


def test_raster_without_crs_takes_features_as_they_are(tmp_path):
    path = save(tmp_path / "a.gpkg", [shapely.box(1, 2, 3, 4)], crs="EPSG:4326")
    assert_array_equal(read_features(path, None).total_bounds, [1, 2, 3, 4])


def test_geometries_are_cleaned(tmp_path):
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    high = shapely.Polygon([(5, 5, 9), (6, 5, 9), (6, 6, 9)])
    path = save(tmp_path / "a.gpkg", [bow, None, shapely.Polygon(), high], name=list("abcd"))
    features = read_features(path, UTM)
    assert features["name"].tolist() == ["a", "d"]
    assert features.is_valid.all()
    assert not features.has_z.any()
    assert features.area.iloc[0] == pytest.approx(2)


def test_a_layer_is_named_as_in_qgis(tmp_path):
    path = tmp_path / "two.gpkg"
    for layer, side in (("first", 1), ("second", 2)):
        geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, side, side)], crs=UTM).to_file(
            path, layer=layer
        )
    assert read_features(path, UTM).area.tolist() == [1]
    assert read_features(Path(f"{path}|layername=second"), UTM).area.tolist() == [4]
    with pytest.raises(InputError, match="no layer 'third'; the layers are first, second"):
        read_features(Path(f"{path}|layername=third"), UTM)


def test_features_beyond_the_crs_are_dropped(tmp_path):
    metres = shapely.box(500_000, 5_000_000, 500_010, 5_000_010)
    degrees = shapely.box(15, 45, 15.1, 45.1)
    path = save(tmp_path / "a.geojson", [metres, degrees], crs="EPSG:4326")
    assert len(read_features(path, UTM)) == 1
    wrong = save(tmp_path / "b.geojson", [metres], crs="EPSG:4326")
    with pytest.raises(InputError, match="check the file's own CRS"):
        read_features(wrong, UTM)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_features(tmp_path / "missing.gpkg", UTM)
    broken = tmp_path / "broken.geojson"
    broken.write_text("{ not json")
    with pytest.raises(InputError, match="not a vector file that GDAL can read"):
        read_features(broken, UTM)
    assert not is_vector(broken)
    empty = save(tmp_path / "empty.gpkg", [None], name=["a"])
    with pytest.raises(InputError, match="no features"):
        read_features(empty, UTM)


# --- classes -------------------------------------------------------------------------------------


def frame_of(values: list) -> geopandas.GeoDataFrame:
    points = [shapely.Point(i, 0) for i in range(len(values))]
    return geopandas.GeoDataFrame({"kind": values}, geometry=points)


@pytest.mark.parametrize("values", [["field", "water"], [2, 0], [2.0, 0.0], ["2", " water "]])
def test_field_holds_names_or_ids(values):
    found = classify(frame_of(values), LAND, "kind", None, "f")
    assert_array_equal(found, [2, 0])
    assert found.dtype == np.uint8


def test_one_class_for_all():
    assert_array_equal(classify(frame_of([1, 2]), LAND, None, "forest", "f"), [1, 1])
    buildings = Classes.from_names(["building"])
    assert_array_equal(classify(frame_of([7]), buildings, None, None, "f"), [1])


@pytest.mark.parametrize(
    ("field", "only", "message"),
    [
        (None, None, "give --field .* or --class"),
        ("kind", "water", "exclude each other"),
        ("sort", None, "no field 'sort'; the fields are kind"),
        ("kind", None, "unknown class 'lava': the classes are water, forest, field"),
        (None, "lava", "unknown class 'lava'"),
    ],
)
def test_unclear_classes(field, only, message):
    with pytest.raises(InputError, match=message):
        classify(frame_of(["water", "lava"]), LAND, field, only, "f")


def test_empty_values_are_not_guessed():
    with pytest.raises(InputError, match="is empty in 1 of 2 features"):
        classify(frame_of(["water", None]), LAND, "kind", None, "f")


# --- pixels --------------------------------------------------------------------------------------


def test_later_features_paint_over_earlier():
    features = geopandas.GeoDataFrame(geometry=[square(0, 0, 20), square(10, 10, 20)], crs=UTM)
    drawn = rasterise(features, np.array([1, 2], np.uint8), GRID, None, fill=255)
    expected = np.full(GRID.shape, 255)
    expected[:20, :20] = 1
    expected[10:30, 10:30] = 2
    assert_array_equal(drawn, expected)
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(
    "transform",
    [
        GRID.transform,
        Affine(2, 0, 500_000, 0, 2, 4_999_000),
        Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(2, -2),
    ],
    ids=["north-up", "south-up", "rotated"],
)
def test_windows_are_pieces_of_the_whole(transform):
    grid = Grid((60, 80), transform, UTM)
    disc = shapely.Point(transform @ (37.3, 28.1)).buffer(40)
    features = geopandas.GeoDataFrame(geometry=[disc], crs=UTM)
    index = np.array([3], np.uint8)
    whole = rasterise(features, index, grid, None, fill=0)
    assert 0 < (whole == 3).sum() < whole.size
    for window in (Window(0, 0, 30, 30), Window(20, 30, 25, 50), Window(59, 79, 1, 1)):
        assert_array_equal(rasterise(features, index, grid, window, 0), whole[window.slices])


def test_window_beyond_the_raster_and_empty_window():
    features = geopandas.GeoDataFrame(geometry=[square(-5, -5, 10)], crs=UTM)
    drawn = rasterise(features, np.array([1], np.uint8), GRID, Window(-10, -10, 20, 20), 0)
    assert drawn.sum() == 100
    assert rasterise(features, np.array([1], np.uint8), GRID, Window(0, 0, 0, 5), 0).shape == (0, 5)


def test_area(tmp_path):
    path = save(tmp_path / "aoi.gpkg", [square(10, 10, 20)])
    area = pickle.loads(pickle.dumps(Area(path, GRID)))
    assert area.covers(Window(0, 0, 15, 15))
    assert not area.covers(Window(40, 40, 20, 20))
    assert area.mask(Window(0, 0, 15, 15)).sum() == 25
    assert area.mask(Window(40, 40, 20, 20)).dtype == np.bool_


def test_area_in_another_crs(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[square(10, 10, 20)], crs=UTM).to_crs(4326)
    frame.to_file(tmp_path / "aoi.geojson")
    assert Area(tmp_path / "aoi.geojson", GRID).mask(GRID.window).sum() == 400


def test_area_must_meet_the_raster(tmp_path):
    far = save(tmp_path / "far.gpkg", [square(1000, 1000, 5)])
    with pytest.raises(InputError, match="wholly outside the raster"):
        Area(far, GRID)
    points = save(tmp_path / "points.gpkg", [shapely.Point(GRID.transform @ (5, 5))])
    with pytest.raises(InputError, match="no polygons"):
        Area(points, GRID)


@pytest.mark.data
def test_amsterdam_polygons_lie_on_their_raster(data_root):
    folder = data_root / "ortho" / "amsterdam"
    with rasterio.open(folder / "test_image_1210x718.tif") as source:
        grid = Grid(source.shape, source.transform, source.crs.to_wkt())
    masks = {
        sign: Area(folder / f"test_image_labels_{sign}_1210x718.gpkg", grid).mask(grid.window)
        for sign in ("positive", "negative")
    }
    assert all(0.001 < mask.mean() < 0.1 for mask in masks.values())
    assert (masks["positive"] & masks["negative"]).mean() < 0.01
