"""predict: maps of rasters, by a trained segmenter."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rasterio.errors import RasterioError

from rsseg import __version__
from rsseg.bands import Bands
from rsseg.config import TrainConfig, fingerprint
from rsseg.errors import InputError
from rsseg.io.blocks import BlockStore
from rsseg.io.files import check_output
from rsseg.io.opening import open_dataset
from rsseg.io.raster import Raster, list_rasters
from rsseg.io.vector import Area
from rsseg.nets.checkpoint import Card, Checkpoint
from rsseg.nets.device import default_batch_size, pick_device
from rsseg.nets.segmenter import Forward
from rsseg.progress import SILENT, Progress
from rsseg.stages.predict import SCRATCH_SUFFIX, Job, Plan, plan, predict_map

WINDOW_MULTIPLE = 32
"""The encoders halve the window five times."""

GSD_TOLERANCE = 1.5
"""Ground resolutions that differ by a larger factor from the training's are warned of."""

LEAST_DISK_SHARE = 0.05
"""Class maps deflate to this share of their pixels at the best; less disk never suffices."""

RUN_TAG = "RSSEG_RUN"
"""GeoTIFF tag that tells whether a map was made by the same network with the same settings."""

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Prediction:
    """One map, made or planned.

    Args:
        source: the raster.
        out: its map.
        confidence: the raster of the winner's probability, or None.
        plan: windows, blocks, disk and memory.
        seconds: what it will take at the most, measured on a few windows; None where it was run.
    """

    source: Path
    out: Path
    confidence: Path | None
    plan: Plan
    seconds: float | None = None


