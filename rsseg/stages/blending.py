"""Windows in, blocks out: a network's overlapping windows, blended and decided pixel by pixel.

The raster is cut into overlapping windows anchored at its origin. They are taken row by row, left
to right, in batches that never span two rows of windows; class probabilities are weighted and
summed window by window, and what no later window touches is decided at once. Only the strip in
which two rows of windows both have a say waits, so memory grows with the raster's width and not
with its height.

Three kinds of threads work side by side: some read ahead and normalise, the caller's own runs the
network, and one more blends, window after window. Neither blocks nor workers nor an interruption
change the order of any sum, hence of any pixel.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, islice, product
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.grid import Window
from rsseg.ops.blend import Span
from rsseg.ops.mosaic import add_window, normalise_into
from rsseg.stages.ahead import ahead
from rsseg.stages.job import Job

T = TypeVar("T")

IN_WORK = 2
"""How many batches may be on their way from the network to the map, at the most."""


class Network(Protocol):
    """What the engine asks of a network."""

    def logits(self, images: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
        """Return what a softmax over the classes makes probabilities of.

        Args:
            images: (B, C, S, S) float32, normalised; they are the next ones after the return, so
                nothing that is returned may share their memory.

        Returns:
            B arrays (K, S, S) float32, in order. Another thread goes through them, once, and may
            wait there for a device to finish.
        """
        ...


class _Pool:
    """Arrays that are filled again and again: new ones for each window would scatter in memory.

    Args:
        shape: of each, float32.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: deque[NDArray[np.float32]] = deque()

    def take(self) -> NDArray[np.float32]:
        """Return an array that no one else uses, whatever it holds."""
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(self._shape, np.float32)

    def give(self, array: NDArray[np.float32]) -> None:
        """Have an array used again."""
        self._free.append(array)


class _Seen(NamedTuple):
    row: int
    col: int
    image: NDArray[np.float32] | None  # (S, S, C); None where there is nothing to predict
    valid: NDArray[np.bool_]  # (S, S)


class _Scored(NamedTuple):
    """A batch of windows of one row, on its way to be blended."""

    row: int
    seen: list[_Seen]
    logits: Iterable[NDArray[np.float32]]
    is_last: bool  # an empty batch that ends the row


def predict_blocks(
    job: Job,
    network: Network,
    *,
    block_rows: int,
    wanted: Sequence[int] | None = None,
    layers: int = 2,
    workers: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> Generator[tuple[int, NDArray[np.uint8]]]:
    """Predict block by block.

    Args:
        job: what to predict.
        network: says what is in a window.
        block_rows: height of a block in pixels; the last one may be lower.
        wanted: indices of the blocks to make, ascending; None makes all.
        layers: L, what to give of a pixel: 1 for its class; 2 for its confidence, too; 1 + K for
            its class and every class's probability.
        workers: threads that read ahead; with 0 the caller's thread does everything.
        tick: called once for every window, also for those where there is nothing to predict.

    Yields:
        (index, block): block is (L, rows, W) uint8, class index and, 0 … 254 for 0 … 1, what else
        is asked for; 255 where the source has no valid pixel and outside the area. Of equal
        probabilities the lower class wins.
    """
    assert block_rows > 0
    height = job.shape[0]
    every = range(math.ceil(height / block_rows))
    for run in runs(every if wanted is None else wanted):
        top, bottom = run.start * block_rows, min(run.stop * block_rows, height)
        blend = _Blend(job, layers)
        with closing(_strips(blend, network, top, bottom, workers, tick)) as strips:
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
    network: Network,
    top: int,
    bottom: int,
    workers: int,
    tick: Callable[[], None],
) -> Generator[NDArray[np.uint8]]:
    """Yield the pixel rows ``top … bottom - 1`` as one strip (L, rows, W) per row of windows."""
    job = blend.job
    rows = job.touching(top, bottom)
    cells = product(rows, range(len(job.cols)))
    # Ahead of the batch that is being predicted, one batch waits; that bounds the memory.
    waiting = max(job.batch_size, workers)
    pool = _Pool((job.window, job.window, len(job.bands)))
    with closing(ahead(lambda cell: _read(job, pool, *cell), cells, workers, waiting)) as reads:
        scored = _scored(job, network, _ticking(reads, tick), pool)
        with closing(ahead(blend.add, scored, min(workers, 1), in_work(workers))) as added:
            complete = (strip for strip in added if strip is not None)
            for row, strip in zip(rows, complete, strict=True):
                start = job.row_spans[row].begin
                cut = strip[:, max(top - start, 0) : max(bottom - start, 0)]
                if cut.shape[1]:
                    yield cut


def in_work(workers: int) -> int:
    """Return how many batches may be on their way: a GPU, which has more readers, needs more."""
    return min(max(workers, 1), IN_WORK)


