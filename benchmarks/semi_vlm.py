"""A simulated vision-language model (VLM): opinions made from the truth, with mistakes put in.

THIS IS A SIMULATION, for a benchmark without a VLM's weights. It says how training depends on the
quality of a VLM's boxes; it says nothing of how good any VLM is. It sees true masks of training
chips alone, never of an image that is scored.

Boxes lie around the connected components of each class's true mask. They are missed, misnamed and
shifted, and false ones are added, at rates fixed beforehand (``QUALITIES``). In the place of SAM,
which is too slow for a CPU, the mask of a box is the component itself, cut off at the box's edges,
its outline off by up to a hundredth of the chip's side; a false box is filled. From there on it
is the product's way: eqs. 8 and 9, and the site's layer ``opinions``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from accuracy_data import Image, read_classes
from numpy.typing import NDArray
from scipy import ndimage

from rsseg.classes import Classes
from rsseg.config import fingerprint
from rsseg.io.layers import LayerSpec
from rsseg.io.opinions import OPINIONS, SURE
from rsseg.io.site import Site
from rsseg.ops.purify import vlm_confidence
from rsseg.progress import Progress
from rsseg.run import run
from rsseg.stages.stage import Pool, TileData

LEAST = 0.01
"""Share of a chip from which a component is boxed: from there on the data set's own image-level
labels say that a class is present, and smaller ones at a class's edge are specks of its mask."""
OUTLINE = 0.01
"""Share of the chip's side by which a mask's outline is off at most, to either side: 3 px of 256,
about what masks of SAM are off on soft edges such as those of fields and woods."""


@dataclass(frozen=True)
class Quality:
    """How often a simulated VLM is wrong.

    Args:
        name: as in tables.
        missed: probability that a component has no box, 0 to 1.
        false: boxes of random place, size and class per component, 0 to 1.
        misnamed: probability that the box of a component has the name of another class.
        jitter: standard deviation of each edge, as a share of the box's side across it.
    """

    name: str
    missed: float
    false: float
    misnamed: float
    jitter: float


GOOD = Quality("good", missed=0.2, false=0.1, misnamed=0.05, jitter=0.1)
"""A detector one would be glad of: four of five things found, in boxes of a mean IoU of 0.8, and
one box in nine around nothing."""
FAIR = Quality("fair", missed=0.4, false=0.3, misnamed=0.15, jitter=0.2)
POOR = Quality("poor", missed=0.6, false=0.6, misnamed=0.3, jitter=0.3)
"""Steps between the good one and the useless one: nearly half of the fair one's boxes are false or
misnamed, three quarters of the poor one's."""
USELESS = Quality("useless", missed=1.0, false=0.9, misnamed=0.0, jitter=0.0)
"""As many boxes as the good one's, all of random place, size and class."""
QUALITIES = (GOOD, FAIR, POOR, USELESS)


@dataclass(frozen=True, eq=False)
class Box:
    """A box in an answer.

    Attributes:
        index: class that it is named as.
        edges: first and last row + 1, first and last column + 1, inside the chip.
        found: (H, W) bool, the component that it is around; None for a false one.
    """

    index: int
    edges: tuple[int, int, int, int]
    found: NDArray[np.bool_] | None

    @property
    def inside(self) -> tuple[slice, slice]:
        """Its pixels, as an index."""
        top, bottom, left, right = self.edges
        return slice(top, bottom), slice(left, right)


def components(truth: NDArray[np.uint8], classes: int) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return class and mask (H, W) of each connected component that is large enough to be boxed.

    Args:
        truth: (H, W) class indices, 255 = unlabelled.
        classes: number of classes K.
    """
    found = []
    for index in range(classes):
        numbers, count = ndimage.label(truth == index)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)
        large = [number for number in range(1, count + 1) if sizes[number] >= LEAST * truth.size]
        found += [(index, np.asarray(numbers == number)) for number in large]
    return found


def answer(
    truth: NDArray[np.uint8], classes: int, quality: Quality, rng: np.random.Generator
) -> list[Box]:
    """Return the boxes that the simulated VLM gives of a chip.

    Args:
        truth: (H, W) class indices, 255 = unlabelled.
        classes: number of classes K, at least 2.
        quality: how often it is wrong.
        rng: draws the mistakes.
    """
    boxes = []
    for index, mask in components(truth, classes):
        if rng.random() < quality.false:
            boxes.append(random_box(truth.shape, classes, rng))
        if rng.random() >= quality.missed:
            other = (index + rng.integers(1, classes)) % classes
            name = int(other) if rng.random() < quality.misnamed else index
            boxes.append(Box(name, jittered(mask, quality.jitter, rng), mask))
    return boxes


def random_box(shape: tuple[int, ...], classes: int, rng: np.random.Generator) -> Box:
    """Return a false box: its sides uniform in their logarithm, its place and class uniform."""
    edges: list[int] = []
    for length in shape:
        side = round(length * np.exp(rng.uniform(np.log(LEAST) / 2, 0)))
        start = int(rng.integers(0, length - side + 1))
        edges += [start, start + side]
    top, bottom, left, right = edges
    return Box(int(rng.integers(classes)), (top, bottom, left, right), None)


def jittered(
    mask: NDArray[np.bool_], jitter: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return the edges of the box around a mask, each of them off; at least a pixel is left."""
    edges: list[int] = []
    for axis, length in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = int(filled[0]), int(filled[-1]) + 1
        off = rng.normal(0, jitter * (last - first), 2)
        start = int(np.clip(round(first + off[0]), 0, length - 1))
        edges += [start, int(np.clip(round(last + off[1]), start + 1, length))]
    top, bottom, left, right = edges
    return top, bottom, left, right


