"""Prediction: a raster becomes a map, and goes on where an earlier run was broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.config import fingerprint as fingerprint_of
from rsseg.grid import Grid, Window
from rsseg.io.blocks import BlockStore
from rsseg.io.machine import give_back_freed
from rsseg.io.mapfile import strips, write_map
from rsseg.io.opening import SMALL_CACHE, block_cache
from rsseg.io.raster import Raster
from rsseg.io.remote import describe_source
from rsseg.io.vector import Area
from rsseg.progress import SILENT, Progress
from rsseg.stages.ahead import ahead
from rsseg.stages.blending import Network, predict_blocks, runs
from rsseg.stages.job import Job, default_block_rows
from rsseg.stages.outputs import Outputs
from rsseg.stages.planning import reading_cache

CONFIDENCE = "confidence, 0 to 254 for 0 to 1"
"""Description of the band."""

ENGINE = 2
"""Counts the ways in which pixels were computed; blocks of another one are not gone on with."""

Advance = Callable[[float], None]
"""Is told how many windows more are done."""

Fill = Callable[[BlockStore, Job, Sequence[int], Advance], None]
"""Makes the missing blocks of a job."""

Pick = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Takes what one file shows, (h, w) or (bands, h, w), from the layers (L, h, w) of the scratch."""


def predict_map(
    job: Job,
    network: Network | None,
    outputs: Outputs,
    *,
    classes: Classes,
    fingerprint: str,
    block_rows: int | None = None,
    workers: int = 2,
    source: Raster | None = None,
    elsewhere: Fill | None = None,
    progress: Progress = SILENT,
) -> None:
    """Predict a raster into a GeoTIFF of class ids, and go on where an earlier run was broken off.

    Finished blocks wait in a folder ``<map>.partial``; it is removed when the files are complete.

    Args:
        job: what to predict.
        network: says what is in a window; None where others compute.
        outputs: the files to write.
        classes: as many as the network has; their ids and colours go into the map.
        fingerprint: stands for the network. Blocks of another network, job, raster file or area
            file are thrown away.
        block_rows: height of a block in pixels; changes no pixel.
        workers: threads that read ahead; 0 reads when it is needed.
        source: the raster as it is on disk, where ``job.raster`` is resampled: the map is written
            on this one's grid.
        elsewhere: has others make the blocks that are missing.
        progress: is shown the windows, and the pixels of large files being written.

    Raises:
        InputError: an output cannot be written to, or exists and is not to be replaced.
        RunError: reading or writing failed.
    """
    assert len(classes) == job.class_count
    rows = block_rows or default_block_rows(job.shape[1])
    store = _store(job, outputs, fingerprint, rows)
    # The map is written last: with all blocks there and no map yet, the others are ours.
    others_ours = not (store.missing() or outputs.map.exists())
    outputs.check(classes, others_ours=others_ours)
    fill = elsewhere or partial(fill_blocks, network=network, workers=workers)
    _fill(store, job, fill, progress)
    give_back_freed()
    with block_cache(SMALL_CACHE):
        _write(store, job, outputs, classes, source, outputs.overwrite or others_ours, progress)
    store.remove()


def _write(
    store: BlockStore,
    job: Job,
    outputs: Outputs,
    classes: Classes,
    source: Raster | None,
    overwrite_others: bool,
    progress: Progress,
) -> None:
    """Write the files from finished blocks, the map last."""
    placed = partial(_placed, store, job, source)
    grid = (source or job.raster).grid
    write = partial(write_map, grid=grid, tags=outputs.tags, progress=progress)
    if outputs.probabilities is not None:
        write(
            outputs.probabilities,
            blocks=placed(_probabilities),
            kind="share",
            count=len(classes),
            descriptions=classes.names,
            overwrite=overwrite_others,
        )
    if outputs.confidence is not None:
        write(
            outputs.confidence,
            blocks=placed(_confidence),
            kind="share",
            descriptions=[CONFIDENCE],
            overwrite=overwrite_others,
        )
    ids = placed(lambda layers: classes.to_ids(layers[0]))
    write(outputs.map, blocks=ids, classes=classes, overwrite=outputs.overwrite)


