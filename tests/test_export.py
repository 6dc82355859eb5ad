"""Layers of a site as GeoTIFFs, and what ``info`` says of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine
from helpers import NORTH_UP, UTM, Listener, write_raster
from numpy.testing import assert_array_equal
from rio_cogeo.cogeo import cog_validate

from rsseg.api import export, info, tile
from rsseg.classes import Classes
from rsseg.config import TileConfig
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.layers import LABELS, LayerSpec
from rsseg.io.mapfile import CLASSES_TAG
from rsseg.io.masks import masks_spec
from rsseg.io.site import Site
from rsseg.io.style import category_names_xml, raster_qml
from rsseg.ops.maskpack import pack
from rsseg.ops.segments import Masks
from rsseg.progress import SILENT
from rsseg.stages.objects import number_objects

CLASSES = Classes.from_dict(
    {
        "classes": [
            {"name": "rest", "id": 7, "background": True},
            {"name": "roof", "id": 3, "colour": "#ff0000"},
            {"name": "road", "id": 5},
        ]
    }
)
SHAPE = (80, 110)
CORE = 32
FINGERPRINT = "0123456789ab"


def pixels(dtype="uint8"):
    return np.random.default_rng(0).integers(1, 255, (3, *SHAPE)).astype(dtype)


def make_site(folder, rasters, **options):
    config = TileConfig(size=CORE, overlap=0)
    return tile(rasters, folder / "site.zarr", CLASSES, config=config, **options)


@pytest.fixture
def site(tmp_path):
    """One scene with every layer that the steps make, filled with noise."""
    made = make_site(tmp_path, [write_raster(tmp_path / "a.tif", pixels())])
    fill(made, "cam", 2, 16)
    fill(made, "crf", 3, 1)
    fill_masks(made)
    fill_layer(made, LABELS, 3)
    return Site(made.path)


def fill(site, name, channels, cell, dtype="uint8"):
    fill_layer(site, LayerSpec(name, dtype, channels, cell), 255)


def fill_layer(site, spec, high):
    rng = np.random.default_rng(1)
    for scene in site.scenes.values():
        layer = scene.layer(spec, FINGERPRINT)
        for one in scene.tiling:
            cells = one.core.scaled(spec.cell)
            lead = () if spec.channels is None else (spec.channels,)
            values = rng.integers(0, high, (*lead, cells.height, cells.width))
            layer.write(one.core, values.astype(spec.dtype))
    site.set_layer(spec.name, FINGERPRINT)


def fill_masks(site):
    """Write masks to windows of 2 x 2 tiles: a roof over four of them, and a pile of six masks."""
    for scene in site.scenes.values():
        tiling = scene.tiling.merged(2, 16)
        scene_masks = np.zeros((7, *(np.array(SHAPE) + 200)), np.bool_)
        scene_masks[0, 150:180, 140:190] = True  # with 100 pixels around the scene
        for depth, mask in enumerate(scene_masks[1:]):
            mask[105 + depth : 125, 105 : 140 - depth] = True
        for one in tiling:
            rows, cols = Window(one.read.row + 100, one.read.col + 100, 96, 96).slices
            seen = scene_masks[:, rows, cols]
            seen = seen[seen.any(axis=(1, 2))]
            count = len(seen)
            masks = Masks(seen, np.zeros(count, np.int8), np.ones(count, np.float32))
            spec = masks_spec(tiling.core, tiling.halo)
            scene.layer(spec, FINGERPRINT).write(
                one.core, pack(masks, spec.channels)[:, None, None]
            )
        windows = {scene.name: list(tiling)}
        number_objects(site, FINGERPRINT, FINGERPRINT, windows, join=0.5, progress=SILENT)
    site.set_layer("masks", FINGERPRINT)


def tagged(site):
    for scene in site.scenes.values():
        tags = np.full((*scene.tiling.counts, 3), -1, np.int8)
        tags[0, :, 1], tags[0, :, 2], tags[0, :, 0] = 1, 0, 1
        scene.set_tags(tags, np.zeros(scene.tiling.counts, bool))
    return site


def layer_of(site, name):
    (scene,) = site.scenes.values()
    return np.asarray(scene.find_layer(name, FINGERPRINT).array[:])


def exported(site, layer, out, **options):
    (path,) = export(site.path, layer, out, **options)
    with rasterio.open(path) as dataset:
        facts = {
            "descriptions": dataset.descriptions,
            "tags": dataset.tags(),
            "colours": dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else None,
        }
        return dataset.read(), SimpleNamespace(**dataset.profile, **facts)


# --- Layers --------------------------------------------------------------------------------------


def test_the_image(tmp_path, site):
    values, dataset = exported(site, "image", tmp_path / "out.tif")
    assert_array_equal(values, pixels())
    assert (dataset.transform, dataset.crs, dataset.nodata) == (NORTH_UP, UTM, None)
    assert dataset.descriptions == ("band 1", "band 2", "band 3")


def test_an_image_with_holes(tmp_path):
    image = pixels()
    image[:, :10] = 0
    image[0, 20, 20] = 0  # measured all the same
    site = make_site(tmp_path, [write_raster(tmp_path / "a.tif", image, nodata=0)])
    values, dataset = exported(site, "image", tmp_path / "out.tif")
    assert dataset.nodata == 0
    assert_array_equal(values, image)
    valid = exported(site, "valid", tmp_path / "valid.tif")[0][0]
    assert_array_equal(valid, image.any(axis=0))


def test_an_image_of_floats(tmp_path):
    image = pixels("float32")
    image[:, 5, 5] = np.nan
    site = make_site(tmp_path, [write_raster(tmp_path / "a.tif", image)], link=True)
    values, dataset = exported(site, "image", tmp_path / "out.tif")
    assert np.isnan(dataset.nodata)
    assert_array_equal(values, image)


def test_labels_are_class_ids_in_their_colours(tmp_path, site):
    values, dataset = exported(site, "labels", tmp_path / "out.tif")
    assert_array_equal(values[0], CLASSES.to_ids(layer_of(site, "labels")))
    assert dataset.nodata == 255
    assert json.loads(dataset.tags[CLASSES_TAG]) == CLASSES.to_dict()
    assert dataset.colours[3] == (255, 0, 0, 255)
    assert (tmp_path / "out.qml").read_text(encoding="utf-8") == raster_qml(CLASSES)
    names = (tmp_path / "out.tif.aux.xml").read_text(encoding="utf-8")
    assert names == category_names_xml(CLASSES)


def test_what_made_a_layer_is_in_its_tags(tmp_path, site):
    tags = exported(site, "cam:road", tmp_path / "out.tif")[1].tags
    assert tags["RSSEG_COMMAND"] == "rsseg export site.zarr cam:road --scene=a"
    assert (tags["RSSEG_SOURCE"], tags["RSSEG_LAYER"]) == ("a.tif", FINGERPRINT)
    assert str(tmp_path) not in str(tags)
    image_tags = exported(site, "image", tmp_path / "image.tif")[1].tags
    assert "RSSEG_LAYER" not in image_tags


@pytest.mark.parametrize("layer", ["image", "valid", "tags", "cam", "crf", "masks", "labels"])
def test_every_layer_is_a_cog(tmp_path, site, layer):
    (path,) = export(tagged(site).path, layer, tmp_path / "out.tif")
    assert cog_validate(path, strict=True) == (True, [], [])
    before = path.read_bytes()
    export(site.path, layer, path, overwrite=True)
    assert path.read_bytes() == before
    beside = {"out.qml", "out.tif.aux.xml"} if layer == "labels" else set()
    assert {file.name for file in tmp_path.glob("*out*")} == {"out.tif", *beside}


def test_cam_lies_on_the_networks_coarser_grid(tmp_path, site):
    values, dataset = exported(site, "cam", tmp_path / "out.tif")
    assert_array_equal(values, layer_of(site, "cam"))
    assert values.shape == (2, 5, 7)
    assert dataset.transform == NORTH_UP @ Affine.scale(16)
    assert dataset.descriptions == ("roof", "road")


@pytest.mark.parametrize(
    ("layer", "plane"), [("cam:road", 1), ("cam:5", 1), ("crf:rest", 0), ("crf:road", 2)]
)
def test_one_class(tmp_path, site, layer, plane):
    values, dataset = exported(site, layer, tmp_path / "out.tif")
    assert_array_equal(values, layer_of(site, layer.partition(":")[0])[[plane]])
    assert dataset.count == 1


def test_masks_are_the_numbers_of_objects(tmp_path, site):
    values, dataset = exported(site, "masks", tmp_path / "out.tif")
    assert (values.shape, dataset.dtype, dataset.nodata) == ((4, *SHAPE), "uint32", 0)
    assert dataset.transform == NORTH_UP
    assert dataset.descriptions == ("objects 1", "objects 2", "objects 3", "objects 4")
    roof = np.zeros(SHAPE, bool)
    roof[50:80, 40:90] = True  # over the corner of four windows, and in one colour all the same
    (number,) = set(values[0][roof])
    assert_array_equal(values[0] == number, roof)
    assert not values[1:, 50:].any()
    # Six masks lie over each other; four of them have a band.
    assert [len(set(band[5:25, 5:40].ravel()) - {0}) for band in values] == [1] * 4
    for depth, band in enumerate(values):
        pile = np.zeros(SHAPE, bool)
        pile[5 + depth : 25, 5 : 40 - depth] = True
        assert_array_equal(band[:40, :50] > 0, pile[:40, :50])


def test_objects_without_a_band_are_counted(tmp_path, site):
    class Notes(Listener):
        def note(self, message):
            self.warnings.append(message)

    notes = Notes()
    export(site.path, "masks", tmp_path / "out.tif", progress=notes)
    assert notes.warnings == ["a: 2 of 7 objects have no band, for others lie there in all 4"]


def test_masks_whose_objects_were_not_numbered_yet(tmp_path, site):
    site.forget_layers(["objects"])
    with pytest.raises(InputError, match="no layer 'masks'; it has image, valid, cam, crf, labels"):
        export(site.path, "masks", tmp_path / "out.tif")


def test_tags_are_a_pixel_per_tile(tmp_path, site):
    values, dataset = exported(tagged(site), "tags", tmp_path / "out.tif")
    assert values.shape == (3, 3, 4)
    assert dataset.transform == NORTH_UP @ Affine.scale(CORE)
    assert_array_equal(values[:, 0, 0], [1, 1, 0])
    assert (values[:, 1:] == 255).all()
    (road,) = exported(site, "tags:road", tmp_path / "road.tif")[0]
    assert_array_equal(road, values[2])


# --- Several scenes ------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    east = NORTH_UP @ Affine.translation(500, 0)
    rasters = [
        write_raster(tmp_path / "a.tif", pixels()),
        write_raster(tmp_path / "b.tif", pixels()[:, :40], east),
    ]
    return make_site(tmp_path, rasters)


def test_several_scenes_are_several_files(tmp_path, two):
    paths = export(two.path, "image", tmp_path / "out.tif")
    assert paths == [tmp_path / "out_a.tif", tmp_path / "out_b.tif"]
    with rasterio.open(paths[1]) as dataset:
        assert_array_equal(dataset.read(), pixels()[:, :40])


def test_one_scene_has_the_name_itself(tmp_path, two):
    values, _ = exported(two, "valid", tmp_path / "out.tif", scene="b")
    assert values.shape == (1, 40, SHAPE[1])


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        ("posterior", {}, "no layer 'posterior'; it has image, valid, cam, crf, labels, masks"),
        ("tags", {}, "no layer 'tags'"),
        ("objects", {}, "no layer 'objects'; it has image, valid, cam, crf, labels, masks"),
        ("masks:roof", {}, "not one per class"),
        ("cam:rest", {}, "nothing of 'rest', the background; it has roof, road"),
        ("cam:water", {}, "unknown class 'water'"),
        ("labels:roof", {}, "not one per class"),
        ("image", {"scene": "z"}, "no scene 'z'; it has a"),
    ],
)
def test_layers_that_are_not_there(tmp_path, site, layer, options, message):
    with pytest.raises(InputError, match=message):
        export(site.path, layer, tmp_path / "out.tif", **options)
    assert not (tmp_path / "out.tif").exists()


def test_outputs_are_not_lost(tmp_path, site):
    out = tmp_path / "out.tif"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(site.path, "image", out)
    with pytest.raises(InputError, match=r"ends in \.tif"):
        export(site.path, "image", tmp_path / "out.png")
    with pytest.raises(InputError, match="is an input of this run"):
        export(site.path, "image", tmp_path / "a.tif", overwrite=True)
    assert out.read_text() == "mine"
    export(site.path, "image", out, overwrite=True)
    (tmp_path / "new.qml").write_text("mine")
    with pytest.raises(InputError, match=r"new\.qml: exists already"):
        export(site.path, "labels", tmp_path / "new.tif")
    with pytest.raises(InputError, match="QGIS would draw"):
        export(site.path, "labels", tmp_path / "a.tiff")
    export(site.path, "image", tmp_path / "new.tif")
    assert (tmp_path / "new.qml").read_text() == "mine"


# --- What info says ------------------------------------------------------------------------------


def test_info(site):
    found = info(tagged(site).path)
    (scene,) = found.scenes
    assert (scene.shape, scene.tiles, scene.valid_tiles) == (SHAPE, 12, 12)
    assert scene.crs == "EPSG:32633 WGS 84 / UTM zone 33N"
    assert scene.ground_sample_distance == pytest.approx(2, rel=1e-3)
    assert not scene.linked
    assert (found.tile_size, found.overlap, found.bands) == (CORE, 0, (1, 2, 3))
    assert [(t.name, t.present, t.known) for t in found.tags] == [
        ("rest", 4, 4),
        ("roof", 4, 4),
        ("road", 0, 4),
    ]
    assert found.reviewed_tiles == 4
    names = ["cam", "crf", "labels", "masks", "objects"]
    assert [one.name for one in found.layers] == names
    assert all(one.current and one.tiles == 12 for one in found.layers)
    assert found.disk_bytes > pixels().nbytes // 2
    assert json.loads(json.dumps(found.to_dict()))["classes"] == CLASSES.to_dict()["classes"]


def test_info_on_a_layer_under_way(site):
    (scene,) = site.scenes.values()
    other = LayerSpec("cam", "uint8", 2, 16)
    layer = scene.layer(other, "f" * 12)
    first = scene.tiling[0, 0].core
    layer.write(first, np.zeros((2, 2, 2), np.uint8))
    unfinished = next(one for one in info(site.path).layers if one.fingerprint == "f" * 12)
    assert (unfinished.tiles, unfinished.current) == (1, False)


def test_info_before_anything_was_done(tmp_path):
    raster = write_raster(tmp_path / "a.tif", pixels(), crs=None)
    found = info(make_site(tmp_path, [raster], link=True).path)
    assert (found.tags, found.layers, found.models, found.reviewed_tiles) == ((), (), (), 0)
    assert found.scenes[0].crs is None
    assert found.scenes[0].linked
