"""The commands from rasters to a segmenter: tile, tag, pseudo-label, train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rsseg.cli.opinions import ask
from rsseg.cli.shell import (
    given,
    numbers,
    open_console,
    print_paths,
    share,
    share_or_number,
)
from rsseg.cli.weights import segments
from rsseg.config import Settings, recipe_for, with_options
from rsseg.errors import InputError
from rsseg.options import (
    Aoi,
    Arch,
    BandNumbers,
    BatchSize,
    Chips,
    ClassNames,
    Config,
    Dask,
    Device,
    Encoder,
    EncoderWeights,
    Epochs,
    ExportTo,
    Field,
    Labelled,
    LabellingModel,
    Labels,
    LabelWorkers,
    LastStep,
    LearningRate,
    Link,
    MethodName,
    MinArea,
    MinShare,
    ModelOut,
    OneClass,
    Overwrite,
    Patches,
    PointsPerSide,
    Proposals,
    Purifier,
    PurifierName,
    Quiet,
    Rasters,
    Recipe,
    Rgb,
    Sam,
    SiteOut,
    SitePath,
    SplitSeed,
    Steps,
    TagSources,
    TileOverlap,
    TileSize,
    TrainBatch,
    TrainMethod,
    TrainSeed,
    TrainWindow,
    Until,
    ValShare,
    Verbose,
    Vlm,
    VlmBits,
    VlmCoordinates,
    VlmModel,
    VlmUrl,
)

if TYPE_CHECKING:
    from rsseg.console import Console


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

    with open_console(context, quiet, verbose) as console:
        _check_chips(rasters, chips, [size, overlap])
        site = tile(
            [chips] if chips is not None else rasters or [],
            out,
            Classes.parse(classes),
            config=with_options(Settings.load(config).tile, size=size, overlap=overlap),
            bands=numbers("--bands", bands),
            rgb=numbers("--rgb", rgb),
            chips=chips is not None,
            link=link,
            export_patches=export_patches,
            overwrite=overwrite,
            progress=console,
        )
        sheet = sheet_path(site.path)
        console.note(f"{site.path} is ready; tick the classes in {sheet} and run rsseg tag")


def _check_chips(
    rasters: list[Path] | None, chips: Path | None, tiling: Sequence[float | None]
) -> None:
    from rsseg.io.remote import as_path

    if (chips is None) == (not rasters):
        raise InputError("give either rasters or --chips DIR")
    if chips is not None and any(value is not None for value in tiling):
        raise InputError("--size and --overlap do not go with --chips: every chip is one tile")
    if chips is not None and not as_path(chips).is_dir():
        raise InputError(f"--chips {chips}: no such folder")


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

    with open_console(context, quiet, verbose) as console:
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
        rows = [[s.name, str(s.present), str(s.known), share(s.present, s.known)] for s in shares]
        print_table(["class", "tiles with it", "tiles known", "share"], rows)


def pseudo_label(
    context: typer.Context,
    site: SitePath,
    until: LastStep = Until.SAM,
    export: ExportTo = None,
    aoi: Aoi = None,
    proposals: Proposals = None,
    sam: Sam = None,
    points_per_side: PointsPerSide = None,
    recipe: Recipe = None,
    model: LabellingModel = None,
    purify: Purifier = PurifierName.NONE,
    vlm: Vlm = None,
    vlm_url: VlmUrl = None,
    vlm_model: VlmModel = None,
    vlm_bits: VlmBits = None,
    vlm_coordinates: VlmCoordinates = None,
    config: Config = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: LabelWorkers = None,
    dask: Dask = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn tags into dense labels: CAM, dense CRF, segment proposals."""
    from rsseg.api import pseudo_label
    from rsseg.io.site import Site

    with open_console(context, quiet, verbose) as console:
        kind, sam = segments(proposals, sam, points_per_side)
        default = recipe_for(background=Site(site).classes.background is not None)
        settings = Settings.load(config, None if recipe is None else recipe.value, default)
        chosen = with_options(
            settings.proposals,
            proposals=kind,
            points_per_side=points_per_side,
            prompting=None if points_per_side is None else "grid",
        )
        write = _exporter(site, until, export, overwrite, console)
        named = (vlm, vlm_url, vlm_model, vlm_bits, vlm_coordinates)
        if any(named):
            Site(site).tags  # noqa: B018  # else the model would be asked for hours before
        ask(
            site,
            purify,
            *named,
            sam=sam,
            config=settings.vlm,
            device=device,
            console=console,
        )
        pseudo_label(
            site,
            settings=replace(settings, proposals=chosen),
            until=until.value,
            sam=sam,
            model=model,
            purify=purify.value,
            aoi=aoi,
            device=device,
            **given(batch_size=batch_size),
            workers=workers,
            dask=dask,
            progress=console,
        )
        write()


def _exporter(
    site: Path, until: Until, out: Path | None, overwrite: bool, console: Console
) -> Callable[[], None]:
    """Check where the last layer is to be written to; return what writes it afterwards."""
    if out is None:
        return lambda: None
    from rsseg.api import export, export_paths
    from rsseg.io.site import Site

    layer = "labels" if until == Until.SAM else until.value
    export_paths(Site(site), layer, out, overwrite=overwrite)

    def write() -> None:
        print_paths(export(site, layer, out, overwrite=overwrite, progress=console))

    return write


def train(
    context: typer.Context,
    site: SitePath,
    out: ModelOut,
    labels: Labels = None,
    field: Field = None,
    only: OneClass = None,
    method: TrainMethod = MethodName.SUPERVISED,
    labelled: Labelled = None,
    purify: Purifier = PurifierName.NONE,
    vlm: Vlm = None,
    vlm_url: VlmUrl = None,
    vlm_model: VlmModel = None,
    vlm_bits: VlmBits = None,
    vlm_coordinates: VlmCoordinates = None,
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
    from rsseg.learn.team import Team

    with open_console(context, quiet, verbose) as console:
        settings = Settings.load(config)
        chosen = with_options(
            settings.train,
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
        named = (vlm, vlm_url, vlm_model, vlm_bits, vlm_coordinates)
        ask(
            site,
            purify,
            *named,
            sam=None,
            config=settings.vlm,
            device=device,
            console=console,
        )
        path = train(
            site,
            out,
            labels=labels or (),
            field=field,
            only=only,
            method=method.value,
            labelled=share_or_number("--labelled", labelled),
            purify=purify.value,
            config=chosen,
            semi=settings.semi,
            device=device,
            overwrite=overwrite,
            progress=console,
        )
        if Team.of_environment().leads:
            print_paths([path])
