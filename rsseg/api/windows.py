"""Windows: which parts of a tagged site the steps of labelling work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.config import ClassifierConfig, Settings, fingerprint
from rsseg.errors import InputError
from rsseg.grid import Tile, Tiling
from rsseg.io.remote import as_path, describe_source
from rsseg.io.site import Scene, Site
from rsseg.io.tag_table import is_tagged
from rsseg.io.vector import Area, split_layer


@dataclass(frozen=True)
class Chain:
    """Which windows the steps work on.

    Args:
        site: the site.
        config: of the classifier; its window and halo are those of all steps but the masks.
        tags: scene name → (rows, cols, K).
        tilings: scene name → windows of n x n cores.
        tagged: scene name → windows with a tagged core, inside the area of interest.
        mixed: those of them whose tags allow more than one class.
        area_key: stands for the area of interest.
    """

    site: Site
    config: ClassifierConfig
    tags: Mapping[str, NDArray[np.int8]]
    tilings: Mapping[str, Tiling]
    tagged: Mapping[str, Sequence[Tile]]
    mixed: Mapping[str, Sequence[Tile]]
    area_key: str | None

    @classmethod
    def plan(cls, site: Site, settings: Settings, aoi: str | Path | None) -> Chain:
        """Find the windows."""
        tags = site.tags
        config = settings.classifier
        scenes = site.scenes
        tilings = windows_of(scenes, config.window, config.halo)
        areas = {} if aoi is None else _areas(scenes, as_path(aoi))
        tagged: dict[str, list[Tile]] = {name: [] for name in scenes}
        mixed: dict[str, list[Tile]] = {name: [] for name in scenes}
        for name, scene in scenes.items():
            if aoi is not None and name not in areas:
                continue
            for tile in tilings[name]:
                near = tags_under(scene, tags[name], tile)
                inside = aoi is None or areas[name].covers(tile.core)
                if len(near) and inside:
                    tagged[name].append(tile)
                    if (near != 0).any(axis=0).sum() > 1:
                        mixed[name].append(tile)
        area_key = None
        if aoi is not None:
            file, layer = split_layer(as_path(aoi))
            area_key = fingerprint(describe_source(file), layer)
        return cls(site, config, tags, tilings, tagged, mixed, area_key)


def windows_of(scenes: Mapping[str, Scene], side: int, halo: int) -> dict[str, Tiling]:
    """Return the windows that networks see: blocks of cores of about ``side`` pixels.

    Each has ``halo`` pixels of context, but where every scene is one tile (chips) there is none
    to be had. A batch may hold windows of several scenes, so all are of one size.
    """
    count = max(1, round(side / next(iter(scenes.values())).tiling.core))
    if all(len(scene.tiling) == 1 for scene in scenes.values()):
        count, halo = 1, 0
    return {name: scene.tiling.merged(count, halo) for name, scene in scenes.items()}


def tags_under(scene: Scene, tags: NDArray[np.int8], tile: Tile) -> NDArray[np.int8]:
    """Return the tags of the tagged cores of a window, (N, K)."""
    near = np.array([tags[index] for index in scene.tiling.members(tile.core)])
    return near[is_tagged(near)]


def windows_over(tiling: Tiling, tiles: Sequence[Tile]) -> list[Tile]:
    """Return the windows whose cores meet those of the tiles, in raster order."""
    return [tiling[at] for at in sorted({at for one in tiles for at in tiling.members(one.core)})]


def _areas(scenes: Mapping[str, Scene], aoi: Path) -> dict[str, Area]:
    """Return the area of interest on each scene that it meets."""
    areas: dict[str, Area] = {}
    missed: InputError | None = None
    for name, scene in scenes.items():
        try:
            areas[name] = Area(aoi, scene.grid)
        except InputError as error:
            missed = error
    if not areas and missed is not None:
        raise missed
    return areas
