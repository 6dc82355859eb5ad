"""Peak memory of one generator on one image, above that of the loaded network.

Usage: python benchmarks/sam_memory.py CHECKPOINT DEVICE WAY IMAGE.npy [heavy]

A process of its own, for memory that was given back is not always the system's again. Prints JSON:
megabytes resident with the network loaded, the most above that, and the device's most above its.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import torch
from sam_generators import Way, generate, load

POLL = 0.005
"""Seconds between two looks."""


class Peak:
    """The most memory that this process holds while the block runs, bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(POLL):
            self.bytes = max(self.bytes, self._process.memory_info().rss)


def main() -> None:
    """Load, watch, print."""
    checkpoint, name, way, image = sys.argv[1:5]
    device = torch.device(name)
    net = load(Path(checkpoint), device, heavy="heavy" in sys.argv[5:])
    pixels = np.load(image)
    loaded, on_device = psutil.Process().memory_info().rss, 0
    if device.type == "cuda":
        on_device = torch.cuda.memory_allocated(device)
    with Peak() as peak:
        generate(net, Way.parse(way), pixels)
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    found = {
        "loaded_mb": round(loaded / 1e6),
        "above_mb": round((peak.bytes - loaded) / 1e6),
        "device_above_mb": round((most - on_device) / 1e6),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
