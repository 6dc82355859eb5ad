"""Tags: reading them from anything, judging them, splitting them into training and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import TILE_MULTIPLE
from rsseg.io.tag_csv import read_csv
from rsseg.io.tag_rasters import tags_from_raster
from rsseg.io.tag_sheet import is_sheet, read_sheet, write_sheet
from rsseg.io.tag_table import SceneTiles, TagTable, is_tagged, merged
from rsseg.io.tag_vectors import tags_from_vectors
from rsseg.io.vector import is_vector
from rsseg.progress import SILENT, Progress

__all__ = [
    "SceneTiles",
    "TagTable",
    "advise",
    "check",
    "is_tagged",
    "read_csv",
    "read_sheet",
    "read_tags",
    "shares",
    "split_blocks",
    "tags_from_raster",
    "tags_from_vectors",
    "write_sheet",
]

TOO_COMMON, TOO_RARE = 0.90, 0.02
"""Shares of the tagged tiles beyond which a class's tags teach next to nothing."""


def read_tags(
    sources: Sequence[Path],
    scenes: Sequence[SceneTiles],
    classes: Classes,
    *,
    field: str | None = None,
    only: str | None = None,
    min_area: float = 0.0,
    min_share: float = 0.01,
    progress: Progress = SILENT,
) -> TagTable:
    """Return the tags of CSV files, tag sheets, vector files and class rasters.

    What a source is shows in the file itself. Of several sources, later ones fill what the earlier
    ones leave unknown.

    Args:
        sources: at least one path.
        scenes: the site's scenes.
        classes: the classes.
        field: for vectors, the field with class names or ids.
        only: for vectors, the class that all features are of.
        min_area: for polygons, m² inside a core from which a class is present.
        min_share: for class rasters, the share of a core from which a class is present.
        progress: is told what is read and what is odd.

    Raises:
        InputError: a source cannot be used; the message says why.
    """
    assert sources
    tags: TagTable | None = None
    for source in sources:
        if source.suffix.lower() in (".csv", ".tsv"):
            found = read_csv(source, scenes, classes, progress)
        elif not is_vector(source):
            found = tags_from_raster(source, scenes, classes, min_share, progress)
        elif is_sheet(source):
            found = read_sheet(source, scenes, classes, progress)
        else:
            found = tags_from_vectors(source, scenes, classes, field, only, min_area, progress)
        tags = found if tags is None else merged(tags, found)
    assert tags is not None
    return tags


def shares(tags: TagTable, classes: Classes) -> list[tuple[int, int]]:
    """Return (tiles with the class, tiles where it is known) per class, in class order."""
    values = np.concatenate([table.reshape(-1, len(classes)) for table in tags.values()])
    present, known = (values == 1).sum(axis=0), (values >= 0).sum(axis=0)
    return list(zip(present.tolist(), known.tolist(), strict=True))


def check(tags: TagTable, classes: Classes) -> None:
    """Make sure that something can be learnt from the tags.

    Raises:
        InputError: no tile has a tag, or a foreground class is present in none.
    """
    counted = shares(tags, classes)
    if not any(known for _, known in counted):
        raise InputError(
            "no tile has a tag: tick classes and 'reviewed' in the tag sheet, or give "
            "`rsseg tag --from` a CSV, polygons or a class raster"
        )
    without = [classes.names[i] for i in classes.foreground if counted[i][0] == 0]
    if without:
        raise InputError(
            f"no tile is tagged with {', '.join(map(repr, without))}: tag at least one tile that "
            "contains it, or leave the class out of --classes"
        )


def advise(tags: TagTable, scenes: Sequence[SceneTiles], classes: Classes, core: int) -> list[str]:
    """Return a line per foreground class that is in nearly all or nearly no tagged tiles.

    Each names the tile size at which fewest classes are expected to be so: the shares in larger
    tiles are counted by merging neighbours, those in smaller ones extrapolated from that.

    Args:
        tags: the tags.
        scenes: the site's scenes.
        classes: the classes.
        core: side of the tile cores in pixels.
    """
    counted = shares(tags, classes)
    at_size = {i: _shares_by_factor(tags, i) for i in classes.foreground if counted[i][1]}
    odd = {i: counted[i][0] / counted[i][1] for i in at_size}
    odd = {i: share for i, share in odd.items() if not TOO_RARE <= share <= TOO_COMMON}
    factor = _best_factor(list(at_size.values()), core) if odd else 1.0
    size = _rounded(scenes[0].tiling.size * factor)
    lines = []
    for index, share in odd.items():
        extreme = "nearly all" if share > TOO_COMMON else "hardly any"
        remedy = (
            "no other tile size is expected to be better for all classes"
            if factor == 1
            else f"try --size {size} (about {at_size[index][factor]:.0%} of its tiles)"
        )
        lines.append(
            f"{classes.names[index]!r} is in {share:.1%} of the tagged tiles: {extreme}, "
            f"so its tags teach little; {remedy}"
        )
    return lines


