"""CutMix: a box of each image is filled from another image of its batch, labels and all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PROBABILITY = 0.5
"""Share of the images that get a box (UniMatch)."""

AREA = (0.02, 0.4)
"""Least and greatest share of the image that a box covers (UniMatch)."""

ASPECT = 0.3
"""A box's sides, each as a share of the image's, differ by factors of ``ASPECT`` to its inverse."""


@dataclass(frozen=True, eq=False)
class CutMix:
    """Boxes and partners of one batch, drawn once and applied to all that belongs to its pixels.

    Attributes:
        inside: (B, H, W) bool, the pixels that come from the partner.
        partner: (B,) int64, which image of the batch that is.
    """

    inside: Tensor
    partner: Tensor

    @classmethod
    def draw(
        cls,
        count: int,
        size: tuple[int, int],
        generator: torch.Generator | None = None,
        probability: float = PROBABILITY,
    ) -> CutMix:
        """Return boxes and partners at random, on the CPU.

        Share of the area and place are uniform; the aspect is uniform in its logarithm, so that
        lying boxes are as likely as standing ones. Partners are a rotation of the batch, by which
        no image of two or more is its own partner.

        Args:
            count: images B in the batch.
            size: (H, W) in pixels.
            generator: where chance comes from; torch's own by default.
            probability: of a box, for each image.

        Source: UniMatch (Yang et al., CVPR 2023), whose ranges these are; CutMix for segmentation
        is French et al. (BMVC 2020).
        """
        chosen, area, aspect, top, left = torch.rand(
            (5, count), generator=generator, dtype=torch.float64
        )
        share = AREA[0] + area * (AREA[1] - AREA[0])
        # Of the aspects those for which the box fits into the image.
        reach = torch.maximum(share, torch.tensor(ASPECT, dtype=torch.float64)).log().abs()
        ratio = ((2 * aspect - 1) * reach).exp()
        heights = ((share * ratio).sqrt() * size[0]).round()
        widths = ((share / ratio).sqrt() * size[1]).round()
        rows = _within(top, heights, size[0])
        cols = _within(left, widths, size[1])
        boxes = rows[:, :, None] & cols[:, None, :]
        shift = int(torch.randint(1, max(count, 2), (), generator=generator))
        partner = (torch.arange(count) + shift) % count
        return cls(boxes & (chosen < probability)[:, None, None], partner)

    def apply(self, maps: Tensor) -> Tensor:
        """Return maps with the boxes filled from the partners.

        Args:
            maps: (B, H, W) or (B, C, H, W) of any dtype: images, labels, confidences, weights.

        Returns:
            New maps of the same shape, dtype and device.
        """
        inside = self.inside.to(maps.device)
        inside = inside if maps.ndim == 3 else inside[:, None]
        return torch.where(inside, maps[self.partner.to(maps.device)], maps)


def _within(place: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return (B, size) bool: the pixels of one side that a box of that length lies on.

    Args:
        place: (B,) in [0, 1), which of the places that the box fits into.
        lengths: (B,) whole numbers up to ``size``.
        size: of the image's side, in pixels.
    """
    start = (place * (size - lengths + 1)).floor()[:, None]
    pixels = torch.arange(size)
    return (pixels >= start) & (pixels < start + lengths[:, None])
