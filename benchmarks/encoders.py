"""Which encoder the segmenter should have by default: time and accuracy, side by side.

Usage: python benchmarks/encoders.py DEMO OUT [ENCODER[=WEIGHTS] ...]

DEMO is a folder that ``rsseg demo`` made. Each encoder is trained on the demo's pseudo-labels with
the same steps, and its map is compared with the exact truth. WEIGHTS is a file of ImageNet weights;
without it, those at hand are taken, else none.
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from rsseg.api import evaluate, predict, train
from rsseg.demo import TRAIN


def main() -> None:
    """Train, predict and score with every encoder."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| encoder | training, s | prediction, s | mIoU | OA |\n|---|---|---|---|---|")
    for given in sys.argv[3:]:
        encoder, _, weights = given.partition("=")
        config = replace(TRAIN, encoder=encoder, weights=weights or "auto")
        model, drawn = out / f"{encoder}.pt", out / f"{encoder}.tif"
        times = [time.monotonic()]
        train(demo / "site.zarr", model, config=config, overwrite=True)
        times.append(time.monotonic())
        predict([demo / "ortho.tif"], model, drawn, overwrite=True)
        times.append(time.monotonic())
        scores = evaluate(drawn, demo / "truth.tif").scores
        spent = [f"{end - start:.0f}" for start, end in pairwise(times)]
        print(
            f"| {given} | {' | '.join(spent)} | {scores.miou:.3f} | {scores.oa:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
