"""The data sets of the accuracy benchmark: which images are learned, chosen and scored on.

Two layouts. *Chips*, small images that are tagged as a whole (DeepGlobe; DLRSD)::

    FOLDER/train/images/NAME.jpg       8-bit images of one size (.jpg, .png or .tif)
    FOLDER/train/masks/NAME.png        class indices from 0, 255 = ignore
    FOLDER/train/image_labels.csv      image, scene, then a column per class: 1 or 0
    FOLDER/val/                        the same, to be scored on

The classes are the CSV's columns, in the order of their indices. A fifth of the training scenes is
for choosing settings: see ``deepglobe.is_for_choosing``. Without a column ``scene`` each image is
one by itself.

*Scenes*, whole rasters that are cut into tagged tiles of 128 px (Dubai; Vaihingen, Potsdam)::

    FOLDER/NAME.tif                    what GDAL opens
    FOLDER/NAME_classes.tif            class ids on the same grid; nodata and 255 = unlabelled
    FOLDER/classes.toml                [[classes]] with name and, if not 0, 1, 2 …, id
    FOLDER/split.csv                   scene, part: NAME and learn, choose or score

Masks and class rasters train the supervised control and are scored against. Weak rows get tags
alone: those of chips are the CSV's; those of scenes are derived from the class rasters ("this tile
contains water": 1 % of its labelled pixels) and written to a CSV, which is what they read.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import deepglobe
import numpy as np
import rasterio
import rasterio.windows
from numpy.typing import NDArray
from PIL import Image as Picture

from rsseg.api import tag, tile
from rsseg.api.tagging import DERIVED
from rsseg.classes import Classes
from rsseg.config import TileConfig
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.files import replacing
from rsseg.io.raster import Raster
from rsseg.io.site import Site
from rsseg.io.tag_rasters import tags_from_raster
from rsseg.io.tag_table import UNKNOWN, plain_name
from rsseg.progress import Progress

Part = Literal["choosing", "final"]

DUBAI = "building,land,road,vegetation,water"
DUBAI_PARTS = {"learn": (1, 2, 6, 8), "choose": (5,), "score": (4,)}
TILE = 128
"""Side of the tagged tiles of scenes, pixels."""
LEAST = 0.01
"""Share of a tile's labelled pixels from which a class of a scene is tagged."""


@dataclass(frozen=True)
class Image:
    """A raster and its truth.

    Args:
        path: the raster.
        truth: class ids on the same grid.
        scene: what must not be on two sides of a split.
    """

    path: Path
    truth: Path
    scene: str

    @property
    def name(self) -> str:
        """Its name in a site."""
        return plain_name(self.path.name)

    def read(self) -> NDArray[np.uint8]:
        """Return the pixels (H, W, 3) of the first three bands, as they are."""
        raster = Raster(self.path)
        image, _ = raster.read(raster.grid.window)
        return np.ascontiguousarray(np.moveaxis(image[:3], 0, -1))

    def read_truth(self, classes: Classes) -> NDArray[np.uint8]:
        """Return true class indices (H, W), 255 = unlabelled."""
        return read_classes(self.truth, classes)


@dataclass(frozen=True)
class DataSet:
    """Images and what they are for.

    Args:
        name: as in results.
        classes: the classes.
        learn: images to learn on.
        choose: images to choose settings on; to learn on as well in the end.
        score: images that are scored once, at the end.
        tags: CSV of the tags of ``learn`` and ``choose``; None where tiles of scenes are tagged.
    """

    name: str
    classes: Classes
    learn: tuple[Image, ...]
    choose: tuple[Image, ...]
    score: tuple[Image, ...]
    tags: Path | None

    @property
    def chips(self) -> bool:
        """Whether an image is one tile."""
        return self.tags is not None

    @property
    def training(self) -> tuple[Image, ...]:
        """The images of the site."""
        return self.learn + self.choose

    def learned(self, part: Part) -> tuple[Image, ...]:
        """Return the images that networks learn from."""
        return self.learn if part == "choosing" else self.training

    def labelled(self, part: Part) -> tuple[Image, ...]:
        """Return the images whose pseudo-labels are scored."""
        return self.choose if part == "choosing" else self.training

    def mapped(self, part: Part) -> tuple[Image, ...]:
        """Return the images whose maps are scored."""
        return self.choose if part == "choosing" else self.score


def read_classes(path: Path, classes: Classes) -> NDArray[np.uint8]:
    """Return the class indices (H, W) of a raster of class ids, 255 = none."""
    raster = ClassRaster(path)
    return ClassMap(raster, classes).read(raster.grid.window)


# --- Folders ------------------------------------------------------------------------------------


def dubai(folder: Path) -> DataSet:
    """Return the scenes of Dubai, split as the test data's README has it."""
    parts = {
        part: tuple(_scene(folder, f"scene{number}") for number in numbers)
        for part, numbers in DUBAI_PARTS.items()
    }
    return DataSet("dubai", Classes.parse(DUBAI), **parts, tags=None)


def data_set(name: str, folder: Path) -> DataSet:
    """Return the data of a folder laid out in one of the two ways.

    Raises:
        FileNotFoundError: it is not.
    """
    if (folder / "train" / "image_labels.csv").is_file():
        return chips(name, folder)
    classes = Classes.parse(str(folder / "classes.toml"))
    found: dict[str, list[Image]] = {"learn": [], "choose": [], "score": []}
    for row in read_rows(folder / "split.csv"):
        found[row["part"]].append(_scene(folder, row["scene"]))
    parts = {part: tuple(images) for part, images in found.items()}
    return DataSet(name, classes, **parts, tags=None)


