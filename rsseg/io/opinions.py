"""Opinions: what a vision-language model said of a site's pixels, read for training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import InputError
from rsseg.grid import Window
from rsseg.io.layers import Layer
from rsseg.io.site import Site

OPINIONS = "opinions"
SURE = 254
"""Stored value of confidence 1."""


class SiteOpinions:
    """The finished layer ``opinions`` of a site.

    Attributes:
        key: the layer's fingerprint.

    Raises:
        InputError: there is none.
    """

    def __init__(self, site: Site) -> None:
        key = site.layers.get(OPINIONS)
        if key is None:
            raise InputError(
                f"{site.path} has no opinions of a vision-language model: "
                "name one with --vlm or --vlm-url, or leave --purify vlm out"
            )
        self.key = key
        self._classes = len(site.classes)
        self._layers: Mapping[str, Layer | None] = {
            name: scene.find_layer(OPINIONS, key, hold=scene.hold)
            for name, scene in site.scenes.items()
        }

    def __call__(self, scene: str, window: Window) -> NDArray[np.uint8]:
        """Return (K, h, w) of a window, mirrored beyond the raster: 0 to ``SURE`` for 0 to 1."""
        layer = self._layers[scene]
        if layer is None:
            return np.zeros((self._classes, window.height, window.width), np.uint8)
        values: NDArray[np.uint8] = layer.read(window)
        return values
