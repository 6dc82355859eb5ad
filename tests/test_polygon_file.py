"""The table of polygons by itself: kept in any batches, written in one order."""

from __future__ import annotations

import os

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM
from numpy.testing import assert_allclose, assert_array_equal

from rsseg.classes import Classes
from rsseg.errors import RunError
from rsseg.grid import Grid, Window
from rsseg.io.polygon_file import Ground, Placing, PolygonTable
from rsseg.ops.rings import Polygons
from rsseg.stages.polygonise import polygonise

CLASSES = Classes(("a", "b", "c"), (5, 0, 9), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
SHAPE = (30, 40)
GRID = Grid(SHAPE, NORTH_UP, UTM)


class Step:
    """Counts what is done."""

    done = 0.0

    def advance(self, amount=1, note=None):
        self.done += amount


class Pixels:
    """Class indices in memory."""

    def __init__(self, values):
        self.values = np.asarray(values, np.uint8)
        self.shape = self.values.shape

    def read(self, window: Window):
        return self.values[window.slices]


@pytest.fixture
def indices():
    return np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)


def polygons_of(folder, values, **options):
    values = np.where(values == 3, 255, values)
    folder.mkdir()
    return list(polygonise(Pixels(values), folder, Step(), workers=0, **options))


def table(folder, *, wanted=range(3), with_confidence=False, grid=GRID, degrees=False):
    folder.mkdir()
    return PolygonTable(
        folder, grid, CLASSES, wanted=wanted, with_confidence=with_confidence, degrees=degrees
    )


def filled(folder, batches, **options):
    found = table(folder, **options)
    for batch in batches:
        found.add(batch.regions, batch.polygons)
    return found


def rows(polygons):
    """All that the table has to write, as one table."""
    return [row for batch in polygons.batches() for row in batch.to_pylist()]


def test_batches_may_come_in_any_order_and_number(tmp_path, indices, monkeypatch):
    whole = filled(tmp_path / "1", polygons_of(tmp_path / "s1", indices))
    strips = polygons_of(tmp_path / "s2", indices, strip_rows=3)
    assert len(strips) == 10
    monkeypatch.setattr("rsseg.io.polygon_file.SHELF_PIXELS", 5 * SHAPE[1])
    shelves = filled(tmp_path / "2", strips[::-1])
    assert rows(shelves) == rows(whole)
    assert (len(shelves), shelves.points) == (len(whole), whole.points)
    assert_array_equal(shelves.counts, whole.counts)
    assert {"class_id", "class_name", "area_m2", "geometry"} <= set(rows(whole)[0])


def test_only_the_classes_wanted_are_kept(tmp_path, indices):
    batches = polygons_of(tmp_path / "s", indices)
    everything, some = filled(tmp_path / "1", batches), filled(tmp_path / "2", batches, wanted=[2])
    assert rows(some) == [row for row in rows(everything) if row["class_id"] == 9]
    assert_array_equal(some.counts, everything.counts * [0, 0, 1])
    shapes = shapely.from_wkb([row["geometry"] for row in rows(some)])
    assert some.points == shapely.get_num_coordinates(shapes).sum()
    nothing = filled(tmp_path / "3", batches, wanted=[])
    assert (len(nothing), rows(nothing), list((tmp_path / "3").iterdir())) == (0, [], [])


def test_confidence_is_a_share_or_null(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[:, 20:] = 1
    sure = np.full(SHAPE, 255, np.uint8)
    sure[0, :3] = 254, 0, 100
    batches = polygons_of(tmp_path / "s", values, confidence=Pixels(sure))
    found = rows(filled(tmp_path / "1", batches, with_confidence=True))
    assert [row["confidence"] for row in found] == [round(354 / 3 / 254, 4), None]


def test_what_is_written_is_told_and_little_at_a_time(tmp_path, indices, monkeypatch):
    monkeypatch.setattr("rsseg.io.polygon_file.BATCH_BYTES", 2000)
    found, step = filled(tmp_path / "1", polygons_of(tmp_path / "s", indices)), Step()
    assert len(list(found.batches())) > 10
    found.write(tmp_path / "p.fgb", "p", step)
    assert step.done == len(found) == len(pyogrio.read_dataframe(tmp_path / "p.fgb"))


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".fgb", ".shp"])
def test_a_table_may_be_empty(tmp_path, ending):
    out = tmp_path / f"p{ending}"
    table(tmp_path / "1", degrees=ending == ".geojson").write(out, "p", Step())
    info = pyogrio.read_info(out, layer="p", force_feature_count=True)
    assert info["features"] == 0
    if ending != ".geojson":  # which has no fields but those of its features
        assert info["fields"].tolist() == ["class_id", "class_name", "area_m2"]