def _probabilities(layers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return layers[1:]


def _confidence(layers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    best: NDArray[np.uint8] = layers[1:].max(axis=0)
    return best


def _store(job: Job, outputs: Outputs, fingerprint: str, block_rows: int) -> BlockStore:
    described = fingerprint_of(
        fingerprint,
        (ENGINE, job.class_count, job.window, job.overlap, job.batch_size, job.blend),
        (job.shape, tuple(job.raster.grid.transform), job.bands.to_dict()),
        _identity(job.raster.path),
        None if job.area is None else _identity(job.area.path),
    )
    layers = outputs.layers(job.class_count)
    return BlockStore(outputs.scratch, described, layers, job.shape, block_rows)


def _identity(path: Path) -> tuple[str | int, ...]:
    """Return what tells a file from its earlier self; the name alone where it is no plain file."""
    if not path.is_file():
        return (str(path),)
    return tuple(describe_source(path).values())


def _fill(store: BlockStore, job: Job, fill: Fill, progress: Progress) -> None:
    """Make the blocks that are still missing."""
    missing = store.missing()
    total = len(job.rows) * len(job.cols)
    done = max(0, total - windows_of(job, missing, store.block_rows))
    with progress.step(f"predict {job.raster.path.name}", total, "windows", done=done) as step:
        if missing:
            store.begin()
            fill(store, job, missing, step.advance)


def windows_of(job: Job, blocks: Sequence[int], block_rows: int) -> int:
    """Return how many windows have a say in blocks, counted anew after each gap between them."""
    height = job.shape[0]
    parts = [(run.start * block_rows, min(run.stop * block_rows, height)) for run in runs(blocks)]
    return len(job.cols) * sum(len(job.touching(*part)) for part in parts)


def fill_blocks(
    store: BlockStore,
    job: Job,
    wanted: Sequence[int],
    advance: Advance,
    *,
    network: Network | None,
    workers: int,
) -> None:
    """Predict blocks, ascending, into their store."""
    assert network is not None
    blocks = predict_blocks(
        job,
        network,
        block_rows=store.block_rows,
        wanted=wanted,
        layers=store.count,
        workers=workers,
        tick=partial(advance, 1),
    )
    with (
        block_cache(reading_cache(job, workers)),
        closing(blocks),
        closing(ahead(partial(_keep, store), blocks, min(workers, 1), 1)) as kept,
    ):
        for _ in kept:
            pass


def _keep(store: BlockStore, finished: tuple[int, NDArray[np.uint8]]) -> None:
    index, block = finished
    store.write(index, block)


def _placed(
    store: BlockStore, job: Job, source: Raster | None, pick: Pick
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield what ``pick`` takes, from top to bottom, as ``write_map`` wants it, on the map grid."""
    if source is None:
        for window in strips(store.shape):
            yield window, pick(store.rows(window.row, window.row + window.height))
        return
    rows, cols = nearest(source.grid, job.raster.grid)
    area = None if job.area is None else Area(job.area.path, source.grid)
    for window in strips(source.grid.shape):
        lines = rows[window.row : window.row + window.height]
        predicted = pick(store.rows(lines[0], lines[-1] + 1))
        valid = source.valid(window) if area is None else source.valid(window) & area.mask(window)
        drawn = predicted[..., (lines - lines[0])[:, None], cols]
        yield window, np.where(valid, drawn, np.uint8(IGNORE))


def nearest(to: Grid, of: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which row and which column of one grid holds each pixel centre of another.

    Both grids have the same corner and orientation and cover the same ground.

    Returns:
        rows (height of ``to``,) and columns (width of ``to``,), ascending, inside ``of``.
    """
    (across, skew_x, _, skew_y, down, *_) = ~of.transform @ to.transform
    assert max(abs(skew_x), abs(skew_y)) < 1e-6 * min(across, down)
    rows, cols = (
        np.minimum((np.arange(side) + 0.5) * scale, limit - 1).astype(np.int64)
        for side, scale, limit in zip(to.shape, (down, across), of.shape, strict=True)
    )
    return rows, cols
