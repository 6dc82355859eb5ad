from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from xml.etree import ElementTree

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from helpers import UTM, write_raster

from rsseg.classes import Classes
from rsseg.errors import RunError
from rsseg.io.geopackage import fixed_time, write_layer
from rsseg.io.style import (
    EPOCH,
    category_names_xml,
    embed_style,
    polygons_qml,
    raster_qml,
    sample_qml,
    sheet_qml,
)
from rsseg.io.vector import field_names, read_table

AWKWARD = ("a & <b>", 'Gebäude "x"', "it's \\n", "tab\tline\n", "bell \x07 \ud800 end")
CLASSES = Classes.from_dict(
    {"classes": [{"name": name, "id": i} for name, i in zip(AWKWARD, (5, 0, 2, 9, 1), strict=True)]}
)
SHOWN = (*AWKWARD[:4], "bell \ufffd \ufffd end")
FIELDS = {"a": AWKWARD[0], "b": AWKWARD[2]}


def parsed(document):
    """The document as a reader of UTF-8 gets it."""
    return ElementTree.fromstring(document.encode())


# --- documents -----------------------------------------------------------------------------------


def test_raster_has_one_entry_per_class():
    entries = parsed(raster_qml(CLASSES)).findall(".//paletteEntry")
    assert [entry.get("value") for entry in entries] == ["5", "0", "2", "9", "1"]
    assert tuple(entry.get("label") for entry in entries) == SHOWN
    colours = [tuple(bytes.fromhex(entry.get("color")[1:])) for entry in entries]
    assert colours == list(CLASSES.colours)


def test_category_names_are_counted_from_zero():
    root = parsed(category_names_xml(CLASSES))
    assert root.tag == "PAMDataset"
    assert root.find("PAMRasterBand").get("band") == "1"
    names = [element.text or "" for element in root.findall("./PAMRasterBand/CategoryNames/*")]
    assert names == [SHOWN[1], SHOWN[4], SHOWN[2], "", "", SHOWN[0], "", "", "", SHOWN[3]]


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="GDAL's tools are not installed")
def test_gdal_reads_the_category_names(tmp_path):
    path = write_raster(tmp_path / "map.tif", np.zeros((4, 4), np.uint8))
    classes = Classes.from_dict({"classes": [{"name": "Gebäude & <x>"}, {"name": "ö", "id": 3}]})
    document = category_names_xml(classes)
    (tmp_path / "map.tif.aux.xml").write_text(document, encoding="utf-8")
    told = subprocess.run(["gdalinfo", path], capture_output=True, encoding="utf-8", check=True)
    lines = [line.strip() for line in told.stdout.partition("Categories:")[2].splitlines()]
    assert lines[1:5] == ["0: Gebäude & <x>", "1:", "2:", "3: ö"]


def test_polygons_have_a_category_per_class():
    root = parsed(polygons_qml(CLASSES, "id", None))
    categories = root.findall(".//category")
    assert root.find("renderer-v2").get("attr") == "id"
    assert [category.get("value") for category in categories] == ["5", "0", "2", "9", "1"]
    assert tuple(category.get("label") for category in categories) == SHOWN
    for category, colour in zip(categories, CLASSES.colours, strict=True):
        symbol = root.find(f".//symbol[@name='{category.get('symbol')}']")
        fill = symbol.find(".//Option[@name='color']").get("value")
        assert fill == "{},{},{},255".format(*colour)
    assert [field.get("name") for field in root.findall("./fieldConfiguration/field")] == ["id"]


def test_polygons_of_some_classes_show_no_others():
    root = parsed(polygons_qml(CLASSES, shown=[1, 3]))
    categories = root.findall(".//category")
    assert [category.get("value") for category in categories] == ["0", "9"]
    for category, colour in zip(categories, (CLASSES.colours[i] for i in (1, 3)), strict=True):
        symbol = root.find(f".//symbol[@name='{category.get('symbol')}']")
        fill = symbol.find(".//Option[@name='color']").get("value")
        assert fill == "{},{},{},255".format(*colour)


def test_sheet_has_a_check_box_per_class():
    root = parsed(sheet_qml(FIELDS))
    boxes = root.findall(".//editWidget[@type='CheckBox']/..")
    assert [box.get("name") for box in boxes] == ["a", "b", "reviewed"]
    aliases = {alias.get("field"): alias.get("name") for alias in root.findall(".//alias")}
    assert FIELDS.items() <= aliases.items()
    label = root.find(".//text-style").get("fieldName")
    assert "if(\"b\", 'it''s \\\\n', NULL)" in label


