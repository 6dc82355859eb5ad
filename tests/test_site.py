"""The site: what tile makes of rasters, and what its layers promise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  # gives xarray its .rio
import xarray
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM, Listener, noise, write_features, write_raster
from numpy.testing import assert_array_equal
from shapely.geometry import box

import rsseg.io.build as build_module
import rsseg.io.site as site_module
from rsseg.api import pseudo_label, tag, tile
from rsseg.classes import Classes
from rsseg.config import ClassifierConfig, Settings, TileConfig
from rsseg.errors import InputError
from rsseg.grid import Tiling, Window
from rsseg.io.build import SitePlan, scene_names
from rsseg.io.layers import LayerSpec
from rsseg.io.raster import Raster
from rsseg.io.site import Site, sheet_path

CLASSES = Classes.from_names(["building"])
TILES = TileConfig(64, 0.25)
CORE, HALO = 48, 8
SHAPE = (100, 150)


def pixels(seed=0, shape=SHAPE, count=3, dtype="uint8"):
    """Noise whose first tile core is 0."""
    image = noise((count, *shape), dtype, seed)
    image[:, :CORE, :CORE] = 0
    return image


def make(folder, rasters=None, name="site.zarr", **options):
    if rasters is None:
        rasters = [write_raster(folder / "a.tif", pixels(), nodata=0)]
    return tile(rasters, folder / name, CLASSES, config=TILES, **options)


def tree(folder):
    """Every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def everything(scene):
    return scene.read(scene.grid.window)


# --- Pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
def test_a_scene_is_its_raster(tmp_path, link):
    scene = make(tmp_path, link=link).scenes["a"]
    image, valid = everything(scene)
    assert_array_equal(image, pixels())
    assert_array_equal(valid, pixels().any(axis=0))
    assert (scene.grid.shape, scene.grid.transform, scene.linked) == (SHAPE, NORTH_UP, link)
    assert (scene.tiling.core, scene.tiling.halo, scene.tiling.counts) == (CORE, HALO, (3, 4))
    assert_array_equal(np.argwhere(~scene.tile_valid), [[0, 0]])


def test_copied_and_linked_sites_differ_in_nothing_but_where_pixels_lie(tmp_path):
    copied, linked = (
        make(tmp_path, name=f"{link}.zarr", link=link).scenes["a"] for link in (False, True)
    )
    for window in [copied.tiling[0, 0].read, copied.tiling[2, 3].read, Window(-70, 140, 90, 90)]:
        for one, other in zip(copied.read(window), linked.read(window), strict=True):
            assert_array_equal(one, other)
    assert_array_equal(copied.tile_valid, linked.tile_valid)
    assert "image" not in linked.group
    assert "image" in copied.group


def test_beyond_the_raster_pixels_are_mirrored_and_not_valid(tmp_path):
    image = noise((3, *SHAPE))
    scene = make(tmp_path, [write_raster(tmp_path / "a.tif", image)]).scenes["a"]
    read, valid = scene.read(Window(-20, -30, 150, 230))
    pad = ((20, 30), (30, 50))
    assert_array_equal(read, np.pad(image, ((0, 0), *pad), mode="symmetric"))
    assert_array_equal(valid, np.pad(np.ones(SHAPE, bool), pad))


@pytest.mark.parametrize("hold", [True, False])
def test_pixels_held_in_memory_are_the_same(tmp_path, monkeypatch, hold):
    make(tmp_path)
    monkeypatch.setattr(site_module, "HOLD_BYTES", 2**30 if hold else 0)
    scene = Site(tmp_path / "site.zarr").scenes["a"]
    assert scene.hold == hold
    assert_array_equal(everything(scene)[0], pixels())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_any_dtype_and_band_count(tmp_path, dtype):
    image = noise((5, 70, 40), dtype)
    site = make(tmp_path, [write_raster(tmp_path / "a.tif", image)])
    assert (site.bands.dtype, len(site.bands), site.bands.indices) == (dtype, 5, (1, 2, 3, 4, 5))
    assert_array_equal(everything(site.scenes["a"])[0], image)


