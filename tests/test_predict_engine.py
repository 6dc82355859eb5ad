"""The prediction engine, with networks that are a line of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy_networks import (
    BANDS,
    CLASSES,
    MAP_FILES,
    TRANSFORM,
    K,
    Net,
    Stopping,
    a_job,
    a_raster,
    area_of,
    blocks_of,
    local_filter,
    make_raster,
    run,
    softmax,
    unsteady,
)

from rsseg.errors import InputError
from rsseg.grid import Grid, Window, window_starts
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.ops.blend import BLENDS, axis_weights, ramp, spans
from rsseg.ops.mosaic import add_window, normalise_into
from rsseg.stages.blending import regrouped
from rsseg.stages.outputs import Outputs
from rsseg.stages.predict import nearest, predict_map


@pytest.fixture
def raster(tmp_path):
    return a_raster(tmp_path)


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
    made = blocks_of(job, unsteady, layers=1 + K)
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
