"""Dask: workers in other processes leave the bytes that one process leaves, also when some die."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import NORTH_UP, noise, write_raster
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsseg import cluster as cluster_module
from rsseg.api import predict, pseudo_label, tag, tile
from rsseg.api.prediction import network_of
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.cluster import Cluster, connected
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    ProposalConfig,
    Settings,
    TileConfig,
    TrainConfig,
)
from rsseg.errors import InputError, RunError
from rsseg.io.layers import LayerSpec
from rsseg.io.raster import Raster
from rsseg.io.site import Site
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.segmenter import Tiny
from rsseg.progress import SILENT
from rsseg.run import run
from rsseg.stages.job import Job
from rsseg.stages.outputs import Outputs
from rsseg.stages.pieces import PER_WORKER, Shared, pieces
from rsseg.stages.predict import predict_map
from rsseg.stages.stage import Pool, TileData

distributed = pytest.importorskip("distributed")

CLASSES = Classes.from_names(["dark", "bright"])
SETTINGS = Settings(
    classifier=ClassifierConfig(
        "test_efficientnet", "none", (8,), hidden=4, window=64, halo=16, epochs=1, batch_size=2
    ),
    cam=CamConfig(scales=(1.0,)),
    proposals=ProposalConfig(proposals="superpixels", window=96, halo=16),
)
LOOPBACK = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}


# --- What is worked on ---------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Workers have one thread each, and other numbers of threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    """A tagged site of two scenes whose classifier is fitted."""
    folder = tmp_path_factory.mktemp("tagged")
    lines = ["tile,dark,bright"]
    for name, (height, width) in (("a", (100, 130)), ("b", (64, 70))):
        image = noise((3, height, width), seed=len(name)) // 4
        image[..., width // 2 :] += 120
        write_raster(folder / f"{name}.tif", image, NORTH_UP, nodata=0)
    for name, (rows, cols), middle in (("a", (4, 5), 2), ("b", (2, 3), 1)):
        for row, col in np.ndindex(rows, cols):
            lines.append(f"{name}/{row}/{col},{int(col <= middle)},{int(col >= middle)}")
    (folder / "tags.csv").write_text("\n".join(lines))
    site = folder / "site.zarr"
    tile([folder / "a.tif", folder / "b.tif"], site, CLASSES, config=TileConfig(48, 1 / 3))
    tag(site, [folder / "tags.csv"])
    spare = shutil.copytree(site, folder / "spare.zarr")
    label(spare, until="cam")
    shutil.copytree(spare / "models", site / "models", dirs_exist_ok=True)
    return site


def label(site: Path, **options) -> Path:
    pseudo_label(site, settings=SETTINGS, device="cpu", batch_size=2, **options)
    return site


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    third, levels = (0.0,) * 3, ((100.0,) * 3, (50.0,) * 3)
    bands = Bands((1, 2, 3), "uint8", *levels, (0, 1, 2), third, (200.0,) * 3)
    config = TrainConfig(arch="tiny", window=64, overlap=0.25)
    save_checkpoint(path, Tiny(3, 2), Card("segmenter", config, CLASSES, bands))
    return path


@pytest.fixture(scope="module")
def raster(tmp_path_factory) -> Path:
    return write_raster(tmp_path_factory.mktemp("raster") / "a.tif", noise((3, 500, 90)))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- Who works -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduler():
    """The address of a scheduler with two workers in processes of their own."""
    worker = {**LOOPBACK, "nthreads": 1, "memory_limit": None, "silence_logs": logging.CRITICAL}
    with distributed.SpecCluster(
        scheduler={"cls": distributed.Scheduler, "options": {**LOOPBACK, "port": 0}},
        workers={i: {"cls": distributed.Nanny, "options": worker} for i in range(2)},
        silence_logs=logging.CRITICAL,
    ) as found:
        yield found.scheduler_address


@pytest.fixture
def here():
    """A client of one worker in a thread of this process."""
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as found,
        distributed.Client(found, set_as_default=False) as client,
    ):
        yield client


# --- The same bytes ------------------------------------------------------------------------------


def test_labels_are_those_of_one_process(tmp_path, tagged, scheduler):
    alone = label(shutil.copytree(tagged, tmp_path / "alone" / "site.zarr"), workers=1)
    shared = label(shutil.copytree(tagged, tmp_path / "shared" / "site.zarr"), dask=scheduler)
    assert {"cam", "crf", "masks", "objects", "labels"} <= set(Site(shared).layers)
    assert files(shared) == files(alone)


def test_maps_are_those_of_one_process(tmp_path, model, raster, scheduler, monkeypatch):
    options = {"block_rows": 40, "device": "cpu", "batch_size": 4}
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    sure = Path("sure.tif")
    predict(
        raster, model, tmp_path / "alone/map.tif", confidence=tmp_path / "alone/sure.tif", **options
    )
    # The workers stand in another folder.
    monkeypatch.chdir(tmp_path / "shared")
    predict(raster, model, "map.tif", confidence=sure, dask=scheduler, **options)
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


def test_workers_of_this_machine(tmp_path, model, raster, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    code = main(
        f"predict {raster} --model {model} --out {tmp_path / 'map.tif'} --device cpu "
        "--dask auto --workers 1 --batch-size 4 -q".split()
    )
    assert code == 0
    assert dict(os.environ) == before
    predict(raster, model, tmp_path / "alone.tif", device="cpu", batch_size=4)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "alone.tif").read_bytes()


# --- Workers die ---------------------------------------------------------------------------------


def die_once(marker: Path) -> None:
    """Kill the process that comes here first."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os._exit(1)