def predict(
    inputs: str | Path | Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    confidence: str | Path | None = None,
    aoi: str | Path | None = None,
    window: int | None = None,
    overlap: float | None = None,
    gsd: float | None = None,
    block_rows: int | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    device: str = "auto",
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[Prediction]:
    """Map rasters with a trained segmenter; everything is checked before the first is begun.

    A run that was interrupted goes on where it was: finished maps and blocks are not made again.

    Args:
        inputs: a raster, several, or a folder of them.
        model: the checkpoint that ``train`` wrote.
        out: the map to write, ``….tif``; of several inputs or a folder, a folder with one map
            each, named like its raster.
        confidence: where to write the winner's probability (uint8, 0 … 254 for 0 … 1, 255 =
            nodata), in the same way.
        aoi: polygons that say where to predict; rasters outside are left out.
        window: side of the network's windows in pixels; the checkpoint's own by default.
        overlap: share of the window by which neighbours overlap; the checkpoint's by default.
        gsd: metres per pixel at which the network is to see the rasters; as they are by default.
            The map is on the raster's own grid all the same.
        block_rows: height of the blocks that an interruption can cost; changes no pixel.
        batch_size: windows at a time; by default what suits the device.
        workers: threads that read ahead; changes no pixel.
        device: where the network runs.
        dry_run: check and plan, but write nothing.
        overwrite: replace existing maps.
        progress: shows what is going on.

    Returns:
        The maps, in the order of the inputs.

    Raises:
        InputError: a file, an option or an output does not fit; nothing was written.
        RunError: reading or writing failed on the way.
    """
    checkpoint = Checkpoint(Path(model), "segmenter")
    where = pick_device(device)
    cut = _Cut.of(checkpoint.card, where, window, overlap, gsd, batch_size)
    _check_counts(block_rows, workers)
    sources = _sources(inputs)
    targets = _Targets.of(inputs, sources, Path(out), confidence)
    keys = _Keys.of(checkpoint, where, cut, aoi)
    orders = _orders(sources, targets, checkpoint.card, cut, aoi, progress)
    read = [Path(path) for path in (*sources, model, aoi) if path is not None]
    orders = _unmade(orders, targets, keys.run, read, overwrite, progress)
    planned = [order.planned(block_rows, workers) for order in orders]
    _check_disk(planned, targets.parent, progress)
    forward = Forward(checkpoint.segmenter(), where, progress)
    if dry_run:
        pace = _seconds_per_window(forward, orders[0].job)
        return [replace(p, seconds=pace * math.prod(p.plan.windows)) for p in planned]
    targets.make_folders()
    for order in orders:
        predict_map(
            order.job,
            forward,
            order.out,
            classes=checkpoint.card.classes,
            fingerprint=keys.network,
            confidence_out=order.confidence,
            block_rows=block_rows,
            workers=workers,
            source=order.source,
            tags=_tags(checkpoint, order.path, keys.run),
            progress=progress,
            overwrite=overwrite,
        )
    return planned


@dataclass(frozen=True)
class _Cut:
    """How rasters are cut for the network.

    Args:
        window: side of the windows in pixels.
        overlap: share of the window.
        batch_size: windows at a time.
        gsd: metres per pixel to resample to, or None.
    """

    window: int
    overlap: float
    batch_size: int
    gsd: float | None

    @classmethod
    def of(
        cls,
        card: Card,
        device: torch.device,
        window: int | None,
        overlap: float | None,
        gsd: float | None,
        batch_size: int | None,
    ) -> _Cut:
        """Fill in what the checkpoint and the device say.

        Raises:
            InputError: an option is out of range.
        """
        config = card.config
        assert isinstance(config, TrainConfig)
        side = config.window if window is None else window
        if side < WINDOW_MULTIPLE or side % WINDOW_MULTIPLE:
            near = max(1, round(side / WINDOW_MULTIPLE)) * WINDOW_MULTIPLE
            raise InputError(f"window {side}: must be a multiple of {WINDOW_MULTIPLE}; use {near}")
        share = config.overlap if overlap is None else overlap
        if not 0 <= share <= 0.75:
            raise InputError(f"overlap {share} is out of range: give a share from 0 to 0.75")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch size {batch_size}: give 1 or more")
        usual = max(1, default_batch_size(device) * 256**2 // side**2)
        return cls(side, share, batch_size or usual, gsd)


def _check_counts(block_rows: int | None, workers: int) -> None:
    if block_rows is not None and block_rows < 1:
        raise InputError(f"block rows {block_rows}: give 1 or more")
    if workers < 0:
        raise InputError(f"workers {workers}: give 0 or more")


def _several(inputs: str | Path | Sequence[str | Path]) -> bool:
    given = _listed(inputs)
    return len(given) > 1 or Path(given[0]).is_dir()


def _listed(inputs: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


def _sources(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    given = _listed(inputs)
    if not given:
        raise InputError("no raster to map: give files or a folder")
    return [path for one in given for path in list_rasters(Path(one))]


@dataclass(frozen=True)
class _Targets:
    """Where the maps go.

    Args:
        out: the map, or the folder of the maps.
        confidence: the same for the confidence, or None.
        several: whether both are folders.
    """

    out: Path
    confidence: Path | None
    several: bool

    @classmethod
    def of(
        cls,
        inputs: str | Path | Sequence[str | Path],
        sources: Sequence[Path],
        out: Path,
        confidence: str | Path | None,
    ) -> _Targets:
        """Check the names.

        Raises:
            InputError: no GeoTIFF's name, no place for a folder, or two maps of one name.
        """
        targets = cls(out, None if confidence is None else Path(confidence), _several(inputs))
        for path in targets._paths:
            if targets.several:
                _check_folder(path)
            elif path.suffix.lower() not in SUFFIXES and not path.is_dir():
                raise InputError(f"{path}: a map is a GeoTIFF; give a name that ends in .tif")
        if targets.confidence is not None and targets.confidence.resolve() == out.resolve():
            raise InputError(
                f"{out}: map and confidence need different places; give the confidence another one"
            )
        if targets.several:
            _check_stems(sources)
        return targets

    @property
    def _paths(self) -> list[Path]:
        return [self.out] if self.confidence is None else [self.out, self.confidence]

    @property
    def parent(self) -> Path:
        """A folder that exists, on the disk of the maps."""
        folder = self.out.resolve()
        return folder if folder.is_dir() else folder.parent

    def of_source(self, source: Path) -> tuple[Path, Path | None]:
        """Return where the map and the confidence of a raster go."""
        if not self.several:
            return self.out, self.confidence
        name = f"{source.stem}.tif"
        return self.out / name, None if self.confidence is None else self.confidence / name

    def check_file(self, path: Path, read: Sequence[Path], overwrite: bool) -> None:
        """Raise InputError where a file cannot be written, unless its folder is yet to come."""
        if path.parent.is_dir() or not self.several:
            check_output(path, overwrite, read)

    def make_folders(self) -> None:
        """Create the folders of several maps."""
        if self.several:
            for folder in self._paths:
                folder.mkdir(exist_ok=True)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; several inputs or a folder need a folder")
    # The folder itself, or the one it will be created in, must be writable.
    check_output(folder / "map.tif" if folder.is_dir() else folder, overwrite=True)


def _check_stems(sources: Sequence[Path]) -> None:
    by_stem: dict[str, Path] = {}
    for path in sources:
        other = by_stem.setdefault(path.stem.lower(), path)
        if other is not path:
            raise InputError(
                f"{path} and {other} would both be mapped to {path.stem}.tif; "
                "map one of them by itself"
            )


@dataclass(frozen=True)
class _Order:
    """One map to make.

    Args:
        path: the raster.
        job: what to predict.
        source: the raster as it is on disk, where the job sees it resampled.
        out: the map.
        confidence: the confidence, or None.
    """

    path: Path
    job: Job
    source: Raster | None
    out: Path
    confidence: Path | None

    def planned(self, block_rows: int | None, workers: int) -> Prediction:
        """Return what it will take."""
        takes = plan(
            self.job,
            confidence=self.confidence is not None,
            block_rows=block_rows,
            workers=workers,
            source=self.source,
        )
        return Prediction(self.path, self.out, self.confidence, takes)

    def is_made(self, run_key: str) -> bool:
        """Whether an earlier run of the same settings has finished it."""
        results = [self.out] if self.confidence is None else [self.out, self.confidence]
        files = [self.path] if self.job.area is None else [self.path, self.job.area.path]
        newest = max(file.stat().st_mtime_ns for file in files if file.exists())
        return all(
            result.is_file() and result.stat().st_mtime_ns >= newest and _made_by(result, run_key)
            for result in results
        )

    def check(self, targets: _Targets, run_key: str, read: Sequence[Path], overwrite: bool) -> None:
        """Raise InputError where the outputs cannot be written."""
        targets.check_file(self.out, read, overwrite)
        BlockStore(self.out.with_name(self.out.name + SCRATCH_SUFFIX), "", 1, self.job.shape, 1)
        if self.confidence is not None:
            # An interruption may have left a finished confidence and no map yet.
            ours = not self.out.exists() and _made_by(self.confidence, run_key)
            targets.check_file(self.confidence, read, overwrite or ours)


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
    targets: _Targets,
    card: Card,
    cut: _Cut,
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
        raster, source = _open(path, card, cut.gsd, progress)
        try:
            area = None if aoi is None else Area(Path(aoi), raster.grid)
        except InputError as error:
            missed = error
            if len(sources) > 1:
                progress.note(f"{path}: left out, {error}")
            continue
        job = Job(
            raster, card.bands, len(card.classes), cut.window, cut.overlap, cut.batch_size, area
        )
        orders.append(_Order(path, job, source, *targets.of_source(path)))
    if not orders and missed is not None:
        raise missed
    return orders


def _open(
    path: Path, card: Card, gsd: float | None, progress: Progress
) -> tuple[Raster, Raster | None]:
    """Open a raster as the network is to see it, and as it is where that differs."""
    bands = card.bands
    plain = Raster(path, bands.indices)
    _check_dtype(plain, bands, progress)
    if not plain.grid.is_georeferenced or plain.grid.crs is None:
        progress.warn(f"{path}: has no CRS, so its map has none either")
    raster = plain if gsd is None else Raster(path, bands.indices, gsd)
    _compare_resolution(raster, card, progress)
    return raster, None if raster.grid == plain.grid else plain


def _check_dtype(raster: Raster, bands: Bands, progress: Progress) -> None:
    """Raise InputError for integers of another type than those of the training.

    Their ranges differ (0 … 255, 0 … 10000), so the normalisation would make nonsense of them.
    """
    found, learnt = np.dtype(raster.dtype), np.dtype(bands.dtype)
    if found == learnt or {found.kind, learnt.kind} == {"f"}:
        return
    if "f" in (found.kind, learnt.kind):
        progress.warn(
            f"{raster.path}: has {found} pixels, the checkpoint learnt {learnt}, mostly from "
            f"{bands.low[0]:g} to {bands.high[0]:g}; "
            "the map is worthless unless the values mean the same"
        )
        return
    raise InputError(
        f"{raster.path}: has {found} pixels, the checkpoint learnt {learnt}; bring them to the "
        f"same scale and type with gdal_translate -scale -ot {_gdal_type(learnt)}, or train on "
        "rasters like this one"
    )


def _gdal_type(dtype: np.dtype[np.generic]) -> str:
    return "Byte" if dtype == np.uint8 else dtype.name.replace("u", "U").replace("int", "Int")


def _compare_resolution(raster: Raster, card: Card, progress: Progress) -> None:
    own, learnt = raster.grid.ground_sample_distance, card.ground_sample_distance
    if own is None or learnt is None:
        return
    if max(own / learnt, learnt / own) > GSD_TOLERANCE:
        progress.warn(
            f"{raster.path}: {own:.3g} m per pixel, the checkpoint learnt at {learnt:.3g} m; "
            f"things look other than it knows them, so try --gsd {learnt:.3g}"
        )


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
    def of(
        cls, checkpoint: Checkpoint, device: torch.device, cut: _Cut, aoi: str | Path | None
    ) -> _Keys:
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else device.type
        network = fingerprint(checkpoint.fingerprint, name, torch.__version__)
        # Names alone: in a map's tags neither folders nor times may show.
        area = None if aoi is None else Path(aoi).name
        return cls(network, fingerprint(network, asdict(cut), area, __version__))


def _unmade(
    orders: Sequence[_Order],
    targets: _Targets,
    run_key: str,
    read: Sequence[Path],
    overwrite: bool,
    progress: Progress,
) -> list[_Order]:
    """Return the maps that are still to be made, after checking that they can be.

    Where only some are there, the run was interrupted and goes on; where all are, it was not.
    """
    left = [order for order in orders if not order.is_made(run_key)] or list(orders)
    if len(left) < len(orders):
        progress.note(f"{len(orders) - len(left)} of {len(orders)} maps were made before")
    for order in left:
        order.check(targets, run_key, read, overwrite)
    return left


def _check_disk(planned: Sequence[Prediction], folder: Path, progress: Progress) -> None:
    """Raise InputError where the disk is too small for certain; warn where it may be."""
    scratch = max(one.plan.scratch_bytes for one in planned)
    needed = scratch + sum(one.plan.output_bytes for one in planned)
    free = shutil.disk_usage(folder).free
    found = f"up to {needed / 1e9:.2f} GB of disk are needed, {free / 1e9:.2f} GB are free"
    if needed * LEAST_DISK_SHARE > free:
        raise InputError(f"{folder}: {found}; make room or give another disk with --out")
    if needed > free:
        progress.warn(f"{folder}: {found}; if it fills up, make room and run again to go on")


def _seconds_per_window(forward: Forward, job: Job) -> float:
    """Measure the network on a batch of empty windows, after one to warm up."""
    images = np.zeros((job.batch_size, len(job.bands), job.window, job.window), np.float32)
    forward(images)
    start = time.perf_counter()
    forward(images)
    return (time.perf_counter() - start) / job.batch_size


def _tags(checkpoint: Checkpoint, source: Path, run_key: str) -> dict[str, str]:
    """Return the metadata of a map; no time, so that equal runs give equal bytes."""
    return {
        "RSSEG_VERSION": __version__,
        "RSSEG_MODEL": checkpoint.fingerprint[:16],
        "RSSEG_SOURCE": source.name,
        RUN_TAG: run_key,
    }
