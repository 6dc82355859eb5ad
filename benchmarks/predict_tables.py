"""Markdown tables of the prediction benchmark, from the units that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from kept import Results
from predict_job import OWN
from predict_peers import PEERS
from predict_seams import KINDS

NONE = "–"
SHOWN = {
    **{way: f"**rsseg**, {precision}" for way, precision in OWN.items()},
    **{way: f"{peer.tool} {peer.call}" for way, peer in PEERS.items()},
}


def tables(
    results: Results, sizes: Sequence[int], models: Sequence[str], troubles: Mapping[str, str]
) -> Iterator[str]:
    """Yield the lines of all tables for which there are results.

    Args:
        results: what was measured.
        sizes: sides of the rasters, pixels.
        models: their names.
        troubles: the ways that could not be taken, and why.
    """
    yield from _heading(results)
    for model in models:
        yield from _speed(results, model, sizes, troubles)
        yield from _scaling(results, model, sizes)
    yield from _limits(results, sizes, models)
    yield from _agreement(results)
    yield from _dask(results)
    yield from _seams(results)


def output_rate(unit: Mapping[str, Any], size: int) -> float:
    """Return the map's pixels per second, millions."""
    return float(size**2 / unit["seconds"] / 1e6)


def input_rate(unit: Mapping[str, Any]) -> float:
    """Return the pixels that went into the network per second, millions; overlaps count again."""
    return float(unit["input"] / unit["seconds"] / 1e6)


def timed(results: Results, model: str, size: int, way: str) -> list[dict[str, Any]]:
    """Return the units of a way that came to an end, by turn."""
    return [unit for unit in results.of(f"time {model} {size} {way} ") if "failed" not in unit]


def fastest_peer(results: Results, model: str, size: int) -> float | None:
    """Return the output rate of the fastest other tool, None where none was measured."""
    found = [timed(results, model, size, way) for way in PEERS]
    rates = [median(output_rate(unit, size) for unit in units) for units in found if units]
    return max(rates, default=None)


def of_limit(results: Results, model: str, size: int, way: str) -> float | None:
    """Return the input rate over that of the network alone: the median of the turns.

    Each turn has its own limit, taken at its side, so that a change of the machine meets both.
    """
    limits = timed(results, model, size, "forward")
    units = timed(results, model, size, way)
    shares = [input_rate(u) / limit["best"] for u, limit in zip(units, limits, strict=False)]
    return median(shares) if shares else None


def _heading(results: Results) -> Iterator[str]:
    about = results.units.get("about", {})
    yield ", ".join(f"{name} {value}" for name, value in about.items() if name != "load")
    loads = [unit["load"] for unit in results.of("time ")]
    yield f"load {min(loads, default=0)} to {max(loads, default=0)}"
    for unit in results.of("bare"):
        yield f"the interpreter with torch imported: {unit['peak_mb']:,} MB"
    yield ""


def _speed(
    results: Results, model: str, sizes: Sequence[int], troubles: Mapping[str, str]
) -> Iterator[str]:
    """Yield the rates of all tools with one model, beside the limit and the fastest of them."""
    yield f"Model `{model}`"
    yield ""
    yield (
        "| size | tool | s | output MPix/s | input MPix/s | input : forward | "
        "output : fastest other | core s | peak MB | above torch alone |"
    )
    yield "|---" * 10 + "|"
    for size in sizes:
        for way in SHOWN:
            row = _row(results, model, size, way)
            if row is None and way in troubles:
                row = f"{_trouble(way, troubles[way])}{' |' * 8}"
            if row is not None:
                yield f"| {size:,}² | {SHOWN[way]} | {row}"
    yield ""


def _trouble(way: str, why: str) -> str:
    missing = way in PEERS and why == PEERS[way].package
    return f"not installed: `pip install {why}`" if missing else why


