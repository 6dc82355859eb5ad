"""Maps of rasters of any size: rsseg beside other tools and beside what nothing can beat.

Usage: python benchmarks/predict.py OUT [--sizes 5000,10000] [--models pixel,deeplab]
    [--tools rsseg,geoai,rastervision,geoinference,terratorch] [--units times,agreement,dask,seams]

Every tool maps the same rasters with the same networks, each time in a process of its own, by its
public call (``predict_peers.py``); rsseg by ``rsseg.api.predict``, in bfloat16 as well where the
device has it. The limits are the network with
the argmax of its scores on batches that lie in memory, and GDAL's copy of the raster. ``pixel`` is
one 1 x 1 convolution, so that what is not the network shows; ``deeplab`` is DeepLabV3+ with a
ResNet-18 of random but fixed weights; ``trained`` is the checkpoint of --model. Rates of the
network count all pixels that go into it. What was measured is kept in OUT/results.json:
interrupted, it goes on where it was; tools that are missing are named. The tables are printed and
written to OUT/table.md.

``dask`` measures, on the smallest raster, by how much two workers of one thread each are faster
than one thread, and by how much two networks alone are that run beside each other.

``seams`` measures, for the checkpoint of --model on the orthophoto of --ortho, how much
probabilities step at the edges of windows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import predict_tables
import psutil
from kept import machine
from predict_bench import Bench
from predict_models import MODELS, TRAINED
from predict_peers import PEERS
from predict_runs import Settings

from rsseg.nets.device import pick_device

UNITS = ("times", "agreement", "dask", "seams")
TOOLS = ("rsseg", *dict.fromkeys(peer.tool for peer in PEERS.values()))
SPARED = 0.8
"""Share of the free memory that a child may take."""


def main() -> None:
    """Measure, print."""
    given = arguments()
    sizes: list[int] = sorted(given.sizes)
    bench = Bench(given.out, settings_of(given))
    if {"times", "agreement", "dask"} & set(given.units):
        remember(bench)
    if "times" in given.units:
        ways = [way for way, peer in PEERS.items() if peer.tool in given.tools]
        bench.warm_up(given.models)
        bench.times(sizes, given.models, ways, keep=sizes[0])
    if "agreement" in given.units:
        bench.agreement(sizes[0], given.models)
    if "dask" in given.units:
        bench.dask(sizes[0], "deeplab")
    if "seams" in given.units and given.model is not None and given.ortho is not None:
        bench.seams(given.model, given.ortho)
    lines = predict_tables.tables(bench.results, sizes, given.models, bench.troubles)
    table = "\n".join(lines) + "\n"
    (given.out / "table.md").write_text(table, encoding="utf-8")
    print(table)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=numbers, default=[5000, 10_000, 20_000, 30_000])
    parser.add_argument("--models", type=choice(*MODELS, TRAINED), default=("pixel", "deeplab"))
    parser.add_argument("--tools", type=choice(*TOOLS), default=TOOLS)
    parser.add_argument("--units", type=choice(*UNITS), default=UNITS)
    parser.add_argument(
        "--ortho", type=Path, help="orthophoto, 3 bands of bytes; else one is drawn"
    )
    parser.add_argument("--model", type=Path, help="a trained segmenter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="windows at a time, of other tools")
    parser.add_argument("--threads", type=int, default=0, help="of each child; torch's by default")
    parser.add_argument(
        "--python",
        type=python,
        action="append",
        default=[],
        metavar="[TOOL=]PATH",
        help="the interpreter where a tool, or all other tools, are installed",
    )
    parser.add_argument("--memory", type=float, metavar="GB", help="at which a child is ended")
    parser.add_argument("--seconds", type=float, default=1200, help="after which a child is ended")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Read whole numbers parted by commas."""
    return [int(word) for word in text.split(",")]


def choice(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """Return what reads words parted by commas, all of them among these."""

    def words(text: str) -> tuple[str, ...]:
        found = tuple(word.strip() for word in text.split(","))
        wrong = [word for word in found if word not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose of {', '.join(allowed)}")
        return found

    return words


def python(text: str) -> tuple[str, str]:
    """Read an interpreter and the tool it is for; it is for all if none is named."""
    tool, _, path = text.rpartition("=")
    if tool not in ("", *TOOLS):
        raise argparse.ArgumentTypeError(f"{tool}: choose of {', '.join(TOOLS)}")
    return tool, path


def settings_of(given: argparse.Namespace) -> Settings:
    """Return what decides the results."""
    free = psutil.virtual_memory().available
    return Settings(
        device=str(pick_device(given.device)),
        batch=given.batch,
        threads=given.threads,
        ortho=given.ortho,
        trained=given.model if TRAINED in given.models else None,
        pythons=dict(given.python),
        memory=SPARED * free if given.memory is None else given.memory * 1e9,
        seconds=given.seconds,
    )


def remember(bench: Bench) -> None:
    """Keep what decides the results; results of anything else are of no use here."""
    about = bench.settings.about()
    bench.results.need("about", lambda: about | machine(pick_device(bench.settings.device)))
    if any(bench.results.units["about"][name] != value for name, value in about.items()):
        sys.exit(f"{bench.out}: has results of other settings; give a new folder")


if __name__ == "__main__":
    main()
