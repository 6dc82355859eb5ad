"""What a child process of the prediction benchmark is asked to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OWN = {"rsseg": "float32", "rsseg-bfloat16": "bfloat16"}
"""Ways to predict with rsseg → what its network computes in."""


@dataclass(frozen=True)
class Job:
    """One way to predict, or one limit, on one raster.

    Args:
        way: its name.
        raster: the GeoTIFF.
        model: the checkpoint; its card lies beside it.
        made: the map to write.
        window: side of the network's windows in pixels.
        overlap: pixels shared by neighbouring windows.
        batch: windows at a time.
        seconds: how long a limit is measured.
        device: where the network runs.
    """

    way: str
    raster: Path
    model: Path
    made: Path
    window: int = 512
    overlap: int = 128
    batch: int = 4
    seconds: float = 20
    device: str = "cpu"

    @property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        return self.window - self.overlap

    def to_json(self) -> str:
        """Return it for a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what ``to_json`` wrote."""
        found = json.loads(text)
        return cls(**found | {name: Path(found[name]) for name in ("raster", "model", "made")})


Work = Callable[[], dict[str, Any]]
"""What is timed. Returns what else there is to say, such as ``input``: pixels that went in; and
under ``finish``, if at all, what is to be called when time is up."""

Prepare = Callable[[Job], Work]
"""Imports and loads what is not timed."""
