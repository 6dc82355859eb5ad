"""Dense CRF: the two engines side by side, how far they agree and what a tile costs.

Usage: python benchmarks/crf.py OUT [--rounds N]

Windows of Dubai scene 1 under RSSEG_TEST_DATA; the scores are its classes, blurred, with noise, so
no site is needed. In every round the engines take turns on the same window in the same process.
Times are the least of the rounds, per window: with one thread; and with two cores, in two processes
of one thread each (as a run shares its work out) and, which only torch can, in two threads.
What was measured is kept in OUT/results.json: interrupted, it goes on where it was. Tables are
printed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from kept import Results
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from rsseg.config import CrfConfig
from rsseg.ops.crf import dense_crf

WINDOWS = 3
"""Windows of each size."""

ENGINES = ("pydensecrf", "torch")
SIDES = (256, 448, 512)
CLASSES = (2, 5)
SETTINGS: dict[str, dict[str, float]] = {
    "default": {},
    "wide": {"bilateral_sxy": 80.0},
    "narrow": {"bilateral_sxy": 10.0, "bilateral_srgb": 4.0, "gaussian_sxy": 1.0},
    "soft": {"bilateral_sxy": 67.0, "bilateral_srgb": 3.0, "bilateral_compat": 4.0},
}
"""What is compared; only the default is timed."""

Scores = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Scores (K, S, S) and image (S, S, 3) of a window."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    data = Path(os.environ.get("RSSEG_TEST_DATA", "../shared")) / "data/dubai"
    if not data.exists():
        sys.exit(f"{data}: no such folder; set RSSEG_TEST_DATA")
    given.out.mkdir(parents=True, exist_ok=True)
    results = Results(given.out / "results.json")
    torch.set_num_threads(1)
    for side, count in product(SIDES, CLASSES):
        shown = [window(data, side, count, number) for number in range(WINDOWS)]
        for name in SETTINGS:
            results.need(f"agree {name} {side} {count}", lambda n=name, w=shown: agreement(w, n))
        results.need(f"one {side} {count}", lambda w=shown: alone(w, given.rounds))
    for side, count in product(SIDES, CLASSES):
        shown = [window(data, side, count, number) for number in range(WINDOWS)]
        results.need(f"two {side} {count}", lambda w=shown: in_pairs(w, given.rounds))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    for table in (agreements(results), times(results)):
        print("\n".join(table) + "\n")


def window(data: Path, side: int, count: int, number: int) -> Scores:
    """Return a window on the diagonal of the scene: blurred classes with noise, and the image.

    Two classes are buildings and everything else; pixels without a class have equal scores.
    """
    with (
        rasterio.open(data / "scene1.tif") as scene,
        rasterio.open(data / "scene1_classes.tif") as classes,
    ):
        across, down = (
            round((length - side) * (number + 1) / (WINDOWS + 1))
            for length in (scene.width, scene.height)
        )
        place = Window(across, down, side, side)
        image = np.ascontiguousarray(scene.read(window=place).transpose(1, 2, 0))
        labels = classes.read(1, window=place)
    if count == 2:
        labels = np.where((labels > 0) & (labels < 255), np.uint8(1), labels)
    hot = (labels == np.arange(count)[:, None, None]).astype(np.float32)
    random = np.random.default_rng(number)
    noise = gaussian_filter(random.normal(size=hot.shape), (0, 6, 6))
    scores = gaussian_filter(hot, (0, 8, 8)) + 0.2 * noise / noise.std()
    return np.clip(scores, 1e-4, None).astype(np.float32), image


def posterior(shown: Scores, engine: str, **changes: float) -> NDArray[np.float32]:
    """Run an engine with the default settings but for some."""
    return dense_crf(*shown, **asdict(CrfConfig()) | changes | {"engine": engine})


def agreement(windows: list[Scores], name: str) -> dict[str, Any]:
    """Return how far the engines agree: pixels of one class; differences of the posteriors."""
    same, apart = [], []
    for shown in windows:
        one, other = (posterior(shown, engine, **SETTINGS[name]) for engine in ENGINES)
        same.append((one.argmax(axis=0) == other.argmax(axis=0)).mean())
        apart.append(np.abs(one - other))
    return {
        "pixels": float(np.mean(same)),
        "least": float(np.min(same)),
        "mean": float(np.mean(apart)),
        "most": float(np.max(apart)),
    }


def alone(windows: list[Scores], rounds: int) -> dict[str, Any]:
    """Return seconds and CPU seconds per window of each engine, with one thread."""
    spent: dict[str, list[float]] = {key: [] for e in ENGINES for key in (e, f"{e} cpu")}
    for _, engine in product(range(rounds), ENGINES):
        clocks = time.perf_counter(), time.process_time()
        for shown in windows:
            posterior(shown, engine)
        spent[engine].append(time.perf_counter() - clocks[0])
        spent[f"{engine} cpu"].append(time.process_time() - clocks[1])
    return {key: min(found) / len(windows) for key, found in spent.items()}


def in_pairs(windows: list[Scores], rounds: int) -> dict[str, Any]:
    """Return seconds per window of each engine on two cores."""
    spent: dict[str, list[float]] = {engine: [] for engine in (*ENGINES, "threads")}
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for _, engine in product(range(rounds + 1), ENGINES):  # the first loads the libraries
            start = time.perf_counter()
            list(pool.map(_discard, windows * 2, [engine] * 2 * len(windows)))
            spent[engine].append((time.perf_counter() - start) / 2)
    torch.set_num_threads(2)
    for _ in range(rounds):
        start = time.perf_counter()
        for shown in windows:
            posterior(shown, "torch")
        spent["threads"].append(time.perf_counter() - start)
    torch.set_num_threads(1)
    return {engine: min(found) / len(windows) for engine, found in spent.items()}


def _discard(shown: Scores, engine: str) -> None:
    posterior(shown, engine)


def agreements(results: Results) -> Iterator[str]:
    """Yield the table of agreement."""
    yield "| settings | side | classes | same class, % | least window | mean apart | most apart |"
    yield "|---" * 7 + "|"
    for name, side, count in product(SETTINGS, SIDES, CLASSES):
        found = results.units[f"agree {name} {side} {count}"]
        yield (
            f"| {name} | {side} | {count} | {100 * found['pixels']:.3f} | "
            f"{100 * found['least']:.3f} | {found['mean']:.1e} | {found['most']:.1e} |"
        )


def times(results: Results) -> Iterator[str]:
    """Yield the table of milliseconds per window, and torch's over pydensecrf's."""
    yield (
        "| side | classes | one thread: pydensecrf | torch | ratio | ratio of CPU time | "
        "two processes: pydensecrf | torch | ratio | torch, two threads | load |"
    )
    yield "|---" * 11 + "|"
    for side, count in product(SIDES, CLASSES):
        one, two = (results.units[f"{way} {side} {count}"] for way in ("one", "two"))
        cells = []
        for found in (one, two):
            reference, own = (found[engine] for engine in ENGINES)
            cells += [f"{1000 * reference:.0f}", f"{1000 * own:.0f}", f"{own / reference:.2f}"]
        cells.insert(3, f"{one['torch cpu'] / one['pydensecrf cpu']:.2f}")
        cells += [f"{1000 * two['threads']:.0f}", f"{one['load']}, {two['load']}"]
        yield f"| {side} | {count} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