def test_bands_are_those_asked_for_in_that_order(tmp_path):
    image = noise((4, 70, 40))
    raster = write_raster(tmp_path / "a.tif", image)
    site = make(tmp_path, [raster], bands=[4, 2], rgb=[2, 4, 4])
    assert (site.bands.indices, site.bands.rgb) == ((4, 2), (1, 0, 0))
    assert_array_equal(everything(site.scenes["a"])[0], image[[3, 1]])


def test_not_finite_is_not_valid(tmp_path):
    image = noise((1, 70, 40), "float32")
    image[0, :10], image[0, 10:20] = np.nan, np.inf
    site = make(tmp_path, [write_raster(tmp_path / "a.tif", image)])
    _, valid = everything(site.scenes["a"])
    assert_array_equal(valid, np.isfinite(image[0]))
    assert np.isfinite(site.bands.mean).all()


def test_a_raster_smaller_than_a_tile_is_one(tmp_path):
    site = make(tmp_path, [write_raster(tmp_path / "a.tif", noise((3, 20, 30)))])
    scene = site.scenes["a"]
    assert scene.tiling.counts == (1, 1)
    assert scene.read(scene.tiling[0, 0].read)[0].shape == (3, 64, 64)


# --- Several scenes ------------------------------------------------------------------------------


def test_scenes_may_differ_in_crs_and_size(tmp_path):
    degrees = Affine(1e-5, 0, 15, 0, -1e-5, 45)
    rasters = [
        write_raster(tmp_path / "a.tif", noise((3, 100, 150), seed=1)),
        write_raster(tmp_path / "b.tif", noise((3, 60, 60), seed=2), degrees, "EPSG:4326"),
        write_raster(tmp_path / "c d.tif", noise((3, 60, 60), seed=3), TRANSFORMS["rotated"]),
    ]
    site = make(tmp_path, rasters)
    assert list(site.scenes) == ["a", "b", "c_d"]
    for path, scene in zip(rasters, site.scenes.values(), strict=True):
        with rasterio.open(path) as dataset:
            assert_array_equal(everything(scene)[0], dataset.read())
            assert scene.grid.transform == dataset.transform
            assert rasterio.CRS.from_wkt(scene.grid.crs) == dataset.crs
    sheet = geopandas.read_file(sheet_path(site.path))
    assert len(sheet) == sum(len(scene.tiling) for scene in site.scenes.values())


def test_statistics_are_pooled_over_the_valid_pixels_of_all_scenes(tmp_path):
    images = [pixels(1), pixels(2, (60, 90))]
    rasters = [
        write_raster(tmp_path / f"{name}.tif", image, nodata=0)
        for name, image in zip("ab", images, strict=True)
    ]
    bands = make(tmp_path, rasters).bands
    pooled = np.concatenate([image[:, image.any(axis=0)] for image in images], axis=1)
    assert bands.mean == pytest.approx(pooled.mean(axis=1))
    assert bands.std == pytest.approx(pooled.std(axis=1))
    assert bands.low == pytest.approx(np.percentile(pooled, 2, axis=1))
    assert bands.high == pytest.approx(np.percentile(pooled, 98, axis=1))


def test_statistics_do_not_depend_on_the_tiling(tmp_path):
    raster = write_raster(tmp_path / "a.tif", pixels(), nodata=0)
    found = [
        tile([raster], tmp_path / f"{size}_{link}.zarr", CLASSES, config=config, link=link).bands
        for size, config in enumerate([TileConfig(32, 0), TILES, TileConfig(256, 0.5)])
        for link in (False, True)
    ]
    assert len(set(found)) == 1


