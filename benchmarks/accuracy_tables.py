"""Markdown tables of the accuracy benchmark, from the units that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from accuracy_data import DataSet, Part
from accuracy_rows import FINAL, FLOOR, ROWS, TIMED, Control, Protocol, Row, seeds_of
from kept import Results

from rsseg.ops.confusion import Scores, scores

NONE = "–"


class Table:
    """The units of one part of a data set, as tables.

    Args:
        results: what was measured.
        data: the data set.
        part: which part.
        protocol: gives the seeds.
        control: the candidate that stands beside the rows; None where none was chosen yet.
    """

    def __init__(
        self,
        results: Results,
        data: DataSet,
        part: Part,
        protocol: Protocol,
        control: Control | None,
    ) -> None:
        self._results = results
        self._data = data
        self._part = part
        self._protocol = protocol
        self._control = control

    def lines(self) -> Iterator[str]:
        """Yield the lines of all tables for which there are results."""
        yield f"## {self._data.name}, {self._part}, protocol {self._protocol.name}"
        yield ""
        about = self._results.units.get("about", {})
        yield ", ".join(f"{name} {value}" for name, value in about.items() if name != "load")
        counts = [
            f"{what} {len(images)}"
            for what, images in (
                ("learned on", self._data.learned(self._part)),
                ("pseudo-labels scored on", self._data.labelled(self._part)),
                ("maps scored on", self._data.mapped(self._part)),
            )
        ]
        yield "images: " + ", ".join(counts)
        yield ""
        yield from self._scores("labels", "pseudo-labels")
        yield from self._scores("map", "map")
        yield from self._controls()
        yield from self._cost()
        yield from self._verdict()

    def found(self, kind: str, name: str, seeds: Sequence[int]) -> dict[int, Scores]:
        """Return the scores of a row or candidate, by those of the seeds that were measured."""
        units = {seed: f"{self._part} {kind} {name} {seed}" for seed in seeds}
        return {
            seed: scores(np.array(self._results.units[unit]["matrix"]))
            for seed, unit in units.items()
            if unit in self._results.units
        }

    def _of_row(self, kind: str, row: Row) -> dict[int, Scores]:
        return self.found(kind, row.name, seeds_of(row, self._protocol))

    def _of_control(self) -> dict[int, Scores]:
        if self._control is None:
            return {}
        return self.found("map", self._control.name, self._protocol.seeds)

    def _scores(self, kind: str, title: str) -> Iterator[str]:
        """The rows' scores, mean ± standard deviation over seeds, and what each module gained."""
        rows = [(row, found) for row in ROWS if (found := self._of_row(kind, row))]
        control = self._of_control() if kind == "map" else {}
        if not rows and not control:
            return
        names = self._data.classes.names
        share = " of the control's mIoU |" if kind == "map" else ""
        yield f"| {title} | seeds | mIoU | gain |{share} OA | mF | {' | '.join(names)} |"
        yield "|" + "---|" * (6 + bool(share) + len(names))
        for row, found in rows:
            gain = self._gain(kind, row, found)
            ratio = [_ratio(found, control)] if kind == "map" else []
            yield _line([row.name, len(found), spread(found, "miou"), gain, *ratio], found)
        if control and self._control:
            name = f"{self._control.name.rsplit(' ', 2)[0]} (lr {self._control.lr:g}, "
            name += f"{self._control.steps} steps)"
            yield _line([name, len(control), spread(control, "miou"), "", "1"], control)
        yield ""

    def _gain(self, kind: str, row: Row, found: dict[int, Scores]) -> str:
        """Points of mIoU over the row that this one stands on, in the seeds of both."""
        below = [one for one in ROWS if one.name == row.on]
        before = self._of_row(kind, below[0]) if below else {}
        common = found.keys() & before.keys()
        if not common:
            return NONE
        return f"{100 * np.mean([found[s].miou - before[s].miou for s in common]):+.1f}"

    def _controls(self) -> Iterator[str]:
        """All candidates for the control: whether it is at its plateau and best learning rate."""
        rows = [
            (control, found)
            for control in self._protocol.controls
            if (found := self.found("map", control.name, self._protocol.seeds[:1]))
        ]
        if self._part != "choosing" or not rows:
            return
        yield "| control: learning rate | steps | mIoU | OA | mF |"
        yield "|---|---|---|---|---|"
        for control, found in rows:
            cells = [spread(found, what) for what in ("miou", "oa", "mf1")]
            yield f"| {control.lr:g} | {control.steps} | {' | '.join(cells)} |"
        yield ""

    def _cost(self) -> Iterator[str]:
        for row in TIMED:
            unit = self._results.units.get(f"cost {row.name}")
            if unit is None:
                continue
            parts = ", ".join(f"{name} {value:.2f} s" for name, value in unit["parts"].items())
            yield f"{row.name}, {unit['tiles']} tiles: {unit['seconds']:.2f} s, of which {parts};"
            yield f"{unit['ratio']:.2f} x the networks' forwards (to be at most 1.3)."
            yield ""

    def _verdict(self) -> Iterator[str]:
        """The two numbers that carry thresholds, with what they come from."""
        final, floor = (self._of_row("labels", row) for row in (FINAL, FLOOR))
        if final and floor:
            points = 100 * (_mean(final, "miou") - _mean(floor, "miou"))
            way = f"from {FLOOR.name} to {FINAL.name}"
            yield f"pseudo-labels: {points:+.1f} points of mIoU {way}"
        weak, control = self._of_row("map", FINAL), self._of_control()
        if weak and control:
            yield (
                f"map: {FINAL.name} {_mean(weak, 'miou'):.3f} / "
                f"supervised {_mean(control, 'miou'):.3f} = {_ratio(weak, control)} of mIoU"
            )
        yield ""


def _line(cells: Sequence[object], found: dict[int, Scores]) -> str:
    per_class = np.mean([one.iou for one in found.values()], axis=0)
    ends = [spread(found, "oa"), spread(found, "mf1"), *(f"{value:.3f}" for value in per_class)]
    return f"| {' | '.join(map(str, [*cells, *ends]))} |"


def _mean(found: dict[int, Scores], what: str) -> float:
    return float(np.mean([getattr(one, what) for one in found.values()]))


def spread(found: Mapping[int, Scores], what: str) -> str:
    """Return mean ± standard deviation over seeds of a score."""
    values = [getattr(one, what) for one in found.values()]
    text = f"{np.mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.3f}"


def _ratio(weak: dict[int, Scores], control: dict[int, Scores]) -> str:
    if not weak or not control:
        return NONE
    return f"{_mean(weak, 'miou') / _mean(control, 'miou'):.3f}"
