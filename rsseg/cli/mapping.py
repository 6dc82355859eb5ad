"""The commands that write maps: predict, vectorize, export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from rsseg.cli.shell import open_console, print_paths
from rsseg.options import (
    Aoi,
    BatchSize,
    Blend,
    BlendName,
    BlockRows,
    Confidence,
    Dask,
    Device,
    DryRun,
    Gsd,
    LayerName,
    LayerOut,
    LeastArea,
    Legend,
    MapOut,
    MapPath,
    MapWorkers,
    MeanOf,
    Model,
    Overlap,
    Overwrite,
    Precision,
    PrecisionName,
    Probabilities,
    Quiet,
    Readers,
    RightAngles,
    SceneName,
    Simplify,
    SitePath,
    Sources,
    StripRows,
    Tta,
    TtaName,
    VectorFile,
    VectorsOut,
    Verbose,
    Wanted,
    Window,
)

if TYPE_CHECKING:
    from rsseg.api import Prediction


def predict(
    context: typer.Context,
    rasters: Sources,
    model: Model,
    out: MapOut,
    confidence: Confidence = None,
    probabilities: Probabilities = None,
    vectors: VectorsOut = None,
    aoi: Aoi = None,
    window: Window = None,
    overlap: Overlap = None,
    gsd: Gsd = None,
    block_rows: BlockRows = None,
    batch_size: BatchSize = None,
    blend: Blend = BlendName.RAMP,
    tta: Tta = TtaName.NONE,
    precision: Precision = PrecisionName.FLOAT32,
    workers: MapWorkers = None,
    device: Device = "auto",
    dask: Dask = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Map rasters with a trained segmenter."""
    from rsseg.api import predict

    with open_console(context, quiet, verbose) as console:
        made = predict(
            rasters,
            model,
            out,
            confidence=confidence,
            probabilities=probabilities,
            vectors=vectors,
            aoi=aoi,
            window=window,
            overlap=overlap,
            gsd=gsd,
            block_rows=block_rows,
            batch_size=batch_size,
            blend=str(blend),
            tta=str(tta),
            precision=str(precision),
            workers=workers,
            device=device,
            dask=dask,
            dry_run=dry_run,
            overwrite=overwrite,
            progress=console,
        )
        if dry_run:
            _print_plans(made)
        else:
            print_paths([path for one in made for path in one.files])


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


def vectorize(
    context: typer.Context,
    map_path: MapPath,
    out: VectorFile,
    confidence: MeanOf = None,
    wanted: Wanted = None,
    legend: Legend = None,
    min_area: LeastArea = 0.0,
    simplify: Simplify = 0.0,
    right_angles: RightAngles = False,
    strip_rows: StripRows = None,
    workers: Readers = 2,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw a map as polygons that share their edges: no gaps, no overlaps."""
    from rsseg.api import vectorize
    from rsseg.classes import Classes
    from rsseg.console import print_table

    with open_console(context, quiet, verbose) as console:
        found = vectorize(
            map_path,
            out,
            confidence=confidence,
            classes=None if legend is None else Classes.parse(str(legend)),
            only=() if wanted is None else wanted.split(","),
            min_area=min_area,
            simplify=simplify,
            right_angles=right_angles,
            strip_rows=strip_rows,
            workers=workers,
            overwrite=overwrite,
            progress=console,
        )
        print_table(["class", "polygons"], [[n, str(c)] for n, c in found.polygons.items()])
        print_paths([found.out])


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

    with open_console(context, quiet, verbose) as console:
        print_paths(export(site, layer, out, scene=scene, overwrite=overwrite, progress=console))
