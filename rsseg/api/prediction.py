"""predict: maps of rasters, by a trained segmenter."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import RasterioError

from rsseg import __version__
from rsseg.api.cutting import Cut
from rsseg.api.preflight import Reading, foretell_maps, look_at, span
from rsseg.api.suitability import open_suitable
from rsseg.api.targets import Targets, hidden_confidence, sources_of
from rsseg.classes import Classes
from rsseg.cluster import LOCAL, connected
from rsseg.config import fingerprint
from rsseg.errors import InputError
from rsseg.io.blocks import BlockStore
from rsseg.io.opening import open_dataset
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.io.vector_output import check_degrees
from rsseg.nets.checkpoint import Card, Checkpoint
from rsseg.nets.device import hardware, pick_device
from rsseg.nets.folding import folded
from rsseg.nets.segmenter import Forward
from rsseg.progress import SILENT, Progress
from rsseg.stages.job import Job
from rsseg.stages.outputs import Outputs
from rsseg.stages.pieces import Shared
from rsseg.stages.planning import Plan, plan
from rsseg.stages.predict import predict_map

TIMED_BATCHES = 200
"""From this many batches on, two more to foretell the time do not count."""

READERS = {"cpu": 1}
"""Threads that read ahead, by default and by device. Each decodes the blocks that its windows
touch, so on a CPU, which one can feed, a second would decode most of them again."""

MANY_READERS = 4
"""The same for devices that are faster."""

RUN_TAG = "RSSEG_RUN"
"""GeoTIFF tag that tells whether a map was made by the same network with the same settings."""


@dataclass(frozen=True)
class Prediction:
    """One map, made or planned.

    Args:
        source: the raster.
        out: its map.
        confidence: the raster of the winner's probability, or None.
        probabilities: the raster of all classes' probabilities, or None.
        vectors: its polygons, or None.
        plan: windows, blocks, disk and memory.
        seconds: what it will take at the most, measured on a few windows; None where it was run.
    """

    source: Path
    out: Path
    confidence: Path | None
    probabilities: Path | None
    vectors: Path | None
    plan: Plan
    seconds: float | None = None

    @property
    def files(self) -> list[Path]:
        """All files, the map first."""
        files = (self.out, self.confidence, self.probabilities, self.vectors)
        return [path for path in files if path is not None]


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
    place = Path if dask is None else _absolute
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
        cut = Cut.of(checkpoint.card, where, window, overlap, gsd, batch_size, blend, tta)
        keys = _Keys.of(checkpoint, made_on, cut, aoi)
        layouts = look_at(sources, Reading.squares(cut.window, cut.overlap, readers), progress)
        orders = _orders(sources, targets, checkpoint.card, cut, aoi, progress)
        orders = _unmade(orders, targets, checkpoint.card.classes, keys.run, read, progress)
        planned = [order.planned(block_rows, readers) for order in orders]
        foretell_maps(
            [one.plan for one in planned],
            targets.parent,
            layouts,
            readers,
            on_cpu=where.type == "cpu",
            progress=progress,
        )
        made_of = checkpoint.path, checkpoint.fingerprint, str(where), cut.window, cut.tta
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
                tags = _tags(checkpoint, order, cut, keys.run)
                outputs = replace(order.outputs, tags=tags)
                make(order.job, outputs=outputs, source=order.source)
            order.draw(progress)
    return planned


def network_of(
    path: Path, _: str, device: str, window: int, tta: str, progress: Progress = SILENT
) -> Forward:
    """Return the segmenter of a checkpoint, ready to run.

    Args:
        path: the checkpoint.
        _: its fingerprint, so that workers who keep networks tell it from others of this name.
        device: where it runs.
        window: side of the images it will see.
        tta: how often it looks at each.
        progress: told when the memory forces smaller batches.
    """
    checkpoint = Checkpoint(path, "segmenter")
    network = folded(checkpoint.segmenter(), len(checkpoint.card.bands), window)
    return Forward(network, torch.device(device), progress, tta)


def _absolute(path: str | Path) -> Path:
    """Return a path that means the same to workers, who may stand in another folder."""
    return Path(path).absolute()


def _check_counts(block_rows: int | None, workers: int | None) -> None:
    if block_rows is not None and block_rows < 1:
        raise InputError(f"block rows {block_rows}: give 1 or more")
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers}: give 0 or more")


@dataclass(frozen=True)
class _Order:
    """One map to make.

    Args:
        path: the raster.
        job: what to predict.
        source: the raster as it is on disk, where the job sees it resampled.
        outputs: the rasters to write.
        vectors: the polygons to write, or None.
        only_vectors: whether an interrupted run has left the rasters.
    """

    path: Path
    job: Job
    source: Raster | None
    outputs: Outputs
    vectors: Path | None
    only_vectors: bool = False

    def planned(self, block_rows: int | None, workers: int) -> Prediction:
        """Return what it will take."""
        takes = plan(
            self.job, self.outputs, block_rows=block_rows, workers=workers, source=self.source
        )
        to, seen = self.outputs, self._for_the_user
        sure = to.confidence if to.confidence in seen else None
        return Prediction(self.path, to.map, sure, to.probabilities, self.vectors, takes)

    @property
    def _for_the_user(self) -> list[Path]:
        """The rasters without the confidence that is there for the polygons alone."""
        hidden = None if self.vectors is None else hidden_confidence(self.vectors)
        return [path for path in self.outputs.paths if path != hidden]

    def are_made(self, rasters: Sequence[Path], run_key: str) -> bool:
        """Whether an earlier run of the same settings has finished rasters."""
        files = [self.path] if self.job.area is None else [self.path, self.job.area.path]
        newest = max(file.stat().st_mtime_ns for file in files if file.exists())
        return all(
            result.is_file() and result.stat().st_mtime_ns >= newest and _made_by(result, run_key)
            for result in rasters
        )

    def is_made(self, run_key: str) -> bool:
        """Whether an earlier run of the same settings has finished it."""
        drawn = self.vectors is None or (
            self.vectors.is_file()
            and self.outputs.map.is_file()
            and self.vectors.stat().st_mtime_ns >= self.outputs.map.stat().st_mtime_ns
        )
        return drawn and self.are_made(self._for_the_user, run_key)

    def unmade(self, run_key: str) -> _Order:
        """Return what an interrupted run has left to do of it."""
        return replace(self, only_vectors=self.are_made(self.outputs.paths, run_key))

    def tidy(self) -> None:
        """Remove what a run that was killed after its last file had its name has left."""
        scratch = self.outputs.scratch
        if scratch.exists():
            BlockStore(scratch, "", 1, self.job.shape, 1).remove()
        if self.vectors is not None:
            hidden_confidence(self.vectors).unlink(missing_ok=True)

    def draw(self, progress: Progress) -> None:
        """Write the polygons of the map, if they are wanted."""
        if self.vectors is None:
            return
        # Only now: it brings a compiler along.
        from rsseg.api.vectorizing import vectorize

        to = self.outputs
        vectorize(
            to.map,
            self.vectors,
            confidence=to.confidence,
            allow_empty=True,  # one empty raster of many must not stop the others
            overwrite=to.overwrite,
            progress=progress,
        )
        hidden_confidence(self.vectors).unlink(missing_ok=True)

    def check(self, targets: Targets, classes: Classes, run_key: str, read: Sequence[Path]) -> None:
        """Raise InputError where the outputs cannot be written."""
        to = self.outputs
        if self.vectors is not None:
            targets.check_vectors(self.vectors, to.overwrite, read)
            check_degrees(self.vectors, self.job.raster.grid.crs, self.path)
        if self.only_vectors:
            return
        targets.check_file(to.map, classes, to.overwrite, read, [self.path, *to.others])
        BlockStore(to.scratch, "", 1, self.job.shape, 1)
        for path in to.others:
            # An interruption may have left finished ones and no map yet.
            ours = not to.map.exists() and _made_by(path, run_key)
            targets.check_file(path, None, to.overwrite or ours, read)


def _made_by(path: Path, run_key: str) -> bool:
    if not path.is_file():
        return False
    try:
        with open_dataset(path) as dataset:
            return bool(dataset.tags().get(RUN_TAG) == run_key)
    except RasterioError:
        return False


def _orders(
    sources: Sequence[Path],
    targets: Targets,
    card: Card,
    cut: Cut,
    aoi: str | Path | None,
    progress: Progress,
) -> list[_Order]:
    """Return the maps to make.

    Raises:
        InputError: a raster does not fit the checkpoint, or the area meets none of them.
    """
    orders: list[_Order] = []
    missed: InputError | None = None
    for path in sources:
        raster, source = open_suitable(path, card, cut.gsd, progress)
        try:
            area = None if aoi is None else Area(Path(aoi), raster.grid)
        except InputError as error:
            missed = error
            if len(sources) > 1:
                progress.note(f"{path}: left out, {error}")
            continue
        job = Job(
            raster=raster,
            bands=card.bands,
            class_count=len(card.classes),
            window=cut.window,
            overlap=cut.overlap,
            batch_size=cut.batch_size,
            area=area,
            blend=cut.blend,
        )
        orders.append(_Order(path, job, source, targets.of_source(path), targets.vectors_of(path)))
    if not orders and missed is not None:
        raise missed
    return orders


@dataclass(frozen=True)
class _Keys:
    """Fingerprints that tell what an earlier run has made from what it has not.

    Args:
        network: of the network and of what its output's last bits depend on.
        run: of the network and all settings that decide pixels.
    """

    network: str
    run: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, made_on: str, cut: Cut, aoi: str | Path | None) -> _Keys:
        network = fingerprint(checkpoint.fingerprint, made_on, torch.__version__, cut.tta)
        # Names alone: in a map's tags neither folders nor times may show.
        area = None if aoi is None else Path(aoi).name
        return cls(network, fingerprint(network, asdict(cut), area, __version__))


def _unmade(
    orders: Sequence[_Order],
    targets: Targets,
    classes: Classes,
    run_key: str,
    read: Sequence[Path],
    progress: Progress,
) -> list[_Order]:
    """Return the maps that are still to be made, after checking that they can be.

    Where only some are there, the run was interrupted and goes on; where all are, it was not.
    """
    made = [order for order in orders if order.is_made(run_key)]
    for order in made:
        order.tidy()
    left = [order.unmade(run_key) for order in orders if order not in made] or list(orders)
    if len(left) < len(orders):
        progress.note(f"{len(orders) - len(left)} of {len(orders)} maps were made before")
    for order in left:
        order.check(targets, classes, run_key, read)
    return left


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


def _tags(checkpoint: Checkpoint, order: _Order, cut: Cut, run_key: str) -> dict[str, str]:
    """Return the metadata of a map; no time and no folder, so that equal runs give equal bytes."""
    return {
        "RSSEG_VERSION": __version__,
        "RSSEG_MODEL": checkpoint.fingerprint[:16],
        "RSSEG_SOURCE": order.path.name,
        "RSSEG_COMMAND": _command(checkpoint, order, cut),
        RUN_TAG: run_key,
    }


def _command(checkpoint: Checkpoint, order: _Order, cut: Cut) -> str:
    """Return the command line with everything that decides pixels, defaults and all."""
    area = order.job.area
    options = {
        "model": checkpoint.path.name,
        "window": cut.window,
        "overlap": f"{cut.overlap:g}",
        "batch-size": cut.batch_size,
        "blend": cut.blend,
        "tta": cut.tta,
        "gsd": None if cut.gsd is None else f"{cut.gsd:g}",
        "aoi": None if area is None else area.path.name,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return shlex.join(["rsseg", "predict", order.path.name, *words])
