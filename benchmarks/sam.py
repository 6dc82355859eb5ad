"""Masks of Segment Anything: rsseg's generator beside segment_anything's own.

Usage: python benchmarks/sam.py OUT [--protocol cpu|full] [--device cpu|cuda] [--tiles score|choose]

Asks both on the same twelve tiles (``sam_tiles.py``) with the same checkpoint and thresholds, one
after the other in one process, in alternating order. Measures time, prompts and memory; how well
the masks cover the tile and meet true outlines (``sam_metrics.py``); the pseudo-labels that come
out (``sam_labels.py``); and which masks are the same. Needs the folder RSSEG_TEST_DATA. What was
measured is kept in OUT/results.json: interrupted, it goes on where it was. The tables are printed
and written to OUT/table.md, pictures to OUT/pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sam_labels
import sam_profile
import sam_tables
from kept import machine
from sam_bench import Bench
from sam_generators import Way, state, timed
from sam_tiles import BenchTile, Dataset, datasets, limited

from rsseg.config import ClassifierConfig
from rsseg.console import Console
from rsseg.nets.device import pick_device

PARTS = ("times", "quality", "labels", "memory", "pictures")


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Args:
        rounds: how often each way is taken on each tile.
        ways: generators and points.
        memory: those of which peak memory is taken.
        device: where networks run, unless told.
    """

    rounds: int
    ways: str
    memory: str
    device: str


POINTS = "adaptive, adaptive 16, adaptive 32, adaptive 64, adaptive 128, adaptive 512"
PROTOCOLS = {
    "cpu": Protocol(
        1,
        f"official 32, official 16, official 8, grid 32, {POINTS}",
        "official 8, official 16, official 32, grid 8, grid 16, grid 32, grid 64, "
        "adaptive 64, adaptive",
        "cpu",
    ),
    "full": Protocol(
        5,
        f"official 32, official 16, official 8, grid 32, grid 16, {POINTS}, adaptive 1024",
        "official 8, official 16, official 32, grid 8, grid 16, grid 32, grid 64, "
        "adaptive 64, adaptive, adaptive 1024",
        "auto",
    ),
}


def main() -> None:
    """Measure, print."""
    given = arguments()
    shared = Path(os.environ.get("RSSEG_TEST_DATA", "../shared"))
    if not (shared / "data").is_dir():
        sys.exit(f"no test data at {shared}: set RSSEG_TEST_DATA")
    chosen = limited(
        datasets(shared / "data", choosing=given.tiles == "choose"), given.datasets, given.limit
    )
    protocol = PROTOCOLS[given.protocol]
    device = given.device or protocol.device
    ways = given.ways or parse_ways(protocol.ways)
    checkpoint = given.checkpoint or shared / "weights" / "mobile_sam.pt"
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, checkpoint, pick_device(device), heavy=given.vit_h)
    remember(bench, given)
    if "times" in given.parts:
        measure_times(bench, chosen, ways, protocol.rounds)
    if "quality" in given.parts:
        measure_quality(bench, chosen, ways)
    if "labels" in given.parts:
        measure_labels(bench, chosen, ways, given.steps)
    if "memory" in given.parts:
        measure_memory(bench, chosen[0].tiles[0], given.ways or parse_ways(protocol.memory))
    if "pictures" in given.parts:
        draw(bench, every_tile(chosen), ways)
    if given.profile:
        measure_profile(bench, every_tile(chosen), ways)
    table = "\n".join(sam_tables.tables(bench.results, chosen, ways)) + "\n"
    (given.out / "table.md").write_text(table, encoding="utf-8")
    print(table)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="cpu")
    parser.add_argument("--device", help="by default the CPU, for `full` the best there is")
    parser.add_argument("--tiles", choices=("score", "choose"), default="score")
    parser.add_argument("--checkpoint", type=Path, help="of SAM; MobileSAM by default")
    parser.add_argument("--vit-h", action="store_true", help="add a ViT-H's time to the encoder's")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--parts", type=words, default=PARTS, help=", ".join(PARTS))
    parser.add_argument("--datasets", type=words, default=(), help="only these")
    parser.add_argument("--limit", type=int, default=99, help="most tiles of a dataset")
    parser.add_argument(
        "--ways", type=parse_ways, help="other generators: 'official 8, grid 8, adaptive 64'"
    )
    parser.add_argument("--steps", type=int, default=ClassifierConfig().min_steps)
    return parser.parse_args()


