"""The commands to look around with: info, quicklook, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rsseg.cli.shell import numbers, open_console, print_json, print_paths, share
from rsseg.cli.weights import segments
from rsseg.options import (
    AsJson,
    DemoOut,
    DemoSeed,
    DemoSize,
    Device,
    Looked,
    LookedMap,
    LookOut,
    LookSize,
    MapClasses,
    Opacity,
    Overwrite,
    Proposals,
    Quiet,
    Rgb,
    Sam,
    SideBySide,
    SitePath,
    Verbose,
)

if TYPE_CHECKING:
    from rsseg.api import SiteInfo
    from rsseg.demo import DemoReport


def info(
    context: typer.Context,
    site: SitePath,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what a site holds and how far it is."""
    from rsseg.api import info

    with open_console(context, quiet, verbose):
        found = info(site)
        if as_json:
            print_json(found.to_dict())
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
    tags = [[t.name, str(t.present), str(t.known), share(t.present, t.known)] for t in found.tags]
    print_table(["class", "tiles with it", "tiles known", "share"], tags)
    layers = [
        [one.name, one.fingerprint, "finished" if one.current else "", str(one.tiles)]
        for one in found.layers
    ]
    if layers:
        print()
        print_table(["layer", "made by", "state", "tiles"], layers, text_columns=3)


def quicklook(
    context: typer.Context,
    raster: Looked,
    map_path: LookedMap = None,
    out: LookOut = None,
    size: LookSize = 1600,
    side_by_side: SideBySide = False,
    opacity: Opacity = 0.5,
    classes: MapClasses = None,
    rgb: Rgb = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw a raster, or a map over it, as a PNG with legend and scale bar, north up."""
    from rsseg.api import quicklook
    from rsseg.classes import Classes

    with open_console(context, quiet, verbose) as console:
        if out is None:
            out = Path(f"{(map_path or raster).stem}_quicklook.png")
        quicklook(
            raster,
            out,
            map_path,
            classes=None if classes is None else Classes.parse(classes),
            rgb=numbers("--rgb", rgb),
            side_by_side=side_by_side,
            opacity=opacity,
            size=size,
            overwrite=overwrite,
            progress=console,
        )
        print_paths([out])


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

    with open_console(context, quiet, verbose) as console:
        kind, weights = segments(proposals, sam)
        report = run_demo(
            out,
            size=size,
            seed=seed,
            proposals=kind,
            sam=weights,
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
    print(f"open the map in QGIS: qgis {report.orthophoto} {report.map} {report.vectors}")
