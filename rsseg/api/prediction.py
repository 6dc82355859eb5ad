"""predict: maps of rasters, by a trained segmenter."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rsseg.api.cutting import Cut
from rsseg.api.orders import Keys, Prediction, map_tags, orders_of, unmade
from rsseg.api.preflight import Reading, foretell_maps, look_at, span
from rsseg.api.targets import Targets, sources_of
from rsseg.cluster import LOCAL, connected
from rsseg.errors import InputError
from rsseg.io.remote import as_path
from rsseg.nets.checkpoint import Checkpoint
from rsseg.nets.device import hardware, pick_device
from rsseg.nets.folding import folded
from rsseg.nets.segmenter import Forward
from rsseg.progress import SILENT, Progress
from rsseg.stages.job import Job
from rsseg.stages.outputs import Outputs
from rsseg.stages.pieces import Shared
from rsseg.stages.predict import predict_map

TIMED_BATCHES = 200
"""From this many batches on, two more to foretell the time do not count."""

READERS = {"cpu": 1}
"""Threads that read ahead, by default and by device. Each decodes the blocks that its windows
touch, so on a CPU, which one can feed, a second would decode most of them again."""

MANY_READERS = 4
"""The same for devices that are faster."""


def predict(
    inputs: str | Path | Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    confidence: str | Path | None = None,
    probabilities: str | Path | None = None,
    vectors: str | Path | None = None,
    aoi: str | Path | None = None,
    window: int | None = None,
    overlap: float | None = None,
    gsd: float | None = None,
    block_rows: int | None = None,
    batch_size: int | None = None,
    blend: str = "ramp",
    tta: str = "none",
    precision: str = "float32",
    workers: int | None = None,
    device: str = "auto",
    dask: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[Prediction]:
    """Map rasters with a trained segmenter; everything is checked before the first is begun.

    A run that was interrupted goes on where it was: finished maps and blocks are not made again.

    Args:
        inputs: a raster, several, or a folder of them.
        model: the checkpoint that ``train`` wrote.
        out: the map to write, ``….tif``, with side files for QGIS and GDAL; of several inputs or
            a folder, a folder with one map each, named like its raster.
        confidence: where to write the winner's probability (uint8, 0 … 254 for 0 … 1, 255 =
            nodata), in the same way.
        probabilities: where to write the probability of every class, a band each, in the same way.
        vectors: where to write the map's polygons, as ``vectorize`` does, with the mean
            confidence of each; of several inputs or a folder, a folder with one GeoPackage each.
        aoi: polygons that say where to predict; rasters outside are left out.
        window: side of the network's windows in pixels; the checkpoint's own by default.
        overlap: share of the window by which neighbours overlap; the checkpoint's by default.
        gsd: metres per pixel at which the network is to see the rasters; as they are by default.
            The map is on the raster's own grid all the same.
        block_rows: height of the blocks that an interruption can cost; changes no pixel.
        batch_size: windows at a time; by default what suits the device.
        blend: how overlapping windows pass into each other: ``ramp``, in a narrow line in the
            middle of the overlap; ``gaussian`` or ``hann``, over all of it; ``crop``, at once.
        tta: ``flips`` averages what the network says of the image and of its three mirrorings,
            which takes four times as long; ``none`` does not.
        precision: what the network computes in: ``float32``, or ``bfloat16``, which takes half the
            time where the hardware has it and gives about one pixel in a hundred another class.
        workers: threads that read ahead, by default 1 on a CPU and 4 on a GPU; with
            ``dask="auto"`` processes, by default one per core, or per GPU where the network runs
            on GPUs; changes no pixel.
        device: where the network runs.
        dask: the address of a Dask scheduler whose workers make the map, or ``auto`` for workers
            on this machine; None for this process. All must see the same files under the same
            absolute paths. A script calls this below ``if __name__ == "__main__":``.
        dry_run: check and plan for this process, but write nothing.
        overwrite: replace existing maps.
        progress: shows what is going on.

    Returns:
        The maps, in the order of the inputs.

    Raises:
        InputError: a file, an option or an output does not fit; nothing was written.
        RunError: reading or writing failed on the way.
    """
    _check_counts(block_rows, workers)
    place = as_path if dask is None else _absolute
    checkpoint = Checkpoint(place(model), "segmenter")
    sources = [place(path) for path in sources_of(inputs)]
    sure, shares, drawn = (
        None if path is None else place(path) for path in (confidence, probabilities, vectors)
    )
    places = Outputs(place(out), sure, shares, overwrite=overwrite)
    targets = Targets.of(inputs, sources, places, drawn)
    aoi = None if aoi is None else place(aoi)
    read = [path for path in (*sources, checkpoint.path, aoi) if path is not None]
    with connected(None if dry_run else dask, workers, device, progress) as cluster:
        if cluster is None:
            where, made_on = pick_device(device), hardware(pick_device(device))
        else:
            where, made_on = cluster.survey(read, targets.parent)
        readers = READERS.get(where.type, MANY_READERS)
        if workers is not None and dask != LOCAL:
            readers = workers
        cut = Cut.of(
            checkpoint.card, where, window, overlap, gsd, batch_size, blend, tta, precision
        )
        keys = Keys.of(checkpoint, made_on, cut, aoi)
        layouts = look_at(sources, Reading.squares(cut.window, cut.overlap, readers), progress)
        orders = orders_of(sources, targets, checkpoint.card, cut, aoi, progress)
        orders = unmade(orders, targets, checkpoint.card.classes, keys.run, read, progress)
        planned = [order.planned(block_rows, readers) for order in orders]
        foretell_maps(
            [one.plan for one in planned],
            targets.parent,
            layouts,
            readers,
            on_cpu=where.type == "cpu",
            progress=progress,
        )
        made_of = (
            *(checkpoint.path, checkpoint.fingerprint, str(where)),
            *(cut.window, cut.tta, cut.precision),
        )
        forward = None if cluster is not None else network_of(*made_of, progress)
        if forward is not None and not dry_run:
            _tell_time(forward, orders[0].job, planned, progress)
        if forward is not None and dry_run:
            pace = _seconds_per_window(forward, orders[0].job)
            return [replace(p, seconds=pace * math.prod(p.plan.windows)) for p in planned]
        make = partial(
            predict_map,
            network=forward,
            classes=checkpoint.card.classes,
            fingerprint=keys.network,
            block_rows=block_rows,
            workers=readers,
            elsewhere=None if cluster is None else Shared(cluster, network_of, made_of, readers),
            progress=progress,
        )
        targets.make_folders()
        for order in orders:
            if not order.only_vectors:
                tags = map_tags(checkpoint, order, cut, keys.run)
                outputs = replace(order.outputs, tags=tags)
                make(order.job, outputs=outputs, source=order.source)
            order.draw(progress)
    return planned


def network_of(
    path: Path,
    _: str,
    device: str,
    window: int,
    tta: str,
    precision: str,
    progress: Progress = SILENT,
) -> Forward:
    """Return the segmenter of a checkpoint, ready to run.

    Args:
        path: the checkpoint.
        _: its fingerprint, so that workers who keep networks tell it from others of this name.
        device: where it runs.
        window: side of the images it will see.
        tta: how often it looks at each.
        precision: what it computes in.
        progress: told when the memory forces smaller batches.
    """
    checkpoint = Checkpoint(path, "segmenter")
    network = folded(checkpoint.segmenter(), len(checkpoint.card.bands), window)
    return Forward(network, torch.device(device), progress, tta, precision)


def _absolute(path: str | Path) -> Path:
    """Return a path that means the same to workers, who may stand in another folder."""
    return as_path(path).absolute()


def _check_counts(block_rows: int | None, workers: int | None) -> None:
    if block_rows is not None and block_rows < 1:
        raise InputError(f"block rows {block_rows}: give 1 or more")
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers}: give 0 or more")


def _tell_time(
    forward: Forward, job: Job, planned: Sequence[Prediction], progress: Progress
) -> None:
    """Say how long long work will take; of short work the measuring would be a part."""
    windows = sum(math.prod(one.plan.windows) for one in planned)
    if windows >= TIMED_BATCHES * job.batch_size:
        pace = _seconds_per_window(forward, job)
        progress.note(f"{span(pace * windows)}, by the pace of the network on empty windows")


def _seconds_per_window(forward: Forward, job: Job) -> float:
    """Measure the network on a batch of empty windows, after one to warm up."""
    count = min(job.batch_size, len(job.cols))  # no batch spans two rows of windows
    images = np.zeros((count, len(job.bands), job.window, job.window), np.float32)
    list(forward.logits(images))
    start = time.perf_counter()
    list(forward.logits(images))
    return (time.perf_counter() - start) / count
