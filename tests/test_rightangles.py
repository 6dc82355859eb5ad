"""Right angles for footprints: found where they are, left alone where not, never overlapping."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from rasterio.features import rasterize, shapes
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from rsseg.ops.rightangles import right_angled, without_overlaps

CORNER = (500_000.25, 5_000_000.75)
PIXEL = 0.25
SIZE = 400
NORTH_UP = Affine(PIXEL, 0, CORNER[0], 0, -PIXEL, CORNER[1])

RECTANGLE = shapely.box(-60, -25, 60, 25)
L_SHAPE = shapely.union(shapely.box(-60, -40, 0, 40), shapely.box(-60, -40, 60, 0))
COURTYARD = shapely.difference(shapely.box(-60, -50, 60, 50), shapely.box(-25, -20, 30, 15))
CUT_CORNER = shapely.difference(
    shapely.box(-50, -50, 50, 50), shapely.Polygon([(50, 10), (50, 50), (10, 50)])
)


def traced(mask, transform=NORTH_UP):
    """The regions of a mask as polygons along its pixels."""
    found = shapes(mask.astype(np.uint8), mask=mask.astype(bool), transform=transform)
    return np.array([shapely.geometry.shape(region) for region, _ in found], object)


def seen(*footprints, degrees=0.0, at=(SIZE / 2 + 0.3, SIZE / 2 - 0.4), **kwargs):
    """Footprints in pixels about the origin, turned and seen on a raster of pixels."""
    placed = [
        shapely.affinity.translate(shapely.affinity.rotate(one, degrees, origin=(0, 0)), *at)
        for one in footprints
    ]
    return traced(rasterize(placed, out_shape=(SIZE, SIZE), dtype=np.uint8), **kwargs)


def corner_angles(ring, scale=(1, 1)):
    """Angles between the sides that meet in each corner, radians, 0 to pi."""
    points = shapely.get_coordinates(ring)[:-1] * scale
    sides = (np.roll(points, -1, axis=0) - points) @ [1, 1j]
    return np.abs(np.angle(sides / np.roll(sides, 1)))


def assert_right(ring, corners, tolerance=1e-6, **kwargs):
    angles = corner_angles(ring, **kwargs)
    assert len(angles) == corners
    np.testing.assert_allclose(angles, np.pi / 2, atol=tolerance)


def iou(one, other):
    common = shapely.area(shapely.intersection(one, other))
    return common / (shapely.area(one) + shapely.area(other) - common)


def assert_apart(polygons):
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    first, second = first[first < second], second[first < second]
    assert not shapely.relate_pattern(polygons[first], polygons[second], "T********").any()


@pytest.fixture(scope="module")
def blobs():
    """What a network might predict: regions of any form, with holes, crowded."""
    noise = np.random.default_rng(5).standard_normal((600, 600))
    regions = traced(gaussian_filter(noise, 4) > 0.01)
    assert len(regions) > 150
    assert sum(len(region.interiors) for region in regions) > 20
    return regions


@pytest.fixture(scope="module")
def town():
    """Houses wall to wall, a pixel or so apart, none of them quite square."""
    grid = np.stack(np.mgrid[20:SIZE:40, 20:SIZE:40], axis=-1).reshape(-1, 2)
    middles = grid + np.random.default_rng(0).uniform(-3, 3, grid.shape)
    pixels = np.stack(np.mgrid[:SIZE, :SIZE], axis=-1).reshape(-1, 2)
    nearest, _ = cKDTree(middles).query(pixels, k=2)
    return traced((np.diff(nearest, axis=1) > 1.2).reshape(SIZE, SIZE))


@pytest.mark.parametrize("degrees", [0, 7, 30, 44])
@pytest.mark.parametrize(
    ("footprint", "corners"),
    [(RECTANGLE, [4]), (L_SHAPE, [6]), (COURTYARD, [4, 4])],
    ids=["rectangle", "L", "courtyard"],
)
def test_buildings_get_their_corners_back(footprint, corners, degrees):
    (given,) = seen(footprint, degrees=degrees)
    (found,) = right_angled(np.array([given]), pixel=PIXEL)
    rings = [found.exterior, *found.interiors]
    assert len(rings) == len(corners)
    for ring, count in zip(rings, corners, strict=True):
        assert_right(ring, count)
    assert found.area == pytest.approx(footprint.area * PIXEL**2, rel=0.01)
    assert iou(found, given) > 0.97
    assert found.exterior.is_ccw


def test_the_direction_is_found_to_a_fraction_of_a_pixel():
    off = []
    for degrees in np.arange(2.3, 44, 4.1):
        found = right_angled(seen(L_SHAPE, degrees=degrees), pixel=PIXEL)[0]
        corners = shapely.get_coordinates(found)
        side = complex(*(corners[1] - corners[0]))
        # Rows run down, so what is turned one way in the raster is turned the other way on the map.
        off.append((np.degrees(np.angle(side)) + degrees + 45) % 90 - 45)
    assert np.radians(np.abs(off).max()) * 120 < 0.2  # pixels, over the length of the building
    assert np.radians(np.abs(off).mean()) * 120 < 0.07


@pytest.mark.parametrize("degrees", [0, 12, 40])
def test_it_does_not_matter_where_a_ring_begins(degrees):
    (given,) = seen(L_SHAPE, degrees=degrees)
    ring = shapely.get_coordinates(given)[:-1]
    found = right_angled(np.array([given]), pixel=PIXEL)[0]
    for start in range(1, len(ring), max(1, len(ring) // 15)):
        begun = shapely.Polygon(np.roll(ring, -start, axis=0))
        (again,) = right_angled(np.array([begun]), pixel=PIXEL)
        assert_right(again, 6)
        assert iou(again, found) > 0.99


@pytest.mark.parametrize("radius", [4, 6, 10, 14, 20, 30, 60])
def test_circles_stay(radius):
    for at in ((200, 200), (200.5, 200.5), (200.3, 199.6), (200.8, 200.1)):
        given = seen(shapely.Point(0, 0).buffer(radius, quad_segs=32), at=at)
        assert right_angled(given, pixel=PIXEL)[0] is given[0]


def test_a_triangle_stays():
    given = seen(shapely.Polygon([(-60, -40), (60, -40), (0, 60)]))
    assert right_angled(given, pixel=PIXEL)[0] is given[0]


def test_oblique_walls_stay_oblique():
    (found,) = right_angled(seen(CUT_CORNER, degrees=20), pixel=PIXEL)
    angles = np.degrees(np.sort(corner_angles(found)))
    np.testing.assert_allclose(angles, [45, 45, 90, 90, 90], atol=2)
    assert found.area == pytest.approx(CUT_CORNER.area * PIXEL**2, rel=0.01)


def test_a_round_end_stays_round():
    end = shapely.Point(60, 0).buffer(60, quad_segs=32)
    given = seen(shapely.union(shapely.box(-120, -60, 60, 60), end), degrees=20)
    (found,) = right_angled(given, pixel=PIXEL)
    angles = corner_angles(found)
    assert (abs(angles - np.pi / 2) < 1e-6).sum() >= 2
    assert angles.max() < np.radians(95)  # no spikes
    assert found.area == pytest.approx(given[0].area, rel=0.01)
    assert iou(found, given[0]) > 0.98


def test_ragged_walls_become_straight_and_real_steps_stay():
    field = rasterize([shapely.box(100, 100, 220, 160)], out_shape=(SIZE, SIZE)).astype(float)
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(field.shape), 3)
    ragged = traced(gaussian_filter(field, 3) + 2 * noise > 0.5)
    (given,) = ragged[shapely.area(ragged) > 1000 * PIXEL**2]
    assert len(given.exterior.coords) > 100
    assert_right(right_angled(np.array([given]), pixel=PIXEL)[0].exterior, 4)
    stepped = seen(shapely.union(RECTANGLE, shapely.box(-20, 0, 20, 32)))
    assert_right(right_angled(stepped, pixel=PIXEL)[0], 8)
    assert_right(right_angled(stepped, pixel=PIXEL, price=5000)[0], 4)


def test_right_angles_are_those_on_the_ground():
    degree = (55_800.0, 111_400.0)  # metres, at 60 degrees north
    steps = np.array([0.5, 0.5]) / degree
    on_degrees = Affine(steps[0], 0, 25.0, 0, -steps[1], 60.0)
    given = seen(L_SHAPE, degrees=30, transform=on_degrees)
    (found,) = right_angled(given, pixel=0.5, scale=degree)
    assert_right(found, 6, scale=degree)
    (each,) = right_angled(given, pixel=0.5, scale=np.array([degree]))
    assert each.equals(found)


def test_rotated_and_south_up_rasters():
    for transform in (
        Affine.translation(*CORNER) @ Affine.rotation(20) @ Affine.scale(PIXEL, -PIXEL),
        Affine.translation(*CORNER) @ Affine.scale(PIXEL, PIXEL),
    ):
        given = seen(L_SHAPE, degrees=11, transform=transform)
        (found,) = right_angled(given, pixel=PIXEL)
        assert_right(found, 6)
        assert found.exterior.is_ccw


def test_small_footprints():
    mask = np.zeros((40, 40), bool)
    mask[2, 2] = mask[6:8, 5:9] = True  # one pixel, a rectangle of eight
    mask[20, 3:30] = True  # a line one pixel wide
    mask[30:34, 30:34] = True
    given = traced(mask)
    found = without_overlaps(given, right_angled(given, pixel=PIXEL))
    assert shapely.equals(shapely.set_precision(found, 1e-6), given).all()
    (house,) = right_angled(seen(shapely.box(-7, -5, 7, 5), degrees=20), pixel=PIXEL)
    assert_right(house, 4)
    assert house.area == pytest.approx(140 * PIXEL**2, rel=0.05)


def test_chains_of_pixels():
    touching = traced(np.eye(30))  # thirty polygons that share corners
    stairs = traced(np.eye(30) + np.eye(30, k=1))  # one polygon
    assert (len(touching), len(stairs)) == (30, 1)
    for given in (touching, stairs):
        found = without_overlaps(given, right_angled(given, pixel=PIXEL))
        assert shapely.is_valid(found).all()
        assert_apart(found)
        np.testing.assert_allclose(shapely.area(found), shapely.area(given), rtol=0.15)


def test_a_hole_at_the_wall_becomes_a_notch():
    mask = np.zeros((80, 80), bool)
    mask[10:70, 10:70] = True
    mask[8:10, 20:24] = True  # a bump that will go, with a hole that reaches into it
    mask[9:14, 21:23] = False
    (given,) = traced(mask)
    assert len(given.interiors) == 1
    (found,) = right_angled(np.array([given]), pixel=PIXEL)
    assert len(found.interiors) == 0
    assert found.area == pytest.approx(given.area, rel=0.002)
    assert_right(found, 8, tolerance=0.01)  # the notch runs along the pixels


@pytest.mark.parametrize("name", ["blobs", "town"])
def test_whatever_the_form_polygons_are_valid_close_and_apart(name, request):
    given = request.getfixturevalue(name)
    found = right_angled(given, pixel=PIXEL)
    assert {type(one) for one in found} == {shapely.Polygon}
    assert shapely.is_valid(found).all()
    assert iou(given, found).min() >= 0.85
    assert (~shapely.equals_exact(given, found)).sum() > 20
    assert_apart(without_overlaps(given, found))


def test_only_what_would_overlap_goes_back(town):
    found = right_angled(town, pixel=PIXEL)
    apart = without_overlaps(town, found)
    changed = ~shapely.equals_exact(town, found)
    gone_back = changed & shapely.equals_exact(town, apart)
    assert 0.1 < gone_back.sum() / changed.sum() < 0.8
    assert shapely.equals_exact(apart[~gone_back], found[~gone_back]).all()
    for index in np.flatnonzero(gone_back):
        others = np.where(np.arange(len(town)) == index, None, found)
        before = np.where(np.arange(len(town)) == index, None, town)
        meets = shapely.relate_pattern(found[index], others, "T********")
        meets |= shapely.relate_pattern(found[index], before, "T********")
        assert meets.any()


@pytest.mark.parametrize("name", ["blobs", "town"])
def test_nothing_depends_on_order_or_batches(name, request):
    given = request.getfixturevalue(name)
    found = right_angled(given, pixel=PIXEL)
    apart = without_overlaps(given, found)
    order = np.random.default_rng(1).permutation(len(given))
    halves = [right_angled(part, pixel=PIXEL) for part in np.array_split(given[order], 2)]
    shuffled = np.concatenate(halves)
    assert shapely.equals_exact(shuffled, found[order]).all()
    assert shapely.equals_exact(without_overlaps(given[order], shuffled), apart[order]).all()


def test_of_two_that_overlap_the_less_alike_goes_back():
    left, right = shapely.box(0, 0, 10, 10), shapely.box(10, 0, 20, 10)
    far = shapely.box(30, 0, 40, 10)
    given = np.array([left, right, far])
    a_little, a_lot = shapely.box(0, 0, 11, 10), shapely.box(7, 0, 20, 10)
    wider = shapely.box(30, 0, 41, 10)
    # The left one is alone against the given one that came back, so it goes back as well.
    assert (
        without_overlaps(given, np.array([a_little, a_lot, wider])) == [left, right, wider]
    ).all()
    inside = shapely.box(0, 0, 9.5, 10)
    kept = without_overlaps(given, np.array([inside, shapely.box(9, 0, 20, 10), far]))
    assert (kept == [inside, right, far]).all()
    both = without_overlaps(given, np.array([a_little, shapely.box(9, 0, 20, 10), far]))
    assert (both == given).all()


def test_asked_to_be_closer_fewer_change(blobs):
    changed = [
        (~shapely.equals_exact(blobs, right_angled(blobs, pixel=PIXEL, min_iou=least))).sum()
        for least in (0.8, 0.9, 0.97)
    ]
    assert changed == sorted(changed, reverse=True)
    assert changed[0] > changed[-1]


def test_no_polygons():
    none = np.array([], object)
    assert len(without_overlaps(none, right_angled(none, pixel=1))) == 0


@pytest.mark.data
def test_roofs_of_a_drone_orthophoto_come_closer_to_what_was_drawn(data_root):
    folder = data_root / "ortho" / "tanzania"
    with rasterio.open(folder / "buildings_b.tif") as raster:
        given = traced(raster.read(1) == 1, raster.transform)
        pixel = raster.transform.a
    found = right_angled(given, pixel=pixel)
    assert shapely.equals_exact(given, found).mean() < 0.05
    assert shapely.is_valid(found).all()
    assert shapely.area(found).sum() == pytest.approx(shapely.area(given).sum(), rel=0.002)
    angles = np.concatenate([corner_angles(one.exterior) for one in found])
    assert (abs(angles - np.pi / 2) < np.radians(5)).mean() > 0.97
    assert shapely.get_num_coordinates(found).mean() < 12