def test_statistics_are_frozen(tmp_path):
    site = make(tmp_path)
    raster = tmp_path / "a.tif"
    raster.unlink()
    write_raster(raster, noise((3, *SHAPE), seed=5) // 2)
    again = Site(site.path)
    assert again.bands == site.bands
    assert_array_equal(everything(again.scenes["a"])[0], pixels())


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/a.tif", "y/a.tif", "z/a.tif"], ["a", "a_2", "a_3"]),
        (["a.tif", "x/a_2.tif", "y/a.tif"], ["a", "a_2", "a_3"]),
        (["ä b.tif", "a:b.jp2"], ["ä_b", "a_b"]),
    ],
)
def test_every_scene_has_its_own_name(files, names):
    assert scene_names([Path(file) for file in files]) == names


def test_chips_are_scenes_of_one_tile(tmp_path):
    folder = tmp_path / "chips"
    folder.mkdir()
    shapes = {"one": (64, 64), "two": (50, 70)}
    for seed, (name, shape) in enumerate(shapes.items()):
        write_raster(
            folder / f"{name}.png", noise((3, *shape), seed=seed), None, None, driver="PNG"
        )
    site = make(tmp_path, [folder], chips=True)
    assert (site.core, site.halo) == (80, 0)
    assert {name: scene.grid.shape for name, scene in site.scenes.items()} == shapes
    assert [scene.tiling.counts for scene in site.scenes.values()] == [(1, 1), (1, 1)]
    assert site.ground_sample_distance is None


# --- What other programs see ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "crs"),
    [*((transform, UTM) for transform in TRANSFORMS.values()), (NORTH_UP, "EPSG:3857")],
)
def test_xarray_and_rioxarray_know_where_scenes_and_layers_lie(tmp_path, transform, crs):
    site = make(tmp_path, [write_raster(tmp_path / "a.tif", pixels(), transform, crs)])
    site.scenes["a"].layer(LayerSpec("cam", "uint8", 2, 8), "0")
    site.scenes["a"].layer(LayerSpec("labels", "uint8", fill=255), "0")
    groups = {"": ("image", 1, (3, 100, 150)), "cam-0": ("cam", 8, (2, 13, 19))}
    groups["labels-0"] = ("labels", 1, (100, 150))
    for group, (name, cell, shape) in groups.items():
        path = site.path / "scenes" / "a" / group
        with xarray.open_zarr(path, consolidated=False, decode_coords="all") as dataset:
            array = dataset[name]
            assert array.rio.crs == rasterio.CRS.from_user_input(crs)
            assert array.rio.transform().almost_equals(transform @ Affine.scale(cell), 1e-6)
            assert array.shape == shape
            assert dataset.attrs["spatial:shape"] == list(shape[-2:])
            assert dataset.attrs["spatial:transform"] == list(transform @ Affine.scale(cell))[:6]


def test_patches_lie_where_they_are_cut(tmp_path):
    folder = tmp_path / "patches"
    site = make(tmp_path, export_patches=folder)
    scene = site.scenes["a"]
    assert len(list(folder.iterdir())) == scene.tile_valid.sum() == 11
    for row, col in [(0, 1), (2, 3)]:
        window = scene.tiling[row, col].read.clipped(SHAPE)
        with rasterio.open(folder / f"a_{row:05d}_{col:05d}.tif") as patch:
            assert_array_equal(patch.read(), pixels()[(slice(None), *window.slices)])
            assert patch.transform == scene.grid[window].transform
            assert patch.crs == UTM
            assert_array_equal(patch.read_masks(1) > 0, scene.read(window)[1])


# --- Layers --------------------------------------------------------------------------------------


def test_a_chunk_that_exists_is_a_tile_that_is_done(tmp_path):
    scene = make(tmp_path).scenes["a"]
    layer = scene.layer(LayerSpec("labels", "uint8", fill=255), "0")
    done = {(0, 0): 7, (1, 2): 255, (2, 3): 0}  # 255 alone is a chunk of nothing but fill
    for index, value in done.items():
        core = scene.tiling[index].core
        layer.write(core, np.full((core.height, core.width), value, np.uint8))
    for tile_ in scene.tiling:
        assert layer.has(tile_.core) == ((tile_.row, tile_.col) in done)
    again = Site(tmp_path / "site.zarr").scenes["a"].find_layer("labels", "0")
    assert again.has(scene.tiling[1, 2].core)
    assert (again.read(scene.tiling[0, 0].core) == 7).all()
    assert (again.read(scene.tiling[0, 1].core) == 255).all()


