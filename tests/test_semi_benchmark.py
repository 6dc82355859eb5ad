"""benchmarks/semi: what the simulated VLM says, who sees what, what rows differ in, the tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture
from small_chips import SIDE, write_chips

# Behind the tests, two of whose helpers are named like benchmarks.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import accuracy_rows
import semi
import semi_bench
from accuracy_data import DataSet, Image, Part, data_set
from semi_bench import SemiBench
from semi_rows import (
    BASELINE,
    CHOICE,
    CONTROL,
    LITERAL,
    MISLED,
    PROTOCOLS,
    PURIFIED,
    RATIOS,
    ROWS,
    Row,
    Run,
    SemiProtocol,
    Setting,
    places,
)
from semi_tables import Difference, Table
from semi_vlm import (
    FAIR,
    GOOD,
    OUTLINE,
    POOR,
    USELESS,
    Quality,
    answer,
    components,
    mask_of,
    opinions,
)

from rsseg.grid import Window
from rsseg.io.opinions import SURE, SiteOpinions
from rsseg.io.site import Site
from rsseg.ops.trust import Trust

TINY = SemiProtocol(
    base=replace(
        accuracy_rows.CPU,
        name="tiny",
        side=SIDE,
        window=32,
        every=1,
        encoder="none",
        weights="none",
        arch="tiny",
        seeds=(0, 1),
    ),
    supervised=(Setting(1e-3, 2, 4), Setting(1e-2, 2, 4)),
    semi=(Setting(1e-3, 2, 2), Setting(1e-3, 2, 2, gate=0.5)),
)
FAULTLESS = Quality("faultless", 0, 0, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_chips(tmp_path / "chips")


def bench(folder: Path, out: Path, part: Part = "choosing") -> SemiBench:
    return semi.open_bench(data_set("made", folder), part, TINY, out)


def a_run(row: Row, ratio: float = CHOICE, seed: int = 0) -> Run:
    return Run(row, ratio, TINY.candidates(row)[0], seed)


# --- The simulated VLM --------------------------------------------------------------------------

QUADRANTS = 40


def quadrants(order: tuple[int, ...]) -> NDArray[np.uint8]:
    """A chip of four classes, a square each in a ground without labels."""
    truth = np.full((2 * QUADRANTS, 2 * QUADRANTS), 255, np.uint8)
    for place, index in enumerate(order):
        top, left = (QUADRANTS * side + 8 for side in divmod(place, 2))
        truth[top : top + 24, left : left + 24] = index
    return truth


@pytest.mark.parametrize("quality", [GOOD, FAIR, POOR, USELESS], ids=lambda q: q.name)
def test_mistakes_are_as_frequent_as_they_are_said_to_be(quality: Quality) -> None:
    truth, rng, chips = quadrants((0, 1, 2, 3)), np.random.default_rng(0), 1000
    boxes = [box for _ in range(chips) for box in answer(truth, 4, quality, rng)]
    found = [box for box in boxes if box.found is not None]
    assert len(found) / (4 * chips) == pytest.approx(1 - quality.missed, abs=0.025)
    assert (len(boxes) - len(found)) / (4 * chips) == pytest.approx(quality.false, abs=0.025)
    if not found:
        return
    wrong = [box for box in found if truth[box.found].max() != box.index]
    assert len(wrong) / len(found) == pytest.approx(quality.misnamed, abs=0.025)
    # Edges have room for two standard deviations of the good one's before the chip ends.
    off = np.array([box.edges[1] - np.flatnonzero(box.found.any(axis=1))[-1] - 1 for box in found])
    spread = np.diff(np.quantile(off, (0.25, 0.75)))[0] / 1.349
    assert spread == pytest.approx(24 * quality.jitter, abs=1.0)


def test_misnamed_things_have_any_other_name() -> None:
    rng = np.random.default_rng(0)
    quality = replace(FAULTLESS, misnamed=1.0)
    truth = np.zeros((32, 32), np.uint8)
    assert {answer(truth, 4, quality, rng)[0].index for _ in range(200)} == {1, 2, 3}


def test_useless_boxes_do_not_hang_on_the_truth() -> None:
    """Where things are and what they are has no say; only how many there are."""
    one, other = (
        [
            (box.index, box.edges)
            for seed in range(50)
            for box in answer(quadrants(order), 4, USELESS, np.random.default_rng(seed))
        ]
        for order in ((0, 1, 2, 3), (3, 3, 1, 2))
    )
    assert one == other
    assert {index for index, _ in one} == {0, 1, 2, 3}


def test_useless_boxes_are_as_many_as_good_ones() -> None:
    assert USELESS.missed == 1
    assert USELESS.false == pytest.approx(1 - GOOD.missed + GOOD.false)


def test_useless_opinions_are_right_by_chance_and_not_trusted() -> None:
    rng, trust = np.random.default_rng(0), Trust(4)
    for _ in range(400):
        truth = quadrants(tuple(rng.permutation(4)))
        truth[truth == 255] = 0  # a class of most pixels, so that base rates differ
        said = opinions(truth, 4, USELESS, rng)
        trust.add(torch.from_numpy(said)[None], torch.from_numpy(truth.astype(np.int64))[None])
    np.testing.assert_allclose(trust.precision(), trust.base_rates(), atol=0.05)
    assert not trust.weights().any()


def test_good_opinions_are_trusted() -> None:
    rng, trust = np.random.default_rng(0), Trust(4)
    for _ in range(30):
        truth = quadrants(tuple(rng.permutation(4)))
        said = opinions(truth, 4, GOOD, rng)
        trust.add(torch.from_numpy(said)[None], torch.from_numpy(truth.astype(np.int64))[None])
    assert (trust.weights() > trust.base_rates()).all()


def test_specks_and_unlabelled_pixels_have_no_box() -> None:
    truth = np.full((100, 100), 255, np.uint8)
    truth[:9, :11] = 0  # 99 pixels, less than a hundredth
    truth[50:60, 50:60] = 0
    truth[80:, 80:] = 1
    found = components(truth, 3)
    assert [index for index, _ in found] == [0, 1]
    assert [int(mask.sum()) for _, mask in found] == [100, 400]


def test_confidence_is_shared_among_the_named_classes() -> None:
    rng = np.random.default_rng(0)
    for order, confidence in (((0, 0, 0, 0), 1), ((0, 1, 1, 1), 0.5), ((0, 1, 2, 2), 1 / 3)):
        said = opinions(quadrants(order), 4, FAULTLESS, rng)
        assert set(np.unique(said)) == {0, round(SURE * confidence)}
        assert said.dtype == np.uint8


def test_masks_are_the_things_but_for_their_outline() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[60:120, 60:120] = 1
    inner, outer = (Window(60 + d, 60 + d, 60 - 2 * d, 60 - 2 * d) for d in (2, -2))
    assert round(OUTLINE * 200) == 2
    sizes = set()
    for seed in range(30):
        said = opinions(truth, 2, FAULTLESS, np.random.default_rng(seed))[1] > 0
        assert said[inner.slices].all()
        assert said.sum() == said[outer.slices].sum()
        sizes.add(int(said.sum()))
    assert min(sizes) < 3600
    assert max(sizes) == 3600  # the box cuts off what is beyond the thing


def test_masks_end_with_their_boxes() -> None:
    truth, quality = quadrants((0, 1, 2, 3)), replace(GOOD, jitter=0.4)
    rng = np.random.default_rng(0)
    for box in (box for _ in range(50) for box in answer(truth, 4, quality, rng)):
        assert 0 <= box.edges[0] < box.edges[1] <= 80
        assert 0 <= box.edges[2] < box.edges[3] <= 80
        mask = mask_of(box, truth.shape, rng)
        inside = mask[box.inside]
        assert mask.sum() == inside.sum()
        assert inside.all() or box.found is not None


# --- Who sees what ------------------------------------------------------------------------------


def garble(images: tuple[Image, ...]) -> None:
    """Replace images and masks by noise."""
    rng = np.random.default_rng(9)
    for image in images:
        noise = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Picture.fromarray(noise).save(image.path)
        Picture.fromarray(rng.integers(0, 2, (SIDE, SIDE), np.uint8)).save(image.truth)


def trained(folder: Path, out: Path, part: Part) -> bytes:
    opened, run = bench(folder, out, part), a_run(PURIFIED)
    opened.fit(run)
    return opened.model(run.key).read_bytes()


@pytest.mark.parametrize("part", semi.PARTS)
def test_nothing_of_a_scored_image_reaches_a_training(
    folder: Path, tmp_path: Path, part: Part
) -> None:
    before = trained(folder, tmp_path / "one", part)
    data = data_set("made", folder)
    garble(data.mapped(part))
    assert trained(folder, tmp_path / "two", part) == before
    garble(data.learned(part))
    assert trained(folder, tmp_path / "three", part) != before


def test_opinions_are_of_the_chips_to_learn_on(folder: Path, tmp_path: Path) -> None:
    opened = bench(folder, tmp_path / "out")
    for image in opened.data.choose:
        image.truth.write_bytes(b"not to be read")
    site = opened.site()
    semi_bench.simulate(site, opened.data.learn, FAULTLESS, 0, opened.progress)
    read = SiteOpinions(Site(site.path))
    assert set(site.scenes) == {image.name for image in opened.data.learn}
    for name, scene in site.scenes.items():
        said = read(name, scene.grid.window)
        assert said.shape == (2, SIDE, SIDE)
        assert said.any()
    chip = next(image for image in opened.data.learn if image.name in ("t02", "t05", "t08"))
    half = read(chip.name, site.scenes[chip.name].grid.window)
    truth = chip.read_truth(opened.data.classes)
    for index in range(2):
        assert set(np.unique(half[index][truth == index])) <= {0, SURE // 2}
        assert (half[index] > 0)[truth == index].mean() > 0.9


def test_each_seed_and_quality_has_its_own_mistakes(folder: Path, tmp_path: Path) -> None:
    opened = bench(folder, tmp_path / "out")
    site, layers = opened.site(), []
    for quality, seed in ((GOOD, 0), (GOOD, 1), (POOR, 0), (GOOD, 0)):
        semi_bench.simulate(site, opened.data.learn, quality, seed, opened.progress)
        layers.append(Site(site.path).layers["opinions"])
    assert len(set(layers)) == 3
    assert layers[0] == layers[3]


def test_trainings_differ_in_what_their_rows_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of a ratio and seed draw the same labelled chips, from the chips to learn on."""
    opened, calls = bench(folder, tmp_path / "out"), {}

    def noted(site: Path, out: Path, **given: Any) -> None:
        calls[out.stem] = given
        out.with_name(f"{out.stem}_metrics.csv").write_text("epoch,loss\n0,0.5\n")

    monkeypatch.setattr(semi_bench, "train", noted)
    for row in ROWS:
        opened.fit(a_run(row, 0.1, seed=1))
    assert len(calls) == len(ROWS)
    truths = [image.truth for image in opened.data.learn]
    for row, given in zip(ROWS, calls.values(), strict=True):
        assert given["labels"] == truths
        assert (given["labelled"], given["config"].seed) == (0.1, 1)
        assert given["method"] == row.method
        assert given["purify"] == ("none" if row.quality is None else "vlm")
        assert given["semi"].literal == (row == LITERAL)
        like = calls[next(name for name in calls if name.startswith("control"))]
        if row.method == "semi":
            assert given["config"] == like["config"]
            assert replace(given["semi"], literal=False) == like["semi"]


