"""Chips of meadow and lake, laid out like DeepGlobe's, for tests of benchmarks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

SIDE = 64
CLASSES = ("meadow", "lake")
COLOURS = np.array([[60, 160, 60], [40, 60, 180]], np.uint8)


def picture(kind: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A chip and its mask: all meadow (0), all lake (1), or half and half (2)."""
    mask = np.full((SIDE, SIDE), min(kind, 1), np.uint8)
    if kind == 2:
        mask[:, : SIDE // 2] = 0
    noise = np.random.default_rng(seed).integers(0, 40, (SIDE, SIDE, 1), np.uint8)
    return COLOURS[mask] + noise, mask


def write_chips(folder: Path) -> Path:
    """Write twelve chips in six scenes to learn and choose on, and two to be scored."""
    for part, count in (("train", 12), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        with (folder / part / "image_labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "scene", *CLASSES])
            for number in range(count):
                name, kind = f"{part[0]}{number:02d}", number % 3
                image, mask = picture(kind, number)
                Picture.fromarray(image).save(folder / part / "images" / f"{name}.png")
                Picture.fromarray(mask).save(folder / part / "masks" / f"{name}.png")
                writer.writerow([name, number // 2, int(kind != 1), int(kind != 0)])
    return folder
