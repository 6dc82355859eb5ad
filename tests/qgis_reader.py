"""Open rsseg's files in QGIS as a user would, tick tags, and print what QGIS made of it as JSON.

Run by ``test_qgis.py`` under the Python that has QGIS: ``python3 qgis_reader.py FOLDER TICKS``.
TICKS is JSON: tile → fields of the sheet to tick.
"""

import json
import os
import sys
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsRasterLayer,
    QgsValueMapFieldFormatter,
    QgsVectorLayer,
    QgsVectorLayerUtils,
)


def opened(layer):
    assert layer.isValid(), layer.source()
    layer.loadDefaultStyle()
    return layer


def vector(path):
    return opened(QgsVectorLayer(str(path), path.stem, "ogr"))


def raster(path):
    layer = opened(QgsRasterLayer(str(path), path.stem))
    renderer = layer.renderer()
    provider = layer.dataProvider()
    return {
        "renderer": renderer.type(),
        "legend": [[c.value, c.label, c.color.name(), c.color.alpha()] for c in renderer.classes()],
        "nodata": provider.sourceNoDataValue(1) if provider.sourceHasNoDataValue(1) else None,
    }


def legend(layer):
    renderer = layer.renderer()
    if renderer.type() == "categorizedSymbol":
        return [[c.value(), c.label(), c.symbol().color().name()] for c in renderer.categories()]
    return [[r.filterExpression(), r.label()] for r in renderer.rootRule().children()]


def fields(layer):
    """Name → alias, widget, its settings, whether it may be edited."""
    form = layer.editFormConfig()
    found = {}
    for index, field in enumerate(layer.fields()):
        setup = layer.editorWidgetSetup(index)
        found[field.name()] = {
            "alias": layer.attributeAlias(index),
            "widget": setup.type(),
            "choices": setup.config().get("map"),
            "read only": form.readOnly(index),
        }
    return found


def form(layer):
    """Titles of groups and names of fields, as they stand in the form."""
    items = layer.editFormConfig().tabs()
    return [[c.name() for c in i.children()] if hasattr(i, "children") else i.name() for i in items]


def labels(layer):
    """What stands on the map at each feature."""
    if not layer.labelsEnabled():
        return None
    expression = QgsExpression(layer.labeling().settings().fieldName)
    assert not expression.hasParserError(), expression.parserErrorString()
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    found = []
    for feature in layer.getFeatures():
        context.setFeature(feature)
        found.append(expression.evaluate(context))
    return found


def described(layer):
    return {
        "renderer": layer.renderer().type(),
        "legend": legend(layer),
        "fields": fields(layer),
        "form": form(layer),
        "labels": labels(layer),
        "display": layer.displayExpression(),
    }


def geometries(layer):
    """How many polygons each category holds, which are invalid, and where they lie."""
    renderer, found = layer.renderer(), {}
    features = list(layer.getFeatures())
    for feature in features:
        category = renderer.categoryIndexForValue(feature[renderer.classAttribute()])
        value = str(renderer.categories()[category].value())
        found[value] = found.get(value, 0) + 1
    invalid = [feature.id() for feature in features if not feature.geometry().isGeosValid()]
    return {"counts": found, "invalid": invalid, "crs": layer.crs().authid()}


def change(layer, feature, field, value):
    index = layer.fields().indexFromName(field)
    assert layer.changeAttributeValue(feature.id(), index, value), (field, value)


def tick(layer, ticks):
    """Tick boxes in tiles, and mark these as reviewed."""
    assert layer.startEditing()
    for feature in layer.getFeatures():
        for field in [*ticks.get(feature["tile"], []), "reviewed"]:
            if feature["tile"] in ticks:
                change(layer, feature, field, True)
    assert layer.commitChanges(), layer.commitErrors()


def reclassify(layer, class_id):
    """Give the first polygon another class; return its fields."""
    assert layer.startEditing()
    change(layer, next(layer.getFeatures()), "class_id", class_id)
    assert layer.commitChanges(), layer.commitErrors()
    return dict(zip(layer.fields().names(), next(layer.getFeatures()).attributes(), strict=True))


def report(folder, ticks):
    sheet = vector(folder / "site_tags.gpkg")
    polygons = vector(folder / "map.gpkg")
    found = {
        "null": QgsValueMapFieldFormatter.NULL_VALUE,
        "raster": raster(folder / "map.tif"),
        "polygons": {**described(polygons), **geometries(polygons)},
        "sheet": described(sheet),
        "sample": described(vector(folder / "sample.gpkg")),
    }
    tick(sheet, ticks)
    found["labels after"] = dict(
        zip(QgsVectorLayerUtils.getValues(sheet, "tile")[0], labels(sheet), strict=True)
    )
    found["reclassified"] = reclassify(polygons, 0)
    return found


def main():
    folder, ticks = sys.argv[1:]
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    print(json.dumps(report(Path(folder), json.loads(ticks))))
    sys.stdout.flush()
    os._exit(0)  # QGIS's own end crashes without a screen


if __name__ == "__main__":
    main()
