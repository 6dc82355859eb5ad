"""run: a stage over the tiles of a site, resumable, by whoever computes it side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from rsseg.cluster import Cluster
from rsseg.executors import processes, serial, threads
from rsseg.grid import Tile, Window
from rsseg.io.layers import Layer
from rsseg.io.masks import MASKS, OBJECTS, SceneObjects
from rsseg.io.site import Scene, Site
from rsseg.progress import Progress
from rsseg.stages.stage import Stage, TileData

Work = tuple[str, tuple[Tile, ...]]
"""A scene's name and the tiles that are computed together."""


def run(
    stage: Stage,
    site: Site,
    fingerprint: str,
    tiles: Mapping[str, Sequence[Tile]],
    *,
    workers: int,
    progress: Progress,
    cluster: Cluster | None = None,
) -> None:
    """Compute a layer on the tiles given, except where an earlier run has.

    Batches are consecutive tiles of a scene, a pure function of the tiling; a batch of which a
    tile is missing is computed whole again, so a resumed run ends with the same bytes.

    Args:
        stage: what to compute.
        site: where to read and write.
        fingerprint: of the layer.
        tiles: scene name → tiles (disjoint cores of whole chunks).
        workers: threads or processes for a stage that gains from them; up to 1 takes this one.
        progress: shows the tiles done.
        cluster: computes instead, whatever the stage gains from; the site's path is absolute.

    Raises:
        RunError: workers of the cluster are lost for good, or write where this process cannot see.
    """
    for name in tiles:
        site.scenes[name].layer(stage.writes, fingerprint)  # also where there is nothing to do
    batches = _batches(tiles, stage.batch_size)
    pending = _undone(stage, site, fingerprint, batches)
    total = sum(len(work[1]) for work in batches)
    done = total - sum(len(work[1]) for work in pending)
    with progress.step(stage.label, total, "tiles", done=done) as step:
        here = partial(_computed, stage, site, fingerprint)
        # Workers may outlive this run, and next time the path may hold another site.
        there = partial(_computed_there, stage, site.path, fingerprint, uuid4().hex)
        pool = stage.pool if workers > 1 and len(pending) > 1 else "none"
        if cluster is not None:
            cluster.each(there, pending, step.advance)
            cluster.settle(lambda: _undone(stage, site, fingerprint, pending))
        elif pool == "processes":
            processes(there, pending, workers, step.advance)
        elif pool == "threads":
            threads(here, pending, workers, step.advance)
        else:
            serial(here, pending, step.advance)
    site.set_layer(stage.writes.name, fingerprint)


def _batches(tiles: Mapping[str, Sequence[Tile]], size: int) -> list[Work]:
    return [
        (scene, tuple(members[start : start + size]))
        for scene, members in tiles.items()
        for start in range(0, len(members), size)
    ]


def _undone(stage: Stage, site: Site, fingerprint: str, batches: Sequence[Work]) -> list[Work]:
    """Return the batches of which a tile is missing."""
    names = {name for name, _ in batches}
    layers = {name: _layer(stage, site.scenes[name], fingerprint) for name in names}
    return [
        (name, members)
        for name, members in batches
        if not all(layers[name].has(tile.core) for tile in members)
    ]


def _layer(stage: Stage, scene: Scene, fingerprint: str) -> Layer:
    layer = scene.find_layer(stage.writes.name, fingerprint)
    assert layer is not None, "the main process makes layers"
    return layer


def _computed(stage: Stage, site: Site, fingerprint: str, work: Work) -> int:
    scene = site.scenes[work[0]]
    data = [read_tile(site, scene, tile, stage.reads) for tile in work[1]]
    layer = _layer(stage, scene, fingerprint)
    for tile, values in zip(work[1], stage(data), strict=True):
        # Later layers may hang on what exists; another batch can differ from it by rounding.
        if not layer.has(tile.core):
            layer.write(tile.core, values)
    return len(data)


def _computed_there(stage: Stage, path: Path, fingerprint: str, turn: str, work: Work) -> int:
    """Compute in another process, which opens the site once per turn."""
    site = _open(path, turn)
    # Who was to compute it first may have been lost after writing it.
    pending = _undone(stage, site, fingerprint, [work])
    return _computed(stage, site, fingerprint, work) if pending else len(work[1])


@lru_cache(maxsize=1)
def _open(path: Path, turn: str) -> Site:
    """Open a site once per worker; the next turn may find another of the same name."""
    return Site(path)


def read_tile(site: Site, scene: Scene, tile: Tile, reads: Mapping[str, str]) -> TileData:
    """Read what a stage sees of a tile."""
    image, valid = scene.read(tile.read)
    tags = scene.tags
    if tags is None:
        tags = np.full((*scene.tiling.counts, len(site.classes)), -1, np.int8)
    near = _tags_of_pixels(tags, tile.read, scene.tiling.core)
    planes = {name: key for name, key in reads.items() if name not in (MASKS, OBJECTS)}
    objects = SceneObjects(scene, reads[MASKS], reads[OBJECTS]) if MASKS in reads else None
    return TileData(
        tile=tile,
        image=image,
        valid=valid,
        allowed=np.moveaxis(near != 0, -1, 0),
        labelled=np.asarray((near >= 0).any(axis=-1)),
        layers={name: _read_layer(scene, name, key, tile.read) for name, key in planes.items()},
        objects=None if objects is None else objects.read(tile.core),
        scene=scene.name,
    )


def _read_layer(scene: Scene, name: str, fingerprint: str, window: Window) -> NDArray[Any]:
    layer = scene.find_layer(name, fingerprint)
    assert layer is not None, f"stage order: {name} is missing"
    return layer.read(window)


def _tags_of_pixels(tags: NDArray[np.int8], window: Window, core: int) -> NDArray[np.int8]:
    rows = np.arange(window.row, window.row + window.height) // core
    cols = np.arange(window.col, window.col + window.width) // core
    rows = np.clip(rows, 0, tags.shape[0] - 1)
    cols = np.clip(cols, 0, tags.shape[1] - 1)
    return tags[rows][:, cols]
