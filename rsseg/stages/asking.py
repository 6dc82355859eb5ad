"""Asking a vision-language model about windows, and keeping what it says.

No Stage: answers are text, most of the time goes by in waiting for them, and a window that stays
without one must not stop the others. The stage ``opinions`` makes maps of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from rsseg.errors import RunError
from rsseg.grid import Tile
from rsseg.io.answers import Answered, AnswerFiles
from rsseg.io.site import Site
from rsseg.nets.vision import NoAnswerError, VisionModel
from rsseg.progress import Progress, Step
from rsseg.stages.ahead import ahead

IN_A_ROW = 3
"""So many batches in a row without an answer end a run: the next ones will have none either."""

Batch = tuple[str, tuple[Tile, ...]]
"""A scene's name and the windows that are asked about together."""


@dataclass(frozen=True)
class Asking:
    """A question about the windows of a site.

    Args:
        site: with the windows.
        model: is asked.
        question: the same for all windows.
        side: pixels that windows have a side when they are shown to the model.
        files: keep the answers.
    """

    site: Site
    model: VisionModel
    question: str
    side: int
    files: AnswerFiles

    def run(self, windows: Mapping[str, Sequence[Tile]], progress: Progress) -> list[str]:
        """Ask about all windows that have no answer yet.

        Args:
            windows: scene name → windows.
            progress: shows the windows done.

        Returns:
            Why windows stay without an answer, one reason for each batch of them.

        Raises:
            InputError: the model cannot be used.
            RunError: it keeps failing; the answers so far stay.
        """
        batches = list(self._batches(windows))
        pending = [batch for batch in batches if not self._done(batch)]
        total = sum(len(tiles) for _, tiles in batches)
        done = total - sum(len(tiles) for _, tiles in pending)
        if pending:
            self.model.prepare()
        with progress.step(f"asking {self.model.label}", total, "windows", done=done) as step:
            return self._ask_all(pending, step)

    def _batches(self, windows: Mapping[str, Sequence[Tile]]) -> Iterator[Batch]:
        # A function of the windows alone, for what a network says hangs a little on the batch.
        size = self.model.batch_size
        for scene, tiles in windows.items():
            for start in range(0, len(tiles), size):
                yield scene, tuple(tiles[start : start + size])

    def _done(self, batch: Batch) -> bool:
        scene, tiles = batch
        return all(self.files.has(scene, tile) for tile in tiles)

    def _ask_all(self, pending: Sequence[Batch], step: Step) -> list[str]:
        reasons: list[str] = []
        in_a_row = 0
        workers = self.model.workers
        drawn = ((batch, self._images(batch)) for batch in pending)
        with closing(ahead(self._ask, drawn, workers, workers)) as outcomes:
            for count, reason in outcomes:
                step.advance(count)
                in_a_row = 0 if reason is None else in_a_row + 1
                if reason is not None:
                    reasons.append(reason)
                if reason is not None and in_a_row == IN_A_ROW:
                    raise RunError(f"{reason}; all answers so far are kept, run again to go on")
        return reasons

    def _images(self, batch: Batch) -> list[NDArray[np.uint8]]:
        scene = self.site.scenes[batch[0]]
        bands = self.site.bands
        views = (bands.to_rgb(*scene.read(tile.read)) for tile in batch[1])
        return [_resized(view, self.side) for view in views]

    def _ask(self, item: tuple[Batch, list[NDArray[np.uint8]]]) -> tuple[int, str | None]:
        """Ask about a batch and keep the answers; return its size and why there are none."""
        (scene, tiles), images = item
        try:
            texts = self.model.ask(images, self.question)
        except NoAnswerError as failure:
            return len(tiles), str(failure)
        frame = self.model.frame((self.side, self.side))
        for tile, text in zip(tiles, texts, strict=True):
            if not self.files.has(scene, tile):  # what exists is never written again
                size = tile.read.height, tile.read.width
                self.files.write(scene, tile, Answered(text, frame, size))
        return len(tiles), None


def _resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) as (side, side, 3)."""
    pixels = torch.from_numpy(np.moveaxis(image, -1, 0).astype(np.float32))[None]
    scaled = interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0]
    return np.moveaxis(scaled.round().clamp(0, 255).to(torch.uint8).numpy(), 0, -1)
