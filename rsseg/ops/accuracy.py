"""Accuracy and area of a map from a stratified random sample, the map's classes as strata.

After Olofsson, Foody, Herold, Stehman, Woodcock and Wulder (2014), "Good practices for estimating
area and assessing accuracy of land change", Remote Sensing of Environment 148, 42-57. Numbers of
equations are those of that paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.96
"""Standard errors on either side of an estimate that make its 95 % confidence interval."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimates and how sure they are.

    Attributes:
        value: any shape, float64 in 0 … 1; nan where there is nothing to estimate it from.
        error: the standard errors, same shape; nan where there are too few points to say.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def margin(self) -> NDArray[np.float64]:
        """Half the width of the 95 % confidence interval, same shape."""
        return NORMAL_95 * self.error


@dataclass(frozen=True, eq=False)
class Accuracy:
    """What a sample says of a map with K classes.

    Attributes:
        proportions: (…, K, K) float64, the estimated share of the mapped area by map class (row)
            and reference class (column); adds up to 1.
        overall: (…) overall accuracy, the share of the area that is right.
        users: (…, K) user's accuracy, the share of what the map calls a class that is of it; nan
            for a class without a point, its error nan below two points.
        producers: (…, K) producer's accuracy, the share of a class that the map calls so; nan for
            a class that no point is of.
        shares: (…, K) the share of the area that is truly of a class.
    """

    proportions: NDArray[np.float64]
    overall: Estimate
    users: Estimate
    producers: Estimate
    shares: Estimate


def estimate_accuracy(counts: NDArray[np.integer], areas: NDArray[np.float64]) -> Accuracy:
    """Estimate accuracies and areas with their standard errors.

    The errors are those of points that are a small part of their stratum: the correction for a
    finite population, which would make them smaller, is left out as in the paper. A stratum with
    one point adds nothing to the errors of the overall accuracy and of the areas, for its part
    cannot be estimated; whoever reports them should say so.

    Args:
        counts: (…, K, K) points by map class (row) and reference class (column); any leading
            axes, one entry for each sample.
        areas: (K,) mapped area of each class, in any unit; at least one point is of every class
            that has an area.

    Returns:
        The estimates: proportions by eq. 4, accuracies by eqs. 1 to 3, their variances by eqs. 5
        to 7 (and 8), shares of the area by eq. 9, their standard errors by eq. 10. Areas and their
        standard errors (eq. 11) are these times the whole area.
    """
    points = counts.sum(axis=-1, dtype=np.float64)
    assert (points[..., areas > 0] > 0).all(), "a stratum without a point"
    weights = areas / areas.sum()
    within = _ratio(counts, points[..., None])
    binomial = _ratio(within * (1 - within), (points - 1)[..., None])
    proportions = weights[:, None] * np.nan_to_num(within)
    spread = weights[:, None] ** 2 * np.nan_to_num(binomial)
    shares = proportions.sum(axis=-2)
    return Accuracy(
        proportions=proportions,
        overall=Estimate(_diagonal(proportions).sum(-1), np.sqrt(_diagonal(spread).sum(-1))),
        users=Estimate(_diagonal(within), np.sqrt(_diagonal(binomial))),
        producers=_producers(proportions, spread),
        shares=Estimate(shares, np.sqrt(spread.sum(axis=-2))),
    )


def _producers(proportions: NDArray[np.float64], spread: NDArray[np.float64]) -> Estimate:
    """Return the producer's accuracies, eqs. 3 and 7.

    Args:
        proportions: (…, K, K) eq. 4.
        spread: (…, K, K) the variances of the proportions.
    """
    shares = proportions.sum(axis=-2)
    right, own = _diagonal(proportions), _diagonal(spread)
    value = _ratio(right, shares)
    variance = (1 - value) ** 2 * own + value**2 * (spread.sum(axis=-2) - own)
    return Estimate(value, _ratio(np.sqrt(np.maximum(variance, 0)), shares))


def _diagonal(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diagonal(matrices, axis1=-2, axis2=-1)


def _ratio(part: NDArray[np.generic], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole, nan where the whole is not positive."""
    shape = np.broadcast_shapes(part.shape, whole.shape)
    ratio = np.full(shape, np.nan)
    np.divide(part, whole, out=ratio, where=np.broadcast_to(whole > 0, shape))
    return ratio
