"""Prediction: windows in, blocks out, never the whole raster in memory.

The raster is cut into overlapping windows anchored at its origin. They are taken row by row, left
to right, in batches that never span two rows of windows; class probabilities are weighted and
summed window by window, and what no later window touches is decided at once. Only the strip where
two rows of windows overlap waits, so memory grows with the raster's width and not with its height.
Neither blocks nor workers nor an interruption change the order of any sum, hence of any pixel.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, product
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.classes import IGNORE, Classes
from rsseg.config import fingerprint as fingerprint_of
from rsseg.errors import InputError
from rsseg.grid import Grid, Window, window_starts
from rsseg.io.blocks import BlockStore
from rsseg.io.files import check_output
from rsseg.io.mapfile import TILE_SIDE, strips, write_map
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.ops.blend import axis_weights
from rsseg.progress import SILENT, Progress

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (B, C, S, S) float32, normalised → class probabilities (B, K, S, S) float32 in [0, 1]."""

CONFIDENCE_SCALE = 254
"""A confidence of 1 in the uint8 layer; 255 is nodata."""

BLOCK_PIXELS = 4_000_000
"""About how much an interruption may cost: pixels of a block where none is asked for."""

SCRATCH_SUFFIX = ".partial"
"""What the folder of finished blocks is called, after the name of the map."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Job:
    """What decides a prediction's pixels, besides the network.

    Args:
        raster: the source.
        bands: what its values mean to the network.
        class_count: K.
        window: side of the network's windows in pixels.
        overlap: share of the window by which neighbours overlap, 0 to 0.75.
        batch_size: windows per forward pass; the last batch of a row of windows may be smaller.
        area: where to predict; None is everywhere.
    """

    raster: Raster
    bands: Bands
    class_count: int
    window: int
    overlap: float
    batch_size: int
    area: Area | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.class_count < IGNORE
        assert self.window > 0
        assert self.batch_size > 0
        assert 0 <= self.overlap <= 0.75
        assert self.stride > 0

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the raster in pixels."""
        return self.raster.grid.shape

    @property
    def shared(self) -> int:
        """Pixels by which neighbouring windows overlap."""
        return round(self.window * self.overlap)

    @property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        return self.window - self.shared

    @cached_property
    def rows(self) -> list[int]:
        """First pixel row of each row of windows."""
        return window_starts(self.shape[0], self.window, self.stride)

    @cached_property
    def cols(self) -> list[int]:
        """First pixel column of each column of windows."""
        return window_starts(self.shape[1], self.window, self.stride)

    def touching(self, top: int, bottom: int) -> range:
        """Return the rows of windows that meet the pixel rows ``top … bottom - 1``."""
        met = [r for r, row in enumerate(self.rows) if row < bottom and row + self.window > top]
        return range(met[0], met[-1] + 1)


class _Seen(NamedTuple):
    row: int
    col: int
    image: NDArray[np.float32] | None  # (C, S, S); None where there is nothing to predict
    valid: NDArray[np.bool_]  # (S, S)


