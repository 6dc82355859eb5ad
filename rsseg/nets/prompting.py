"""Prompter: images are looked at once, then asked by points and boxes for masks in their pixels.

This is the one way to SAM for every method: the automatic proposals ask by points, other methods
by boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rsseg.nets.decoder import Answers, Prepared, PromptDecoder, PromptNet
from rsseg.nets.device import fast_dtype

_MASK_STRIDE = 4
"""Pixels of the frame per pixel of a mask."""

# A mask is cut this many logits above and below the threshold, as in SAM's own generator.
_OFFSET = 1.0

# Mask pixels around a box that interpolation into the box may read.
_SUPPORT = 3


@dataclass(frozen=True)
class Seen:
    """An image that was looked at.

    Args:
        size: (H, W) of the image in pixels.
        prepared: what its prompts share.
        inside: (h, w) pixels of the network's masks that lie in the image.
        scale: (x, y) pixels of the frame per pixel of the image.
        rows: (H, h) weights of the mask's rows in each row of the image.
        columns: (W, w) weights of the mask's columns in each column of the image.
    """

    size: tuple[int, int]
    prepared: Prepared
    inside: tuple[int, int]
    scale: tuple[float, float]
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Drawn:
    """A mask in the pixels of its image.

    Args:
        mask: (h, w) bool, the pixels of the box.
        box: (y0, x0, y1, x1), ends exclusive; all 0 where the mask is empty.
        stability: IoU of the masks cut above and below the threshold, 0 to 1.
        area: pixels of the mask.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    stability: float
    area: int