def _row(results: Results, model: str, size: int, way: str) -> str | None:
    """Return the cells of one tool from the third on; None where nothing was measured."""
    units = timed(results, model, size, way)
    if not units:
        failed = [unit["failed"] for unit in results.of(f"time {model} {size} {way} ")]
        return f"{failed[0]}{' |' * 8}" if failed else None
    rate, best = median(output_rate(u, size) for u in units), fastest_peer(results, model, size)
    bare = [unit["peak_mb"] for unit in results.of("bare")]
    peak = max(unit["peak_mb"] for unit in units)
    cells = (
        f"{median(u['seconds'] for u in units):.1f}",
        f"{rate:.2f}",
        f"{median(input_rate(u) for u in units):.2f}",
        _number(of_limit(results, model, size, way)),
        _number(None if best is None else rate / best),
        f"{median(u['cpu'] for u in units):.1f}",
        f"{peak:,}",
        f"{peak - bare[0]:,}" if bare else NONE,
    )
    return " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _scaling(results: Results, model: str, sizes: Sequence[int]) -> Iterator[str]:
    """Yield what a pixel costs rsseg on small and on large rasters."""
    found = {size: timed(results, model, size, "rsseg") for size in sizes}
    rows = {
        size: (
            median(unit["seconds"] for unit in units) / size**2 * 1e9,
            max(unit["peak_mb"] for unit in units),
        )
        for size, units in found.items()
        if units
    }
    if len(rows) < 2:
        return
    first = rows[min(rows)]
    yield f"| rsseg, `{model}` | ns per pixel | : smallest | peak MB | : smallest |"
    yield "|---|---|---|---|---|"
    for size, (pace, peak) in rows.items():
        yield (
            f"| {size:,}² | {pace:.1f} | {pace / first[0]:.3f} | {peak:,} | {peak / first[1]:.3f} |"
        )
    yield ""


def _limits(results: Results, sizes: Sequence[int], models: Sequence[str]) -> Iterator[str]:
    """Yield the rates of the networks alone, and of a copy."""
    yield "| limit | MPix/s, median (least to most) | without argmax | best with |"
    yield "|---|---|---|---|"
    for model in models:
        units = [unit for size in sizes for unit in timed(results, model, size, "forward")]
        if units:
            rates, alone = ([unit[what] for unit in units] for what in ("best", "alone"))
            form = max(units[0]["mpix"], key=units[0]["mpix"].get)
            yield f"| forward, `{model}` | {_range(rates)} | {median(alone):.2f} | batch {form} |"
    for size in sizes:
        copies = [unit for model in models for unit in timed(results, model, size, "copy")]
        if copies:
            yield f"| copy, {size:,}² | {_range([output_rate(u, size) for u in copies])} | | |"
    yield ""


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _agreement(results: Results) -> Iterator[str]:
    """Yield the share of pixels that are as in the map by the book."""
    found = {name: unit for name, unit in results.units.items() if name.startswith("agreement ")}
    if not found:
        return
    yield "| model | size | tool | pixels as in the plain single-precision map |"
    yield "|---|---|---|---|"
    for name, unit in found.items():
        _, model, size, way = name.split()
        yield f"| `{model}` | {int(size):,}² | {SHOWN[way]} | {unit['share']:.4%} |"
    yield ""


def _dask(results: Results) -> Iterator[str]:
    """Yield what a second worker brings, beside what a second network alone does."""
    found = results.of("dask ")
    if len(found) < 4:
        return
    serial, dask, alone, beside = found
    own = serial["seconds"] / dask["seconds"]
    limit = beside["best"] / alone["best"]
    yield "| one thread, s | two Dask workers, s | speed-up | of two networks alone | ratio |"
    yield "|---|---|---|---|---|"
    yield (
        f"| {serial['seconds']:.1f} | {dask['seconds']:.1f} | {own:.2f} | {limit:.2f} | "
        f"{own / limit:.2f} |"
    )
    yield ""


def _seams(results: Results) -> Iterator[str]:
    """Yield how much probabilities step at the edges of windows, beside 8 pixels away."""
    found = {name: unit for name, unit in results.units.items() if name.startswith("seams")}
    if not found:
        return
    yield f"| blend | {' | '.join((*KINDS, 'blocks'))} |"
    yield "|---" * (len(KINDS) + 2) + "|"
    for name, unit in found.items():
        cells = [
            NONE
            if unit[kind]["ratio"] is None
            else f"{unit[kind]['ratio']:.3f} ± {unit[kind]['error']:.3f} ({unit[kind]['lines']})"
            for kind in (*KINDS, "blocks")
        ]
        yield f"| {name.removeprefix('seams ')}, {unit['state']} | {' | '.join(cells)} |"
    yield ""
