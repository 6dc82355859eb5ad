"""The prediction engine, with networks that are a line of numpy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.ndimage import uniform_filter
from shapely.geometry import box

from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window, window_starts
from rsseg.io.blocks import BlockStore
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.ops.blend import BLENDS, axis_weights, ramp, spans
from rsseg.ops.mosaic import add_window, normalise_into
from rsseg.progress import Silent
from rsseg.stages.blending import predict_blocks, regrouped
from rsseg.stages.job import Job, default_block_rows
from rsseg.stages.outputs import Outputs
from rsseg.stages.planning import plan
from rsseg.stages.predict import nearest, predict_map

CLASSES = Classes(("roof", "tree", "other"), (7, 20, 3), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
BANDS = Bands((1, 2, 3), "uint8", (120.0,) * 3, (50.0,) * 3, (0, 1, 2), (0.0,) * 3, (255.0,) * 3)
K = len(CLASSES)
TRANSFORM = Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)


# --- helpers ---------------------------------------------------------------------------------


def make_raster(path: Path, height=230, width=310, *, nodata_box=None, transform=TRANSFORM):
    """Write a smooth, random RGB GeoTIFF; in ``nodata_box`` (row and column slices) it is 0."""
    rng = np.random.default_rng(7)
    noise = uniform_filter(rng.normal(size=(3, height, width)), (0, 9, 9))
    image = np.clip(120 + 350 * noise, 1, 255).astype(np.uint8)
    if nodata_box is not None:
        image[:, *nodata_box] = 0
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": transform, "nodata": 0,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(image)
    return path


def softmax(scores):
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


class Net:
    """A network that is a function of (B, C, S, S) to logits (B, K, S, S)."""

    def __init__(self, function):
        self.function = function

    def logits(self, images):
        return np.asarray(self.function(images), np.float32)


def local_filter(radius):
    """A network that sees ``radius`` pixels around each pixel, zero beyond the window."""

    def forward(images):
        size = (0, 0, 2 * radius + 1, 2 * radius + 1)
        return 3 * uniform_filter(images.astype(np.float64), size, mode="constant")

    return Net(forward)


@Net
def unsteady(images):
    """A network whose answer depends on the place in the window and on the rest of the batch."""
    side = images.shape[-1]
    field = np.random.default_rng(side).normal(size=(K, side, side))
    mixing = np.random.default_rng(1).normal(size=(K, images.shape[1]))
    scores = np.einsum("kc,bcij->bkij", mixing, images) + field
    return scores * (1 + np.abs(images.mean(axis=0).sum()) * 1e-4)


def a_job(raster, window=64, overlap=0.25, batch_size=3, area=None, blend="ramp"):
    return Job(raster, BANDS, K, window, overlap, batch_size, area, blend)


def blocks_of(job, forward, block_rows=64, **options):
    blocks = dict(predict_blocks(job, forward, block_rows=block_rows, **options))
    return np.concatenate([blocks[i] for i in sorted(blocks)], axis=1)


MAP_FILES = {"map.tif", "map.tif.aux.xml", "map.qml"}


def outputs_in(folder, **options):
    return Outputs(folder / "map.tif", folder / "conf.tif", **options)


def run(folder, job, forward=unsteady, tags=None, overwrite=False, probabilities=False, **options):
    """Predict into ``folder``; return the bytes of the map and of the other rasters."""
    folder.mkdir(exist_ok=True)
    shares = folder / "shares.tif" if probabilities else None
    to = outputs_in(folder, probabilities=shares, tags=tags or {}, overwrite=overwrite)
    options = {"classes": CLASSES, "fingerprint": "f", "block_rows": 64, "workers": 1} | options
    predict_map(job, forward, to, **options)
    assert {file.name for file in folder.iterdir()} == MAP_FILES | {p.name for p in to.paths}
    return tuple(path.read_bytes() for path in to.paths if path != shares) + (
        (shares.read_bytes(),) if shares else ()
    )


@pytest.fixture
def raster(tmp_path):
    return Raster(make_raster(tmp_path / "in.tif", nodata_box=(slice(40, 170), slice(90, 260))))


class Stopping:
    """A network that is interrupted at its n-th call."""

    def __init__(self, calls):
        self.calls = calls

    def logits(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return unsteady.logits(images)


# --- blending weights ------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 300), st.floats(0, 0.75), st.sampled_from(list(BLENDS)))
def test_weights_are_a_partition_of_unity(length, size, overlap, blend):
    shared = round(size * overlap)
    if shared == size:
        shared = size - 1
    starts = window_starts(length, size, size - shared)
    weights = axis_weights(starts, size, shared, blend)
    assert weights.dtype == np.float32
    assert [weight.any() for weight in weights] == [True] * len(starts)
    assert weights.min() >= 0
    total = np.zeros(starts[-1] + size)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + size] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    own = spans(starts, weights, length)
    assert [span.final for span in own] == [*(span.begin for span in own[1:]), length]
    assert own[0].begin == 0
    assert all(span.begin < span.final <= span.end <= length for span in own)
    for start, weight, span in zip(starts, weights, own, strict=True):
        heard = start + np.flatnonzero(weight)
        assert heard[0] == span.begin
        assert min(heard[-1] + 1, length) == span.end


@pytest.mark.parametrize("blend", BLENDS)
def test_a_windows_weight_is_the_same_from_both_sides_and_greatest_in_its_middle(blend):
    _, weight, _ = axis_weights([0, 48, 96], 64, 16, blend)
    np.testing.assert_allclose(weight, weight[::-1], atol=1e-6)
    assert (np.diff(weight[:32]) >= -1e-6).all()
    assert (weight[16:48] == 1).all()
    assert weight[0] < 0.1


def test_weights_worked_by_hand():
    assert ramp(8, 4).tolist() == [0, 0.25, 0.75, 1, 1, 1, 1, 1]
    assert axis_weights([0], 4, 2).tolist() == [[1, 1, 1, 1]]
    first, last = axis_weights([0, 4], 8, 4)
    assert first.tolist() == [1, 1, 1, 1, 1, 0.75, 0.25, 0]
    assert last.tolist() == [0, 0.25, 0.75, 1, 1, 1, 1, 1]
    assert axis_weights([0, 5, 10], 5, 0).tolist() == [[1] * 5] * 3


# --- what a pixel gets -----------------------------------------------------------------------


def decided(logits, valid, layers=2):
    """What a window that is alone gets."""
    count, *shape = logits.shape
    strip = np.zeros((layers, *shape), np.uint8)
    ones, nothing = tuple(np.ones(side, np.float32) for side in shape), np.zeros((count, 0, 0))
    add_window(
        logits,
        (0, 0),
        ones,
        tuple(shape),
        np.zeros((count, shape[0], 0), np.float32),
        0,
        nothing.astype(np.float32),
        0,
        valid,
        strip,
    )
    return strip


def rounded(shares):
    return np.rint(shares * 254).astype(np.uint8)


def test_a_window_alone_worked_by_hand():
    shares = np.array([[[0.2, 0.5, 0.4]], [[0.8, 0.5, 0.6]]])
    logits = np.log(shares).astype(np.float32)
    valid = np.array([[True, True, False]])
    labels, confidence = decided(logits, valid)
    assert labels.tolist() == [[1, 0, 255]]
    assert confidence.tolist() == [[round(0.8 * 254), 127, 255]]
    every = decided(logits, valid, layers=3)
    assert every[:, 0].tolist() == [[1, 0, 255], [51, 127, 255], [203, 127, 255]]
    assert decided(logits, valid, layers=1).tolist() == [labels.tolist()]


@given(
    count=st.integers(1, 9),
    cols=st.integers(1, 70),
    spread=st.sampled_from([0.1, 3, 40, 1000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_are_those_of_a_softmax(count, cols, spread, seed):
    scores = np.random.default_rng(seed).normal(size=(1, count, 3, cols)) * spread
    scores = scores.astype(np.float32)
    valid = np.ones((3, cols), bool)
    layers = decided(scores[0], valid, 1 + count)
    expected = softmax(scores)[0] * 254
    assert np.abs(layers[1:] - expected).max() <= 0.5 + 1e-4
    assert_array_equal(layers[0], scores[0].argmax(axis=0))
    pixels = np.ascontiguousarray(np.moveaxis(scores[0], 0, -1))
    assert_array_equal(decided(np.moveaxis(pixels, -1, 0), valid, 1 + count), layers)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_normalised_as_the_bands_say(dtype):
    rng = np.random.default_rng(0)
    image, valid = rng.integers(0, 255, (3, 9, 20)).astype(dtype), rng.random((9, 20)) > 0.2
    out = np.empty((9, 20, 3), np.float32)
    normalise_into(image, valid, np.float32(BANDS.mean), np.float32(BANDS.std), out)
    assert_array_equal(np.moveaxis(out, -1, 0), BANDS.normalise(image, valid))


def whole(raster, network):
    """The answer of a network that sees the whole raster at once."""
    image, valid = raster.read(raster.grid.window)
    scores = softmax(network.logits(BANDS.normalise(image, valid)[None]))[0]
    second, first = np.sort(scores, axis=0)[-2:]
    found = np.stack([scores.argmax(axis=0), rounded(first)])
    return np.where(valid, found, 255), valid & (first - second > 1e-4)


@pytest.mark.parametrize(
    ("window", "overlap"), [(64, 0.25), (64, 0.5), (96, 0.75), (128, 0.25), (400, 0.25)]
)
def test_tiled_is_whole_for_a_local_filter(raster, window, overlap):
    forward = local_filter(radius=3 * round(window * overlap) // 8)
    tiled = blocks_of(a_job(raster, window, overlap), forward)
    expected, clear = whole(raster, forward)
    np.testing.assert_array_equal(tiled[0][clear], expected[0][clear])
    assert np.abs(tiled[1].astype(int) - expected[1]).max() <= 1
    assert clear.mean() > 0.5


@pytest.mark.parametrize("window", [64, 128, 256])
def test_tiled_is_nearly_whole_for_a_field_of_half_the_overlap(tmp_path, window):
    raster = Raster(make_raster(tmp_path / "in.tif", 500, 500))
    forward = local_filter(radius=window // 8)
    tiled = blocks_of(a_job(raster, window, 0.25), forward)
    expected, _ = whole(raster, forward)
    assert (tiled[0] == expected[0]).mean() >= 0.995


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
def test_every_blend_is_the_weighted_sum_of_all_windows(raster, blend, overlap):
    job = a_job(raster, overlap=overlap, batch_size=1, blend=blend)
    side, (height, width) = job.window, job.shape
    total = np.zeros((K, height + side, width + side))
    for row, down in zip(job.rows, axis_weights(job.rows, side, job.shared, blend), strict=True):
        for col, across in zip(
            job.cols, axis_weights(job.cols, side, job.shared, blend), strict=True
        ):
            image, valid = raster.read(Window(row, col, side, side))
            if valid.any():
                shares = softmax(unsteady.logits(BANDS.normalise(image, valid)[None]))[0]
                total[:, row : row + side, col : col + side] += shares * np.outer(down, across)
    total, valid = total[:, :height, :width], raster.valid(raster.grid.window)
    made = blocks_of(job, unsteady, probabilities=True)
    assert (made[:, ~valid] == 255).all()
    assert np.abs(made[1:] - total * 254)[:, valid].max() <= 0.5 + 1e-2
    second, first = np.sort(total, axis=0)[-2:]
    clear = valid & (first - second > 1e-4)
    assert_array_equal(made[0][clear], total.argmax(axis=0)[clear])


def test_no_overlap(raster):
    forward = local_filter(radius=0)
    expected, clear = whole(raster, forward)
    np.testing.assert_array_equal(
        blocks_of(a_job(raster, 64, 0.0), forward)[0][clear], expected[0][clear]
    )


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (20, 30), (64, 64), (65, 63), (1, 1)])
def test_small_and_thin_rasters(tmp_path, shape):
    raster = Raster(make_raster(tmp_path / "in.tif", *shape))
    forward = local_filter(radius=2)
    tiled = blocks_of(a_job(raster), forward)
    expected, clear = whole(raster, forward)
    assert tiled.shape == (2, *shape)
    np.testing.assert_array_equal(tiled[0][clear], expected[0][clear])


def test_nodata_stays_255_and_empty_windows_are_skipped(raster):
    job, seen, ticks = a_job(raster), [], []

    @Net
    def forward(images):
        seen.append(len(images))
        return unsteady.logits(images)

    labels, confidence = blocks_of(job, forward, tick=lambda: ticks.append(1))
    valid = raster.valid(raster.grid.window)
    assert (labels[valid] < K).all()
    assert (confidence[valid] < 255).all()
    assert (labels[~valid] == 255).all()
    assert (confidence[~valid] == 255).all()
    assert sum(seen) < len(job.rows) * len(job.cols) == len(ticks)
    assert max(seen) <= job.batch_size


def test_a_raster_without_any_valid_pixel(tmp_path):
    everything = (slice(None), slice(None))
    raster = Raster(make_raster(tmp_path / "in.tif", 100, 90, nodata_box=everything))
    run(tmp_path / "out", a_job(raster), forward=Stopping(0))
    with rasterio.open(tmp_path / "out" / "map.tif") as dataset:
        assert (dataset.read() == 255).all()


def area_of(folder, raster, rows, cols):
    (left, top), (right, bottom) = (raster.grid.transform @ p for p in zip(cols, rows, strict=True))
    outline = geopandas.GeoSeries([box(left, bottom, right, top)], crs=raster.grid.crs)
    outline.to_file(folder / "aoi.gpkg")
    return Area(folder / "aoi.gpkg", raster.grid)


def test_area(tmp_path, raster):
    area = area_of(tmp_path, raster, rows=(10, 60), cols=(20, 100))
    job, calls = a_job(raster, area=area), []
    network = Net(lambda images: calls.append(len(images)) or unsteady.logits(images))
    labels = blocks_of(job, network)[0]
    inside = np.zeros(labels.shape, bool)
    inside[10:60, 20:100] = True
    np.testing.assert_array_equal(labels < K, inside & raster.valid(raster.grid.window))
    # Windows begin at 0, 48, 96 …: rows 0 and 48, columns 0, 48 and 96 meet the area.
    assert calls == [3, 2]  # the sixth window holds only nodata where it meets the area


# --- blocks, workers and interruptions change nothing ----------------------------------------


@pytest.fixture
def reference(tmp_path, raster):
    return run(tmp_path / "reference", a_job(raster), workers=0, block_rows=1000)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("block_rows", [64, 128, 1000, 37])
def test_bytes_do_not_depend_on_blocks_and_workers(
    tmp_path, raster, reference, block_rows, workers
):
    job = a_job(raster)
    assert run(tmp_path / "out", job, block_rows=block_rows, workers=workers) == reference


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0.25, 0.7])
def test_single_blocks_equal_those_of_a_whole_run(raster, overlap, blend):
    job = a_job(raster, overlap=overlap, blend=blend)
    every = dict(predict_blocks(job, unsteady, block_rows=64))
    for wanted in ([2], [0, 3], [1, 2]):
        some = dict(predict_blocks(job, unsteady, block_rows=64, wanted=wanted))
        assert list(some) == wanted
        for index, block in some.items():
            np.testing.assert_array_equal(block, every[index])


@pytest.mark.parametrize("calls", [0, 1, 2, 4, 6, 8, 10])
def test_interrupted_and_resumed_gives_the_same_bytes(tmp_path, raster, reference, calls):
    job, folder = a_job(raster), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, job, Stopping(calls))
    assert not list(folder.glob("*.tif"))
    assert run(folder, job) == reference


def test_interrupted_again_and_again_goes_on(tmp_path, raster, reference):
    job, folder = a_job(raster), tmp_path / "out"
    for _ in range(20):
        try:
            # No single attempt reaches the end.
            assert run(folder, job, Stopping(6), workers=3) == reference
            break
        except KeyboardInterrupt:
            pass
    else:
        pytest.fail("nothing was kept from one attempt to the next")


def test_killed_between_confidence_and_map(tmp_path, raster, reference, monkeypatch):
    job, folder = a_job(raster), tmp_path / "out"
    original = Classes.to_ids

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Classes, "to_ids", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, job)
    assert (folder / "conf.tif").exists()
    assert not (folder / "map.tif").exists()
    monkeypatch.setattr(Classes, "to_ids", original)
    assert run(folder, job, Stopping(0)) == reference


# --- probabilities ---------------------------------------------------------------------------


def test_probabilities_are_those_of_the_network(tmp_path, raster, reference):
    job, folder = a_job(raster), tmp_path / "out"
    *others, _ = run(folder, job, probabilities=True)
    assert tuple(others) == reference, "the map and the confidence are the same without them"
    with rasterio.open(folder / "shares.tif") as dataset:
        assert (dataset.descriptions, dataset.nodata) == (CLASSES.names, 255)
        shares = dataset.read()
    labels, confidence = blocks_of(job, unsteady)
    valid = raster.valid(raster.grid.window)
    assert (shares[:, ~valid] == 255).all()
    assert_array_equal(shares.max(axis=0), confidence)
    winner = np.take_along_axis(shares, np.where(valid, labels, 0)[None], axis=0)[0]
    assert_array_equal(winner[valid], confidence[valid])
    assert np.abs(shares[:, valid].astype(int).sum(axis=0) - 254).max() <= K


@pytest.mark.parametrize("block_rows", [64, 37, 1000])
@pytest.mark.parametrize("calls", [1, 6, 10])
def test_interrupted_probabilities_give_the_same_bytes(tmp_path, raster, block_rows, calls):
    job = a_job(raster)
    whole_run = run(tmp_path / "whole", job, probabilities=True, workers=0)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, job, Stopping(calls), probabilities=True, block_rows=block_rows)
    assert not list(folder.glob("*.tif"))
    assert run(folder, job, probabilities=True, block_rows=block_rows) == whole_run


def test_blocks_without_probabilities_are_not_taken_for_such_with(tmp_path, raster):
    job, folder = a_job(raster), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, job, Stopping(8))
    whole_run = run(tmp_path / "whole", job, probabilities=True)
    assert run(folder, job, probabilities=True) == whole_run


@pytest.mark.parametrize(
    ("others", "count"),
    [({}, 1), ({"confidence": Path("c.tif")}, 2), ({"probabilities": Path("p.tif")}, 1 + K)],
)
def test_the_scratch_holds_no_more_than_what_is_asked_for(others, count):
    assert Outputs(Path("map.tif"), **others).layers(K) == count


def test_resampled_probabilities_agree_with_the_map(tmp_path, raster):
    coarse = Raster(raster.path, ground_sample_distance=1.3)
    run(tmp_path / "out", a_job(coarse), source=raster, probabilities=True)
    with rasterio.open(tmp_path / "out" / "shares.tif") as dataset:
        shares, transform = dataset.read(), dataset.transform
    with rasterio.open(tmp_path / "out" / "map.tif") as dataset:
        labels = CLASSES.from_ids(dataset.read(1))
    with rasterio.open(tmp_path / "out" / "conf.tif") as dataset:
        assert_array_equal(shares.max(axis=0), dataset.read(1))
    assert transform == TRANSFORM
    assert_array_equal((shares == 255).all(axis=0), labels == 255)
    clear = np.sort(shares, axis=0)[-1] > np.sort(shares, axis=0)[-2]
    assert_array_equal(shares.argmax(axis=0)[clear], labels[clear])


def run_slowly(source: str, folder: str) -> None:
    """Predict with pauses; a subprocess runs this to be killed."""

    @Net
    def forward(images):
        time.sleep(0.2)
        return unsteady.logits(images)

    run(Path(folder), a_job(Raster(source)), forward)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, raster, reference):
    folder = tmp_path / "out"
    folder.mkdir()
    process = start("run_slowly", str(raster.path), str(folder))
    deadline = time.monotonic() + 60
    while not list(folder.glob("map.tif.partial/*.block")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(folder.glob("*.tif"))
    assert run(folder, a_job(raster), Stopping(10)) == reference


def test_blocks_of_another_network_or_raster_are_not_reused(tmp_path, raster, reference):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, a_job(raster), Stopping(8), fingerprint="another")
    assert list(folder.glob("map.tif.partial/*.block"))
    assert run(folder, a_job(raster)) == reference
    with pytest.raises(KeyboardInterrupt):
        run(folder, a_job(raster), Stopping(8), overwrite=True)
    os.utime(raster.path, (0, 0))
    with pytest.raises(KeyboardInterrupt):
        run(folder, a_job(raster), Stopping(0), overwrite=True)
    assert run(folder, a_job(raster), overwrite=True) == reference


def start(function, *arguments):
    """Run a function of this file in another process."""
    code = f"import {Path(__file__).stem} as t, sys; t.{function}(*sys.argv[1:])"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 50))
def test_regrouped_keeps_every_row(heights, rows):
    total = sum(heights)
    image = np.arange(total * 2, dtype=np.uint8).reshape(1, total, 2)
    strips = np.split(image, np.cumsum(heights)[:-1], axis=1)
    cut = list(regrouped(strips, rows))
    assert all(strip.shape[1] == rows for strip in cut[:-1])
    np.testing.assert_array_equal(np.concatenate(cut, axis=1), image)


# --- the map ---------------------------------------------------------------------------------


def test_the_map_is_on_the_source_grid_with_ids_and_colours(tmp_path, raster):
    run(tmp_path / "out", a_job(raster), tags={"RSSEG_MODEL": "toy"})
    labels, confidence = blocks_of(a_job(raster), unsteady)
    with rasterio.open(tmp_path / "out" / "map.tif") as dataset:
        assert (dataset.crs.to_epsg(), dataset.transform) == (32633, TRANSFORM)
        assert (dataset.nodata, dataset.dtypes) == (255, ("uint8",))
        assert dataset.colormap(1)[20] == (0, 255, 0, 255)
        assert dataset.tags()["RSSEG_MODEL"] == "toy"
        np.testing.assert_array_equal(dataset.read(1), CLASSES.to_ids(labels))
    with rasterio.open(tmp_path / "out" / "conf.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), confidence)


def test_a_resampled_prediction_is_written_on_the_source_grid(tmp_path, raster):
    coarse = Raster(raster.path, ground_sample_distance=1.3)
    area = area_of(tmp_path, raster, rows=(11, 200), cols=(3, 301))
    job = a_job(coarse, area=Area(area.path, coarse.grid))
    run(tmp_path / "out", job, source=raster)
    predicted = blocks_of(job, unsteady)[0]
    with rasterio.open(tmp_path / "out" / "map.tif") as dataset:
        assert (dataset.shape, dataset.transform) == ((230, 310), TRANSFORM)
        drawn = CLASSES.from_ids(dataset.read(1))
    centres = TRANSFORM @ (np.arange(310) + 0.5, np.full(310, 0.5))
    cols = np.floor((~coarse.grid.transform @ centres)[0]).astype(int)
    centres = TRANSFORM @ (np.full(230, 0.5), np.arange(230) + 0.5)
    rows = np.floor((~coarse.grid.transform @ centres)[1]).astype(int)
    wanted = raster.valid(raster.grid.window) & area.mask(raster.grid.window)
    np.testing.assert_array_equal(drawn, np.where(wanted, predicted[rows[:, None], cols], 255))
    assert (drawn[wanted] < K).mean() > 0.95


def test_nearest():
    fine = Grid((5, 7), Affine(2, 0, 100, 0, -2, 50))
    coarse = Grid((2, 3), fine.transform @ Affine.scale(2.5))
    rows, cols = nearest(fine, coarse)
    assert rows.tolist() == [0, 0, 1, 1, 1]
    assert cols.tolist() == [0, 0, 1, 1, 1, 2, 2]
    rows, _ = nearest(coarse, fine)
    assert rows.tolist() == [1, 3]


def test_existing_files_are_refused_before_anything_is_predicted(tmp_path, raster):
    job, folder = a_job(raster), tmp_path / "out"
    run(folder, job)
    before = (folder / "map.tif").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"map\.tif: exists already"):
        run(folder, job, Stopping(0))
    (folder / "map.tif").rename(folder / "other.tif")
    with pytest.raises(InputError, match=r"conf\.tif: exists already"):
        run(folder, job, Stopping(0))
    assert {file.name for file in folder.iterdir()} == {"other.tif", "conf.tif", *MAP_FILES} - {
        "map.tif"
    }
    assert (folder / "other.tif").stat().st_mtime_ns == before
    (folder / "other.tif").rename(folder / "map.tif")
    run(folder, job, overwrite=True)


def test_map_and_confidence_must_differ(tmp_path, raster):
    out = tmp_path / "a.tif"
    with pytest.raises(InputError, match="different places"):
        predict_map(a_job(raster), unsteady, Outputs(out, out), classes=CLASSES, fingerprint="f")


def test_a_map_alone(tmp_path, raster, reference):
    out = tmp_path / "alone.tif"
    predict_map(a_job(raster), unsteady, Outputs(out), classes=CLASSES, fingerprint="f")
    assert out.read_bytes() == reference[0]


class Counting(Silent):
    """A progress that remembers how much was done, before and now."""

    def __init__(self):
        self.total = self.before = self.now = 0

    def step(self, label, total, unit, done=0):
        self.total, self.before = total, done
        return super().step(label, total, unit, done)


def test_progress_knows_what_an_earlier_run_did(tmp_path, raster):
    job, folder, shown = a_job(raster), tmp_path / "out", Counting()
    with pytest.raises(KeyboardInterrupt):
        run(folder, job, Stopping(8), progress=shown)
    assert (shown.total, shown.before) == (len(job.rows) * len(job.cols), 0)
    run(folder, job, progress=shown)
    assert 0 < shown.before < shown.total


# --- the plan --------------------------------------------------------------------------------


def test_plan(tmp_path, raster):
    job = a_job(raster)
    planned = plan(job, outputs_in(tmp_path), block_rows=64)
    assert (planned.shape, planned.windows, planned.blocks) == ((230, 310), (5, 7), 4)
    written = sum(map(len, run(tmp_path / "out", job)))
    assert written <= planned.output_bytes
    assert planned.scratch_bytes >= 2 * 230 * 310
    assert planned.memory_bytes > 0


def test_plan_on_the_source_grid(raster):
    coarse = Raster(raster.path, ground_sample_distance=1.3)
    planned = plan(a_job(coarse), Outputs(Path("map.tif")), source=raster)
    assert (planned.shape, planned.predicted_shape) == ((230, 310), coarse.grid.shape)


def test_memory_does_not_grow_with_the_height(tmp_path):
    low, high = (
        plan(
            a_job(Raster(make_raster(tmp_path / f"{h}.tif", h, 50))),
            Outputs(tmp_path / "map.tif"),
            block_rows=64,
        )
        for h in (300, 3000)
    )
    assert low.memory_bytes == high.memory_bytes


@given(st.integers(1, 10_000_000))
def test_default_block_rows(width):
    rows = default_block_rows(width)
    assert rows % 64 == 0
    assert 64 <= rows <= 2048


# --- the store -------------------------------------------------------------------------------


def a_store(path, fingerprint="f", **options):
    return BlockStore(
        path,
        **({"fingerprint": fingerprint, "count": 1, "shape": (10, 3), "block_rows": 4} | options),
    )


def filled(path):
    store = a_store(path)
    store.write(0, np.full((1, 4, 3), 1, np.uint8))
    store.write(2, np.full((1, 2, 3), 3, np.uint8))
    return store


def test_a_store_is_continued(tmp_path):
    store = filled(tmp_path / "s")
    assert (len(store), store.missing()) == (3, [1])
    again = a_store(tmp_path / "s")
    assert again.missing() == [1]
    assert (again.read(2) == 3).all()
    again.write(1, np.full((1, 4, 3), 2, np.uint8))
    assert again.rows(3, 9)[0, :, 0].tolist() == [1, 2, 2, 2, 2, 3]
    again.remove()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("other", [{"fingerprint": "g"}, {"block_rows": 5}, {"shape": (10, 4)}])
def test_a_store_of_something_else_is_begun_anew(tmp_path, other):
    filled(tmp_path / "s")
    store = a_store(tmp_path / "s", **other)
    assert store.missing() == list(range(len(store)))
    assert a_store(tmp_path / "s").missing() == [1], "nothing is lost before there is something new"
    store.write(1, np.zeros(store._block_shape(1), np.uint8))
    assert 1 not in store.missing()
    assert a_store(tmp_path / "s").missing() == [0, 1, 2]


def test_a_folder_of_the_users_is_left_alone(tmp_path, raster):
    folder = tmp_path / "out" / "map.tif.partial"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"mine": True}))
    (folder / "000000.block").write_text("mine, too")
    with pytest.raises(InputError, match=r"map\.tif\.partial is in the way"):
        run(tmp_path / "out", a_job(raster))
    assert len(list(folder.iterdir())) == 2
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="in the way"):
        a_store(tmp_path / "file")


def test_files_of_others_in_the_store_survive_its_end(tmp_path):
    store = filled(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    store.remove()
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["notes.txt"]


def test_a_store_killed_at_birth_is_continued(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.json.new").write_text("{")
    assert filled(tmp_path / "s").missing() == [1]


def test_a_store_that_cannot_be_written(tmp_path):
    store = a_store(tmp_path / "gone" / "s")
    with pytest.raises(RunError, match="what is done is kept"):
        store.write(0, np.zeros((1, 4, 3), np.uint8))


def test_an_unfinished_block_is_missing_and_a_damaged_one_is_dropped(tmp_path):
    store = filled(tmp_path / "s")
    (tmp_path / "s" / "000001.block.new").write_bytes(b"half")
    assert store.missing() == [1]
    (tmp_path / "s" / "000000.block").write_bytes(b"")
    with pytest.raises(RunError, match="run again"):
        store.read(0)
    assert store.missing() == [0, 1]


# --- memory ----------------------------------------------------------------------------------

SIDE, LIMIT = 20_000, 1.5e9


def make_large(path: Path, side: int) -> None:
    rng = np.random.default_rng(0)
    tile = uniform_filter(rng.uniform(1, 255, (3, 512, 512)), (0, 16, 16)).astype(np.uint8) // 8 * 8
    profile = {
        "driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": TRANSFORM, "tiled": True, "blockxsize": 512,
        "blockysize": 512, "compress": "deflate", "zlevel": 1, "interleave": "pixel",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for _, window in target.block_windows(1):
            target.write(tile[:, : window.height, : window.width], window=window)


def tiny_network():
    import torch

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, K, 3, padding=1).eval()

    @Net
    @torch.inference_mode()
    def forward(images):
        return conv(torch.from_numpy(images)).numpy()

    return forward


def peak_bytes() -> int:
    """The most memory this process ever held; unlike getrusage's, without its parent's share."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def predict_large(source: str, out: str) -> None:
    """Predict and print the peak; a subprocess of its own runs this."""
    job = a_job(Raster(source), window=512, overlap=0.125, batch_size=4)
    predict_map(job, tiny_network(), Outputs(Path(out)), classes=CLASSES, fingerprint="f")
    print(peak_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_a_large_raster(tmp_path):
    # The first prediction of an installation compiles loops, which takes memory once.
    for name, side in (("small", 600), ("large", SIDE)):
        make_large(tmp_path / f"{name}.tif", side)
        names = (str(tmp_path / f"{name}{kind}.tif") for kind in ("", "_map"))
        process = start("predict_large", *names)
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
    assert int(printed) < LIMIT