# --- Rows ---------------------------------------------------------------------------------------


def test_rows_with_thresholds_have_all_seeds_at_all_ratios() -> None:
    protocol = PROTOCOLS["cpu"]
    final, choosing = (list(places(part, protocol)) for part in ("final", "choosing"))
    for row in (BASELINE, CONTROL, PURIFIED, MISLED):
        assert {(ratio, seed) for one, ratio, seed in final if one == row} == {
            (ratio, seed) for ratio in RATIOS for seed in (0, 1, 2)
        }
    for row in ROWS[4:]:
        assert [(ratio, seed) for one, ratio, seed in final if one == row] == [(CHOICE, 0)]
    assert choosing == [(row, CHOICE, 0) for row in ROWS]
    assert len(final) == len(set(final)) == 39


def test_both_methods_show_the_student_as_many_crops_a_step() -> None:
    for protocol in PROTOCOLS.values():
        assert {setting.batch_size for setting in protocol.supervised} == {
            2 * setting.batch_size for setting in protocol.semi
        }


def test_runs_have_their_own_files(folder: Path, tmp_path: Path) -> None:
    opened = bench(folder, tmp_path / "out")
    runs = [
        Run(row, ratio, setting, seed)
        for row, ratio, seed in places("final", PROTOCOLS["cpu"])
        for setting in PROTOCOLS["cpu"].candidates(row)
    ]
    assert len({opened.model(run.key) for run in runs}) == len(runs)


