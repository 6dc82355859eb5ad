"""Killed anywhere and run again, every verb ends where an undisturbed run ends, to the last byte.

Run as a script, this file works in processes that kill themselves (SIGKILL) when the n-th file is
about to take its final name, or the n-th training step is about to be done.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NORTH_UP, noise, write_raster

from rsseg.api import predict, pseudo_label, tag, tile, train
from rsseg.classes import Classes
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    ProposalConfig,
    Settings,
    TileConfig,
    TrainConfig,
)
from rsseg.io.site import Site

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs to fork")

CLASSES = Classes.from_names(["dark", "bright"])
CLASSIFIER = ClassifierConfig(
    "test_efficientnet", "none", (8,), hidden=8, window=64, halo=16, epochs=3, batch_size=2
)
SETTINGS = Settings(
    classifier=CLASSIFIER,
    cam=CamConfig(scales=(1.0,)),
    proposals=ProposalConfig(proposals="superpixels", window=96, halo=16),
)
TRAIN = TrainConfig(arch="tiny", window=64, epochs=4, batch_size=4)
TILES = TileConfig(48, 1 / 3)


# --- The work ------------------------------------------------------------------------------------


def draw(folder):
    """Write two rasters, half dark and half bright, and the tags of their tiles."""
    for name, shape in (("a", (100, 130)), ("b", (64, 70))):
        image = noise((3, *shape), seed=len(name)) // 4
        image[..., shape[1] // 2 :] += 120
        image[:, :40, :40] = 0
        write_raster(folder / f"{name}.tif", image, NORTH_UP, nodata=0)
    lines = ["tile,dark,bright"]
    for name, (rows, cols), middle in (("a", (4, 5), 2), ("b", (2, 3), 1)):
        for row, col in np.ndindex(rows, cols):
            lines.append(f"{name}/{row}/{col},{int(col <= middle)},{int(col >= middle)}")
    (folder / "tags.csv").write_text("\n".join(line for line in lines if "/0/0" not in line))


def make_site(folder: Path) -> None:
    rasters = [folder.parent / "a.tif", folder.parent / "b.tif"]
    if not (folder / "site.zarr").exists() or not (folder / "site_tags.gpkg").exists():
        tile(rasters, folder / "site.zarr", CLASSES, config=TILES)


def tag_site(folder: Path) -> None:
    tag(folder / "site.zarr", [folder.parent / "tags.csv"])


def label_site(folder: Path) -> None:
    pseudo_label(folder / "site.zarr", settings=SETTINGS, workers=1, device="cpu")


def train_model(folder: Path) -> None:
    if not (folder / "model.pt").exists():
        out = folder / "model.pt"
        train(folder / "site.zarr", out, config=TRAIN, device="cpu", overwrite=True)


VERBS = (make_site, tag_site, label_site, train_model)


# --- Life and death ------------------------------------------------------------------------------


def be_mortal(lives: int) -> None:
    """Make this process kill itself at an event: a file gets its name, or a step is done."""
    left = iter(range(lives))

    def mortal(function):
        def call(*args, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in ("replace", "rename", "link"):
        setattr(os, name, mortal(getattr(os, name)))
    torch.optim.AdamW.step = mortal(torch.optim.AdamW.step)


def survives(work: Callable[[], object], lives: int | None = None) -> bool:
    """Do something in a process of its own; return whether it got to the end of it."""
    process = os.fork()
    if process == 0:
        try:
            if lives is not None:
                be_mortal(lives)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"status {status}"
    return True


def die_often(folder: Path, seed: int) -> None:
    """Do all the work, killed again and again in every verb."""
    random = np.random.default_rng(seed)
    for verb in VERBS:
        deaths = 0
        # The longer it takes the longer it lives, so that it comes to an end.
        while not survives(lambda verb=verb: verb(folder), int(random.integers(1, 12 + deaths))):
            deaths += 1
        print(verb.__name__, deaths)


def die_everywhere(folder: Path) -> None:
    """Make a site, killed at the n-th event and run again, for every n."""

    def make(here: Path) -> None:
        tile([folder.parent / "b.tif"], here / "site.zarr", CLASSES, config=TILES)

    folder.mkdir()
    assert survives(lambda: make(folder))
    whole = tree(folder / "site.zarr")
    for lives in count():
        here = folder.with_name(f"{folder.name}{lives}")
        here.mkdir()
        if survives(lambda here=here: make(here), lives):
            break
        if (here / "site.zarr").exists():
            assert tree(here / "site.zarr") == whole, lives
        assert survives(lambda here=here: make(here)), lives
        assert tree(here / "site.zarr") == whole, lives
        assert (here / "site_tags.gpkg").exists()
    print(lives)


def die_overwriting(folder: Path) -> None:
    """Replace a site by another, killed at the n-th event and run again, for every third n."""
    out = folder / "site.zarr"

    def make(name: str) -> None:
        raster = folder.parent / f"{name}.tif"
        tile([raster], out, CLASSES, config=TILES, link=True, overwrite=True)

    for lives in count(0, 3):
        assert survives(lambda: make("b"))
        if survives(lambda: make("a"), lives):
            break
        if out.exists():
            assert len(Site(out).scenes) == 1
        assert survives(lambda: make("a")), lives
        assert [*Site(out).scenes] == ["a"]
        assert sorted(path.name for path in folder.glob("*zarr*")) == ["site.zarr"]
    print(lives)


def die_mapping(folder: Path, model: Path) -> None:
    """Map a raster with all that goes with it, killed at the n-th event and run again."""
    raster = folder.parent / "a.tif"

    def make(here: Path) -> None:
        others = {"confidence": here / "sure.tif", "probabilities": here / "shares.tif"}
        predict(raster, model, here / "map.tif", block_rows=64, device="cpu", **others)

    folder.mkdir()
    assert survives(lambda: make(folder))
    whole = tree(folder)
    for lives in count():
        here = folder.with_name(f"{folder.name}{lives}")
        here.mkdir()
        if survives(lambda here=here: make(here), lives):
            break
        if (here / "map.tif").exists():
            assert (here / "map.qml").exists()
            assert (here / "map.tif.aux.xml").exists()
        assert survives(lambda here=here: make(here)), lives
        assert tree(here) == whole, lives
    print(lives)


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a site that mean something, without what was never finished."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".partial" and path.parent.parent.name != "models"
    }


def run_here(*words: str | Path) -> list[str]:
    """Run this file as a script, one thread."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


