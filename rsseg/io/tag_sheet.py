"""The tag sheet: a GeoPackage of tile cores in which a user ticks classes tile by tile.

Layer ``tags``, one polygon per tile with a valid pixel: ``tile`` (``scene/row/column``), ``scene``,
``row``, ``col``, one Boolean field per foreground class, and Boolean ``reviewed``. In a reviewed
tile a class that is not ticked is absent; NULL is unknown. Other tiles are unlabelled.

The field of a class is its name with ``_`` for everything but letters, digits and ``_``. Where
that is not unique (SQL ignores case) or is taken by a field of the sheet, ``_`` and the class's id
are put after it: the classes ``Row`` (id 3) and ``bare soil`` have the fields ``Row_3`` and
``bare_soil``. Nothing but the classes decides, so the sheet need not store the names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.files import replacing
from rsseg.io.geopackage import check_geopackage, write_layer
from rsseg.io.style import sheet_qml
from rsseg.io.tag_table import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    SceneTiles,
    TagTable,
    completed,
    is_tagged,
    unknown_tags,
)
from rsseg.io.vector import field_names, read_table, transformed
from rsseg.progress import SILENT, Progress

LAYER = "tags"
RESERVED = (
    "tile",
    "scene",
    "row",
    "col",
    "reviewed",
    "fid",
    "ogc_fid",
    "rowid",
    "geom",
    "geometry",
)

_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), ABSENT),
    **dict.fromkeys(("", "nan", "na", "null", "none", "<na>"), UNKNOWN),
}


def class_fields(classes: Classes) -> tuple[str, ...]:
    """Return the sheet's field name of every class (the background's too, though it has none)."""
    plain = [re.sub(r"\W", "_", name) for name in classes.names]
    times = Counter(name.casefold() for name in plain)
    fields: list[str] = []
    taken = {*RESERVED, *times}
    for name, class_id in zip(plain, classes.ids, strict=True):
        field = name
        if times[name.casefold()] > 1 or name.casefold() in RESERVED:
            field = f"{name}_{class_id}"
            while field.casefold() in taken:
                field += "_"
        taken.add(field.casefold())
        fields.append(field)
    return tuple(fields)


def parse_flags(values: pd.Series[Any], source: Path | str) -> NDArray[np.int8]:
    """Return 1, 0 or -1 (unknown) for what people write for yes, no and nothing, (N,) int8.

    Raises:
        InputError: a value is none of 1/0, true/false, yes/no, empty.
    """
    texts = values.astype(object).where(values.notna(), "").astype(str).str.strip().str.lower()
    flags = texts.map(_FLAGS)
    if flags.isna().any():
        position = int(np.flatnonzero(flags.isna().to_numpy())[0])
        raise InputError(
            f"{source}: {values.name}={values.iloc[position]!r} in row {position + 1} is no tag; "
            "write 1, 0 or nothing (unknown)"
        )
    return np.asarray(flags, np.int8)


def write_sheet(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    tags: TagTable | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the tag sheet, filled with the tags where there are any.

    All in one CRS: the first one that a scene has. Scenes without a place on the ground stand in a
    row, each in its own pixels (y upwards, so rows are negative).

    Args:
        path: the GeoPackage to write; appears complete or not at all.
        scenes: the site's scenes.
        classes: the classes.
        tags: what is known already; a tile with a tag is marked as reviewed.
        overwrite: whether a sheet that exists, and a user's work with it, may be replaced.

    Raises:
        InputError: the file cannot be written, exists, or is open in another program.
    """
    check_geopackage(path, overwrite)
    sheet = _layout(scenes)
    table = unknown_tags(scenes, classes) if tags is None else tags
    values = np.concatenate([table[scene.name][scene.valid_tiles] for scene in scenes])
    reviewed = is_tagged(values)
    fields = class_fields(classes)
    for index in classes.foreground:
        ticked = pd.array(values[:, index] == PRESENT, dtype="boolean")
        ticked[reviewed & (values[:, index] == UNKNOWN)] = pd.NA
        sheet[fields[index]] = ticked
    sheet["reviewed"] = reviewed
    boxes = {fields[index]: classes.names[index] for index in classes.foreground}
    with replacing(path, overwrite=overwrite) as temporary:
        write_layer(temporary, LAYER, sheet, "Polygon", sheet_qml(boxes))


def is_sheet(path: Path) -> bool:
    """Return whether a vector file is a tag sheet: has the fields ``tile`` and ``reviewed``."""
    return {"tile", "reviewed"} <= set(field_names(path))


def read_sheet(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    progress: Progress = SILENT,
) -> TagTable:
    """Return the tags of a sheet that a user has worked on.

    Tiles that were deleted from the sheet are unlabelled.

    Args:
        path: the sheet, in whatever format and CRS it was saved.
        scenes: the site's scenes.
        classes: the classes.
        progress: is told of ticks in tiles that are not marked as reviewed.

    Raises:
        InputError: unreadable, or a sheet made for other tiles or classes.
    """
    sheet = read_table(path)
    _check_fields(sheet, classes, path)
    positions = _positions(sheet, scenes, path)
    fields = class_fields(classes)
    reviewed = parse_flags(sheet["reviewed"], path) == PRESENT
    values = np.full((len(sheet), len(classes)), UNKNOWN, np.int8)
    for index in classes.foreground:
        values[:, index] = parse_flags(sheet[fields[index]], path)
    ticked = int(((values == PRESENT).any(axis=1) & ~reviewed).sum())
    if ticked:
        progress.warn(
            f"{path}: {ticked} tiles have ticks but are not marked as reviewed: they count as "
            "unlabelled; tick 'reviewed' where a tile is done"
        )
    values[~reviewed] = UNKNOWN
    return completed(scattered(values, positions, scenes, classes), scenes, classes)


