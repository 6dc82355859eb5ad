"""predict --vectors: the polygons of a map in the same run, and what an interruption leaves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from helpers import NORTH_UP, Listener, write_raster
from numpy.testing import assert_array_equal
from rasterio.features import rasterize
from test_predict import SHAPE, image, save, truth

from rsseg.api import predict, vectorize
from rsseg.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model.pt")


def pixels(seed=0, shape=SHAPE):
    """An image of blocks, so that its map has regions of some size."""
    small = image(seed, (shape[0] // 10, shape[1] // 10))
    return small.repeat(10, axis=1).repeat(10, axis=2)


@pytest.fixture
def source(tmp_path):
    return write_raster(tmp_path / "a.tif", pixels())


@pytest.fixture
def several(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_raster(folder / f"{name}.tif", pixels(seed))
    return folder


def contents(folder):
    """Path in the folder → bytes, of all files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def layer(path):
    return pyogrio.read_dataframe(path, layer=path.stem)


@pytest.fixture
def interrupted(monkeypatch):
    """Have Ctrl+C pressed where the polygons of the n-th map are about to be drawn."""

    def stop(run, number=1):
        from rsseg.api import vectorizing

        plain, calls = vectorizing.vectorize, []

        def stops(*args, **options):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return plain(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(vectorizing, "vectorize", stops)
            with pytest.raises(KeyboardInterrupt):
                run()

    return stop


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a map that was finished is made again")

    monkeypatch.setattr("rsseg.api.prediction.predict_map", fail)


# --- One raster ----------------------------------------------------------------------------------


def test_the_polygons_are_those_of_the_map(tmp_path, source, model):
    (made,) = predict(source, model, tmp_path / "map.tif", vectors=tmp_path / "map.gpkg")
    assert made.files == [tmp_path / "map.tif", tmp_path / "map.gpkg"]
    polygons = layer(tmp_path / "map.gpkg")
    burnt = rasterize(
        zip(polygons.geometry, polygons.class_id, strict=True), SHAPE, 255, transform=NORTH_UP
    )
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert_array_equal(burnt, dataset.read(1))
    assert (burnt == truth(pixels())).mean() > 0.95
    assert set(polygons.class_name) == {"dark", "bright"}
    assert shapely.coverage_is_valid(polygons.geometry)


def test_polygons_have_the_mean_confidence_and_its_raster_goes(tmp_path, source, model):
    sure = tmp_path / "sure.tif"
    predict(source, model, tmp_path / "map.tif", confidence=sure, vectors=tmp_path / "map.gpkg")
    kept = sure.read_bytes()
    polygons = layer(tmp_path / "map.gpkg")
    assert polygons.confidence.between(0.5, 1).all()
    assert polygons.confidence.nunique() > 3
    (tmp_path / "other").mkdir()
    (made,) = predict(
        source, model, tmp_path / "other" / "map.tif", vectors=tmp_path / "other" / "map.gpkg"
    )
    assert made.confidence is None
    assert sorted(contents(tmp_path / "other")) == [
        *("map.gpkg", "map.qml", "map.tif", "map.tif.aux.xml")
    ]
    alone = (tmp_path / "other" / "map.gpkg").read_bytes()
    assert alone == (tmp_path / "map.gpkg").read_bytes()
    assert sure.read_bytes() == kept
    vectorize(tmp_path / "map.tif", tmp_path / "map.gpkg", confidence=sure, overwrite=True)
    assert (tmp_path / "map.gpkg").read_bytes() == alone


def test_the_map_is_the_same_with_polygons_and_without(tmp_path, source, model):
    predict(source, model, tmp_path / "one.tif")
    predict(source, model, tmp_path / "two.tif", vectors=tmp_path / "two.fgb")
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


@pytest.mark.parametrize("ending", [".geojson", ".fgb", ".shp"])
def test_other_formats(tmp_path, source, model, ending):
    out = tmp_path / f"polygons{ending}"
    predict(source, model, tmp_path / "map.tif", vectors=out)
    assert {"class_id", "class_name", "area_m2", "confidence"} < set(layer(out).columns)


def test_a_dry_run_draws_nothing(tmp_path, source, model):
    before = contents(tmp_path)
    vectors = tmp_path / "map.gpkg"
    (planned,) = predict(source, model, tmp_path / "map.tif", vectors=vectors, dry_run=True)
    assert planned.vectors == vectors
    assert contents(tmp_path) == before


def test_a_finished_run_is_not_made_again(tmp_path, source, model):
    def run(**options):
        return predict(
            source, model, tmp_path / "map.tif", vectors=tmp_path / "map.gpkg", **options
        )

    run()
    before = contents(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        run()
    assert contents(tmp_path) == before
    run(overwrite=True)
    assert contents(tmp_path) == before


# --- Several rasters -----------------------------------------------------------------------------


def test_a_folder_gives_a_geopackage_each(tmp_path, several, model):
    made = predict(several, model, tmp_path / "maps", vectors=tmp_path / "polygons")
    assert [one.vectors for one in made] == [tmp_path / "polygons" / f"{n}.gpkg" for n in "abc"]
    assert sorted(contents(tmp_path / "polygons")) == ["a.gpkg", "b.gpkg", "c.gpkg"]
    for one in made:
        with rasterio.open(one.out) as dataset:
            found = {int(value) for value in np.unique(dataset.read(1))}
        assert set(layer(one.vectors).class_id) == found


def test_maps_and_polygons_may_share_a_folder(tmp_path, several, model):
    predict(several, model, tmp_path / "maps", vectors=tmp_path / "maps")
    parts = ("gpkg", "qml", "tif", "tif.aux.xml")
    assert sorted(contents(tmp_path / "maps")) == [f"{n}.{part}" for n in "abc" for part in parts]


def test_a_raster_without_a_pixel_stops_no_other(tmp_path, several, model):
    write_raster(several / "b.tif", np.zeros((3, *SHAPE), np.uint8), nodata=0)
    listener = Listener()
    predict(several, model, tmp_path / "maps", vectors=tmp_path / "polygons", progress=listener)
    assert sorted(contents(tmp_path / "polygons")) == ["a.gpkg", "b.gpkg", "c.gpkg"]
    assert [len(layer(tmp_path / "polygons" / f"{n}.gpkg")) > 0 for n in "abc"] == [1, 0, 1]
    assert any("has no pixel of dark, bright" in warning for warning in listener.warnings)
    with pytest.raises(InputError, match="exists already"):
        predict(several, model, tmp_path / "maps", vectors=tmp_path / "polygons")


# --- Interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("with_confidence", [False, True])
def test_an_interruption_before_the_polygons_costs_only_them(
    tmp_path, source, model, interrupted, no_network, monkeypatch, with_confidence
):
    def run(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        sure = tmp_path / folder / "sure.tif" if with_confidence else None
        return predict(
            source,
            model,
            tmp_path / folder / "map.tif",
            confidence=sure,
            vectors=tmp_path / folder / "map.gpkg",
        )

    with monkeypatch.context() as patch:
        from rsseg.stages.predict import predict_map

        patch.setattr("rsseg.api.prediction.predict_map", predict_map)
        run("calm")
        interrupted(lambda: run("broken"))
    left = contents(tmp_path / "broken")
    assert "map.tif" in left
    assert "map.gpkg" not in left
    assert ("sure.tif" if with_confidence else ".map.confidence.tif") in left
    made_at = (tmp_path / "broken" / "map.tif").stat().st_mtime_ns
    run("broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "calm")
    assert (tmp_path / "broken" / "map.tif").stat().st_mtime_ns == made_at


def test_an_interrupted_folder_goes_on(tmp_path, several, model, interrupted, monkeypatch):
    def run(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return predict(several, model, tmp_path / name / "maps", vectors=tmp_path / name / "p")

    run("calm")
    interrupted(lambda: run("broken"), number=2)
    assert (tmp_path / "broken" / "maps" / "b.tif").exists()
    assert sorted(contents(tmp_path / "broken" / "p")) == [".b.confidence.tif", "a.gpkg"]
    from rsseg.stages.predict import predict_map

    mapped = []
    monkeypatch.setattr(
        "rsseg.api.prediction.predict_map",
        lambda job, *args, **options: mapped.append(job) or predict_map(job, *args, **options),
    )
    assert [one.source.name for one in run("broken")] == ["b.tif", "c.tif"]
    assert len(mapped) == 1, "b had only its polygons to be drawn"
    assert contents(tmp_path / "broken") == contents(tmp_path / "calm")


def test_what_other_settings_left_is_not_gone_on_with(tmp_path, source, model, interrupted):
    def run(**options):
        predict(source, model, tmp_path / "map.tif", vectors=tmp_path / "map.gpkg", **options)

    interrupted(run)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"map\.tif: exists already"):
        run(overlap=0.5)
    assert contents(tmp_path) == before


def test_polygons_older_than_their_map_are_not_taken_for_its(tmp_path, several, model):
    maps, polygons = tmp_path / "maps", tmp_path / "p"
    predict(several, model, maps, vectors=polygons)
    then = (maps / "a.tif").stat().st_mtime - 10
    os.utime(polygons / "a.gpkg", (then, then))
    (maps / "c.tif").unlink()
    with pytest.raises(InputError, match=r"a\.gpkg: exists already"):
        predict(several, model, maps, vectors=polygons)
    assert not (maps / "c.tif").exists()


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": "p.kml"}, "not a vector file"),
        ({"vectors": "map.tif"}, "not a vector file"),
        ({"vectors": "nowhere/p.gpkg"}, "does not exist"),
        ({"vectors": "mine.gpkg"}, r"mine\.gpkg: exists already"),
        ({"vectors": "gpkg_p.gpkg"}, "keep the name"),
        ({"vectors": "p.geojson", "inputs": "bare.tif"}, "has no CRS, and GeoJSON"),
        ({"vectors": "mine.gpkg", "inputs": ["a.tif", "bare.tif"]}, "need a folder"),
        ({"vectors": "nowhere/p", "inputs": ["a.tif", "bare.tif"]}, "does not exist"),
    ],
)
def test_bad_vectors_are_found_before_anything_is_mapped(
    tmp_path, source, model, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    write_raster(Path("bare.tif"), pixels(), crs=None)
    Path("mine.gpkg").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        predict(**{"inputs": "a.tif", "model": model, "out": "map.tif", **options})
    assert contents(tmp_path) == before


def test_vectors_of_someone_else_in_a_folder(tmp_path, several, model):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "b.gpkg").write_text("mine")
    with pytest.raises(InputError, match=r"b\.gpkg: exists already"):
        predict(several, model, tmp_path / "maps", vectors=tmp_path / "p")
    assert sorted(contents(tmp_path / "p")) == ["b.gpkg"]
    assert not (tmp_path / "maps").exists()
