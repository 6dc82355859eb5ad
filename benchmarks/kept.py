"""Results of a benchmark, kept so that it can go on where it was interrupted; and its machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch

from rsseg import __version__


class Results:
    """What was measured, in a file that is written anew after every unit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.units: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.units = json.loads(path.read_text(encoding="utf-8"))

    def has(self, name: str, state: str | None = None) -> bool:
        """Whether a unit was measured in this state."""
        return name in self.units and self.units[name].get("state") == state

    def need(self, name: str, unit: Callable[[], dict[str, Any]], state: str | None = None) -> None:
        """Measure a unit, if that has not been done yet.

        Args:
            name: of the unit.
            unit: measures it.
            state: of what is measured, where that can change while other results stay good.
        """
        if self.has(name, state):
            return
        found = unit() | ({} if state is None else {"state": state})
        self.units[name] = found | {"load": round(psutil.getloadavg()[0], 1)}
        print(name, self.units[name], flush=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.units, indent=1), encoding="utf-8")
        part.replace(self._path)

    def of(self, prefix: str) -> list[dict[str, Any]]:
        """Return the units whose names begin with this."""
        return [unit for name, unit in self.units.items() if name.startswith(prefix)]


def open_results(folder: Path, protocol: str, device: torch.device) -> Results:
    """Return the results of a folder; exit where they are of another protocol or device."""
    results = Results(folder / "results.json")
    about = {"protocol": protocol, "device": str(device)}
    results.need("about", lambda: about | machine(device))
    if any(results.units["about"][name] != value for name, value in about.items()):
        sys.exit(f"{folder}: has results of other settings; give a new folder")
    return results


def machine(device: torch.device) -> dict[str, Any]:
    """Return what ran where and when."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rsseg": __version__,
        "date": date.today().isoformat(),
    }