@dataclass(frozen=True)
class Mean:
    """Writes the mean of a tile's pixels; kills the worker that sees tile (1, 1) first."""

    marker: Path | None
    label: str = "means"
    batch_size: int = 3
    pool: Pool = "none"

    @property
    def reads(self) -> Mapping[str, str]:
        return {}

    @property
    def writes(self) -> LayerSpec:
        return LayerSpec("mean", "uint8")

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        if self.marker is not None and any((t.tile.row, t.tile.col) == (1, 1) for t in tiles):
            die_once(self.marker)
        cores = [(tile.tile.core.height, tile.tile.core.width) for tile in tiles]
        return [
            np.full(core, t.image.mean(), np.uint8) for core, t in zip(cores, tiles, strict=True)
        ]


def test_a_worker_that_dies_costs_its_tiles_and_no_more(tmp_path, tagged, scheduler):
    found = []
    for marker in (None, tmp_path / "died"):
        site = Site(shutil.copytree(tagged, tmp_path / f"{marker is None}.zarr"))
        tiles = {name: list(scene.tiling) for name, scene in site.scenes.items()}
        with connected(None if marker is None else scheduler, None, "cpu", SILENT) as cluster:
            run(Mean(marker), site, "1", tiles, workers=1, progress=SILENT, cluster=cluster)
        found.append(files(site.path))
    assert (tmp_path / "died").exists()
    assert found[0] == found[1]


class Mortal:
    """A network that notes its calls, and kills its process at the third one of all."""

    def __init__(self, path: Path, notes: Path) -> None:
        self._network = network_of(path, "", "cpu", 64, "none", "float32")
        self._notes = notes

    def logits(self, images):
        with self._notes.open("a") as file:
            file.write("x")
        if self._notes.stat().st_size == 3:
            os._exit(1)
        return self._network.logits(images)


def test_a_worker_that_dies_costs_its_block_and_no_more(tmp_path, model, raster, scheduler):
    card_bands = (1, 2, 3)
    third, levels = (0.0,) * 3, ((100.0,) * 3, (50.0,) * 3)
    bands = Bands(card_bands, "uint8", *levels, (0, 1, 2), third, (200.0,) * 3)
    job = Job(Raster(raster, card_bands), bands, 2, 64, 0.25, 2)
    options = {"classes": CLASSES, "fingerprint": "", "block_rows": 40}
    alone, notes = Outputs(tmp_path / "alone.tif"), tmp_path / "notes"
    predict_map(job, network_of(model, "", "cpu", 64, "none", "float32"), alone, **options)
    shared = Outputs(tmp_path / "shared.tif")
    with connected(scheduler, None, "cpu", SILENT) as cluster:
        fill = Shared(cluster, Mortal, (model, notes), 1)
        predict_map(job, None, shared, elsewhere=fill, **options)
    assert alone.map.read_bytes() == shared.map.read_bytes()
    assert not shared.scratch.exists()
    # A row of windows is one call; the two pieces share some, and the dead worker's last is lost.
    assert 3 < notes.stat().st_size <= len(job.rows) + 2 + 3


def refuse(item: int) -> float:
    raise distributed.KilledWorker("refuse", SimpleNamespace(address="tcp://x"), 3)


def test_work_of_which_every_worker_dies(here):
    with pytest.raises(RunError, match="workers died 4 times"):
        Cluster(here, "here", "cpu").each(refuse, [1], lambda _: None)


def test_results_that_do_not_show_here(monkeypatch):
    monkeypatch.setattr(cluster_module, "SETTLE_SECONDS", 0.1)
    with pytest.raises(RunError, match="2 of their results do not show here"):
        Cluster(None, "", "cpu").settle(lambda: [1, 2])