def mask_of(box: Box, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return what stands for SAM's mask (H, W) of a box."""
    mask = np.zeros(shape, np.bool_)
    if box.found is None:
        mask[box.inside] = True
        return mask
    most = round(OUTLINE * max(shape))
    off = int(rng.integers(-most, most + 1))
    outline = box.found
    if off > 0:
        outline = ndimage.binary_dilation(outline, iterations=off)
    elif off < 0:
        outline = ndimage.binary_erosion(outline, iterations=-off, border_value=1)
    mask[box.inside] = outline[box.inside]
    return mask


def opinions(
    truth: NDArray[np.uint8], classes: int, quality: Quality, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the opinions (K, H, W) on a chip, 0 to 254 for a confidence of 0 to 1.

    Args:
        truth: (H, W) class indices, 255 = unlabelled.
        classes: number of classes K, at least 2.
        quality: how often the simulated VLM is wrong.
        rng: draws the mistakes.
    """
    covered = np.zeros((classes, *truth.shape), np.bool_)
    mentioned = torch.zeros(classes, dtype=torch.bool)
    for box in answer(truth, classes, quality, rng):
        covered[box.index] |= mask_of(box, truth.shape, rng)
        mentioned[box.index] = True
    values = np.rint(vlm_confidence(mentioned).numpy() * SURE).astype(np.uint8)
    said: NDArray[np.uint8] = covered * values[:, None, None]
    return said


@dataclass(frozen=True)
class SimulatedStage:
    """Writes the layer ``opinions`` of a site of chips, each of which is one tile.

    Args:
        truths: name of a scene → its true class ids.
        classes: the classes.
        quality: how often the simulated VLM is wrong.
        seed: of its mistakes; each chip has its own.
    """

    truths: Mapping[str, Path]
    classes: Classes
    quality: Quality
    seed: int
    label: str = "simulated opinions"
    batch_size: int = 1
    pool: Pool = "none"

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """The layer that the product's own stage writes."""
        return LayerSpec(OPINIONS, "uint8", len(self.classes))

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        return [self._opinions(tile) for tile in tiles]

    def _opinions(self, tile: TileData) -> NDArray[np.uint8]:
        truth = read_classes(self.truths[tile.scene], self.classes)
        core = tile.tile.core
        assert truth.shape == (core.height, core.width), "a chip is one tile"
        rng = np.random.default_rng((self.seed, crc32(tile.scene.encode())))
        return opinions(truth, len(self.classes), self.quality, rng)


def layer_of(images: Sequence[Image], quality: Quality, seed: int) -> str:
    """Return the fingerprint of the layer ``opinions`` that is made of these chips."""
    names = sorted(image.name for image in images)
    return fingerprint("simulated", asdict(quality), seed, LEAST, OUTLINE, names)


def simulate(
    site: Site, images: Sequence[Image], quality: Quality, seed: int, progress: Progress
) -> None:
    """Make simulated opinions on some chips the layer ``opinions`` of their site.

    Args:
        site: of chips.
        images: those that opinions are made of; all others have none, and their truth is not read.
        quality: how often the simulated VLM is wrong.
        seed: of its mistakes.
        progress: shows what is going on.
    """
    truths = {image.name: image.truth for image in images}
    tiles = {name: list(site.scenes[name].tiling) for name in truths}
    stage = SimulatedStage(truths, site.classes, quality, seed)
    run(stage, site, layer_of(images, quality, seed), tiles, workers=1, progress=progress)
