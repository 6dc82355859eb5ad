"""run: a stage over the tiles of a site, resumable, in this process, its threads, or others."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.grid import Tile, Window
from rsseg.io.masks import MASKS, OBJECTS, SceneObjects
from rsseg.io.site import Scene, Site
from rsseg.nets.device import single_threaded
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
    """
    for name in tiles:
        site.scenes[name].layer(stage.writes, fingerprint)  # also where there is nothing to do
    batches = _batches(tiles, stage.batch_size)
    pending = [work for work in batches if not _is_done(stage, site, fingerprint, work)]
    total = sum(len(work[1]) for work in batches)
    done = total - sum(len(work[1]) for work in pending)
    with progress.step(stage.label, total, "tiles", done=done) as step:
        compute = _COMPUTE[stage.pool if workers > 1 and len(pending) > 1 else "none"]
        compute(stage, site, fingerprint, pending, workers, step.advance)
    site.set_layer(stage.writes.name, fingerprint)


def _batches(tiles: Mapping[str, Sequence[Tile]], size: int) -> list[Work]:
    return [
        (scene, tuple(members[start : start + size]))
        for scene, members in tiles.items()
        for start in range(0, len(members), size)
    ]


def _is_done(stage: Stage, site: Site, fingerprint: str, work: Work) -> bool:
    scene, members = work
    layer = site.scenes[scene].layer(stage.writes, fingerprint)
    return all(layer.has(tile.core) for tile in members)


Advance = Callable[[int], None]


def _serial(
    stage: Stage, site: Site, fingerprint: str, pending: list[Work], _: int, advance: Advance
) -> None:
    for work in pending:
        advance(_computed(stage, site, fingerprint, work))


def _threads(
    stage: Stage, site: Site, fingerprint: str, pending: list[Work], workers: int, advance: Advance
) -> None:
    with single_threaded():
        pool = ThreadPoolExecutor(min(workers, len(pending)), "rsseg-stage")
        try:
            _wait([pool.submit(_computed, stage, site, fingerprint, w) for w in pending], advance)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _processes(
    stage: Stage, site: Site, fingerprint: str, pending: list[Work], workers: int, advance: Advance
) -> None:
    count = min(workers, len(pending))
    # "spawn" everywhere: forking a process that has threads (torch, GDAL) can hang it.
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    try:
        with _deaf():
            futures = [
                pool.submit(_compute, stage, site.path, fingerprint, work) for work in pending
            ]
        _wait(futures, advance)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_COMPUTE = {"none": _serial, "threads": _threads, "processes": _processes}


def _wait(futures: Sequence[Future[int]], advance: Advance) -> None:
    for future in as_completed(futures):
        advance(future.result())


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C; processes that start meanwhile ignore it for good: it is ours to answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _compute(stage: Stage, path: Path, fingerprint: str, work: Work) -> int:
    return _computed(stage, _open(path), fingerprint, work)


def _computed(stage: Stage, site: Site, fingerprint: str, work: Work) -> int:
    scene = site.scenes[work[0]]
    data = [read_tile(site, scene, tile, stage.reads) for tile in work[1]]
    layer = scene.layer(stage.writes, fingerprint)
    for tile, values in zip(work[1], stage(data), strict=True):
        # Later layers may hang on what exists; another batch can differ from it by rounding.
        if not layer.has(tile.core):
            layer.write(tile.core, values)
    return len(data)


@lru_cache(maxsize=1)
def _open(path: Path) -> Site:
    """Open a site once per worker; the main process might make another of the same name."""
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
