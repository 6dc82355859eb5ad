"""Weak supervision measured: pseudo-labels and maps from tags, module by module, and a control.

Usage: python benchmarks/accuracy.py cpu|full OUT [--data-set NAME] [--part choosing|final]

Every row (``accuracy_rows.py``) goes from tags to pseudo-labels to a DeepLabV3+ by rsseg's own
verbs; beside it the same segmenter is trained on the true classes. Scored are pseudo-labels of
training images and maps of other images, whole: mIoU, OA, mF and IoU per class. In the part
``choosing`` a scene-disjoint fifth of DeepGlobe's training chips and Dubai's scene 5 are held back
and scored; settings and the control's learning rate and steps are chosen on them. In the part
``final`` they are learned from as well, pseudo-labels are scored on all training images, and maps
on DeepGlobe's ``val`` and Dubai's scene 4, once.

Needs the folder RSSEG_TEST_DATA. Other data laid out in the same way (``accuracy_data.py``) is
given as ``--folder NAME=PATH``. What was measured is kept in OUT/NAME/results.json: interrupted, it
goes on where it was, inside a unit too. Tables are printed and written to OUT/NAME/table-PART.md,
pictures to OUT/NAME/PART/pictures. Data sets may be measured beside one another, parts may not:
they share a site.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import accuracy_pictures
from accuracy_bench import Bench
from accuracy_cost import cost
from accuracy_data import DataSet, Part, central, chips, data_set, dubai, reduced, thinned
from accuracy_rows import PROTOCOLS, ROWS, TIMED, Protocol, Row, seeds_of, settings_of
from accuracy_tables import Table
from kept import open_results

from rsseg.config import fingerprint
from rsseg.console import Console
from rsseg.nets.device import pick_device
from rsseg.nets.weights import REGISTRY, find

PARTS: tuple[Part, ...] = ("choosing", "final")
Unit = Literal["rows", "labels", "control", "cost", "pictures"]
UNITS: tuple[Unit, ...] = ("rows", "control", "cost", "pictures")
"""What is measured unless told; ``labels`` are rows without their maps."""


def main() -> None:
    """Measure, print."""
    given = arguments()
    shared = Path(os.environ.get("RSSEG_TEST_DATA", "../shared"))
    protocol = PROTOCOLS[given.protocol]
    if given.device:
        protocol = replace(protocol, device=given.device)
    for data in chosen(given, shared / "data"):
        for part in given.part:
            bench = open_bench(data, part, protocol, given.out, shared / "weights")
            measure(bench, given.rows, given.units)
            print(write_tables(bench))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-set", choices=("deepglobe", "dubai"), action="append")
    parser.add_argument(
        "--folder", type=pair, action="append", default=[], help="NAME=PATH, other data"
    )
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rows", type=rows, default=ROWS, help="names, parted by commas")
    parser.add_argument("--units", choices=get_args(Unit), action="append", help="by default all")
    parser.add_argument("--device", help="by default the CPU, for `full` the best there is")
    given = parser.parse_args()
    given.part, given.units = given.part or PARTS, given.units or UNITS
    return given


def pair(text: str) -> tuple[str, Path]:
    """Read NAME=PATH."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def rows(text: str) -> tuple[Row, ...]:
    """Read names of rows, parted by commas."""
    known = {row.name: row for row in ROWS}
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {unknown[0]!r}; they are {', '.join(known)}")
    return tuple(known[name] for name in names)


def chosen(given: argparse.Namespace, data: Path) -> list[DataSet]:
    """Return the data sets that are asked for."""
    names = given.data_set or ([] if given.folder else ["deepglobe", "dubai"])
    if names and not data.is_dir():
        sys.exit(f"no test data at {data}: set RSSEG_TEST_DATA")
    known: dict[str, Callable[[Path], DataSet]] = {
        "deepglobe": partial(chips, "deepglobe"),
        "dubai": dubai,
    }
    return [
        *(known[name](data / name) for name in names),
        *(data_set(name, path) for name, path in given.folder),
    ]


def open_bench(data: DataSet, part: Part, protocol: Protocol, out: Path, weights: Path) -> Bench:
    """Return the bench of a part, its images in the protocol's size.

    Args:
        data: the images as they are.
        part: what is learned and scored on.
        protocol: how large everything is.
        out: folder of all results.
        weights: folder in which SAM's checkpoint is looked for before rsseg's own.
    """
    folder = out / data.name
    folder.mkdir(parents=True, exist_ok=True)
    if data.chips:
        data = reduced(thinned(data, protocol.every), protocol.side, folder / "images")
    elif protocol.largest:
        data = central(data, protocol.largest, folder / "images")
    sam = None
    if protocol.sam:
        beside = weights / REGISTRY[protocol.sam].file
        sam = beside if beside.is_file() else find(protocol.sam)
    device = pick_device(protocol.device)
    return Bench(
        out=folder,
        data=data,
        part=part,
        results=open_results(folder, protocol.name, device),
        device=str(device),
        progress=Console(),
        protocol=protocol,
        sam=sam,
    )


def measure(bench: Bench, rows: Sequence[Row], units: Sequence[Unit]) -> None:
    """Measure what is not measured yet; first the control, for its learning rate is needed."""
    if "control" in units:
        measure_control(bench)
    if "rows" in units or "labels" in units:
        for row in rows:
            for seed in seeds_of(row, bench.protocol, bench.part):
                again = row.map_once and seed != bench.protocol.seeds[0]
                bench.row(row, seed, map_too="rows" in units and not again)
    if "cost" in units:
        measure_cost(bench)
    if "pictures" in units:
        control = bench.chosen_control()
        seed = bench.protocol.seeds[0]
        accuracy_pictures.draw(bench, None if control is None else f"{control.name} {seed}")


def measure_control(bench: Bench) -> None:
    """Measure all candidates on the choosing part; in the end the best of them with all seeds."""
    if bench.part == "choosing":
        for control in bench.protocol.controls:
            bench.control(control, bench.protocol.seeds[0])
        return
    best = bench.chosen_control()
    if best is None:
        sys.exit("the control is chosen on the part `choosing`: measure that first")
    for seed in bench.protocol.seeds:
        bench.control(best, seed)


def measure_cost(bench: Bench) -> None:
    """Measure what labelling costs beside its networks, with SAM and without."""
    for row in TIMED:
        settings = settings_of(row, bench.protocol)
        unit = partial(cost, bench, settings)
        bench.results.need(f"cost {row.name}", unit, fingerprint(*vars(settings).values()))


def write_tables(bench: Bench) -> str:
    """Write the tables of a part, and return them."""
    table = Table(bench.results, bench.data, bench.part, bench.protocol, bench.chosen_control())
    text = "\n".join(table.lines()) + "\n"
    (bench.out / f"table-{bench.part}.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
