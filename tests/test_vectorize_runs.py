"""Runs of vectorize: interrupted, refused, and on real maps."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from drawn_maps import (
    SHAPE,
    assert_covers,
    class_ids,
    counted,
    draw,
    layer,
    names,
    regions,
)
from helpers import write_raster
from rasterio.features import rasterize

from rsseg.api import vectorize
from rsseg.errors import InputError
from rsseg.progress import Silent

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
