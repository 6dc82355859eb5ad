"""VisionModel: whoever looks at images and says in words what is where in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import RunError
from rsseg.ops.answers import Coordinates

RELATIVE = (1000, 1000)
"""The frame of a model that measures in thousandths."""


def guess_coordinates(name: str) -> Coordinates:
    """Return what a model of that name measures boxes in; thousandths are the most usual.

    Args:
        name: of a model or of its kind: ``Qwen/Qwen2.5-VL-3B-Instruct``, ``qwen2_5_vl`` …
    """
    return "pixels" if re.search(r"qwen[-_ ]?2[._]?5", name.lower()) else "thousandths"


class NoAnswerError(RunError):
    """A question stays without an answer; others may have one."""


class VisionModel(Protocol):
    """A vision-language model (VLM).

    Attributes:
        label: what messages call it.
        batch_size: images to ask about at once.
        workers: questions that may be asked side by side by as many threads; 0 where only the
            caller's own may ask.
    """

    @property
    def label(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def workers(self) -> int: ...

    @property
    def coordinates(self) -> Coordinates:
        """What it measures boxes in."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers besides image and question; JSON-ready."""

    def prepare(self) -> None:
        """Get ready, where that takes long; called before the first question.

        Raises:
            InputError: there is no such model, or it may not be used.
        """

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width), in its coordinates, of an image of ``size`` (height, width) pixels."""

    def ask(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> list[str]:
        """Return its answers to one question about each of some images.

        Args:
            images: (H, W, 3) uint8 RGB, of one size.
            prompt: the question.

        Raises:
            NoAnswerError: there is none to these images.
            RunError: there will be none to others either.
        """