def test_sample_tells_nothing_of_the_map():
    document = sample_qml(CLASSES, "truth", "no", hidden=["stratum"])
    root = parsed(document)
    taken_back, *choices = root.findall("./fieldConfiguration/*[@name='truth']//Option[@value]")
    assert taken_back.get("name") == "(still open)"
    assert [int(choice.get("value")) for choice in choices] == list(CLASSES.ids)
    assert tuple(choice.get("name") for choice in choices) == SHOWN
    for red, green, blue in CLASSES.colours:
        assert f"{red},{green},{blue}" not in document
    assert "stratum" not in "".join(
        ElementTree.tostringlist(root.find("attributeEditorForm"), "unicode")
    )


@pytest.mark.parametrize(
    "document",
    [raster_qml(CLASSES), polygons_qml(CLASSES), sheet_qml(FIELDS), sample_qml(CLASSES)],
    ids=["raster", "polygons", "sheet", "sample"],
)
def test_styles_change_only_what_they_speak_of(document):
    root = parsed(document)
    assert root.tag == "qgis"
    assert re.fullmatch(r"\d+\.\d+\.\d+", root.get("version"))
    assert "AllStyleCategories" not in root.get("styleCategories")


# --- embedded ------------------------------------------------------------------------------------


def rows(path, query, *values):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query, values).fetchall()


def make_layers(path, *names):
    path.unlink(missing_ok=True)
    squares = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[shapely.box(0, 0, 1, 1)], crs=UTM)
    for name in names:
        pyogrio.write_dataframe(squares, path, layer=name, driver="GPKG")
    return path


def test_a_style_is_the_default_of_its_layer(tmp_path):
    path = make_layers(tmp_path / "map.gpkg", "fields", "it's")
    embed_style(path, "it's", "<old/>")
    embed_style(path, "fields", "<other/>")
    embed_style(path, "it's", "<qgis/>", "as drawn")
    columns = "f_table_name, f_geometry_column, styleQML, useAsDefault, description"
    found = rows(path, f"SELECT {columns} FROM layer_styles ORDER BY f_table_name")
    assert found == [
        ("fields", "geom", "<other/>", 1, ""),
        ("it's", "geom", "<qgis/>", 1, "as drawn"),
    ]
    empty = "f_table_catalog = '' AND f_table_schema = ''"
    assert rows(path, f"SELECT count(*) FROM layer_styles WHERE {empty}") == [(2,)]
    kinds = "SELECT data_type FROM gpkg_contents WHERE table_name = 'layer_styles'"
    assert rows(path, kinds) == [("attributes",)]


def test_the_styles_are_a_table_and_no_layer_of_features(tmp_path):
    path = make_layers(tmp_path / "map.gpkg", "zones")
    embed_style(path, "zones", polygons_qml(CLASSES))
    listed = dict(pyogrio.list_layers(path))
    assert listed == {"zones": "Polygon", "layer_styles": None}
    assert field_names(path) == ["class_id"]
    assert read_table(path)["class_id"].tolist() == [1]


@pytest.mark.parametrize("crs", [UTM, None])
def test_equal_features_give_equal_bytes(tmp_path, crs):
    path = tmp_path / "map.gpkg"
    squares = shapely.box(np.arange(5), 0, np.arange(1, 6), 1)
    features = geopandas.GeoDataFrame({"class_id": range(5)}, geometry=squares, crs=crs)
    made = set()
    for _ in range(8):
        path.unlink(missing_ok=True)
        write_layer(path, "map", features, "Polygon", polygons_qml(CLASSES))
        made.add(path.read_bytes())
    assert len(made) == 1
    assert rows(path, "SELECT DISTINCT last_change FROM gpkg_contents") == [(EPOCH,)]
    assert rows(path, "SELECT f_table_name, update_time FROM layer_styles") == [("map", EPOCH)]


def test_gdal_has_its_clock_back():
    with fixed_time():
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") == EPOCH
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_what_cannot_hold_a_style(tmp_path):
    path = make_layers(tmp_path / "map.gpkg", "map")
    before = path.read_bytes()
    with pytest.raises(RunError, match="the style of 'roofs' cannot be stored"):
        embed_style(path, "roofs", "<qgis/>")
    assert path.read_bytes() == before
    (tmp_path / "text.gpkg").write_text("no database, whatever its name says")
    with pytest.raises(RunError, match="cannot be stored"):
        embed_style(tmp_path / "text.gpkg", "map", "<qgis/>")
