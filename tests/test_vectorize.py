"""vectorize, as a GIS user meets it: files, georeference, areas, options, interruptions."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM, Listener, write_raster
from numpy.testing import assert_allclose, assert_array_equal
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize, shapes
from rasterio.transform import from_origin

from rsseg.api import vectorize
from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.style import polygons_qml
from rsseg.progress import Silent

ENDINGS = (".gpkg", ".geojson", ".fgb", ".shp")
NAMES = ("other", "été's end", "a class of a long name, " + 5 * "very long, " + "indeed", "b")
IDS = (0, 7, 3, 254)
CLASSES = Classes(NAMES, IDS, ((9, 9, 9), (10, 20, 30), (255, 0, 0), (0, 0, 255)))
SHAPE = (60, 83)
TINY = Affine(2e-4, 0, 30.0, 0, -3e-4, 61.0)
"""A transform in degrees."""

PLACES = {
    **{name: (transform, UTM) for name, transform in TRANSFORMS.items()},
    "no CRS": (NORTH_UP, None),
    "local CRS": (NORTH_UP, 'LOCAL_CS["site",UNIT["metre",1]]'),
    "feet": (NORTH_UP, "EPSG:2263"),
    "degrees": (TINY, "EPSG:4326"),
    "web mercator": (from_origin(4.3e6, -7e5, 0.0746, 0.0746), "EPSG:3857"),
}


def class_ids(seed=0, shape=SHAPE):
    """Class ids (H, W): blocks with single pixels strewn in, and a corner of nodata."""
    random = np.random.default_rng(seed)
    rows, cols = shape
    coarse = random.integers(0, 4, (rows // 6 + 1, cols // 6 + 1))
    indices = coarse.repeat(6, 0).repeat(6, 1)[:rows, :cols]
    strewn = random.random(shape) < 0.08
    indices[strewn] = random.integers(0, 4, strewn.sum())
    ids = np.array(IDS, np.uint8)[indices]
    ids[: rows // 4, : cols // 4] = 255
    return ids


def draw(folder, ids=None, transform=NORTH_UP, crs=UTM, name="map.tif", classes=CLASSES):
    ids = class_ids() if ids is None else np.asarray(ids, np.uint8)
    return write_raster(folder / name, ids, transform, crs, nodata=255, classes=classes)


def layer(path):
    """All features of a vector file, the fields and the geometries as arrays."""
    meta, _, geometries, values = pyogrio.raw.read(path, layer=path.stem)
    fields = dict(zip(meta["fields"].tolist(), values, strict=True))
    return fields, shapely.from_wkb(geometries), meta


def regions(ids):
    """What GDAL's own polygoniser finds: class id → number of regions."""
    found = [int(value) for _, value in shapes(ids, ids != 255, connectivity=4)]
    return {class_id: found.count(class_id) for class_id in set(found)}


def counted(class_ids):
    return dict(zip(*(v.tolist() for v in np.unique(class_ids, return_counts=True)), strict=True))


