"""Markdown tables of the few-labels benchmark, from the units that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy_tables import NONE, spread
from scipy import stats
from semi_bench import SemiBench
from semi_rows import BASELINE, CHOICE, CONTROL, MISLED, PURIFIED, RATIOS, ROWS, Row, Run
from semi_vlm import GOOD, LEAST, OUTLINE, QUALITIES

from rsseg.ops.confusion import Scores, scores

PAIRS = ((CONTROL, BASELINE), (PURIFIED, BASELINE), (PURIFIED, CONTROL), (MISLED, CONTROL))
"""Rows whose difference has an interval."""
CONFIDENCE = 0.95
SHARES = ("confident", "agreed", "rectified")
"""Of the valid unlabelled pixels: those that passed the gate, and both kinds of purified ones."""

Found = Mapping[int, Scores]
"""Seed → scores."""


@dataclass(frozen=True)
class Difference:
    """Points of mIoU between two rows, paired over seeds.

    Attributes:
        points: one per seed.
    """

    points: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.points))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean; None of a single seed."""
        count = len(self.points)
        if count < 2:
            return None
        error = float(np.std(self.points, ddof=1)) / count**0.5
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        return self.mean - reach, self.mean + reach

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.1f}"
        low, high = self.interval
        return f"{self.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def difference(one: Found, other: Found) -> Difference | None:
    """Return the paired difference over the seeds of both; None where there are none."""
    seeds = sorted(one.keys() & other.keys())
    points = tuple(100 * (one[seed].miou - other[seed].miou) for seed in seeds)
    return Difference(points) if points else None


class Table:
    """The units of a part, as tables.

    Args:
        bench: what was measured, and on what.
    """

    def __init__(self, bench: SemiBench) -> None:
        self._bench = bench
        self._units = bench.results.units
        self._names = bench.data.classes.names

    def lines(self) -> Iterator[str]:
        """Yield the lines of all tables for which there are results."""
        yield from self._heading()
        yield from self._candidates()
        yield from self._scores()
        yield from self._differences()
        yield from self._learnt()
        yield from self._qualities()
        yield from self._verdict()

    def found(self, row: Row, ratio: float) -> Found:
        """Return the scores of a row at a ratio, by those of the seeds that were measured."""
        runs = self._runs(row, ratio)
        measured = {run.seed: self._score(self._bench.part, run) for run in runs}
        return {seed: one for seed, one in measured.items() if one is not None}

    def _runs(self, row: Row, ratio: float) -> list[Run]:
        """Return the runs of a row at a ratio with all seeds; none before a setting is chosen."""
        chosen = self._bench.chosen(row, ratio)
        seeds = self._bench.protocol.base.seeds
        return [] if chosen is None else [Run(row, ratio, chosen.setting, seed) for seed in seeds]

    def _score(self, part: str, run: Run) -> Scores | None:
        unit = self._units.get(f"{part} map {run.key}")
        return None if unit is None else scores(np.array(unit["matrix"]))

    def _heading(self) -> Iterator[str]:
        data, part = self._bench.data, self._bench.part
        yield f"## Few labels: {data.name}, {part}, protocol {self._bench.protocol.name}"
        yield ""
        about = self._units.get("about", {})
        yield ", ".join(f"{name} {value}" for name, value in about.items() if name != "load")
        learned, mapped = len(data.learned(part)), len(data.mapped(part))
        yield f"images: learned on {learned}, maps scored on {mapped}"
        yield ""
        yield (
            "The vision-language model (VLM) is a SIMULATION: boxes around true components of "
            "training chips, with mistakes at rates fixed beforehand; no VLM was run. It never "
            "sees the truth of an image that is scored."
        )
        yield ""

    def _candidates(self) -> Iterator[str]:
        """All candidates on the choosing part, the chosen ones in bold."""
        rows = []
        for row, ratio in (*((BASELINE, ratio) for ratio in RATIOS), (CONTROL, CHOICE)):
            chosen = self._bench.chosen(row, ratio)
            for setting in self._bench.protocol.candidates(row):
                run = Run(row, ratio, setting, self._bench.protocol.base.seeds[0])
                found = self._score("choosing", run)
                if found is not None:
                    mark = "**" if chosen == run else ""
                    cells = [row.name, f"{ratio:.0%}", setting.name, f"{found.miou:.3f}"]
                    rows.append(_line([*cells[:3], f"{mark}{cells[3]}{mark}", f"{found.oa:.3f}"]))
        if rows:
            yield from ("| on the choosing part | labelled | settings | mIoU | OA |", _rule(5))
            yield from (*rows, "")

    def _scores(self) -> Iterator[str]:
        """The rows' scores, mean ± standard deviation over seeds, and their gains in points."""
        rows = []
        for ratio in RATIOS:
            baseline, control = self.found(BASELINE, ratio), self.found(CONTROL, ratio)
            for row in ROWS:
                found = self.found(row, ratio)
                if found:
                    gains = [
                        NONE if row == below else _gain(found, scored)
                        for below, scored in ((BASELINE, baseline), (CONTROL, control))
                    ]
                    start = [f"{ratio:.0%}", row.name, len(found), spread(found, "miou"), *gains]
                    rows.append(_line([*start, spread(found, "oa"), *_per_class(found)]))
        if rows:
            title = ["labelled", "row", "seeds", "mIoU", "over supervised", "over control", "OA"]
            yield from (_line([*title, *self._names]), _rule(len(title) + len(self._names)))
            yield from (*rows, "")

    def _differences(self) -> Iterator[str]:
        """Paired differences with their intervals."""
        rows = []
        for ratio in RATIOS:
            for one, other in PAIRS:
                found = difference(self.found(one, ratio), self.found(other, ratio))
                if found is not None and found.interval is not None:
                    name = f"{one.name} - {other.name}"
                    rows.append(_line([f"{ratio:.0%}", name, len(found.points), found]))
        if rows:
            title = ["labelled", "paired over seeds", "seeds", "points of mIoU (95 %)"]
            yield from (_line(title), _rule(len(title)), *rows, "")

    def _learnt(self) -> Iterator[str]:
        """What the semi-supervised rows learnt from in their last epoch."""
        rows = []
        for ratio in RATIOS:
            for row in (row for row in ROWS if row.method == "semi"):
                runs = self._runs(row, ratio)
                names = [self._bench.name("model", run.key) for run in runs]
                logged = [self._units[name] for name in names if name in self._units]
                if logged:
                    shares = [_mean_of(logged, f"{what}_share") for what in SHARES]
                    off = np.mean([sum("off;" in line for line in one["said"]) for one in logged])
                    cells = [*shares, NONE if row.quality is None else f"{off:.1f}"]
                    rows.append(_line([f"{ratio:.0%}", row.name, len(logged), *cells]))
        if rows:
            title = ["labelled", "unlabelled pixels of the last epoch", "seeds", *SHARES]
            title.append("classes switched off")
            yield from (_line(title), _rule(len(title)), *rows, "")

    def _qualities(self) -> Iterator[str]:
        """What each simulated VLM says, how much of it is right, and what it gains."""
        first = self._bench.protocol.base.seeds[0]
        control = _only(self.found(CONTROL, CHOICE), first)
        rows = []
        for quality in QUALITIES:
            unit = self._units.get(self._bench.name("opinions", f"{quality.name}, seed {first}"))
            if unit is None:
                continue
            row = next(row for row in ROWS if row.quality == quality and not row.literal)
            found = _only(self.found(row, CHOICE), first)
            rates = [quality.missed, quality.false, quality.misnamed, quality.jitter]
            miou = f"{found[first].miou:.3f}" if found else NONE
            cells = [*(f"{rate:g}" for rate in rates), *_counts(unit), miou]
            rows.append(_line([quality.name, *cells, _gain(found, control)]))
        if rows:
            yield (
                f"Quality of the simulated VLM: components from {LEAST:.0%} of a chip are boxed; "
                f"masks are off by up to {OUTLINE:.0%} of its side; the {GOOD.name} one first; "
                f"mIoU and gain at {CHOICE:.0%} labelled, seed {first}."
            )
            yield ""
            title = ["simulated VLM", "missed", "false", "misnamed", "jitter", "pixels covered"]
            title += ["opinions right", "least in a class", "mIoU", "over control"]
            yield from (_line(title), _rule(len(title)), *rows, "")

    def _verdict(self) -> Iterator[str]:
        """The numbers that carry thresholds."""
        for ratio in RATIOS:
            for one, other, least in _thresholds(ratio):
                found = difference(self.found(one, ratio), self.found(other, ratio))
                if found is not None:
                    yield f"{ratio:.0%} labelled: {one.name} - {other.name} {found}; {least}"
        yield ""


