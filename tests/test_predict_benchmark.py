"""The parts of benchmarks/predict that are calculated: pixels, windows, seams, tables, resuming."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio
import torch
from numpy.typing import NDArray

# Behind the tests, two of whose helpers are named like benchmarks.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import predict_bench
import predict_models
import predict_rasters
import predict_seams
from kept import Results
from predict_bench import Bench, agreement, rounds_of, turns
from predict_child import peak_bytes
from predict_job import Job
from predict_nets import Card, Fed, load
from predict_peers import PEERS
from predict_runs import Settings, clear, watched
from predict_tables import fastest_peer, input_rate, of_limit, output_rate, tables
from predict_ways import WAYS, corners

SIDE = 96


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(40, 200, (3, 64, 64), dtype=np.uint8)


@pytest.fixture
def raster(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    path = tmp_path / "raster.tif"
    predict_rasters.write(path, SIDE, picture)
    return path


@pytest.fixture
def pixel(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    path = tmp_path / "pixel.pt"
    predict_models.make(path, predict_models.MODELS["pixel"], picture[None])
    return path


def job(way: str, raster: Path, model: Path, **changed: Any) -> Job:
    made = raster.with_name(f"{way}.tif")
    return Job(way, raster, model, made, **{"window": 32, "overlap": 8, "batch": 2, **changed})


def test_rasters_are_mirrored_pictures_without_the_value_zero(raster: Path) -> None:
    assert predict_rasters.mirrored(np.arange(8), 3).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    with rasterio.open(raster) as source:
        image = source.read()
        assert (source.shape, source.dtypes) == ((SIDE, SIDE), ("uint8",) * 3)
        assert source.profile["tiled"]
    assert image.min() >= 1
    # 64 wide: the columns 64 … 95 go back over 63 … 32, but for the grain and the light.
    apart = image[:, :64, 64:96].astype(int) - image[:, :64, 32:64][..., ::-1]
    assert np.abs(apart).max() <= 2 * predict_rasters.GRAIN + 3


def test_rasters_do_not_depend_on_how_much_is_written_at_once(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    rng = np.random.default_rng(1)
    whole = predict_rasters.block(picture, np.arange(40), np.arange(90), rng)
    part = predict_rasters.block(picture, np.arange(8, 16), np.arange(70, 90), rng)
    assert np.abs(whole[:, 8:16, 70:].astype(int) - part).max() <= 2 * predict_rasters.GRAIN


def test_random_weights_give_every_class_its_share(pixel: Path, picture: NDArray[np.uint8]) -> None:
    network, card = load(pixel)
    assert card == Card("pixel", "none", 6)
    with torch.inference_mode():
        logits = network(torch.from_numpy(picture[None]).float() / 255)
    shares = np.bincount(logits.argmax(dim=1).numpy().ravel(), minlength=6) / 64**2
    assert shares.max() < 0.6
    assert torch.allclose(logits.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-3)


def test_a_fed_network_counts_pixels_and_normalises_what_it_gets(pixel: Path) -> None:
    network, card = load(pixel)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        right = network(images.float() / 255)
        for white, given in ((255, images), (1, images.float() / 255)):
            net = Fed(network, card, white).eval()
            assert torch.allclose(net(given), right, atol=1e-5)
            assert net.pixels == 2 * 8 * 8
        trained = Fed(network, Card("pixel", "none", 6, (50.0,) * 3, (60.0,) * 3), 255)
        assert torch.allclose(trained(images), network((images.float() - 50) / 60), atol=1e-5)


def test_the_windows_by_the_book_cover_the_raster_once(raster: Path, pixel: Path) -> None:
    found = list(corners(job("plain", raster, pixel), (SIDE, 33)))
    assert found == [(r, c) for r in (0, 24, 48, 72) for c in (0, 24)]
    assert list(corners(job("plain", raster, pixel), (20, 32))) == [(0, 0)]


def test_rsseg_and_the_book_agree_on_a_network_that_sees_one_pixel(
    raster: Path, pixel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_bench, "WINDOW", 8)
    jobs = [job(way, raster, pixel) for way in ("rsseg", "plain")]
    found = [WAYS[one.way](one)() for one in jobs]
    # 4 x 4 windows of 32, 24 apart, where 3 x 3 would cover the raster.
    assert found[0]["input"] == 16 * 32**2
    assert agreement(jobs[0].made, jobs[1].made) == 1
    with rasterio.open(jobs[1].made, "r+") as target:
        target.write(target.read(1) ^ 1, 1)
    assert agreement(jobs[0].made, jobs[1].made) < 0.5


def test_the_limits_are_rates(raster: Path, pixel: Path) -> None:
    found = WAYS["forward"](job("forward", raster, pixel, seconds=0))()
    assert found["best"] == max(found["mpix"].values()) > 0
    assert found["alone"] >= found["best"]
    assert {form.split(",")[0] for form in found["mpix"]} == {"of 1", "of 2"}
    copied = job("copy", raster, pixel)
    WAYS["copy"](copied)()
    with rasterio.open(copied.made) as made, rasterio.open(raster) as source:
        assert (made.read() == source.read()).all()


def test_the_forward_stands_beside_rsseg_and_the_copy_is_of_one_model() -> None:
    found = list(turns([100], ["pixel", "deeplab"], ["geoai"]))
    assert rounds_of(100) == (3, 2)
    assert rounds_of(30_000) == (1, 1)
    ways = [way for model, _, turn, way in found if (model, turn) == ("pixel", 0)]
    assert ways == ["rsseg", "rsseg-bfloat16", "forward", "copy", "geoai"]
    assert [way for model, _, turn, way in found if (model, turn) == ("deeplab", 2)] == [
        "rsseg",
        "rsseg-bfloat16",
        "forward",
    ]


def test_steps_are_measured_across_every_line(tmp_path: Path) -> None:
    shares = np.zeros((2, 60, 50), np.uint8)
    shares[:, 20:] = 10
    shares[0, :, 30:] += 4
    shares[:, 40:, :] = predict_seams.NODATA
    path = tmp_path / "shares.tif"
    profile = {"driver": "GTiff", "width": 50, "height": 60, "count": 2, "dtype": "uint8"}
    profile |= {"transform": rasterio.Affine.scale(2)}
    with rasterio.open(path, "w", **profile) as target:
        target.write(shares)
    found = [predict_seams.steps_of(path)]
    strip, predict_seams.STRIP = predict_seams.STRIP, 7
    try:
        found.append(predict_seams.steps_of(path))
    finally:
        predict_seams.STRIP = strip
    for steps in found:
        assert np.nan_to_num(steps.rows, nan=-1)[[0, 1, 20, 39, 40]].tolist() == [-1, 0, 20, 0, -1]
        assert np.flatnonzero(np.nan_to_num(steps.cols)).tolist() == [30]
        assert steps.cols[30] == 4


def test_a_seam_is_a_step_that_is_larger_than_those_beside_it() -> None:
    steps = predict_seams.Steps(np.full(100, 2.0), np.full(100, 3.0))
    assert steps.ratio([40], [40, 60]) == {"ratio": 1, "error": 0, "lines": 3}
    steps.rows[40] = 4
    assert steps.ratio([40], []) == {"ratio": 2, "error": 0, "lines": 1}
    # Too near to the raster's edge for a line 8 pixels away.
    assert steps.ratio([8, 92], [])["lines"] == 0


def test_lines_are_where_windows_begin_end_and_meet() -> None:
    lines = predict_seams.lines_of(1000, 512, 128)
    assert sorted(set(lines["windows"])) == [384, 512, 768, 896, 1280]
    assert lines["cores"] == [448, 832]
    assert not set(lines["elsewhere"]) & {*lines["windows"], *lines["cores"]}


def units() -> dict[str, dict[str, Any]]:
    spent = {"cpu": 1.0, "peak_mb": 900, "load": 0.1}
    return {
        "about": {"machine": "x", "load": 1},
        "bare": {"seconds": 0, "peak_mb": 700, "load": 0},
        "time pixel 1000 rsseg 0": {"seconds": 0.5, "input": 2_000_000, **spent},
        "time pixel 1000 rsseg 1": {"seconds": 0.5, "input": 2_000_000, **spent},
        "time pixel 1000 forward 0": {"seconds": 1, "best": 4.0, "alone": 9.0, **spent}
        | {"mpix": {"of 1, rows": 4.0}},
        "time pixel 1000 forward 1": {"seconds": 1, "best": 8.0, "alone": 9.0, **spent}
        | {"mpix": {"of 1, rows": 8.0}},
        "time pixel 1000 terratorch 0": {"seconds": 1.0, "input": 1_500_000, **spent},
        "time pixel 2000 rsseg 0": {"seconds": 2.2, "input": 8_000_000, **spent, "peak_mb": 990},
        "time pixel 2000 terratorch 0": {"failed": "more than 1.0 GB", "peak_mb": 1, "load": 0},
        "agreement pixel 1000 rsseg": {"share": 0.99975},
        "seams ramp": {
            kind: {"ratio": 1.01, "error": 0.02, "lines": 9}
            for kind in (*predict_seams.KINDS, "blocks")
        }
        | {"state": "a.pt on b.tif"},
    }


@pytest.fixture
def results(tmp_path: Path) -> Results:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(units()), encoding="utf-8")
    return Results(path)


def test_rates_count_the_map_and_what_goes_into_the_network(results: Results) -> None:
    unit = results.units["time pixel 1000 rsseg 0"]
    assert (output_rate(unit, 1000), input_rate(unit)) == (2, 4)
    # 4 of 4 beside one limit, 4 of 8 beside the other.
    assert of_limit(results, "pixel", 1000, "rsseg") == 0.75
    assert of_limit(results, "pixel", 2000, "rsseg") is None
    assert fastest_peer(results, "pixel", 1000) == 1
    assert fastest_peer(results, "pixel", 2000) is None


def test_tables_say_what_is_missing_and_what_was_too_much(results: Results) -> None:
    troubles = {"geoai": "geoai-py", "rastervision": "rastervision: no GDAL"}
    lines = list(tables(results, [1000, 2000], ["pixel"], troubles))
    shown = "\n".join(lines)
    cells = "0.5 | 2.00 | 4.00 | 0.75 | 2.00 | 1.0 | 900 | 200 |"
    assert f"| 1,000² | **rsseg**, float32 | {cells}" in lines
    assert "| 2,000² | 550.0 | 1.100 | 990 | 1.100 |" in lines
    assert "more than 1.0 GB" in shown
    assert "not installed: `pip install geoai-py`" in shown
    assert "rastervision: no GDAL" in shown
    assert "99.9750%" in shown
    assert "| ramp, a.pt on b.tif | 1.010 ± 0.020 (9) |" in shown
    # Every row of a table has as many cells as its heading.
    tall = [line.count("|") for line in lines if line.startswith("|")]
    headings = [i for i, line in enumerate(lines) if line.startswith("|---")]
    for i in headings:
        row = i + 1
        while lines[row].startswith("|"):
            assert lines[row].count("|") == lines[i].count("|"), lines[row]
            row += 1
    assert tall


def test_two_workers_are_compared_with_two_networks_alone(tmp_path: Path) -> None:
    kept = Results(tmp_path / "results.json")
    for way, found in (
        ("rsseg", {"seconds": 90.0}),
        ("dask", {"seconds": 50.0}),
        ("forward", {"best": 1.0}),
    ):
        kept.need(f"dask deeplab 1000 {way}", lambda found=found: found)
    assert "of two networks alone" not in "\n".join(tables(kept, [1000], [], {}))
    kept.need("dask deeplab 1000 two forwards", lambda: {"best": 2.0})
    assert "| 90.0 | 50.0 | 1.80 | 2.00 | 0.90 |" in list(tables(kept, [1000], [], {}))


def test_tables_of_nothing(tmp_path: Path) -> None:
    lines = list(tables(Results(tmp_path / "none.json"), [1000], ["pixel"], {}))
    assert any("the interpreter" in line for line in lines) is False


def test_a_missing_tool_is_no_result_and_what_was_measured_is_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(job: Job, settings: Settings, folder: Path) -> dict[str, Any]:
        asked.append(job.way)
        if job.way == "geoai":
            return {"missing": "geoai-py"}
        return {"seconds": 1.0, "cpu": 1.0, "peak_mb": 1, "input": 1}

    monkeypatch.setattr(predict_bench, "run", run)
    monkeypatch.setattr(Bench, "raster", lambda *_: tmp_path / "raster.tif")
    monkeypatch.setattr(Bench, "model", lambda *_: tmp_path / "pixel.pt")
    for again in (False, True):
        bench = Bench(tmp_path, Settings())
        for way in ("rsseg", "geoai"):
            bench.time(f"time pixel 100 {way} 0", way, "pixel", 100)
        assert bench.troubles == {"geoai": "geoai-py"}
        assert list(bench.results.units) == ["time pixel 100 rsseg 0"]
        assert asked == (["rsseg", "geoai", "geoai"] if again else ["rsseg", "geoai"])


def test_leftovers_of_a_map_are_cleared_and_no_other_map(tmp_path: Path) -> None:
    made = tmp_path / "pixel_100_geoai.tif"
    others = [tmp_path / name for name in ("pixel_100_geoai-semantic.tif", "pixel_1000_geoai.tif")]
    for path in (made, made.with_suffix(".qml"), *others):
        path.touch()
    for folder in (made.with_suffix(""), Path(f"{made}.partial")):
        (folder / "block").mkdir(parents=True)
    clear(made)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_what_was_too_much_is_not_tried_on_a_larger_raster(
    results: Results, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, Settings())
    assert bench.was_too_much("pixel", 3000, "terratorch")
    assert not bench.was_too_much("pixel", 2000, "terratorch")
    assert not bench.was_too_much("deeplab", 3000, "terratorch")
    assert not bench.was_too_much("pixel", 3000, "rsseg")


@pytest.mark.parametrize(
    ("limits", "why"),
    [({"memory": 1.0}, "GB"), ({"seconds": 0.0}, "s"), ({}, None)],
)
def test_a_child_is_ended_when_it_takes_too_much(limits: dict[str, float], why: str | None) -> None:
    words = "import time; time.sleep(60)" if why else "pass"
    with psutil.Popen([sys.executable, "-c", words]) as process:
        peak, failed = watched(process, Settings(**limits))  # type: ignore[arg-type]
    assert (failed is None) is (why is None)
    assert failed is None or failed.endswith(why or "")
    assert process.returncode is not None
    assert peak >= 0


def test_jobs_survive_the_command_line(raster: Path, pixel: Path) -> None:
    one = job("rsseg", raster, pixel)
    assert Job.from_json(one.to_json()) == one
    assert one.stride == 24


def test_the_peak_is_that_of_this_process() -> None:
    peak = peak_bytes()
    assert peak == 0 or peak >= psutil.Process().memory_info().rss / 2


def test_every_tool_has_a_way() -> None:
    assert {peer.tool for peer in PEERS.values()} == {
        "geoai",
        "rastervision",
        "geoinference",
        "terratorch",
    }