def _scene(folder: Path, name: str) -> Image:
    return Image(folder / f"{name}.tif", folder / f"{name}_classes.tif", name)


def chips(name: str, folder: Path) -> DataSet:
    """Return chips, of which the fifth of the training scenes is for choosing."""
    tags = folder / "train" / "image_labels.csv"
    names = [column for column in read_rows(tags)[0] if column not in ("image", "scene")]
    training = _chips(folder / "train")
    learn, choose = (
        tuple(chip for chip in training if deepglobe.is_for_choosing(chip.scene) == chosen)
        for chosen in (False, True)
    )
    classes = Classes.from_names(names)
    return DataSet(name, classes, learn, choose, _chips(folder / "val"), tags)


def _chips(folder: Path) -> tuple[Image, ...]:
    images, masks = (
        {path.stem: path for path in sorted((folder / kind).iterdir())}
        for kind in ("images", "masks")
    )
    return tuple(
        Image(images[row["image"]], masks[row["image"]], row.get("scene", row["image"]))
        for row in read_rows(folder / "image_labels.csv")
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- Sizes --------------------------------------------------------------------------------------


def thinned(data: DataSet, every: int) -> DataSet:
    """Return the data with one of so many images to learn on; those to choose on stay."""
    return replace(data, learn=data.learn[::every])


def reduced(data: DataSet, side: int, folder: Path) -> DataSet:
    """Return chips of at most ``side`` pixels, written to a folder where they are not there yet.

    Images are averaged (box filter), masks take the nearest pixel.
    """
    learn, choose, score = (
        tuple(_reduced(chip, side, folder / part) for chip in images)
        for part, images in (
            ("learn", data.learn),
            ("choose", data.choose),
            ("score", data.score),
        )
    )
    return replace(data, learn=learn, choose=choose, score=score)


def central(data: DataSet, side: int, folder: Path) -> DataSet:
    """Return scenes to learn and choose on cut to their middle, at most ``side`` pixels a side.

    The pieces are written to a folder where they are not there yet; scenes to score stay whole.
    """
    learn, choose = (
        tuple(_central(scene, side, folder) for scene in images)
        for images in (data.learn, data.choose)
    )
    return replace(data, learn=learn, choose=choose)


def _central(scene: Image, side: int, folder: Path) -> Image:
    path, truth = (_cut(whole, side, folder) for whole in (scene.path, scene.truth))
    return replace(scene, path=path, truth=truth)


def _cut(path: Path, side: int, folder: Path) -> Path:
    piece = folder / f"{path.stem}.tif"
    if not piece.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as whole, replacing(piece, overwrite=True) as temporary:
            height, width = min(whole.height, side), min(whole.width, side)
            top, left = (whole.height - height) // 2, (whole.width - width) // 2
            window = rasterio.windows.Window(left, top, width, height)
            keys = ("driver", "dtype", "count", "crs", "nodata")
            profile = {key: whole.profile[key] for key in keys}
            profile |= {
                "height": height,
                "width": width,
                "transform": whole.window_transform(window),
            }
            with rasterio.open(temporary, "w", **profile) as out:
                out.write(whole.read(window=window))
    return piece


def _reduced(chip: Image, side: int, folder: Path) -> Image:
    with Picture.open(chip.path) as picture:
        if max(picture.size) <= side:
            return chip
    path = _shrunk(chip.path, side, folder / "images", Picture.Resampling.BOX)
    truth = _shrunk(chip.truth, side, folder / "masks", Picture.Resampling.NEAREST)
    return replace(chip, path=path, truth=truth)


def _shrunk(path: Path, side: int, folder: Path, how: Picture.Resampling) -> Path:
    small = folder / f"{path.stem}.png"
    if not small.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with Picture.open(path) as picture, replacing(small, overwrite=True) as temporary:
            scale = side / max(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            picture.resize(size, how).save(temporary, "png")
    return small


# --- Sites --------------------------------------------------------------------------------------


def make_site(data: DataSet, path: Path, progress: Progress) -> Site:
    """Make the site of the training images with their tags, if it is not there yet."""
    ready = path.with_suffix(".tagged")
    if not ready.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = TileConfig() if data.chips else TileConfig(TILE, overlap=0)
        images = [image.path for image in data.training]
        site = tile(
            images,
            path,
            data.classes,
            config=config,
            chips=data.chips,
            overwrite=path.exists(),
            progress=progress,
        )
        tags = data.tags or path.with_name("tags.csv")
        if not data.chips:
            write_tags(site, [image.truth for image in data.training], tags)
        tag(path, [tags], progress=progress)
        ready.touch()
    return Site(path)


def write_tags(site: Site, truths: Sequence[Path], out: Path) -> None:
    """Write which class is in which tile, the only thing weak rows know of class rasters."""
    scenes = [scene.tiles for scene in site.scenes.values()]
    table = tags_from_raster(truths, scenes, site.classes, LEAST)
    with (
        replacing(out, overwrite=True) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tile", *site.classes.names])
        for scene in scenes:
            tags = table[scene.name][scene.valid_tiles]
            for name, values in zip(scene.tile_ids, tags.tolist(), strict=True):
                writer.writerow([name, *("" if value == UNKNOWN else value for value in values)])


def hold_back(site: Site, names: Sequence[str]) -> None:
    """Make whole scenes of a site its validation split, which no network learns from."""
    held = {name: np.full_like(site.scenes[name].tile_valid, name in names) for name in site.scenes}
    scenes = site.scenes
    if all(np.array_equal(scenes[name].validation, held[name]) for name in scenes):
        return
    site.forget_layers(DERIVED)
    for name, scene in scenes.items():
        tags = scene.tags
        assert tags is not None
        scene.set_tags(tags, held[name])
