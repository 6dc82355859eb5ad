"""Masks in a site: the proposals of each window as a packed record, and the objects they make up.

Windows of masks are blocks of tile cores of their own. Layer ``masks`` has a cell per window: all
masks of its read window (``rsseg.ops.maskpack``). Layer ``objects`` has the same cells: the number
of the object that each mask belongs to, in the order of the masks. A pixel of the scene belongs to
one core, and only the masks of its window say what is there.
"""

from __future__ import annotations

from collections.abc import Iterator

from rsseg.grid import Tile, Tiling, Window
from rsseg.io.layers import Layer, LayerSpec
from rsseg.io.site import Scene
from rsseg.ops.maskpack import PackedMasks, capacity, side_of
from rsseg.ops.objects import Objects, united

MASKS, OBJECTS = "masks", "objects"
_BLOCK = 192


def masks_spec(core: int, halo: int) -> LayerSpec:
    """Return the layer of the masks of windows with that core and halo, in pixels."""
    return LayerSpec(MASKS, "uint8", capacity(core + 2 * halo), core)


def objects_spec(core: int, most: int) -> LayerSpec:
    """Return the layer of the objects of windows with that core and ``most`` masks at most."""
    return LayerSpec(OBJECTS, "uint32", max(1, most), core)


class WindowMasks:
    """The masks of a scene, window by window.

    Args:
        layer: the scene's layer ``masks``.
        shape: (height, width) of the scene in pixels.
    """

    def __init__(self, layer: Layer, shape: tuple[int, int]) -> None:
        side = side_of(layer.array.shape[0])
        self.tiling = Tiling(shape, layer.cell, (side - layer.cell) // 2)
        self._layer = layer

    def read(self, tile: Tile) -> PackedMasks:
        """Return the masks of a window; a window that was never written has none."""
        return PackedMasks.of(self._layer.read(tile.core)[:, 0, 0])


class SceneObjects:
    """The objects of a scene, as far as their numbers are known.

    Args:
        scene: the scene.
        masks: fingerprint of its layer ``masks``.
        objects: fingerprint of its layer ``objects``.
    """

    def __init__(self, scene: Scene, masks: str, objects: str) -> None:
        layer = scene.find_layer(MASKS, masks)
        self._masks = None if layer is None else WindowMasks(layer, scene.grid.shape)
        self._numbers = scene.find_layer(OBJECTS, objects)
        self._raster = scene.grid.window

    def read(self, window: Window) -> Objects:
        """Return the objects in a window inside the scene; where no masks are there are none.

        Each mask counts in the core of its own window alone, so that windows never contradict
        each other; the pieces of one object are united.
        """
        parts = []
        if self._masks is not None and self._numbers is not None:
            for tile in self._windows(self._masks.tiling, window):
                shown = tile.core.intersection(window)
                cut = shown.relative_to(tile.read).slices
                index, pieces = self._masks.read(tile).cut(*cut)
                number = self._numbers.read(tile.core)[index, 0, 0]
                parts.append((number, pieces, shown.relative_to(window).slices))
        return united(parts, (window.height, window.width))

    def blocks(self, window: Window | None = None) -> Iterator[tuple[Window, Objects]]:
        """Yield the objects of a window (the whole scene by default) block by block.

        The blocks cover every window of masks exactly once, and are small enough that all masks
        of one fit into memory.
        """
        if self._masks is None:
            return
        whole = self._raster if window is None else window
        for tile in self._windows(self._masks.tiling, whole):
            shown = tile.core.intersection(whole)
            for row in range(0, shown.height, _BLOCK):
                for col in range(0, shown.width, _BLOCK):
                    block = Window(shown.row + row, shown.col + col, _BLOCK, _BLOCK)
                    block = block.intersection(shown)
                    yield block, self.read(block)

    def _windows(self, tiling: Tiling, window: Window) -> Iterator[Tile]:
        """Yield the windows of masks that meet a window, and whose masks are numbered."""
        for tile in (tiling[index] for index in tiling.members(window)):
            if self._numbers is not None and self._numbers.has(tile.core):
                yield tile
