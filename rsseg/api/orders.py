"""Maps to make: which, of what, where to; and which of them an earlier run has made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rasterio.errors import RasterioError

from rsseg import __version__
from rsseg.api.cutting import Cut
from rsseg.api.suitability import open_suitable
from rsseg.api.targets import Targets, hidden_confidence
from rsseg.classes import Classes
from rsseg.config import fingerprint
from rsseg.errors import InputError
from rsseg.io.blocks import BlockStore
from rsseg.io.files import discard_scratch
from rsseg.io.opening import open_dataset
from rsseg.io.raster import Raster
from rsseg.io.remote import as_path
from rsseg.io.vector import Area
from rsseg.io.vector_output import check_degrees
from rsseg.nets.checkpoint import Card, Checkpoint
from rsseg.progress import Progress
from rsseg.stages.job import Job
from rsseg.stages.outputs import Outputs
from rsseg.stages.planning import Plan, plan

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


@dataclass(frozen=True)
class Order:
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

    def unmade(self, run_key: str) -> Order:
        """Return what an interrupted run has left to do of it."""
        return replace(self, only_vectors=self.are_made(self.outputs.paths, run_key))

    def tidy(self) -> None:
        """Remove what a run that was killed after its last file had its name has left."""
        scratch = self.outputs.scratch
        if scratch.exists():
            BlockStore(scratch, "", 1, self.job.shape, 1).remove()
        if self.vectors is not None:
            hidden_confidence(self.vectors).unlink(missing_ok=True)
            discard_scratch(self.vectors)

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


def orders_of(
    sources: Sequence[Path],
    targets: Targets,
    card: Card,
    cut: Cut,
    aoi: str | Path | None,
    progress: Progress,
) -> list[Order]:
    """Return the maps to make.

    Raises:
        InputError: a raster does not fit the checkpoint, or the area meets none of them.
    """
    orders: list[Order] = []
    missed: InputError | None = None
    for path in sources:
        raster, source = open_suitable(path, card, cut.gsd, progress)
        try:
            area = None if aoi is None else Area(as_path(aoi), raster.grid)
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
        orders.append(Order(path, job, source, targets.of_source(path), targets.vectors_of(path)))
    if not orders and missed is not None:
        raise missed
    return orders


@dataclass(frozen=True)
class Keys:
    """Fingerprints that tell what an earlier run has made from what it has not.

    Args:
        network: of the network and of what its output's last bits depend on.
        run: of the network and all settings that decide pixels.
    """

    network: str
    run: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, made_on: str, cut: Cut, aoi: str | Path | None) -> Keys:
        network = fingerprint(
            checkpoint.fingerprint, made_on, torch.__version__, cut.tta, cut.precision
        )
        # Names alone: in a map's tags neither folders nor times may show.
        area = None if aoi is None else Path(aoi).name
        return cls(network, fingerprint(network, asdict(cut), area, __version__))


def unmade(
    orders: Sequence[Order],
    targets: Targets,
    classes: Classes,
    run_key: str,
    read: Sequence[Path],
    progress: Progress,
) -> list[Order]:
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


def map_tags(checkpoint: Checkpoint, order: Order, cut: Cut, run_key: str) -> dict[str, str]:
    """Return the metadata of a map; no time and no folder, so that equal runs give equal bytes."""
    return {
        "RSSEG_VERSION": __version__,
        "RSSEG_MODEL": checkpoint.fingerprint[:16],
        "RSSEG_SOURCE": order.path.name,
        "RSSEG_COMMAND": _command(checkpoint, order, cut),
        RUN_TAG: run_key,
    }


def _command(checkpoint: Checkpoint, order: Order, cut: Cut) -> str:
    """Return the command line with everything that decides pixels, defaults and all."""
    area = order.job.area
    options = {
        "model": checkpoint.path.name,
        "window": cut.window,
        "overlap": f"{cut.overlap:g}",
        "batch-size": cut.batch_size,
        "blend": cut.blend,
        "tta": cut.tta,
        "precision": cut.precision,
        "gsd": None if cut.gsd is None else f"{cut.gsd:g}",
        "aoi": None if area is None else area.path.name,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return shlex.join(["rsseg", "predict", order.path.name, *words])
