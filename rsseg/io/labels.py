"""Labels: dense labels of a site's pixels, from its own layer, class rasters or polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.classmap import ClassMap
from rsseg.io.site import Layer, Scene, Site
from rsseg.io.vector import classify, is_vector, rasterise, read_features


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
    sources = [
        _VectorLabels(site, path, field, only) if is_vector(path) else _RasterLabels(site, path)
        for path in paths
    ]
    return sources[0] if len(sources) == 1 else _FirstOf(sources)


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
            name: scene.find_layer("labels", key) for name, scene in site.scenes.items()
        }

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        layer = self._layers[scene]
        if layer is None:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        values: NDArray[np.uint8] = layer.read(window)
        return values


class _RasterLabels:
    def __init__(self, site: Site, path: Path) -> None:
        self._maps: dict[str, ClassMap] = {}
        missed: InputError | None = None
        for name, scene in site.scenes.items():
            try:
                self._maps[name] = ClassMap(path, scene.grid, site.classes)
            except InputError as error:
                missed = error
        if not self._maps and missed is not None:
            raise missed

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        if scene not in self._maps:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        return self._maps[scene].read(window)


class _VectorLabels:
    """Features; where the classes have a background, it is what no feature covers."""

    def __init__(self, site: Site, path: Path, field: str | None, only: str | None) -> None:
        background = site.classes.background
        self._rest = IGNORE if background is None else background
        self._scenes: Mapping[str, Scene] = site.scenes
        self._features = {
            name: read_features(path, scene.grid.crs) for name, scene in site.scenes.items()
        }
        self._indices = {
            name: classify(features, site.classes, field, only, path)
            for name, features in self._features.items()
        }

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        grid = self._scenes[scene].grid
        return rasterise(self._features[scene], self._indices[scene], grid, window, fill=self._rest)


class _FirstOf:
    def __init__(self, sources: Sequence[LabelSource]) -> None:
        self._sources = sources

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        labels = self._sources[0](scene, window)
        for source in self._sources[1:]:
            labels = np.where(labels == IGNORE, source(scene, window), labels)
        return labels
