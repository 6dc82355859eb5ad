"""Command lines killed at random points and run again: the bytes of an undisturbed run.

Real processes (``python -m rsseg …``) are killed from outside, at points drawn over the time that
an undisturbed run works. ``test_resume`` kills at each event of the file system instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import NORTH_UP, noise, write_raster
from small_models import write_model

from rsseg.api import predict, tile, vectorize
from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.blocks import BlockStore

COMMANDS = {
    "tile": "tile ../a.tif ../b.tif --out site.zarr --classes dark,bright --size 48 --overlap 0.34",
    "pseudo-label": "pseudo-label site.zarr --config ../settings.toml --workers 1 --device cpu",
    "predict": (
        "predict ../a.tif --model ../model.pt --out map.tif --confidence sure.tif "
        "--probabilities shares.tif --vectors map.gpkg --block-rows 64 --device cpu"
    ),
    "vectorize": "vectorize ../map.tif polygons.gpkg --min-area 60 --simplify 2 --strip-rows 32",
}
"""What is run, in a folder of its own beside the inputs."""

POINTS = int(os.environ.get("RSSEG_TEST_KILLS", "2"))
"""How often each command is killed; with 13 the whole takes some minutes."""

KILLS_IN_A_ROW = 3
"""Most kills before the work is brought to its end and looked at."""

SHAPES = {"a": (250, 330), "b": (120, 90)}
SETTINGS = """
[classifier]
backbone = "test_efficientnet"
weights = "none"
strides = [8]
hidden = 8
window = 64
halo = 16
epochs = 3
batch_size = 4

[cam]
scales = [1.0]

