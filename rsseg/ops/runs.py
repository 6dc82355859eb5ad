"""Outlines cut into runs along two axes, for polygons with right angles.

A run goes along the one axis, along the other, or is free, for a wall that is truly oblique. It
costs the squared distance of the outline from its line, integrated along the outline, and a fixed
price, so that small steps are straightened and real corners stay. The cheapest cut is found by
dynamic programming, as in R. Bellman, "On the approximation of curves by line segments using
dynamic programming", Communications of the ACM 4(6), 1961, but with the directions given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg.ops.compiled import compiled

ALONG_X, ALONG_Y, FREE = 0, 1, 2
"""What a run can be."""

THINNING = 1.5
"""Corners that lie within so many pixels of the line between others cannot end a run."""

FREE_PRICE = 3.0
"""Price of a free run, in those of the others."""

OBLIQUE = math.radians(12)
"""A wall is oblique that is off both axes by more."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A ring in pixels, and where it may be cut.

    Attributes:
        points: (V, 2) float64, closed.
        breaks: (S,) int64, indices of its main corners, ascending.
    """

    points: NDArray[np.float64]
    breaks: NDArray[np.int64]

    @classmethod
    def of(cls, ring: NDArray[np.float64]) -> Outline:
        """Find the main corners of a ring."""
        thin = shapely.get_coordinates(shapely.simplify(shapely.LinearRing(ring), THINNING))
        return cls(ring, np.flatnonzero(np.isin(_complex(ring[:-1]), _complex(thin))))

    def turned(self, angle: float) -> Outline:
        """Return the outline turned counterclockwise about the origin."""
        return Outline(turned(self.points, angle), self.breaks)

    @cached_property
    def chords(self) -> NDArray[np.float64]:
        """From each break to the next, (S, 2)."""
        corners = self.points[self.breaks]
        return np.roll(corners, -1, axis=0) - corners

    @cached_property
    def oblique(self) -> NDArray[np.bool_]:
        """Which sections may be walls that run along neither axis, (S,)."""
        x, y = np.abs(self.chords).T
        off = np.arctan2(np.minimum(x, y), np.maximum(x, y))
        found: NDArray[np.bool_] = (off > OBLIQUE) & (np.hypot(x, y) > 2 * THINNING)
        return found

    @cached_property
    def sections(self) -> NDArray[np.float64]:
        """Integrals along the outline from break to break: of 1, x, y, x², y² and xy; (S, 6)."""
        start, stop = self.points[:-1], self.points[1:]
        length = np.hypot(*(stop - start).T)
        squares = (start**2 + start * stop + stop**2) / 3
        twice = (start + stop).prod(axis=1) + (start.prod(axis=1) + stop.prod(axis=1))
        each = np.column_stack([np.ones(len(length)), (start + stop) / 2, squares, twice / 6])
        return _summed(each * length[:, None], self.breaks)


class Runs(NamedTuple):
    """An outline cut into R runs.

    Attributes:
        cost: of all runs, in cubed pixels.
        starts: (R,) int64, the section each begins with.
        kinds: (R,) int64, ``ALONG_X``, ``ALONG_Y`` or ``FREE``.
    """

    cost: float
    starts: NDArray[np.int64]
    kinds: NDArray[np.int64]


def cut(outline: Outline, price: float) -> Runs:
    """Return the cheapest cut of an outline into runs; without any where there is none."""
    start, found = 0, []
    for _ in range(2):  # the first time the outline may begin within a run
        sections, oblique = (
            np.roll(outline.sections, -start, axis=0),
            np.roll(outline.oblique, -start),
        )
        options = [_cheapest(sections, oblique, price, kind) for kind in (ALONG_X, ALONG_Y, FREE)]
        cost, starts, kinds = min(options, key=lambda option: option[0])
        found.append(Runs(cost, starts + start, kinds))
        if not len(starts):
            break
        start = int(starts[len(starts) // 2])
    return min(found, key=lambda runs: runs.cost)


def sums(outline: Outline, runs: Runs) -> NDArray[np.float64]:
    """Return the integrals along each run, as ``Outline.sections``; (R, 6)."""
    return _summed(outline.sections, runs.starts)


def turned(ring: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return points turned counterclockwise about the origin; (V, 2) in and out."""
    cos, sin = math.cos(angle), math.sin(angle)
    points: NDArray[np.float64] = ring @ np.array([[cos, sin], [-sin, cos]])
    return points


def _complex(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    return points[:, 0] + 1j * points[:, 1]


def _summed(rows: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums of rows from start to start, the last from the last start around to the first."""
    return np.add.reduceat(np.roll(rows, -starts[0], axis=0), starts - starts[0], axis=0)


@compiled
def _cheapest(
    sections: NDArray[np.float64],
    oblique: NDArray[np.bool_],
    price: float,
    first: int,
) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Return cost, starts and kinds of the cheapest runs that begin with section 0.

    The first run is of the given kind; neighbours, the last and the first too, are of different
    kinds or free.
    """
    count = len(sections)
    costs = np.full((count + 1, 3), np.inf)
    starts = np.zeros((count + 1, 3), np.int64)
    before = np.zeros((count + 1, 3), np.int64)
    for stop in range(1, count + 1):
        for kind in range(3):
            if kind == FREE and not oblique[stop - 1]:
                continue
            length, once, twice = 0.0, 0.0, 0.0
            for start in range(stop - 1, stop - 2 if kind == FREE else -1, -1):
                cost = price * FREE_PRICE
                if kind != FREE:
                    length += sections[start, 0]
                    once += sections[start, 2 - kind]
                    twice += sections[start, 4 - kind]
                    cost = price + max(twice - once**2 / length, 0.0)
                if cost >= costs[stop, kind]:  # a longer run costs no less
                    break
                previous = first
                if start > 0:
                    previous = _previous(costs[start], kind)
                    cost += costs[start, previous]
                elif kind != first:
                    break
                if cost < costs[stop, kind]:
                    costs[stop, kind] = cost
                    starts[stop, kind] = start
                    before[stop, kind] = previous
    return _traced(costs, starts, before, first)


@compiled
def _previous(costs: NDArray[np.float64], kind: int) -> int:
    """Return the cheapest kind that a run before one of a kind can be of."""
    one, other = (kind + 1) % 3, (kind + 2) % 3
    best = one if costs[one] <= costs[other] else other
    return FREE if kind == FREE and costs[FREE] < costs[best] else best


@compiled
def _traced(
    costs: NDArray[np.float64],
    starts: NDArray[np.int64],
    before: NDArray[np.int64],
    first: int,
) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Return cost, starts and kinds of the cheapest runs that end where the first one begins."""
    stop = len(costs) - 1
    kind = _previous(costs[stop], first)
    cost = costs[stop, kind]
    found = np.empty((stop, 2), np.int64)
    row = stop
    while stop > 0 and cost < np.inf:
        row -= 1
        found[row] = starts[stop, kind], kind
        stop, kind = starts[stop, kind], before[stop, kind]
    return cost, found[row:, 0].copy(), found[row:, 1].copy()
