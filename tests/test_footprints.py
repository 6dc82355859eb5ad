"""Footprints with right angles: what ``vectorize --right-angles`` writes."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from helpers import NORTH_UP, UTM, write_raster
from shapely.affinity import rotate

from rsseg.api import vectorize
from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.ground import row_areas
from rsseg.io.raster import Raster

CLASSES = Classes.from_names(["other", "building", "water"])
PLACES = {
    "metres": (NORTH_UP, UTM),
    "south up": (Affine(2, 0, 500_000, 0, 2, 5_000_000), UTM),
    "degrees": (Affine(2e-5, 0, 10, 0, -1e-5, 60), "EPSG:4326"),
    "web mercator": (Affine(2, 0, 1e6, 0, -2, 8e6), "EPSG:3857"),
}


def pixels():
    """A turned house with an oblong yard, a straight one beside water, and a pond."""
    house = rotate(shapely.box(20, 20, 80, 60) - shapely.box(40, 35, 60, 45), 17)
    shapes = [(house, 1), (shapely.box(100, 20, 130, 50), 1), (shapely.box(130, 10, 150, 60), 2)]
    return rasterio.features.rasterize(shapes, (90, 160), dtype="uint8")


def corners(polygon):
    return [len(ring.coords) - 1 for ring in (polygon.exterior, *polygon.interiors)]


def drawn(folder, place="metres", name="roofs.gpkg", **options):
    transform, crs = PLACES[place]
    path = write_raster(folder / "map.tif", pixels(), transform, crs, classes=CLASSES)
    out = folder / name
    vectorize(path, out, only=["building"], right_angles=True, overwrite=True, **options)
    return geopandas.read_file(out, layer=out.stem)


@pytest.mark.parametrize("place", PLACES)
def test_walls_are_straight_and_the_yard_stays(tmp_path, place):
    houses = drawn(tmp_path, place)
    assert list(houses.class_name) == ["building"] * 2
    # In the order of their first pixels: the straight house reaches further up in the picture.
    assert sorted(map(corners, houses.geometry)) == [[4], [4, 4]]
    assert houses.geometry.is_valid.all()
    assert all(polygon.exterior.is_ccw for polygon in houses.geometry)


def test_angles_are_right_on_the_ground(tmp_path):
    houses = drawn(tmp_path, "degrees").to_crs(32632)
    for polygon in houses.geometry:
        steps = np.diff(np.array(polygon.exterior.coords), axis=0)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        assert np.abs((steps * np.roll(steps, 1, axis=0)).sum(axis=1)).max() < 0.01


@pytest.mark.parametrize("place", PLACES)
def test_areas_are_those_of_the_footprints(tmp_path, place):
    houses = drawn(tmp_path, place)
    if place in ("metres", "south up"):
        expected = houses.geometry.area
    else:
        geod = houses.crs.get_geod()
        degrees = houses.to_crs(4326).geometry
        expected = [abs(geod.geometry_area_perimeter(one)[0]) for one in degrees]
    np.testing.assert_allclose(houses.area_m2, expected, rtol=1e-6)
    ground = row_areas(Raster(tmp_path / "map.tif").grid)[0] * (pixels() == 1).sum()
    assert houses.area_m2.sum() == pytest.approx(ground, rel=0.02)


def test_geojson_has_the_same_footprints(tmp_path):
    houses, same = drawn(tmp_path), drawn(tmp_path, name="roofs.geojson")
    assert same.crs == "EPSG:4326"
    together = shapely.symmetric_difference(
        shapely.union_all(houses.geometry), shapely.union_all(same.to_crs(UTM).geometry)
    )
    assert together.area < 1e-3 * houses.geometry.area.sum()


def test_strips_change_nothing(tmp_path):
    drawn(tmp_path, name="whole.gpkg")
    drawn(tmp_path, name="strips.gpkg", strip_rows=7)
    whole, strips = (
        geopandas.read_file(tmp_path / f"{name}.gpkg", layer=name) for name in ("whole", "strips")
    )
    assert whole.equals(strips)


def test_a_whole_map_gets_no_right_angles(tmp_path):
    path = write_raster(tmp_path / "map.tif", pixels(), classes=CLASSES)
    with pytest.raises(InputError, match="for which class with --classes"):
        vectorize(path, tmp_path / "roofs.gpkg", right_angles=True)
    assert not (tmp_path / "roofs.gpkg").exists()
