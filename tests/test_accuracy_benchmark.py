"""benchmarks/accuracy on tiny made data: who sees what, what rows differ in, what is done twice."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import write_raster
from numpy.typing import NDArray
from PIL import Image as Picture
from small_chips import CLASSES, COLOURS, SIDE, write_chips

# Behind the tests, two of whose helpers are named like benchmarks.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import accuracy
import accuracy_bench
import accuracy_data
import deepglobe
from accuracy_bench import Bench
from accuracy_data import DataSet, Part, data_set, make_site, reduced, thinned
from accuracy_rows import (
    FINAL,
    FLOOR,
    PAPER,
    PROTOCOLS,
    ROWS,
    Control,
    Protocol,
    Row,
    changed,
    control_config,
    seeds_of,
    settings_of,
)
from accuracy_tables import Table
from kept import Results

from rsseg.io.site import Site
from rsseg.progress import SILENT

TINY = Protocol(
    name="tiny",
    side=SIDE // 2,
    window=32,
    every=1,
    largest=0,
    classifier_steps=2,
    segmenter_steps=2,
    batch_size=2,
    encoder="mobilenetv3_small_050",
    weights="none",
    arch="tiny",
    seeds=(0, 1),
    sam="",
    controls=(Control(1e-3, 2), Control(1e-2, 2)),
    device="cpu",
    workers=1,
)
LAST = Row("segments", "plain CAM", {"crf": {"iterations": 1}, "proposals": {"proposals": "sam"}})


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """A folder of chips: twelve in six scenes to learn and choose on, two to be scored."""
    return write_chips(tmp_path / "chips")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of three scenes of one by two tiles of 128 px."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, part in enumerate(("learn", "choose", "score")):
        mask = np.zeros((128, 256), np.uint8)
        mask[:, 100:] = 1
        mask[:30, :30] = 255
        noise = np.random.default_rng(number).integers(0, 40, (3, *mask.shape), np.uint8)
        image = np.moveaxis(COLOURS[mask % 2], -1, 0) + noise
        write_raster(folder / f"area{number}.tif", image)
        write_raster(folder / f"area{number}_classes.tif", mask, nodata=255)
        with (folder / "split.csv").open("a") as file:
            file.write(("scene,part\n" if number == 0 else "") + f"area{number},{part}\n")
    tables = "".join(f'[[classes]]\nname = "{name}"\n' for name in CLASSES)
    (folder / "classes.toml").write_text(tables)
    return folder


def bench(folder: Path, out: Path, part: Part = "choosing", protocol: Protocol = TINY) -> Bench:
    return accuracy.open_bench(data_set("made", folder), part, protocol, out, out)


def masks_of(folder: Path) -> Iterator[Path]:
    yield from (folder / "train" / "masks").glob("*.png")


# --- Who sees what ------------------------------------------------------------------------------


def sides(data: DataSet) -> list[set[str]]:
    return [{image.scene for image in part} for part in (data.learn, data.choose)]


def test_no_scene_is_on_both_sides(chips: Path) -> None:
    data = data_set("made", chips)
    learn, choose = sides(data)
    assert learn
    assert choose
    assert not learn & choose
    assert not {i.path for i in data.training} & {i.path for i in data.score}
    assert len(data.training) == 12


def test_parts_learn_and_score_on_different_images(chips: Path, scenes: Path) -> None:
    for folder in (chips, scenes):
        data = data_set("made", folder)
        assert data.learned("choosing") == data.learn
        assert data.labelled("choosing") == data.mapped("choosing") == data.choose
        assert data.learned("final") == data.labelled("final") == data.learn + data.choose
        assert data.mapped("final") == data.score
        for part in accuracy.PARTS:
            assert not set(data.learned(part)) & set(data.mapped(part))


def test_held_back_scenes_are_validation_until_the_end(scenes: Path, tmp_path: Path) -> None:
    for part, held in (("choosing", ["area1"]), ("final", []), ("choosing", ["area1"])):
        site = bench(scenes, tmp_path / "out", part).site()  # type: ignore[arg-type]
        names = [name for name, scene in site.scenes.items() if scene.validation.all()]
        assert names == held
        assert not any(s.validation.any() for n, s in site.scenes.items() if n not in held)
        assert all((scene.tags >= 0).any() for scene in site.scenes.values())


def test_thinning_keeps_all_that_is_scored(chips: Path) -> None:
    data = data_set("made", chips)
    few = thinned(data, 3)
    assert few.learn == data.learn[::3]
    assert few.choose == data.choose
    assert few.score == data.score


def test_reduction_averages_images_and_picks_mask_pixels(chips: Path, tmp_path: Path) -> None:
    data = data_set("made", chips)
    small = reduced(data, SIDE // 2, tmp_path / "small")
    chip, full = small.learn[2], data.learn[2]
    image = full.read().reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(chip.read() - image).max() <= 1  # rounded in each direction
    mask = chip.read_truth(data.classes)
    assert mask.shape == (SIDE // 2, SIDE // 2)
    assert set(np.unique(mask)) <= set(np.unique(full.read_truth(data.classes)))
    assert reduced(data, SIDE, tmp_path / "same") == data


def test_tags_of_chips_are_the_lists(chips: Path, tmp_path: Path) -> None:
    """Whatever the masks say: here they are garbage."""
    for mask in masks_of(chips):
        Picture.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(mask)
    site = bench(chips, tmp_path / "out").site()
    tags = {name: scene.tags for name, scene in site.scenes.items()}
    assert {name: table.tolist() for name, table in tags.items() if table is not None} == {
        f"t{number:02d}": [[[int(number % 3 != 1), int(number % 3 != 0)]]] for number in range(12)
    }


def test_tags_of_scenes_go_through_a_csv(scenes: Path, tmp_path: Path) -> None:
    site = bench(scenes, tmp_path / "out").site()
    assert site.core == accuracy_data.TILE
    tags = site.scenes["area0"].tags
    assert tags is not None
    assert tags.tolist() == [[[1, 1], [0, 1]]]
    with (tmp_path / "out" / "made" / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["tile"].split("/")[0] for row in rows} == {"area0", "area1"}
    assert len(rows) == 4


def weak_outputs(folder: Path, out: Path) -> tuple[list[NDArray[np.uint8]], bytes]:
    opened = bench(folder, out)
    opened.row(FLOOR, 0)
    site = opened.label(settings_of(FLOOR, TINY))
    read = accuracy_bench.LayerLabels(site)
    labels = [read(name, scene.grid.window) for name, scene in site.scenes.items()]
    return labels, opened.model(f"{FLOOR.name} 0").read_bytes()


def test_no_mask_reaches_a_weak_row(chips: Path, tmp_path: Path) -> None:
    labels, model = weak_outputs(chips, tmp_path / "one")
    assert len(labels) == 12
    for mask in masks_of(chips):
        garbage = np.random.default_rng(1).integers(0, 2, (SIDE, SIDE), np.uint8)
        Picture.fromarray(garbage).save(mask)
    again, other_model = weak_outputs(chips, tmp_path / "two")
    for one, two in zip(labels, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert model == other_model


# --- Rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS if row.on], ids=lambda row: row.name)
def test_a_row_differs_from_the_one_below_in_its_module_alone(row: Row) -> None:
    protocol = PROTOCOLS["cpu"]
    below = next(one for one in ROWS if one.name == row.on)
    one, other = (asdict(settings_of(r, protocol)) for r in (row, below))
    different = {
        (section, key)
        for section, keys in one.items()
        for key, value in keys.items()
        if value != other[section][key]
    }
    assert different == {(section, key) for section, keys in row.changes.items() for key in keys}


def test_rows_have_one_backbone_and_schedule() -> None:
    protocol = PROTOCOLS["cpu"]
    for row in PAPER:
        settings = settings_of(row, protocol, seed=7)
        assert settings.classifier.min_steps == protocol.classifier_steps
        assert settings.classifier.backbone == settings.train.encoder == protocol.encoder
        assert settings.train == settings_of(FLOOR, protocol, seed=7).train
        assert settings.classifier.seed == settings.train.seed == 7


def test_the_control_differs_in_learning_rate_and_steps() -> None:
    protocol = PROTOCOLS["cpu"]
    config = control_config(Control(5e-4, 900), protocol, seed=2)
    weak = settings_of(FLOOR, protocol, seed=2).train
    assert config == replace(weak, lr=5e-4, min_steps=900)


def test_thresholds_are_repeated_with_every_seed() -> None:
    assert seeds_of(FLOOR, TINY) == (0, 1)
    assert seeds_of(replace(FLOOR, every_seed=False), TINY) == (0,)
    assert seeds_of(FLOOR, TINY, "choosing") == (0,)
    assert all(row.every_seed for row in (FLOOR, FINAL))


def test_changes_leave_the_other_keys_alone() -> None:
    plain = settings_of(FLOOR, TINY)
    one = changed(plain, {"crf": {"iterations": 3}})
    assert one.crf == replace(plain.crf, iterations=3)
    assert replace(one, crf=plain.crf) == plain


# --- Units --------------------------------------------------------------------------------------


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> tuple[Row, ...]:
    """The floor and a row with segments, as if they were all there are."""
    rows = (FLOOR, LAST)
    values = {"ROWS": rows, "FINAL": LAST, "TIMED": (LAST,)}
    for module in ("accuracy", "accuracy_rows", "accuracy_tables", "accuracy_pictures"):
        __import__(module)
        for name, value in values.items():
            if hasattr(sys.modules[module], name):
                monkeypatch.setattr(sys.modules[module], name, value)
    default = settings_of
    for module in ("accuracy", "accuracy_bench", "accuracy_pictures"):
        monkeypatch.setattr(
            sys.modules[module],
            "settings_of",
            lambda row, protocol, seed=0: default(row, protocol, seed, rows),
        )
    return rows


@pytest.mark.parametrize("layout", ["chips", "scenes"])
def test_a_data_set_is_measured_end_to_end(
    layout: str, request: pytest.FixtureRequest, two_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(layout)
    out = tmp_path / "out"
    protocol = replace(TINY, seeds=(0,), controls=TINY.controls[:1])
    for part in accuracy.PARTS:
        opened = bench(folder, out, part, protocol)
        accuracy.measure(opened, two_rows, accuracy.UNITS)
        table = accuracy.write_tables(opened)
        assert f"made, {part}, protocol tiny" in table
        assert table.count("| plain CAM | 1 |") == 2
        assert "supervised control (lr" in table
        assert "x the networks' forwards" in table
        assert list((opened.out / part / "pictures").glob("*.png"))
        measured = dict(opened.results.units)
        for name in (f"{part} map {LAST.name} 0", f"{part} labels {LAST.name} 0"):
            truths = (opened.data.mapped if " map " in name else opened.data.labelled)(part)
            known = sum((i.read_truth(opened.data.classes) != 255).sum() for i in truths)
            assert np.sum(measured[name]["matrix"]) == known


def test_what_was_measured_is_not_measured_again(
    chips: Path, two_rows: tuple[Row, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bench(chips, tmp_path / "out")
    opened.row(FLOOR, 0)
    opened.control(TINY.controls[0], 0)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured twice")

    for verb in ("train", "predict", "pseudo_label", "map_chips"):
        monkeypatch.setattr(accuracy_bench, verb, never)
    again = bench(chips, tmp_path / "out")
    again.row(FLOOR, 0)
    again.control(TINY.controls[0], 0)
    with pytest.raises(AssertionError, match="twice"):
        again.row(FLOOR, 1)


def test_rows_share_the_classifier_and_the_masks(
    chips: Path, two_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    opened = bench(chips, tmp_path / "out")
    for row in (FLOOR, LAST):
        opened.label(accuracy_bench.settings_of(row, TINY))
    site = Site(opened.out / "site.zarr")
    assert len(list(site.models.glob("classifier-*.safetensors"))) == 1
    masks = site.layers["masks"]
    other = changed(accuracy_bench.settings_of(LAST, TINY), {"crf": {"iterations": 2}})
    assert opened.label(other).layers["masks"] == masks


def test_a_killed_site_is_made_anew(chips: Path, tmp_path: Path) -> None:
    data = data_set("made", chips)
    path = tmp_path / "site.zarr"
    make_site(data, path, SILENT)
    path.with_suffix(".tagged").unlink()  # killed between the two verbs
    for scene in Site(path).scenes.values():
        del scene.group["tags"]
    assert len(make_site(data, path, SILENT).tags) == 12


def test_the_control_of_the_end_is_the_best_of_the_choosing_part(
    chips: Path, tmp_path: Path
) -> None:
    opened = bench(chips, tmp_path / "out", "final")
    assert opened.chosen_control() is None
    with pytest.raises(SystemExit, match="choosing"):
        accuracy.measure_control(opened)
    for control, right in zip(TINY.controls, (3, 9), strict=True):
        opened.results.need(
            f"choosing map {control.name} 0",
            lambda right=right: {"matrix": [[right, 10 - right, 0], [0, 10, 0]]},  # type: ignore[misc]
        )
    assert opened.chosen_control() == TINY.controls[1]


def test_results_of_another_protocol_are_refused(chips: Path, tmp_path: Path) -> None:
    bench(chips, tmp_path / "out")
    with pytest.raises(SystemExit, match="other settings"):
        bench(chips, tmp_path / "out", protocol=replace(TINY, name="huge"))


# --- Tables -------------------------------------------------------------------------------------


def test_tables_have_gain_ratio_and_spread(chips: Path, tmp_path: Path) -> None:
    opened = bench(chips, tmp_path / "out", "final")
    control = TINY.controls[0]

    def matrix(right: int) -> dict[str, object]:
        return {"matrix": [[right, 100 - right, 0], [100 - right, right, 0]]}

    for kind in ("labels", "map"):
        for name, rights in ((ROWS[0].name, (60, 70)), (ROWS[1].name, (80,))):
            for seed, right in enumerate(rights):
                unit = f"final {kind} {name} {seed}"
                opened.results.need(unit, lambda right=right: matrix(right))  # type: ignore[misc]
    opened.results.need(f"final map {control.name} 0", lambda: matrix(90))
    lines = list(Table(opened.results, opened.data, "final", TINY, control).lines())
    plain, siamese = (
        [cell.strip() for cell in next(line for line in lines if f"| {name} |" in line).split("|")]
        for name in (ROWS[0].name, ROWS[1].name)
    )
    # IoU of 60 and 70 right of 100 each way: 60/140 and 70/130; of 80: 80/120.
    assert plain[2:5] == ["2", f"{(60 / 140 + 70 / 130) / 2:.3f} ± 0.078", "–"]
    assert siamese[2:5] == ["1", "0.667", f"{100 * (80 / 120 - 60 / 140):+.1f}"]
    maps = lines[next(i for i, line in enumerate(lines) if line.startswith("| map |")) :]
    ratio = next(line for line in maps if f"| {ROWS[1].name} |" in line).split("|")[5].strip()
    assert ratio == f"{(80 / 120) / (90 / 110):.3f}"


def test_tables_of_nothing_have_no_rows(tmp_path: Path, chips: Path) -> None:
    data = data_set("made", chips)
    lines = Table(Results(tmp_path / "none.json"), data, "final", TINY, None).lines()
    assert not any(line.startswith("|") for line in lines)


@pytest.mark.data
def test_the_real_data_are_split_as_their_readme_has_it(data_root: Path) -> None:
    data = accuracy_data.chips("deepglobe", data_root / "deepglobe")
    assert data.classes.names == deepglobe.CLASSES
    chosen = [chip.name for chip in deepglobe.training_chips(data_root, choosing=True)]
    assert [chip.name for chip in data.choose] == chosen
    assert (len(data.training), len(data.score)) == (880, 200)
    learn, choose = sides(data)
    assert not learn & choose
    dubai = accuracy_data.dubai(data_root / "dubai")
    assert [image.name for image in dubai.learn] == ["scene1", "scene2", "scene6", "scene8"]
    assert [image.name for image in dubai.choose] == ["scene5"]
    assert [image.name for image in dubai.score] == ["scene4"]
