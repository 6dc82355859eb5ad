"""A checkpoint of a segmenter that is made in no time, for runs whose maps mean nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import TrainConfig
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.segmenter import build_segmenter


def write_model(path: Path, names: tuple[str, ...] = ("dark", "bright")) -> Path:
    """Write the ``tiny`` architecture with weights of chance, for three bands of uint8 at 2 m."""
    torch.manual_seed(0)
    config = TrainConfig(arch="tiny", window=64)
    bands = Bands(
        indices=(1, 2, 3),
        dtype="uint8",
        mean=(90.0,) * 3,
        std=(60.0,) * 3,
        rgb=(0, 1, 2),
        low=(0.0,) * 3,
        high=(250.0,) * 3,
    )
    card = Card("segmenter", config, Classes.from_names(names), bands, 2.0)
    save_checkpoint(path, build_segmenter(config, 3, len(names)), card)
    return path