def split_blocks(
    scenes: Sequence[SceneTiles],
    tags: TagTable,
    val_share: float = 0.2,
    block: int = 4,
    seed: int = 0,
) -> dict[str, NDArray[np.bool_]]:
    """Return which tiles are held back for validation, as (rows, cols) bool per scene.

    Whole blocks of ``block`` x ``block`` tiles go to one side, since neighbours are alike; a scene
    smaller than a block is one. Sites of few blocks get smaller ones, down to single tiles. The
    training side always keeps a block and, of every class that it can, a positive tile.

    Args:
        scenes: the site's scenes.
        tags: the tags; blocks without a tagged tile stay on the training side.
        val_share: the share of the tagged tiles to hold back, met as nearly as blocks allow.
        block: side of a block in tiles.
        seed: another seed draws other blocks.
    """
    blocks = _blocks(scenes, tags, block)
    while block > 1 and val_share and len(blocks) < 1 / val_share:
        block //= 2
        blocks = _blocks(scenes, tags, block)
    held = {scene.name: np.zeros(scene.tiling.counts, bool) for scene in scenes}
    for name, row, col in _drawn(blocks, val_share, seed):
        held[name][row * block : (row + 1) * block, col * block : (col + 1) * block] = True
    return held


_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def _shares_by_factor(tags: TagTable, index: int) -> dict[float, float]:
    """Return the share of tiles with a class by tile size, in sizes of now."""
    share = {factor: _merged_share(tags, index, int(factor)) for factor in (1.0, 2.0, 4.0)}
    # If k is how much faster absence dies out in tiles twice as large, 1 - p(2s) = (1 - p(s))^k,
    # then the k-th root leads back to smaller ones. k is 4 for scattered, 1 for clumped classes;
    # where a class is in all tiles nothing can be measured, and 2 (long shapes) is assumed.
    absent, absent_twice = (math.log1p(-share[factor]) for factor in (1.0, 2.0))
    growth = 2.0 if absent_twice >= absent else min(4.0, max(1.25, absent_twice / absent))
    for level, factor in ((1, 0.5), (2, 0.25)):
        share[factor] = -math.expm1(absent / growth**level)
    return share


def _merged_share(tags: TagTable, index: int, count: int) -> float:
    present = known = 0
    for table in tags.values():
        rows, cols = table.shape[:2]
        padding = [(0, -rows % count), (0, -cols % count)]
        cells = np.pad(table[..., index], padding, constant_values=-1)
        # Present (1) outweighs absent (0), which outweighs unknown (-1).
        blocks = cells.reshape(cells.shape[0] // count, count, -1, count).max(axis=(1, 3))
        present += int((blocks == 1).sum())
        known += int((blocks >= 0).sum())
    # Half a tile either way keeps the logarithms finite.
    return (present + 0.5) / (known + 1)


def _best_factor(by_factor: Sequence[dict[float, float]], core: int) -> float:
    possible = [f for f in _FACTORS if f * core >= TILE_MULTIPLE]

    def badness(factor: float) -> tuple[int, float]:
        beyond = sum(not TOO_RARE <= share[factor] <= TOO_COMMON for share in by_factor)
        return beyond, abs(math.log2(factor))

    return min(possible, key=badness)


def _rounded(size: float) -> int:
    return max(2, round(size / TILE_MULTIPLE)) * TILE_MULTIPLE


_Block = tuple[str, int, int]


def _blocks(
    scenes: Sequence[SceneTiles], tags: TagTable, block: int
) -> dict[_Block, tuple[int, NDArray[np.int_]]]:
    """Return (tagged tiles, positive tiles per class (K,)) of every block with a tagged tile."""
    blocks = {}
    for scene in scenes:
        table = tags[scene.name]
        rows, cols = table.shape[:2]
        for row, col in np.ndindex(-(-rows // block), -(-cols // block)):
            part = table[row * block : (row + 1) * block, col * block : (col + 1) * block]
            tagged = int(is_tagged(part).sum())
            if tagged:
                blocks[scene.name, row, col] = tagged, (part == 1).sum(axis=(0, 1))
    return blocks


def _drawn(
    blocks: dict[_Block, tuple[int, NDArray[np.int_]]], val_share: float, seed: int
) -> list[_Block]:
    """Return the blocks to hold back."""
    order = list(blocks)
    np.random.default_rng(seed).shuffle(order)
    wanted = val_share * sum(tagged for tagged, _ in blocks.values())
    left = sum((positive for _, positive in blocks.values()), np.zeros(1, int))
    needed = left > 0
    held: list[_Block] = []
    count = 0
    for name in order:
        tagged, positive = blocks[name]
        nearer = not held or abs(count + tagged - wanted) <= abs(count - wanted)
        keeps_all = ((left - positive > 0) | ~needed).all()
        if count < wanted and nearer and keeps_all and len(held) + 1 < len(blocks):
            held.append(name)
            count += tagged
            left = left - positive
    return held
