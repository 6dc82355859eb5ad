"""Few labelled chips and many without: supervised, semi-supervised, and with a simulated VLM.

Usage: python benchmarks/semi.py cpu|full OUT [--part choosing|final] [--units NAME]

Of DeepGlobe's training chips 1 %, 5 % and 10 % are labelled, whole chips. Rows (``semi_rows.py``):
supervised on these alone; the control, FixMatch with an EMA teacher; the same with pseudo-labels
purified by the opinions of a good and of a useless vision-language model (VLM), with all seeds;
with the paper's hard filter and with VLMs in between, at 5 % with one seed. Maps of other images
are scored whole: mIoU, OA and IoU per class.

THE VLM IS A SIMULATION (``semi_vlm.py``): boxes around true components of training chips, with
mistakes at rates fixed beforehand. It shows how the gain depends on a VLM's quality, not how good
a VLM is. It exists in this benchmark alone and never sees the truth of an image that is scored.

In the part ``choosing`` a scene-disjoint fifth of the training chips is held back and scored;
learning rate, steps, gate and EMA are chosen on it: the baseline's at each ratio, one for all
semi-supervised rows by the control at 5 %. In the part ``final`` this fifth is among the chips to
learn on, and DeepGlobe's ``val`` is scored, once.

Needs the folder RSSEG_TEST_DATA; ``--data`` takes other chips laid out alike
(``accuracy_data.py``). What was measured is kept in OUT/NAME/results.json: interrupted, it goes on
where it was, inside a training too. Tables are printed and written to OUT/NAME/table-PART.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from accuracy_data import DataSet, Part, chips, reduced, thinned
from kept import open_results
from semi_bench import SemiBench
from semi_rows import (
    BASELINE,
    CHOICE,
    CONTROL,
    PROTOCOLS,
    RATIOS,
    Run,
    SemiProtocol,
    candidate_runs,
    places,
)
from semi_tables import Table
from semi_vlm import QUALITIES

from rsseg.console import Console
from rsseg.nets.device import pick_device

PARTS: tuple[Part, ...] = ("choosing", "final")
Unit = Literal["candidates", "opinions", "rows"]
UNITS: tuple[Unit, ...] = get_args(Unit)


def main() -> None:
    """Measure, print."""
    given = arguments()
    shared = Path(os.environ.get("RSSEG_TEST_DATA", "../shared"))
    folder = given.data or shared / "data" / "deepglobe"
    if not folder.is_dir():
        sys.exit(f"no chips at {folder}: set RSSEG_TEST_DATA, or give --data")
    protocol = PROTOCOLS[given.protocol]
    if given.device:
        protocol = replace(protocol, base=replace(protocol.base, device=given.device))
    for part in given.part or PARTS:
        bench = open_bench(chips(folder.name, folder), part, protocol, given.out)
        measure(bench, given.units or UNITS)
        print(write_tables(bench))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="by default both")
    parser.add_argument("--units", choices=UNITS, action="append", help="by default all")
    parser.add_argument("--data", type=Path, help="folder of chips; by default DeepGlobe's")
    parser.add_argument("--device", help="by default the CPU, for `full` the best there is")
    return parser.parse_args()


def open_bench(data: DataSet, part: Part, protocol: SemiProtocol, out: Path) -> SemiBench:
    """Return the bench of a part, its chips in the protocol's number and size.

    Args:
        data: the chips as they are.
        part: what is learned and scored on.
        protocol: how large everything is.
        out: folder of all results.
    """
    folder = out / data.name
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device(protocol.base.device)
    return SemiBench(
        out=folder,
        data=reduced(thinned(data, protocol.base.every), protocol.base.side, folder / "images"),
        part=part,
        results=open_results(folder, protocol.name, device),
        device=str(device),
        progress=Console(),
        protocol=protocol,
    )


def measure(bench: SemiBench, units: Sequence[Unit]) -> None:
    """Measure what is not measured yet."""
    first = bench.protocol.base.seeds[0]
    if "candidates" in units and bench.part == "choosing":
        for row, ratio in (*((BASELINE, ratio) for ratio in RATIOS), (CONTROL, CHOICE)):
            for run in candidate_runs(row, ratio, bench.protocol):
                bench.run(run)
    if "opinions" in units:
        for quality in QUALITIES:
            bench.opinions(quality, first)
    if "rows" in units:
        for row, ratio, seed in places(bench.part, bench.protocol):
            chosen = bench.chosen(row, ratio)
            if chosen is None:
                sys.exit("settings are chosen on the part `choosing`: measure its candidates first")
            bench.run(Run(row, ratio, chosen.setting, seed))


def write_tables(bench: SemiBench) -> str:
    """Write the tables of a part, and return them."""
    text = "\n".join(Table(bench).lines()) + "\n"
    (bench.out / f"table-{bench.part}.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
