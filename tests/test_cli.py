"""The command line: help, the whole way in small, and one line for whatever goes wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import safetensors.numpy
import torch
import typer
from helpers import write_raster
from rich.console import Console as RichConsole

from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.cli import app, main
from rsseg.config import RECIPES, CrfConfig, Settings, TrainConfig
from rsseg.console import Console, Download, Level, duration, print_table, quantity, rate
from rsseg.demo import CLASSIFIER_STEPS, DemoReport
from rsseg.errors import RunError
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.segmenter import build_segmenter
from rsseg.ops.confusion import scores

CLASSES = Classes.from_names(["building"])
SIDE = 256


def commands(command=None, path=("rsseg",)):
    """All commands and groups, as (words, command)."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


# --- Help ----------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from rsseg.cli import main; main(['--help']);"
        "heavy = {'torch', 'numpy', 'rasterio', 'zarr', 'geopandas', 'lightning', 'timm'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pseudo-label" in done.stdout


def test_the_commands():
    names = {" ".join(path[1:]) for path, _ in commands()}
    assert names == {
        *("", "tile", "tag", "pseudo-label", "train", "predict", "evaluate", "info", "export"),
        *("assess", "assess sample", "assess report", "vectorize"),
        *("quicklook", "demo", "weights", "weights list", "weights fetch", "weights path"),
    }


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=[" ".join(path) for path, _ in commands()]
)
def test_every_command_and_option_has_help(path, command, capsys):
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{' '.join(path)} {parameter.name}"
    assert main([*path[1:], "--help"]) == 0
    assert path[-1] in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rsseg 0.")


def test_no_command_is_help(capsys):
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "rsseg", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("rsseg ")


# --- The whole way -------------------------------------------------------------------------------

SETTINGS = """
[classifier]
weights = "none"
window = 64
halo = 0
min_steps = 12
[cam]
scales = [1.0]
[crf]
iterations = 2
"""


