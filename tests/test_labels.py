from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from helpers import NORTH_UP, UTM, write_features, write_raster
from numpy.testing import assert_array_equal

from rsseg.api import tile
from rsseg.classes import IGNORE, Classes
from rsseg.config import TileConfig
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io import labels as labels_module
from rsseg.io.labels import open_labels

ROOFS = Classes.from_names(["building"])
LAND = Classes.from_names(["water", "forest", "field"])
SHAPE = (64, 96)
WHOLE = Window(0, 0, *SHAPE)
EAST = NORTH_UP @ Affine.translation(200, 0)


def picture(seed=0):
    return np.random.default_rng(seed).integers(1, 255, (3, *SHAPE), dtype=np.uint8)


def box(left, top, right, bottom, transform=NORTH_UP):
    corners = [(left, top), (left, bottom), (right, bottom), (right, top)]
    return shapely.Polygon([transform @ corner for corner in corners])


@pytest.fixture
def make_site(tmp_path):
    def make(classes, **places):
        rasters = []
        for name, (transform, crs) in places.items():
            rasters.append(write_raster(tmp_path / f"{name}.tif", picture(), transform, crs))
        return tile(rasters, tmp_path / "s.zarr", classes=classes, config=TileConfig(32, 0))

    return make


@pytest.fixture
def two(make_site):
    """A site of two scenes in one CRS, side by side with a gap between."""
    return make_site(LAND, west=(NORTH_UP, UTM), east=(EAST, UTM))


def test_without_files_the_layer_is_needed(two):
    with pytest.raises(InputError, match="no pseudo-labels"):
        open_labels(two, [], None, None)


def test_a_raster_labels_the_scenes_it_lies_on(two, tmp_path):
    ids = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    source = open_labels(two, [write_raster(tmp_path / "c.tif", ids, nodata=2)], None, None)
    assert_array_equal(source("west", WHOLE), np.where(ids < 2, ids, IGNORE))
    assert (source("east", WHOLE) == IGNORE).all()
    part = Window(10, 20, 30, 40)
    assert_array_equal(source("west", part), source("west", WHOLE)[part.slices])


def test_a_raster_that_lies_elsewhere(two, tmp_path):
    far = NORTH_UP @ Affine.translation(1000, 0)
    path = write_raster(tmp_path / "c.tif", np.zeros(SHAPE, np.uint8), far)
    with pytest.raises(InputError, match="lies on none of the site's scenes"):
        open_labels(two, [path], None, None)


def test_chips_take_the_raster_of_their_name(make_site, tmp_path):
    site = make_site(LAND, a=(None, None), b=(None, None))
    folder = tmp_path / "masks"
    folder.mkdir()
    paths = [
        write_raster(folder / f"{name}.tif", np.full(SHAPE, index, np.uint8), None, None)
        for index, name in enumerate("ab")
    ]
    source = open_labels(site, paths, None, None)
    assert (source("a", WHOLE) == 0).all()
    assert (source("b", WHOLE) == 1).all()


def test_polygons_and_what_lies_between(make_site, tmp_path):
    site = make_site(ROOFS, west=(NORTH_UP, UTM))
    path = write_features(tmp_path / "v.gpkg", [box(10, 5, 30, 25)])
    expected = np.zeros(SHAPE, np.uint8)
    expected[5:25, 10:30] = 1
    assert_array_equal(open_labels(site, [path], None, None)("west", WHOLE), expected)


def test_a_scene_that_no_feature_meets_is_unlabelled(make_site, tmp_path):
    site = make_site(ROOFS, west=(NORTH_UP, UTM), east=(EAST, UTM))
    path = write_features(tmp_path / "v.gpkg", [box(10, 5, 30, 25)])
    source = open_labels(site, [path], None, None)
    assert (source("west", WHOLE) != IGNORE).all()
    assert (source("east", WHOLE) == IGNORE).all()


def test_features_that_meet_no_scene(two, tmp_path):
    path = write_features(tmp_path / "v.gpkg", [box(1000, 5, 1030, 25)])
    with pytest.raises(InputError, match="none of its features meets a raster of the site"):
        open_labels(two, [path], None, "water")


@pytest.mark.parametrize("alike", [True, False])
def test_features_are_read_once_per_crs(make_site, tmp_path, monkeypatch, alike):
    corner = geopandas.GeoSeries([shapely.Point(NORTH_UP @ (200, 0))], crs=UTM).to_crs(3035)[0]
    beside = (EAST, UTM) if alike else (Affine(2, 0, corner.x, 0, -2, corner.y), "EPSG:3035")
    site = make_site(ROOFS, west=(NORTH_UP, UTM), east=beside)
    path = write_features(tmp_path / "v.gpkg", [box(0, 0, 400, 64)])
    read, times = labels_module.read_features, []
    monkeypatch.setattr(
        labels_module, "read_features", lambda *args: times.append(args) or read(*args)
    )
    source = open_labels(site, [path], None, None)
    assert len(times) == (1 if alike else 2)
    assert (source("west", WHOLE) == 1).all()
    assert (source("east", WHOLE) == 1).mean() > 0.8


def test_later_files_fill_what_earlier_ones_leave(two, tmp_path):
    kinds = write_features(tmp_path / "v.gpkg", [box(0, 0, 40, 64)], kind=["field"])
    ids = np.zeros(SHAPE, np.uint8)
    ids[:, :50] = 1
    ids[:, 80:] = 255
    raster = write_raster(tmp_path / "c.tif", ids)
    found = open_labels(two, [kinds, raster], "kind", None)("west", WHOLE)
    expected = np.where(np.arange(96) < 40, 2, ids)
    assert_array_equal(found, expected)
    assert (open_labels(two, [raster, kinds], "kind", None)("west", WHOLE)[:, :50] == 1).all()
