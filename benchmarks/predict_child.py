"""One way to predict, in a process of its own: its time and its memory.

Usage: python benchmarks/predict_child.py JOB

JOB is a ``predict_job.Job`` as JSON. Prints JSON: the seconds of the call and of all its threads on
a core, the peak of resident memory, and what the way has to say; or what is missing.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from predict_job import Job, Prepare
from predict_peers import PEERS


def main() -> None:
    """Prepare, time, print."""
    job = Job.from_json(sys.argv[1])
    peer = PEERS.get(job.way)
    if peer is not None and find_spec(peer.module) is None:
        print(json.dumps({"missing": peer.package}))
        return
    try:
        work = prepare_of(job.way)(job)
    except ImportError as error:
        print(json.dumps({"missing": f"{job.way}: {error}"}))
        return
    start, busy = time.perf_counter(), cpu_seconds()
    found = work()
    spent = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu": round(cpu_seconds() - busy, 2),
        "peak_mb": round(peak_bytes() / 1e6),
    }
    found.pop("finish", lambda: None)()
    print(json.dumps(spent | found))


def prepare_of(way: str) -> Prepare:
    """Return what prepares a way; ``bare`` has nothing to do when torch was imported."""
    if way == "bare":
        return lambda job: dict
    if way in PEERS:
        return PEERS[way].prepare
    # Only now: nothing of rsseg can be imported where other tools live.
    from predict_ways import WAYS

    prepare: Prepare = WAYS[way]
    return prepare


def cpu_seconds() -> float:
    """Return the seconds that this process and its ended children have had a core."""
    times: Any = psutil.Process().cpu_times()
    return sum(times[:4])


def peak_bytes() -> int:
    """Return the most memory that was resident in this process; 0 where only others can see it.

    Not ``getrusage``, which on Linux also knows the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


if __name__ == "__main__":
    main()
