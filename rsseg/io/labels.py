"""Labels: dense labels of a site's pixels, from its own layer, class rasters or polygons."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap, ClassRaster, scenes_under
from rsseg.io.layers import Layer
from rsseg.io.site import Site
from rsseg.io.vector import classify, is_vector, meets, rasterise, read_features


class LabelSource(Protocol):
    """Where dense labels come from."""

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        """Return (h, w) class indices of a window inside the scene, 255 = unlabelled."""


def open_labels(
    site: Site, paths: Sequence[Path], field: str | None, only: str | None
) -> LabelSource:
    """Return the labels of a site.

    Args:
        site: the site.
        paths: class rasters and vector files, later ones fill what earlier ones leave unlabelled;
            none for the layer ``labels``.
        field: field of vector features that holds the class name or id.
        only: the class that all vector features are of.

    Raises:
        InputError: the files do not fit, or the site has no layer ``labels``.
    """
    if not paths:
        return LayerLabels(site)
    return _FirstOf(
        [
            _VectorLabels(site, path, field, only) if is_vector(path) else _RasterLabels(site, path)
            for path in paths
        ]
    )


class LayerLabels:
    """The finished layer ``labels`` of a site.

    Raises:
        InputError: there is none.
    """

    def __init__(self, site: Site) -> None:
        key = site.layers.get("labels")
        if key is None:
            raise InputError(
                f"{site.path} has no pseudo-labels: run rsseg pseudo-label, or give --labels FILE"
            )
        self._layers: Mapping[str, Layer | None] = {
            name: scene.find_layer("labels", key, hold=scene.hold)
            for name, scene in site.scenes.items()
        }

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        layer = self._layers[scene]
        if layer is None:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        values: NDArray[np.uint8] = layer.read(window)
        return values


class TileLabels:
    """Labels of some tiles alone; whatever else has a label is unlabelled here.

    Args:
        labels: all there are.
        chosen: scene name → (rows, cols) whether a tile's labels are given.
        core: side of the tile cores, pixels.
    """

    def __init__(
        self, labels: LabelSource, chosen: Mapping[str, NDArray[np.bool_]], core: int
    ) -> None:
        self._labels = labels
        self._chosen = chosen
        self._core = core

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        given = of_tiles(self._chosen[scene], self._core, window)
        if not given.any():
            return np.full(given.shape, IGNORE, np.uint8)
        return np.where(given, self._labels(scene, window), np.uint8(IGNORE))


def of_tiles(table: NDArray[np.bool_], core: int, window: Window) -> NDArray[np.bool_]:
    """Return (h, w) the value of the tile in whose core each pixel of a window lies.

    Args:
        table: (rows, cols), a value per tile.
        core: side of the tile cores, pixels.
        window: of pixels inside the scene.
    """
    rows = (window.row + np.arange(window.height)) // core
    cols = (window.col + np.arange(window.width)) // core
    return np.asarray(table[rows[:, None], cols])


class _FileLabels(Protocol):
    """Labels of a file, which speaks of some of the scenes."""

    scenes: Collection[str]

    def read(self, scene: str, window: Window) -> NDArray[np.uint8]:
        """Return (h, w) class indices of a window of one of its scenes, 255 = unlabelled."""


class _RasterLabels:
    """A class raster, on the grids of the scenes that it lies on."""

    def __init__(self, site: Site, path: Path) -> None:
        with ClassRaster(path) as raster:
            grids = {name: scene.grid for name, scene in site.scenes.items()}
            self._maps = {
                name: ClassMap(raster.on(grids[name], name), site.classes)
                for name in scenes_under(raster, grids)
            }
        self.scenes: Collection[str] = self._maps.keys()

    def read(self, scene: str, window: Window) -> NDArray[np.uint8]:
        return self._maps[scene].read(window)


class _VectorLabels:
    """Features; where the classes have a background, it is what no feature covers.

    A scene that no feature meets was not mapped: it has no labels.
    """

    def __init__(self, site: Site, path: Path, field: str | None, only: str | None) -> None:
        background = site.classes.background
        self._rest = IGNORE if background is None else background
        self._grids = {name: scene.grid for name, scene in site.scenes.items()}
        self._features = {
            crs: read_features(path, crs)
            for crs in dict.fromkeys(grid.crs for grid in self._grids.values())
        }
        self._indices = {
            crs: classify(features, site.classes, field, only, path)
            for crs, features in self._features.items()
        }
        self.scenes: Collection[str] = {
            name for name, grid in self._grids.items() if meets(self._features[grid.crs], grid)
        }
        if not self.scenes:
            raise InputError(
                f"{path}: none of its features meets a raster of the site; "
                "check that both are of the same place and have the right CRS"
            )

    def read(self, scene: str, window: Window) -> NDArray[np.uint8]:
        grid = self._grids[scene]
        features, indices = self._features[grid.crs], self._indices[grid.crs]
        return rasterise(features, indices, grid, window, fill=self._rest)


class _FirstOf:
    """Of several files, the first that has a label for a pixel."""

    def __init__(self, files: Sequence[_FileLabels]) -> None:
        self._files = files

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        for file in (file for file in self._files if scene in file.scenes):
            open_pixels = labels == IGNORE
            if not open_pixels.any():
                break
            labels = np.where(open_pixels, file.read(scene, window), labels)
        return labels