class Prompter:
    """A SAM that looks at images and answers prompts.

    Args:
        net: the network, on the device to run on.
        dtype: of the arithmetic; float32 makes SAM's own masks up to rounding. By default what the
            device computes fastest.
    """

    def __init__(self, net: PromptNet, dtype: torch.dtype | None = None) -> None:
        self.device = next(net.mask_decoder.parameters()).device
        self.dtype = dtype or fast_dtype(self.device)
        self._net = net
        with torch.inference_mode():
            self._decoder = PromptDecoder(net, self.dtype)

    @torch.inference_mode()
    def look(self, images: Sequence[NDArray[np.uint8]]) -> list[Seen]:
        """Encode images (H, W, 3) uint8 RGB of one size, all at once."""
        pixels = self._net.framed(images).to(self.device, memory_format=torch.channels_last)
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=low):
            features, fine = self._net.embed(pixels)
        features = features.float()
        size = (images[0].shape[0], images[0].shape[1])
        extent = self._net.extent(size)
        rows, columns = (
            _interpolation(side, filled, self._net.frame).to(self.device)
            for side, filled in zip(size, extent, strict=True)
        )
        scale = (extent[1] / size[1], extent[0] / size[0])
        inside = (-(-extent[0] // _MASK_STRIDE), -(-extent[1] // _MASK_STRIDE))
        finer = [None if fine is None else (fine[0][i], fine[1][i]) for i in range(len(images))]
        return [
            Seen(size, self._decoder.prepare(one, more), inside, scale, rows, columns)
            for one, more in zip(features, finer, strict=True)
        ]

    @torch.inference_mode()
    def ask(
        self,
        image: Seen,
        points: NDArray[np.floating] | None = None,
        labels: NDArray[np.integer] | None = None,
        boxes: NDArray[np.floating] | None = None,
    ) -> Answers:
        """Ask for the objects at points or in boxes, in pixels of the image.

        Args:
            image: which image.
            points: (B, P, 2) x, y of P points for each of B objects.
            labels: (B, P) 1 for a point in the object, 0 for one beside it; by default all 1.
            boxes: (B, 4) x0, y0, x1, y1.
        """
        xy = marks = corners = None
        if points is not None:
            xy = self._framed(image, points)
            marks = torch.ones(points.shape[:2], dtype=torch.int, device=self.device)
            if labels is not None:
                marks = torch.from_numpy(labels).to(marks)
        if boxes is not None:
            corners = self._framed(image, boxes.reshape(-1, 2, 2)).flatten(1)
        tokens = self._decoder.tokens(xy, marks, corners)
        return self._decoder.answer(image.prepared, tokens)

    def _framed(self, image: Seen, points: NDArray[np.floating]) -> Tensor:
        scaled = torch.from_numpy(points * np.array(image.scale))
        return scaled.to(self.device, torch.float32)

    @torch.inference_mode()
    def logits(self, image: Seen, answers: Answers, wanted: Tensor) -> Tensor:
        """Return the logits (M, h, w) of the masks wanted, (B, 3) bool, at the network's size."""
        return self._decoder.draw(image.prepared, answers, wanted)

    @torch.inference_mode()
    def drawn(self, image: Seen, logits: Tensor) -> list[Drawn]:
        """Bring masks (M, h, w) of ``logits`` to the image's pixels."""
        # On a CPU each mask is worth a look at its own box; on a GPU starting kernels costs more.
        step = 1 if self.device.type == "cpu" else max(1, len(logits))
        return [one for part in torch.split(logits, step) for one in _drawn(image, part)]

    def segment(
        self,
        image: Seen,
        points: NDArray[np.floating] | None = None,
        labels: NDArray[np.integer] | None = None,
        boxes: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """The best mask of each of B prompts (see ``ask``).

        Returns:
            (B, H, W) bool and predicted IoU (B,) float32.
        """
        answers = self.ask(image, points, labels, boxes)
        best = F.one_hot(answers.scores.argmax(dim=1), answers.scores.shape[1]).bool()
        drawn = self.drawn(image, self.logits(image, answers, best))
        masks = np.zeros((len(best), *image.size), np.bool_)
        for mask, one in zip(masks, drawn, strict=True):
            y0, x0, y1, x1 = one.box
            mask[y0:y1, x0:x1] = one.mask
        return masks, answers.scores.amax(dim=1).float().cpu().numpy()


def stability(logits: Tensor) -> Tensor:
    """IoU of masks (M, h, w) cut above and below the threshold: (M,) in [0, 1]."""
    inner, outer = ((logits > t).sum(dim=(1, 2)) for t in (_OFFSET, -_OFFSET))
    return inner / outer.clamp(min=1)


def _interpolation(side: int, filled: int, frame: int) -> Tensor:
    """Weights (side, cells) that bring one axis of a mask to an image, as SAM itself does it.

    First to the frame, linearly, of which the part filled is kept; then, linearly, to the image.
    """
    identity = torch.eye(frame // _MASK_STRIDE)[None]
    framed = F.interpolate(identity, frame, mode="linear")[..., :filled]
    return F.interpolate(framed, side, mode="linear")[0].T.contiguous()


def _drawn(image: Seen, logits: Tensor) -> list[Drawn]:
    near = (logits > -_OFFSET).any(dim=0)
    rows = _reach(near.any(dim=1), image.rows)
    columns = _reach(near.any(dim=0), image.columns)
    if rows is None or columns is None:
        return [Drawn(np.zeros((0, 0), np.bool_), (0, 0, 0, 0), 0.0, 0)] * len(logits)
    part = logits[:, rows.source, columns.source]
    full = rows.weights @ part @ columns.weights.T
    masks = (full > 0).cpu().numpy()
    return [
        _trimmed(mask, rows.start, columns.start, stable)
        for mask, stable in zip(masks, stability(full).tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Reach:
    """The part of an axis that some masks reach.

    Args:
        source: cells of the mask that count.
        start: the first pixel of the image.
        weights: (pixels, cells) of that part.
    """

    source: slice
    start: int
    weights: Tensor


def _reach(near: Tensor, weights: Tensor) -> _Reach | None:
    """The pixels of an image's axis in which cells that are near (n,) count; None without any."""
    cells = near.nonzero()[:, 0]
    if not len(cells):
        return None
    first, last = int(cells[0]), int(cells[-1])
    pixels = (weights[:, first : last + 1] > 0).any(dim=1).nonzero()[:, 0]
    if not len(pixels):
        return None
    start, end = int(pixels[0]), int(pixels[-1]) + 1
    source = slice(max(0, first - _SUPPORT), last + 1 + _SUPPORT)
    return _Reach(source, start, weights[start:end, source])


def _trimmed(mask: NDArray[np.bool_], top: int, left: int, stable: float) -> Drawn:
    """A mask cut to its box; the corner of ``mask`` lies at (top, left) of the image."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Drawn(mask[:0, :0], (0, 0, 0, 0), stable, 0)
    y0, x0, y1, x1 = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    box = (top + int(y0), left + int(x0), top + int(y1), left + int(x1))
    return Drawn(mask[y0:y1, x0:x1], box, stable, int(mask.sum()))
