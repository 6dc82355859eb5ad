"""What networks are trained on: windows of a site, with the tags or the labels of their pixels.

Samples are addressed by (epoch, index), and their augmentation is drawn from (seed, epoch, index)
alone: a resumed training sees what an undisturbed one would have seen, in any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rsseg.classes import IGNORE
from rsseg.config import Jitter
from rsseg.grid import Tile, Window
from rsseg.io.labels import LabelSource
from rsseg.io.site import Scene, Site
from rsseg.learn.augment import Crop, colour_jittered, draw_orientation, jittered, oriented

Address = tuple[int, int]
"""Epoch (-1 in validation: no augmentation) and index of a sample."""


class Batches(Sampler[list[Address]]):
    """Batches of equal size in an order drawn anew every epoch from (seed, epoch).

    The last batch is filled up with samples of the same epoch's beginning, so that no batch is
    smaller than another, let alone of size 1 (batch norm).

    Args:
        count: number of samples.
        batch_size: samples per batch.
        seed: of the order.
        shuffle: False keeps the order and the last batch as it is (validation).
        part: which of how many equal parts of every batch to give, or without ``shuffle`` of the
            batches; ``len`` counts all of them.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._count = count
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._part = part
        self.epoch = 0 if shuffle else -1

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __iter__(self) -> Iterator[list[Address]]:
        rank, size = self._part
        if self._shuffle:
            return (batch[rank::size] for batch in self._whole())
        return islice(self._whole(), rank, None, size)

    def _whole(self) -> Iterator[list[Address]]:
        order = np.arange(self._count)
        if self._shuffle:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._count)
            order = np.resize(order, len(self) * self._batch_size)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            yield [(self.epoch, int(index)) for index in batch]


class TagWindows(Dataset[dict[str, Tensor]]):
    """Windows of n x n tagged tile cores and their halo, for the image-level classifier.

    A sample: ``image`` (C, S, S) float32; ``weight`` (1, n*c, n*c) float32, share of valid pixels
    of the cores' CAM cells; ``tags`` (n, n, F) int8 of the foreground classes.

    Args:
        site: the tagged site.
        windows: scene name → windows of the merged tiling.
        tags: scene name → (rows, cols, K) tags to learn from; -1 where there are none.
        cell: pixels per CAM cell.
        seed: of the augmentation.
        jitter: ``bands``, or ``colour`` for imagery whose three bands are red, green and blue.
    """

    def __init__(
        self,
        site: Site,
        windows: Mapping[str, Sequence[Tile]],
        tags: Mapping[str, NDArray[np.int8]],
        cell: int,
        seed: int,
        jitter: Jitter = "bands",
    ) -> None:
        self._site = site
        self._items = [(name, tile) for name, tiles in windows.items() for tile in tiles]
        self._tags = tags
        self._cell = cell
        self._seed = seed
        self._jitter = jitter

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        epoch, index = address
        name, tile = self._items[index]
        image, valid = self._site.scenes[name].read(tile.read)
        normal = self._site.bands.normalise(image, valid)
        inner = _inner(tile)
        weight = _cell_means(valid[inner.slices].astype(np.float32), self._cell)[None]
        tags = self._tags_of(name, tile)
        if epoch >= 0:
            rng = np.random.default_rng((self._seed, epoch, index))
            turns, mirrored = draw_orientation(rng)
            normal = self._jittered(oriented(normal, turns, mirrored), rng)
            weight = oriented(weight, turns, mirrored)
            tags = np.moveaxis(oriented(np.moveaxis(tags, -1, 0), turns, mirrored), 0, -1)
        return {
            "image": as_tensor(normal),
            "weight": as_tensor(weight),
            "tags": as_tensor(tags),
        }

    def _jittered(
        self, image: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        if self._jitter == "colour":
            return colour_jittered(image, self._site.bands, rng)
        return jittered(image, rng)

    def _tags_of(self, name: str, tile: Tile) -> NDArray[np.int8]:
        core = self._site.core
        count = (tile.read.height - 2 * (tile.core.row - tile.read.row)) // core
        row, col = tile.core.row // core, tile.core.col // core
        here = self._tags[name][row : row + count, col : col + count]
        full = np.full((count, count, here.shape[-1]), -1, np.int8)
        full[: here.shape[0], : here.shape[1]] = here
        return full[..., list(self._site.classes.foreground)]


def _inner(tile: Tile) -> Window:
    """Return the cores of a window in its own coordinates, whole also at the raster's edge."""
    halo = tile.core.row - tile.read.row
    return Window(halo, halo, tile.read.height - 2 * halo, tile.read.width - 2 * halo)


def _cell_means(values: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    height, width = values.shape
    blocks = values.reshape(height // cell, cell, width // cell, cell)
    return np.asarray(blocks.mean(axis=(1, 3)))


class LabelWindows(Dataset[dict[str, Tensor]]):
    """Crops around labelled tiles, for the segmenter.

    A sample: ``image`` (C, S, S) float32 and ``label`` (S, S) int64 (255 = ignore).

    Args:
        site: the site.
        tiles: scene name → tiles with labels; each is visited once an epoch, off centre.
        labels: the labels.
        size: side S of the crops, pixels.
        seed: of the augmentation.
        resize: smallest and largest scale of the crops in training.
    """

    def __init__(
        self,
        site: Site,
        tiles: Mapping[str, Sequence[Tile]],
        labels: LabelSource,
        size: int,
        seed: int,
        resize: tuple[float, ...] = (1.0, 1.0),
    ) -> None:
        self._site = site
        self._items = [(name, tile) for name, members in tiles.items() for tile in members]
        self._labels = labels
        self._size = size
        self._seed = seed
        self._resize = resize

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        epoch, index = address
        name, tile = self._items[index]
        scene = self._site.scenes[name]
        rng = np.random.default_rng((self._seed, max(epoch, 0), index))
        crop = (
            Crop.draw(tile.core, self._size, scene.grid, rng, self._resize)
            if epoch >= 0
            else Crop.centred(tile.core, self._size, scene.grid)
        )
        image, valid = scene.read(crop.window)
        label = np.where(valid, self._read_labels(scene, crop.window), np.uint8(IGNORE))
        shown = crop.image(self._site.bands.normalise(image, valid))
        if epoch >= 0:
            shown = jittered(shown, rng)
        return {"image": as_tensor(shown), "label": as_tensor(crop.marks(label)).long()}

    def _read_labels(self, scene: Scene, window: Window) -> NDArray[np.uint8]:
        full = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.clipped(scene.grid.shape)
        full[inside.relative_to(window).slices] = self._labels(scene.name, inside)
        return full


def as_tensor(values: NDArray[Any]) -> Tensor:
    """Return an array as a tensor of its own."""
    return torch.from_numpy(values.copy())  # turned views have negative strides
