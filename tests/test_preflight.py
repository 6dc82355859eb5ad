"""What is said, warned of and refused in the first second of tile, pseudo-label and predict."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from helpers import Listener, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from small_models import write_model

from rsseg.api import predict, preflight, pseudo_label, tag, tile, tiling
from rsseg.api.preflight import (
    WHOLE_WIDTH,
    Reading,
    check_disk,
    check_memory,
    complaint,
    look_at,
    span,
)
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.errors import InputError
from rsseg.io import machine
from rsseg.io.layout import Layout, read_header
from rsseg.io.machine import Memory, memory
from rsseg.io.opening import cache_bytes
from rsseg.ops.decoding import times_decoded

MAPPING = Reading((512, 512), (384, 384), readers=2)
CUTTING = Reading((192, WHOLE_WIDTH), (192, WHOLE_WIDTH))
CACHE = 2**28
GIB = 2**30


class Hearer(Listener):
    """Also remembers the notes, and which rasters' pixels were asked for in between."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, message):
        self.notes.append(message)


# --- How often a pixel is decoded ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "cache", "readers", "sequential", "times"),
    [
        ((512, 512), 2**28, 1, False, 1),  # a row of windows waits for the next one
        ((1, 10_000), 2**28, 1, False, 1),
        ((1, 10_000), 2**28, 4, False, 4),  # each reader decodes all
        ((1, 10_000), 2**28, 1, True, 1),  # from top to bottom, never back
        ((1, 10_000), 2**20, 1, False, 512 * 10_000 / 384**2),  # each window decodes all strips
        ((10_000, 10_000), 2**20, 1, False, 1e8 / 384**2),
        ((512, 512), 2**21, 1, False, 1023 / 384),  # a window fits, a row of windows does not
        ((1, 10_000), 2**20, 1, True, 1e8 / 2 / 384**2),
    ],
)
def test_times_decoded(block, cache, readers, sequential, times):
    found = times_decoded(
        (10_000, 10_000),
        block,
        (512, 512),
        (384, 384),
        cache=cache,
        readers=readers,
        sequential=sequential,
    )
    assert found == pytest.approx(times, rel=0.01)


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.integers(1, 800),
    st.integers(1, 800),
    st.integers(0, 10**8),
    st.integers(0, 9),
    st.booleans(),
)
def test_more_cache_never_decodes_more(shape, block, window, stride, cache, readers, sequential):
    def times(kept):
        sides = (window, window), (min(stride, window),) * 2
        return times_decoded(
            shape, block, *sides, cache=kept, readers=readers, sequential=sequential
        )

    assert 1 <= times(10 * cache + 1) <= max(times(cache), times(0)) * (1 + 1e-9)
    assert math.isfinite(times(cache))


# --- What is named, and what is not --------------------------------------------------------------


def layout(shape, block, pixel_bytes=3, sequential=False):
    return Layout(Path("a.tif"), shape, block, pixel_bytes, sequential)


@pytest.mark.parametrize(
    "fine",
    [
        layout((1999, 2000), (1, 2000)),  # small
        layout((1999, 2000), (1999, 2000)),
        layout((1999, 2000), (1, 2000), sequential=True),
        layout((8192, 8192), (256, 256)),
        layout((100_000, 100_000), (512, 512)),
        layout((60_000, 60_000), (512, 512), pixel_bytes=16),
        layout((60_000, 60_000), (1024, 1024)),
    ],
)
@pytest.mark.parametrize("reading", [MAPPING, CUTTING])
def test_good_layouts_are_not_mentioned(fine, reading):
    assert complaint(fine, reading, CACHE) is None


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (layout((8192, 8192), (1, 8192)), "strips of 8192 x 1 px, windows are read faster"),
        (layout((8192, 8192), (1, 8192), sequential=True), "only be decoded from the top down"),
        (layout((90_000, 90_000), (1, 90_000)), "each pixel is decoded about 312 times"),
        (layout((20_000, 20_000), (20_000, 20_000)), "is one single block, so each pixel is"),
        (layout((60_000, 60_000), (8192, 8192)), "tiles of 8192 x 8192 px, so each pixel is"),
    ],
)
def test_bad_layouts_are_named_with_the_fix(bad, named):
    text = complaint(bad, MAPPING, CACHE)
    assert text is not None
    assert named in text
    assert text.startswith("a.tif: ")
    assert text.endswith("run: gdal_translate -of COG a.tif a_cog.tif")
    assert "\n" not in text


