"""Lots: which tiles of a site are learnt from with labels, which without, and which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import InputError
from rsseg.grid import Tile
from rsseg.io.labels import LabelSource
from rsseg.io.site import Site
from rsseg.io.tags import split_blocks
from rsseg.progress import Progress

LEAST_SHARE = 0.01
"""Share of a tile's labelled pixels from which a class counts as shown by it, when tiles are
drawn; a class that no tile shows so well counts wherever it is."""

Tables = dict[str, NDArray[np.bool_]]
"""Scene name → (rows, cols), a value per tile."""


@dataclass(frozen=True)
class Lots:
    """What each tile is for.

    Args:
        labelled: tiles whose labels are learnt from.
        validation: labelled tiles that are only scored on.
        held: tiles kept from all learning, with labels or without.
        whole: all tiles with a valid pixel that are not held.
        complete: whether every pixel of ``whole`` has a label that is learnt from.
    """

    labelled: Tables
    validation: Tables
    held: Tables
    whole: Tables
    complete: bool


def tiles_of(site: Site, lot: Tables) -> dict[str, list[Tile]]:
    """Return the tiles of a lot: scene name → tiles."""
    return {
        name: [tile for tile in scene.tiling if lot[name][tile.row, tile.col]]
        for name, scene in site.scenes.items()
    }


def check_share(labelled: float | None) -> None:
    """Raise InputError unless it is a share of the tiles (float), a number (int), or None."""
    if labelled is None:
        return
    counts = isinstance(labelled, int)
    if not (labelled >= 1 if counts else 0 < labelled <= 1):
        found = f"{labelled}" if counts else f"{labelled:.6g} ({labelled:.6%})"
        raise InputError(
            f"labelled = {found}: give a share of the labelled tiles above 0 up to 100%, "
            "or their number from 1 on"
        )


def cast_lots(
    site: Site, source: LabelSource, labelled: float | None, seed: int, progress: Progress
) -> Lots:
    """Return which tiles are for what.

    Args:
        site: the site.
        source: all labels there are.
        labelled: share (float) or number (int) of the labelled tiles outside validation that keep
            their labels, as ``draw_tiles`` draws them; None keeps all.
        seed: draws others.
        progress: told of classes without labels.

    Raises:
        InputError: there are no labels, or fewer labelled tiles than asked for.
    """
    counts = count_labels(site, source, progress)
    _check_labels(site, counts)
    held = _held_back(site, counts)
    known = {name: np.asarray(table.any(axis=-1)) for name, table in counts.items()}
    if not any((known[name] & ~held[name]).any() for name in known):
        held = {name: np.zeros_like(table) for name, table in held.items()}
    chosen = {name: known[name] & ~held[name] for name in known}
    if labelled is not None:
        chosen = _drawn(chosen, counts, labelled, seed)
        counts = {name: table * chosen[name][..., None] for name, table in counts.items()}
    _warn_of_missing(site, counts, progress)
    whole = {name: scene.tile_valid & ~held[name] for name, scene in site.scenes.items()}
    return Lots(
        labelled=chosen,
        validation={name: known[name] & held[name] for name in known},
        held=held,
        whole=whole,
        complete=_complete(site, whole, counts),
    )


def count_labels(
    site: Site, source: LabelSource, progress: Progress
) -> dict[str, NDArray[np.int64]]:
    """Return labelled pixels per tile and class: scene name → (rows, cols, K)."""
    counts: dict[str, NDArray[np.int64]] = {}
    total = sum(len(scene.tiling) for scene in site.scenes.values())
    with progress.step("reading labels", total, "tiles") as step:
        for name, scene in site.scenes.items():
            table = np.zeros((*scene.tiling.counts, len(site.classes)), np.int64)
            for tile in scene.tiling:
                if scene.tile_valid[tile.row, tile.col]:
                    found = np.bincount(source(name, tile.core).ravel(), minlength=256)
                    table[tile.row, tile.col] = found[: len(site.classes)]
                step.advance()
            counts[name] = table
    return counts


def _check_labels(site: Site, counts: Mapping[str, NDArray[np.int64]]) -> None:
    if not any(table.any() for table in counts.values()):
        raise InputError(f"no labelled pixel lies on {site.path}; check the labels' CRS and ids")


def _warn_of_missing(
    site: Site, counts: Mapping[str, NDArray[np.int64]], progress: Progress
) -> None:
    total = sum(table.sum(axis=(0, 1)) for table in counts.values())
    for name, pixels in zip(site.classes.names, np.atleast_1d(total), strict=True):
        if pixels == 0:
            progress.warn(f"class {name!r} has no labelled pixel: it will never be predicted")


def _held_back(site: Site, counts: Mapping[str, NDArray[np.int64]]) -> Tables:
    """Return which tiles are kept for validation, in whole spatial blocks.

    The split is the one made with the tags, where there are any.
    """
    scenes = site.scenes
    if all(scene.tags is not None for scene in scenes.values()):
        return {name: scene.validation for name, scene in scenes.items()}
    tags = {
        name: np.where(table.any(axis=-1, keepdims=True), table > 0, -1).astype(np.int8)
        for name, table in counts.items()
    }
    return split_blocks([scene.tiles for scene in scenes.values()], tags)


def _drawn(
    known: Tables, counts: Mapping[str, NDArray[np.int64]], labelled: float, seed: int
) -> Tables:
    """Return those of the known tiles that keep their labels."""
    places = [(name, row, col) for name in known for row, col in np.argwhere(known[name])]
    count = labelled if isinstance(labelled, int) else max(1, round(labelled * len(places)))
    if count > len(places):
        raise InputError(
            f"labelled = {labelled}: only {len(places)} tiles outside validation have labels"
        )
    pixels = np.stack([counts[name][row, col] for name, row, col in places])
    chosen = {name: np.zeros_like(table) for name, table in known.items()}
    for index in draw_tiles(pixels, int(count), seed):
        name, row, col = places[index]
        chosen[name][row, col] = True
    return chosen


def draw_tiles(pixels: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Draw tiles at random such that every class is shown, as far as their number allows.

    The tiles are put in an order at random. Then the classes are gone through from the one with
    the fewest tiles on: one that no tile drawn so far shows gets the first tile in that order that
    does. The first of the others fill up the number.

    Args:
        pixels: (N, K) labelled pixels of each tile and class.
        count: how many of the N tiles to draw.
        seed: of the order.

    Returns:
        Their indices.
    """
    shows = pixels > LEAST_SHARE * pixels.sum(axis=1, keepdims=True)
    shows = np.where(shows.any(axis=0), shows, pixels > 0)
    order = np.random.default_rng(seed).permutation(len(pixels))
    drawn: list[int] = []
    for k in np.argsort(shows.sum(axis=0), kind="stable"):
        able = [int(index) for index in order if shows[index, k]]
        if able and len(drawn) < count and not shows[drawn, k].any():
            drawn.append(able[0])
    rest = [int(index) for index in order if index not in set(drawn)]
    return drawn + rest[: count - len(drawn)]


def _complete(site: Site, whole: Tables, counts: Mapping[str, NDArray[np.int64]]) -> bool:
    """Return whether every pixel of these tiles has a label."""
    return all(
        counts[name][tile.row, tile.col].sum() == tile.core.area
        for name, tiles in tiles_of(site, whole).items()
        for tile in tiles
    )
