"""The tiles of the SAM benchmark, and the images whose tags the pseudo-labels are learned from.

Tiles are 512 x 512 pixels, three of each dataset, fixed by the class counts of the truth alone:
windows that lie side by side, in which at least two classes hold 5 % or more, in the order of rows
and columns (chips: of the list); of those the ones in the middle of equal thirds.

Scored tiles: Tanzania ``ortho_b``; Banepa, every second such window; Dubai scene 1; DeepGlobe's
training chips but for the fifth on which settings are chosen. Choosing tiles: Tanzania
``ortho_a``; the other windows of Banepa; Dubai scene 5; that fifth of DeepGlobe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import deepglobe
import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.raster import Raster

T = TypeVar("T")

SIZE = 512
"""Side of a tile, pixels."""
EACH = 3
"""Tiles of a dataset."""
LEAST = 0.05
"""Share of a tile that a class must hold to count."""
CHIPS = 60
"""DeepGlobe chips that the pseudo-labels are learned from, besides the tiles."""

DUBAI = "building,land,road,vegetation,water"


@dataclass(frozen=True)
class BenchTile:
    """A tile of the benchmark.

    Args:
        dataset: whose it is.
        image: the raster.
        truth: its class raster, on the same grid.
        window: the tile's pixels.
        classes: what the ids of the class raster mean.
    """

    dataset: str
    image: Path
    truth: Path
    window: Window
    classes: Classes

    @property
    def name(self) -> str:
        """What results are kept under."""
        return f"{self.dataset}-{self.image.stem}-{self.window.row}-{self.window.col}"

    def read_image(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 RGB."""
        image, _ = Raster(self.image).read(self.window)
        return np.ascontiguousarray(np.moveaxis(image[:3], 0, -1))

    def read_truth(self) -> NDArray[np.uint8]:
        """Return (H, W) uint8 class indices, 255 = unlabelled."""
        return ClassMap(ClassRaster(self.truth), self.classes).read(self.window)


@dataclass(frozen=True)
class Dataset:
    """Tiles, and the images around them.

    Args:
        name: as in tables.
        classes: its classes.
        pairs: images and class rasters of the site that pseudo-labels are learned on.
        core: side of the tiles that are tagged, pixels; None for chips, tagged as a whole.
        tiles: the tiles of the benchmark.
    """

    name: str
    classes: Classes
    pairs: tuple[tuple[Path, Path], ...]
    core: int | None
    tiles: tuple[BenchTile, ...]


def datasets(data: Path, *, choosing: bool) -> list[Dataset]:
    """Return the datasets with their tiles.

    Args:
        data: the folder that holds ``ortho``, ``dubai`` and ``deepglobe``.
        choosing: the tiles on which settings may be chosen, or those that are scored.
    """
    ortho, letter, scene = data / "ortho", "a" if choosing else "b", 5 if choosing else 1
    tanzania = (
        ortho / "tanzania" / f"ortho_{letter}.tif",
        ortho / "tanzania" / f"buildings_{letter}.tif",
    )
    banepa = (
        ortho / "banepa" / "banepa_train_3857.tif",
        ortho / "banepa" / "banepa_train_buildings_mask_3857.tif",
    )
    dubai = data / "dubai" / f"scene{scene}.tif", data / "dubai" / f"scene{scene}_classes.tif"
    buildings = Classes.parse("other,building")
    return [
        _scene("Tanzania", tanzania, buildings, 256),
        # Roofs are so dense that only small tiles are without any.
        _scene("Banepa", banepa, buildings, 64, slice(int(choosing), None, 2)),
        _scene("Dubai", dubai, Classes.parse(DUBAI), 128),
        _chips(data, choosing=choosing),
    ]


def _scene(
    name: str,
    pair: tuple[Path, Path],
    classes: Classes,
    core: int,
    turn: slice = slice(None),
) -> Dataset:
    image, truth = pair
    ids = _ids(truth)
    windows = [
        Window(row, col, SIZE, SIZE)
        for row in range(0, ids.shape[0] - SIZE + 1, SIZE)
        for col in range(0, ids.shape[1] - SIZE + 1, SIZE)
    ]
    mixed = [window for window in windows if is_mixed(ids[window.slices])]
    tiles = [BenchTile(name, image, truth, window, classes) for window in spaced(mixed[turn], EACH)]
    return Dataset(name, classes, (pair,), core, tuple(tiles))


def _chips(data: Path, *, choosing: bool) -> Dataset:
    chips = deepglobe.training_chips(data, choosing=choosing)
    classes = Classes.parse(",".join(deepglobe.CLASSES))
    mixed = [chip for chip in chips if is_mixed(_ids(chip.mask))]
    chosen = spaced(mixed, EACH)
    rest = [chip for chip in chips if chip not in chosen]
    whole = Window(0, 0, SIZE, SIZE)
    return Dataset(
        "DeepGlobe",
        classes,
        tuple((chip.image, chip.mask) for chip in [*chosen, *spaced(rest, CHIPS)]),
        None,
        tuple(BenchTile("DeepGlobe", c.image, c.mask, whole, classes) for c in chosen),
    )


def _ids(path: Path) -> NDArray[np.uint8]:
    raster = Raster(path)
    ids: NDArray[np.uint8] = raster.read(raster.grid.window)[0][0]
    return ids


def is_mixed(ids: NDArray[np.uint8]) -> bool:
    """Return whether at least two classes hold 5 % of a tile each."""
    counts = np.bincount(ids[ids != IGNORE], minlength=2)
    return int((counts >= LEAST * ids.size).sum()) >= 2


def spaced(given: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of what is given, in the middle of equal parts; all if there are fewer."""
    if len(given) <= count:
        return list(given)
    return [given[int((part + 0.5) * len(given) / count)] for part in range(count)]


def limited(found: Sequence[Dataset], names: Sequence[str], limit: int) -> list[Dataset]:
    """Return the datasets of these names (none: all), with at most ``limit`` tiles each."""
    return [
        Dataset(one.name, one.classes, one.pairs, one.core, tuple(islice(one.tiles, limit)))
        for one in found
        if not names or one.name in names
    ]
