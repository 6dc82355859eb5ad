"""Training by several processes: one network, one set of files, and the step of a single process.

Run by torchrun, this file is one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise, write_raster
from torch import nn

from rsseg.api import tile, train
from rsseg.classes import Classes
from rsseg.config import TileConfig, TrainConfig
from rsseg.errors import InputError
from rsseg.learn import fit as fitting
from rsseg.learn.data import Batches
from rsseg.learn.team import Team
from rsseg.nets.checkpoint import Checkpoint

CONFIG = TrainConfig(arch="tiny", window=32, epochs=2, batch_size=4)


def start(folder: Path, method: str) -> None:
    """Train, and keep the weights with which this process ends."""
    ended: list[nn.Module] = []
    original = fitting._Loop

    def remembering(objective, *args):
        ended.append(objective.trained)
        return original(objective, *args)

    fitting._Loop = remembering
    train(
        folder / "site.zarr",
        folder / "model.pt",
        labels=[folder / "labels.tif"],
        method=method,
        labelled=4 if method == "semi" else None,
        config=CONFIG,
        device="cpu",
    )
    name = f"rank{os.environ.get('RANK', '')}.pt"
    torch.save(ended[0].state_dict(), folder / name)


def make_site(folder: Path) -> None:
    classes = Classes.from_names(["dark", "bright"])
    image = noise((3, 96, 96)) // 4
    image[..., 48:] += 120
    write_raster(folder / "a.tif", image)
    write_raster(folder / "labels.tif", (image[0] > 90).astype(np.uint8) + 1)
    tile([folder / "a.tif"], folder / "site.zarr", classes, config=TileConfig(32, 0))


@pytest.mark.parametrize("method", ["supervised", "semi"])
def test_two_processes_train_one_network(tmp_path, method):
    make_site(tmp_path)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    place = [__file__, str(tmp_path), method]
    # Loopback, whatever the name of this machine stands for.
    local = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **local}
    rendezvous = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "--local-addr",
        "127.0.0.1",
    ]
    done = subprocess.run(
        [sys.executable, *command[:4], *rendezvous, *place],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name, weight in states[0].items():
        # Each process keeps batch norm's statistics of its own share.
        if "running" not in name:
            assert torch.equal(weight, states[1][name]), name
    saved = Checkpoint(tmp_path / "model.pt", "segmenter").tensors()
    assert all(torch.equal(saved[name], weight) for name, weight in states[0].items())
    assert not (tmp_path / "model.pt.partial").exists()
    assert len((tmp_path / "model_metrics.csv").read_text().splitlines()) == 1 + CONFIG.epochs


def test_parts_of_batches_make_whole_ones():
    whole = list(Batches(13, 4, seed=3))
    parts = [list(Batches(13, 4, seed=3, part=(rank, 2))) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(one) for one in whole]
    assert {len(batch) for part in parts for batch in part} == {2}


def test_every_held_back_batch_is_seen_once():
    whole = list(Batches(13, 4, seed=0, shuffle=False))
    parts = [list(Batches(13, 4, seed=0, shuffle=False, part=(rank, 3))) for rank in range(3)]
    assert sorted(batch for part in parts for batch in part) == whole


@pytest.mark.parametrize(("batch", "size", "fits"), [(8, 3, 9), (4, 4, 8), (2, 2, 4)])
def test_a_batch_that_cannot_be_shared(batch, size, fits):
    with pytest.raises(InputError, match=f"give --batch-size {fits}$"):
        Team(0, size, size).check(batch)


@pytest.mark.parametrize(("batch", "size"), [(8, 1), (1, 1), (8, 4), (6, 3)])
def test_a_batch_that_can(batch, size):
    Team(0, size, size).check(batch)


def test_what_torchrun_says(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Team.of_environment() == Team(0, 1, 1)
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "x"),
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_WORLD_SIZE", "4"),
    ):
        monkeypatch.setenv(name, value)
    team = Team.of_environment()
    assert (team.rank, team.machines, team.leads) == (5, 2, False)


if __name__ == "__main__":
    start(Path(sys.argv[1]), sys.argv[2])
