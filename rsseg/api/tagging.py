"""tag: image-level labels of a site's tiles, from whatever the user has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.io.remote import as_path
from rsseg.io.site import Site
from rsseg.io.tag_table import TagTable
from rsseg.io.tags import advise, check, read_tags, shares, split_blocks
from rsseg.progress import SILENT, Progress

DERIVED = ("cam", "crf", "labels")
"""Layers that hang on the tags."""


@dataclass(frozen=True)
class ClassShare:
    """In how many tiles a class was found.

    Args:
        name: the class.
        present: tiles tagged with it.
        known: tiles of which it is known whether they have it.
    """

    name: str
    present: int
    known: int


def tag(
    site: str | Path,
    sources: Sequence[str | Path],
    *,
    field: str | None = None,
    only: str | None = None,
    min_area: float = 0.0,
    min_share: float = 0.01,
    val_share: float = 0.2,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[ClassShare]:
    """Store the tags of a site's tiles, and which tiles are held back for validation.

    Args:
        site: the site.
        sources: tag sheets, CSVs, vector files or class rasters; later ones fill gaps.
        field: field of vector features that holds the class name or id.
        only: the class that all vector features are of.
        min_area: least area of a class in a tile, m², from polygons.
        min_share: least share of a class in a tile, from rasters.
        val_share: share of the tiles for validation, in whole spatial blocks.
        seed: of the split.
        progress: is told what to watch out for.

    Returns:
        How many tiles each class was found in.

    Raises:
        InputError: the sources do not fit the site, no tile is tagged, or a class nowhere.
    """
    opened = Site(site)
    scenes = [scene.tiles for scene in opened.scenes.values()]
    tags = read_tags(
        [as_path(source) for source in sources],
        scenes,
        opened.classes,
        field=field,
        only=only,
        min_area=min_area,
        min_share=min_share,
        progress=progress,
    )
    check(tags, opened.classes)
    split = split_blocks(scenes, tags, val_share=val_share, seed=seed)
    if not _are_stored(opened, tags, split):
        opened.forget_layers(DERIVED)
        for name, scene in opened.scenes.items():
            scene.set_tags(tags[name], split[name])
    for message in advise(tags, scenes, opened.classes, opened.core):
        progress.warn(message)
    counted = zip(opened.classes.names, shares(tags, opened.classes), strict=True)
    return [ClassShare(name, present, known) for name, (present, known) in counted]


def _are_stored(site: Site, tags: TagTable, split: Mapping[str, NDArray[np.bool_]]) -> bool:
    """Whether the site has these very tags, so that what was made from them stays."""
    return all(
        scene.tags is not None
        and np.array_equal(scene.tags, tags[name])
        and np.array_equal(scene.validation, split[name])
        for name, scene in site.scenes.items()
    )