def default_block_rows(width: int) -> int:
    """Return the height of blocks for a raster of that width: a multiple of 64, 64 to 2048."""
    return min(max(BLOCK_PIXELS // width // 64, 1), 32) * 64


def predict_blocks(
    job: Job,
    forward: Forward,
    *,
    block_rows: int,
    wanted: Sequence[int] | None = None,
    workers: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Predict block by block.

    Args:
        job: what to predict.
        forward: the network.
        block_rows: height of a block in pixels; the last one may be lower.
        wanted: indices of the blocks to make, ascending; None makes all.
        workers: threads that read ahead; 0 reads when it is needed.
        tick: called once for every window, also for those where there is nothing to predict.

    Yields:
        (index, block): block is (2, rows, W) uint8, class index and confidence (0 … 254); 255
        where the source has no valid pixel and outside the area. Of equal probabilities the lower
        class wins.
    """
    assert block_rows > 0
    height = job.shape[0]
    every = range(math.ceil(height / block_rows))
    for run in _runs(every if wanted is None else wanted):
        top, bottom = run.start * block_rows, min(run.stop * block_rows, height)
        strips = _strips(job, forward, top, bottom, workers, tick)
        yield from zip(run, regrouped(strips, block_rows), strict=True)


def regrouped(strips: Iterable[NDArray[np.uint8]], rows: int) -> Iterator[NDArray[np.uint8]]:
    """Cut strips (count, any height, W) anew into strips of ``rows`` rows; the last is the rest."""
    waiting: deque[NDArray[np.uint8]] = deque()
    height = 0
    for strip in strips:
        waiting.append(strip)
        height += strip.shape[1]
        while height >= rows:
            yield _take(waiting, rows)
            height -= rows
    if height:
        yield _take(waiting, height)


def _take(waiting: deque[NDArray[np.uint8]], rows: int) -> NDArray[np.uint8]:
    parts: list[NDArray[np.uint8]] = []
    while rows:
        strip = waiting.popleft()
        parts.append(strip[:, :rows])
        if strip.shape[1] > rows:
            waiting.appendleft(strip[:, rows:])
        rows -= parts[-1].shape[1]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _runs(indices: Sequence[int]) -> Iterator[range]:
    """Split ascending indices into runs without gaps."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        yield range(members[0], members[-1] + 1)


def _strips(
    job: Job,
    forward: Forward,
    top: int,
    bottom: int,
    workers: int,
    tick: Callable[[], None],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixel rows ``top … bottom - 1`` as one strip (2, rows, W) per row of windows."""
    cells = product(job.touching(top, bottom), range(len(job.cols)))
    # Ahead of the batch that is being predicted, one batch waits; that bounds the memory.
    ahead = max(job.batch_size, workers)
    blend = _Blend(job)
    with closing(_ahead(lambda cell: _read(job, *cell), cells, workers, ahead)) as reads:
        for row, seen in groupby(_ticking(reads, tick), key=lambda read: read.row):
            strip = blend.row(row, _predicted(job, forward, seen))
            start = job.rows[row]
            cut = strip[:, max(top - start, 0) : bottom - start]
            if cut.shape[1]:
                yield cut


def _read(job: Job, row: int, col: int) -> _Seen:
    side = job.window
    window = Window(job.rows[row], job.cols[col], side, side)
    nothing = _Seen(row, col, None, np.zeros((side, side), bool))
    if job.area is not None and not job.area.covers(window):
        return nothing
    image, valid = job.raster.read(window)
    wanted = valid if job.area is None else valid & job.area.mask(window)
    if not wanted.any():
        return nothing
    return _Seen(row, col, job.bands.normalise(image, valid), wanted)


def _ahead(
    function: Callable[[T], U], items: Iterable[T], workers: int, ahead: int
) -> Generator[U]:
    """Map in order, with threads that work up to ``ahead`` items in advance."""
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(workers, "rsseg-read") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _ticking(items: Iterable[T], tick: Callable[[], None]) -> Iterator[T]:
    for item in items:
        yield item
        tick()


def _predicted(
    job: Job, forward: Forward, seen: Iterable[_Seen]
) -> Iterator[tuple[_Seen, NDArray[np.float32]]]:
    """Yield the windows of a row that have something to predict, with (K, S, S) probabilities."""
    windows = ((read, read.image) for read in seen if read.image is not None)
    while batch := list(islice(windows, job.batch_size)):
        scores = forward(np.stack([image for _, image in batch]))
        assert scores.shape == (len(batch), job.class_count, job.window, job.window), scores.shape
        yield from zip((read for read, _ in batch), scores, strict=True)


class _Blend:
    """Sums weighted windows, row after row of windows, and decides what is complete.

    A window adds to what its left and its upper neighbours left in the pixels they share, and
    leaves what its right and its lower neighbours will share. A window that was skipped has no
    pixel to decide, so it needs nothing of its neighbours and has nothing to give.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.row_weights = axis_weights(job.rows, job.window, job.shared)
        self.col_weights = axis_weights(job.cols, job.window, job.shared)
        self.below = np.zeros((job.class_count, job.shared, job.shape[1]), np.float32)

    def row(
        self, row: int, predicted: Iterable[tuple[_Seen, NDArray[np.float32]]]
    ) -> NDArray[np.uint8]:
        """Take in the next row of windows; return the pixel rows (2, rows, W) it completes."""
        job = self.job
        height, width = job.shape
        rows = height - job.rows[row] if row == len(job.rows) - 1 else job.stride
        strip = np.full((2, rows, width), IGNORE, np.uint8)
        previous, right = -2, np.empty(0, np.float32)
        for read, scores in predicted:
            weights = np.multiply.outer(self.row_weights[row], self.col_weights[read.col])
            part = scores * weights
            if read.col == previous + 1:
                part[:, :, : job.shared] += right
            previous, right = read.col, part[:, :, job.stride :]
            columns = self._columns(read.col)
            complete = self._over(part[:, :, : columns.stop - columns.start], columns)
            valid = read.valid[:rows, : columns.stop - columns.start]
            strip[:, :, columns] = decide(complete[:, :rows], valid)
        return strip

    def _columns(self, col: int) -> slice:
        """Return the pixel columns that a window of this column is the last to touch."""
        start = self.job.cols[col]
        last = col == len(self.job.cols) - 1
        return slice(start, self.job.shape[1] if last else start + self.job.stride)

    def _over(self, part: NDArray[np.float32], columns: slice) -> NDArray[np.float32]:
        """Add what the rows above left in these columns, in place, and leave the new overlap."""
        part[:, : self.job.shared] += self.below[:, :, columns]
        self.below[:, :, columns] = part[:, self.job.stride :]
        return part


def decide(scores: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return class index and confidence of each pixel.

    Args:
        scores: (K, H, W) float32, probabilities.
        valid: (H, W); other pixels become 255 in both layers.

    Returns:
        (2, H, W) uint8: the class index (of equal scores the lowest), and the winner's score from
        0 to 1 as 0 to 254.
    """
    label = np.zeros(valid.shape, np.uint8)
    best = scores[0].copy()
    # argmax over the first axis would copy the scores into another order; this is much faster.
    for index, score in enumerate(scores[1:], start=1):
        label[score > best] = index
        np.maximum(best, score, out=best)
    confidence = np.rint(np.clip(best, 0, 1) * CONFIDENCE_SCALE).astype(np.uint8)
    return np.where(valid, np.stack([label, confidence]), np.uint8(IGNORE))


@dataclass(frozen=True)
class Plan:
    """What a prediction will take, known without running the network.

    Args:
        shape: (height, width) of the map in pixels.
        predicted_shape: (height, width) of the raster as the network sees it; differs from
            ``shape`` where the raster is resampled.
        windows: (rows, columns) of windows; those without a valid pixel are skipped in the run.
        window: side of a window in pixels.
        block_rows: height of a block in pixels.
        blocks: number of blocks.
        scratch_bytes: disk for finished blocks until the map is written, at the most.
        output_bytes: disk for the map and, if wanted, the confidence, at the most.
        memory_bytes: memory of the arrays, about; Python's libraries, GDAL's block cache, and the
            network with its activations come on top.
    """

    shape: tuple[int, int]
    predicted_shape: tuple[int, int]
    windows: tuple[int, int]
    window: int
    block_rows: int
    blocks: int
    scratch_bytes: int
    output_bytes: int
    memory_bytes: int


def plan(
    job: Job,
    *,
    confidence: bool = False,
    block_rows: int | None = None,
    workers: int = 2,
    source: Raster | None = None,
) -> Plan:
    """Say what ``predict_map`` with the same arguments will take; nothing is read or written."""
    layers = 2 if confidence else 1
    height, width = job.shape
    rows = block_rows or default_block_rows(width)
    shape = (source or job.raster).grid.shape
    return Plan(
        shape=shape,
        predicted_shape=job.shape,
        windows=(len(job.rows), len(job.cols)),
        window=job.window,
        block_rows=rows,
        blocks=math.ceil(height / rows),
        scratch_bytes=_incompressible(layers * height * width),
        output_bytes=layers * _incompressible(math.prod(_whole_tiles(shape))),
        memory_bytes=_memory(job, rows, workers),
    )


def _whole_tiles(shape: tuple[int, int]) -> tuple[int, int]:
    height, width = (TILE_SIDE * math.ceil(side / TILE_SIDE) for side in shape)
    return height, width


def _incompressible(size: int) -> int:
    """Return what deflate makes of ``size`` bytes at the worst, with headers."""
    return size + size // 1000 + 100_000


def _memory(job: Job, block_rows: int, workers: int) -> int:
    width, pixels = job.shape[1], job.window**2
    waiting = job.class_count * job.shared * width * 4
    # Two batches of images (one read ahead), one stacked; scores, and one weighted window.
    images = (2 * job.batch_size + max(job.batch_size, workers)) * len(job.bands) * pixels * 4
    scores = (job.batch_size + 2) * job.class_count * pixels * 4
    decided = 2 * width * (2 * block_rows + job.window + TILE_SIDE)
    return waiting + images + scores + decided


def predict_map(
    job: Job,
    forward: Forward,
    out: Path,
    *,
    classes: Classes,
    fingerprint: str,
    confidence_out: Path | None = None,
    block_rows: int | None = None,
    workers: int = 2,
    source: Raster | None = None,
    tags: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
    overwrite: bool = False,
) -> None:
    """Predict a raster into a GeoTIFF of class ids, and go on where an earlier run was broken off.

    Finished blocks wait in a folder ``<out>.partial``; it is removed when the files are complete.

    Args:
        job: what to predict.
        forward: the network.
        out: the map to write, uint8, 255 = nodata.
        classes: as many as the network has; their ids and colours go into the map.
        fingerprint: stands for the network. Blocks of another network, job, raster file or area
            file are thrown away.
        confidence_out: the winner's probability to write, uint8, 0 … 254 for 0 … 1, 255 = nodata.
        block_rows: height of a block in pixels; changes no pixel.
        workers: threads that read ahead; 0 reads when it is needed.
        source: the raster as it is on disk, where ``job.raster`` is resampled: the map is written
            on this one's grid.
        tags: metadata of the files.
        progress: is shown the windows.
        overwrite: whether existing files may be replaced.

    Raises:
        InputError: an output cannot be written to, or exists without ``overwrite``.
        RunError: reading or writing failed.
    """
    assert len(classes) == job.class_count
    rows = block_rows or default_block_rows(job.shape[1])
    store = _store(job, out, 1 if confidence_out is None else 2, fingerprint, rows)
    check_output(out, overwrite)
    # The map is written last: with all blocks there and no map yet, the confidence is ours.
    overwrite_ours = overwrite or not (store.missing() or out.exists())
    if confidence_out is not None:
        _check_second(confidence_out, out, overwrite_ours)
    _fill(store, job, forward, workers, progress)
    grid = (source or job.raster).grid
    if confidence_out is not None:
        shares = _placed(store, 1, job, source)
        write_map(confidence_out, grid, shares, tags=tags, overwrite=overwrite_ours)
    labels = _placed(store, 0, job, source)
    ids = ((window, classes.to_ids(strip)) for window, strip in labels)
    write_map(out, grid, ids, classes=classes, tags=tags, overwrite=overwrite)
    store.remove()


def _store(job: Job, out: Path, count: int, fingerprint: str, block_rows: int) -> BlockStore:
    described = fingerprint_of(
        fingerprint,
        (job.class_count, job.window, job.overlap, job.batch_size),
        (job.shape, tuple(job.raster.grid.transform), job.bands.to_dict()),
        _identity(job.raster.path),
        None if job.area is None else _identity(job.area.path),
    )
    path = out.with_name(out.name + SCRATCH_SUFFIX)
    return BlockStore(path, described, count, job.shape, block_rows)


def _identity(path: Path) -> tuple[str | int, ...]:
    """Return what tells a file from its earlier self; the name alone where it is no plain file."""
    if not path.is_file():
        return (str(path),)
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _check_second(confidence_out: Path, out: Path, overwrite: bool) -> None:
    if confidence_out.resolve() == out.resolve():
        raise InputError(
            f"{out}: map and confidence are two files; give the confidence another name"
        )
    check_output(confidence_out, overwrite)


def _fill(store: BlockStore, job: Job, forward: Forward, workers: int, progress: Progress) -> None:
    """Predict the blocks that are still missing."""
    missing = store.missing()
    height, rows = job.shape[0], store.block_rows
    ahead = sum(
        len(job.touching(run.start * rows, min(run.stop * rows, height))) for run in _runs(missing)
    )
    per_row, total = len(job.cols), len(job.rows) * len(job.cols)
    with progress.step(
        f"predict {job.raster.path.name}", total, "windows", done=max(0, total - ahead * per_row)
    ) as step:
        blocks = predict_blocks(
            job, forward, block_rows=rows, wanted=missing, workers=workers, tick=step.advance
        )
        for index, block in blocks:
            store.write(index, block[: store.count])


def _placed(
    store: BlockStore, layer: int, job: Job, source: Raster | None
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield one layer from top to bottom, as ``write_map`` wants it, on the map's grid."""
    if source is None:
        for window in strips(store.shape):
            yield window, store.rows(window.row, window.row + window.height)[layer]
        return
    rows, cols = nearest(source.grid, job.raster.grid)
    area = None if job.area is None else Area(job.area.path, source.grid)
    for window in strips(source.grid.shape):
        lines = rows[window.row : window.row + window.height]
        predicted = store.rows(lines[0], lines[-1] + 1)[layer]
        valid = source.valid(window) if area is None else source.valid(window) & area.mask(window)
        drawn = predicted[(lines - lines[0])[:, None], cols]
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
