"""What QGIS makes of rsseg's files: one process of the Python that has QGIS reads them all."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from helpers import NORTH_UP, UTM, noise, write_features, write_raster

from rsseg.api import tile, vectorize
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.config import TileConfig
from rsseg.grid import Grid
from rsseg.io.mapfile import write_map
from rsseg.io.site import Site
from rsseg.io.style import embed_style, sample_qml
from rsseg.io.tag_sheet import class_fields

PYTHON = Path(os.environ.get("RSSEG_QGIS_PYTHON", "/usr/bin/python3"))
"""The Python that has QGIS: the system's, where QGIS was installed with the package manager."""

NAMES = ("other", 'wood & "scrub" <1>', "été's end", "water\\n")
CLASSES = Classes.from_dict(
    {
        "classes": [
            {"name": name, "id": class_id, "colour": colour}
            for name, class_id, colour in zip(
                NAMES, (0, 7, 3, 254), ("#808080", "#102030", "#ff0000", "#0000ff"), strict=True
            )
        ]
    }
)
LEGEND = [(0, NAMES[0], "#808080"), (7, NAMES[1], "#102030")]
LEGEND += [(3, NAMES[2], "#ff0000"), (254, NAMES[3], "#0000ff")]
CHOICES = [{name: class_id} for class_id, name, _ in LEGEND]
FIELDS = dict(zip(NAMES, class_fields(CLASSES), strict=True))
TICKS = {
    "ortho/0/0": [FIELDS[NAMES[1]], FIELDS[NAMES[2]]],
    "ortho/0/1": [FIELDS[NAMES[3]]],
    "ortho/1/1": [],
}


def without_foreign_settings() -> dict[str, str]:
    """This process's environment without what makes another Python load this one's libraries."""
    foreign = ("PYTHON", "VIRTUAL_ENV", "GDAL", "PROJ", "QT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@cache
def why_no_qgis() -> str:
    """Why QGIS cannot be used here; empty where it can."""
    if not PYTHON.exists():
        return f"there is no {PYTHON}; set RSSEG_QGIS_PYTHON to the Python that has QGIS"
    command = [str(PYTHON), "-c", "import qgis.core"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=without_foreign_settings(), check=False
    )
    return f"{PYTHON} cannot import qgis ({done.stderr[-200:].strip()})" if done.returncode else ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A map, its polygons, a site with its tag sheet, and points to be interpreted."""
    folder = tmp_path_factory.mktemp("qgis")
    grid = Grid((64, 64), NORTH_UP, UTM)
    ids = np.tile(np.array([0, 7, 3, 255], np.uint8), (64, 16))
    write_map(folder / "map.tif", grid, [(grid.window, ids)], classes=CLASSES)
    sure = write_raster(folder / "sure.tif", np.full(ids.shape, 254, np.uint8), nodata=255)
    vectorize(folder / "map.tif", folder / "map.gpkg", confidence=sure)
    points = shapely.points([[0, 0], [1, 1]])
    write_features(folder / "sample.gpkg", points, point=[1, 2], reference=[7, 7], stratum=[1, 2])
    embed_style(folder / "sample.gpkg", "sample", sample_qml(CLASSES, hidden=["stratum"]))
    ortho = write_raster(folder / "ortho.tif", noise((3, 128, 128)), Affine(2, 0, 0, 0, -2, 0))
    tile([ortho], folder / "site.zarr", CLASSES, config=TileConfig(size=64, overlap=0))
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    """What ``qgis_reader.py`` prints."""
    if why_no_qgis():
        pytest.skip(why_no_qgis())
    script = Path(__file__).with_name("qgis_reader.py")
    done = subprocess.run(
        [str(PYTHON), str(script), str(folder), json.dumps(TICKS)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        # A home of its own: nothing of the user's QGIS is read or changed.
        env={
            **without_foreign_settings(),
            "QT_QPA_PLATFORM": "offscreen",
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_raster_has_the_legend_of_its_classes(seen):
    assert seen["raster"] == {
        "renderer": "paletted",
        "legend": [[class_id, name, colour, 255] for class_id, name, colour in LEGEND],
        "nodata": 255,
    }


def test_polygons_have_the_legend_of_their_classes(seen):
    polygons = seen["polygons"]
    assert polygons["renderer"] == "categorizedSymbol"
    assert polygons["legend"] == [
        [str(class_id), name, colour] for class_id, name, colour in LEGEND
    ]
    assert polygons["labels"] is None
    assert polygons["counts"] == {str(class_id): 16 for class_id in (0, 7, 3)}
    assert list(polygons["fields"]) == ["fid", "class_id", "class_name", "area_m2", "confidence"]
    assert polygons["crs"] == UTM
    assert not polygons["invalid"]


def test_a_polygon_takes_another_class_by_name(seen):
    fields = seen["polygons"]["fields"]
    assert fields["class_id"]["widget"] == "ValueMap"
    assert fields["class_id"]["choices"] == CHOICES
    assert fields["class_name"]["read only"]
    assert seen["reclassified"]["class_id"] == 0
    assert seen["reclassified"]["class_name"] == NAMES[0]


def test_sheet_opens_with_check_boxes(seen):
    fields = seen["sheet"]["fields"]
    for name in NAMES[1:]:
        box = fields[FIELDS[name]]
        assert (box["alias"], box["widget"], box["read only"]) == (name, "CheckBox", False)
    assert fields["reviewed"]["widget"] == "CheckBox"
    assert all(fields[name]["read only"] for name in ("tile", "scene", "row", "col"))
    assert FIELDS["other"] not in fields
    assert seen["sheet"]["form"] == ["tile", [FIELDS[name] for name in NAMES[1:]], "reviewed"]
    assert seen["sheet"]["display"] == '"tile"'


def test_sheet_tells_reviewed_tiles_from_others(seen):
    assert [entry[1] for entry in seen["sheet"]["legend"]] == ["reviewed", "to be tagged"]
    assert seen["sheet"]["labels"] == [""] * 4
    assert seen["labels after"] == {
        "ortho/0/0": f"{NAMES[1]}\n{NAMES[2]}",
        "ortho/0/1": NAMES[3],
        "ortho/1/0": "",
        "ortho/1/1": "–",
    }


def test_ticks_made_in_qgis_are_read(seen, folder):
    sheet = folder / "site_tags.gpkg"
    assert main(["tag", str(folder / "site.zarr"), "--from", str(sheet)]) == 0
    (scene,) = Site(folder / "site.zarr").scenes.values()
    expected = [[[1, 1, 1, 0], [1, 0, 0, 1]], [[-1] * 4, [1, 0, 0, 0]]]
    assert scene.tags.tolist() == expected


def test_sample_asks_for_a_class_and_tells_nothing(seen):
    sample = seen["sample"]
    reference = sample["fields"]["reference"]
    assert reference["widget"] == "ValueMap"
    assert reference["choices"] == [{"(still open)": seen["null"]}, *CHOICES]
    assert not reference["read only"]
    assert sample["form"] == ["point", "reference"]
    assert sample["fields"]["stratum"]["widget"] == "Hidden"
    assert [label for _, label in sample["legend"]] == ["to be interpreted", "interpreted"]
    assert sample["labels"] == [1, 2]
