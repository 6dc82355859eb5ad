"""Ground areas of pixels, against geodesic polygons and the area of the Earth."""

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS, Geod, Transformer

from rsseg.grid import Grid
from rsseg.io.ground import is_planar, row_areas

EARTH = 510_065_621.724e6
"""Surface of the WGS84 ellipsoid, square metres."""


def grid(crs, transform, shape=(200, 31)):
    return Grid(shape, transform, None if crs is None else CRS.from_user_input(crs).to_wkt())


def geodesic_area(found, row):
    """The middle pixel of a row as a polygon on the ellipsoid."""
    crs, col = CRS.from_wkt(found.crs), found.shape[1] // 2
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    corners = [(col, row), (col, row + 1), (col + 1, row + 1), (col + 1, row)]
    lon, lat = zip(*(to_degrees.transform(*(found.transform @ c)) for c in corners), strict=True)
    return abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0])


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1e-3, 0, 10, 0, -0.8, 80)),
        ("EPSG:4326", Affine(1e-6, 0, 100, 0, -1e-6, 47)),
        ("EPSG:4326", Affine(1e-4, 0, 10, 0, 1e-4, -33)),
        ("EPSG:4326", Affine(0, 1e-4, 10, 1e-4, 0, 50)),
        ("EPSG:3857", Affine(0.1, 0, 1e6, 0, -0.1, 6e6)),
        ("EPSG:3857", Affine(500, 0, 1e6, 0, -500, 1e7)),
        ("EPSG:3857", Affine(30, 0, 1e6, 0, -30, 8e6) @ Affine.rotation(30)),
        ("EPSG:3395", Affine(30, 0, 1e6, 0, -30, 6e6)),
        ("EPSG:4087", Affine(30, 0, 1e6, 0, -30, 6e6)),
    ],
)
def test_areas_on_the_ellipsoid(crs, transform):
    found = grid(crs, transform)
    rows = [0, 57, 123, 199]
    expected = [geodesic_area(found, row) for row in rows]
    assert row_areas(found)[rows] == pytest.approx(expected, rel=1e-6)


def test_the_whole_earth():
    degrees = grid("EPSG:4326", Affine(1, 0, -180, 0, -1, 90), (180, 360))
    assert row_areas(degrees).sum() * 360 == pytest.approx(EARTH, rel=1e-9)


def test_there_is_no_ground_beyond_the_poles():
    areas = row_areas(grid("EPSG:4326", Affine(1, 0, -180, 0, -1, 92), (5, 10)))
    assert areas[:2].tolist() == [0, 0]
    assert (areas[2:] > 0).all()


def test_web_mercator_is_not_taken_at_its_word():
    areas = row_areas(grid("EPSG:3857", Affine(1, 0, 0, 0, -1, 8_399_738)))  # 60 degrees north
    assert areas[0] == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(
    ("crs", "expected"),
    [
        ("EPSG:32633", 4.0),
        ("EPSG:6933", 4.0),
        ("EPSG:2263", 4 * 0.3048006096**2),  # US survey feet
        (None, 4.0),
    ],
)
def test_planar_areas(crs, expected):
    areas = row_areas(grid(crs, Affine(2, 0, 500_000, 0, -2, 200_000)))
    assert areas == pytest.approx(np.full(200, expected), rel=1e-9)


def test_planar_areas_of_a_rotated_grid():
    turned = Affine(2, 0, 500_000, 0, -2, 5_000_000) @ Affine.rotation(20)
    assert row_areas(grid("EPSG:32633", turned)) == pytest.approx(np.full(200, 4.0))


@pytest.mark.parametrize(
    ("crs", "planar"),
    [
        (None, True),
        ("EPSG:32633", True),
        ("EPSG:2193", True),
        ("EPSG:6933", True),
        ("EPSG:5555", True),
        ("EPSG:3857", False),
        ("EPSG:3395", False),
        ("EPSG:4326", False),
        ("EPSG:4979", False),
    ],
)
def test_where_the_plane_will_do(crs, planar):
    assert is_planar(crs) is planar
    if crs is not None and crs != "EPSG:4979":  # old WKT has no three-dimensional degrees
        assert is_planar(CRS.from_user_input(crs).to_wkt("WKT1_GDAL")) is planar