# --- Units --------------------------------------------------------------------------------------


def give(opened: SemiBench, part: Part, run: Run, right: int) -> None:
    """Let a map of two classes have so many pixels of 100 of each class right."""
    matrix = [[right, 100 - right, 0], [100 - right, right, 0]]
    opened.results.need(f"{part} map {run.key}", lambda: {"matrix": matrix})


def give_candidates(opened: SemiBench) -> None:
    """Let the second candidate be best at 5 %, for both methods, and the first elsewhere."""
    for row, ratios in ((BASELINE, RATIOS), (CONTROL, (CHOICE,))):
        for ratio in ratios:
            for place, setting in enumerate(TINY.candidates(row)):
                right = 60 + (place if ratio == CHOICE else -place)
                give(opened, "choosing", Run(row, ratio, setting, 0), right)


def test_settings_are_chosen_on_the_choosing_part(folder: Path, tmp_path: Path) -> None:
    opened = bench(folder, tmp_path / "out", "final")
    with pytest.raises(SystemExit, match="choosing"):
        semi.measure(opened, ("rows",))
    give_candidates(opened)
    chosen = {(row.name, ratio): opened.chosen(row, ratio) for row in ROWS for ratio in RATIOS}
    for (name, ratio), run in chosen.items():
        assert run is not None
        if name == BASELINE.name:
            assert run.setting == TINY.supervised[ratio == CHOICE]
        else:
            assert run.setting == TINY.semi[1]


