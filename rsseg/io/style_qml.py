"""Parts of QGIS styles (QML): the document, renderers, labels, fields and forms, as XML elements.

In the form that QGIS 3.22 writes and later versions read. QGIS fills in what is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

VERSION = "3.22.0"
"""The version of QGIS whose form of the document this is."""

SymbolLayer = tuple[str, Mapping[str, str]]
"""QGIS's class of a symbol layer, ``SimpleFill`` for example, and its properties."""

_NULL = "{2839923C-8B7D-419E-B84B-CA2FE9B80EC7}"
"""What stands for NULL among the choices of a ``ValueMap``."""

_GEOMETRY_CODES = {"marker": "0", "fill": "2"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Category:
    """One entry of a legend.

    Args:
        when: the value of the field, or for rules an expression; ``ELSE`` for all other features.
        label: what the legend says.
        layers: the symbol, drawn in this order.
    """

    when: str
    label: str
    layers: Sequence[SymbolLayer]


@dataclass(frozen=True)
class Field:
    """How QGIS shows a field of a layer and lets it be edited.

    Args:
        name: the field.
        alias: what the user reads instead of its name; empty for the name itself.
        widget: QGIS's editor widget, ``CheckBox`` or ``Hidden`` for example; empty for its choice.
        choices: what the user reads and the value stored; makes the widget a ``ValueMap``.
        editable: whether the user may change it.
        computed: an expression whose value the field takes whenever its feature is changed.
    """

    name: str
    alias: str = ""
    widget: str = ""
    choices: Sequence[tuple[str, int | None]] = ()
    editable: bool = True
    computed: str = ""


def to_text(root: Element) -> str:
    """Return an XML document without declaration, to be written as UTF-8.

    Characters that XML does not allow become U+FFFD.
    """
    for element in root.iter():
        element.text = element.text and _NOT_XML.sub("\ufffd", element.text)
        for name, value in element.attrib.items():
            element.set(name, _NOT_XML.sub("\ufffd", value))
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def text_element(parent: Element, tag: str, text: str) -> None:
    """Add an element that holds a text."""
    SubElement(parent, tag).text = text


def vector_style(kind: str) -> Element:
    """Return an empty style for a layer of ``marker`` (points) or ``fill`` (polygons) symbols."""
    categories = "LayerConfiguration|Symbology|Labeling|Fields|Forms"
    root = Element("qgis", version=VERSION, styleCategories=categories, labelsEnabled="0")
    text_element(root, "layerGeometryType", _GEOMETRY_CODES[kind])
    return root


def categorized(root: Element, kind: str, field: str, categories: Sequence[Category]) -> None:
    """Add a renderer that draws a feature by the value of a field."""
    renderer = SubElement(root, "renderer-v2", type="categorizedSymbol", attr=field)
    entries = SubElement(renderer, "categories")
    for index, category in enumerate(categories):
        SubElement(
            entries,
            "category",
            value=category.when,
            label=category.label,
            symbol=str(index),
            render="true",
        )
    _symbols(renderer, kind, categories)


def rule_based(root: Element, kind: str, categories: Sequence[Category]) -> None:
    """Add a renderer that draws a feature by expressions."""
    renderer = SubElement(root, "renderer-v2", type="RuleRenderer")
    rules = SubElement(renderer, "rules", key="{rules}")
    for index, category in enumerate(categories):
        SubElement(
            rules,
            "rule",
            filter=category.when,
            label=category.label,
            symbol=str(index),
            key=f"{{rule {index}}}",
        )
    _symbols(renderer, kind, categories)


def labels(root: Element, expression: str, placement: Mapping[str, str]) -> None:
    """Label the features with an expression, dark on a white halo."""
    root.set("labelsEnabled", "1")
    settings = SubElement(SubElement(root, "labeling", type="simple"), "settings")
    style = SubElement(
        settings,
        "text-style",
        fieldName=expression,
        isExpression="1",
        fontSize="9",
        fontSizeUnit="Point",
        fontWeight="75",
        textColor="20,20,20,255",
        textOpacity="1",
    )
    SubElement(
        style,
        "text-buffer",
        bufferDraw="1",
        bufferSize="0.8",
        bufferSizeUnits="MM",
        bufferColor="255,255,255,255",
        bufferOpacity="0.8",
    )
    SubElement(settings, "placement", dict(placement))
    SubElement(settings, "rendering", obstacle="0")


def fields(root: Element, table: Sequence[Field]) -> None:
    """Say how the fields are shown and edited."""
    configurations = SubElement(root, "fieldConfiguration")
    aliases = SubElement(root, "aliases")
    defaults = SubElement(root, "defaults")
    editable = SubElement(root, "editable")
    for field in table:
        _widget(configurations, field)
        SubElement(aliases, "alias", field=field.name, name=field.alias)
        if field.computed:
            SubElement(
                defaults, "default", field=field.name, expression=field.computed, applyOnUpdate="1"
            )
        SubElement(editable, "field", name=field.name, editable=str(int(field.editable)))


def form(root: Element, display: str, groups: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Lay out the form.

    Args:
        root: the style.
        display: the field that stands for a feature in lists.
        groups: titles and their fields, from top to bottom; without a title fields have no frame.
    """
    text_element(root, "previewExpression", f'"{display}"')
    text_element(root, "editorlayout", "tablayout")
    layout = SubElement(root, "attributeEditorForm")
    for title, names in groups:
        parent = layout
        if title:
            parent = SubElement(
                layout, "attributeEditorContainer", name=title, groupBox="1", showLabel="1"
            )
        for name in names:
            SubElement(parent, "attributeEditorField", name=name, showLabel="1")


def _symbols(renderer: Element, kind: str, categories: Sequence[Category]) -> None:
    symbols = SubElement(renderer, "symbols")
    for index, category in enumerate(categories):
        symbol = SubElement(
            symbols, "symbol", name=str(index), type=kind, alpha="1", clip_to_extent="1"
        )
        for layer_class, properties in category.layers:
            layer = SubElement(symbol, "layer", {"class": layer_class, "enabled": "1", "pass": "0"})
            _text_map(layer, properties)


def _text_map(parent: Element, values: Mapping[str, str]) -> None:
    table = SubElement(parent, "Option", type="Map")
    for name, value in values.items():
        SubElement(table, "Option", name=name, value=value, type="QString")


def _widget(configurations: Element, field: Field) -> None:
    element = SubElement(configurations, "field", name=field.name)
    widget = "ValueMap" if field.choices else field.widget
    config = SubElement(SubElement(element, "editWidget", type=widget), "config")
    if not field.choices:
        SubElement(config, "Option")
        return
    choices = SubElement(
        SubElement(config, "Option", type="Map"), "Option", name="map", type="List"
    )
    for name, value in field.choices:
        stored, kind = (_NULL, "QString") if value is None else (str(value), "int")
        choice = SubElement(choices, "Option", type="Map")
        SubElement(choice, "Option", name=name, value=stored, type=kind)
