"""The files that vectorize writes: every format, the same bytes, overwriting."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from drawn_maps import (
    CLASSES,
    ENDINGS,
    IDS,
    NAMES,
    PLACES,
    SHAPE,
    burnt,
    class_ids,
    counted,
    draw,
    layer,
    names,
    regions,
    surely,
)
from helpers import NORTH_UP, UTM, write_raster
from numpy.testing import assert_allclose, assert_array_equal
from pyproj import CRS, Transformer

from rsseg.api import vectorize
from rsseg.errors import InputError
from rsseg.io.style import polygons_qml

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
