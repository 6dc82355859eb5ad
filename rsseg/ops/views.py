"""Views: an image as it is seen turned, mirrored and at another size, and the way back.

Only transformations that take the grid of pixels to itself, or to a coarser one of the same extent:
no corner is cut off or made up, so that no mask of what is left is needed. Turns by any other
angle would need one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg.ops.cam import resized


@dataclass(frozen=True)
class View:
    """An affine transformation of images and of the maps made from them.

    Args:
        turns: quarter turns, counter-clockwise.
        mirrored: whether left and right change places after that.
        scale: factor of the size, > 0, last of all.
    """

    turns: int = 0
    mirrored: bool = False
    scale: float = 1.0

    @classmethod
    def draw(cls, scales: Sequence[float], generator: torch.Generator | None = None) -> View:
        """Return one of the views at random, all as likely.

        Args:
            scales: sizes to choose from.
            generator: where chance comes from; torch's own by default.
        """
        turns, mirrored, scale = (
            int(torch.randint(count, (), generator=generator)) for count in (4, 2, len(scales))
        )
        return cls(turns, bool(mirrored), scales[scale])

    def apply(self, maps: Tensor, multiple: int = 1) -> Tensor:
        """Return how images or maps look in this view.

        Args:
            maps: (B, C, H, W) float.
            multiple: both sides of the result are rounded to multiples of it where the scale is
                not 1, so that cells of feature maps fit.

        Returns:
            (B, C, H', W') float, bilinear, antialiased where it shrinks.
        """
        turned = maps.rot90(self.turns, (-2, -1))
        if self.mirrored:
            turned = turned.flip(-1)
        if self.scale == 1:
            return turned
        height, width = (
            max(1, round(side * self.scale / multiple)) * multiple for side in turned.shape[-2:]
        )
        return resized(turned, (height, width), antialias=True)

    def undo(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps made in this view as they look in the original.

        Exact for turns and mirroring; of another scale only what it did not smooth away comes back.

        Args:
            maps: (B, C, h', w') float, over the extent of what ``apply`` returned, in any cells.
            size: (h, w) of the result.

        Returns:
            (B, C, h, w) float, bilinear, antialiased where it shrinks.
        """
        turned = size if self.turns % 2 == 0 else (size[1], size[0])
        maps = resized(maps, turned, antialias=True)
        if self.mirrored:
            maps = maps.flip(-1)
        return maps.rot90(-self.turns, (-2, -1))