[proposals]
proposals = "superpixels"
window = 96
halo = 16
"""


# --- The work ------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    """Write a small orthophoto in two parts, fields dark and bright, and all else that is read."""
    for name, shape in SHAPES.items():
        rows, cols = np.ogrid[: shape[0], : shape[1]]
        image = noise((3, *shape), seed=len(name)) // 4
        image[:, (rows // 25 + cols // 40) % 3 == 0] += 50
        image[..., shape[1] // 2 :] += 120
        image[:, :60, :60] = 0
        write_raster(folder / f"{name}.tif", image, NORTH_UP, nodata=0)
    (folder / "settings.toml").write_text(SETTINGS)
    write_model(folder / "model.pt")
    fields = np.random.default_rng(0).integers(0, 3, (150, 160)).astype(np.uint8)
    fields[fields == 2] = 255
    ids = fields.repeat(3, axis=0).repeat(3, axis=1)
    write_raster(folder / "map.tif", ids, nodata=255, classes=Classes.from_names(["dark", "light"]))


def write_tags(folder: Path, site: Path) -> None:
    lines = ["tile,dark,bright"]
    for name, shape in SHAPES.items():
        rows, cols = (-(-side // 32) for side in shape)
        for row, col in np.ndindex(rows, cols):
            middle = shape[1] // 64
            lines.append(f"{name}/{row}/{col},{int(col <= middle)},{int(col >= middle)}")
    (folder / "tags.csv").write_text("\n".join(lines))
    finish("tag site.zarr --from ../tags.csv", site.parent)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden and temporary files too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- Life and death ------------------------------------------------------------------------------


def begin(words: str, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a command line; return it, and its first words, when it has said them: work begins."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rsseg", *words.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    return process, process.stderr.readline()


def work_seconds(words: str, folder: Path) -> float:
    """Run a command line to its end; return the seconds from its first word to its last."""
    process, _ = begin(words, folder)
    with process:
        start = last = time.monotonic()
        assert process.stderr is not None
        for line in process.stderr:
            last = time.monotonic()
            assert "error" not in line
    assert process.returncode == 0
    return last - start


def killed(words: str, folder: Path, seconds: float) -> bool:
    """Run a command line and kill it that long after its first word; False where it was faster."""
    process, _ = begin(words, folder)
    with process:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait() not in (0, 2)


def finish(words: str, folder: Path) -> str:
    """Run a command line to its end; return what it says."""
    process, said = begin(words, folder)
    with process:
        said += process.communicate()[1]
    # Killed after its last file had taken its name, it has nothing left to do, and says so.
    assert process.returncode == 0 or (process.returncode == 2 and "exists already" in said), said
    return said


# --- The tests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """What a command makes that nobody kills.

    Args:
        folder: of the inputs.
        start: the folder with which the command begins.
        files: what is there in the end.
        seconds: how long it worked.
    """

    folder: Path
    start: Path
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what gives the undisturbed run of a command, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("kill")
    draw(folder)
    made: dict[str, Undisturbed] = {}

    def run(command: str) -> Undisturbed:
        if command not in made:
            start = folder / f"{command}-start"
            start.mkdir()
            if command == "pseudo-label":
                shutil.copytree(run("tile").folder / "tile-whole", start, dirs_exist_ok=True)
                write_tags(folder, start / "site.zarr")
            whole = folder / f"{command}-whole"
            shutil.copytree(start, whole)
            seconds = work_seconds(COMMANDS[command], whole)
            made[command] = Undisturbed(folder, start, files(whole), seconds)
        return made[command]

    return run


def die_often(command: str, whole: Undisturbed, points: int, seed: int) -> None:
    """Kill a command at points drawn at random, and look at what is there after each of them."""
    random = np.random.default_rng(seed)
    deaths = trial = 0
    while deaths < points:
        folder = whole.folder / f"{command}-{points}-{trial}"
        shutil.copytree(whole.start, folder)
        trial += 1
        for _ in range(min(KILLS_IN_A_ROW, points - deaths)):
            # Done before it was killed, or by the one before: there is nothing left to kill.
            if not killed(COMMANDS[command], folder, random.uniform(0, whole.seconds)):
                break
            deaths += 1
            assert_whole_or_absent(folder, whole)
        finish(COMMANDS[command], folder)
        assert_same(files(folder), whole.files)
    print(f"{command}: killed {deaths} times in {trial} folders")


def assert_whole_or_absent(folder: Path, whole: Undisturbed) -> None:
    """What has its final name is complete; zarr's descriptions alone grow."""
    there = {name: data for name, data in files(folder).items() if name in whole.files}
    changed = [
        name
        for name, data in there.items()
        if data != whole.files[name] and not name.endswith("zarr.json")
    ]
    assert not changed


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """The same files of the same bytes, and nothing that was left behind."""
    assert sorted(found.keys() - expected.keys()) == []
    assert sorted(expected.keys() - found.keys()) == []
    assert [name for name, data in found.items() if data != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_points(undisturbed, command):
    die_often(command, undisturbed(command), POINTS, seed=2)


def test_what_a_map_killed_at_its_very_end_leaves_goes_with_the_next_run(tmp_path):
    """All files have their names, but the scratch is there still."""
    raster = write_raster(tmp_path / "a.tif", noise((3, 90, 100)))
    model = write_model(tmp_path / "model.pt")
    out, vectors = tmp_path / "map.tif", tmp_path / "map.gpkg"
    predict(raster, model, out, vectors=vectors, device="cpu")
    whole = files(tmp_path)
    BlockStore(tmp_path / "map.tif.partial", "any", 1, (90, 100), 90).write(
        0, np.zeros((1, 90, 100), np.uint8)
    )
    shutil.copy(out, tmp_path / ".map.confidence.tif")
    leave_scratch(vectors)
    with pytest.raises(InputError, match="exists already"):
        predict(raster, model, out, vectors=vectors, device="cpu")
    assert_same(files(tmp_path), whole)


def test_what_polygons_killed_at_their_very_end_leave_goes_with_the_next_run(tmp_path):
    source = np.repeat([[0, 1]], 40, axis=0).repeat(30, axis=1).astype(np.uint8)
    classes = Classes.from_names(["dark", "light"])
    raster = write_raster(tmp_path / "map.tif", source, nodata=255, classes=classes)
    out = tmp_path / "polygons.gpkg"
    vectorize(raster, out)
    whole = files(tmp_path)
    leave_scratch(out)
    with pytest.raises(InputError, match="exists already"):
        vectorize(raster, out)
    assert_same(files(tmp_path), whole)


def leave_scratch(out: Path) -> None:
    """Lay what was in work beside a vector file that is complete."""
    folder = out.with_name(f".{out.name}.scratch") / "polygons"
    folder.mkdir(parents=True)
    (folder / "00000000-00000000.arrow").write_text("half")


def test_what_a_site_killed_while_writing_leaves_goes_with_the_next_run(tmp_path):
    """A chunk and a description that never got their names; a classifier in the making stays."""
    write_raster(tmp_path / "a.tif", noise((3, 90, 100)))
    site = tile([tmp_path / "a.tif"], tmp_path / "site.zarr", Classes.from_names(["a", "b"]))
    whole = files(tmp_path)
    chunk = site.path / "scenes" / "a" / "image" / "c" / "0" / "0"
    assert chunk.is_dir()
    left = (chunk / f"0.{'1f' * 16}.partial", site.path / f"zarr.{'2e' * 16}.partial")
    for path in left:
        path.write_text("half")
    fitting = site.models / "classifier-0.partial" / "last.pt"
    fitting.parent.mkdir(parents=True)
    fitting.write_text("half fitted")
    site.tidy()
    fitting.unlink()
    assert_same(files(tmp_path), whole)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_was_killed(undisturbed):
    """What a pool computes for nobody would hold memory and cores for ever."""
    whole = undisturbed("pseudo-label")
    folder = whole.folder / "orphans"
    shutil.copytree(whole.start, folder)
    process, _ = begin(COMMANDS["pseudo-label"].replace("--workers 1", "--workers 2"), folder)
    with process:
        children: list[psutil.Process] = []
        while len(children) < 2 and process.poll() is None:
            children = [
                child
                for child in psutil.Process(process.pid).children()
                if "resource_tracker" not in " ".join(child.cmdline())
            ]
        process.kill()
    assert children
    assert not psutil.wait_procs(children, timeout=600)[1]
    finish(COMMANDS["pseudo-label"], folder)
    assert_same(files(folder), whole.files)
