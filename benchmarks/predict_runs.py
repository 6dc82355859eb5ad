"""Child processes of the prediction benchmark: with what settings, for how long, in what memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from predict_job import Job
from predict_peers import PEERS

HERE = Path(__file__).parent
POLL = 0.02
"""Seconds between two looks at a child's memory."""

WINDOW, OVERLAP = 512, 128


@dataclass(frozen=True)
class Settings:
    """What decides the results, besides the machine.

    Args:
        device: where networks run.
        batch: windows at a time; rsseg decides for itself.
        threads: of each child; 0 leaves them to torch.
        ortho: the orthophoto the rasters are made of; a drawn one if None.
        trained: the checkpoint of ``trained`` and of the seams.
        pythons: the interpreter that has a tool, where it is not this one.
        memory: bytes at which a child is ended.
        seconds: after which a child is ended.
    """

    device: str = "cpu"
    batch: int = 4
    threads: int = 0
    ortho: Path | None = None
    trained: Path | None = None
    pythons: dict[str, str] = field(default_factory=dict)
    memory: float = 16e9
    seconds: float = 1200

    def about(self) -> dict[str, Any]:
        """Return what the times and maps of one folder must have in common."""
        names = {"ortho": self.ortho, "trained": self.trained}
        return {
            **{"device": self.device, "batch": self.batch, "threads_asked": self.threads},
            **{"window": WINDOW, "overlap": OVERLAP},
            **{name: None if path is None else path.name for name, path in names.items()},
        }


def run(job: Job, settings: Settings, folder: Path, beside: str = "") -> dict[str, Any]:
    """Run one way in a process of its own.

    Args:
        job: the way.
        settings: what decides the results.
        folder: of the benchmark.
        beside: tells children apart that run at the same time.

    Returns:
        What the child printed, with ``whole``, its seconds from beginning to end; or ``failed``,
        why it was ended; or ``error``, what it ended with.
    """
    tool = PEERS[job.way].tool if job.way in PEERS else ""
    python = settings.pythons.get(tool, settings.pythons.get("", sys.executable))
    words = [python if tool else sys.executable, str(HERE / "predict_child.py"), job.to_json()]
    said, complaints = folder / f"child{beside}.out", folder / f"child{beside}.err"
    with said.open("w") as out, complaints.open("w") as err:
        start = time.perf_counter()
        with psutil.Popen(words, env=environment(settings, folder), stdout=out, stderr=err) as it:
            peak, failed = watched(it, settings)
        whole = time.perf_counter() - start
    if failed is not None:
        return {"failed": failed, "peak_mb": round(peak / 1e6), "whole": round(whole, 2)}
    if it.returncode:
        lines = complaints.read_text(errors="replace").strip().splitlines()
        return {"error": f"ended with {it.returncode}: {lines[-1] if lines else ''}"}
    found = dict(json.loads(said.read_text().splitlines()[-1]))
    if "missing" not in found:
        found["peak_mb"] = max(found["peak_mb"], round(peak / 1e6))
        found["whole"] = round(whole, 2)
    return found


def environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Return a child's: numba's cache is the benchmark's own, GDAL's settings are not rsseg's."""
    found = os.environ | {"NUMBA_CACHE_DIR": str(folder / "numba")}
    found.pop("GDAL_CACHEMAX", None)
    if settings.threads:
        found |= {"OMP_NUM_THREADS": str(settings.threads)}
    return found


def watched(process: psutil.Popen, settings: Settings) -> tuple[int, str | None]:
    """Wait for a process; return the peak of its resident memory, and why it was ended if it was.

    It is ended where it takes more memory or time than it may.
    """
    start, peak = time.perf_counter(), 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        if peak > settings.memory:
            process.kill()
            return peak, f"more than {settings.memory / 1e9:.1f} GB"
        if time.perf_counter() - start > settings.seconds:
            process.kill()
            return peak, f"more than {settings.seconds:.0f} s"
        time.sleep(POLL)
    process.wait()
    return peak, None


def clear(made: Path) -> None:
    """Remove a map with all that lies beside it; rsseg would go on where it was broken off."""
    for path in (*made.parent.glob(f"{made.stem}.*"), made.with_suffix("")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
