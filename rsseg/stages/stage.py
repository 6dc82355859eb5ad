"""Stage: what a tile's arrays become when no weights change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.grid import Tile
from rsseg.io.layers import LayerSpec
from rsseg.ops.objects import Objects

Pool = Literal["none", "threads", "processes"]
"""Who computes batches side by side: nobody, where a network takes all cores or the GPU by itself;
threads, for code that runs without Python's lock; processes, for code that holds it."""


@dataclass(frozen=True)
class TileData:
    """What a stage sees of one tile; arrays cover its read window of S x S pixels.

    Args:
        tile: where it is.
        image: (C, S, S) in the source's dtype.
        valid: (S, S) whether a pixel was measured.
        allowed: (K, S, S) whether the tags of the pixel's core allow a class; all of them where
            nothing is known.
        labelled: (S, S) whether the pixel's core is tagged at all.
        layers: what earlier stages made, by name, in their cells.
        objects: the objects of the tile's core, for a stage that reads masks.
        scene: name of the scene that it is a tile of.
    """

    tile: Tile
    image: NDArray[Any]
    valid: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    layers: Mapping[str, NDArray[Any]]
    objects: Objects | None = None
    scene: str = ""


class Stage(Protocol):
    """What a tile's arrays become when no weights change.

    It holds only configuration and paths, loads its network lazily, and pickles.
    """

    @property
    def label(self) -> str:
        """What the progress bar calls it."""

    @property
    def writes(self) -> LayerSpec:
        """The layer it makes."""

    @property
    def reads(self) -> Mapping[str, str]:
        """Name → fingerprint of the layers it needs."""

    @property
    def batch_size(self) -> int:
        """Tiles computed together."""

    @property
    def pool(self) -> Pool:
        """What it gains from."""

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[Any]]:
        """Return the layer's values on each tile's core."""
