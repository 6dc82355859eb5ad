"""Semantic affinity: class activation maps (CAM) spread to the cells that look alike.

A cell's seed is passed on to every cell whose embedding points the same way, so that maps fill
objects and stop where the look changes. Only arithmetic; the embedding is learnt elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_EPS = 1e-5

PAIRS = 2**24
"""Pairs of cells whose affinity is held at once: 64 MiB in single precision."""


def one_hot_max(cam: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Return seeds: each class stretched to a maximum of 1, only a cell's strongest class kept.

    a_c = relu(relu(cam_c) - 1e-5) / (max relu(cam_c) + 1e-5); a class that is not the maximal one
    of its cell becomes 0 there. Classes that tie are all kept.

    Args:
        cam: (B, K, h, w) float, any range.
        allowed: (B, K, h, w) bool, where the tags allow a class; everywhere by default. Elsewhere
            the class is 0 and does not count for its maximum.

    Returns:
        (B, K, h, w) float in [0, 1), without gradient.

    Source: the seeds of SEAM's pixel correlation module (Wang et al., CVPR 2020), which SAN
    (Remote Sens. 2025, 17, 808) builds on, without SEAM's background channel.
    """
    positive = cam.detach().float().relu()
    if allowed is not None:
        positive = positive * allowed
    peak = positive.amax(dim=(-2, -1), keepdim=True)
    stretched = (positive - _EPS).relu() / (peak + _EPS)
    return strongest_only(stretched)


def strongest_only(maps: Tensor) -> Tensor:
    """Return maps (B, K, h, w) in which only each cell's maximal class is not 0."""
    return maps * (maps >= maps.amax(dim=1, keepdim=True))


def normalised_embedding(features: Tensor) -> Tensor:
    """Return features of unit length, f / (|f| + 1e-5), so that their product is a cosine.

    Args:
        features: (B, D, h, w) float.

    Returns:
        (B, D, h, w) float32; features of 0 stay 0.

    Source: SAN eq. 3, with one embedding for queries and keys.
    """
    features = features.float()
    length = features.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    return features / (length + _EPS)


def propagate(
    seeds: Tensor, embedding: Tensor, weight: Tensor | None = None, pairs: int = PAIRS
) -> Tensor:
    """Return each cell's mean of the seeds of all cells, weighted by their affinity to it.

    out_j = sum_i a_i w_i A_ij / (sum_i w_i A_ij + 1e-5) with A_ij = relu(f_i · f_j).

    Neither residual nor value embedding, as in eq. 4. Rows of A are made a block at a time, so that
    memory grows with the cells and not with their square; where gradients are wanted, blocks are
    made once more on the way back.

    Args:
        seeds: (B, K, h, w) float, at least 0.
        embedding: (B, D, h, w) float32, of unit length (``normalised_embedding``).
        weight: (B, 1, h, w) float in [0, 1], how much a cell's seed counts for others (0 where
            nothing was measured or no tag is known); 1 by default.
        pairs: elements of A held at once over the whole batch.

    Returns:
        (B, K, h, w) float32 from 0 to the class's largest seed; 0 where no cell is alike.

    Source: SAN eq. 4.
    """
    batch, classes, height, width = seeds.shape
    cells = height * width
    keys = embedding.flatten(2)  # (B, D, N)
    weights = seeds.new_ones(batch, 1, cells) if weight is None else weight.flatten(2)
    # The sums of affinities are one more class, whose seed is 1 everywhere.
    values = torch.cat([seeds.flatten(2) * weights, weights], dim=1).transpose(1, 2)
    queries = keys.transpose(1, 2)
    rows = max(1, pairs // (batch * cells))
    with torch.autocast(seeds.device.type, enabled=False):
        parts = [
            _block(queries[:, start : start + rows], keys, values, recompute=rows < cells)
            for start in range(0, cells, rows)
        ]
    total = torch.cat(parts, dim=1).transpose(1, 2).reshape(batch, classes + 1, height, width)
    return total[:, :-1] / (total[:, -1:] + _EPS)


def _block(queries: Tensor, keys: Tensor, values: Tensor, *, recompute: bool) -> Tensor:
    """Return (B, R, K + 1): what R cells receive from all."""
    if recompute and torch.is_grad_enabled():
        received: Tensor = checkpoint(
            _received, queries, keys, values, use_reentrant=False, preserve_rng_state=False
        )
        return received
    return _received(queries, keys, values)


def _received(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(queries, keys).relu(), values)
