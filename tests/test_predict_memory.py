"""What a prediction takes: the plan, the cache of blocks that it asks for, and the memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.env
from hypothesis import given
from hypothesis import strategies as st
from numpy_networks import (
    CLASSES,
    TRANSFORM,
    K,
    Net,
    a_job,
    a_raster,
    blocks_of,
    make_raster,
    outputs_in,
    run,
    start,
    unsteady,
)
from scipy.ndimage import uniform_filter

from rsseg.io.opening import MOST_CACHE, SMALL_CACHE, allowed_cache, block_cache
from rsseg.io.raster import Raster
from rsseg.ops.decoding import times_decoded, worth_keeping
from rsseg.stages.job import default_block_rows
from rsseg.stages.outputs import Outputs
from rsseg.stages.planning import LEAST_CACHE, plan, reading_cache
from rsseg.stages.predict import predict_map


@pytest.fixture
def raster(tmp_path):
    return a_raster(tmp_path)


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


# --- the cache of blocks ---------------------------------------------------------------------


def cache_now() -> int:
    return int(rasterio.env.get_gdal_config("GDAL_CACHEMAX"))


@pytest.mark.parametrize(("needed", "kept"), [(10**7, 10**7), (10**9, MOST_CACHE)])
def test_the_cache_is_set_within_its_block_also_in_an_environment(needed, kept):
    before = cache_now()
    assert before == MOST_CACHE, "the tests are to run without GDAL_CACHEMAX"
    for surroundings in (nullcontext(), rasterio.Env()):
        with surroundings:
            with block_cache(needed):
                assert cache_now() == kept
            assert cache_now() == before


def test_a_cache_that_the_user_chose_stands():
    with rasterio.Env(GDAL_CACHEMAX=50_000_000), block_cache(SMALL_CACHE):
        assert cache_now() == allowed_cache(SMALL_CACHE) == 50_000_000


@given(
    width=st.integers(1, 60_000),
    block=st.tuples(st.sampled_from([1, 16, 256, 512, 1000]), st.sampled_from([256, 512, 60_000])),
    side=st.integers(64, 1024),
    readers=st.integers(1, 4),
)
def test_no_block_is_decoded_twice_where_all_that_is_worth_it_is_kept(width, block, side, readers):
    shape, window = (20_000, width), (side, side)
    block = block[0], min(block[1], width)
    limit = MOST_CACHE / 3
    kept = worth_keeping(shape, block, window, limit=limit, readers=readers)
    assert kept <= limit
    stride = (side * 3 // 4,) * 2
    often, at_best = (
        times_decoded(shape, block, window, stride, cache=cache, readers=readers)
        for cache in (kept, limit)
    )
    assert often <= at_best * (1 + 1e-9)


def test_a_row_of_windows_worked_by_hand():
    # Windows of 512 px meet two rows of blocks of 512 px; 30,000 px are 59 of them.
    size = worth_keeping((10**6, 30_000), (512, 512), (512, 512), limit=1e9)
    assert size == 2 * 512 * 59 * 512
    # 10**6 px are too wide: three blocks that a window meets, and as many for the next one.
    assert worth_keeping((10**6, 10**6), (512, 512), (512, 512), limit=1e8) == 1024 * 2 * 1024


def test_the_cache_of_a_job_follows_the_width(tmp_path, raster):
    assert reading_cache(a_job(raster), 1) == LEAST_CACHE
    coarse = Raster(raster.path, ground_sample_distance=1.3)
    assert reading_cache(a_job(coarse), 1) == MOST_CACHE
    shape = {"height": 600, "width": 100_000, "count": 3, "dtype": "uint8", "SPARSE_OK": True}
    with rasterio.open(tmp_path / "wide.tif", "w", transform=TRANSFORM, blockysize=1, **shape):
        pass  # an empty file, in strips of a row
    job = a_job(Raster(tmp_path / "wide.tif"), window=512)
    assert reading_cache(job, 1) == 512 * 100_000 * 3


def test_prediction_reads_and_writes_within_its_cache_and_leaves_the_usual_one(tmp_path, raster):
    seen = []

    @Net
    def forward(images):
        seen.append(cache_now())
        return unsteady.logits(images)

    before = cache_now()
    run(tmp_path / "out", a_job(raster), forward)
    assert set(seen) == {LEAST_CACHE}
    assert cache_now() == before


def test_what_the_network_was_given_is_used_again(raster):
    given_, job = [], a_job(raster)
    network = Net(lambda images: given_.append(images.ctypes.data) or unsteady.logits(images))
    blocks_of(job, network)
    assert len(given_) > len(job.rows)
    assert len(set(given_)) == 1


@pytest.mark.parametrize("layers", [1, 2, 1 + K])
def test_what_is_not_asked_for_is_not_made_and_changes_no_class(raster, layers):
    made = blocks_of(a_job(raster), unsteady, layers=layers)
    assert made.shape[0] == layers
    assert (made[0] == blocks_of(a_job(raster), unsteady)[0]).all()


# --- memory ----------------------------------------------------------------------------------

SIDE, LIMIT = 20_000, 1.3e9


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
        process = start(__file__, "predict_large", *names)
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
    assert int(printed) < LIMIT
