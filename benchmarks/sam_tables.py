"""Markdown tables of the SAM benchmark, from the units that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from kept import Results
from sam_generators import GRID, OFFICIAL, Way
from sam_tiles import BenchTile, Dataset

from rsseg.ops.confusion import scores

NONE = "–"


def tables(results: Results, chosen: Sequence[Dataset], ways: Sequence[Way]) -> Iterator[str]:
    """Yield the lines of all tables for which there are results."""
    tiles = [tile for dataset in chosen for tile in dataset.tiles]
    yield from _heading(results, tiles)
    yield from _speed(results, tiles, ways)
    yield from _quality(results, tiles, ways)
    yield from _labels(results, chosen, ways)
    yield from _match(results, chosen, ways)
    yield from _memory(results)
    yield from _profile(results, ways)


def _heading(results: Results, tiles: Sequence[BenchTile]) -> Iterator[str]:
    about = results.units["about"]
    loads = [unit["load"] for unit in results.of("time ")]
    alone, fast = (_encoder(results, tiles, what) for what in ("seconds", "fast"))
    yield ", ".join(f"{name} {value}" for name, value in about.items() if name != "load")
    yield f"{len(tiles)} tiles; load {min(loads, default=0)} to {max(loads, default=0)}; "
    yield f"image encoder alone {alone:.3f} s in single precision, {fast:.3f} s as rsseg runs it"
    yield ""


def _speed(results: Results, tiles: Sequence[BenchTile], ways: Sequence[Way]) -> Iterator[str]:
    """Seconds per tile, and how often the official generator's they go into."""
    if not results.of("time "):
        return
    yield (
        "| generator | prompts | masks | s per tile, median (least to most) | "
        "official 32 : this, median (least) | image encoder forwards | in rsseg's precision |"
    )
    yield "|---|---|---|---|---|---|---|"
    alone, fast = (_encoder(results, tiles, what) for what in ("seconds", "fast"))
    for way in ways:
        spent = np.array([_seconds(results, tile, way) for tile in tiles])
        reference = np.array([_seconds(results, tile, Way(OFFICIAL, 32)) for tile in tiles])
        ratio = reference / spent
        counts = [results.units.get(f"time {tile.name} {way.key} 0", {}) for tile in tiles]
        prompts, masks = (
            np.mean([count.get(what, np.nan) for count in counts]) for what in ("prompts", "masks")
        )
        faster = NONE if np.isnan(ratio).all() else f"{np.median(ratio):.1f} ({ratio.min():.1f})"
        middle = np.median(spent)
        yield (
            f"| {way.name} | {prompts:.0f} | {masks:.0f} | {middle:.2f} "
            f"({spent.min():.2f} to {spent.max():.2f}) | {faster} | {middle / alone:.1f} | "
            f"{middle / fast:.1f} |"
        )
    for unit in results.of(f"together {len(tiles)} 0"):
        times = [one["seconds"] for one in results.of(f"together {len(tiles)} ")]
        yield (
            f"| adaptive, {unit['tiles']} tiles in one call | | | {np.median(times):.2f} | | "
            f"{np.median(times) / alone:.1f} | {np.median(times) / fast:.1f} |"
        )
    yield ""


def _quality(results: Results, tiles: Sequence[BenchTile], ways: Sequence[Way]) -> Iterator[str]:
    """How masks cover tiles and meet true outlines: means over tiles."""
    if not results.of("quality "):
        return
    yield "| generator | covered | boundary recall | ASA | segments |"
    yield "|---|---|---|---|---|"
    for way in ways:
        units = [results.units.get(f"quality {tile.name} {way.key}", {}) for tile in tiles]
        covered, recall, asa, segments = (
            np.mean([unit.get(what, np.nan) for unit in units])
            for what in ("covered", "recall", "asa", "segments")
        )
        yield f"| {way.name} | {covered:.3f} | {recall:.3f} | {asa:.4f} | {segments:.0f} |"
    yield ""