def test_candidates_are_not_measured_on_the_final_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Run] = []
    monkeypatch.setattr(SemiBench, "run", lambda _, run: ran.append(run))
    semi.measure(bench(folder, tmp_path / "out", "final"), ("candidates",))
    assert not ran
    semi.measure(bench(folder, tmp_path / "out"), ("candidates",))
    assert len(ran) == 2 * len(RATIOS) + 2
    assert all(run.row in (BASELINE, CONTROL) for run in ran)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure 5 % alone, with the first seed."""
    for module in ("semi", "semi_rows", "semi_tables"):
        monkeypatch.setattr(sys.modules[module], "RATIOS", (CHOICE,))
    one = replace(TINY.base, seeds=(0,))
    brief = SemiProtocol(one, TINY.supervised[:1], TINY.semi[:1])
    monkeypatch.setitem(globals(), "TINY", brief)


@pytest.mark.usefixtures("brief")
def test_few_labels_are_measured_end_to_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for part in semi.PARTS:
        opened = bench(folder, out, part)
        semi.measure(opened, semi.UNITS)
        table = semi.write_tables(opened)
        assert "SIMULATION" in table
        for row in ROWS:
            assert f"| 5% | {row.name} | 1 |" in table
        for quality in ("good", "fair", "poor", "useless"):
            assert f"| {quality} |" in table
        unit = opened.results.units[f"{part} map {a_run(PURIFIED).key}"]
        truths = [image.read_truth(opened.data.classes) for image in opened.data.mapped(part)]
        assert np.sum(unit["matrix"]) == sum((truth != 255).sum() for truth in truths)
        logged = opened.results.units[f"{part} model {a_run(PURIFIED).key}"]["last"]
        assert {"agreed_share", "rectified_share", "confident_share"} <= logged.keys()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured twice")

    for verb in ("train", "simulate"):
        monkeypatch.setattr(semi_bench, verb, never)
    again = bench(folder, out, "final")
    semi.measure(again, semi.UNITS)
    with pytest.raises(AssertionError, match="twice"):
        again.run(a_run(PURIFIED, seed=1))


# --- Tables -------------------------------------------------------------------------------------


def cells(lines: list[str], start: str) -> Iterator[list[str]]:
    for line in lines:
        if line.startswith(f"| {start} |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_interval_is_students() -> None:
    found = Difference((1.0, 2.0, 3.0))
    assert found.mean == 2
    # t of two degrees of freedom at 97.5 %: 4.3027; over the root of three.
    assert found.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert str(found) == "+2.0 (-0.5 to +4.5)"
    assert Difference((1.5,)).interval is None


def test_gains_are_paired_over_seeds(folder: Path, tmp_path: Path) -> None:
    opened = bench(folder, tmp_path / "out", "final")
    give_candidates(opened)
    for row, rights in ((BASELINE, (50, 60)), (CONTROL, (60, 80)), (PURIFIED, (70,))):
        for seed, right in enumerate(rights):
            chosen = opened.chosen(row, CHOICE)
            assert chosen is not None
            give(opened, "final", Run(row, CHOICE, chosen.setting, seed), right)
    lines = list(Table(opened).lines())
    iou = {right: right / (200 - right) for right in (50, 60, 70, 80)}
    (baseline,) = cells(lines, f"5% | {BASELINE.name} | 2")
    (control,) = cells(lines, f"5% | {CONTROL.name} | 2")
    (purified,) = cells(lines, f"5% | {PURIFIED.name} | 1")
    assert baseline[3:6] == [f"{(iou[50] + iou[60]) / 2:.3f} ± 0.067", "–", "-16.7"]
    assert control[4:6] == ["+16.7", "–"]
    assert purified[4:6] == [
        f"{100 * (iou[70] - iou[50]):+.1f}",
        f"{100 * (iou[70] - iou[60]):+.1f}",
    ]
    (paired,) = cells(lines, f"5% | {CONTROL.name} - {BASELINE.name}")
    assert paired[2:] == ["2", "+16.7 (-74.1 to +107.4)"]  # t of one degree: 12.706
    assert any(f"{PURIFIED.name} - {CONTROL.name}" in line and "+2" in line for line in lines)


def test_tables_of_nothing_have_no_rows(folder: Path, tmp_path: Path) -> None:
    lines = list(Table(bench(folder, tmp_path / "out")).lines())
    assert not any(line.startswith("|") for line in lines)
    assert any("SIMULATION" in line for line in lines)


def test_data_are_thinned_like_the_accuracy_benchmarks(folder: Path, tmp_path: Path) -> None:
    data: DataSet = data_set("made", folder)
    protocol = replace(TINY, base=replace(TINY.base, every=2))
    few = semi.open_bench(data, "choosing", protocol, tmp_path / "out").data
    assert few.learn == data.learn[::2]
    assert (few.choose, few.score) == (data.choose, data.score)
