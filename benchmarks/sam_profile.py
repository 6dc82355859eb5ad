"""Where the time of a generator goes.

Functions are wrapped by timers while one image is asked; a timer stops while an inner one runs, so
that the parts add up. On a GPU each waits for the device, which costs a little by itself.
"""

from __future__ import annotations

import importlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from numpy.typing import NDArray
from sam_generators import OFFICIAL, Way, generate, synchronise

REST = "everything else"

_AMG = "segment_anything.automatic_mask_generator"
_PROMPTING = "rsseg.nets.prompting"
_PROPOSALS = "rsseg.nets.proposals"

OFFICIAL_PARTS = {
    "image encoder": ("net:sam.image_encoder.forward",),
    "prompt encoder and mask decoder": (
        "net:sam.prompt_encoder.forward",
        "net:sam.mask_decoder.forward",
    ),
    "upsampling": ("net:sam.postprocess_masks",),
    "stability, boxes, thresholds": (
        f"{_AMG}:calculate_stability_score",
        f"{_AMG}:batched_mask_to_box",
        f"{_AMG}:MaskData.filter",
    ),
    "RLE": (f"{_AMG}:mask_to_rle_pytorch", f"{_AMG}:rle_to_mask", f"{_AMG}:area_from_rle"),
    "NMS": (f"{_AMG}:batched_nms",),
}
OWN_PARTS: Mapping[str, tuple[str, ...]] = {
    "image encoder": ("net:embed",),
    "resizing, per-image part of the decoder": (f"{_PROMPTING}:Prompter.look",),
    "where to ask": (f"{_PROPOSALS}:_innermost", f"{_PROPOSALS}:grid_points"),
    "prompt encoder and decoder": (f"{_PROMPTING}:Prompter.ask",),
    "drawing masks": (f"{_PROMPTING}:Prompter.logits",),
    "upsampling, stability": (f"{_PROMPTING}:Prompter.drawn", f"{_PROPOSALS}:stability"),
    "coverage": (f"{_PROPOSALS}:_cover",),
    "NMS": (f"{_PROPOSALS}:_Search.best",),
}
"""Part → functions, as ``MODULE:NAME.NAME``; ``net`` is the network."""


class Timers:
    """Seconds of each part, without those of the parts inside it.

    Args:
        device: that is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        self._book()
        self._running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def _book(self) -> None:
        """Book the time since the last change to the innermost part that runs."""
        synchronise(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def wrapped(self, call: Any, name: str) -> Any:
        """Return a function that is timed as a part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*arguments, **options)

        return timed


def profile(net: Any, device: torch.device, way: Way, image: NDArray[Any]) -> dict[str, Any]:
    """Return seconds and calls of the parts of one way on one image."""
    timers = Timers(device)
    parts = OFFICIAL_PARTS if way.kind == OFFICIAL else OWN_PARTS
    patches = [
        patch.object(owner, name, timers.wrapped(getattr(owner, name), part))
        for part, places in parts.items()
        for owner, name in (_find(place, net) for place in places)
    ]
    for one in patches:
        one.start()
    try:
        with timers.part(REST):
            generate(net, way, image)
    finally:
        for one in patches:
            one.stop()
    return {
        name: {"seconds": timers.seconds[name], "calls": timers.calls[name]}
        for name in (*parts, REST)
    }


def _find(place: str, net: Any) -> tuple[Any, str]:
    """Return the owner of a function and its name there."""
    module, _, path = place.partition(":")
    owner: Any = net if module == "net" else importlib.import_module(module)
    *inner, name = path.split(".")
    for step in inner:
        owner = getattr(owner, step)
    return owner, name
