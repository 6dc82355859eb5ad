"""Tags from class rasters: which classes hold how much of which core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap, ClassRaster, scenes_under
from rsseg.io.tag_table import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    SceneTiles,
    TagTable,
    completed,
    listed,
    unknown_tags,
)
from rsseg.progress import SILENT, Progress


def tags_from_raster(
    paths: Path | Sequence[Path],
    scenes: Sequence[SceneTiles],
    classes: Classes,
    min_share: float = 0.01,
    progress: Progress = SILENT,
) -> TagTable:
    """Return presence per core from rasters of class ids, on any grid and in any CRS.

    A class is present where it has at least ``min_share`` of the core's classified pixels, and
    absent otherwise; where less than half of the core is classified, absent becomes unknown.
    Rasters without georeference belong to the scene of the same name and size.

    Args:
        paths: one class raster, or several that lie side by side.
        scenes: the site's scenes.
        classes: the classes; other ids, nodata and 255 are not classified.
        min_share: in [0, 1].
        progress: shows the pixels being counted.

    Raises:
        InputError: unreadable; more than one band; lies on none of the scenes; no known id.
        RunError: a file turns out to be damaged.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    tags = unknown_tags(scenes, classes)
    counts = {s.name: np.zeros((*s.tiling.counts, len(classes)), np.int64) for s in scenes}
    for file in files:
        _count_raster(file, scenes, classes, counts, progress)
    for scene in scenes:
        tags[scene.name] = _from_counts(counts[scene.name], scene, min_share)
    return completed(tags, scenes, classes)


def _count_raster(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    counts: dict[str, NDArray[np.int64]],
    progress: Progress,
) -> None:
    """Add the raster's pixels per tile and class to ``counts``."""
    found = 0
    strange: set[float] = set()
    with ClassRaster(path) as raster:
        meant = scenes_under(raster, {scene.name: scene.grid for scene in scenes})
        for scene in (scene for scene in scenes if scene.name in meant):
            with raster.on(scene.grid, scene.name) as laid:
                pixels = ClassMap(laid, classes)
                added = _count_tiles(pixels, scene, progress)
            counts[scene.name] += added
            found += int(added.sum())
            strange.update(pixels.strange_ids)
    if not found:
        ids = listed([str(class_id) for class_id in classes.ids])
        values = listed([f"{value:g}" for value in sorted(strange)]) or "nodata"
        raise InputError(
            f"{path}: no pixel on the site has a class id ({ids}); its values are {values}; "
            "give the ids in the classes' TOML"
        )


def _count_tiles(pixels: ClassMap, scene: SceneTiles, progress: Progress) -> NDArray[np.int64]:
    """Return the pixels per tile and class, (rows, cols, K)."""
    (rows, cols), core = scene.tiling.counts, scene.tiling.core
    count, width = len(pixels.classes), scene.grid.shape[1]
    counts = np.zeros((rows, cols, count), np.int64)
    column = np.arange(width) // core * 256
    with progress.step(f"counting classes in {scene.name}", rows, "tile rows") as step:
        for row in range(rows):
            strip = Window(row * core, 0, core, width).clipped(scene.grid.shape)
            cells = pixels.read(strip) + column
            histogram = np.bincount(cells.ravel(), minlength=cols * 256).reshape(cols, 256)
            counts[row] = histogram[:, :count]
            step.advance()
    return counts


def _from_counts(
    counts: NDArray[np.int64], scene: SceneTiles, min_share: float
) -> NDArray[np.int8]:
    """Return tags (rows, cols, K) int8 from pixels per tile and class, (rows, cols, K)."""
    classified = counts.sum(axis=-1, keepdims=True)
    share = counts / np.maximum(classified, 1)
    tags = np.where((counts > 0) & (share >= min_share), np.int8(PRESENT), np.int8(ABSENT))
    left, top, right, bottom = scene.core_bounds.T
    area = np.zeros(scene.tiling.counts)
    area[scene.valid_tiles] = (right - left) * (bottom - top)
    unsure = (classified < 0.5 * area[..., None]) | (classified == 0)
    tags[unsure & (tags == ABSENT)] = UNKNOWN
    return tags
