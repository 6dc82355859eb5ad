"""What a prediction will take: windows, blocks, disk and memory, known without the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rsseg.io.layout import read_header
from rsseg.io.mapfile import TILE_SIDE
from rsseg.io.opening import MOST_CACHE, allowed_cache
from rsseg.io.raster import Raster
from rsseg.ops.decoding import worth_keeping
from rsseg.stages.blending import in_work
from rsseg.stages.job import Job, default_block_rows
from rsseg.stages.outputs import Outputs

LEAST_CACHE = 96 * 2**20
"""Bytes of blocks that GDAL may keep in any case: two rows of them up to a width of 30,000 px."""

OVERVIEWS = 4 / 3
"""A raster with its overviews, as a multiple of the raster."""


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
        scratch_bytes: disk for finished blocks and for files that are being put in order, until
            the map is written, at the most.
        output_bytes: disk for the map and, if wanted, confidence and probabilities, with their
            overviews, at the most.
        memory_bytes: memory of the arrays, about; Python's libraries, GDAL's block cache, and the
            network with its activations come on top.
        cache_bytes: what GDAL keeps of blocks, at the most.
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
    cache_bytes: int


def plan(
    job: Job,
    outputs: Outputs,
    *,
    block_rows: int | None = None,
    workers: int = 2,
    source: Raster | None = None,
) -> Plan:
    """Say what ``predict_map`` with the same arguments will take; only a header is read."""
    layers = outputs.layers(job.class_count)
    height, width = job.shape
    rows = block_rows or default_block_rows(width)
    shape = (source or job.raster).grid.shape
    band = _incompressible(math.prod(_whole_tiles(shape)) * OVERVIEWS)
    bands = _bands(outputs, job.class_count)
    return Plan(
        shape=shape,
        predicted_shape=job.shape,
        windows=(len(job.rows), len(job.cols)),
        window=job.window,
        block_rows=rows,
        blocks=math.ceil(height / rows),
        # A file in the making lies there unordered, too, and its overviews by themselves.
        scratch_bytes=_incompressible(layers * height * width) + max(bands) * band,
        output_bytes=sum(bands) * band,
        memory_bytes=_memory(job, layers, min(rows, height), workers),
        cache_bytes=allowed_cache(reading_cache(job, workers)),
    )


def _bands(outputs: Outputs, class_count: int) -> list[int]:
    """Return the number of bands of each file."""
    probabilities = [] if outputs.probabilities is None else [class_count]
    return [*probabilities, *([] if outputs.confidence is None else [1]), 1]


def _whole_tiles(shape: tuple[int, int]) -> tuple[int, int]:
    height, width = (TILE_SIDE * math.ceil(side / TILE_SIDE) for side in shape)
    return height, width


def _incompressible(size: float) -> int:
    """Return what deflate makes of ``size`` bytes at the worst, with headers."""
    return math.ceil(size * 1.001) + 100_000


def _memory(job: Job, layers: int, block_rows: int, workers: int) -> int:
    """Return the bytes of arrays while windows are predicted, or while files are written."""
    width, pixels = job.shape[1], job.window**2
    batch = min(job.batch_size, len(job.cols))
    shared = max(span.end - span.final for span in job.row_spans)
    below = job.class_count * shared * width * 4
    # Windows read ahead, one that is being read, and a batch of them, again as the network sees it.
    images = (2 * batch + max(batch, workers) + 1) * len(job.bands) * pixels * 4
    # Batches that wait to be blended, one that is, and one that is being computed.
    scores = (in_work(workers) + 1) * batch * job.class_count * pixels * 4
    # The strips of two rows of windows and the rest of one; blocks made, compressed, and written.
    decided = layers * width * (3 * min(job.window, job.shape[0]) + 3 * block_rows)
    # Blocks that are read, joined to rows of TIFF tiles, and those of the last ones and their ids.
    written = layers * width * (3 * TILE_SIDE + 2 * block_rows) + 2 * width * TILE_SIDE
    return max(below + images + scores + decided, written)


def reading_cache(job: Job, readers: int) -> int:
    """Return how many bytes of blocks GDAL is to keep while a job's windows are read.

    So many that none is decoded twice, unless that is more than the usual 256 MB.

    Args:
        job: what to predict.
        readers: threads that read.
    """
    if job.raster.is_resampled:  # through a view, whose blocks are kept, too
        return MOST_CACHE
    window = job.window, job.window
    needed = [
        layout.pixel_bytes
        * worth_keeping(
            job.shape,
            layout.block,
            window,
            limit=MOST_CACHE / layout.pixel_bytes,
            readers=max(readers, 1),
        )
        for layout in read_header(job.raster.path).layouts
    ]
    return max(LEAST_CACHE, *map(math.ceil, needed))