def scenery(seed):
    """(3, H, W) uint8: bright roofs on dark ground, and (H, W) the truth, 1 on roofs."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((SIDE, SIDE), np.uint8)
    for row, col in rng.integers(0, SIDE - 40, (5, 2)):
        truth[row : row + 40, col : col + 40] = 1
    image = np.where(truth, 190, 80) + rng.normal(0, 12, (3, SIDE, SIDE))
    return np.clip(image, 0, 255).astype(np.uint8), truth


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two rasters and their truths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSSEG_WEIGHTS", str(tmp_path / "no-weights"))
    for seed, name in enumerate(("here", "there")):
        image, truth = scenery(seed)
        write_raster(Path(f"{name}.tif"), image)
        write_raster(Path(f"{name}_truth.tif"), truth)
    Path("settings.toml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(text):
    return main(text.split())


def succeed(text):
    assert run(text) == 0, text


def test_the_whole_way(folder, capsys, one_thread):
    succeed("tile here.tif --classes building --size 64 --overlap 0 --out site.zarr")
    succeed("tag site.zarr --from here_truth.tif")
    assert "building" in capsys.readouterr().out
    succeed(
        "pseudo-label site.zarr --config settings.toml --proposals superpixels --workers 1 "
        "--export labels.tif"
    )
    assert capsys.readouterr().out == "labels.tif\n"
    succeed("train site.zarr --arch tiny --window 64 --steps 30 --batch-size 4 --out model.pt")
    others = "--confidence sure.tif --probabilities shares.tif"
    succeed(f"predict there.tif --model model.pt --out map.tif {others}")
    assert capsys.readouterr().out.split()[-3:] == ["map.tif", "sure.tif", "shares.tif"]
    succeed("vectorize map.tif map.gpkg --confidence sure.tif --classes 0,building --simplify 3")
    shown = capsys.readouterr().out.split()
    assert shown[:2] == ["class", "polygons"]
    assert shown[-1] == "map.gpkg"
    succeed("evaluate map.tif there_truth.tif --json - --csv scores.csv --min-miou 0.1")
    assert json.loads(capsys.readouterr().out)["miou"] > 0.1
    assert run("evaluate map.tif there_truth.tif --min-miou 1") == 1
    assert "is below --min-miou 1" in capsys.readouterr().err
    succeed("export site.zarr cam:building cam.tif")
    succeed("info site.zarr")
    shown = capsys.readouterr().out
    assert all(layer in shown for layer in ("cam", "crf", "masks", "labels"))
    succeed("info site.zarr --json")
    assert json.loads(capsys.readouterr().out)["reviewed_tiles"] == 16
    with rasterio.open("map.tif") as dataset:
        assert set(np.unique(dataset.read())) <= {0, 1}


def test_tiling_chips_and_patches(folder, capsys):
    (folder / "chips").mkdir()
    for index in range(3):
        write_raster(folder / "chips" / f"{index}.tif", scenery(index)[0][:, :32, :48])
    succeed("tile --chips chips --classes a,b --out site.zarr --export-patches patches --quiet")
    assert len(list((folder / "patches").iterdir())) == 3
    assert capsys.readouterr().err == ""
    succeed("info site.zarr")
    assert "1 of 1" in capsys.readouterr().out


def test_the_tag_sheet_and_levels(folder, capsys):
    succeed("-q tile here.tif --classes building --size 64 --out site.zarr")
    assert capsys.readouterr().err == ""
    layer = geopandas.list_layers("site_tags.gpkg")["name"][0]
    sheet = geopandas.read_file("site_tags.gpkg", layer=layer)
    sheet["reviewed"], sheet["building"] = True, np.arange(len(sheet)) % 2 == 0
    sheet.to_file("site_tags.gpkg", layer=layer)
    succeed("tag site.zarr --from site_tags.gpkg --verbose")
    assert "50.0%" in capsys.readouterr().out


def test_a_dry_run_is_a_table(folder, capsys):
    make_model("model.pt")
    succeed("predict here.tif there.tif --model model.pt --out maps --dry-run")
    assert "5 x 5 of 64 px" in capsys.readouterr().out
    assert not Path("maps").exists()


def test_the_demo_ends_with_a_table(monkeypatch, capsys):
    right = scores(np.array([[3, 1, 0], [0, 4, 0]]))
    names = ("ortho.tif", "map.tif", "map.gpkg", "look.png", "site.zarr")
    files = [Path("demo") / name for name in names]
    report = DemoReport(*files, {"map": right}, CLASSES)
    asked = {}
    monkeypatch.setattr(
        "rsseg.demo.run_demo", lambda *_, **options: asked.update(options) or report
    )
    succeed("demo --seed 3 --proposals superpixels")
    shown = capsys.readouterr().out
    assert (asked["seed"], asked["proposals"], asked["sam"]) == (3, "superpixels", None)
    assert all(text in shown for text in ("IoU building", "0.875", "qgis demo/ortho.tif"))


@pytest.mark.parametrize("kind", ["superpixels", "none"])
def test_the_demo_takes_its_proposals(monkeypatch, tmp_path, kind):
    """With the shorter training of a first look, and nothing said of what it was told."""
    asked = {}

    def stop(site, **options):
        asked.update(options)
        raise RunError("enough")

    for name in ("tile", "tag"):
        monkeypatch.setattr(f"rsseg.demo.{name}", lambda *_, **__: None)
    monkeypatch.setattr("rsseg.demo.pseudo_label", stop)
    noise = np.zeros((3, 512, 512), np.uint8)
    monkeypatch.setattr("rsseg.demo.draw_orthophoto", lambda *_: (noise, noise[0]))
    monkeypatch.setattr("rsseg.demo.gaussian_classifier", lambda *_: noise[0])
    assert run(f"demo --out {tmp_path / 'demo'} --size 512 --device cpu --proposals {kind}") == 1
    default = Settings()
    short = replace(default.classifier, min_steps=CLASSIFIER_STEPS)
    wanted = replace(default.proposals, proposals=kind)
    assert asked["settings"] == replace(default, classifier=short, proposals=wanted)
    assert asked["sam"] is None


def asked_of_pseudo_label(monkeypatch, text, classes="wood,field"):
    """The settings that a command line makes for a site of such classes."""
    asked = {}
    site = SimpleNamespace(classes=Classes.parse(classes))
    monkeypatch.setattr("rsseg.io.site.Site", lambda _: site)
    monkeypatch.setattr("rsseg.api.pseudo_label", lambda *_, **options: asked.update(options))
    succeed(text)
    return asked


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("", "none"),
        ("--sam SAM", "sam"),
        ("--sam SAM --points-per-side 8", "sam"),
        ("--sam SAM --proposals none", "none"),
        ("--proposals superpixels", "superpixels"),
    ],
)
def test_who_names_weights_of_sam_wants_sam(monkeypatch, tmp_path, given, kind):
    weights = tmp_path / "mobile_sam.pt"
    weights.touch()
    asked = asked_of_pseudo_label(
        monkeypatch, f"pseudo-label s.zarr {given.replace('SAM', str(weights))}"
    )
    assert asked["settings"].proposals.proposals == kind
    if kind == "sam":
        assert asked["sam"] == str(weights)


def test_a_recipe_reaches_the_labelling(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("[crf]\niterations = 3")
    Path("paper.toml").write_text('recipe = "paper"\n[crf]\niterations = 3')
    paper = RECIPES["paper"]
    three, without = replace(paper.crf, iterations=3), replace(paper.proposals, proposals="none")
    cover = replace(Settings(), crf=CrfConfig(iterations=3))
    for options, expected in {
        "": Settings(),
        "--recipe cover": Settings(),
        "--recipe objects": RECIPES["objects"],
        "--recipe paper": paper,
        "--recipe paper --proposals none": replace(paper, proposals=without),
        "--recipe paper --config own.toml": replace(paper, crf=three),
        "--config paper.toml": replace(paper, crf=three),
        "--config paper.toml --recipe cover": cover,
    }.items():
        asked = asked_of_pseudo_label(monkeypatch, f"pseudo-label s.zarr {options}")
        assert asked["settings"] == expected, options
        assert asked["model"] is None
    found = asked_of_pseudo_label(monkeypatch, "pseudo-label s.zarr", "other,building")
    assert found["settings"] == RECIPES["objects"]
    asked = asked_of_pseudo_label(monkeypatch, "pseudo-label s.zarr --model m.pt")
    assert asked["model"] == Path("m.pt")


def test_weights(folder, capsys):
    succeed("weights list")
    assert "mobile_sam" in capsys.readouterr().out
    succeed("weights path efficientnet_lite0")
    path = capsys.readouterr().out.strip()
    assert Path(path).is_file()
    succeed("weights fetch efficientnet_lite0")
    assert capsys.readouterr().out.strip() == path


# --- What goes wrong -----------------------------------------------------------------------------


def make_model(path, bands=3):
    config = TrainConfig(arch="tiny", window=64)
    third = (0.0,) * 3
    facts = Bands(
        tuple(range(1, bands + 1)),
        "uint8",
        (99.0,) * bands,
        (50.0,) * bands,
        (0, 0, 0),
        third,
        (200.0,) * 3,
    )
    card = Card("segmenter", config, CLASSES, facts, 2.0)
    save_checkpoint(Path(path), build_segmenter(config, bands, 2), card)


@pytest.fixture
def mess(folder):
    """A working folder with everything that can be wrong with a file."""
    make_model("model.pt")
    make_model("four.pt", bands=4)
    Path("cut.tif").write_bytes(Path("here.tif").read_bytes()[:-60_000])
    Path("text.tif").write_text("no raster")
    Path("random.pt").write_bytes(np.random.default_rng(0).bytes(4096))
    Path("pickle.pt").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    torch.save({"a": torch.zeros(3)}, "torch.pt")
    safetensors.numpy.save_file({"a": np.zeros(3)}, "foreign.pt")
    Path("no.zarr").mkdir()
    write_raster(Path("sixteen.tif"), scenery(0)[0].astype("uint16"))
    write_raster(Path("empty.tif"), np.full((SIDE, SIDE), 255, np.uint8), nodata=255)
    write_raster(Path("small.tif"), np.zeros((9, 9), np.uint8))
    Path("legend.toml").write_text("[[classes]]\nname = 'other'\n[[classes]]\nname = 'roof'\n")
    succeed("tile here.tif --classes building --size 64 --out site.zarr -q")
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


WRONG = {
    # tile
    "tile nowhere.tif --classes building --out new.zarr": "nowhere.tif: no such file",
    "tile cut.tif --classes building --out new.zarr": "truncated",
    "tile text.tif --classes building --out new.zarr": "not a raster",
    "tile here.tif --classes building --out site.zarr": "exists already",
    "tile here.tif --classes building --out no.zarr --overwrite": "not an rsseg site",
    "tile here.tif --classes a,a --out new.zarr": "duplicate",
    "tile here.tif --classes none.toml --out new.zarr": "no such file",
    "tile here.tif --classes building --out new.zarr --size 100": "multiple of 16",
    "tile here.tif --classes building --out new.zarr --bands 1,9": "asks for band 9",
    "tile here.tif --classes building --out new.zarr --bands red": "--bands red",
    "tile here.tif --classes building --out /proc/new.zarr": "cannot write",
    "tile --classes building --out new.zarr": "either rasters or --chips",
    "tile here.tif --chips . --classes building --out new.zarr": "either rasters or --chips",
    "tile --chips nowhere --classes building --out new.zarr": "no such folder",
    "tile --chips . --size 64 --classes building --out new.zarr": "do not go with --chips",
    "tile here.tif --classes building": "Missing option '--out'",
    # tag
    "tag no.zarr --from here_truth.tif": "not an rsseg site",
    "tag nowhere.zarr --from here_truth.tif": "no such site",
    "tag site.zarr --from nowhere.csv": "nowhere.csv",
    "tag site.zarr --from site_tags.gpkg": "no tile has a tag",
    "tag site.zarr --from here_truth.tif --min-share 2": "--min-share",
    # pseudo-label
    "pseudo-label site.zarr": "has no tags",
    "pseudo-label no.zarr": "not an rsseg site",
    "pseudo-label site.zarr --proposals sam": "no SAM weights at hand",
    "pseudo-label site.zarr --sam nowhere.pt --proposals sam": "nowhere.pt",
    "pseudo-label site.zarr --until lunch": "--until",
    "pseudo-label site.zarr --recipe soup": "--recipe",
    "pseudo-label site.zarr --config nowhere.toml": "nowhere.toml",
    "pseudo-label site.zarr --model nowhere.pt": "nowhere.pt: no such checkpoint",
    "pseudo-label site.zarr --model four.pt": "needs 4 bands",
    "pseudo-label site.zarr --export here.tif": "is an input of this run",
    "pseudo-label site.zarr --export model.pt": "ends in .tif",
    # train
    "train site.zarr --out new.pt": "no pseudo-labels",
    "train site.zarr --out model.pt --labels here_truth.tif": "exists already",
    "train site.zarr --out new.pt --labels here_truth.tif --window 100": "multiple of 32",
    "train site.zarr --out new.pt --labels here_truth.tif --batch-size 1": "at least 2",
    "train site.zarr --out new.pt --labels here_truth.tif --arch abacus": "cannot be built",
    # predict
    "predict nowhere.tif --model model.pt --out map.tif": "no such file",
    "predict cut.tif --model model.pt --out map.tif": "truncated",
    "predict here.tif --model nowhere.pt --out map.tif": "no such checkpoint",
    "predict here.tif --model random.pt --out map.tif": "not a checkpoint of rsseg",
    "predict here.tif --model pickle.pt --out map.tif": "not a checkpoint of rsseg",
    "predict here.tif --model torch.pt --out map.tif": "not a checkpoint of rsseg",
    "predict here.tif --model foreign.pt --out map.tif": "not a checkpoint of rsseg",
    "predict here.tif --model four.pt --out map.tif": "asks for band 4, the raster has 3",
    "predict sixteen.tif --model model.pt --out map.tif": "has uint16 pixels",
    "predict here.tif --model model.pt --out there.tif": "exists already",
    "predict here.tif --model model.pt --out here.tif --overwrite": "is an input of this run",
    "predict here.tif --model model.pt --out /proc/map.tif": "cannot write",
    "predict here.tif there.tif --model model.pt --out here.tif": "need a folder",
    "predict here.tif --model model.pt --out map.tif --aoi nowhere.gpkg": "no such file",
    "predict here.tif --model model.pt --out map.tif --device abacus": "unknown device",
    "predict here.tif --model model.pt --out map.tif --probabilities map.tif": "different places",
    "predict here.tif --model model.pt --out map.tif --probabilities here.tif": "is an input",
    "predict here.tif --model model.pt": "Missing option '--out'",
    "predict here.tif --model model.pt --out map.tif --abacus": "--abacus",
    "predict here.tif --model model.pt --out map.tif --vectors map.kml": "not a vector file",
    "predict here.tif --model model.pt --out map.tif --vectors model.pt": "not a vector file",
    "predict here.tif --model model.pt --out map.tif --vectors site_tags.gpkg": "exists already",
    "predict here.tif there.tif --model model.pt --out maps --vectors model.pt": "need a folder",
    # vectorize
    "vectorize nowhere.tif map.gpkg": "nowhere.tif: no such file",
    "vectorize here.tif map.gpkg": "has 3 bands",
    "vectorize cut.tif map.gpkg": "truncated",
    "vectorize text.tif map.gpkg": "not a raster",
    "vectorize empty.tif map.gpkg --legend legend.toml": "nothing to draw",
    "vectorize empty.tif map.gpkg": "and no id occurs",
    "vectorize here_truth.tif map.kml": "not a vector file",
    "vectorize here_truth.tif here_truth.tif --overwrite": "not a vector file",
    "vectorize here_truth.tif site_tags.gpkg": "exists already",
    "vectorize here_truth.tif nowhere/map.gpkg": "does not exist",
    "vectorize here_truth.tif /proc/map.gpkg": "cannot write",
    "vectorize here_truth.tif map.gpkg --classes roof": "unknown class 'roof'",
    "vectorize here_truth.tif map.gpkg --classes 0,,1": "unknown class ''",
    "vectorize here_truth.tif map.gpkg --legend nowhere.toml": "nowhere.toml",
    "vectorize here_truth.tif map.gpkg --confidence here.tif": "3 bands of uint8",
    "vectorize here_truth.tif map.gpkg --confidence nowhere.tif": "no such file",
    "vectorize here_truth.tif map.gpkg --confidence small.tif": "does not lie on the pixels",
    "vectorize here_truth.tif map.gpkg --simplify nan": "tolerance nan",
    "vectorize here_truth.tif map.gpkg --simplify -1": "tolerance -1",
    "vectorize here_truth.tif map.gpkg --min-area -1": "least area -1",
    "vectorize here_truth.tif map.gpkg --min-area much": "--min-area",
    "vectorize here_truth.tif map.gpkg --strip-rows 0": "--strip-rows",
    "vectorize here_truth.tif map.gpkg --workers -1": "--workers",
    "vectorize here_truth.tif": "Missing argument 'OUT'",
    # evaluate
    "evaluate nowhere.tif here_truth.tif": "no such file",
    "evaluate here.tif here_truth.tif": "has 3 bands",
    "evaluate here_truth.tif there_truth.tif --classes a,a": "duplicate",
    "evaluate here_truth.tif there_truth.tif --json model.pt": "exists already",
    "evaluate here_truth.tif there_truth.tif --min-miou 7": "--min-miou",
    # the rest
    "info no.zarr": "not an rsseg site",
    "info here.tif": "not an rsseg site",
    "export site.zarr posterior out.tif": "it has image, valid",
    "export site.zarr image here.tif --overwrite": "is an input of this run",
    "weights path abacus": "no weights 'abacus'",
    "weights path mobile_sam": "rsseg weights fetch mobile_sam",
    "weights fetch abacus": "no weights 'abacus'",
    "abacus": "No such command 'abacus'",
}


def test_bad_input_is_one_line_and_touches_nothing(mess, capsys):
    before = contents(mess)
    capsys.readouterr()
    for text, message in WRONG.items():
        code = run(text)
        shown = capsys.readouterr()
        last = shown.err.splitlines()[-1]
        assert code == 2, f"{text}: {shown.err}"
        assert last.startswith("error: "), text
        assert message in last, text
        assert "Traceback" not in shown.err, text
        assert shown.out == "", text
        assert contents(mess) == before, text


@pytest.mark.parametrize(
    "text", ["predict here.tif --model random.pt --out map.tif", "info no.zarr"]
)
def test_bad_input_says_nothing_else(mess, capsys, text):
    capsys.readouterr()
    assert run(text) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("rsseg.nets.weights.listing", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["weights", "list"])


@pytest.mark.parametrize("as_lightning_does", [False, True])
def test_an_interruption_is_one_line(monkeypatch, capsys, as_lightning_does):
    def stops():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if as_lightning_does:
                sys.exit(1)
            raise

    monkeypatch.setattr("rsseg.nets.weights.listing", stops)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["weights", "list"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_control_c_in_a_real_process(folder):
    make_model("model.pt")
    write_raster(Path("wide.tif"), np.tile(scenery(0)[0], (1, 6, 6)))
    command = "predict wide.tif --model model.pt --out map.tif --block-rows 64"
    process = subprocess.Popen(
        [sys.executable, "-m", "rsseg", *command.split()],
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while not list(Path().glob("map.tif.partial/*.block")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "interrupted: run the same command again to go on"
    assert "Traceback" not in shown
    assert not Path("map.tif").exists()


# --- The console ---------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def screen(terminal):
    return RichConsole(
        file=io.StringIO(),
        force_terminal=terminal,
        record=True,
        width=200,
        markup=False,
        highlight=False,
    )


def shown_by(level=Level.NORMAL, terminal=False):
    output, clock = screen(terminal), Clock()

    def lines():
        return output.export_text(clear=False).splitlines()

    return Console(level, output, clock), clock, lines


def test_levels():
    texts = []
    for level in Level:
        console, _, lines = shown_by(level)
        console.detail("detail")
        console.note("note")
        console.warn("[red]warning")
        with console.step("step", 1, "tiles"):
            pass
        texts.append(lines())
    assert texts[0] == ["warning: [red]warning"]
    assert texts[1] == ["note", "warning: [red]warning", "step: 1 tiles", "step: done in 0:00"]
    assert texts[2] == ["detail", *texts[1]]


def test_plain_lines_come_at_a_bearable_pace():
    console, clock, lines = shown_by()
    with console.step("fit [a]", 200, "steps", done=100) as step:
        for _ in range(100):
            clock.now += 0.5
            step.advance(1, "loss 0.5")
    first, *middle, last = lines()
    assert first == "fit [a]: 200 steps, 100 of them done before"
    assert middle[0] == "fit [a]: 120 of 200 steps, 2.0 steps/s, 0:40 left, loss 0.5"
    assert len(middle) == 4
    assert last == "fit [a]: done in 0:50, loss 0.5"


def test_slow_steps_speak_every_ten_seconds():
    console, clock, lines = shown_by()
    with console.step("slow", 1000, "tiles") as step:
        for _ in range(6):
            clock.now += 5
            step.advance()
    assert len(lines()) == 2 + 3


def test_a_failed_step_is_not_said_to_be_done():
    console, _, lines = shown_by()
    with pytest.raises(ValueError, match="x"), console.step("step", 1, "tiles"):
        raise ValueError("x")
    assert lines() == ["step: 1 tiles"]


def test_bars_on_a_terminal():
    console, _, lines = shown_by(terminal=True)
    with console.step("outer [x]", 2e6, "px") as outer:
        with console.step("inner", 10, "tiles", done=4) as inner:
            inner.advance(6, "loss [1]")
            console.note("a [bold]note")
        outer.advance(2e6)
    text = "\n".join(lines())
    assert "a [bold]note" in text
    assert "outer [x]" in text
    assert "2.0 Mpx in 0:00" in text
    assert "10 tiles in 0:00 loss [1]" in text


def test_a_download_is_a_step():
    console, _, lines = shown_by()
    with Download(console, "weights") as bar:
        bar.total = 2_500
        for _ in range(3):
            bar.update(1_000)
        bar.reset()
        bar.update(2_500)
        bar.close()
    assert lines()[0] == "weights: 2.5 kB"
    assert lines()[-1].startswith("weights: done")


def test_a_download_that_never_begins():
    console, _, lines = shown_by()
    with Download(console, "weights"):
        pass
    assert lines() == []


def test_tables(capsys):
    print_table(["class", "IoU"], [["[roof]", "0.5"], ["road", "0.25"]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["class", "IoU"],
        ["[roof]", "0.5"],
        ["road", "0.25"],
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12, "tiles", "12 tiles"),
        (1234, "windows", "1234 windows"),
        (3_400_000, "px", "3.4 Mpx"),
        (1500, "B", "1.5 kB"),
        (7, "", "7"),
        (2.5e9, "", "2.5 G"),
    ],
)
def test_quantities(value, unit, text):
    assert quantity(value, unit) == text


def test_rates_and_durations():
    assert rate(12_300_000, "px") == "12.3 Mpx/s"
    assert [duration(s) for s in (7, 750, 11_100)] == ["0:07", "12:30", "3:05:00"]