def _labels(results: Results, chosen: Sequence[Dataset], ways: Sequence[Way]) -> Iterator[str]:
    """The mIoU of pseudo-labels: pooled over the tiles of a dataset, then the mean of datasets."""
    if not results.of("labels "):
        return
    names = [dataset.name for dataset in chosen]
    yield f"| mIoU of pseudo-labels | {' | '.join(names)} | mean | mean, masks thinned |"
    yield "|---" * (len(names) + 3) + "|"
    for name in ("crf", *(way.key for way in ways)):
        own, thin = (
            [_pooled(results, dataset, name, which) for dataset in chosen]
            for which in ("matrix", "thinned")
        )
        cells = " | ".join(f"{value:.3f}" for value in own)
        shown = "CRF alone" if name == "crf" else name.replace("-", " ")
        yield f"| {shown} | {cells} | {np.mean(own):.4f} | {np.mean(thin):.4f} |"
    yield ""


def _match(results: Results, chosen: Sequence[Dataset], ways: Sequence[Way]) -> Iterator[str]:
    """Which masks of the two generators are the same."""
    counts = [way.count for way in ways if way.kind == GRID and Way(OFFICIAL, way.count) in ways]
    if not results.of("match "):
        return
    yield "| points | tiles | official masks | of them ours | our masks | of them official |"
    yield "|---|---|---|---|---|---|"
    for count in counts:
        for name, tiles in [
            *((dataset.name, dataset.tiles) for dataset in chosen),
            ("all", tuple(tile for dataset in chosen for tile in dataset.tiles)),
        ]:
            units = [results.units[f"match {tile.name} {count}"] for tile in tiles]
            masks, same = (np.sum([unit[what] for unit in units], axis=0) for what in _MATCH)
            shares = same / np.maximum(masks, 1)
            yield (
                f"| {count} x {count} | {name} | {masks[0]} | {shares[0]:.2%} | {masks[1]} | "
                f"{shares[1]:.2%} |"
            )
    yield ""


_MATCH = "masks", "matched"


def _memory(results: Results) -> Iterator[str]:
    """Peak memory above that of the loaded network."""
    if not results.of("memory "):
        return
    yield "| generator | peak MB above the loaded network | on the device |"
    yield "|---|---|---|"
    for name, unit in results.units.items():
        if name.startswith("memory "):
            device = unit["device_above_mb"]
            shown = f"{device:,}" if device else NONE
            way = name.removeprefix("memory ").replace("-", " ")
            yield f"| {way} | {unit['above_mb']:,} | {shown} |"
    yield ""


def _profile(results: Results, ways: Sequence[Way]) -> Iterator[str]:
    """Where the time goes."""
    for way in ways:
        unit = results.units.get(f"profile {way.key}")
        if unit is None:
            continue
        parts = {name: part for name, part in unit.items() if isinstance(part, dict)}
        total = sum(part["seconds"] for part in parts.values())
        yield f"| {way.name}, {total:.2f} s | s | share | calls |"
        yield "|---|---|---|---|"
        for name, part in parts.items():
            share = part["seconds"] / total
            yield f"| {name} | {part['seconds']:.3f} | {share:.0%} | {part['calls']} |"
        yield ""


def _seconds(results: Results, tile: BenchTile, way: Way) -> float:
    """Return the median seconds of a way on a tile; nan where it was not taken."""
    found = [unit["seconds"] for unit in results.of(f"time {tile.name} {way.key} ")]
    return float(np.median(found)) if found else float("nan")


def _encoder(results: Results, tiles: Sequence[BenchTile], what: str) -> float:
    """Return the median seconds of the image encoder alone: ``seconds``, or rsseg's ``fast``."""
    found = [unit[what] for tile in tiles for unit in results.of(f"encoder {tile.name} ")]
    return float(np.median(found)) if found else float("nan")


def _pooled(results: Results, dataset: Dataset, name: str, which: str) -> float:
    """Return the mIoU of the tiles of a dataset together; nan where one was not labelled."""
    units = [results.units.get(f"labels {tile.name} {name}") for tile in dataset.tiles]
    matrices = [unit[which] for unit in units if unit is not None]
    if len(matrices) < len(dataset.tiles):
        return float("nan")
    return scores(np.sum(matrices, axis=0)).miou
