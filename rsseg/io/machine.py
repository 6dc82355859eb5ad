"""The machine: how much memory there is to work with."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows what containers and batch systems allow a process."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Args:
        total: what this process may use at the most.
        free: what no one uses at the moment.
        own: what this process uses already, Python's libraries above all.
    """

    total: int
    free: int
    own: int


def memory() -> Memory:
    """Look at the machine's memory, and at what a container or a batch system allows of it."""
    machine = psutil.virtual_memory()
    limit = _cgroup_limit(Path("/proc/self/cgroup"), CGROUPS)
    total = machine.total if limit is None else min(machine.total, limit)
    return Memory(total, min(machine.available, total), psutil.Process().memory_info().rss)


def give_back_freed() -> None:
    """Have memory that is free within this process go back to the system, between two works.

    glibc keeps it, in pieces that what comes next seldom fits into. Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _cgroup_limit(membership: Path, root: Path) -> int | None:
    """Return the least limit in bytes of the groups a process is in; None where there is none."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return None
    limits: list[int] = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top, name = (root, "memory.max") if number == "0" else (root / "memory", _OLD_LIMIT)
        inside = PurePosixPath(group.lstrip("/"))
        # In a container the own group is shown as the root; whatever is above limits it, too.
        for folder in (inside, *inside.parents):
            with suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int((top / folder / name).read_text()))
    return min(limits, default=None)


_OLD_LIMIT = "memory.limit_in_bytes"
