"""Painting: class indices and pictures become pictures. RGB, uint8, (H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
RIGHT: Colour = (229, 232, 227)
"""Where a map is right, a picture of its errors is pale."""
DARK: Colour = (40, 40, 40)
"""For errors of classes whose colour is as pale as that."""
MISSING: Colour = (150, 60, 200)
"""Where a map says nothing and should."""
_PALE = 90.0
"""Colours nearer to ``RIGHT`` or white than this cannot be told from them in a speckled picture."""


def palette(colours: Sequence[Colour], otherwise: Colour = WHITE) -> NDArray[np.uint8]:
    """Return (256, 3): the colour of every class index, and of all that are none."""
    table = np.full((256, 3), otherwise, np.uint8)
    table[: len(colours)] = colours
    return table


def paint(indices: NDArray[np.uint8], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return class indices (H, W) in their colours, white where there is no class."""
    painted: NDArray[np.uint8] = palette(colours)[indices]
    return painted


def on_white(rgb: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) that is white where it is not ``valid`` (H, W)."""
    seen: NDArray[np.uint8] = np.where(valid[..., None], rgb, np.uint8(255))
    return seen


def overlay(
    rgb: NDArray[np.uint8],
    indices: NDArray[np.uint8],
    colours: Sequence[Colour],
    opacity: float,
    clear: int | None = None,
) -> NDArray[np.uint8]:
    """Lay the colours of classes over a picture.

    Args:
        rgb: (H, W, 3) uint8.
        indices: (H, W) uint8 class indices; the picture shows where they are none.
        colours: one per class.
        opacity: 0 (picture only) to 1 (map only).
        clear: the class that is left unpainted, the background.
    """
    painted = indices < len(colours)
    if clear is not None:
        painted &= indices != clear
    weight = np.where(painted, np.float32(opacity), np.float32(0))[..., None]
    mixed = rgb * (1 - weight) + palette(colours)[indices] * weight
    laid: NDArray[np.uint8] = (mixed + 0.5).astype(np.uint8)
    return laid


def error_colours(colours: Sequence[Colour]) -> list[Colour]:
    """Return the colours in which errors are painted: those of the classes, dark for pale ones."""
    pale = np.array([RIGHT, WHITE], np.float64)
    far = [np.linalg.norm(pale - colour, axis=1).min() for colour in colours]
    return [c if gap > _PALE else DARK for c, gap in zip(colours, far, strict=True)]


def errors(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    colours: Sequence[Colour],
    ignore: int = 255,
) -> NDArray[np.uint8]:
    """Paint where a map is wrong, in the ``error_colours`` of the class that it should have been.

    Args:
        truth: (H, W) uint8 class indices; ``ignore`` where unknown, which is white.
        prediction: (H, W), the map; violet where it is ``ignore`` and should not be.
        colours: one per class.
        ignore: the index that is no class.

    Returns:
        (H, W, 3) uint8; pale where the map is right.
    """
    picture = paint(truth, error_colours(colours))
    picture[(truth == prediction) & (truth != ignore)] = RIGHT
    picture[(truth != ignore) & (prediction == ignore)] = MISSING
    return picture


def shares(
    indices: NDArray[np.uint8], count: int, row_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the share of each class in all pixels that have one.

    Args:
        indices: (H, W) uint8 class indices; those from ``count`` on are left out.
        count: number of classes K.
        row_weights: (H,), what a pixel of each row counts, its area on the ground.

    Returns:
        (K,) float64 that sum to 1, or are all 0 if no pixel has a class.
    """
    weights = np.broadcast_to(row_weights[:, None], indices.shape)
    sums = np.bincount(indices.ravel(), weights.ravel(), minlength=256)[:count]
    found: NDArray[np.float64] = sums / max(sums.sum(), np.finfo(np.float64).tiny)
    return found


def round_length(longest: float) -> float:
    """Return the longest of 1, 2, 5, 10, 20, 50 … (and 0.5, 0.2 …) that is not over ``longest``."""
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)) * power)
