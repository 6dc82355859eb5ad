"""Trust: how far the opinions of a vision-language model (VLM) are right, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ONE_SIDED_95 = 1.645
"""Standard errors below an estimate above which the true value lies with 95 % confidence."""


class Trust:
    """Counts on labelled tiles how often opinions are right, and says what weight they deserve.

    The weight of a class is the precision of its opinions that can be vouched for: the lower end
    of Wilson's one-sided 95 % interval. It is 0, and the class switched off, where that is not
    above the base rate, the precision of random opinions.

    Pixels of a tile are no independent witnesses: they mostly come from one mask, right or wrong
    as a whole. Here they are taken to be wholly dependent, so the sample is as large as the number
    of tiles, corrected for their unequal numbers of opinion pixels (Kish's effective sample
    size, (sum n)² / sum n²). So one tile never vouches for more than 0.27, and three faultless
    ones for 0.53, however many pixels they have. The base rate is taken as it is found.

    Args:
        classes: number of classes K.
        ignore: the class index of pixels without a label.

    Attributes:
        said: (K,) int64, labelled pixels with an opinion for the class.
        right: (K,) int64, those of them that are of the class.
        labelled: (K,) int64, all labelled pixels of the class.
        tiles: (K,) int64, tiles that have such an opinion pixel.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    J. Am. Stat. Assoc. 22, 209-212; Kish (1965), "Survey Sampling".
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        self.said, self.right, self.labelled, self.tiles = (
            torch.zeros(classes, dtype=torch.int64) for _ in range(4)
        )
        self._squares = torch.zeros(classes, dtype=torch.float64)
        self._ignore = ignore

    def add(self, opinions: Tensor, truth: Tensor) -> None:
        """Count tiles, each of them once and as it lies in the scene.

        Args:
            opinions: (B, K, H, W), above 0 where the VLM has an opinion for class k.
            truth: (B, H, W) class indices below K, or ``ignore``.
        """
        classes = torch.arange(len(self.said), device=truth.device)
        true = truth[:, None] == classes[:, None, None]
        said = (opinions > 0) & (truth != self._ignore)[:, None]
        per_tile = said.sum(dim=(2, 3)).cpu()
        self.said += per_tile.sum(dim=0)
        self.right += (said & true).sum(dim=(0, 2, 3)).cpu()
        self.labelled += true.sum(dim=(0, 2, 3)).cpu()
        self.tiles += (per_tile > 0).sum(dim=0)
        self._squares += per_tile.double().square().sum(dim=0)

    def precision(self) -> Tensor:
        """Return (K,) float64: the share of opinion pixels that are right; 0 without any."""
        return self.right / self.said.double().clamp(min=1)

    def base_rates(self) -> Tensor:
        """Return (K,) float64: the share of the labelled pixels that are of each class."""
        return self.labelled / self.labelled.sum().double().clamp(min=1)

    def vouched(self) -> Tensor:
        """Return (K,) float64: the precision that can be vouched for; 0 without an opinion."""
        tiles = self.said.double().square() / self._squares.clamp(min=1)
        return wilson_lower(self.precision(), tiles)

    def weights(self) -> Tensor:
        """Return (K,) float32 in [0, 1): what to multiply each class's opinions by."""
        vouched = self.vouched()
        return torch.where(vouched > self.base_rates(), vouched, 0).float()

    def switched_off(self, names: Sequence[str | None]) -> list[str]:
        """Return a line for each class of weight 0 that says why, for the log.

        Args:
            names: of the K classes; None for one that the VLM was not asked for.
        """
        off = (self.weights() == 0).tolist()
        return [self._reason(k, name) for k, name in enumerate(names) if name and off[k]]

    def _reason(self, k: int, name: str) -> str:
        if not self.said[k]:
            return f"{name}: opinions switched off; no labelled pixel has one to judge them by"
        return (
            f"{name}: opinions switched off; on {self.tiles[k]} labelled tiles "
            f"{self.precision()[k]:.0%} of their pixels are right, which vouches for "
            f"{self.vouched()[k]:.0%}, and {self.base_rates()[k]:.0%} would be by chance"
        )


def wilson_lower(share: Tensor, samples: Tensor, errors: float = ONE_SIDED_95) -> Tensor:
    """Return the lower end of Wilson's score interval of a proportion.

    Args:
        share: any shape, float in [0, 1], the observed proportion.
        samples: same shape, float >= 0, of how many independent observations.
        errors: standard errors to the end of the interval.

    Returns:
        Same shape, in [0, 1); 0 where there is no observation.
    """
    square = errors**2
    spread = (samples * share * (1 - share) + square / 4).sqrt()
    # The lower root of the quadratic as product over upper root, for nothing cancels in that.
    return samples * share**2 / (samples * share + square / 2 + errors * spread)
