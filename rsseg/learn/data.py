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

from rsseg.bands import Bands
from rsseg.classes import IGNORE
from rsseg.config import Jitter
from rsseg.grid import Grid, Tile, Window
from rsseg.io.labels import LabelSource
from rsseg.io.site import Scene, Site

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
            turns, mirrored = _orientation(rng)
            normal = self._jittered(_oriented(normal, turns, mirrored), rng)
            weight = _oriented(weight, turns, mirrored)
            tags = np.moveaxis(_oriented(np.moveaxis(tags, -1, 0), turns, mirrored), 0, -1)
        return {
            "image": _tensor(normal),
            "weight": _tensor(weight),
            "tags": _tensor(tags),
        }

    def _jittered(
        self, image: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        if self._jitter == "colour":
            return _colour_jittered(image, self._site.bands, rng)
        return _jittered(image, rng)

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
    """

    def __init__(
        self,
        site: Site,
        tiles: Mapping[str, Sequence[Tile]],
        labels: LabelSource,
        size: int,
        seed: int,
    ) -> None:
        self._site = site
        self._items = [(name, tile) for name, members in tiles.items() for tile in members]
        self._labels = labels
        self._size = size
        self._seed = seed

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        epoch, index = address
        name, tile = self._items[index]
        scene = self._site.scenes[name]
        rng = np.random.default_rng((self._seed, max(epoch, 0), index))
        window = _crop(tile.core, self._size, scene.grid, rng if epoch >= 0 else None)
        image, valid = scene.read(window)
        normal = self._site.bands.normalise(image, valid)
        label = np.where(valid, self._read_labels(scene, window), np.uint8(IGNORE))
        if epoch >= 0:
            turns, mirrored = _orientation(rng)
            normal = _jittered(_oriented(normal, turns, mirrored), rng)
            label = _oriented(label, turns, mirrored)
        return {"image": _tensor(normal), "label": _tensor(label).long()}

    def _read_labels(self, scene: Scene, window: Window) -> NDArray[np.uint8]:
        full = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.clipped(scene.grid.shape)
        full[inside.relative_to(window).slices] = self._labels(scene.name, inside)
        return full


def _crop(core: Window, size: int, grid: Grid, rng: np.random.Generator | None) -> Window:
    """Return a crop around a core, moved at random by up to half a core, and into the raster."""
    centre = (core.row + core.height // 2, core.col + core.width // 2)
    corners = []
    for middle, length, side in zip(centre, grid.shape, (core.height, core.width), strict=True):
        shift = 0 if rng is None else int(rng.integers(-(side // 2), side // 2 + 1))
        corner = middle - size // 2 + shift
        corners.append(min(max(corner, 0), max(length - size, 0)))
    return Window(corners[0], corners[1], size, size)


def _orientation(rng: np.random.Generator) -> tuple[int, bool]:
    return int(rng.integers(4)), bool(rng.integers(2))


def _oriented(values: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    """Turn (…, H, W) by quarter turns and mirror it: from above, no direction is special."""
    turned = np.rot90(values, turns, axes=(-2, -1))
    return turned[..., ::-1] if mirrored else turned


def _jittered(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Change brightness and contrast of a normalised (C, H, W) image, a little per band."""
    bands = (len(image), 1, 1)
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.95, 1.05, bands)
    offset = rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, bands)
    return (image * gain + offset).astype(np.float32)


def _colour_jittered(
    image: NDArray[np.float32], bands: Bands, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change brightness, contrast and saturation by up to 0.3 and hue by up to 0.1 (SAN §4.3).

    A normalised (3, H, W) image in the order of its bands is brought to [0, 1], for which these are
    defined, and back: 8-bit values by their own range, others by that of the 8-bit view.
    """
    from torchvision.transforms.v2 import functional

    order = list(bands.rgb)
    mean, std = (np.asarray(v, np.float32)[order, None, None] for v in (bands.mean, bands.std))
    eight_bit = bands.dtype == "uint8"
    low, high = (
        np.asarray(v, np.float32)[:, None, None]
        for v in (((0,) * 3, (255,) * 3) if eight_bit else (bands.low, bands.high))
    )
    span = np.maximum(high - low, np.float32(1e-12))
    colours = torch.from_numpy(((image[order] * std + mean - low) / span).clip(0, 1))
    steps = (
        (functional.adjust_brightness, rng.uniform(0.7, 1.3)),
        (functional.adjust_contrast, rng.uniform(0.7, 1.3)),
        (functional.adjust_saturation, rng.uniform(0.7, 1.3)),
        (functional.adjust_hue, rng.uniform(-0.1, 0.1)),
    )
    for index in rng.permutation(len(steps)):
        change, amount = steps[index]
        colours = change(colours, amount)
    changed = np.empty_like(image)
    changed[order] = (colours.numpy() * span + low - mean) / std
    return changed


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.copy())  # turned views have negative strides