def parse_ways(text: str) -> list[Way]:
    """Read generators parted by commas."""
    try:
        return [Way.parse(word) for word in words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def words(text: str) -> tuple[str, ...]:
    """Read words parted by commas."""
    return tuple(word.strip() for word in text.split(","))


def remember(bench: Bench, given: argparse.Namespace) -> None:
    """Keep what decides the results; results of anything else are of no use here."""
    about = {
        "tiles": given.tiles,
        "checkpoint": bench.checkpoint.name,
        "vit_h": given.vit_h,
        "device": str(bench.device),
        "steps": given.steps,
    }
    bench.results.need("about", lambda: about | machine(bench.device))
    if any(bench.results.units["about"][name] != value for name, value in about.items()):
        sys.exit(f"{bench.out}: has results of other settings; give a new folder")


def every_tile(chosen: Sequence[Dataset]) -> list[BenchTile]:
    """Return the tiles of all datasets."""
    return [tile for dataset in chosen for tile in dataset.tiles]


def measure_times(
    bench: Bench, chosen: Sequence[Dataset], ways: Sequence[Way], rounds: int
) -> None:
    """Time all ways on all tiles, and the encoder beside each; every second tile backwards."""
    tiles = every_tile(chosen)
    missing = [
        (name, unit, made)
        for name, unit, made in timings(bench, tiles, ways, rounds)
        if not bench.results.has(name, made)
    ]
    if missing:
        bench.warm_up(ways, tiles[0])
    for name, unit, made in missing:
        bench.results.need(name, unit, made)


Unit = Callable[[], dict[str, Any]]


def timings(
    bench: Bench, tiles: Sequence[BenchTile], ways: Sequence[Way], rounds: int
) -> Iterator[tuple[str, Unit, str | None]]:
    """Yield name, unit and state of everything that is timed."""
    usual = Way("adaptive")
    for turn in range(rounds):
        for place, tile in enumerate(tiles):
            yield f"encoder {tile.name} {turn}", bench.encoder, None
            for way in ways if (place + turn) % 2 == 0 else ways[::-1]:
                unit = partial(bench.time, tile, way)
                yield f"time {tile.name} {way.key} {turn}", unit, state(way)
        if usual in ways:
            together = partial(bench.together, tiles, usual)
            yield f"together {len(tiles)} {turn}", together, state(usual)


def measure_quality(bench: Bench, chosen: Sequence[Dataset], ways: Sequence[Way]) -> None:
    """Measure the masks of all ways, and match those of equal grids."""
    for tile in every_tile(chosen):
        for way in ways:
            unit = partial(bench.quality, tile, way)
            bench.results.need(f"quality {tile.name} {way.key}", unit, state(way))
            official = Way("official", way.count)
            if way.kind == "grid" and official in ways:
                unit = partial(bench.match, tile, official, way)
                bench.results.need(f"match {tile.name} {way.count}", unit, state(way))


def measure_labels(
    bench: Bench, chosen: Sequence[Dataset], ways: Sequence[Way], steps: int
) -> None:
    """Make each dataset's site, and the pseudo-labels of all ways on its tiles."""
    sites = bench.out / "sites"
    sites.mkdir(exist_ok=True)
    for dataset in chosen:
        site = sites / f"{dataset.name.lower()}.zarr"

        def make(dataset: Dataset = dataset, site: Path = site) -> dict[str, Any]:
            device, progress = str(bench.device), Console()
            call = partial(sam_labels.make_site, dataset, site, steps, device, progress)
            return {"seconds": timed(bench.device, call)[1]}

        bench.results.need(f"site {dataset.name}", make)
        for tile in dataset.tiles:
            for way in (None, *ways):
                unit = partial(bench.labels, tile, way, site)
                name, made = ("crf", None) if way is None else (way.key, state(way))
                bench.results.need(f"labels {tile.name} {name}", unit, made)


def measure_memory(bench: Bench, tile: BenchTile, ways: Sequence[Way]) -> None:
    """Measure the peak memory of each way on one tile."""
    for way in ways:
        bench.results.need(f"memory {way.key}", partial(bench.memory, tile, way), state(way))


def draw(bench: Bench, tiles: Sequence[BenchTile], ways: Sequence[Way]) -> None:
    """Draw the tiles with the masks of the first way and of rsseg's own."""
    ours = Way("adaptive") if Way("adaptive") in ways else ways[-1]
    for tile in tiles:
        bench.picture(tile, (ways[0], ours))


def measure_profile(bench: Bench, tiles: Sequence[BenchTile], ways: Sequence[Way]) -> None:
    """Say where each way's time goes, on the middle tile."""
    image = tiles[len(tiles) // 2].read_image()
    for way in ways:
        unit = partial(sam_profile.profile, bench.net, bench.device, way, image)
        bench.results.need(f"profile {way.key}", unit, state(way))


if __name__ == "__main__":
    main()