# --- The tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the inputs, and one in it with what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("resume")
    draw(folder)
    (folder / "whole").mkdir()
    run_here("whole", folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random(undisturbed, seed):
    folder = undisturbed.parent / f"seed{seed}"
    folder.mkdir()
    words = run_here("often", folder, seed)
    deaths = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert all(times >= 3 for verb, times in deaths.items() if verb != "tag_site"), deaths
    assert tree(folder / "site.zarr") == tree(undisturbed / "site.zarr")
    for name in ("model.pt", "model_metrics.csv"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not (folder / "model.pt.partial").exists()
    assert not list(folder.glob("*.partial"))


def test_the_undisturbed_run_made_everything(undisturbed):
    site = Site(undisturbed / "site.zarr")
    assert set(site.layers) == {"cam", "crf", "masks", "objects", "labels"}
    labels = site.scenes["a"].find_layer("labels", site.layers["labels"])
    values = set(np.unique(labels.read(site.scenes["a"].grid.window)))
    assert values == {0, 1, 255}
    with (undisturbed / "model_metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["epoch"] for row in rows} == {"0", "1", "2", "3"}


def test_tile_killed_everywhere(undisturbed):
    folder = undisturbed.parent / "everywhere"
    assert int(run_here("everywhere", folder)[0]) > 30


def test_overwriting_killed_everywhere(undisturbed):
    folder = undisturbed.parent / "overwriting"
    folder.mkdir()
    assert int(run_here("overwriting", folder)[0]) > 15


def test_predict_killed_everywhere(undisturbed):
    folder = undisturbed.parent / "maps"
    # A header and blocks of the scratch, two rasters, two side files and the map.
    assert int(run_here("mapping", folder, undisturbed / "model.pt")[0]) > 6
    assert sorted(tree(folder)) == [
        *("map.qml", "map.tif", "map.tif.aux.xml", "shares.tif", "sure.tif")
    ]


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "whole":
        assert all(survives(lambda verb=verb: verb(where)) for verb in VERBS)
    elif what == "often":
        die_often(where, int(sys.argv[3]))
    elif what == "everywhere":
        die_everywhere(where)
    elif what == "mapping":
        die_mapping(where, Path(sys.argv[3]))
    else:
        die_overwriting(where)