def scattered(
    values: NDArray[np.int8],
    positions: NDArray[np.intp],
    scenes: Sequence[SceneTiles],
    classes: Classes,
) -> TagTable:
    """Return a table from rows of tags, unknown elsewhere.

    Args:
        values: (N, K) int8.
        positions: (N,) the tile of each row, counted through the valid tiles of all scenes.
        scenes: the site's scenes.
        classes: the classes.
    """
    tags = unknown_tags(scenes, classes)
    flat = np.full((sum(int(s.valid.sum()) for s in scenes), len(classes)), UNKNOWN, np.int8)
    flat[positions] = values
    start = 0
    for scene in scenes:
        count = int(scene.valid.sum())
        tags[scene.name][scene.valid_tiles] = flat[start : start + count]
        start += count
    return tags


def _layout(scenes: Sequence[SceneTiles]) -> geopandas.GeoDataFrame:
    crs = next((scene.grid.crs for scene in scenes if scene.grid.crs is not None), None)
    parts = []
    shift = 0
    for scene in scenes:
        transform = scene.grid.transform
        if not scene.grid.is_georeferenced:
            transform = Affine(1, 0, shift, 0, -1, 0)
            shift += scene.grid.shape[1]
        placed = Grid(scene.grid.shape, transform, scene.grid.crs)
        parts.append(_core_polygons(scene, placed, crs))
    rows, cols = (np.concatenate([s.valid_tiles[axis] for s in scenes]) for axis in (0, 1))
    columns = {
        "tile": [tile for scene in scenes for tile in scene.tile_ids],
        "scene": np.repeat([s.name for s in scenes], [int(s.valid.sum()) for s in scenes]),
        "row": rows.astype(np.int32),
        "col": cols.astype(np.int32),
    }
    return geopandas.GeoDataFrame(columns, geometry=np.concatenate(parts), crs=crs)


def _core_polygons(scene: SceneTiles, grid: Grid, crs: str | None) -> NDArray[Any]:
    placed = transformed(shapely.box(*scene.core_bounds.T), grid.transform)
    if grid.crs is None or grid.crs == crs:
        return placed
    return np.asarray(geopandas.GeoSeries(placed, crs=grid.crs).to_crs(crs).to_numpy())


def _check_fields(sheet: geopandas.GeoDataFrame, classes: Classes, path: Path) -> None:
    wanted = ["tile", "reviewed", *(class_fields(classes)[i] for i in classes.foreground)]
    missing = next((field for field in wanted if field not in sheet.columns), None)
    if missing is not None:
        found = ", ".join(str(c) for c in sheet.columns if c not in (*RESERVED, "geometry"))
        raise InputError(
            f"{path}: a tag sheet made for other classes: it has no field {missing!r}, its classes "
            f"are {found or 'none'}; use the sheet that `rsseg tile` wrote for this site"
        )


def _positions(
    sheet: geopandas.GeoDataFrame, scenes: Sequence[SceneTiles], path: Path
) -> NDArray[np.intp]:
    advice = "use the sheet that `rsseg tile` wrote for this site"
    expected = _layout(scenes)
    tiles = sheet["tile"].fillna("").astype(str)
    if tiles.duplicated().any():
        twice = tiles[tiles.duplicated()].iloc[0]
        raise InputError(f"{path}: tile {twice!r} is in the sheet twice; delete one of the two")
    positions: NDArray[np.intp] = pd.Index(expected["tile"]).get_indexer(tiles)
    if (positions < 0).any():
        stranger = tiles[positions < 0].iloc[0]
        raise InputError(
            f"{path}: a tag sheet made for other tiles: the site has no tile {stranger!r}; {advice}"
        )
    moved = _moved(sheet.geometry, expected.geometry.iloc[positions])
    if moved.any():
        raise InputError(
            f"{path}: a tag sheet made for other tiles: {tiles[moved].iloc[0]!r} lies elsewhere or "
            f"has another size in the site; {advice}"
        )
    return positions


def _moved(found: geopandas.GeoSeries, expected: geopandas.GeoSeries) -> NDArray[np.bool_]:
    # A sheet may have been saved in another CRS; a twentieth of a tile is more than that moves it.
    if found.crs is not None and expected.crs is not None:
        expected = expected.to_crs(found.crs)
    wanted = shapely.bounds(expected.to_numpy())
    side = (wanted[:, 2:] - wanted[:, :2]).min(axis=1, keepdims=True)
    near = np.abs(shapely.bounds(found.to_numpy()) - wanted) <= 0.05 * side
    moved: NDArray[np.bool_] = ~near.all(axis=1)
    return moved