def test_what_gdal_cannot_write_is_one_line(tmp_path, indices):
    found = filled(tmp_path / "1", polygons_of(tmp_path / "s", indices))
    with pytest.raises(RunError, match=r"p\.gpkg: writing failed"):
        found.write(tmp_path / "nowhere" / "p.gpkg", "p", Step())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("a shelf is gone")])
def test_what_fails_between_is_raised_as_it_is(tmp_path, indices, monkeypatch, error):
    found = filled(tmp_path / "1", polygons_of(tmp_path / "s", indices))

    def fail(_):
        raise error

    monkeypatch.setattr(Step, "advance", lambda self, amount: fail(amount))
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        found.write(tmp_path / "p.gpkg", "p", Step())


# --- On the ground -------------------------------------------------------------------------------

SQUARE_WITH_HOLE = Polygons(
    polygon_offsets=np.array([0, 2]),
    ring_offsets=np.array([0, 5, 10]),
    points=np.array(
        [[0, 0], [9, 0], [9, 8], [0, 8], [0, 0], [2, 2], [2, 3], [4, 3], [4, 2], [2, 2]], np.int32
    ),
    doubled_area=np.array([140]),
)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rings_turn_left_however_the_grid_lies(name):
    placed = Placing(Grid(SHAPE, TRANSFORMS[name], UTM), degrees=False)(SQUARE_WITH_HOLE)
    outer, hole = shapely.LinearRing(placed[:5]), shapely.LinearRing(placed[5:])
    assert (outer.is_ccw, hole.is_ccw) == (True, False)
    assert set(map(tuple, placed[:5])) == {
        TRANSFORMS[name] @ corner for corner in ((0, 0), (8, 0), (8, 9), (0, 9))
    }


def test_degrees_are_longitudes_first():
    placed = Placing(GRID, degrees=True)(SQUARE_WITH_HOLE)
    to_degrees = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    assert_allclose(placed[0], to_degrees.transform(*(NORTH_UP @ (0, 0))), rtol=0, atol=1e-12)
    assert shapely.LinearRing(placed[:5]).is_ccw


def test_areas_have_their_holes_taken_off():
    assert Ground(GRID).areas(SQUARE_WITH_HOLE).tolist() == [70 * 4.0]
    grid = Grid(SHAPE, Affine(1e-3, 0, 10, 0, -1e-3, 50), "EPSG:4326")
    (found,) = Ground(grid).areas(SQUARE_WITH_HOLE)
    places = Placing(grid, degrees=False)(SQUARE_WITH_HOLE)
    polygon = shapely.Polygon(places[:5], [places[5:]])
    geod = pyproj.Geod(ellps="WGS84")
    assert_allclose(found, geod.geometry_area_perimeter(polygon)[0], rtol=1e-10)
    assert found < geod.geometry_area_perimeter(shapely.Polygon(places[:5]))[0]


def test_areas_are_measured_on_the_ellipsoid_of_the_crs():
    on_sphere = pyproj.CRS("+proj=longlat +R=6371000 +no_defs").to_wkt()
    transform = Affine(1e-3, 0, 10, 0, -1e-3, 50)
    (found,) = Ground(Grid(SHAPE, transform, on_sphere)).areas(SQUARE_WITH_HOLE)
    (other,) = Ground(Grid(SHAPE, transform, "EPSG:4326")).areas(SQUARE_WITH_HOLE)
    assert found != other
    south, north, west, east = np.radians([49.991, 50, 10, 10.008])
    outer = 6371000**2 * (np.sin(north) - np.sin(south)) * (east - west)
    south, north = np.radians([49.996, 49.998])
    hole = 6371000**2 * (np.sin(north) - np.sin(south)) * np.radians(1e-3)
    assert_allclose(found, outer - hole, rtol=1e-6)


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".fgb", ".shp"])
def test_a_file_cut_short_is_noticed(tmp_path, indices, monkeypatch, ending):
    # On a full disk GDAL may close a file without a word.
    polygons = filled(tmp_path / "p", polygons_of(tmp_path / "s", indices))
    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    polygons.write(whole, "whole", Step())
    write = pyogrio.write_arrow

    def write_less(reader, path, **options):
        write(reader, path, **options)
        os.truncate(path, path.stat().st_size * 2 // 3)

    monkeypatch.setattr(pyogrio, "write_arrow", write_less)
    with pytest.raises(RunError, match="is the disk full"):
        polygons.write(cut, "cut", Step())
