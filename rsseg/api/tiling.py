"""tile: rasters become a site, and its tag sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsseg.api.preflight import WHOLE_WIDTH, Reading, foretell_site, free_bytes, look_at
from rsseg.bands import three_bands
from rsseg.classes import Classes
from rsseg.config import TileConfig
from rsseg.errors import InputError
from rsseg.grid import TILE_MULTIPLE, Window, split_overlap
from rsseg.io.build import SitePlan, create, is_made, scene_names
from rsseg.io.files import check_output
from rsseg.io.mapfile import write_map
from rsseg.io.measure import measure
from rsseg.io.raster import Raster, list_rasters
from rsseg.io.remote import as_path
from rsseg.io.site import Scene, Site, is_unfinished, sheet_path
from rsseg.io.tag_sheet import write_sheet
from rsseg.progress import SILENT, Progress


def tile(
    rasters: Sequence[str | Path],
    out: str | Path,
    classes: Classes,
    *,
    config: TileConfig = TileConfig(),  # noqa: B008  # frozen
    bands: Sequence[int] | None = None,
    rgb: Sequence[int] | None = None,
    chips: bool = False,
    link: bool | None = None,
    export_patches: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Site:
    """Cut rasters into tiles of one site, and write the tag sheet beside it.

    Args:
        rasters: files that GDAL opens, or folders of them; they may differ in CRS and size, not
            in bands.
        out: the site's folder, ``….zarr``; ``…_tags.gpkg`` beside it is the tag sheet.
        classes: the classes.
        config: tile size and overlap.
        bands: GDAL band numbers (from 1) for the networks; all but alpha by default.
        rgb: GDAL band numbers of red, green and blue for CRF, SAM and pictures.
        chips: every raster is one tile: small images without neighbours.
        link: leave the pixels where they are (True), copy them (False), or decide by size (None).
        export_patches: folder for the tiles as GeoTIFFs, or None.
        overwrite: replace an existing site; its tag sheet is kept under another name.
        progress: shows what is going on.

    Raises:
        InputError: something about the rasters or the outputs does not fit; nothing was written.
    """
    out = as_path(out)
    paths = [path for given in rasters for path in list_rasters(given)]
    core, _ = split_overlap(config.size, config.overlap)
    look_at(paths, Reading((core, WHOLE_WIDTH), (core, WHOLE_WIDTH)), progress)
    opened = [Raster(path, tuple(bands) if bands else None) for path in paths]
    plan = _plan(opened, classes, config, three_bands(rgb), chips, link)
    # Interrupted between the two: the site is there, its tag sheet is not.
    finished = is_made(out, plan) and not sheet_path(out).exists()
    _check_outputs(out, export_patches, overwrite or finished)
    _announce(plan, out, progress)
    total = sum(raster.grid.window.area for raster in opened)
    if finished:
        site = Site(out)
    else:
        with progress.step("tiling", total, "px") as step:
            site = create(
                out, plan, lambda: measure(opened, plan.rgb, progress), step.advance, overwrite
            )
    sheet = sheet_path(out)
    if sheet.exists():
        progress.note(f"the old tag sheet is kept as {_set_aside(sheet).name}")
    write_sheet(sheet, [scene.tiles for scene in site.scenes.values()], classes)
    if export_patches is not None:
        _export(site, Path(export_patches), progress)
    return site


def _plan(
    rasters: Sequence[Raster],
    classes: Classes,
    config: TileConfig,
    rgb: tuple[int, int, int] | None,
    chips: bool,
    link: bool | None,
) -> SitePlan:
    core, halo = split_overlap(config.size, config.overlap)
    if chips:
        longest = max(max(raster.grid.shape) for raster in rasters)
        core, halo = -(-longest // TILE_MULTIPLE) * TILE_MULTIPLE, 0
    names = scene_names([raster.path for raster in rasters])
    return SitePlan(
        rasters=dict(zip(names, rasters, strict=True)),
        classes=classes,
        core=core,
        halo=halo,
        rgb=rgb,
        link=link,
    )


def _check_outputs(out: Path, patches: str | Path | None, overwrite: bool) -> None:
    if out.suffix != ".zarr":
        raise InputError(f"--out {out}: a site's name ends in .zarr; use {out}.zarr")
    if out.exists() and not is_unfinished(out):
        if not overwrite:
            raise InputError(f"{out}: exists already; give another name or --overwrite")
        Site(out)  # or it is not ours to replace
    sheet = sheet_path(out)
    check_output(sheet, overwrite)
    if patches is not None and Path(patches).exists() and any(Path(patches).iterdir()):
        raise InputError(f"{patches}: is not empty; give a new folder for the patches")


def _set_aside(sheet: Path) -> Path:
    """Rename a tag sheet, for the user's ticks are in it."""
    count = 1
    while (kept := sheet.with_name(f"{sheet.stem}_old{count}.gpkg")).exists():
        count += 1
    return sheet.rename(kept)


def _announce(plan: SitePlan, out: Path, progress: Progress) -> None:
    size, files = plan.estimate()
    free = free_bytes(out.resolve().parent)
    progress.note(
        f"{len(plan.rasters)} scene(s), {plan.tile_count()} tiles; pixels are "
        f"{'linked' if plan.links else 'copied'}; all steps together need {files} files, "
        + foretell_site(plan, out.resolve().parent, progress)
    )
    if size > free:
        raise InputError(
            f"{out}: up to {size / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} GB are free; "
            "use --link, larger tiles or another disk"
        )
    for raster in plan.rasters.values():
        if raster.grid.crs is None and raster.grid.is_georeferenced:
            progress.warn(f"{raster.path}: has no CRS; its maps will have none either")


def _export(site: Site, folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(int(scene.tile_valid.sum()) for scene in site.scenes.values())
    with progress.step("patches", total, "tiles") as step:
        for scene in site.scenes.values():
            for patch in scene.tiling:
                if scene.tile_valid[patch.row, patch.col]:
                    window = patch.read.clipped(scene.grid.shape)
                    name = f"{scene.name}_{patch.row:05d}_{patch.col:05d}.tif"
                    _write_patch(folder / name, scene, window)
                    step.advance()


def _write_patch(path: Path, scene: Scene, window: Window) -> None:
    image, valid = scene.read(window)
    nodata = None if valid.all() else 0.0
    pixels = np.where(valid, image, image.dtype.type(0))
    write_map(
        path,
        scene.grid[window],
        [(window.relative_to(window), pixels)],
        count=len(image),
        dtype=image.dtype.name,
        nodata=nodata,
        overwrite=True,
    )
