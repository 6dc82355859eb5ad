"""CRF: class activation maps drawn to the edges of the image, as posteriors of all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from rsseg.bands import Bands
from rsseg.config import CrfConfig
from rsseg.io.layers import LayerSpec
from rsseg.ops.cam import with_background
from rsseg.ops.crf import dense_crf
from rsseg.stages.stage import TileData


@dataclass(frozen=True)
class CrfStage:
    """Dense CRF on the CAMs; torch is never loaded, so that worker processes stay light.

    Stored as uint8 posteriors (255 = 1) of all K classes; they compress well, being nearly 0 or 1.

    Args:
        cam: fingerprint of the ``cam`` layer.
        config: the CRF's kernels.
        bands: for the 8-bit view.
        classes: number of classes K.
        background: index of the background class, or None.
        background_power: exponent of the background's score.
    """

    cam: str
    config: CrfConfig
    bands: Bands
    classes: int
    background: int | None
    background_power: float
    label: str = "dense CRF"
    batch_size: int = 1
    in_processes: bool = True

    @property
    def reads(self) -> Mapping[str, str]:
        """Layer ``cam``."""
        return {"cam": self.cam}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``crf``."""
        return LayerSpec("crf", "uint8", self.classes)

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        return [self._posterior(tile) for tile in tiles]

    def _posterior(self, tile: TileData) -> NDArray[np.uint8]:
        cam = tile.layers["cam"]
        shape = (len(cam), *tile.valid.shape)
        scores: NDArray[np.float32] = resize(  # type: ignore[no-untyped-call]
            cam.astype(np.float32) / 255, shape, order=1, mode="edge"
        )
        if self.background is not None:
            scores = with_background(scores, self.background_power, self.background)
        # A pixel where no allowed class is active says nothing: all its classes are as likely.
        scores = np.where(tile.allowed, np.maximum(scores, 1e-4), np.float32(0))
        image = self.bands.to_rgb(tile.image, tile.valid)
        posterior = dense_crf(scores, image, valid=tile.valid, **asdict(self.config))
        inner = posterior[(slice(None), *tile.tile.inner.slices)]
        return np.rint(inner * 255).astype(np.uint8)
