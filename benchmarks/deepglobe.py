"""The DeepGlobe chips of the test data, and which of them settings may be chosen on.

The training chips lie in 27 scenes of very different size. A fifth of them is for choosing
settings; whole scenes, so that no chip has a neighbour on the other side. A scene is in it if the
first four bytes of the SHA-256 of ``SALT ID``, divided by five, leave nothing over. The salt is the
first whole number with which the fifth has 15 to 25 % of the chips, and at least 5 % of its chips
have each class: 154 of 880 chips, in 8 scenes. Only scene ids and image-level labels had a say.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

CLASSES = ("urban", "agriculture", "rangeland", "forest", "water", "barren")
FIFTH = 5
SALT = 1


@dataclass(frozen=True)
class Chip:
    """One image of 512 x 512 pixels.

    Args:
        name: of the files, without suffix.
        scene: chips that share an edge are of one scene.
        image: the JPEG.
        mask: class indices, 255 = ignore.
    """

    name: str
    scene: str
    image: Path
    mask: Path


def is_for_choosing(scene: str) -> bool:
    """Return whether settings may be chosen on a scene of the training chips."""
    digest = hashlib.sha256(f"{SALT} {scene}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % FIFTH == 0


def training_chips(data: Path, *, choosing: bool) -> list[Chip]:
    """Return the training chips of one side of the split, in the order of the list.

    Args:
        data: the folder that holds ``deepglobe``.
        choosing: the fifth for choosing settings, or the rest.
    """
    folder = data / "deepglobe" / "train"
    with (folder / "image_labels.csv").open(encoding="utf-8", newline="") as file:
        return [
            Chip(
                row["image"],
                row["scene"],
                folder / "images" / f"{row['image']}.jpg",
                folder / "masks" / f"{row['image']}.png",
            )
            for row in csv.DictReader(file)
            if is_for_choosing(row["scene"]) == choosing
        ]
