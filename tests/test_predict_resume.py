"""Predictions that are interrupted, shared out or made in other blocks: the bytes stay."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.testing import assert_array_equal
from numpy_networks import (
    CLASSES,
    TRANSFORM,
    K,
    Net,
    Stopping,
    a_job,
    a_raster,
    blocks_of,
    run,
    start,
    unsteady,
)

from rsseg.classes import Classes
from rsseg.io.raster import Raster
from rsseg.ops.blend import BLENDS
from rsseg.progress import Silent
from rsseg.stages.blending import predict_blocks
from rsseg.stages.outputs import Outputs
from rsseg.stages.predict import predict_map


@pytest.fixture
def raster(tmp_path):
    return a_raster(tmp_path)


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
    process = start(__file__, "run_slowly", str(raster.path), str(folder))
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
