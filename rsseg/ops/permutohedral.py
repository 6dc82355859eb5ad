"""Gaussian filtering of scattered points on the permutohedral lattice.

Each point spreads its value over the corners of the simplex it lies in, the corners are blurred
along the axes of the lattice, and each point reads its corners again: linear in the number of
points, in any dimension. All steps are operations on whole tensors, so this runs wherever torch
does and needs no compiler. Every sum is taken by one thread in a fixed order, so on a CPU the
result is the same for any number of threads.

Source: Adams, Baek and Davis, "Fast high-dimensional filtering using the permutohedral lattice",
Computer Graphics Forum 29(2), 2010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lattice:
    """A Gaussian filter over N points of F features; make one by ``Lattice.of``.

    It has M corners that some point touches, in the order of their keys. Number M stands for all
    others, which are 0 for good.

    Args:
        corners: (N, F + 1) int32, the corners of each point's simplex.
        weights: (N, F + 1) float32, each point's shares in them.
        points: (N (F + 1),) int32, the points at corner 0, then those at corner 1 and so on.
        shares: (N (F + 1),) float32, their shares.
        starts: (M + 1,) int32, where the points of each corner begin.
        axes: for each of the F + 1 axes the corners before and after each corner, (M + 1,) int32.
    """

    corners: Tensor
    weights: Tensor
    points: Tensor
    shares: Tensor
    starts: Tensor
    axes: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, features: Tensor) -> Lattice:
        """Return the lattice of points, (F, N) float32, N > 0, for a deviation of 1 per feature.

        Raises:
            OverflowError: points lie so far apart that lattice points cannot be numbered in 63 bits
                (five features of some ten thousand deviations each).
        """
        import torch

        keys, weights, strides = _corners(features)
        weights = weights.T.contiguous()
        # Stable: points stand in their own order at each corner, so sums are always the same.
        ranked, order = keys.T.reshape(-1).sort(stable=True)
        first = torch.ones_like(ranked, dtype=torch.bool)
        torch.ne(ranked[1:], ranked[:-1], out=first[1:])
        number = first.int().cumsum(0, dtype=torch.int32) - 1
        starts = first.nonzero()[:, 0]
        return cls(
            torch.empty_like(number).scatter_(0, order, number).view_as(weights),
            weights,
            order.int() // weights.shape[1],
            weights.view(-1).index_select(0, order),
            torch.cat([starts, starts.new_tensor([len(order)])]).int(),
            tuple(_neighbours(ranked.index_select(0, starts), strides)),
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Return filtered values, (N, K) float32 as they are; sums, not means."""
        from torch.nn.functional import embedding_bag

        at_corners = embedding_bag(
            self.points, values, self.starts, mode="sum", per_sample_weights=self.shares
        )
        for before, after in self.axes:
            sides = at_corners.index_select(0, before) + at_corners.index_select(0, after)
            at_corners = at_corners.add(sides, alpha=0.5)
        return embedding_bag(self.corners, at_corners, mode="sum", per_sample_weights=self.weights)

    def normalised(self, gain: float) -> Lattice:
        """Return gain times the filter, between square roots of its sums: D^-1/2 G D^-1/2."""
        # The square root of the gain on the way in and again on the way out.
        sums = self(self.weights.new_ones(len(self.weights), 1)).clamp(min=1e-20)
        scale = sums.rsqrt() * math.sqrt(gain)
        shares = self.shares * scale[:, 0].index_select(0, self.points)
        return replace(self, weights=self.weights * scale, shares=shares)


def _corners(features: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Return keys and barycentric weights of each point's corners, (F + 1, N), and the strides.

    A lattice point has F + 1 coordinates that sum to 0 and are equal modulo F + 1. With remainder
    r and quotients q, its key is r + sum(strides q) over all but the last coordinate.
    """
    import torch

    nearest, rest, rank = _simplices(features)
    size = len(rest)
    # One more on each side for the neighbours, and one for the corner whose quotient is lower.
    low = nearest.amin(dim=1) - 2
    extents = [int(extent) + 2 for extent in (nearest.amax(dim=1) - low).tolist()]
    strides = [size * math.prod(extents[axis + 1 : -1]) for axis in range(size - 1)] + [0]
    if strides[0] * extents[0] >= 2**63:
        raise OverflowError(f"the lattice is too large: {' x '.join(map(str, extents[:-1]))}")
    kind = torch.int32 if strides[0] * extents[0] < 2**31 else torch.int64
    steps = torch.tensor(strides, dtype=kind, device=rest.device)[:, None]
    # From corner to corner the coordinate of the next lower rank falls by F + 1, all rise by 1.
    turn = (size - 1 - rank).long()
    falls = torch.empty_like(turn, dtype=kind).scatter_(0, turn, steps.expand_as(turn))
    ordered = torch.empty_like(rest).scatter_(0, turn, rest)
    keys = torch.empty_like(falls)
    keys[0] = ((nearest - low[:, None]).to(kind) * steps).sum(dim=0, dtype=kind)
    for corner in range(1, size):
        torch.sub(keys[corner - 1] + 1, falls[corner - 1], out=keys[corner])
    return keys, ordered.diff(dim=0, prepend=ordered[-1:] - 1), strides


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the simplices of points (F, N), in units of F + 1: three tensors (F + 1, N).

    The nearest lattice point of remainder 0, the position relative to it, both float32, and the
    rank of each coordinate of that position, int8, 0 for the largest.
    """
    import torch

    position = _elevated(features)
    nearest = position.round()
    rest = position - nearest
    excess = nearest.sum(dim=0).to(torch.int8)
    rank = torch.stack([excess + axis for axis in range(len(position))])
    for one, other in combinations(range(len(position)), 2):
        smaller = (rest[one] < rest[other]).view(torch.int8)
        rank[one] += smaller
        rank[other] -= smaller
    # Rounded coordinates need not sum to 0: those nearest to the next integer go there.
    wrap = (rank < 0).view(torch.int8) - (rank >= len(position)).view(torch.int8)
    return nearest + wrap, rest - wrap, rank + wrap * len(position)


def _elevated(features: Tensor) -> Tensor:
    """Return points (F, N) in the hyperplane of the lattice, (F + 1, N), in units of F + 1.

    Scaled so that splatting, blurring and slicing amount to a deviation of 1 (section 3.1).
    """
    position = features.new_zeros(len(features) + 1, features.shape[1])
    above = features.new_zeros(features.shape[1])
    for axis in range(len(features), 0, -1):
        along = features[axis - 1] * math.sqrt(2 / 3 / (axis * (axis + 1)))
        position[axis] = above - axis * along
        above = above + along
    position[0] = above
    return position


def _neighbours(keys: Tensor, strides: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Return for each axis the numbers before and after each of the sorted keys, (M + 1,) int32."""
    import torch

    count, top = len(keys), len(strides) - 1
    numbers = torch.arange(count, dtype=torch.int32, device=keys.device)
    # All coordinates one up; beyond the largest remainder that is 0 again, and quotients one up.
    raised = torch.where(keys % (top + 1) == top, keys + (sum(strides) - top), keys + 1)
    found = []
    for stride in strides:
        wanted = raised - stride
        at = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=count - 1)
        after = torch.where(keys.index_select(0, at) == wanted, at, count)
        before = torch.full((count + 1,), count, dtype=torch.int32, device=keys.device)
        before.scatter_(0, after.long(), numbers)
        before[count] = count
        found.append((before, torch.cat([after, before[count:]])))
    return found
