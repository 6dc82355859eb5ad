"""Polygons of class maps: time and memory beside the usual way, and whether they are right.

Usage: python benchmarks/vectorize.py OUT [--protocol cpu|full]

Draws class maps of several sizes, makes their polygons with rsseg and with
``rasterio.features.shapes``, in turns and each in a process of its own, and checks the polygons of
the largest maps that can be checked and of the maps under RSSEG_TEST_DATA. What was measured is
kept in OUT/results.json: interrupted, it goes on where it was. The tables are printed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import class_maps
import polygon_checks
import psutil
import rasterio
from kept import Results

from rsseg.api import vectorize

HERE = Path(__file__).parent
KINDS = ("mosaic", "islands")
WARM_UP = 512
"""Side of the map with which numba's cache is filled, pixels."""

SIMPLIFY, LEAST = "1", "10"
"""Tolerance in metres and least area in square metres of what is timed: 2 and 40 pixels."""

TOLERANCES = (0, 1, 3, 10)
"""What is checked, pixels."""

STRIPS = (97, 1024, 4096)
"""Heights of strips compared with the whole map, rows; the first cuts small maps as well."""

POLL = 0.01
"""Seconds between two looks at the memory of a process."""


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Args:
        rounds: side of a map in pixels → how often each way is taken.
        to_file: the largest side with which the usual way goes to a file.
        checked: side of the drawn maps that are checked.
    """

    rounds: dict[int, int]
    to_file: int
    checked: int


PROTOCOLS = {
    "cpu": Protocol({3000: 3, 6000: 3, 12_000: 3, 24_000: 2}, to_file=12_000, checked=12_000),
    "full": Protocol(
        {3000: 9, 6000: 9, 12_000: 7, 24_000: 5, 48_000: 3}, to_file=24_000, checked=24_000
    ),
}

WAYS = {
    "shapes": "`shapes`, counted",
    "usual": "`shapes` to a file",
    "rsseg": "`rsseg vectorize`",
    "simplify": f"`--simplify {SIMPLIFY}`",
    "min-area": f"`--min-area {LEAST}`",
}


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="cpu")
    given = parser.parse_args()
    out: Path = given.out
    protocol = PROTOCOLS[given.protocol]
    (out / "maps").mkdir(parents=True, exist_ok=True)
    classes = "".join(f'[[classes]]\nname = "class {k}"\n' for k in range(class_maps.CLASSES))
    (out / "classes.toml").write_text(classes, encoding="utf-8")
    results = Results(out / "results.json")
    for way in ("rsseg", "simplify", "min-area"):
        for state in ("cold", "warm"):
            results.need(f"compile {way} {state}", lambda w=way: run(out, w, KINDS[0], WARM_UP))
    for kind, size, turn, way in turns(protocol):
        results.need(
            f"time {kind} {size} {way} {turn}",
            lambda w=way, k=kind, n=size: run(out, w, k, n),
        )
    for name, path in to_check(out, protocol):
        results.need(f"strips {name}", lambda p=path: compare_strips(p, out))
        for tolerance in TOLERANCES:
            results.need(
                f"check {name} {tolerance}",
                lambda n=name, p=path, t=tolerance: check(p, out, t, windows="islands" not in n),
            )
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, load {loads(results)}")
    print(f"compiling, once, s: {compiling(results)}\n")
    spent = times(results, protocol, "seconds"), times(results, protocol, "cpu")
    for table in (*spent, memory(results, protocol), checks(results)):
        print("\n".join(table) + "\n")


def drawn(out: Path, kind: str, size: int) -> Path:
    """Return a drawn map, drawing it if it is not there yet."""
    path = out / "maps" / f"{kind}_{size}.tif"
    if not path.exists():
        class_maps.draw(path, kind, size)
    return path


def turns(protocol: Protocol) -> Iterator[tuple[str, int, int, str]]:
    """Yield kind, size, round and way of everything that is timed; the ways take turns."""
    every = product(range(max(protocol.rounds.values())), KINDS, protocol.rounds, WAYS)
    for turn, kind, size, way in every:
        if turn < protocol.rounds[size] and (way != "usual" or size <= protocol.to_file):
            yield kind, size, turn, way


def run(out: Path, way: str, kind: str, size: int) -> dict[str, Any]:
    """Run one way on one map, in a process of its own, from its start to the closed file.

    Returns:
        Seconds; seconds of all its threads on a core, which say more where others use the cores;
        peak resident memory.
    """
    source, made = drawn(out, kind, size), out / "made.gpkg"
    usual = [str(HERE / "usual_way.py"), str(source)]
    options = {"simplify": ["--simplify", SIMPLIFY], "min-area": ["--min-area", LEAST]}
    own = ["-m", "rsseg", "vectorize", str(source), str(made), "--legend"]
    own += [str(out / "classes.toml"), "--overwrite", "--quiet", *options.get(way, [])]
    made.unlink(missing_ok=True)
    words = {"shapes": usual, "usual": [*usual, str(made)]}.get(way, own)
    # A cache of the benchmark's own, so that what is compiled when is known; and not the settings
    # for GDAL that importing rsseg has made here.
    settings = os.environ | {"NUMBA_CACHE_DIR": str(out / "numba")}
    settings.pop("GDAL_CACHEMAX", None)
    start, peak, busy = time.perf_counter(), 0, 0.0
    with psutil.Popen([sys.executable, *words], env=settings, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
                busy = sum(process.cpu_times()[:2])
            except psutil.Error:
                break
            time.sleep(POLL)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{' '.join(words)}: failed")
    return {"seconds": round(seconds, 2), "cpu": round(busy, 2), "peak_mb": round(peak / 1e6)}


def to_check(out: Path, protocol: Protocol) -> Iterator[tuple[str, Path]]:
    """Yield the maps whose polygons are checked, and their names."""
    data = Path(os.environ.get("RSSEG_TEST_DATA", "../shared")) / "data"
    if data.exists():
        yield from class_maps.real(data, out / "maps").items()
    else:
        print(f"no test data at {data}: only drawn maps are checked")
    for kind in KINDS:
        yield f"{kind} {protocol.checked}", drawn(out, kind, protocol.checked)


def compare_strips(path: Path, out: Path) -> dict[str, Any]:
    """Make the polygons of a map with strips of several heights; say whether they are the same."""
    with rasterio.open(path) as dataset:
        heights = (*STRIPS, dataset.height)
    digests = []
    for rows in heights:
        made = out / "strips.gpkg"
        vectorize(path, made, strip_rows=rows, overwrite=True)
        digests.append(polygon_checks.digest(made))
    return {"same": len(set(digests)) == 1, "rows": heights, "sha256": digests}


def check(path: Path, out: Path, tolerance: float, *, windows: bool) -> dict[str, Any]:
    """Make the polygons of a map with a tolerance in pixels, and check them."""
    from rsseg.io.classmap import ClassRaster
    from rsseg.io.ground import row_areas

    with ClassRaster(path) as raster:
        areas = row_areas(raster.grid)
    made = out / "check.gpkg"
    pixel = float(areas[len(areas) // 2]) ** 0.5
    vectorize(path, made, simplify=tolerance * pixel, overwrite=True)
    return polygon_checks.check(path, made, windows=windows).as_dict()


def loads(results: Results) -> str:
    """Return the range of the load average while times were taken."""
    found = [unit["load"] for unit in results.of("time ")]
    return f"{min(found)} to {max(found)}"


def compiling(results: Results) -> str:
    """Return the seconds that a first run of each way takes longer than the second."""
    found = [
        results.units[f"compile {way} cold"]["cpu"] - results.units[f"compile {way} warm"]["cpu"]
        for way in ("rsseg", "simplify", "min-area")
    ]
    return ", ".join(f"{seconds:.0f}" for seconds in found)


def times(results: Results, protocol: Protocol, what: str) -> Iterator[str]:
    """Yield a table of times: medians, and the time of rsseg over that of ``shapes`` alone."""
    yield f"| {what} | " + " | ".join(WAYS.values()) + " | `rsseg` : `shapes` |"
    yield "|---" * (len(WAYS) + 2) + "|"
    for kind in KINDS:
        for size in protocol.rounds:
            found = {way: median(results, kind, size, way, what) for way in WAYS}
            cells = ["–" if value is None else f"{value:.1f}" for value in found.values()]
            ratio = (found["rsseg"] or 0) / (found["shapes"] or 1)
            yield f"| {kind}, {size:,}² | {' | '.join(cells)} | {ratio:.2f} |"


def memory(results: Results, protocol: Protocol) -> Iterator[str]:
    """Yield the table of peak resident memory."""
    yield "| peak MB | " + " | ".join(WAYS.values()) + " |"
    yield "|---" * (len(WAYS) + 1) + "|"
    for kind in KINDS:
        for size in protocol.rounds:
            found = [median(results, kind, size, way, "peak_mb") for way in WAYS]
            cells = ["–" if value is None else f"{value:,.0f}" for value in found]
            yield f"| {kind}, {size:,}² | {' | '.join(cells)} |"


def median(results: Results, kind: str, size: int, way: str, what: str) -> float | None:
    """Return the median of one way on one map, None where it was not taken."""
    found = [unit[what] for unit in results.of(f"time {kind} {size} {way} ")]
    return statistics.median(found) if found else None


def checks(results: Results) -> Iterator[str]:
    """Yield the table of checks."""
    yield (
        "| map | strips | tolerance, px | polygons | points | invalid | area, relative | "
        "windows | not a coverage | loose edges |"
    )
    yield "|---" * 10 + "|"
    for title, unit in results.units.items():
        if not title.startswith("check "):
            continue
        name, tolerance = title.removeprefix("check ").rsplit(" ", 1)
        same = "same" if results.units[f"strips {name}"]["same"] else "DIFFER"
        yield (
            f"| {name} | {same} | {tolerance} | {unit['polygons']:,} | {unit['points']:,} | "
            f"{unit['invalid']} | {unit['area']:.0e} | {unit['windows'] or '–'} | "
            f"{unit['bad_windows'] if unit['windows'] else '–'} | {unit['loose_edges']} |"
        )


if __name__ == "__main__":
    main()
