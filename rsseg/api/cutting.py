"""How rasters are cut into windows and joined again, by the checkpoint and what the user asks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rsseg.config import TrainConfig
from rsseg.errors import InputError
from rsseg.nets.checkpoint import Card
from rsseg.nets.device import default_batch_size, fast_dtype
from rsseg.nets.segmenter import PRECISIONS, TTA
from rsseg.ops.blend import BLENDS

WINDOW_MULTIPLE = 32
"""The encoders halve the window five times."""


@dataclass(frozen=True)
class Cut:
    """How rasters are cut for the network, seen by it, and joined again.

    Args:
        window: side of the windows in pixels.
        overlap: share of the window.
        batch_size: windows at a time.
        gsd: metres per pixel to resample to, or None.
        blend: how windows pass into each other, a key of ``BLENDS``.
        tta: how often the network looks at a window, a key of ``TTA``.
        precision: what the network computes in, of ``PRECISIONS``.
    """

    window: int
    overlap: float
    batch_size: int
    gsd: float | None
    blend: str
    tta: str
    precision: str

    @classmethod
    def of(
        cls,
        card: Card,
        device: torch.device,
        window: int | None,
        overlap: float | None,
        gsd: float | None,
        batch_size: int | None,
        blend: str,
        tta: str,
        precision: str,
    ) -> Cut:
        """Fill in what the checkpoint and the device say.

        Raises:
            InputError: an option is out of range.
        """
        config = card.config
        assert isinstance(config, TrainConfig)
        side = config.window if window is None else window
        if side < WINDOW_MULTIPLE or side % WINDOW_MULTIPLE:
            near = max(1, round(side / WINDOW_MULTIPLE)) * WINDOW_MULTIPLE
            raise InputError(f"window {side}: must be a multiple of {WINDOW_MULTIPLE}; use {near}")
        share = config.overlap if overlap is None else overlap
        if not 0 <= share <= 0.75:
            raise InputError(f"overlap {share} is out of range: give a share from 0 to 0.75")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}: give 1 or more")
        _check_choice("blend", blend, BLENDS)
        _check_choice("tta", tta, TTA)
        _check_choice("precision", precision, PRECISIONS)
        if precision == "bfloat16" and fast_dtype(device) != torch.bfloat16:
            raise InputError(
                f"precision bfloat16: {device.type} has no instructions for it, so it would be "
                "slower; use float32"
            )
        usual = max(1, default_batch_size(device) * 256**2 // side**2)
        return cls(side, share, batch_size or usual, gsd, blend, tta, precision)


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} {value!r} is unknown: choose {' or '.join(choices)}")
