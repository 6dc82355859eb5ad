"""Tags from CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.remote import local_copy
from rsseg.io.tag_sheet import RESERVED, class_fields, parse_flags, scattered
from rsseg.io.tag_table import (
    PRESENT,
    UNKNOWN,
    SceneTiles,
    TagTable,
    completed,
    listed,
    plain_name,
)
from rsseg.progress import SILENT, Progress


def read_csv(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    progress: Progress = SILENT,
) -> TagTable:
    """Return the tags of a CSV file, one row per tile.

    Columns: ``tile`` (``scene/row/column``), or ``scene`` (or ``image``) with ``row`` and ``col``,
    which scenes of one tile can do without; scenes with or without a file suffix. One column per
    class, its name or its field in the tag sheet: 1, 0, or nothing for unknown (true/false and
    yes/no too). The background's column may be left out. Where there is a column ``reviewed``,
    rows that do not affirm it are left out. Separated by comma, semicolon or tab.

    Raises:
        InputError: unreadable; a column is missing; a value is no tag; a tile that the site does
            not have or that comes twice; none of the scenes is the site's.
    """
    rows = _read_rows(path)
    columns = _class_columns(rows, classes, path)
    owner = _owners(rows, scenes)
    if owner is None:
        raise InputError(
            f"{path}: which tile a row is of is not said: a column 'tile', 'image' or 'scene' is "
            f"needed; the columns are {_columns(rows)}"
        )
    strangers = int((owner < 0).sum())
    if strangers == len(rows):
        raise InputError(
            f"{path}: none of its {len(rows)} rows is of a scene of this site "
            f"({listed([scene.name for scene in scenes])}); check the names"
        )
    if strangers:
        progress.warn(f"{path}: {strangers} of {len(rows)} rows are of other scenes: left out")
    kept = owner >= 0
    if "reviewed" in rows:
        kept &= parse_flags(rows["reviewed"], path) == PRESENT
    values = np.full((len(rows), len(classes)), UNKNOWN, np.int8)
    for index, column in columns.items():
        values[:, index] = parse_flags(rows[column], path)
    positions = _positions(rows[kept], owner[kept], scenes, path)
    # A tile without a valid pixel is the site's too, but takes no tag.
    tags = scattered(values[kept][positions >= 0], positions[positions >= 0], scenes, classes)
    return completed(tags, scenes, classes)


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        here = local_copy(path)
        with here.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        rows = pd.read_csv(
            here, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    if rows.empty:
        raise InputError(f"{path}: no rows in it; give one row per tile")
    return rows.rename(columns=lambda name: str(name).strip())


def _columns(rows: pd.DataFrame) -> str:
    return ", ".join(map(str, rows.columns))


def _class_columns(rows: pd.DataFrame, classes: Classes, path: Path) -> dict[int, str]:
    folded = {str(column).casefold(): str(column) for column in rows.columns}
    columns = {}
    for index, (name, field) in enumerate(zip(classes.names, class_fields(classes), strict=True)):
        wanted = [field] if name.casefold() in RESERVED else [name, field]
        exact = [column for column in wanted if column in rows]
        loose = [folded[column.casefold()] for column in wanted if column.casefold() in folded]
        if exact or loose:
            columns[index] = (exact or loose)[0]
        elif index != classes.background:
            raise InputError(
                f"{path}: no column for class {name!r}; the columns are {_columns(rows)}"
            )
    return columns


def _owners(rows: pd.DataFrame, scenes: Sequence[SceneTiles]) -> NDArray[np.intp] | None:
    """Return the position of each row's scene, -1 for strangers; None where no column tells."""
    if "tile" in rows:
        return _scene_positions(rows["tile"].str.rsplit("/", n=2).str[0], scenes)
    owners = [_scene_positions(rows[name], scenes) for name in ("image", "scene") if name in rows]
    # Lists of images may have both columns, the scenes being groups of images.
    return max(owners, key=lambda owner: (owner >= 0).sum(), default=None)


def _scene_positions(names: pd.Series[str], scenes: Sequence[SceneTiles]) -> NDArray[np.intp]:
    positions = {scene.name: position for position, scene in enumerate(scenes)}
    found = {
        name: positions.get(name, positions.get(plain_name(name), -1)) for name in names.unique()
    }
    return names.map(found).to_numpy(np.intp)


def _positions(
    rows: pd.DataFrame, owner: NDArray[np.intp], scenes: Sequence[SceneTiles], path: Path
) -> NDArray[np.intp]:
    """Return each row's tile, counted through the valid tiles of all scenes; -1 if not valid."""
    counts = np.array([scene.tiling.counts for scene in scenes])
    cells = np.stack([_cells(rows, axis, counts[owner], path) for axis in (0, 1)], axis=1)
    beyond = (cells >= counts[owner]).any(axis=1)
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        scene = scenes[owner[first]]
        raise InputError(
            f"{path}: made for other tiles: row {cells[first, 0]}, column {cells[first, 1]} of "
            f"scene {scene.name!r} is not in the site, which has {counts[owner[first]][0]} x "
            f"{counts[owner[first]][1]} tiles there"
        )
    sizes = counts.prod(axis=1)
    flat = (np.cumsum(sizes) - sizes)[owner] + cells[:, 0] * counts[owner, 1] + cells[:, 1]
    _check_once(flat, owner, cells, scenes, path)
    valid = np.concatenate([scene.valid.ravel() for scene in scenes])
    ranks = np.where(valid, np.cumsum(valid) - 1, -1)
    positions: NDArray[np.intp] = ranks[flat]
    return positions


def _cells(rows: pd.DataFrame, axis: int, counts: NDArray[np.int_], path: Path) -> NDArray[np.int_]:
    """Return the tile row (axis 0) or column (axis 1) of every row of the file, (N,)."""
    name = ("row", "col")[axis]
    if "tile" in rows:
        texts = rows["tile"].str.extract(r"/([^/]*)/([^/]*)$")[axis].fillna("").str.strip()
    elif name in rows:
        texts = rows[name].str.strip()
    else:
        texts = pd.Series("", index=rows.index)
    texts = texts.mask((texts == "") & (counts.prod(axis=1) == 1), "0")
    wrong = ~texts.str.fullmatch(r"\d{1,9}(\.0+)?").to_numpy(bool)
    if wrong.any():
        raise InputError(
            f"{path}: {name} {texts[wrong].iloc[0]!r} is not a tile's place in a scene of several "
            "tiles; give columns row and col (from 0) or tile (scene/row/column)"
        )
    return texts.astype(float).to_numpy().astype(np.int_)


def _check_once(
    flat: NDArray[np.int_],
    owner: NDArray[np.intp],
    cells: NDArray[np.int_],
    scenes: Sequence[SceneTiles],
    path: Path,
) -> None:
    repeated = np.flatnonzero(pd.Series(flat).duplicated())
    if repeated.size:
        first = repeated[0]
        tile = f"{scenes[owner[first]].name}/{cells[first, 0]}/{cells[first, 1]}"
        raise InputError(f"{path}: tile {tile!r} comes twice; keep one of the two rows")
