"""Maps as Cloud-Optimized GeoTIFFs with their side files, read back by GDAL's own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from helpers import NORTH_UP, TRANSFORMS, UTM, noise, write_raster
from numpy.testing import assert_array_equal
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from rsseg.classes import Classes
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid
from rsseg.io import cog, mapfile
from rsseg.io.mapfile import check_map, strips, write_map
from rsseg.io.raster import Raster
from rsseg.io.style import category_names_xml, raster_qml
from rsseg.progress import Silent

CLASSES = Classes.from_dict(
    {
        "classes": [
            {"name": "field & wood", "id": 3, "colour": "#102030"},
            {"name": "toit rouge é", "id": 7, "colour": "#ff0000"},
        ]
    }
)
MAP_FILES = ["map.qml", "map.tif", "map.tif.aux.xml"]


def write(path, pixels, **options):
    """Write (C, H, W) or (H, W) pixels, strip by strip."""
    grid = Grid(pixels.shape[-2:], NORTH_UP, CRS.from_user_input(UTM).to_wkt())
    blocks = ((window, pixels[(..., *window.slices)]) for window in strips(grid.shape))
    count = 1 if pixels.ndim == 2 else len(pixels)
    write_map(path, grid, blocks, count=count, dtype=pixels.dtype.name, **options)
    return path


def ids(shape=(600, 1100), seed=0):
    return np.random.default_rng(seed).choice(np.array([3, 7, 255], "uint8"), shape)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def overview(path, level=0):
    with rasterio.open(path, overview_level=level) as dataset:
        return dataset.read()


# --- The layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (512, 512), (513, 40), (5, 1700), (1300, 900)])
@pytest.mark.parametrize(
    ("dtype", "count", "options"),
    [
        ("uint8", 1, {"classes": CLASSES}),
        ("uint8", 5, {"kind": "share"}),
        ("uint16", 4, {"kind": "number", "nodata": 0}),
        ("uint8", 3, {"nodata": None}),
        ("float32", 2, {"nodata": np.nan}),
    ],
    ids=["map", "shares", "masks", "picture", "floats"],
)
def test_what_is_written_is_a_cog_with_every_pixel(tmp_path, shape, dtype, count, options):
    pixels = noise((count, *shape), dtype) if count > 1 else ids(shape)
    path = write(tmp_path / "map.tif", pixels, **options)
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert_array_equal(dataset.read().reshape(pixels.shape), pixels)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        levels = dataset.overviews(1)
    assert bool(levels) == (max(shape) > 512)
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_an_overview_of_classes_shows_the_most_frequent_one(tmp_path):
    pixels = np.full((600, 600), 3, "uint8")
    pixels[1::2, ::2] = 7
    pixels[::2, 1::2] = 7  # two of four, and with the next line three of four
    pixels[1::2, 1::2] = 7
    pixels[:100] = 255
    (values,) = overview(write(tmp_path / "map.tif", pixels, classes=CLASSES))
    assert values.shape == (300, 300)
    assert (values[50:] == 7).all()
    assert (values[:50] == 255).all()


@pytest.mark.parametrize(("kind", "expected"), [("share", 150), ("image", 150), ("number", 100)])
def test_overviews_of_other_values(tmp_path, kind, expected):
    pixels = np.full((600, 600), 100, "uint8")
    pixels[:, 1::2] = 200
    (values,) = overview(write(tmp_path / "layer.tif", pixels, kind=kind))
    assert (values == expected).all()


def test_an_average_leaves_nodata_out(tmp_path):
    pixels = np.full((600, 600), 100, "uint8")
    pixels[:, 1::2] = 255
    (values,) = overview(write(tmp_path / "layer.tif", pixels, kind="share"))
    assert (values == 100).all()


def test_no_band_is_taken_for_alpha(tmp_path):
    picture = write(tmp_path / "picture.tif", noise((4, 20, 30)), nodata=None)
    shares = write(tmp_path / "shares.tif", noise((4, 20, 30)), kind="share")
    with rasterio.open(picture) as one, rasterio.open(shares) as other:
        assert [i.name for i in one.colorinterp] == ["red", "green", "blue", "undefined"]
        assert [i.name for i in other.colorinterp] == ["gray", *["undefined"] * 3]
    assert Raster(picture).valid(Raster(picture).grid.window).all()


@pytest.mark.parametrize("transform", TRANSFORMS.values())
def test_a_crs_that_geotiff_has_no_keys_for(tmp_path, transform):
    """GDAL keeps it in a side file, which a map of classes must not lose."""
    pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174533"
    source = Raster(write_raster(tmp_path / "a.tif", noise((1, 20, 30)), transform, pole))
    assert source.grid.crs is not None
    for name, classes in (("map.tif", CLASSES), ("layer.tif", None)):
        block = source.grid.window, np.full((20, 30), 3, "uint8")
        write_map(tmp_path / name, source.grid, [block], classes=classes)
        assert Raster(tmp_path / name).grid == source.grid
    assert "<Category>field &amp; wood</Category>" in (tmp_path / "map.tif.aux.xml").read_text()


def test_threads_change_no_byte(tmp_path, monkeypatch):
    pixels = ids((1700, 1500))
    write(tmp_path / "a.tif", pixels, classes=CLASSES)
    plain = rasterio.shutil.copy

    def alone(*paths, **options):
        plain(*paths, **{**options, "num_threads": 1})

    monkeypatch.setattr(rasterio.shutil, "copy", alone)
    write(tmp_path / "b.tif", pixels, classes=CLASSES)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


# --- GDAL's own tool -----------------------------------------------------------------------------


def gdalinfo(path: Path) -> Any:
    tool = shutil.which("gdalinfo")
    if tool is None:
        pytest.skip("gdalinfo is not on PATH")
    done = subprocess.run([tool, "-json", str(path)], capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def test_gdal_knows_the_classes(tmp_path):
    pixels = ids((1300, 1100))
    path = write(tmp_path / "map.tif", pixels, classes=CLASSES, tags={"RSSEG_MODEL": "m"})
    found = gdalinfo(path)
    (band,) = found["bands"]
    assert band["categories"] == ["", "", "", "field & wood", "", "", "", "toit rouge é"]
    assert band["noDataValue"] == 255
    assert band["colorInterpretation"] == "Palette"
    entries = band["colorTable"]["entries"]
    assert entries[3] == [0x10, 0x20, 0x30, 255]
    assert entries[7] == [255, 0, 0, 255]
    assert entries[255] == [0, 0, 0, 0]
    assert band["block"] == [512, 512]
    assert [one["size"] for one in band["overviews"]] == [[550, 650], [275, 325]]
    assert found["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    tags = found["metadata"][""]
    assert tags["RSSEG_MODEL"] == "m"
    assert json.loads(tags["RSSEG_CLASSES"]) == CLASSES.to_dict()
    assert found["geoTransform"] == list(NORTH_UP.to_gdal())
    assert sorted(Path(file).name for file in found["files"]) == ["map.tif", "map.tif.aux.xml"]


def test_gdal_knows_the_bands(tmp_path):
    path = write(tmp_path / "p.tif", noise((2, 20, 30)), kind="share", descriptions=["a", "b"])
    found = gdalinfo(path)
    assert [band["description"] for band in found["bands"]] == ["a", "b"]
    assert {band["noDataValue"] for band in found["bands"]} == {255}
    assert found["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert names(tmp_path) == ["p.tif"]


# --- Side files ----------------------------------------------------------------------------------


def test_the_side_files_are_there_before_the_map(tmp_path, monkeypatch):
    taken = []
    plain = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: taken.append(b.name) or plain(a, b))
    write(tmp_path / "map.tif", ids(), classes=CLASSES)
    assert (sorted(taken[:2]), taken[2:]) == (["map.qml", "map.tif.aux.xml"], ["map.tif"])
    assert names(tmp_path) == MAP_FILES
    assert (tmp_path / "map.qml").read_text(encoding="utf-8") == raster_qml(CLASSES)
    expected = category_names_xml(CLASSES)
    assert (tmp_path / "map.tif.aux.xml").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("name", ["map.qml", "map.tif.aux.xml", "map.tif.ovr", "map.tif.msk"])
def test_side_files_of_the_users_are_not_lost(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: exists already.*--overwrite"):
        write(tmp_path / "map.tif", ids(), classes=CLASSES)
    with pytest.raises(InputError, match="exists already"):
        check_map(tmp_path / "map.tif", CLASSES, False)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"
    write(tmp_path / "map.tif", ids(), classes=CLASSES, overwrite=True)
    assert names(tmp_path) == MAP_FILES


def test_a_folder_in_the_place_of_a_side_file(tmp_path):
    (tmp_path / "map.qml").mkdir()
    with pytest.raises(InputError, match=r"map\.qml: is a folder"):
        write(tmp_path / "map.tif", ids(), classes=CLASSES, overwrite=True)


def test_side_files_that_a_killed_run_left_are_ours(tmp_path):
    write(tmp_path / "map.tif", ids(), classes=CLASSES)
    (tmp_path / "map.tif").unlink()
    write(tmp_path / "map.tif", ids(), classes=CLASSES)
    assert names(tmp_path) == MAP_FILES


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_statistics_of_an_older_raster_do_not_survive(tmp_path, classes):
    path = write(tmp_path / "map.tif", ids(), classes=CLASSES)
    aside = tmp_path / "map.tif.aux.xml"
    aside.write_text("<PAMDataset><Metadata><MDI>STATISTICS_MEAN</MDI></Metadata></PAMDataset>")
    write(path, ids(seed=1), classes=classes, overwrite=True)
    if classes is None:
        assert names(tmp_path) == ["map.tif"]
    else:
        assert aside.read_text(encoding="utf-8") == category_names_xml(CLASSES)


def test_a_style_goes_with_its_map_but_one_of_the_users_stays(tmp_path):
    write(tmp_path / "map.tif", ids(), classes=CLASSES)
    write(tmp_path / "map.tif", ids(), overwrite=True)
    assert names(tmp_path) == ["map.tif"]
    (tmp_path / "map.qml").write_text("mine")
    write(tmp_path / "map.tif", ids(), overwrite=True)
    assert (tmp_path / "map.qml").read_text() == "mine"


def test_a_source_is_not_drawn_in_the_style_of_its_map(tmp_path):
    source = tmp_path / "map.jp2"
    source.write_text("")
    with pytest.raises(InputError, match=r"QGIS would draw .*map\.jp2 .* share map\.qml"):
        check_map(tmp_path / "map.tif", CLASSES, True, sources=[source])
    check_map(tmp_path / "map.tif", None, True, sources=[source])
    check_map(tmp_path / "other.tif", CLASSES, True, sources=[source])


# --- While it is written -------------------------------------------------------------------------


class Counting(Silent):
    """A progress that remembers how far it was, and may be interrupted on the way."""

    def __init__(self, stop: float = np.inf) -> None:
        self.labels: list[str] = []
        self.done = [0.0]
        self.stop = stop
        self.threads = 0

    @contextmanager
    def step(self, label: str, total: float, unit: str, done: float = 0) -> Iterator[Any]:
        self.labels.append(f"{label}: {total} {unit}")
        yield self

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done.append(self.done[-1] + amount)
        if self.done[-1] > self.stop:
            self.threads = threading.active_count()
            raise KeyboardInterrupt


@pytest.fixture
def watched(monkeypatch):
    """Small rasters show progress, often."""
    monkeypatch.setattr(mapfile, "SHOWN_PIXELS", 1)
    monkeypatch.setattr(cog, "POLL_SECONDS", 0.001)


@pytest.mark.usefixtures("watched")
def test_progress_of_strips_and_of_the_copy(tmp_path):
    shown = Counting()
    write(tmp_path / "map.tif", ids((1600, 1500)), classes=CLASSES, progress=shown)
    area = 1600 * 1500
    assert shown.labels == [f"save map.tif: {area} px"]
    assert shown.done[4] == area / 2  # four strips
    assert len(shown.done) > 6
    assert (np.diff(shown.done) >= 0).all()
    assert shown.done[-1] == pytest.approx(area)


def test_small_rasters_need_no_progress(tmp_path):
    shown = Counting()
    write(tmp_path / "map.tif", ids(), classes=CLASSES, progress=shown)
    assert shown.labels == []


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_an_interruption_leaves_nothing_and_nobody_waits(tmp_path, share):
    shown = Counting(stop=share * 1600 * 1500)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "map.tif", ids((1600, 1500)), classes=CLASSES, progress=shown)
    assert shown.threads == before + (share > 0.5)
    assert threading.active_count() == before
    assert names(tmp_path) == []


@pytest.mark.usefixtures("watched")
def test_an_interrupted_copy_finds_nothing_more_to_read(tmp_path, monkeypatch):
    emptied = []

    def endless(source, *_, **__):
        deadline = time.monotonic() + 60
        while source.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.001)
        emptied.append(source.stat().st_size == 0)

    plain = write(tmp_path / "plain.tif", ids())
    monkeypatch.setattr(rasterio.shutil, "copy", endless)
    shown = Counting(stop=-1)
    with pytest.raises(KeyboardInterrupt):
        cog.copy_as_cog(
            plain,
            tmp_path / "map.tif",
            resampling="mode",
            predictor=False,
            block_side=512,
            tell=shown.advance,
        )
    assert emptied == [True]


def test_what_a_killed_run_left_is_removed(tmp_path):
    for suffix in ("", ".plain", ".ovr.tmp", ".plain.aux.xml"):
        (tmp_path / f".map.part.tif{suffix}").write_text("left by kill -9")
    write(tmp_path / "map.tif", ids(), classes=CLASSES)
    assert names(tmp_path) == MAP_FILES


def test_a_disk_that_fills_up_during_the_copy(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX only")
    size = write(tmp_path / "map.tif", ids((1600, 1500)), classes=CLASSES).stat().st_size
    for path in tmp_path.iterdir():
        path.unlink()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = rasterio.shutil.copy

    def onto_a_full_disk(*paths, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 3, old[1]))
        plain(*paths, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", onto_a_full_disk)
    try:
        with pytest.raises(RunError, match=r"map\.tif: "):
            write(tmp_path / "map.tif", ids((1600, 1500)), classes=CLASSES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == []
