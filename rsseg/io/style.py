"""What a GIS shows of rsseg's files when they are opened: QGIS styles and GDAL's names of classes.

A raster has its style in a file beside it, ``map.qml``, and the names of its classes for every
other GIS in ``map.tif.aux.xml``. A GeoPackage carries the styles of its layers in the table
``layer_styles``, as QGIS writes it. Opens in QGIS 3.22 and later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from rsseg.classes import Classes, Colour
from rsseg.errors import RunError
from rsseg.io import style_qml as qml
from rsseg.io.style_qml import Category, Field, SymbolLayer

EPOCH = "2000-01-01T00:00:00.000Z"
"""The time that an embedded style gives for all changes: equal runs are to give equal bytes."""

STILL_OPEN = ("(still open)", None)
"""The choice that takes the reference class of a point back."""

_STYLE_TABLE = """
CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256),
    f_table_schema TEXT(256),
    f_table_name TEXT(256),
    f_geometry_column TEXT(256),
    styleName TEXT(30),
    styleQML TEXT,
    styleSLD TEXT,
    useAsDefault BOOLEAN,
    description TEXT,
    owner TEXT(30),
    ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""


def raster_qml(classes: Classes) -> str:
    """Return the QGIS style of a map of class ids: one legend entry per class, nodata transparent.

    Args:
        classes: the classes of the map; values of band 1 that are no class's id are not drawn.

    Returns:
        A QML document, to be written as UTF-8 to the map's path with the suffix ``.qml``.
    """
    root = Element("qgis", version=qml.VERSION, styleCategories="Symbology")
    pipe = SubElement(root, "pipe")
    # Ids cannot be averaged, so neither way of zooming may interpolate.
    SubElement(
        SubElement(pipe, "provider"),
        "resampling",
        enabled="false",
        zoomedInResamplingMethod="nearestNeighbour",
        zoomedOutResamplingMethod="nearestNeighbour",
    )
    renderer = SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    palette = SubElement(renderer, "colorPalette")
    for name, class_id, colour in _rows(classes):
        SubElement(
            palette,
            "paletteEntry",
            value=str(class_id),
            label=name,
            color="#{:02x}{:02x}{:02x}".format(*colour),
            alpha="255",
        )
    return qml.to_text(root)


def category_names_xml(classes: Classes) -> str:
    """Return GDAL's side file with the names of the classes of a map of class ids.

    GDAL counts the names from value 0, so an id that is no class has an empty one.

    Returns:
        A PAM document, to be written as UTF-8 to the map's path with ``.aux.xml`` put after it.
    """
    names = dict(zip(classes.ids, classes.names, strict=True))
    root = Element("PAMDataset")
    band = SubElement(root, "PAMRasterBand", band="1")
    categories = SubElement(band, "CategoryNames")
    for class_id in range(max(names) + 1):
        qml.text_element(categories, "Category", names.get(class_id, ""))
    return qml.to_text(root)


def polygons_qml(
    classes: Classes,
    field: str = "class_id",
    name_field: str | None = "class_name",
    *,
    shown: Collection[int] | None = None,
) -> str:
    """Return the QGIS style of polygons of classes, each filled with its class's colour.

    A polygon's class can be changed by choosing a name; the field with the name follows.

    Args:
        classes: the classes.
        field: the integer field with class ids.
        name_field: the text field with class names, or None where there is none.
        shown: indices of the classes in the legend; None for all.

    Returns:
        A QML document.
    """
    root = qml.vector_style("fill")
    categories = [
        Category(str(class_id), name, [_fill(colour)])
        for index, (name, class_id, colour) in enumerate(_rows(classes))
        if shown is None or index in shown
    ]
    qml.categorized(root, "fill", field, categories)
    table = [Field(field, choices=_choices(classes))]
    if name_field is not None:
        table.append(
            Field(name_field, editable=False, computed=f"represent_value({_quoted(field)})")
        )
    qml.fields(root, table)
    return qml.to_text(root)


def sheet_qml(class_fields: Mapping[str, str]) -> str:
    """Return the QGIS style of a tag sheet: check boxes, and tiles that leave the picture visible.

    Reviewed tiles are outlined in green and labelled with the classes ticked in them.

    Args:
        class_fields: Boolean field of the sheet → name of its class.

    Returns:
        A QML document.
    """
    root = qml.vector_style("fill")
    tiles = [
        Category(
            '"reviewed"', "reviewed", [_veil("0,200,90,40"), _inner_line("0,200,90,255", "1.2")]
        ),
        Category("ELSE", "to be tagged", [_inner_line("255,235,120,255", "0.5")]),
    ]
    qml.rule_based(root, "fill", tiles)
    qml.labels(root, _ticked(class_fields), {"placement": "1", "fitInPolygonOnly": "1"})
    fixed = [Field(name, editable=False) for name in ("tile", "scene", "row", "col")]
    boxes = [Field(name, alias, "CheckBox") for name, alias in class_fields.items()]
    qml.fields(root, [*fixed, *boxes, Field("reviewed", widget="CheckBox")])
    parts = [("", ["tile"]), ("Classes in this tile", [*class_fields]), ("", ["reviewed"])]
    qml.form(root, "tile", parts)
    return qml.to_text(root)


