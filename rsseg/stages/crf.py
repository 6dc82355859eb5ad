"""CRF: class activation maps drawn to the edges of the image, as posteriors of all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from rsseg.bands import Bands
from rsseg.config import CrfConfig
from rsseg.errors import InputError
from rsseg.io.layers import LayerSpec
from rsseg.ops.cam import with_background
from rsseg.ops.crf import dense_crf
from rsseg.stages.stage import Pool, TileData


@dataclass(frozen=True)
class CrfStage:
    """Dense CRF on the CAMs, window by window.

    Stored as uint8 posteriors (255 = 1) of all K classes; they compress well, being nearly 0 or 1.

    Args:
        cam: fingerprint of the ``cam`` layer.
        config: the CRF's kernels and engine.
        bands: for the 8-bit view.
        classes: number of classes K.
        background: index of the background class, or None.
        background_power: exponent of the background's score; None where scores are shares of cells.
        device: of the networks; one that is not CUDA's leaves the CRF to the CPU.
    """

    cam: str
    config: CrfConfig
    bands: Bands
    classes: int
    background: int | None
    background_power: float | None
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    label: str = "dense CRF"
    batch_size: int = 1

    @property
    def reads(self) -> Mapping[str, str]:
        """Layer ``cam``."""
        return {"cam": self.cam}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``crf``."""
        return LayerSpec("crf", "uint8", self.classes)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.config.engine == "torch" and self.device.type == "cuda"

    @property
    def pool(self) -> Pool:
        """A tile is too small for many threads of torch's own; pydensecrf holds Python's lock."""
        if self.config.engine == "pydensecrf":
            return "processes"
        return "none" if self.on_gpu else "threads"

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        return [self._posterior(tile) for tile in tiles]

    def _posterior(self, tile: TileData) -> NDArray[np.uint8]:
        scores = _enlarged(tile.layers["cam"], tile.valid.shape)
        if self.background is not None:
            scores = with_background(scores, self.background_power, self.background)
        # A pixel where no allowed class is active says nothing: all its classes are as likely.
        scores = np.where(tile.allowed, np.maximum(scores, 1e-4), np.float32(0))
        image = self.bands.to_rgb(tile.image, tile.valid)
        device = self.device if self.on_gpu else "cpu"
        posterior = dense_crf(scores, image, valid=tile.valid, device=device, **asdict(self.config))
        inner = posterior[(slice(None), *tile.tile.inner.slices)]
        return np.rint(inner * 255).astype(np.uint8)


def _enlarged(cam: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return CAMs of cells (K, h, w) as scores of pixels, (K, H, W) in [0, 1], bilinear."""
    cells = torch.from_numpy(cam).float() / 255
    pixels: NDArray[np.float32] = interpolate(cells[None], shape, mode="bilinear")[0].numpy()
    return pixels


def require_engine(config: CrfConfig) -> None:
    """Raise InputError where the CRF's engine is not installed."""
    if config.engine == "pydensecrf" and find_spec("pydensecrf") is None:
        raise InputError(
            "crf engine = 'pydensecrf': pydensecrf is not installed; "
            "run pip install 'rsseg[crf]', or leave engine at 'torch'"
        )
