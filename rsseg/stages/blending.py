"""Windows in, blocks out: a network's overlapping windows, blended and decided pixel by pixel.

The raster is cut into overlapping windows anchored at its origin. They are taken row by row, left
to right, in batches that never span two rows of windows; class probabilities are weighted and
summed window by window, and what no later window touches is decided at once. Only the strip where
two rows of windows overlap waits, so memory grows with the raster's width and not with its height.
Neither blocks nor workers nor an interruption change the order of any sum, hence of any pixel.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, islice, product
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.grid import Window
from rsseg.io.mapfile import SHARE_SCALE
from rsseg.ops.blend import axis_weights
from rsseg.stages.ahead import ahead
from rsseg.stages.job import Job

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (B, C, S, S) float32, normalised → class probabilities (B, K, S, S) float32 in [0, 1]."""

T = TypeVar("T")


class _Seen(NamedTuple):
    row: int
    col: int
    image: NDArray[np.float32] | None  # (C, S, S); None where there is nothing to predict
    valid: NDArray[np.bool_]  # (S, S)


def predict_blocks(
    job: Job,
    forward: Forward,
    *,
    block_rows: int,
    wanted: Sequence[int] | None = None,
    probabilities: bool = False,
    workers: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Predict block by block.

    Args:
        job: what to predict.
        forward: the network.
        block_rows: height of a block in pixels; the last one may be lower.
        wanted: indices of the blocks to make, ascending; None makes all.
        probabilities: whether to give every class's probability instead of the confidence.
        workers: threads that read ahead; 0 reads when it is needed.
        tick: called once for every window, also for those where there is nothing to predict.

    Yields:
        (index, block): block is (2, rows, W) uint8, class index and confidence (0 … 254), or
        (1 + K, rows, W), class index and probabilities (0 … 254); 255 where the source has no
        valid pixel and outside the area. Of equal probabilities the lower class wins.
    """
    assert block_rows > 0
    height = job.shape[0]
    every = range(math.ceil(height / block_rows))
    for run in runs(every if wanted is None else wanted):
        top, bottom = run.start * block_rows, min(run.stop * block_rows, height)
        blend = _Blend(job, probabilities)
        strips = _strips(blend, forward, top, bottom, workers, tick)
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


def runs(indices: Sequence[int]) -> Iterator[range]:
    """Split ascending indices into runs without gaps."""
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        yield range(members[0], members[-1] + 1)


def _strips(
    blend: _Blend,
    forward: Forward,
    top: int,
    bottom: int,
    workers: int,
    tick: Callable[[], None],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixel rows ``top … bottom - 1`` as one strip (L, rows, W) per row of windows."""
    job = blend.job
    cells = product(job.touching(top, bottom), range(len(job.cols)))
    # Ahead of the batch that is being predicted, one batch waits; that bounds the memory.
    waiting = max(job.batch_size, workers)
    with closing(ahead(lambda cell: _read(job, *cell), cells, workers, waiting)) as reads:
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

    Args:
        job: what to predict.
        probabilities: whether to give every class's probability instead of the confidence.
    """

    def __init__(self, job: Job, probabilities: bool) -> None:
        self.job = job
        self.decide = decide_all if probabilities else decide
        self.layers = 1 + job.class_count if probabilities else 2
        self.row_weights = axis_weights(job.rows, job.window, job.shared)
        self.col_weights = axis_weights(job.cols, job.window, job.shared)
        self.below = np.zeros((job.class_count, job.shared, job.shape[1]), np.float32)

    def row(
        self, row: int, predicted: Iterable[tuple[_Seen, NDArray[np.float32]]]
    ) -> NDArray[np.uint8]:
        """Take in the next row of windows; return the pixel rows (L, rows, W) it completes."""
        job = self.job
        height, width = job.shape
        rows = height - job.rows[row] if row == len(job.rows) - 1 else job.stride
        strip = np.full((self.layers, rows, width), IGNORE, np.uint8)
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
            strip[:, :, columns] = self.decide(complete[:, :rows], valid)
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
    return np.where(valid, np.stack([label, _as_bytes(best)]), np.uint8(IGNORE))


def decide_all(scores: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return class index and all probabilities of each pixel.

    Args:
        scores: (K, H, W) float32, probabilities.
        valid: (H, W); other pixels become 255 in all layers.

    Returns:
        (1 + K, H, W) uint8: the class index of ``decide``, and every class's score from 0 to 1 as
        0 to 254. The greatest of them is the confidence of ``decide``.
    """
    label = decide(scores, valid)[:1]
    return np.concatenate([label, np.where(valid, _as_bytes(scores), np.uint8(IGNORE))])


def _as_bytes(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(shares, 0, 1) * SHARE_SCALE).astype(np.uint8)