def test_a_window_of_several_cores_is_done_when_all_are(tmp_path):
    scene = make(tmp_path).scenes["a"]
    layer = scene.layer(LayerSpec("crf", "uint8", 2), "0")
    window = scene.tiling.merged(2, 0)[1, 1].core
    layer.write(window, np.ones((2, window.height, window.width), np.uint8))
    assert layer.has(window)
    assert layer.has(scene.tiling[2, 3].core)
    assert not layer.has(scene.tiling.merged(3, 0)[0, 0].core)
    (tmp_path / "site.zarr/scenes/a/crf-0/crf/c/0/2/2").unlink()
    assert not layer.has(window)


def test_coarse_layers_are_read_and_written_in_pixels(tmp_path):
    scene = make(tmp_path).scenes["a"]
    layer = scene.layer(LayerSpec("cam", "uint8", 1, 8), "0")
    for tile_ in scene.tiling:
        cells = tile_.core.scaled(8)
        values = np.add.outer(np.arange(cells.height) + cells.row, np.zeros(cells.width))
        layer.write(tile_.core, values[None].astype(np.uint8))
    assert all(layer.has(tile_.core) for tile_ in scene.tiling)
    column = layer.read(Window(-16, 40, 140, 8))[0, :, 0]
    assert column.tolist() == [1, 0, *range(13), 12, 11, 10]


def test_another_fingerprint_is_another_layer(tmp_path):
    scene = make(tmp_path).scenes["a"]
    one, two = (scene.layer(LayerSpec("cam", "uint8"), key) for key in "ab")
    core = scene.tiling[0, 0].core
    one.write(core, np.ones((48, 48), np.uint8))
    assert (one.has(core), two.has(core)) == (True, False)
    assert scene.find_layer("cam", "c") is None


# --- What goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["gone", "touched", "larger"])
def test_a_linked_raster_must_stay_as_it_is(tmp_path, change):
    site = make(tmp_path, link=True)
    raster = tmp_path / "a.tif"
    if change == "gone":
        raster.unlink()
    elif change == "touched":
        os.utime(raster, ns=(1, 1))
    else:
        raster.write_bytes(raster.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"a\.tif: .*rsseg tile"):
        everything(Site(site.path).scenes["a"])


def test_what_is_not_a_site(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("no")
    xarray.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    for name in ("empty.zarr", "file.zarr", "other.zarr"):
        with pytest.raises(InputError, match="not an rsseg site"):
            Site(tmp_path / name)
    with pytest.raises(InputError, match="no such site; run rsseg tile"):
        Site(tmp_path / "missing.zarr")
    (tmp_path / "missing.zarr.partial").mkdir()
    with pytest.raises(InputError, match="interrupted: run it again"):
        Site(tmp_path / "missing.zarr")


def test_a_newer_format(tmp_path):
    path = make(tmp_path).path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["rsseg"]["format"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"site format 2, this rsseg .* reads format 1"):
        Site(path.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": TileConfig(100, 0.25)}, "tile size 100 .* use 96"),
        ({"config": TileConfig(16, 0.25)}, "tile size 16 .* use 32"),
        ({"config": TileConfig(0, 0.25)}, "tile size 0 .* use 32"),
        ({"config": TileConfig(64, 0.9)}, r"overlap 0\.9 .* 0 to 0\.75"),
        ({"config": TileConfig(64, -0.1)}, r"overlap -0\.1"),
        ({"rgb": [1, 2]}, "--rgb 1,2: give three"),
        ({"rgb": [4, 2, 1]}, r"band 4 is to be shown .* the bands in use are 1,2,3"),
        ({"bands": [1, 9]}, "asks for band 9, the raster has 3"),
        ({"bands": [0]}, "asks for band 0"),
        ({"out": "site"}, r"a site's name ends in \.zarr; use .*site\.zarr"),
        ({"out": "nowhere/site.zarr"}, "nowhere does not exist"),
        ({"export_patches": "."}, "is not empty; give a new folder"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    raster = write_raster(tmp_path / "a.tif", noise((3, *SHAPE)))
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message):
        tile([raster], options.pop("out", "site.zarr"), CLASSES, **{"config": TILES, **options})
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (noise((4, 60, 60)), "the rasters differ: .* bands 1,2,3 of uint8, .* 1,2,3,4 of uint8"),
        (noise((3, 60, 60), "uint16"), "the rasters differ: .* of uint8, .* of uint16"),
    ],
)
def test_rasters_of_different_bands(tmp_path, other, message):
    rasters = [
        write_raster(tmp_path / "a.tif", noise((3, *SHAPE))),
        write_raster(tmp_path / "b.tif", other),
    ]
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message):
        make(tmp_path, rasters)
    assert tree(tmp_path) == before


