"""Opinions: what the boxes in a vision-language model's answers say of each pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.io.answers import Answered, AnswerFiles
from rsseg.io.layers import LayerSpec
from rsseg.io.opinions import OPINIONS, SURE
from rsseg.ops.answers import Answer, parse
from rsseg.ops.purify import vlm_confidence
from rsseg.stages.sam import load_prompter
from rsseg.stages.stage import Pool, TileData

_BOXES_AT_ONCE = 64


@dataclass(frozen=True)
class OpinionStage:
    """The confidence in each class where SAM finds something in a box of that class.

    All classes that an answer names share its confidence equally. A pixel that no mask covers has
    no opinion, 0 for every class; and so has a window without an answer.

    Args:
        answers: the answers of all windows.
        names: of the classes in the order of their indices; None for one that was not asked for.
        bands: for the 8-bit view.
        checkpoint: SAM's weights; None fills the boxes instead.
        device: where SAM runs.

    Source: SemiEarth eqs. 8 and 9 and the text between them.
    """

    answers: AnswerFiles
    names: tuple[str | None, ...]
    bands: Bands
    checkpoint: Path | None
    device: str
    label: str = "opinions"
    batch_size: int = 1
    pool: Pool = "none"

    @property
    def reads(self) -> Mapping[str, str]:
        """Nothing but the image."""
        return {}

    @property
    def writes(self) -> LayerSpec:
        """Layer ``opinions``: per class 0 to 254 for a confidence of 0 to 1."""
        return LayerSpec(OPINIONS, "uint8", len(self.names))

    def __call__(self, tiles: Sequence[TileData]) -> list[NDArray[np.uint8]]:
        return [self._opinions(tile) for tile in tiles]

    def _opinions(self, tile: TileData) -> NDArray[np.uint8]:
        covered = np.zeros((len(self.names), *tile.valid.shape), np.bool_)
        answered = self.answers.read(tile.scene, tile.tile)
        answer = None if answered is None else boxes_of(answered, self.names)
        if answer is None or not len(answer.boxes):
            return covered[(..., *tile.tile.inner.slices)].astype(np.uint8)
        for index, mask in zip(answer.classes, self._masks(tile, answer.boxes), strict=True):
            covered[index] |= mask
        mentioned = np.isin(np.arange(len(self.names)), answer.classes)
        confidence = vlm_confidence(torch.from_numpy(mentioned)).numpy()
        values = np.rint(confidence * SURE).astype(np.uint8)
        inner = (..., *tile.tile.inner.slices)
        return np.where((covered & tile.valid)[inner], values[:, None, None], np.uint8(0))

    def _masks(self, tile: TileData, boxes: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
        """Give the best mask (S, S) of each box."""
        if self.checkpoint is None:
            yield from (filled(box, tile.valid.shape) for box in boxes)
            return
        prompter = load_prompter(self.checkpoint, self.device)
        (seen,) = prompter.look([self.bands.to_rgb(tile.image, tile.valid)])
        for start in range(0, len(boxes), _BOXES_AT_ONCE):
            yield from prompter.segment(seen, boxes=boxes[start : start + _BOXES_AT_ONCE])[0]


def boxes_of(answered: Answered, names: Sequence[str | None]) -> Answer:
    """Return the boxes of a window's answer in pixels of what the model saw of it."""
    return parse(answered.text, names, answered.frame, answered.size)


def filled(box: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a box x0, y0, x1, y1 as a mask (H, W) of all pixels that it touches."""
    x0, y0, x1, y1 = box
    mask = np.zeros(shape, np.bool_)
    mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return mask
