"""Dense CRF: class scores drawn to the edges of the image (Krähenbühl and Koltun, NIPS 2011).

pydensecrf is imported at the first use and torch never: this runs in worker processes. pydensecrf
holds the GIL while it computes, so tiles go in parallel by processes, not by threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Energies are -log p: a score of 0 is very unlikely, not impossible (as in PSA's and SEAM's code).
_LEAST_PROBABILITY = 1e-5


def dense_crf(
    scores: NDArray[np.float32],
    image: NDArray[np.uint8],
    *,
    iterations: int,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Return the posterior of a fully connected CRF after some mean-field steps.

    Classes whose score is 0 everywhere do not enter, so they are never predicted. Pixels that are
    not valid neither send nor receive messages.

    Args:
        scores: (K, H, W) float32, at least 0; need not sum to one.
        image: (H, W, 3) uint8, the colours of the appearance kernel.
        iterations: mean-field steps.
        gaussian_sxy: standard deviation of the smoothness kernel, pixels, > 0.
        gaussian_compat: weight of the smoothness kernel; 0 leaves it out.
        bilateral_sxy: spatial standard deviation of the appearance kernel, pixels, > 0.
        bilateral_srgb: colour standard deviation of the appearance kernel, 8-bit levels, > 0.
        bilateral_compat: weight of the appearance kernel; 0 leaves it out.
        valid: (H, W) bool; all pixels by default.

    Returns:
        (K, H, W) float32 in [0, 1], summing to one over classes: exactly the normalised scores
        at pixels that are not valid, and everywhere without iterations or without a kernel.

    Raises:
        ImportError: pydensecrf is not installed.

    Source: Krähenbühl and Koltun 2011, eq. 3 and algorithm 1.
    """
    posterior = _normalised(scores)
    present = np.flatnonzero(posterior.any(axis=(1, 2)))
    inside = np.nonzero(np.ones(image.shape[:2], np.bool_) if valid is None else valid)
    place = np.stack(inside[::-1]).astype(np.float32)  # (2, N): x, y
    colour = image[inside].T.astype(np.float32)  # (3, N)
    appearance = [place / np.float32(bilateral_sxy), colour / np.float32(bilateral_srgb)]
    kernels = [
        (place / np.float32(gaussian_sxy), gaussian_compat),
        (np.concatenate(appearance), bilateral_compat),
    ]
    kernels = [(features, weight) for features, weight in kernels if weight]
    if iterations and kernels and len(present) > 1 and place.size:
        at = (present[:, None], *(axis[None] for axis in inside))
        posterior[at] = _mean_field(posterior[at], kernels, iterations)
    return posterior


def _normalised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to one over classes; where all are 0, equal shares of the present classes."""
    present = scores.any(axis=(1, 2)) | (not scores.any())
    shares = (present / present.sum()).astype(np.float32)[:, None, None]
    total = scores.sum(axis=0)
    return np.where(total > 0, scores / np.where(total > 0, total, 1), shares).astype(np.float32)


def _mean_field(
    probability: NDArray[np.float32],
    kernels: list[tuple[NDArray[np.float32], float]],
    iterations: int,
) -> NDArray[np.float32]:
    """Posterior (K, N) of N pixels with Potts kernels on features (F, N) of unit deviation."""
    from pydensecrf.densecrf import DIAG_KERNEL, NORMALIZE_SYMMETRIC, DenseCRF

    # The general CRF instead of pydensecrf's 2-D one, because it takes any set of pixels.
    crf = DenseCRF(probability.shape[1], probability.shape[0])
    energy = -np.log(np.clip(probability, _LEAST_PROBABILITY, 1))
    crf.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    for features, weight in kernels:
        crf.addPairwiseEnergy(
            np.ascontiguousarray(features),
            compat=float(weight),
            kernel=DIAG_KERNEL,
            normalization=NORMALIZE_SYMMETRIC,
        )
    return np.array(crf.inference(iterations), np.float32)