def test_all_nodata(tmp_path):
    raster = write_raster(tmp_path / "a.tif", np.zeros((3, *SHAPE), np.uint8), nodata=0)
    with pytest.raises(InputError, match="no valid pixel"):
        make(tmp_path, [raster])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_no_crs_is_a_warning(tmp_path):
    listener = Listener()
    make(tmp_path, [write_raster(tmp_path / "a.tif", pixels(), crs=None)], progress=listener)
    assert len(listener.warnings) == 1
    assert "has no CRS" in listener.warnings[0]


def test_a_small_disk(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"of disk are needed, 0\.0 GB are free"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


# --- Again ---------------------------------------------------------------------------------------


def test_an_existing_site_is_kept(tmp_path):
    make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="exists already; give another name or --overwrite"):
        make(tmp_path)
    assert tree(tmp_path) == before


def test_overwriting_keeps_the_old_tag_sheets(tmp_path):
    sheet = sheet_path(make(tmp_path).path)
    first = sheet.read_bytes()
    make(tmp_path, overwrite=True)
    second = sheet.read_bytes()
    site = make(tmp_path, [write_raster(tmp_path / "b.tif", pixels())], overwrite=True)
    assert list(site.scenes) == ["b"]
    assert (tmp_path / "site_tags_old1.gpkg").read_bytes() == first
    assert (tmp_path / "site_tags_old2.gpkg").read_bytes() == second
    assert sorted(path.name for path in tmp_path.iterdir() if "zarr" in path.name) == ["site.zarr"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwriting_replaces_nothing_but_sites(tmp_path, kind):
    out = tmp_path / "site.zarr"
    (out if kind == "file" else tmp_path / "site.zarr" / "mine.txt").parent.mkdir(exist_ok=True)
    (out if kind == "file" else out / "mine.txt").write_text("mine")
    raster = write_raster(tmp_path / "a.tif", pixels())
    before = tree(tmp_path)
    with pytest.raises(InputError, match="not an rsseg site"):
        make(tmp_path, [raster], overwrite=True)
    assert tree(tmp_path) == before


def broken_off(folder, monkeypatch, rasters, **options):
    """Leave a site of which one strip of tiles was written."""
    with monkeypatch.context() as patch:
        read = Raster.read

        def failing(raster, window):
            if raster.path == rasters[-1] and window == Window(CORE, 0, CORE, SHAPE[1]):
                raise KeyboardInterrupt
            return read(raster, window)

        patch.setattr(Raster, "read", failing)
        with pytest.raises(KeyboardInterrupt):
            make(folder, rasters, **options)
    assert not (folder / "site.zarr").exists()
    assert (folder / "site.zarr.partial").exists()


def test_an_interrupted_site_goes_on(tmp_path, monkeypatch):
    rasters = [write_raster(tmp_path / f"{n}.tif", pixels(i), nodata=0) for i, n in enumerate("ab")]
    make(tmp_path, rasters, name="other.zarr")
    broken_off(tmp_path, monkeypatch, rasters)
    written = tmp_path / "site.zarr.partial/scenes/a/image/c/0/0/0"
    before = written.stat().st_mtime_ns
    make(tmp_path, rasters)
    kept = tmp_path / "site.zarr/scenes/a/image/c/0/0/0"
    assert kept.stat().st_mtime_ns == before
    assert tree(tmp_path / "site.zarr") == tree(tmp_path / "other.zarr")


@pytest.mark.parametrize("change", ["raster", "classes", "tiles"])
def test_an_interrupted_site_of_something_else_is_begun_anew(tmp_path, monkeypatch, change):
    raster = write_raster(tmp_path / "a.tif", pixels(), nodata=0)
    broken_off(tmp_path, monkeypatch, [raster])
    classes, config = CLASSES, TILES
    if change == "raster":
        write_raster(raster, pixels(7), nodata=0)
        os.utime(raster, ns=(1, 1))
    elif change == "classes":
        classes = Classes.from_names(["tree", "road"])
    else:
        config = TileConfig(96, 0)
    tile([raster], tmp_path / "site.zarr", classes, config=config)
    tile([raster], tmp_path / "other.zarr", classes, config=config)
    assert tree(tmp_path / "site.zarr") == tree(tmp_path / "other.zarr")


def test_a_folder_in_the_way_that_is_not_ours(tmp_path):
    mine = tmp_path / "site.zarr.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match="in the way and not ours"):
        make(tmp_path)
    assert mine.read_text() == "mine"


# --- The size of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [False, True])
def test_the_estimate_covers_the_whole_way(tmp_path, link):
    raster = write_raster(tmp_path / "a.tif", noise((3, *SHAPE)))
    rows = [{"building": (row + col) % 2} for row in range(3) for col in range(4)]
    sheet = tmp_path / "tags.csv"
    lines = [f"a/{i // 4}/{i % 4},{row['building']}" for i, row in enumerate(rows)]
    sheet.write_text("\n".join(["tile,building", *lines]))
    plan = SitePlan({"a": Raster(raster)}, CLASSES, CORE, HALO, link=link)
    size, files = plan.estimate()
    site = make(tmp_path, [raster], link=link)
    tag(site.path, [sheet])
    classifier = ClassifierConfig("test_efficientnet", "none", (8,), window=64, min_steps=2)
    pseudo_label(site.path, settings=Settings(classifier=classifier), workers=1, device="cpu")
    used = tree(site.path)
    assert files >= len(used)
    assert size >= sum(map(len, used.values()))


def test_the_estimate_grows_with_pixels(tmp_path):
    rasters = {
        str(side): Raster(write_raster(tmp_path / f"{side}.tif", np.zeros((side, side), "uint8")))
        for side in (64, 640)
    }
    small, large = (
        SitePlan({name: raster}, CLASSES, CORE, HALO).estimate() for name, raster in rasters.items()
    )
    assert large[0] - small[0] >= 6 * (640**2 - 64**2)
    assert large[1] - small[1] >= 6 * (len(Tiling((640, 640), CORE, 0)) - 4)


def test_large_rasters_are_linked(tmp_path, monkeypatch):
    raster = Raster(write_raster(tmp_path / "a.tif", pixels()))
    plan = SitePlan({"a": raster}, CLASSES, CORE, HALO)
    assert (plan.pixel_bytes(), plan.links) == (3 * 100 * 150, False)
    monkeypatch.setattr(build_module, "LINK_FROM_BYTES", 3 * 100 * 150 - 1)
    assert plan.links
    assert make(tmp_path, [raster.path]).scenes["a"].linked


def test_tags_need_tagging(tmp_path):
    site = make(tmp_path)
    with pytest.raises(InputError, match=r"has no tags: tick site_tags\.gpkg in QGIS"):
        _ = site.tags
    left, top = NORTH_UP @ (60, 60)
    tag(
        site.path,
        [write_features(tmp_path / "b.gpkg", [box(left, top - 9, left + 9, top)])],
        only="building",
    )
    tags = Site(site.path).tags["a"]
    assert_array_equal(np.argwhere(tags[..., 1] == 1), [[1, 1]])
    assert (tags[0, 0] == -1).all()
