"""What vectorize draws: georeference, areas, confidence, options."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest
import shapely
from affine import Affine
from drawn_maps import (
    IDS,
    NAMES,
    PLACES,
    SHAPE,
    assert_covers,
    burnt,
    class_ids,
    counted,
    draw,
    layer,
    names,
    regions,
    surely,
)
from helpers import NORTH_UP, TRANSFORMS, UTM, Listener, write_raster
from numpy.testing import assert_allclose, assert_array_equal
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize

from rsseg.api import vectorize
from rsseg.classes import Classes
from rsseg.errors import InputError

# --- Georeference --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_vertices_are_corners_of_pixels_to_the_last_digit(tmp_path, place):
    transform, crs = PLACES[place]
    source = draw(tmp_path, transform=transform, crs=crs)
    vectorize(source, tmp_path / "p.gpkg")
    fields, geometries, meta = layer(tmp_path / "p.gpkg")
    x, y = shapely.get_coordinates(geometries).T
    cols, rows = (np.rint(v) for v in ~transform @ (x, y))
    assert_array_equal((x, y), transform @ (cols, rows))
    assert (cols.min(), rows.min(), cols.max(), rows.max()) == (0, 0, *SHAPE[::-1])
    assert shapely.is_ccw(shapely.get_exterior_ring(geometries)).all()
    assert_array_equal(burnt(geometries, fields["class_id"], transform), class_ids())
    if crs is None:
        assert meta["crs"] is None or "Undefined" in meta["crs"]
    else:
        assert CRS(meta["crs"]).is_exact_same(CRS(crs)) or place == "local CRS"


# --- Areas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "unit"),
    [*((name, 1.0) for name in TRANSFORMS), ("no CRS", 1.0), ("feet", 1200 / 3937)],
)
def test_planar_areas_are_pixels_times_the_area_of_a_pixel(tmp_path, place, unit):
    transform, crs = PLACES[place]
    vectorize(draw(tmp_path, transform=transform, crs=crs), tmp_path / "p.gpkg")
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    pixel = abs(transform.determinant) * unit**2
    for class_id in IDS:
        of_class = fields["class_id"] == class_id
        expected = np.count_nonzero(class_ids() == class_id) * pixel
        assert_allclose(fields["area_m2"][of_class].sum(), expected, rtol=1e-9)
        # Coordinates of millions of metres leave fewer digits to what shapely measures.
        measured = shapely.area(shapely.transform(geometries, lambda xy: xy - xy[:1]))
        assert_allclose(measured[of_class].sum() * unit**2, expected, rtol=1e-9)
    assert_allclose(fields["area_m2"], measured * unit**2, rtol=1e-8)


@pytest.mark.parametrize("simplify", [0, 0.1])
@pytest.mark.parametrize("place", ["degrees", "web mercator"])
def test_areas_are_geodesic_where_the_plane_is_stretched(tmp_path, place, simplify):
    transform, crs = PLACES[place]
    source = draw(tmp_path, transform=transform, crs=crs)
    vectorize(source, tmp_path / "p.gpkg", simplify=simplify)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    placed = shapely.transform(geometries, to_degrees.transform, interleaved=False)
    geod = Geod(ellps="WGS84")
    expected = [geod.geometry_area_perimeter(polygon)[0] for polygon in placed]
    # A tenth of a square millimetre is as fine as geodesic areas are computed.
    assert_allclose(fields["area_m2"], expected, rtol=1e-9, atol=1e-9)
    assert fields["area_m2"].min() > 0
    if place == "web mercator" and not simplify:
        assert (fields["area_m2"] < 0.99 * shapely.area(geometries)).all()


def test_areas_are_of_the_polygons_as_they_are_written(tmp_path):
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", simplify=5)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    assert_allclose(fields["area_m2"], shapely.area(geometries), rtol=1e-9)
    assert_allclose(fields["area_m2"].sum(), np.count_nonzero(class_ids() != 255) * 4, rtol=1e-9)


# --- Confidence ----------------------------------------------------------------------------------


def test_confidence_is_the_mean_of_the_pixels(tmp_path):
    ids = class_ids()
    sure = np.random.default_rng(1).integers(0, 255, SHAPE).astype(np.uint8)
    sure[30:50, 20:60] = 255
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", confidence=surely(tmp_path, sure))
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    number = rasterize(
        zip(geometries, range(len(geometries)), strict=True),
        SHAPE,
        -1,
        transform=NORTH_UP,
        dtype="int32",
    )
    assert_array_equal(number < 0, ids == 255)
    for index, found in enumerate(fields["confidence"]):
        pixels = sure[(number == index) & (sure != 255)]
        if pixels.size:
            assert abs(found - pixels.mean() / 254) <= 0.50001e-4
            assert found == round(found, 4)
        else:
            assert np.isnan(found)
    assert np.isnan(fields["confidence"]).sum() > 3
    assert not (fields["confidence"] == 255 / 254).any()


def test_pixels_that_the_confidence_leaves_out_do_not_count(tmp_path):
    sure = np.full(SHAPE, 254, np.uint8)
    sure[::2] = 77
    sure = write_raster(tmp_path / "sure.tif", sure, nodata=77)
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", confidence=sure)
    found = layer(tmp_path / "p.gpkg")[0]["confidence"]
    assert set(found[~np.isnan(found)]) == {1.0}


def test_confidence_of_a_merged_polygon_is_that_of_all_its_pixels(tmp_path):
    sure = np.full((3, 5), 254)
    sure[1, 2] = 0
    ids = np.zeros((3, 5))
    ids[1, 2] = 3
    source = draw(tmp_path, ids)
    vectorize(source, tmp_path / "p.gpkg", confidence=surely(tmp_path, sure), min_area=5)
    fields, _, _ = layer(tmp_path / "p.gpkg")
    assert (fields["class_id"].tolist(), fields["area_m2"].tolist()) == ([0], [60.0])
    assert fields["confidence"].tolist() == [round(14 / 15, 4)]


def test_no_confidence_is_null(tmp_path):
    sure = surely(tmp_path, np.full(SHAPE, 255))
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", confidence=sure)
    with closing(sqlite3.connect(tmp_path / "p.gpkg")) as database:
        found = database.execute("SELECT DISTINCT typeof(confidence) FROM p").fetchall()
    assert found == [("null",)]


@pytest.mark.parametrize(
    ("values", "transform", "message"),
    [
        (np.zeros(SHAPE), NORTH_UP @ Affine.translation(1, 0), "does not lie on the pixels"),
        (np.zeros((SHAPE[0], SHAPE[1] + 1)), NORTH_UP, "does not lie on the pixels"),
        (np.zeros((2, *SHAPE)), NORTH_UP, "has 2 bands of uint8"),
    ],
)
def test_confidence_of_something_else(tmp_path, values, transform, message):
    sure = surely(tmp_path, values, transform=transform)
    with pytest.raises(InputError, match=message):
        vectorize(draw(tmp_path), tmp_path / "p.gpkg", confidence=sure)
    assert names(tmp_path) == ["map.tif", "sure.tif"]


def test_confidence_of_another_type(tmp_path):
    sure = write_raster(tmp_path / "sure.tif", np.zeros(SHAPE, np.float32))
    with pytest.raises(InputError, match=r"1 bands of float32; .*uint8, 0 to 254"):
        vectorize(draw(tmp_path), tmp_path / "p.gpkg", confidence=sure)


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (["b"], {254}),
        (["254", "été's end"], {254, 7}),
        (["b", "b", "254"], {254}),
        ([" 0 "], {0}),
        ([], set(IDS)),
    ],
)
def test_classes_are_chosen_by_name_or_id(tmp_path, only, chosen):
    made = vectorize(draw(tmp_path), tmp_path / "p.gpkg", only=only)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    found = regions(class_ids())
    assert counted(fields["class_id"]) == {class_id: found[class_id] for class_id in chosen}
    assert set(made.polygons) == {n for n, i in zip(NAMES, IDS, strict=True) if i in chosen}
    expected = np.where(np.isin(class_ids(), list(chosen)), class_ids(), 255)
    assert_array_equal(burnt(geometries, fields["class_id"], NORTH_UP), expected)


def test_a_map_that_says_nothing_has_its_ids_for_names(tmp_path):
    source = draw(tmp_path, classes=None)
    assert set(vectorize(source, tmp_path / "p.gpkg").polygons) == {"0", "3", "7", "254"}
    with pytest.raises(InputError, match="unknown class 'b'"):
        vectorize(source, tmp_path / "q.gpkg", only=["b"])


def test_other_classes_may_be_given(tmp_path):
    legend = Classes.from_dict({"classes": [{"name": "a", "id": 0}, {"name": "z", "id": 7}]})
    listener = Listener()
    made = vectorize(draw(tmp_path), tmp_path / "p.gpkg", classes=legend, progress=listener)
    ids = class_ids()
    assert made.polygons == {"a": regions(ids)[0], "z": regions(ids)[7]}
    assert any("its own classes are" in warning for warning in listener.warnings)
    (strange,) = (w for w in listener.warnings if "with ids that are no class" in w)
    assert "(3, 254) are in no polygon" in strange


@pytest.mark.parametrize("options", [{}, {"strip_rows": 1}, {"strip_rows": 7, "min_area": 60}])
def test_pixels_of_no_class_are_counted_once(tmp_path, options):
    legend = Classes.from_dict({"classes": [{"name": "a", "id": 0}, {"name": "z", "id": 7}]})
    listener = Listener()
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", classes=legend, progress=listener, **options)
    count = np.isin(class_ids(), (3, 254)).sum()
    assert any(f" {count} pixels with ids that are no class" in w for w in listener.warnings)


@pytest.mark.parametrize("least", [8, 40, 200])
def test_small_polygons_join_a_neighbour_and_leave_no_hole(tmp_path, least):
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", min_area=least)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    assert fields["area_m2"].min() >= least
    assert len(geometries) < sum(regions(class_ids()).values())
    filled = burnt(geometries, fields["class_id"], NORTH_UP)
    assert_array_equal(filled == 255, class_ids() == 255)
    assert counted(fields["class_id"]) == regions(filled)
    assert shapely.coverage_is_valid(geometries)


@pytest.mark.parametrize(("col", "taken"), [(2, 0), (3, 7)])
def test_small_polygons_join_where_the_shared_edge_is_longest(tmp_path, col, taken):
    ids = np.zeros((5, 8))
    ids[:, 4:] = 7
    ids[2, col : col + 3] = 3
    vectorize(draw(tmp_path, ids), tmp_path / "p.gpkg", min_area=13)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    ids[2, col : col + 3] = taken
    assert_array_equal(burnt(geometries, fields["class_id"], NORTH_UP, ids.shape), ids)


@pytest.mark.parametrize("side", [0.1, 0.2, 0.3, 0.5, 0.6, 1.2])
@pytest.mark.parametrize("pixels", [3, 6, 10])
def test_a_polygon_of_the_least_area_stays(tmp_path, side, pixels):
    ids = np.zeros((5, 14))
    ids[2, 2 : 2 + pixels] = 3
    source = draw(tmp_path, ids, Affine(side, 0, 0, 0, -side, 0))
    least = float(f"{pixels * side * side:.6g}")
    assert sum(vectorize(source, tmp_path / "p.gpkg", min_area=least).polygons.values()) == 2
    more = least + side * side / 10
    assert sum(vectorize(source, tmp_path / "q.gpkg", min_area=more).polygons.values()) == 1


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1, 0, 0, 0, -1, 62)),
        ("EPSG:3857", Affine(1e5, 0, 0, 0, -1e5, 8.9e6)),
    ],
)
def test_least_areas_are_of_the_ground(tmp_path, crs, transform):
    ids = np.zeros((62, 5))
    ids[2, 2] = ids[56, 2] = 3
    source = draw(tmp_path, ids, transform, crs)
    vectorize(source, tmp_path / "all.gpkg")
    fields, _, _ = layer(tmp_path / "all.gpkg")
    north, south = fields["area_m2"][fields["class_id"] == 3]
    assert south > 1.9 * north
    vectorize(source, tmp_path / "p.gpkg", min_area=(north + south) / 2)
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    assert fields["area_m2"][fields["class_id"] == 3].tolist() == [south]
    assert burnt(geometries, fields["class_id"], transform, ids.shape)[2, 2] == 0


def test_a_tolerance_takes_corners_away_and_leaves_the_coverage(tmp_path):
    source, points = draw(tmp_path), []
    for tolerance in (0, 1, 3, 10, 1e300):
        made = vectorize(source, tmp_path / "p.gpkg", simplify=tolerance, overwrite=True)
        _, geometries, _ = layer(tmp_path / "p.gpkg")
        points.append(made.points)
        assert_covers(geometries, class_ids(), 4)
        assert len(geometries) == sum(regions(class_ids()).values())
    assert points == sorted(points, reverse=True)
    assert points[0] == points[1] > points[2] > points[3], "2 m² is the least step of a 2 m pixel"


def test_a_tolerance_is_in_metres_on_the_ground(tmp_path):
    """In degrees and in Web Mercator, as on a planar grid of pixels of the same size."""
    latitude, side = 60.0, 2.0
    y = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(0, latitude)[1]
    geod = Geod(ellps="WGS84")
    east = geod.fwd(0, latitude, 90, side)[0]
    north = geod.fwd(0, latitude, 0, side)[1] - latitude
    places = {
        UTM: NORTH_UP,
        "EPSG:4326": Affine(east, 0, 0, 0, -north, latitude),
        "EPSG:3857": Affine(4.0, 0, 0, 0, -4.0, y),
    }
    points = {}
    for crs, transform in places.items():
        source = draw(tmp_path, transform=transform, crs=crs)
        out = tmp_path / "p.gpkg"
        points[crs] = [
            vectorize(source, out, simplify=metres, overwrite=True).points
            for metres in (0, 1.3, 1.5, 3, 6)
        ]
    assert len(set(map(tuple, points.values()))) == 1


def test_a_simplified_ring_starts_where_it_likes_but_the_outer_edge_stays(tmp_path):
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", simplify=10)
    vectorize(draw(tmp_path), tmp_path / "q.gpkg")
    outlines = [shapely.union_all(layer(tmp_path / f"{n}.gpkg")[1]) for n in "pq"]
    assert outlines[0].equals(outlines[1])
