"""Few labelled tiles and many without: labelled samples again and again, beside unlabelled ones.

An epoch is a pass over the unlabelled tiles. The labelled ones are gone through meanwhile as often
as it takes, every time in another order and with another augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rsseg.grid import Tile, Window
from rsseg.io.labels import of_tiles
from rsseg.io.opinions import SURE, SiteOpinions
from rsseg.io.site import Scene, Site
from rsseg.learn.augment import Crop, strengthened
from rsseg.learn.data import Address, LabelWindows, as_tensor

_UNLABELLED, _ORDER = 1, 2
"""Tell what is drawn here from each other and from what is drawn for labelled crops."""


class Cycled(Dataset[dict[str, Tensor]]):
    """Labelled samples for an epoch of any length.

    All of them are visited equally often, give or take one. Each pass goes on in the next epoch
    where the last one ended.

    Args:
        labelled: the samples.
        count: how many make an epoch.
        seed: of the order.
    """

    def __init__(self, labelled: LabelWindows, count: int, seed: int) -> None:
        self._labelled = labelled
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        epoch, index = address
        number, place = divmod(epoch * self._count + index, len(self._labelled))
        order = np.random.default_rng((self._seed, number, 0, _ORDER))
        return self._labelled[number, int(order.permutation(len(self._labelled))[place])]


class UnlabelledWindows(Dataset[dict[str, Tensor]]):
    """Crops around tiles without regard to labels, as teacher and student see them.

    A sample: ``weak`` (C, S, S) float32, cropped, resized, turned and mirrored; ``strong``, the
    same recoloured and blurred; ``valid`` (S, S) bool, pixels that were measured and are not of
    tiles held back; with opinions also ``opinions`` (K, S, S) float32 in [0, 1].

    Args:
        site: the site.
        tiles: scene name → tiles; each is visited once an epoch, off centre.
        held_back: scene name → (rows, cols) whether a tile is kept for validation.
        size: side S of the crops, pixels.
        seed: of the augmentation.
        resize: smallest and largest scale of the crops.
        opinions: of a vision-language model.
        trust: (K,) float32, what its opinions of each class are multiplied by; 1 by default.
    """

    def __init__(
        self,
        site: Site,
        tiles: Mapping[str, Sequence[Tile]],
        held_back: Mapping[str, NDArray[np.bool_]],
        size: int,
        seed: int,
        resize: tuple[float, ...],
        opinions: SiteOpinions | None = None,
        trust: Tensor | None = None,
    ) -> None:
        self._site = site
        self._items = [(name, tile) for name, members in tiles.items() for tile in members]
        self._held_back = held_back
        self._size = size
        self._seed = seed
        self._resize = resize
        self._opinions = opinions
        self._scale = (torch.ones(1) if trust is None else trust)[:, None, None] / SURE

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        epoch, index = address
        name, tile = self._items[index]
        scene = self._site.scenes[name]
        rng = np.random.default_rng((self._seed, epoch, index, _UNLABELLED))
        crop = Crop.draw(tile.core, self._size, scene.grid, rng, self._resize)
        image, valid = scene.read(crop.window)
        weak = crop.image(self._site.bands.normalise(image, valid))
        sample = {
            "weak": as_tensor(weak),
            "strong": as_tensor(strengthened(weak, self._site.bands, rng)),
            "valid": as_tensor(crop.marks(valid & ~self._held(scene, crop.window))),
        }
        if self._opinions is not None:
            said = as_tensor(crop.marks(self._opinions(name, crop.window)))
            sample["opinions"] = said * self._scale
        return sample

    def _held(self, scene: Scene, window: Window) -> NDArray[np.bool_]:
        inside = window.clipped(scene.grid.shape)
        held = np.zeros((window.height, window.width), np.bool_)
        table = self._held_back[scene.name]
        held[inside.relative_to(window).slices] = of_tiles(table, self._site.core, inside)
        return held


class Pairs(Dataset[dict[str, Tensor]]):
    """A labelled and an unlabelled sample in one.

    Args:
        labelled: as many samples as there are unlabelled ones.
        unlabelled: the others.
    """

    def __init__(self, labelled: Cycled, unlabelled: UnlabelledWindows) -> None:
        assert len(labelled) == len(unlabelled)
        self._labelled = labelled
        self._unlabelled = unlabelled

    def __len__(self) -> int:
        return len(self._unlabelled)

    def __getitem__(self, address: Address) -> dict[str, Tensor]:
        return {**self._labelled[address], **self._unlabelled[address]}
