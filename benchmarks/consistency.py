"""How much a map depends on settings that should not matter.

Usage: python benchmarks/consistency.py MODEL RASTER OUT

Predicts RASTER with MODEL (a checkpoint of ``rsseg train``) under several settings and prints on
how many pixels each map agrees with the first: block and worker settings must not change a byte,
batch sizes nothing but rounding; other windows show how far the network sees.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from rsseg.api import predict
from rsseg.nets.checkpoint import Checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "64 rows a block, no reader threads": {"block_rows": 64, "workers": 0},
    "512 rows a block, 4 reader threads": {"block_rows": 512, "workers": 4},
    "batch size 1": {"batch_size": 1},
    "batch size 3": {"batch_size": 3},
    "window 256": {"window": 256},
    "window 512": {"window": 512},
    "window 1024": {"window": 1024},
}


def main() -> None:
    """Run all variants."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, raster, out = (Path(argument) for argument in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    config = Checkpoint(model, "segmenter").card.config
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config}")
    reference: np.ndarray | None = None
    print("| setting | bytes equal | pixels equal |\n|---|---|---|")
    for number, (name, options) in enumerate(VARIANTS.items()):
        path = out / f"map{number}.tif"
        predict([raster], model, path, overwrite=True, **options)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with rasterio.open(path) as dataset:
            labels = dataset.read(1)
        if reference is None:
            reference, first = labels, digest
        share = float((labels == reference).mean())
        print(f"| {name} | {'yes' if digest == first else 'no'} | {share:.6%} |", flush=True)


if __name__ == "__main__":
    main()
