"""Run rsseg commands one after the other, showing each; what the examples have in common."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def rsseg(*arguments: str | Path, makes: Path | None = None) -> None:
    """Run one rsseg command; skip it where an earlier run of the example has made its output.

    Args:
        arguments: the command line after ``rsseg``.
        makes: the file or folder that the command makes.
    """
    words = [str(word) for word in arguments]
    print("\n$ rsseg " + " ".join(words), flush=True)
    if makes is not None and makes.exists():
        print(f"(there already: {makes})", flush=True)
        return
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "rsseg", *words], check=True)
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def score(drawn: Path, truth: Path) -> None:
    """Compare a map with the truth; the scores also go into a JSON file beside the map."""
    rsseg("evaluate", drawn, truth, "--json", drawn.with_suffix(".json"), "--overwrite")


def learn_and_map(
    site: Path, outlines: Sequence[Path], raster: Path, truth: Path, out: Path, steps: int
) -> None:
    """Train on a site's pseudo-labels and, as the control, on outlines; map a raster with both.

    Args:
        site: the site, with pseudo-labels.
        outlines: class rasters of its scenes, for the control alone.
        raster: the raster to map, of which the site knows nothing.
        truth: its class raster.
        out: folder for models, maps and scores.
        steps: optimiser steps of each training; enough for a look, on two cores.
    """
    drawn = [word for path in outlines for word in ("--labels", path)]
    for name, options in (("weak", []), ("supervised", drawn)):
        model, found = out / f"{name}.pt", out / f"{name}_{raster.stem}.tif"
        rsseg("train", site, "--out", model, "--steps", str(steps), *options, makes=model)
        rsseg("predict", raster, "--model", model, "--out", found, makes=found)
        score(found, truth)


def folders(arguments: Sequence[str], usage: str) -> tuple[Path, Path]:
    """Return the data folder and the output folder (created) of an example's command line."""
    if len(arguments) != 2:
        sys.exit(usage)
    data, out = (Path(argument) for argument in arguments)
    out.mkdir(parents=True, exist_ok=True)
    return data, out