def _thresholds(ratio: float) -> Iterator[tuple[Row, Row, str]]:
    """Yield what is asked for at a ratio."""
    least = "to be at least +3" if ratio == CHOICE else "to be above 0"
    yield from ((row, BASELINE, least) for row in (CONTROL, PURIFIED))
    if ratio == CHOICE:
        yield PURIFIED, CONTROL, "to be at least +2"
    yield MISLED, CONTROL, "to be at least -0.5, or its interval to contain 0"


def _counts(unit: Mapping[str, Sequence[int]]) -> list[str]:
    """Return shares: pixels with an opinion, opinions that are right, the least of a class."""
    said, right, labelled = (np.array(unit[name]) for name in ("said", "right", "labelled"))
    each = (right[said > 0] / said[said > 0]).min(initial=1.0)
    covered = unit["covered"] / labelled.sum()
    return [f"{share:.0%}" for share in (covered, right.sum() / max(said.sum(), 1), each)]


def _mean_of(logged: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the mean share that trainings logged; those that never heard a VLM did not."""
    shares = [one["last"][name] for one in logged if name in one["last"]]
    return f"{np.mean(shares):.1%}" if shares else NONE


def _only(found: Found, seed: int) -> Found:
    return {seed: found[seed]} if seed in found else {}


def _gain(found: Found, below: Found) -> str:
    gain = difference(found, below)
    return NONE if gain is None else f"{gain.mean:+.1f}"


def _per_class(found: Found) -> list[str]:
    return [f"{value:.3f}" for value in np.mean([one.iou for one in found.values()], axis=0)]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _rule(count: int) -> str:
    return "|" + "---|" * count