def test_an_interruption_cancels_what_was_not_begun(tmp_path, here):
    def touch(item: int) -> float:
        (tmp_path / str(item)).touch()
        return 1

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cluster(here, "here", "cpu").each(touch, range(100), interrupt)
    assert all(state.status != "pending" for state in here.futures.values())
    assert len(list(tmp_path.iterdir())) < 10


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "http://127.0.0.1:1"])
def test_an_address_at_which_nobody_answers(tmp_path, model, raster, address, monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="no Dask scheduler answers at") as error:
        predict(raster, model, tmp_path / "map.tif", dask=address)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_workers_goes_with_auto(tmp_path, tagged):
    with pytest.raises(InputError, match="a number of workers goes with 'auto'"):
        label(tagged, dask="tcp://127.0.0.1:1", workers=3)


def test_without_dask(monkeypatch):
    monkeypatch.setattr(cluster_module, "find_spec", lambda _: None)
    with (
        pytest.raises(InputError, match=r"run pip install 'rsseg\[dask\]'"),
        connected("auto", 1, "cpu", SILENT),
    ):
        pass


def test_a_script_without_a_guard(monkeypatch):
    monkeypatch.setattr(cluster_module.current_process(), "_inheriting", True, raising=False)
    with (
        pytest.raises(InputError, match="__main__"),
        connected("auto", 1, "cpu", SILENT),
    ):
        pass


def test_a_scheduler_without_workers(here, monkeypatch):
    here.cluster.scale(0)
    monkeypatch.setattr(cluster_module, "WORKERS_SECONDS", 0.1)
    with (
        pytest.raises(InputError, match="has no workers; start some with dask worker"),
        connected(here.cluster.scheduler_address, None, "cpu", SILENT),
    ):
        pass


class Answering:
    """A client of workers that say what a test wants them to."""

    def __init__(self, *answers, nthreads=1) -> None:
        self._answers = {f"tcp://{i}": answer for i, answer in enumerate(answers)}
        self._nthreads = nthreads

    def run(self, *_, **__):
        return self._answers

    def nthreads(self):
        return dict.fromkeys(self._answers, self._nthreads)


def answer(rsseg=cluster_module.__version__, on_torch=torch.__version__, kind="cpu", made="cpu"):
    return cluster_module._Answer((rsseg, on_torch), kind, made)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Answering(InputError("does not see /x")), "worker tcp://0: does not see /x"),
        (Answering(ImportError("no rsseg")), "worker tcp://0: ImportError"),
        (Answering(answer(), answer("0.0.1")), "worker tcp://1: has rsseg 0.0.1"),
        (Answering(answer(on_torch="1.0")), "with torch 1.0"),
        (Answering(answer(), answer(kind="cuda")), r"different devices \(cpu, cuda\)"),
        (Answering(answer(), nthreads=8), "--nthreads 1"),
    ],
)
def test_workers_that_cannot_do_the_work(tmp_path, client, message):
    with pytest.raises(InputError, match=message):
        Cluster(client, "tcp://s", "auto").survey([], tmp_path)


def test_what_workers_say(tmp_path, here):
    (tmp_path / "there").touch()
    device, made_on = Cluster(here, "here", "cpu").survey([tmp_path / "there"], tmp_path)
    assert (device, made_on) == (torch.device("cpu"), "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    client = Answering(answer(kind="cuda", made="B"), answer(kind="cuda", made="A"))
    assert Cluster(client, "", "auto").survey([], tmp_path) == (torch.device("cuda"), "A, B")


@pytest.mark.parametrize("name", ["gone", ".rsseg-shared-1"])
def test_a_worker_that_does_not_see_what_is_here(tmp_path, name):
    with pytest.raises(InputError, match="does not see") as error:
        cluster_module._surveyed("cpu", [tmp_path, tmp_path / name])
    assert (name in str(error.value)) == (name == "gone")


def test_each_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    gpus = [place["CUDA_VISIBLE_DEVICES"] for place in places(None)]
    assert gpus == ["3", "5"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(3)] == ["3", "5", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None)] == ["0", "1"]


def places(workers):
    return cluster_module._places(workers, torch.device("cuda"))


# --- Pieces --------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 400), st.integers(1, 9))
def test_pieces_cover_what_is_missing_once(missing, block_rows, workers):
    cut = pieces(Measured(48), sorted(missing), block_rows, workers)
    assert [index for piece in cut for index in piece] == sorted(missing)
    assert all(cut)


@dataclass
class Measured:
    stride: int


@pytest.mark.parametrize(
    ("blocks", "workers", "count"),
    [
        (27, 2, 2),  # 10,000 rows in windows of 512 px: a piece each
        (80, 2, 4),
        (800, 2, 2 * PER_WORKER),
        (27, 9, 9),
        (3, 9, 3),
    ],
)
def test_every_worker_has_a_piece_and_pieces_are_high(blocks, workers, count):
    cut = pieces(Measured(384), range(blocks), 384, workers)
    assert len(cut) == count
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