def sample_qml(
    classes: Classes,
    reference: str = "reference",
    number: str = "point",
    hidden: Sequence[str] = (),
) -> str:
    """Return the QGIS style of the points at which a person says what is on the ground.

    All points look alike but for whether they are done: who interprets them must not see what the
    map says.

    Args:
        classes: the classes to choose from.
        reference: the integer field for the id of the class that is found; NULL is still open.
        number: the field that numbers the points.
        hidden: fields that the user is not to see.

    Returns:
        A QML document.
    """
    root = qml.vector_style("marker")
    is_open = f"{_quoted(reference)} IS NULL"
    points = [
        Category(is_open, "to be interpreted", _target("255,235,120,255")),
        Category("ELSE", "interpreted", _target("0,200,90,255")),
    ]
    qml.rule_based(root, "marker", points)
    qml.labels(root, _quoted(number), {"placement": "1", "quadOffset": "2", "xOffset": "2.5"})
    table = [
        Field(number, editable=False),
        Field(reference, "class on the ground", choices=[STILL_OPEN, *_choices(classes)]),
        *(Field(name, widget="Hidden", editable=False) for name in hidden),
    ]
    qml.fields(root, table)
    qml.form(root, number, [("", [number, reference])])
    return qml.to_text(root)


def embed_style(path: Path, layer: str, document: str, description: str = "") -> None:
    """Put a style into a GeoPackage, as the one with which QGIS opens a layer.

    Another embedded style of the layer by this name is replaced. All times of change in the file
    are set to ``EPOCH``.

    Args:
        path: the GeoPackage; not yet at its final name, for it is changed in place.
        layer: name of the layer, in the GeoPackage.
        document: a QML document.
        description: what the style is, for QGIS's list of styles.

    Raises:
        RunError: the file is no GeoPackage, has no such layer, or cannot be written.
    """
    try:
        with closing(sqlite3.connect(path)) as database, database:
            _embed(database, layer, document, description)
    except (sqlite3.Error, LookupError) as error:
        raise RunError(f"{path}: the style of {layer!r} cannot be stored ({error})") from error


def _embed(database: sqlite3.Connection, layer: str, document: str, description: str) -> None:
    query = "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?"
    found = database.execute(query, (layer,)).fetchone()
    if found is None:
        raise LookupError("no such layer")
    database.execute(_STYLE_TABLE)
    database.execute(
        "DELETE FROM layer_styles WHERE f_table_name = ? AND styleName = ?", (layer, layer)
    )
    database.execute(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name,"
        " f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner,"
        " update_time) VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '', ?)",
        (layer, found[0], layer, document, description, EPOCH),
    )
    database.execute(
        "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier, description)"
        " VALUES ('layer_styles', 'attributes', 'layer_styles', '')"
    )
    database.execute("UPDATE gpkg_contents SET last_change = ?", (EPOCH,))


def _rows(classes: Classes) -> list[tuple[str, int, Colour]]:
    return list(zip(classes.names, classes.ids, classes.colours, strict=True))


def _choices(classes: Classes) -> list[tuple[str, int]]:
    return list(zip(classes.names, classes.ids, strict=True))


def _fill(colour: Colour) -> SymbolLayer:
    properties = {
        "color": "{},{},{},255".format(*colour),
        "style": "solid",
        "outline_color": "35,35,35,255",
        "outline_style": "solid",
        "outline_width": "0.1",
        "outline_width_unit": "MM",
        "joinstyle": "bevel",
    }
    return "SimpleFill", properties


def _veil(colour: str) -> SymbolLayer:
    return "SimpleFill", {"color": colour, "style": "solid", "outline_style": "no"}


def _inner_line(colour: str, width: str) -> SymbolLayer:
    # Drawn inside, or the line of a neighbour would cover it.
    properties = {
        "line_color": colour,
        "line_style": "solid",
        "line_width": width,
        "line_width_unit": "MM",
        "draw_inside_polygon": "1",
        "joinstyle": "miter",
    }
    return "SimpleLine", properties


def _target(colour: str) -> list[SymbolLayer]:
    # A ring, so that the ground is seen, on a darker one that shows on a bright ground; a dot says
    # which pixel is meant.
    dark = "20,20,20,255"
    return [_circle("6", dark, "1.6"), _circle("6", colour, "0.8"), _circle("0.6", colour, "0.2")]


def _circle(size: str, colour: str, width: str) -> SymbolLayer:
    properties = {
        "name": "circle",
        "color": "0,0,0,0",
        "outline_color": colour,
        "outline_style": "solid",
        "outline_width": width,
        "outline_width_unit": "MM",
        "size": size,
        "size_unit": "MM",
    }
    return "SimpleMarker", properties


def _ticked(class_fields: Mapping[str, str]) -> str:
    """Return the expression for the names of the classes ticked in a reviewed tile."""
    names = ", ".join(
        f"if({_quoted(field)}, {_literal(name)}, NULL)" for field, name in class_fields.items()
    )
    ticked = f"array_filter(array({names}), @element IS NOT NULL)"
    return f"if(\"reviewed\", coalesce(nullif(array_to_string({ticked}, '\\n'), ''), '–'), '')"


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