def burnt(geometries, values, transform, shape=SHAPE):
    return rasterize(
        zip(geometries, values, strict=True), shape, 255, transform=transform, dtype="uint8"
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- The four formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("with_confidence", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_holds_every_polygon(tmp_path, ending, with_confidence):
    ids = class_ids()
    sure = write_raster(tmp_path / "sure.tif", np.full(SHAPE, 127, np.uint8), nodata=255)
    out = tmp_path / f"polygons{ending}"
    made = vectorize(draw(tmp_path), out, confidence=sure if with_confidence else None)
    fields, geometries, meta = layer(out)
    confidence = ["confidence"] if with_confidence else []
    assert list(fields) == ["class_id", "class_name", "area_m2", *confidence]
    assert counted(fields["class_id"]) == regions(ids)
    named = dict(zip(IDS, NAMES, strict=True))
    assert fields["class_name"].tolist() == [named[one] for one in fields["class_id"]]
    assert made.out == out
    assert made.polygons == {name: regions(ids)[i] for i, name in named.items()}
    assert made.points == shapely.get_num_coordinates(geometries).sum()
    assert set(shapely.get_type_id(geometries)) == {shapely.GeometryType.POLYGON}
    assert shapely.is_valid(geometries).all()
    if ending == ".geojson":
        back = Transformer.from_crs("EPSG:4326", UTM, always_xy=True)
        geometries = shapely.transform(geometries, back.transform, interleaved=False)
    else:
        assert CRS(meta["crs"]) == CRS(UTM)
    assert_array_equal(burnt(geometries, fields["class_id"], NORTH_UP), ids)


def ogrinfo(*arguments):
    """What GDAL's own tool says."""
    if shutil.which("ogrinfo") is None:
        pytest.skip("there is no ogrinfo on PATH (Debian: gdal-bin)")
    # The libraries of Python's wheels bring data of other versions.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GDAL", "PROJ"))}
    command = ["ogrinfo", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=clean, check=True
    )
    assert "ERROR" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("ending", ENDINGS)
def test_gdals_own_tool_reads_every_format(tmp_path, ending):
    sure = write_raster(tmp_path / "sure.tif", np.full(SHAPE, 254, np.uint8), nodata=255)
    out = tmp_path / f"polygons{ending}"
    vectorize(draw(tmp_path), out, confidence=sure)
    shown = ogrinfo("-so", out, "polygons")
    assert "Geometry: Polygon" in shown
    assert f"Feature Count: {sum(regions(class_ids()).values())}\n" in shown
    assert re.findall(r"^(\w+): (\w+) \(", shown, re.M) == [
        ("class_id", "Integer"),
        ("class_name", "String"),
        ("area_m2", "Real"),
        ("confidence", "Real"),
    ]
    crs = "WGS 84" if ending == ".geojson" else "WGS 84 / UTM zone 33N"
    assert f'"{crs}"' in shown.replace("_", " ")
    query = "SELECT class_id AS id, COUNT(*) AS n FROM polygons GROUP BY class_id"
    shown = ogrinfo("-q", out, "-dialect", "SQLite", "-sql", query)
    found = [int(number) for number in re.findall(r"\(Integer\w*\) = (\d+)", shown)]
    assert dict(zip(found[::2], found[1::2], strict=True)) == regions(class_ids())


def test_geojson_is_in_longitudes_and_latitudes(tmp_path):
    vectorize(draw(tmp_path), tmp_path / "p.geojson")
    _, geometries, meta = layer(tmp_path / "p.geojson")
    assert CRS(meta["crs"]) == CRS("EPSG:4326")
    assert shapely.is_ccw(shapely.get_exterior_ring(geometries)).all()
    holes = [hole for polygon in geometries for hole in polygon.interiors]
    assert holes
    assert not shapely.is_ccw(holes).any()
    to_degrees = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    expected = to_degrees.transform_bounds(*rasterio.open(tmp_path / "map.tif").bounds)
    assert_allclose(shapely.total_bounds(geometries), expected, atol=2e-9)
    assert shapely.coverage_is_valid(geometries)


def test_geojson_is_cut_where_the_longitudes_end(tmp_path):
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform(180, 10)
    ids = np.zeros((20, 40))
    ids[5:9, 18:22] = 3
    transform = Affine(10, 0, x - 200, 0, -10, y)
    vectorize(draw(tmp_path, ids, transform, "EPSG:32660"), tmp_path / "p.geojson")
    fields, geometries, _ = layer(tmp_path / "p.geojson")
    assert fields["class_id"].tolist() == [0, 3]
    assert shapely.get_num_geometries(geometries).tolist() == [2, 2]
    west, _, east, _ = shapely.total_bounds(geometries)
    assert (west, east) == (-180, 180)
    parts = shapely.get_parts(geometries)
    assert np.ptp(shapely.bounds(parts)[:, ::2], axis=1).max() < 0.01


@pytest.mark.parametrize("crs", [None, PLACES["local CRS"][1]])
def test_geojson_needs_a_crs(tmp_path, crs):
    source = draw(tmp_path, crs=crs)
    with pytest.raises(InputError, match="GeoJSON is in longitudes and latitudes"):
        vectorize(source, tmp_path / "p.geojson")
    assert names(tmp_path) == ["map.tif"]


def test_the_parts_of_a_shapefile_belong_together(tmp_path):
    source = draw(tmp_path)
    for stale in ("p.qix", "p.sbn", "p.shp.xml", "p.prj", "other.qix"):
        (tmp_path / stale).write_text("of another shapefile")
    vectorize(draw(tmp_path, np.zeros((3, 3)), crs=None, name="bare.tif"), tmp_path / "q.shp")
    with pytest.raises(InputError, match=r"p\.prj: exists already"):
        vectorize(source, tmp_path / "p.shp")
    vectorize(source, tmp_path / "p.shp", overwrite=True)
    made = [f"p.{part}" for part in ("cpg", "dbf", "prj", "shp", "shx")]
    bare = [f"q.{part}" for part in ("cpg", "dbf", "shp", "shx")]
    assert names(tmp_path) == sorted(["map.tif", "bare.tif", "other.qix", *made, *bare])
    assert (tmp_path / "p.cpg").read_text().strip() == "UTF-8"
    assert "UTM" in (tmp_path / "p.prj").read_text()


@pytest.mark.parametrize("name", ["P.GPKG", "P.SHP", "P.GeoJSON", "a.b.shp", "we ird'\"ü.gpkg"])
def test_names_of_files(tmp_path, name):
    out = tmp_path / name
    vectorize(draw(tmp_path), out)
    assert out.is_file()
    assert len(layer(out)[1]) == sum(regions(class_ids()).values())
    assert not [one for one in names(tmp_path) if one.startswith(".")]


def test_a_shapefile_takes_large_areas_as_they_are(tmp_path):
    source = draw(tmp_path, np.zeros((40, 50)), Affine(90_000, 0, 0, 0, -90_000, 0))
    vectorize(source, tmp_path / "p.shp")
    assert layer(tmp_path / "p.shp")[0]["area_m2"].tolist() == [2000 * 90_000.0**2]


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


def surely(folder, values, **options):
    return write_raster(folder / "sure.tif", np.asarray(values, np.uint8), nodata=255, **options)


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


def assert_covers(geometries, ids, pixel):
    """The polygons are valid and cover what has a class once: no gaps, no overlaps."""
    assert shapely.is_valid(geometries).all()
    assert shapely.coverage_is_valid(geometries)
    valid = np.count_nonzero(ids != 255) * pixel
    moved = shapely.transform(
        geometries, lambda xy: xy - np.floor(shapely.total_bounds(geometries)[:2])
    )
    union = shapely.area(shapely.union_all(moved))
    assert_allclose([union, shapely.area(moved).sum()], valid, rtol=1e-9)


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


# --- The same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_runs_give_equal_bytes(tmp_path, ending):
    source = draw(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        vectorize(source, tmp_path / folder / f"p{ending}", min_area=12, simplify=3)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("one", "two")
    )
    assert one == two
    if ending == ".shp":
        assert tuple(one["p.dbf"][1:4]) == (100, 1, 1), "years since 1900, month, day"


@pytest.mark.parametrize("options", [{}, {"min_area": 20}, {"simplify": 3, "min_area": 12}])
def test_strips_and_workers_change_no_byte(tmp_path, options):
    source = draw(tmp_path)
    sure = surely(tmp_path, np.random.default_rng(2).integers(0, 256, SHAPE))
    found = set()
    for rows, workers in ((None, 2), (1, 0), (1, 2), (7, 2), (SHAPE[0], 0), (10**9, 3)):
        vectorize(
            source,
            tmp_path / "p.gpkg",
            confidence=sure,
            strip_rows=rows,
            workers=workers,
            overwrite=True,
            **options,
        )
        found.add((tmp_path / "p.gpkg").read_bytes())
    assert len(found) == 1


def test_the_order_is_that_of_first_pixels_even_on_several_shelves(tmp_path, monkeypatch):
    source = draw(tmp_path)
    vectorize(source, tmp_path / "p.gpkg")
    monkeypatch.setattr("rsseg.io.polygon_file.SHELF_PIXELS", 4 * SHAPE[1])
    monkeypatch.setattr("rsseg.io.polygon_file.BATCH_BYTES", 1000)
    vectorize(source, tmp_path / "r.gpkg", strip_rows=7)
    one, two = layer(tmp_path / "p.gpkg"), layer(tmp_path / "r.gpkg")
    assert_array_equal(one[0]["class_id"], two[0]["class_id"])
    assert_array_equal(shapely.to_wkb(one[1]), shapely.to_wkb(two[1]))
    first = [min((-y, x) for x, y in polygon.exterior.coords) for polygon in one[1]]
    assert first == sorted(first)


# --- The file ------------------------------------------------------------------------------------


def test_a_geopackage_carries_its_style(tmp_path):
    vectorize(draw(tmp_path), tmp_path / "p.gpkg", only=["b"])
    with closing(sqlite3.connect(tmp_path / "p.gpkg")) as database:
        rows = database.execute(
            "SELECT f_table_name, styleName, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
    assert rows == [("p", "p", 1, polygons_qml(CLASSES, shown=[CLASSES.index("b")]))]


@pytest.mark.parametrize("ending", ENDINGS)
def test_overwriting_keeps_nothing_of_the_old(tmp_path, ending):
    small = draw(tmp_path, np.zeros((2, 2)), name="small.tif")
    out, fresh = tmp_path / f"p{ending}", tmp_path / "fresh"
    fresh.mkdir()
    vectorize(draw(tmp_path), out)
    with pytest.raises(InputError, match="exists already"):
        vectorize(small, out)
    vectorize(small, out, overwrite=True)
    vectorize(small, fresh / out.name)
    for part in fresh.iterdir():
        assert (tmp_path / part.name).read_bytes() == part.read_bytes()
    assert len(names(tmp_path)) == 3 + len(names(fresh))


def test_a_geopackage_that_is_open_elsewhere_is_left_alone(tmp_path):
    source, out = draw(tmp_path), tmp_path / "p.gpkg"
    vectorize(source, out)
    with closing(sqlite3.connect(out)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE mine (note)")
        database.commit()
        with pytest.raises(InputError, match="open in another program"):
            vectorize(source, out, overwrite=True)
    with closing(sqlite3.connect(out)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# --- Interruptions -------------------------------------------------------------------------------


class Stops(Silent):
    """A Progress whose user presses Ctrl+C in a step, after so many advances."""

    def __init__(self, label, after=0):
        self.label = label
        self.left = after

    @contextmanager
    def step(self, label, total, unit, done=0):
        self.now = label
        yield self

    def advance(self, amount=1, note=None):
        self.left -= self.label in self.now
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("label", "after"), [("vectorize", 0), ("vectorize", 5), ("save", 0)])
def test_control_c_leaves_things_as_they_were(tmp_path, label, after, existing):
    source, out = draw(tmp_path), tmp_path / "p.gpkg"
    if existing:
        out.write_text("old")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        vectorize(
            source,
            out,
            min_area=9,
            simplify=2,
            strip_rows=7,
            overwrite=existing,
            progress=Stops(label, after),
        )
    assert names(tmp_path) == before
    assert not existing or out.read_text() == "old"


KILLED = """
import os, signal, sys
import rsseg.api.vectorizing as verb
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
setattr(verb, sys.argv[3], die)
verb.vectorize(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
@pytest.mark.parametrize("when", ["warn_of_strange_ids", "publish"])
def test_what_a_killed_run_left_goes_with_the_next(tmp_path, when):
    source, out = draw(tmp_path), tmp_path / "p.gpkg"
    command = [sys.executable, "-c", KILLED, source, out, when]
    assert subprocess.run(command, check=False).returncode == -9
    assert names(tmp_path) == [".p.gpkg.scratch", "map.tif"]
    vectorize(source, out)
    assert names(tmp_path) == ["map.tif", "p.gpkg"]
    (tmp_path / "calm").mkdir()
    vectorize(source, tmp_path / "calm" / "p.gpkg")
    assert out.read_bytes() == (tmp_path / "calm" / "p.gpkg").read_bytes()


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simplify": -1}, "tolerance -1: give 0 or more"),
        ({"simplify": float("nan")}, "tolerance nan: give 0 or more"),
        ({"simplify": float("inf")}, "tolerance inf: give 0 or more"),
        ({"min_area": -0.1}, "least area -0.1: give 0 or more"),
        ({"min_area": float("nan")}, "least area nan: give 0 or more"),
        ({"strip_rows": 0}, "strip rows 0: give 1 or more"),
        ({"workers": -1}, "workers -1: give 0 or more"),
        ({"only": ["abacus"]}, "unknown class 'abacus'"),
        ({"only": ["9"]}, "unknown class '9'"),
        ({"only": [""]}, "unknown class ''"),
        ({"confidence": "nowhere.tif"}, r"nowhere\.tif: no such file"),
        ({"out": "map.tif"}, "not a vector file; give a name that ends in .gpkg"),
        ({"out": "p.kml"}, "not a vector file"),
        ({"out": "p"}, "not a vector file"),
        ({"out": "nowhere/p.gpkg"}, "does not exist"),
        ({"out": "mine.gpkg"}, r"mine\.gpkg: exists already"),
        ({"out": "gpkg_map.gpkg"}, "keep the name 'gpkg_map'"),
        ({"out": "layer_styles.gpkg"}, "keep the name 'layer_styles'"),
        ({"map_path": "nowhere.tif"}, r"nowhere\.tif: no such file"),
        ({"map_path": "mine.gpkg"}, r"mine\.gpkg: not a raster"),
        ({"map_path": "empty.tif"}, r"empty\.tif: has no pixel of other, .* nothing to draw"),
        ({"map_path": "image.tif"}, r"image\.tif: has 3 bands"),
        ({"map_path": "heights.tif"}, r"the value 0\.5 is no class id"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path)
    draw(tmp_path, np.full(SHAPE, 255), name="empty.tif")
    write_raster(tmp_path / "image.tif", np.zeros((3, *SHAPE), np.uint8))
    write_raster(tmp_path / "heights.tif", np.full(SHAPE, 0.5, np.float32))
    (tmp_path / "mine.gpkg").write_text("mine")
    before = names(tmp_path)
    with pytest.raises(InputError, match=message):
        vectorize(**{"map_path": "map.tif", "out": "p.gpkg", **options})
    assert names(tmp_path) == before
    assert (tmp_path / "mine.gpkg").read_text() == "mine"


def test_a_map_is_never_overwritten_by_its_polygons(tmp_path):
    with rasterio.open(draw(tmp_path)) as source:
        profile = {**source.profile, "driver": "GPKG"}
        with rasterio.open(tmp_path / "map.gpkg", "w", **profile) as target:
            target.write(source.read())
    before = (tmp_path / "map.gpkg").read_bytes()
    with pytest.raises(InputError, match="is an input of this run"):
        vectorize(tmp_path / "map.gpkg", tmp_path / "map.gpkg", overwrite=True)
    assert (tmp_path / "map.gpkg").read_bytes() == before


def test_no_class_chosen_occurs(tmp_path):
    ids = np.where(class_ids() == 254, 0, class_ids())
    with pytest.raises(InputError, match="has no pixel of b, so there is nothing to draw"):
        vectorize(draw(tmp_path, ids), tmp_path / "p.gpkg", only=["b"])
    assert names(tmp_path) == ["map.tif"]


# --- Real maps -----------------------------------------------------------------------------------

TANZANIA = Path("ortho", "tanzania", "buildings_a.tif")
GAPS = "scene8_classes.tif", (1200, 5700, 400, 600)


def positives(folder):
    """Polygons burnt on the grid of an image in another CRS: 1 where they are, else 0."""
    with rasterio.open(folder / "test_image_1210x718.tif") as image:
        shape, transform, crs = image.shape, image.transform, image.crs
    boxes = pyogrio.read_dataframe(folder / "test_image_labels_positive_1210x718.gpkg")
    ids = rasterize(boxes.to_crs(crs).geometry, shape, transform=transform, dtype="uint8")
    return ids, transform, crs


def cut(path, row, col, height, width):
    with rasterio.open(path) as source:
        ids = source.read(1)[row : row + height, col : col + width]
        return ids, source.transform @ Affine.translation(col, row), source.crs


@pytest.fixture(scope="module", params=["tanzania", "amsterdam", "dubai", "dubai with gaps"])
def real(request, data_root, tmp_path_factory):
    """A map cut from real data: its path, its ids, and the area of a pixel in its plane."""
    ids, transform, crs = {
        "tanzania": lambda: cut(data_root / TANZANIA, 0, 0, 1400, 2000),
        "amsterdam": lambda: positives(data_root / "ortho" / "amsterdam"),
        "dubai": lambda: cut(data_root / "dubai" / "scene2_classes.tif", 300, 200, 400, 600),
        "dubai with gaps": lambda: cut(data_root / "dubai" / GAPS[0], *GAPS[1]),
    }[request.param]()
    assert len(np.unique(ids)) > 1
    path = tmp_path_factory.mktemp("real") / "map.tif"
    write_raster(path, ids, transform, crs, nodata=255)
    return path, ids, abs(transform.determinant)


@pytest.mark.data
@pytest.mark.parametrize("least", [0, 5])
@pytest.mark.parametrize("tolerance", [0, 1, 3, 10])
def test_real_maps_have_no_gaps_and_no_overlaps(tmp_path, real, tolerance, least):
    path, ids, pixel = real
    found = set()
    for rows in (None, 64, 10**6):
        vectorize(
            path,
            tmp_path / "p.gpkg",
            simplify=tolerance,
            min_area=least,
            strip_rows=rows,
            overwrite=True,
        )
        found.add((tmp_path / "p.gpkg").read_bytes())
    assert len(found) == 1
    fields, geometries, _ = layer(tmp_path / "p.gpkg")
    assert_covers(geometries, ids, pixel)
    if not least and not tolerance:
        assert counted(fields["class_id"]) == regions(ids)


@pytest.mark.data
def test_a_real_map_is_the_same_in_strips_of_1024_and_4096(tmp_path, data_root):
    path, found = data_root / TANZANIA, set()
    for rows in (1024, 4096):
        vectorize(path, tmp_path / "p.gpkg", strip_rows=rows, simplify=0.5, overwrite=True)
        found.add((tmp_path / "p.gpkg").read_bytes())
    assert len(found) == 1