def test_whole_rows_are_cut_from_strips_at_no_cost():
    text = complaint(layout((90_000, 90_000), (1, 90_000)), CUTTING, CACHE)
    assert text is not None
    assert "times" not in text


# --- Files ---------------------------------------------------------------------------------------


PIXELS = np.zeros((3, 2000, 2100), np.uint8)

KINDS = {
    "strips": ({}, "lies in strips of 2100 x 1 px"),
    "one strip": ({"compress": "deflate", "blockysize": 2000}, "is one single block"),
    "one raw strip": ({"blockysize": 2000}, "lies in strips of 2100 x 1 px"),
    "one block": (
        {"tiled": True, "blockxsize": 2112, "blockysize": 2000, "compress": "deflate"},
        "is one single block",
    ),
    "png": ({"driver": "PNG", "transform": None, "crs": None}, "can only be decoded from the top"),
    "tiles": ({"tiled": True, "blockxsize": 256, "blockysize": 256}, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_files(tmp_path, kind):
    options, named = KINDS[kind]
    path = write_raster(tmp_path / "a b.tif", PIXELS, **options)
    hearer = Hearer()
    (found,) = look_at([path], MAPPING, hearer)
    assert found.shape == (2000, 2100)
    assert found.pixel_bytes == 3
    assert "2100 x 2000 px, 3 bands of uint8" in hearer.notes[0]
    assert len(hearer.warnings) == (named is not None)
    if named is not None:
        assert named in hearer.warnings[0]
        assert f"COG '{path}' '{tmp_path / 'a b_cog.tif'}'" in hearer.warnings[0]


def test_a_great_strip_that_gdal_cuts_into_rows_is_still_one(tmp_path):
    pixels = np.zeros((3, 4000, 4500), np.uint8)
    for compress, sequential in (("deflate", True), ("none", False)):
        path = tmp_path / f"{compress}.tif"
        write_raster(path, pixels, compress=compress, blockysize=4000)
        (found,) = read_header(path).layouts
        assert (found.block, found.sequential) == ((1, 4500), sequential)


def test_the_summary_says_what_the_header_says(tmp_path):
    pixels = noise((1, 30, 40), "uint16")
    write_raster(tmp_path / "a.tif", pixels, nodata=7)
    write_raster(tmp_path / "b.tif", noise((4, 30, 40), "float32"), crs=None, transform=None)
    assert read_header(tmp_path / "a.tif").summary == (
        "a.tif: 40 x 30 px, 1 band of uint16, EPSG:32633, nodata 7, blocks of 40 x 30 px"
    )
    summary = read_header(tmp_path / "b.tif").summary
    assert "4 bands of float32, no CRS, no nodata value" in summary


def test_sources_of_a_mosaic_are_looked_at(tmp_path):
    write_raster(tmp_path / "source.tif", PIXELS)
    vrt = tmp_path / "mosaic.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">source.tif</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    vrt.write_text(f'<VRTDataset rasterXSize="2100" rasterYSize="2000">{bands}</VRTDataset>')
    hearer = Hearer()
    look_at([vrt], MAPPING, hearer)
    assert len(hearer.warnings) == 1
    assert "source.tif: lies in strips" in hearer.warnings[0]
    (tmp_path / "source.tif").unlink()
    assert [one.path for one in read_header(vrt).layouts] == [vrt]


def test_many_rasters_are_one_warning(tmp_path):
    paths = [write_raster(tmp_path / f"{name}.tif", PIXELS) for name in "abc"]
    hearer = Hearer()
    look_at(paths, MAPPING, hearer)
    assert hearer.notes == []
    assert len(hearer.warnings) == 1
    assert hearer.warnings[0].startswith(str(paths[0]))
    assert hearer.warnings[0].endswith("(2 more rasters alike)")


def test_no_pixel_is_read(tmp_path):
    """A file of which all blocks are cut off still has its header looked at."""
    path = write_raster(tmp_path / "a.tif", noise((3, 2000, 2100)), compress="deflate")
    whole = read_header(path).summary
    with rasterio.open(path) as dataset:
        first = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    assert first < path.stat().st_size
    size = path.stat().st_size
    with path.open("r+b") as file:  # the pixels become zeros, which deflate cannot read
        file.seek(first)
        file.write(bytes(min(10**6, size - first)))
    assert read_header(path).summary == whole


def test_a_file_that_is_none_is_an_input_error(tmp_path):
    (tmp_path / "a.tif").write_text("nothing")
    with pytest.raises(InputError, match="not a raster"):
        look_at([tmp_path / "a.tif"], MAPPING, Hearer())


# --- Memory and disk -----------------------------------------------------------------------------


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of 4 GiB, 2 of them free, of which this process has 1."""
    monkeypatch.setattr(preflight, "memory", lambda: Memory(4 * GIB, 2 * GIB, GIB))


@pytest.mark.parametrize(
    ("least", "extra", "outcome"),
    [(GIB, GIB // 2, "fits"), (GIB, 2 * GIB, "warned"), (3 * GIB + 1, 0, "refused")],
)
def test_memory(small_machine, least, extra, outcome):
    hearer = Hearer()
    if outcome == "refused":
        with pytest.raises(InputError, match=r"4\.3 GB of memory are needed.*has 4\.3 GB; less"):
            check_memory("predict", least, extra, "less", hearer)
        return
    assert check_memory("predict", least, extra, "less", hearer) == GIB + least + extra
    assert len(hearer.warnings) == (outcome == "warned")


def test_blocks_that_do_not_fit_are_refused_unread(tmp_path, small_machine, monkeypatch):
    path = write_raster(tmp_path / "a.tif", PIXELS, **KINDS["one block"][0])
    header = read_header(path)
    huge = replace(header.layouts[0], shape=(40_000, 40_000), block=(40_000, 40_000))
    monkeypatch.setattr(preflight, "read_header", lambda _: replace(header, layouts=[huge]))
    with pytest.raises(InputError, match=r"one single block, each 4\.8 GB.*4\.3 GB of mem.*COG"):
        look_at([path], MAPPING, Hearer())


@pytest.mark.parametrize(("free", "outcome"), [(101, "fits"), (99, "warned"), (4, "refused")])
def test_disk(tmp_path, monkeypatch, free, outcome):
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    hearer = Hearer()
    if outcome == "refused":
        with pytest.raises(InputError, match=r"GB of disk are needed.*make room"):
            check_disk(100, tmp_path, "make room", hearer)
        return
    check_disk(100, tmp_path, "make room", hearer)
    assert len(hearer.warnings) == (outcome == "warned")


def test_this_machine():
    found = memory()
    assert 0 < found.own < found.total
    assert 0 < found.free <= found.total


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": "4096"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "5000"}, 5000),
        ("0::/a\n", {"a/memory.max": "4000", "memory.max": "3000"}, 3000),
        ("0::/\n4:cpu,memory:/job\n", {"memory/job/memory.limit_in_bytes": "77"}, 77),
        ("4:cpu:/job\n", {"memory/job/memory.limit_in_bytes": "77"}, None),
        (None, {}, None),
    ],
)
def test_limits_of_containers(tmp_path, membership, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    assert machine._cgroup_limit(tmp_path / "cgroup", tmp_path) == limit


@pytest.mark.parametrize(
    ("text", "size"),
    [("256", 2**28), ("1000000", 10**6), ("5%", 2**28), ("64", 2**26)],
)
def test_the_cache_that_the_user_asks_for(monkeypatch, text, size):
    monkeypatch.setitem(os.environ, "GDAL_CACHEMAX", text)
    assert cache_bytes() == size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "less than a minute"), (70, "about a minute"), (600, "about 10 min"), (9000, "2.5 h")],
)
def test_spans(seconds, words):
    assert words in span(seconds)


# --- The command lines ---------------------------------------------------------------------------


def test_tile_says_what_it_will_take_before_it_begins(tmp_path, monkeypatch, capsys):
    path = write_raster(tmp_path / "a.tif", PIXELS)

    def stop(*_):
        raise InputError("the work began")

    monkeypatch.setattr(tiling, "create", stop)
    code = main(["tile", str(path), "--out", str(tmp_path / "s.zarr"), "--classes", "a,b"])
    said = capsys.readouterr().err
    assert code == 2
    before, _, _ = said.partition("the work began")
    assert "3 bands of uint8" in before
    assert "lies in strips" in before
    assert "gdal_translate -of COG" in before
    assert "GB of disk" in before
    assert "GB of memory" in before


def test_what_does_not_fit_ends_with_code_2_and_nothing_written(tmp_path, monkeypatch, capsys):
    path = write_raster(tmp_path / "a.tif", PIXELS)
    monkeypatch.setattr(preflight, "memory", lambda: Memory(10**6, 10**6, 10**6))
    code = main(["tile", str(path), "--out", str(tmp_path / "s.zarr"), "--classes", "a,b"])
    said = capsys.readouterr().err
    assert code == 2
    assert "GB of memory" in said
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_predict_says_what_it_will_take(tmp_path, capsys):
    path = write_raster(tmp_path / "a.tif", noise((3, 300, 300)), tiled=True)
    model = write_model(tmp_path / "model.pt")
    words = ["predict", path, "--model", model, "--out", tmp_path / "m.tif", "--device", "cpu"]
    assert main([*map(str, words), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "a.tif: 300 x 300 px, 3 bands of uint8, EPSG:32633" in said
    assert "windows of 64 px; up to 0.00 GB of disk" in said
    assert "GB of memory" in said
    assert "warning" not in said


def test_predict_refuses_what_cannot_fit_before_it_begins(tmp_path, capsys, monkeypatch):
    path = write_raster(tmp_path / "a.tif", PIXELS, tiled=True)
    model = write_model(tmp_path / "model.pt")
    own = memory().own
    monkeypatch.setattr(preflight, "memory", lambda: Memory(own + 17 * 10**6, own, own))
    words = [*("predict", path, "--model", model, "--out", tmp_path / "m.tif"), "--device", "cpu"]
    before = sorted(tmp_path.iterdir())
    assert main([*map(str, words), "--batch-size", "1200"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: predict: about ")
    assert "give a smaller --batch-size" in said
    assert sorted(tmp_path.iterdir()) == before
    main([*map(str, words), "--batch-size", "4", "--dry-run"])
    assert "error" not in capsys.readouterr().err


def test_what_is_asked_beyond_the_raster_takes_no_memory(tmp_path):
    path = write_raster(tmp_path / "a.tif", noise((3, 300, 300)))
    model = write_model(tmp_path / "model.pt")
    out, options = tmp_path / "map.tif", {"device": "cpu", "dry_run": True}
    (usual,) = predict(path, model, out, block_rows=300, batch_size=49, **options)
    (huge,) = predict(path, model, out, block_rows=10**9, batch_size=10**7, **options)
    assert huge.plan.memory_bytes == usual.plan.memory_bytes


@pytest.fixture
def linked_site(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.where(PIXELS == 0, 5, PIXELS).astype(np.uint8))
    site = tmp_path / "site.zarr"
    tile([path], site, Classes.from_names(["a", "b"]), link=True)
    (tmp_path / "tags.csv").write_text("tile,a,b\na/0/0,1,0\na/0/1,0,1\n")
    tag(site, [tmp_path / "tags.csv"])
    return site


@pytest.mark.parametrize(("free", "refused"), [(10**12, False), (1000, True)])
def test_pseudo_label_looks_at_what_a_site_links_to(linked_site, monkeypatch, free, refused):
    def stop(*_):
        raise InputError("the work began")

    monkeypatch.setattr("rsseg.api.labelling.classifier_of", stop)
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    hearer = Hearer()
    expected = "GB of disk are needed" if refused else "the work began"
    with pytest.raises(InputError, match=expected):
        pseudo_label(linked_site, device="cpu", until="cam", progress=hearer)
    assert "a.tif: lies in strips of 2100 x 1 px" in hearer.warnings[0]
    assert any("GB of memory" in note for note in hearer.notes) != refused


def test_cutting_a_site_loads_neither_networks_nor_a_compiler():
    script = "import sys, rsseg.api.tiling; print({'torch', 'numba'} & set(sys.modules))"
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
