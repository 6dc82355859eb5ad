"""Objects in stores, against a server of our own on this machine that speaks S3."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import Listener, noise, write_features, write_raster
from numpy.testing import assert_array_equal
from shapely.geometry import box
from small_models import write_model

from rsseg.api import info, predict, pseudo_label, tag, tile, train
from rsseg.classes import Classes
from rsseg.config import Settings, TileConfig, TrainConfig
from rsseg.errors import InputError, RunError
from rsseg.grid import Window
from rsseg.io import remote
from rsseg.io.files import check_output, replacing
from rsseg.io.layers import Layer
from rsseg.io.raster import Raster, list_rasters
from rsseg.io.remote import (
    RemotePath,
    as_path,
    describe_source,
    gdal_name,
    local_copy,
    workplace,
)
from rsseg.io.site import Site

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto")

SHAPE = (300, 260)
SETTINGS = """
[classifier]
backbone = "test_efficientnet"
weights = "none"
strides = [8]
hidden = 8
window = 64
halo = 0
epochs = 1
min_steps = 2
batch_size = 4

[cam]
scales = [1.0]

[proposals]
proposals = "superpixels"
window = 128
halo = 16
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
OF_GDAL = ("AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING", *remote._NETWORK_DEFAULTS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the store; a process of its own, for GDAL waits with Python's lock held."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log.txt").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        log.close()


def _wait_for(port, process):
    while process.poll() is None:
        with socket.socket() as visitor:
            if visitor.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory):
    """What a user sets: one address, the usual credentials, and a place for what is unfinished."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")] + list(OF_GDAL):
            patch.setenv(name, "")  # so that it is as it was afterwards
            patch.delenv(name)
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path_factory.mktemp("aws") / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.environ["AWS_CONFIG_FILE"])
        patch.setenv("RSSEG_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        yield patch


@pytest.fixture(scope="module")
def store(environment):
    """The store as a user sees it, with a bucket that has an orthophoto and a model."""
    found = fsspec.filesystem("s3", use_listings_cache=False)
    found.mkdir("bucket")
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same files on this machine."""
    folder = tmp_path_factory.mktemp("here")
    image = noise((3, *SHAPE)) // 4
    image[:, (np.arange(SHAPE[0]) // 25 % 2 == 0)] += 120
    image[:, :40, :40] = 0
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    write_raster(folder / "ortho.tif", image, nodata=0, **options)
    write_model(folder / "model.pt")
    return folder


@pytest.fixture
def bucket(store, here):
    """The URI of a bucket that has the inputs and nothing else; of a prefix of it, in truth."""
    name = f"bucket/{os.urandom(4).hex()}"
    for file in ("ortho.tif", "model.pt"):
        store.put_file(str(here / file), f"{name}/{file}")
    return f"s3://{name}"


@pytest.fixture(scope="module")
def undisturbed(here):
    """What is written on this machine without any store: name → bytes."""
    folder = here / "undisturbed"
    folder.mkdir()
    make(here, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make(source, folder, **options):
    return predict(
        f"{source}/ortho.tif",
        f"{source}/model.pt",
        f"{folder}/map.tif",
        confidence=f"{folder}/sure.tif",
        probabilities=f"{folder}/shares.tif",
        block_rows=64,
        device="cpu",
        **options,
    )


def objects(store, uri):
    """Name → bytes of the objects below a URI."""
    found = store.find(uri)
    return {name.removeprefix(uri.removeprefix("s3://") + "/"): store.cat(name) for name in found}


# --- Names ----------------------------------------------------------------------------------------


def test_a_uri_is_a_path_that_prints_as_it_was_given():
    path = as_path("s3://bucket/some where/ortho.tif")
    assert isinstance(path, RemotePath)
    assert str(path) == f"{path}" == "s3://bucket/some where/ortho.tif"
    assert as_path(Path("s3://bucket/a.tif")) == as_path("s3://bucket/a.tif")  # as Typer gives it
    assert str(path.with_suffix(".qml")) == "s3://bucket/some where/ortho.qml"
    assert str(path.parent / "b.tif") == "s3://bucket/some where/b.tif"
    assert str(as_path("https://host.org:81/a/b.tif").resolve()) == "https://host.org:81/a/b.tif"


@pytest.mark.parametrize("text", ["a.tif", "/a/b.tif", "C:/a.tif", "s3", "folder/s3:/b", ""])
def test_other_paths_stay_what_they_are(text):
    assert type(as_path(text)) is type(Path())
    assert workplace(Path(text)) == local_copy(Path(text)) == Path(text)


def test_names_for_gdal():
    assert gdal_name(as_path("s3://bucket/a/b.tif")) == "/vsis3/bucket/a/b.tif"
    assert gdal_name(as_path("gs://bucket/b.tif")) == "/vsigs/bucket/b.tif"
    assert gdal_name(as_path("https://host/b.tif")) == "/vsicurl/https://host/b.tif"
    assert gdal_name(Path("a.tif")) == "a.tif"


def test_paths_travel_to_workers():
    path = as_path("s3://bucket/a.tif")
    again = pickle.loads(pickle.dumps(path))
    assert isinstance(again, RemotePath)
    assert str(again) == str(path)


def test_one_address_is_enough(environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example.org/")
    for name in OF_GDAL:
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    gdal_name(as_path("s3://bucket/a.tif"))
    assert os.environ["AWS_S3_ENDPOINT"] == "store.example.org"
    assert os.environ["AWS_HTTPS"] == "YES"
    monkeypatch.setenv("AWS_HTTPS", "NO")  # a user's own
    monkeypatch.delenv("AWS_S3_ENDPOINT")
    gdal_name(as_path("s3://bucket/a.tif"))
    assert os.environ["AWS_HTTPS"] == "NO"


# --- Reading --------------------------------------------------------------------------------------


def test_windows_are_the_files(bucket, here):
    there, window = Raster(f"{bucket}/ortho.tif"), Window(30, 50, 70, 90)
    for one, other in zip(there.read(window), Raster(here / "ortho.tif").read(window), strict=True):
        assert_array_equal(one, other)
    assert there.grid == Raster(here / "ortho.tif").grid


def test_a_folder_is_its_rasters(bucket, store):
    store.pipe_file(f"{bucket}/readme.txt", b"no raster")
    assert list_rasters(bucket) == [as_path(f"{bucket}/ortho.tif")]
    with pytest.raises(InputError, match="no such file or folder"):
        list_rasters(f"{bucket}/nothing")


def test_a_raster_that_was_replaced_is_read_anew(bucket, store, tmp_path):
    assert Raster(f"{bucket}/ortho.tif").grid.shape == SHAPE
    before = describe_source(as_path(f"{bucket}/ortho.tif"))
    other = write_raster(tmp_path / "other.tif", noise((3, 40, 50)))
    store.put_file(str(other), f"{bucket}/ortho.tif")
    assert Raster(f"{bucket}/ortho.tif").grid.shape == (40, 50)
    assert describe_source(as_path(f"{bucket}/ortho.tif"))["version"] != before["version"]


def test_rasters_of_the_web(bucket, store, server, here):
    store.chmod(f"{bucket}/ortho.tif", acl="public-read")
    address = bucket.replace("s3://", f"{server}/")
    window = Window(0, 0, 20, 30)
    image, _ = Raster(f"{address}/ortho.tif").read(window)
    assert_array_equal(image, Raster(here / "ortho.tif").read(window)[0])
    with pytest.raises(InputError, match="can only be read"):
        check_output(as_path(f"{address}/map.tif"), overwrite=True)


def test_what_gdal_cannot_read(bucket, store):
    store.pipe_file(f"{bucket}/broken.tif", b"II*\0" + bytes(20))
    with pytest.raises(InputError, match=r"broken\.tif: GDAL cannot read it where it is"):
        Raster(f"{bucket}/broken.tif")


def test_a_copy_is_kept_until_the_object_is_another(bucket, store):
    path = as_path(f"{bucket}/notes.csv")
    store.pipe_file(str(path), b"one")
    copy = local_copy(path)
    assert (copy.name, copy.read_bytes()) == ("notes.csv", b"one")
    assert local_copy(path) == copy
    store.pipe_file(str(path), b"two")
    assert local_copy(path).read_bytes() == b"two"


# --- Writing --------------------------------------------------------------------------------------


def test_an_object_appears_complete_or_not_at_all(bucket, store):
    path = as_path(f"{bucket}/table.csv")
    with suppress(KeyError), replacing(path, overwrite=False) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert not path.exists()
    with replacing(path, overwrite=False) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert not temporary.exists()


def test_asking_whether_one_may_write_leaves_nothing(bucket, store):
    before = store.find(bucket)
    check_output(as_path(f"{bucket}/new.tif"), overwrite=False)
    assert store.find(bucket) == before
    assert not store.list_multipart_uploads("bucket")


def test_what_is_there_is_kept(bucket):
    with pytest.raises(InputError, match=r"ortho\.tif: exists already"):
        check_output(as_path(f"{bucket}/ortho.tif"), overwrite=False)
    path = as_path(f"{bucket}/ortho.tif")
    with pytest.raises(InputError, match="is an input of this run"):
        check_output(path, overwrite=True, inputs=[path])
    with pytest.raises(InputError, match="is a folder"):
        check_output(as_path(bucket), overwrite=True)


# --- Maps -----------------------------------------------------------------------------------------


def test_maps_of_a_store_in_a_store_are_those_of_this_machine(
    bucket, store, undisturbed, monkeypatch
):
    uploaded = []
    upload = RemotePath.upload
    monkeypatch.setattr(
        RemotePath, "upload", lambda path, file: (uploaded.append(path.name), upload(path, file))
    )
    (made,) = make(bucket, f"{bucket}/out")
    assert objects(store, f"{bucket}/out") == undisturbed
    assert [str(path) for path in made.files] == [
        f"{bucket}/out/{name}.tif" for name in ("map", "sure", "shares")
    ]
    assert uploaded[-1] == "map.tif"  # what it needs is there before it
    with pytest.raises(InputError, match=r"map\.tif: exists already"):
        make(bucket, f"{bucket}/out")
    make(bucket, f"{bucket}/out", overwrite=True)
    assert uploaded.count("map.tif") == 2


def test_several_maps_go_on_with_those_that_are_missing(bucket, store, here):
    rasters = [f"{bucket}/ortho.tif", f"{bucket}/second.tif"]
    store.copy(rasters[0], rasters[1])
    model = here / "model.pt"
    predict(rasters, model, f"{bucket}/maps", device="cpu")
    store.rm(f"{bucket}/maps/second.tif")
    listener = Listener()
    notes = listener.notes = []
    listener.note = notes.append
    predict(rasters, model, f"{bucket}/maps", device="cpu", progress=listener)
    assert "1 of 2 maps were made before" in notes
    assert f"{bucket}/maps/second.tif".removeprefix("s3://") in store.find(f"{bucket}/maps")


def test_polygons_and_an_area(bucket, store, here, tmp_path):
    left, bottom, right, top = Raster(here / "ortho.tif").grid.bounds
    area = write_features(tmp_path / "area.gpkg", [box(left, bottom, (left + right) / 2, top)])
    store.put_file(str(area), f"{bucket}/area.gpkg")
    for place, folder in ((here, tmp_path), (bucket, bucket)):
        predict(
            f"{place}/ortho.tif",
            f"{here}/model.pt",
            f"{folder}/map.tif",
            vectors=f"{folder}/map.gpkg",
            aoi=f"{folder}/area.gpkg",
            device="cpu",
        )
    for name in ("map.tif", "map.gpkg"):
        assert store.cat(f"{bucket}/{name}") == (tmp_path / name).read_bytes()
    assert not [name for name in store.find(bucket) if "confidence" in name]


def test_an_upload_that_fails_is_caught_up_on(bucket, store, undisturbed, monkeypatch):
    """The blocks are kept, and no network is needed any more."""
    upload = RemotePath.upload

    def fail_at_the_map(path, file):
        if path.name == "map.tif":
            raise RunError("no network")
        upload(path, file)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "upload", fail_at_the_map)
        with pytest.raises(RunError, match="no network"):
            make(bucket, f"{bucket}/out")
    assert "map.tif" not in objects(store, f"{bucket}/out")
    monkeypatch.setattr("rsseg.stages.predict.fill_blocks", pytest.fail)  # there is nothing left
    make(bucket, f"{bucket}/out")
    assert objects(store, f"{bucket}/out") == undisturbed
    assert not list(remote.scratch_folder().rglob("*.block"))


def test_a_run_that_was_killed_goes_on(bucket, store, undisturbed):
    command = [
        *(sys.executable, "-m", "rsseg", "predict", f"{bucket}/ortho.tif"),
        *("--model", f"{bucket}/model.pt", "--out", f"{bucket}/out/map.tif"),
        *("--confidence", f"{bucket}/out/sure.tif", "--probabilities", f"{bucket}/out/shares.tif"),
        *("--block-rows", "64", "--device", "cpu"),
    ]
    blocks = workplace(as_path(f"{bucket}/out/map.tif")).with_name("map.tif.partial")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not any(blocks.glob("*.block")):
            time.sleep(0.002)
        psutil.Process(process.pid).suspend()
        process.kill()
    assert any(blocks.glob("*.block"))
    assert not objects(store, f"{bucket}/out")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{bucket}/out/{name}.tif" for name in ("map", "sure", "shares")]
    assert objects(store, f"{bucket}/out") == undisturbed
    assert not blocks.exists()


# --- Sites ----------------------------------------------------------------------------------------


CLASSES = Classes.parse("dark,bright")


def cut(source, out, **options):
    config = TileConfig(size=64, overlap=0.0)
    return tile([f"{source}/ortho.tif"], out, CLASSES, config=config, **options)


def label(site, folder):
    """Tags from a table, then labels; a few steps of learning, for what they say means nothing."""
    lines = ["tile,dark,bright"]
    lines += [f"ortho/{row}/{col},1,{row % 2}" for row in range(5) for col in range(5)]
    (folder / "tags.csv").write_text("\n".join(lines))
    tag(site, [folder / "tags.csv"])
    (folder / "settings.toml").write_text(SETTINGS)
    return pseudo_label(
        site, settings=Settings.load(folder / "settings.toml"), workers=1, device="cpu"
    )


def arrays(group):
    """Name → values of all arrays in a group."""
    return {
        name: np.asarray(array[...])
        for name, array in group.members(None)
        if hasattr(array, "shape")
    }


def test_a_site_in_a_store_is_that_of_this_machine(bucket, store, here, tmp_path):
    sites = []
    for source, folder in ((here, str(tmp_path)), (bucket, bucket)):
        site = f"{folder}/site.zarr"
        cut(source, site)
        label(site, tmp_path)
        config = TrainConfig(arch="tiny", window=64, epochs=1, min_steps=2, batch_size=2)
        train(site, f"{folder}/trained.pt", config=config, device="cpu")
        sites.append(Site(site))
    local, remote_site = sites
    assert remote_site.layers == local.layers
    assert "labels" in local.layers
    ours, theirs = (arrays(site.scenes["ortho"].group) for site in sites)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert_array_equal(values, theirs[name], err_msg=name)
    names = set(objects(store, bucket))
    assert {"trained.pt", "trained_metrics.csv", "trained_curve.png", "site_tags.gpkg"} <= names
    assert store.cat(f"{bucket}/trained.pt") == (tmp_path / "trained.pt").read_bytes()
    found = info(f"{bucket}/site.zarr")
    assert len(found.models) == 1
    assert found.disk_bytes > 10_000


def test_tiling_that_was_interrupted_goes_on(bucket, store, monkeypatch):
    site = f"{bucket}/site.zarr"
    write = Layer.write
    written = []

    def twice(layer, core, values):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(core)
        write(layer, core, values)

    monkeypatch.setattr(Layer, "write", twice)
    with pytest.raises(KeyboardInterrupt):
        cut(bucket, site)
    with pytest.raises(InputError, match="rsseg tile was interrupted: run it again"):
        Site(site)
    done = store.find(f"{site}/scenes/ortho/image/c")
    versions = [store.info(name)["LastModified"] for name in done]
    monkeypatch.setattr(Layer, "write", write)
    made = cut(bucket, site)
    assert [store.info(name)["LastModified"] for name in done] == versions
    image, _ = made.scenes["ortho"].read(Window(0, 0, *SHAPE))
    assert_array_equal(image, Raster(f"{bucket}/ortho.tif").read(Window(0, 0, *SHAPE))[0])


def test_a_site_is_replaced_only_if_asked(bucket, store):
    site = f"{bucket}/site.zarr"
    cut(bucket, site, link=True)
    assert Site(site).scenes["ortho"].linked
    store.pipe_file(f"{site}/models/old.safetensors", b"old")
    with pytest.raises(InputError, match="exists already"):
        cut(bucket, site)
    made = cut(bucket, site, overwrite=True)
    assert not made.scenes["ortho"].linked
    assert not list(made.models.glob("*"))
    assert "site_tags_old1.gpkg" in objects(store, bucket)  # the ticks in it are somebody's work
    store.pipe_file(f"{bucket}/foreign.zarr/data.bin", b"no site")
    with pytest.raises(InputError, match="not an rsseg site"):
        cut(bucket, f"{bucket}/foreign.zarr", overwrite=True)
    assert "foreign.zarr/data.bin" in objects(store, bucket)


# --- What users get wrong -------------------------------------------------------------------------


def test_no_such_object(bucket, here):
    with pytest.raises(InputError, match=r"none\.tif: no such file"):
        predict(f"{bucket}/none.tif", here / "model.pt", here / "map.tif")
    with pytest.raises(InputError, match=r"none\.pt: no such checkpoint"):
        predict(f"{bucket}/ortho.tif", f"{bucket}/none.pt", here / "map.tif")


def test_no_such_bucket(bucket, here):
    with pytest.raises(InputError, match=r"s3://nobody/a\.tif: no such file"):
        predict("s3://nobody/a.tif", here / "model.pt", here / "map.tif")
    with pytest.raises(InputError, match=r"s3://nobody/map\.tif: no such bucket"):
        predict(f"{bucket}/ortho.tif", here / "model.pt", "s3://nobody/map.tif", device="cpu")
    with pytest.raises(InputError, match=r"s3://nobody/maps: no such bucket"):
        predict(bucket, here / "model.pt", "s3://nobody/maps", device="cpu")


def test_no_credentials(bucket, here, monkeypatch):
    with monkeypatch.context() as patch:
        for name in CREDENTIALS:
            if name.startswith(("AWS_ACCESS", "AWS_SECRET")):
                patch.delenv(name)
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(InputError, match="check its address and the credentials"):
            predict(f"{bucket}/ortho.tif", here / "model.pt", here / "map.tif")
        patch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        with pytest.raises(InputError, match="the store does not permit this"):
            list_rasters(f"{bucket}/ortho.tif")
    fsspec.filesystem("s3").clear_instance_cache()


def test_wrong_credentials(bucket, here, server):
    """From now on the server knows its users, and we are none of them."""
    remote._begin_upload.cache_clear()
    _check_users_after(server, b"0")
    try:
        with pytest.raises(InputError, match="check the credentials and what they may do"):
            list_rasters(f"{bucket}/ortho.tif")
        with pytest.raises(InputError, match="check the credentials and what they may do"):
            as_path(f"{bucket}/map.tif").check_writable()
    finally:
        _check_users_after(server, b"inf")


def _check_users_after(server, actions):
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{server}/moto-api/reset-auth", actions, headers)
    urllib.request.urlopen(request).close()


def test_no_library(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(InputError, match=r'run: pip install "rsseg\[s3\]"'):
        as_path("s3://bucket/a.tif").exists()
