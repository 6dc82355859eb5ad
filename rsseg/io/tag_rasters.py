"""Tags from class rasters: which classes hold how much of which core."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterioWindow

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.raster import open_dataset
from rsseg.io.tag_table import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    SceneTiles,
    TagTable,
    completed,
    listed,
    plain_name,
    unknown_tags,
)
from rsseg.progress import SILENT, Progress


def tags_from_raster(
    paths: Path | Sequence[Path],
    scenes: Sequence[SceneTiles],
    classes: Classes,
    min_share: float = 0.01,
    progress: Progress = SILENT,
) -> TagTable:
    """Return presence per core from rasters of class ids, on any grid and in any CRS.

    A class is present where it has at least ``min_share`` of the core's classified pixels, and
    absent otherwise; where less than half of the core is classified, absent becomes unknown.
    Rasters without georeference belong to the scene of the same name and size.

    Args:
        paths: one class raster, or several that lie side by side.
        scenes: the site's scenes.
        classes: the classes; other ids, nodata and 255 are not classified.
        min_share: in [0, 1].
        progress: shows the pixels being counted.

    Raises:
        InputError: unreadable; more than one band; lies on none of the scenes; no known id.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    tags = unknown_tags(scenes, classes)
    counts = {s.name: np.zeros((*s.tiling.counts, len(classes)), np.int64) for s in scenes}
    for file in files:
        _count_raster(file, scenes, classes, counts, progress)
    for scene in scenes:
        tags[scene.name] = _from_counts(counts[scene.name], scene, min_share)
    return completed(tags, scenes, classes)


def _count_raster(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    counts: dict[str, NDArray[np.int64]],
    progress: Progress,
) -> None:
    """Add the raster's pixels per tile and class to ``counts``."""
    with _open_class_raster(path) as source:
        meant = [scene for scene in scenes if _lies_on(source, path, scene, len(scenes))]
        if not meant:
            raise InputError(
                f"{path}: lies on none of the site's scenes; check its CRS (a raster without "
                "georeference needs the name and the size of its scene)"
            )
        found = 0
        for scene in meant:
            try:
                with _on_grid(source, scene.grid) as dataset:
                    added = _count_tiles(dataset, scene, classes, progress)
            except RasterioError as error:
                raise InputError(
                    f"{path}: cannot be read on the grid of {scene.name!r} "
                    f"({error.__cause__ or error}); the file or its CRS is damaged"
                ) from error
            counts[scene.name] += added
            found += int(added.sum())
        if not found:
            ids = listed([str(class_id) for class_id in classes.ids])
            raise InputError(
                f"{path}: no pixel on the site has a class id ({ids}); its values are "
                f"{_some_values(source)}; give the ids in the classes' TOML"
            )


def _open_class_raster(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    try:
        source = open_dataset(path)
    except RasterioError as error:
        raise InputError(
            f"{path}: GDAL can read it neither as vectors nor as a raster ({error}); "
            "give a CSV, a vector file or a class raster"
        ) from error
    bands = [c for c in source.colorinterp if c != ColorInterp.alpha]
    if len(bands) != 1:
        source.close()
        raise InputError(
            f"{path}: has {len(bands)} bands; a class raster has one, with a class id per pixel"
        )
    return source


def _lies_on(source: Any, path: Path, scene: SceneTiles, scene_count: int) -> bool:
    place = Grid(source.shape, source.transform, source.crs.to_wkt() if source.crs else None)
    if not (place.is_georeferenced and scene.grid.is_georeferenced):
        named = scene_count == 1 or plain_name(path.name) == scene.name
        return named and place.shape == scene.grid.shape
    bounds = place.bounds
    if place.crs is not None and scene.grid.crs is not None:
        try:
            bounds = transform_bounds(source.crs, CRS.from_wkt(scene.grid.crs), *bounds)
        except (CRSError, RasterioError):
            return False
    left, bottom, right, top = scene.grid.bounds
    return bounds[0] < right and bounds[2] > left and bounds[1] < top and bounds[3] > bottom


def _on_grid(source: Any, grid: Grid) -> AbstractContextManager[Any]:
    """Return the raster as seen on the grid, nearest neighbour, in a context of its own."""
    unplaced = not grid.is_georeferenced or (source.crs is None and source.transform.is_identity)
    crs = CRS.from_wkt(grid.crs) if grid.crs is not None else source.crs
    same = source.transform.almost_equals(grid.transform) and source.crs in (None, crs)
    if source.shape == grid.shape and (unplaced or same):
        return nullcontext(source)
    # 255 is no class id, so pixels beyond the raster cannot be taken for a class. Where neither
    # side has a CRS any will do: only the affine transforms count then.
    crs = crs or CRS.from_epsg(3857)
    height, width = grid.shape
    nodata = IGNORE if np.can_cast(np.uint8, source.dtypes[0]) else -1
    vrt: AbstractContextManager[Any] = WarpedVRT(
        source,
        src_crs=source.crs or crs,
        crs=crs,
        transform=grid.transform,
        height=height,
        width=width,
        nodata=nodata,
    )
    return vrt


def _count_tiles(
    dataset: Any, scene: SceneTiles, classes: Classes, progress: Progress
) -> NDArray[np.int64]:
    """Return the pixels per tile and class, (rows, cols, K)."""
    (rows, cols), core = scene.tiling.counts, scene.tiling.core
    height, width = scene.grid.shape
    counts = np.zeros((rows, cols, len(classes)), np.int64)
    column = np.arange(width) // core * 256
    with progress.step(f"counting classes in {scene.name}", rows, "tile rows") as step:
        for row in range(rows):
            strip = RasterioWindow(0, row * core, width, min(core, height - row * core))
            ids = dataset.read(1, window=strip, masked=True)
            indices = classes.from_ids(ids.data)
            indices[np.ma.getmaskarray(ids)] = IGNORE
            cells = indices + column
            histogram = np.bincount(cells.ravel(), minlength=cols * 256).reshape(cols, 256)
            counts[row] = histogram[:, : len(classes)]
            step.advance()
    return counts


def _some_values(source: Any) -> str:
    shape = tuple(min(side, 512) for side in source.shape)
    values = np.unique(source.read(1, out_shape=shape))
    return listed([f"{value:g}" for value in values])


def _from_counts(
    counts: NDArray[np.int64], scene: SceneTiles, min_share: float
) -> NDArray[np.int8]:
    """Return tags (rows, cols, K) int8 from pixels per tile and class, (rows, cols, K)."""
    classified = counts.sum(axis=-1, keepdims=True)
    share = counts / np.maximum(classified, 1)
    tags = np.where((counts > 0) & (share >= min_share), np.int8(PRESENT), np.int8(ABSENT))
    left, top, right, bottom = scene.core_bounds.T
    area = np.zeros(scene.tiling.counts)
    area[scene.valid_tiles] = (right - left) * (bottom - top)
    unsure = (classified < 0.5 * area[..., None]) | (classified == 0)
    tags[unsure & (tags == ABSENT)] = UNKNOWN
    return tags
