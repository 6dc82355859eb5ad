"""Dense CRF: class scores drawn to the edges of the image (Krähenbühl and Koltun, NIPS 2011).

Two engines filter on the same lattice and agree up to rounding. ``torch`` runs on any device and
needs nothing else; ``pydensecrf`` is the reference, compiled code of the extra ``rsseg[crf]``.
Both are imported at the first use. pydensecrf holds the GIL while it computes, so with it tiles go
in parallel by processes, not by threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rsseg.ops.permutohedral import Lattice

Kernel = tuple[NDArray[np.float32], float]
"""What N pixels are compared by, (F, N), in standard deviations; and the kernel's weight."""

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
    engine: Literal["torch", "pydensecrf"] = "torch",
    device: str | torch.device = "cpu",
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
        engine: what computes; both give the same up to rounding.
        device: where torch computes, the CPU or a GPU of CUDA.

    Returns:
        (K, H, W) float32 in [0, 1], summing to one over classes: exactly the normalised scores
        at pixels that are not valid, and everywhere without iterations or without a kernel. On
        the CPU the same bytes for any number of threads.

    Raises:
        ImportError: pydensecrf is wanted and not installed.

    Source: Krähenbühl and Koltun 2011, eq. 3 (kernels) and algorithm 1; messages are normalised
    symmetrically, as their code does.
    """
    posterior = np.ascontiguousarray(_normalised(scores))
    present = np.flatnonzero(posterior.any(axis=(1, 2)))
    inside = np.ones(image.shape[:2], np.bool_) if valid is None else valid
    place = np.stack(np.nonzero(inside)[::-1]).astype(np.float32)  # (2, N): x, y
    colour = image[inside].T / np.float32(bilateral_srgb)  # (3, N)
    kernels: list[Kernel] = [
        (place / np.float32(gaussian_sxy), gaussian_compat),
        (np.concatenate([place / np.float32(bilateral_sxy), colour]), bilateral_compat),
    ]
    kernels = [kernel for kernel in kernels if kernel[1]]
    if iterations and kernels and len(present) > 1 and place.size:
        flat = posterior.reshape(len(posterior), -1)
        entering = np.ix_(present, np.flatnonzero(inside))
        if engine == "torch":
            flat[entering] = _by_torch(flat[entering], kernels, iterations, str(device))
        else:
            flat[entering] = _by_pydensecrf(flat[entering], kernels, iterations)
    return posterior


def _normalised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to one over classes; where all are 0, equal shares of the present classes."""
    present = scores.any(axis=(1, 2)) | (not scores.any())
    shares = (present / present.sum()).astype(np.float32)[:, None, None]
    total = scores.sum(axis=0)
    return np.where(total > 0, scores / np.where(total > 0, total, 1), shares).astype(np.float32)


def _by_torch(
    probability: NDArray[np.float32], kernels: Sequence[Kernel], iterations: int, device: str
) -> NDArray[np.float32]:
    """Posterior (K, N) of N pixels with Potts kernels; all classes pass a filter at once."""
    import torch

    with torch.inference_mode():
        filters = [_filter(*kernel, device) for kernel in kernels]
        unary = torch.from_numpy(probability).to(device).clamp(_LEAST_PROBABILITY, 1).log()
        posterior = _softmax(unary)
        for _ in range(iterations):
            values = posterior.T.contiguous()
            messages = reduce(torch.add, [weighted(values) for weighted in filters])
            posterior = _softmax(unary + messages.T)
        found: NDArray[np.float32] = posterior.cpu().numpy()
        return found


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over classes (K, N); torch's own differs by rounding where threads share the work."""
    shares = (logits - logits.amax(dim=0)).exp_()
    return shares.div_(shares.sum(dim=0))


def _filter(features: NDArray[np.float32], weight: float, device: str) -> Lattice:
    """Return a kernel's filter on a device."""
    import torch

    from rsseg.ops.permutohedral import Lattice

    if len(features) == 2:
        return _place_filter(features.tobytes(), weight, device)
    return Lattice.of(torch.from_numpy(features).to(device)).normalised(weight)


@lru_cache(maxsize=2)
def _place_filter(places: bytes, weight: float, device: str) -> Lattice:
    """Return the filter of the smoothness kernel, which tiles of one size and mask share."""
    import torch

    from rsseg.ops.permutohedral import Lattice

    features = torch.frombuffer(bytearray(places), dtype=torch.float32).view(2, -1)
    return Lattice.of(features.to(device)).normalised(weight)


def _by_pydensecrf(
    probability: NDArray[np.float32], kernels: Sequence[Kernel], iterations: int
) -> NDArray[np.float32]:
    """Posterior (K, N) of N pixels with Potts kernels."""
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
