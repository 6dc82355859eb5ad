"""The command line: parse, call one verb, print what it found.

Everything heavy is imported inside the commands, so that ``rsseg --help`` is quick.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsseg.config import Settings, with_options
from rsseg.errors import InputError, RssegError, RunError
from rsseg.options import (
    Aoi,
    Arch,
    AsJson,
    BandNumbers,
    BatchSize,
    BlockRows,
    Chips,
    ClassNames,
    Confidence,
    Config,
    CsvOut,
    DemoOut,
    DemoSeed,
    DemoSize,
    Device,
    DryRun,
    Encoder,
    EncoderWeights,
    Epochs,
    ExportTo,
    Field,
    Gsd,
    JsonOut,
    Labels,
    LastStep,
    LayerName,
    LayerOut,
    LearningRate,
    Link,
    MapClasses,
    MapOut,
    MapPath,
    MinArea,
    MinMiou,
    MinShare,
    Model,
    ModelOut,
    OneClass,
    Overlap,
    Overwrite,
    Patches,
    PointsPerSide,
    Processes,
    ProposalKind,
    Proposals,
    Quiet,
    Rasters,
    Readers,
    Rgb,
    Sam,
    SceneName,
    SiteOut,
    SitePath,
    Sources,
    SplitSeed,
    Steps,
    TagSources,
    TileOverlap,
    TileSize,
    TrainBatch,
    TrainSeed,
    TrainWindow,
    Truth,
    Until,
    ValShare,
    Verbose,
    WeightName,
    WeightNames,
    Window,
)

if TYPE_CHECKING:
    from rsseg.api import Evaluation, Prediction, SiteInfo
    from rsseg.console import Console
    from rsseg.demo import DemoReport

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

# typer has its own copy of click or imports it, by version; this base class is reached in both.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Turn large orthophotos into maps with almost no labelling.",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The way: tile, tag, pseudo-label, train, predict, evaluate. Try it with: rsseg demo",
)
weights_app = typer.Typer(help="List, download and find pretrained weights.")
app.add_typer(weights_app, name="weights")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Take the options that stand before the command."""
    context.obj = quiet, verbose
    if version:
        from rsseg import __version__

        print(f"rsseg {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def tile(
    context: typer.Context,
    out: SiteOut,
    classes: ClassNames,
    rasters: Rasters = None,
    size: TileSize = None,
    overlap: TileOverlap = None,
    bands: BandNumbers = None,
    rgb: Rgb = None,
    link: Link = None,
    chips: Chips = None,
    export_patches: Patches = None,
    config: Config = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Cut rasters into tiles: makes the site, and the tag sheet to tick in QGIS."""
    from rsseg.api import tile
    from rsseg.classes import Classes
    from rsseg.io.site import sheet_path

    with _console(context, quiet, verbose) as console:
        _check_chips(rasters, chips, [size, overlap])
        tile(
            [chips] if chips is not None else rasters or [],
            out,
            Classes.parse(classes),
            config=with_options(Settings.load(config).tile, size=size, overlap=overlap),
            bands=_numbers("--bands", bands),
            rgb=_numbers("--rgb", rgb),
            chips=chips is not None,
            link=link,
            export_patches=export_patches,
            overwrite=overwrite,
            progress=console,
        )
        sheet = sheet_path(out)
        console.note(f"{out} is ready; tick the classes in {sheet} and run rsseg tag")


def _check_chips(
    rasters: list[Path] | None, chips: Path | None, tiling: Sequence[float | None]
) -> None:
    if (chips is None) == (not rasters):
        raise InputError("give either rasters or --chips DIR")
    if chips is not None and any(value is not None for value in tiling):
        raise InputError("--size and --overlap do not go with --chips: every chip is one tile")
    if chips is not None and not chips.is_dir():
        raise InputError(f"--chips {chips}: no such folder")


@app.command()
def tag(
    context: typer.Context,
    site: SitePath,
    sources: TagSources,
    field: Field = None,
    only: OneClass = None,
    min_area: MinArea = 0.0,
    min_share: MinShare = 0.01,
    val_share: ValShare = 0.2,
    seed: SplitSeed = 0,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which classes each tile contains."""
    from rsseg.api import tag
    from rsseg.console import print_table

    with _console(context, quiet, verbose) as console:
        shares = tag(
            site,
            sources,
            field=field,
            only=only,
            min_area=min_area,
            min_share=min_share,
            val_share=val_share,
            seed=seed,
            progress=console,
        )
        rows = [[s.name, str(s.present), str(s.known), _share(s.present, s.known)] for s in shares]
        print_table(["class", "tiles with it", "tiles known", "share"], rows)


@app.command()
def pseudo_label(
    context: typer.Context,
    site: SitePath,
    until: LastStep = Until.SAM,
    export: ExportTo = None,
    aoi: Aoi = None,
    proposals: Proposals = None,
    sam: Sam = None,
    points_per_side: PointsPerSide = None,
    config: Config = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Processes = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn tags into dense labels: CAM, dense CRF, segment proposals."""
    from rsseg.api import pseudo_label

    with _console(context, quiet, verbose) as console:
        if proposals == ProposalKind.SAM:
            sam = _sam_at_hand(sam)
        settings = Settings.load(config)
        chosen = with_options(
            settings.proposals,
            proposals=None if proposals is None else proposals.value,
            points_per_side=points_per_side,
        )
        write = _exporter(site, until, export, overwrite, console)
        pseudo_label(
            site,
            settings=replace(settings, proposals=chosen),
            until=until.value,
            sam=sam,
            aoi=aoi,
            device=device,
            **_given(batch_size=batch_size),
            workers=workers,
            progress=console,
        )
        write()


def _sam_at_hand(sam: str | None) -> str:
    """Return SAM's weights for a user who insists on SAM.

    Raises:
        InputError: there are none.
    """
    from rsseg.nets.weights import find, listing

    if sam is not None:
        return str(find(sam))
    there = [one.path for one in listing() if "sam" in one.name and one.path is not None]
    if not there:
        raise InputError(
            "--proposals sam: no SAM weights at hand; run rsseg weights fetch mobile_sam, "
            "or give --sam FILE"
        )
    return str(there[0])


def _exporter(
    site: Path, until: Until, out: Path | None, overwrite: bool, console: Console
) -> Callable[[], None]:
    """Check where the last layer is to be written to; return what writes it afterwards."""
    if out is None:
        return lambda: None
    from rsseg.api import export, export_paths
    from rsseg.io.site import Site

    layer = "labels" if until == Until.SAM else until.value
    export_paths(Site(site), out, overwrite=overwrite)

    def write() -> None:
        _print_paths(export(site, layer, out, overwrite=overwrite, progress=console))

    return write


@app.command()
def train(
    context: typer.Context,
    site: SitePath,
    out: ModelOut,
    labels: Labels = None,
    field: Field = None,
    only: OneClass = None,
    arch: Arch = None,
    encoder: Encoder = None,
    weights: EncoderWeights = None,
    epochs: Epochs = None,
    steps: Steps = None,
    window: TrainWindow = None,
    batch_size: TrainBatch = None,
    lr: LearningRate = None,
    seed: TrainSeed = None,
    config: Config = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train the segmenter on the labels and write its checkpoint."""
    from rsseg.api import train

    with _console(context, quiet, verbose) as console:
        settings = with_options(
            Settings.load(config).train,
            arch=arch,
            encoder=encoder,
            weights=weights,
            epochs=epochs,
            min_steps=steps,
            window=window,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
        )
        path = train(
            site,
            out,
            labels=labels or (),
            field=field,
            only=only,
            config=settings,
            device=device,
            overwrite=overwrite,
            progress=console,
        )
        _print_paths([path])


@app.command()
def predict(
    context: typer.Context,
    rasters: Sources,
    model: Model,
    out: MapOut,
    confidence: Confidence = None,
    aoi: Aoi = None,
    window: Window = None,
    overlap: Overlap = None,
    gsd: Gsd = None,
    block_rows: BlockRows = None,
    batch_size: BatchSize = None,
    workers: Readers = 2,
    device: Device = "auto",
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Map rasters with a trained segmenter."""
    from rsseg.api import predict

    with _console(context, quiet, verbose) as console:
        made = predict(
            rasters,
            model,
            out,
            confidence=confidence,
            aoi=aoi,
            window=window,
            overlap=overlap,
            gsd=gsd,
            block_rows=block_rows,
            batch_size=batch_size,
            workers=workers,
            device=device,
            dry_run=dry_run,
            overwrite=overwrite,
            progress=console,
        )
        if dry_run:
            _print_plans(made)
        else:
            _print_paths([path for m in made for path in (m.out, m.confidence) if path])


def _print_plans(planned: Sequence[Prediction]) -> None:
    from rsseg.console import duration, print_table

    rows = [
        [
            str(one.source),
            f"{one.plan.shape[1]} x {one.plan.shape[0]}",
            f"{one.plan.windows[1]} x {one.plan.windows[0]} of {one.plan.window} px",
            str(one.plan.blocks),
            f"{(one.plan.scratch_bytes + one.plan.output_bytes) / 1e6:.1f} MB",
            f"{one.plan.memory_bytes / 1e6:.0f} MB",
            duration(one.seconds or 0),
        ]
        for one in planned
    ]
    columns = ["raster", "pixels", "windows", "blocks", "disk, at most", "arrays", "time, at most"]
    print_table(columns, rows)


@app.command()
def evaluate(
    context: typer.Context,
    map_path: MapPath,
    truth: Truth,
    json_path: JsonOut = None,
    csv_path: CsvOut = None,
    min_miou: MinMiou = None,
    field: Field = None,
    only: OneClass = None,
    classes: MapClasses = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a map with the truth: IoU, precision, recall and F1 of each class."""
    from rsseg.api import evaluate
    from rsseg.classes import Classes
    from rsseg.io.files import check_output

    with _console(context, quiet, verbose) as console:
        to_stdout = json_path is not None and str(json_path) == "-"
        for path in (None if to_stdout else json_path, csv_path):
            if path is not None:
                check_output(path, overwrite, [map_path, truth])
        found = evaluate(
            map_path,
            truth,
            classes=None if classes is None else Classes.parse(classes),
            field=field,
            only=only,
            progress=console,
        )
        if csv_path is not None:
            found.write_csv(csv_path, overwrite=overwrite)
        if json_path is not None and not to_stdout:
            found.write_json(json_path, overwrite=overwrite)
        if to_stdout:
            _print_json(found.to_dict())
        else:
            _print_scores(found)
        _check_miou(found, min_miou)


def _check_miou(found: Evaluation, least: float | None) -> None:
    miou = found.scores.miou
    if least is not None and not miou >= least:  # also where it is undefined (NaN)
        raise RunError(f"mIoU {miou:.4f} is below --min-miou {least:g}")


def _print_scores(found: Evaluation) -> None:
    from rsseg.console import print_table

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = [
        [r.name, cell(r.iou), cell(r.precision), cell(r.recall), cell(r.f1), str(r.pixels)]
        for r in found.rows()
    ]
    print_table(["class", "IoU", "precision", "recall", "F1", "pixels"], rows)


@app.command()
def info(
    context: typer.Context,
    site: SitePath,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a site holds and how far it is."""
    from rsseg.api import info

    with _console(context, quiet, verbose):
        found = info(site)
        if as_json:
            _print_json(found.to_dict())
        else:
            _print_info(found)


def _print_info(found: SiteInfo) -> None:
    from rsseg.console import print_table

    bands = ",".join(map(str, found.bands))
    print(f"{found.path}: {found.disk_bytes / 1e6:.1f} MB on disk")
    print(f"classes: {', '.join(found.classes.names)}")
    print(f"bands: {bands} ({found.dtype})")
    print(f"tiles: {found.tile_size} px, {found.overlap} px of overlap\n")
    scenes = [
        [
            scene.name,
            scene.crs or "no CRS",
            "linked" if scene.linked else "copied",
            f"{scene.shape[1]} x {scene.shape[0]}",
            "" if (gsd := scene.ground_sample_distance) is None else f"{gsd:.3g} m",
            f"{scene.valid_tiles} of {scene.tiles}",
        ]
        for scene in found.scenes
    ]
    columns = ["scene", "CRS", "pixels are", "size", "per pixel", "valid tiles"]
    print_table(columns, scenes, text_columns=3)
    if not found.tags:
        print("\nno tags yet: run rsseg tag")
        return
    print(f"\n{found.reviewed_tiles} tiles are tagged")
    tags = [[t.name, str(t.present), str(t.known), _share(t.present, t.known)] for t in found.tags]
    print_table(["class", "tiles with it", "tiles known", "share"], tags)
    layers = [
        [one.name, one.fingerprint, "finished" if one.current else "", str(one.tiles)]
        for one in found.layers
    ]
    if layers:
        print()
        print_table(["layer", "made by", "state", "tiles"], layers, text_columns=3)


@app.command()
def export(
    context: typer.Context,
    site: SitePath,
    layer: LayerName,
    out: LayerOut,
    scene: SceneName = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a layer of a site as a GeoTIFF."""
    from rsseg.api import export

    with _console(context, quiet, verbose) as console:
        _print_paths(export(site, layer, out, scene=scene, overwrite=overwrite, progress=console))


@app.command()
def demo(
    context: typer.Context,
    out: DemoOut = Path("demo"),
    size: DemoSize = 1024,
    seed: DemoSeed = 0,
    proposals: Proposals = None,
    sam: Sam = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Go the whole way on a drawn orthophoto, offline."""
    from rsseg.demo import run_demo

    with _console(context, quiet, verbose) as console:
        report = run_demo(
            out,
            size=size,
            seed=seed,
            proposals=None if proposals is None else proposals.value,
            sam=_sam_at_hand(sam) if proposals == ProposalKind.SAM else sam,
            device=device,
            overwrite=overwrite,
            progress=console,
        )
        _print_demo(report)


def _print_demo(report: DemoReport) -> None:
    from rsseg.console import print_table

    rows = [
        [name, *(f"{value:.3f}" for value in (scores.miou, scores.oa, *scores.iou.tolist()))]
        for name, scores in report.scores.items()
    ]
    classes = [f"IoU {name}" for name in report.classes.names]
    print_table(["against the exact truth", "mIoU", "OA", *classes], rows)
    print(f"\n{report.quicklook} shows orthophoto, truth and map side by side")
    print(f"open the map in QGIS: qgis {report.orthophoto} {report.map}")


@weights_app.command("list")
def weights_list() -> None:
    """List the weights that rsseg knows, and where they lie."""
    from rsseg.console import print_table
    from rsseg.nets.weights import listing

    rows = [
        [one.name, one.use, one.licence, str(one.path or "not here"), f"{one.size / 1e6:.0f} MB"]
        for one in listing()
    ]
    print_table(["name", "for", "licence", "file", "size"], rows, text_columns=4)


@weights_app.command("fetch")
def weights_fetch(
    context: typer.Context,
    names: WeightNames,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download weights into the cache folder (RSSEG_WEIGHTS) and print their paths."""
    from rsseg.console import Download
    from rsseg.nets.weights import fetch

    with _console(context, quiet, verbose) as console:
        for name in names:
            with Download(console, name) as bar:
                path = fetch(name, progress=bar)
            _print_paths([path])


@weights_app.command("path")
def weights_path(
    name: WeightName,
) -> None:
    """Print where weights lie on this machine."""
    from rsseg.nets.weights import find

    _print_paths([find(name)])


@contextmanager
def _console(context: typer.Context, quiet: bool, verbose: bool) -> Iterator[Console]:
    """Give the console of the level asked for before or after the command.

    Libraries' warnings and log messages are details.
    """
    from rsseg.console import Console, Level

    before = context.find_root().obj or (False, False)
    if quiet or before[0]:
        level = Level.QUIET
    else:
        level = Level.VERBOSE if verbose or before[1] else Level.NORMAL
    console = Console(level)
    relay = _Relay(console)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_: console.detail(
            f"{category.__name__}: {message}"
        )
        logging.getLogger().addHandler(relay)
        try:
            yield console
        finally:
            logging.getLogger().removeHandler(relay)


class _Relay(logging.Handler):
    """Passes log messages on as details."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.detail(f"{record.name}: {record.getMessage()}")


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave, so that the verb's own defaults stand."""
    return {name: value for name, value in options.items() if value is not None}


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: give band numbers like 1,2,3") from None


def _share(present: int, known: int) -> str:
    return f"{present / known:.1%}" if known else ""


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def _print_json(description: dict[str, Any]) -> None:
    print(json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 is success, 1 a failed run, 2 bad usage or input, 130 an interruption; each failure is one
    line on stderr. Anything else that is raised is a bug and keeps its traceback.

    Args:
        arguments: what follows ``rsseg``; by default the process's own.
    """
    from rsseg.console import print_error

    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not command.main: it would answer Ctrl-C and usage errors itself, each in its own way.
        with command.make_context("rsseg", given) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except RssegError as error:
        print_error(f"error: {error}")
        return error.exit_code
    except _UsageError as error:
        where = "rsseg" if error.ctx is None else error.ctx.command_path
        print_error(f"error: {error.format_message().rstrip('.')}; see {where} --help")
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        if not _is_interruption(stop):
            raise
        # A second Ctrl-C while Python cleans up would end in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print_error("interrupted: run the same command again to go on")
        return INTERRUPTED
    return 0


def _is_interruption(stop: BaseException) -> bool:
    """Whether the user pressed Ctrl-C; Lightning makes a SystemExit of it."""
    return isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
