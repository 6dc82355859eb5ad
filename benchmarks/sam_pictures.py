"""Pictures for looking: a tile, and the outlines of two generators' masks on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from rsseg.ops.segments import Masks

SCALE = 2
"""Pixels of the picture per pixel of the tile, for thin outlines."""
GAP = 8
"""White columns between the panels."""
COLOURS = ((0, 200, 255), (255, 240, 0), (255, 60, 0))
"""Of sub-parts, parts and wholes."""


def outlined(image: NDArray[np.uint8], found: Masks) -> NDArray[np.uint8]:
    """Return an enlarged image (H, W, 3) with the outlines of masks, the coarser below."""
    drawn = enlarged(image)
    for index in np.argsort(-found.level, kind="stable"):
        edge = find_boundaries(enlarged(found.masks[index]), mode="thick")
        drawn[edge] = COLOURS[int(found.level[index])]
    return drawn


def enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels repeated SCALE times in both directions."""
    return pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def write(path: Path, image: NDArray[np.uint8], *found: Masks) -> None:
    """Write a PNG: the image, and beside it the image with the outlines of each set of masks."""
    panels = [enlarged(image), *(outlined(image, masks) for masks in found)]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, gap)][:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.concatenate(row, axis=1))