def _read(job: Job, pool: _Pool, row: int, col: int) -> _Seen:
    side = job.window
    window = Window(job.rows[row], job.cols[col], side, side)
    nothing = _Seen(row, col, None, np.zeros((side, side), bool))
    if job.area is not None and not job.area.covers(window):
        return nothing
    image, valid = job.raster.read(window)
    wanted = valid if job.area is None else valid & job.area.mask(window)
    if not wanted.any():
        return nothing
    mean, std = np.asarray(job.bands.mean, np.float32), np.asarray(job.bands.std, np.float32)
    normalised = pool.take()
    normalise_into(image, valid, mean, std, normalised)
    return _Seen(row, col, normalised, wanted)


def _ticking(items: Iterable[T], tick: Callable[[], None]) -> Iterator[T]:
    for item in items:
        yield item
        tick()


def _scored(job: Job, network: Network, reads: Iterable[_Seen], pool: _Pool) -> Iterator[_Scored]:
    """Run the network on the windows that have something to predict; end each row of windows."""
    most = min(job.batch_size, len(job.cols))
    images = np.empty((most, job.window, job.window, len(job.bands)), np.float32)
    for row, of_row in groupby(reads, key=lambda read: read.row):
        seen = (read for read in of_row if read.image is not None)
        while batch := list(islice(seen, job.batch_size)):
            without = [
                _moved(read, place, pool) for read, place in zip(batch, images, strict=False)
            ]
            # Seen as (B, C, S, S), pixels still lie together: what networks compute fastest with.
            logits = network.logits(images[: len(batch)].transpose(0, 3, 1, 2))
            yield _Scored(row, without, logits, False)
        yield _Scored(row, [], [], True)


def _moved(read: _Seen, place: NDArray[np.float32], pool: _Pool) -> _Seen:
    """Copy a window's image to its place in the batch, and return the window without it."""
    assert read.image is not None
    np.copyto(place, read.image)
    pool.give(read.image)
    return read._replace(image=None)


class _Blend:
    """Sums weighted windows, row after row of windows, and decides what is complete.

    A window adds to what its left and its upper neighbours left in the pixels they share, and
    leaves what its right and its lower neighbours will share. A window that was skipped has no
    pixel to decide, so it needs nothing of its neighbours and has nothing to give.

    Args:
        job: what to predict.
        layers: L, what to give of a pixel; see ``predict_blocks``.
    """

    def __init__(self, job: Job, layers: int) -> None:
        assert layers in (1, 2, 1 + job.class_count)
        self.job = job
        self.layers = layers
        count, width = job.class_count, job.shape[1]
        tallest = max(span.end - span.begin for span in job.row_spans)
        self._left = np.zeros((count, tallest, _shared(job.col_spans)), np.float32)
        self._below = np.zeros((count, _shared(job.row_spans), width), np.float32)
        self._below_rows = 0
        self._last_col = -2
        self._strip: NDArray[np.uint8] | None = None

    def add(self, scored: _Scored) -> NDArray[np.uint8] | None:
        """Take in the next batch; where it ends a row, return the pixel rows it completes.

        Returns:
            (L, rows, W) uint8, or None.
        """
        span = self.job.row_spans[scored.row]
        if self._strip is None:
            shape = (self.layers, span.final - span.begin, self.job.shape[1])
            self._strip = np.full(shape, IGNORE, np.uint8)
        for read, logits in zip(scored.seen, scored.logits, strict=True):
            self._add(read, logits, self._strip)
        if not scored.is_last:
            return None
        strip, self._strip, self._last_col = self._strip, None, -2
        self._below_rows = span.end - span.final
        return strip

    def _add(self, read: _Seen, logits: NDArray[np.float32], strip: NDArray[np.uint8]) -> None:
        job, cols = self.job, self.job.col_spans
        down, across = job.row_spans[read.row], cols[read.col]
        assert logits.shape == (job.class_count, job.window, job.window), logits.shape
        origin = down.begin - job.rows[read.row], across.begin - job.cols[read.col]
        rows = slice(origin[0], origin[0] + down.end - down.begin)
        columns = slice(origin[1], origin[1] + across.end - across.begin)
        weights = job.row_weights[read.row, rows], job.col_weights[read.col, columns]
        follows = read.col == self._last_col + 1
        left_cols = cols[read.col - 1].end - across.begin if follows else 0
        done = slice(across.begin, across.final)
        add_window(
            logits,
            origin,
            weights,
            (down.final - down.begin, across.final - across.begin),
            self._left,
            left_cols,
            self._below[:, :, done],
            self._below_rows,
            read.valid,
            strip[:, :, done],
        )
        self._last_col = read.col


def _shared(spans: Sequence[Span]) -> int:
    """Return how many pixels of a window wait for the next ones, at the most."""
    return max(span.end - span.final for span in spans)
