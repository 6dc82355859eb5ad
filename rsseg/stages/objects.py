"""Objects: the masks of all windows of a scene, numbered so that a roof has one number.

No Stage: whether two masks are one object can depend, by way of others, on masks at the far end of
the scene. So this runs in the main process once the masks of all windows are there, and goes
through them row by row; what it keeps is two rows of packed masks and a few bytes per mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsseg.grid import Tile, Window
from rsseg.io.masks import MASKS, OBJECTS, WindowMasks, objects_spec
from rsseg.io.site import Scene, Site
from rsseg.ops.maskpack import PackedMasks
from rsseg.ops.objects import matches, numbers
from rsseg.progress import Progress, Step

_BEFORE = ((-1, -1), (-1, 0), (-1, 1), (0, -1))
"""Neighbours that come earlier in raster order: each pair of windows is met once."""


def number_objects(
    site: Site,
    masks: str,
    fingerprint: str,
    windows: Mapping[str, Sequence[Tile]],
    *,
    join: float,
    progress: Progress,
) -> None:
    """Make the layer ``objects`` of windows whose masks are complete.

    The numbers are a function of the masks and of the set of windows alone.

    Args:
        site: where to read and write.
        masks: fingerprint of the layer ``masks``.
        fingerprint: of the layer ``objects``.
        windows: scene name → windows.
        join: least IoU of the masks of one object, in the pixels that two windows share.
        progress: shows the windows done.
    """
    pending = {
        name: tiles
        for name, tiles in windows.items()
        if not _is_done(site.scenes[name], fingerprint, tiles)
    }
    total = sum(map(len, windows.values()))
    done = total - sum(map(len, pending.values()))
    with progress.step("objects", total, "windows", done=done) as step:
        for name, tiles in pending.items():
            _number_scene(site.scenes[name], masks, fingerprint, tiles, join, step)
    site.set_layer(OBJECTS, fingerprint)


def _is_done(scene: Scene, fingerprint: str, tiles: Sequence[Tile]) -> bool:
    layer = scene.find_layer(OBJECTS, fingerprint)
    return not tiles or (layer is not None and all(layer.has(tile.core) for tile in tiles))


def _number_scene(
    scene: Scene, masks: str, fingerprint: str, tiles: Sequence[Tile], join: float, step: Step
) -> None:
    found = scene.find_layer(MASKS, masks)
    assert found is not None, "stage order: masks are missing"
    source = WindowMasks(found, scene.grid.shape)
    ordered = sorted(tiles, key=lambda tile: (tile.row, tile.col))
    graph = _Graph(scene.grid.window, join)
    for tile in ordered:
        graph.add(tile, source.read(tile))
        step.advance()
    number = np.split(graph.numbers(), np.cumsum(graph.counts)[:-1])
    most = max(graph.counts)
    layer = scene.layer(objects_spec(found.cell, most), fingerprint)
    for tile, values in zip(ordered, number, strict=True):
        cell = np.zeros(layer.array.shape[0], np.uint32)
        cell[: len(values)] = values
        layer.write(tile.core, cell[:, None, None])


@dataclass(frozen=True)
class _Seen:
    """A window that may have neighbours to come; its masks count from ``start`` in the scene."""

    tile: Tile
    masks: PackedMasks
    start: int


class _Graph:
    """Which masks of a scene are one object; windows are added in raster order.

    Args:
        raster: the whole scene; what lies beyond is not compared.
        join: see ``number_objects``.
    """

    def __init__(self, raster: Window, join: float) -> None:
        self.counts: list[int] = []
        self._count = 0
        self._raster = raster
        self._join = join
        self._near: dict[tuple[int, int], _Seen] = {}
        self._pairs = [np.zeros((0, 2), np.intp)]
        self._iou = [np.zeros(0)]
        self._shown = [np.zeros(0, np.bool_)]

    def add(self, tile: Tile, masks: PackedMasks) -> None:
        """Compare the masks of the next window with its neighbours' before it."""
        new = _Seen(tile, masks, self._count)
        self._near = {at: seen for at, seen in self._near.items() if at[0] >= tile.row - 1}
        for row, col in _BEFORE:
            old = self._near.get((tile.row + row, tile.col + col))
            if old is not None:
                self._match(old, new)
        self._near[tile.row, tile.col] = new
        self._shown.append(masks.meet(*tile.inner.slices))
        self.counts.append(len(masks))
        self._count += len(masks)

    def _match(self, old: _Seen, new: _Seen) -> None:
        shared = old.tile.read.intersection(new.tile.read).intersection(self._raster)
        if shared.area == 0:
            return
        cuts = [seen.masks.cut(*shared.relative_to(seen.tile.read).slices) for seen in (old, new)]
        (first, one), (second, two) = cuts
        pairs, iou = matches(one.masks, two.masks, join=self._join)
        ends = [first[pairs[:, 0]] + old.start, second[pairs[:, 1]] + new.start]
        self._pairs.append(np.stack(ends, axis=1))
        self._iou.append(iou)

    def numbers(self) -> NDArray[np.uint32]:
        """Return the number of each mask's object, window by window."""
        window = np.repeat(np.arange(len(self.counts)), self.counts)
        pairs, iou = np.concatenate(self._pairs), np.concatenate(self._iou)
        return numbers(pairs, iou, window, np.concatenate(self._shown))
