"""A class map of any size without its small regions, strip by strip.

Three passes: which regions of neighbouring strips are one and how large they are; what becomes of
the small ones; the map without them. Memory is that of a few strips and of the largest cluster of
small regions (see ``rsseg.ops.sieve``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.io.pieces import Decisions, PixelFile
from rsseg.ops.columns import stacked, taken
from rsseg.ops.regions import Regions, find_regions
from rsseg.ops.sieve import Clusters, Edges, Nodes, shared_edges
from rsseg.ops.strips import NONE, About, Numbers, continues, numbered
from rsseg.progress import Step
from rsseg.stages.ahead import ahead
from rsseg.stages.polygonise import Pixels, read_strip

PASSES = 3
"""How often every pixel is read."""


def sieve(
    classes: Pixels,
    scratch: Path,
    step: Step,
    *,
    weights: NDArray[np.int64],
    least: int,
    strip_rows: int,
    workers: int = 2,
) -> PixelFile:
    """Merge the small regions of a map into their neighbours; see ``rsseg.ops.sieve``.

    Args:
        classes: the map.
        scratch: an empty folder, where the new map will lie.
        step: is told of the pixels done, ``PASSES`` times each.
        weights: (H,) int64, the area of a pixel of each row, in any unit.
        least: a region of less area is small.
        strip_rows: height of a strip; changes no pixel.
        workers: threads that read ahead; changes no pixel.

    Returns:
        The map without small regions, but those that have no neighbour.
    """
    out = PixelFile(scratch / "sieved", classes.shape)
    decisions = Decisions(scratch, strip_rows * classes.shape[1])
    return _Sieve(classes, step, weights, least, strip_rows, workers, out, decisions).run()


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of the map.

    Attributes:
        index: which strip it is.
        regions: the N regions in it.
        classes: (N + 1,) uint8.
        sums: (N + 1, 4) int64 of ``Regions.sums``.
        above: (W,) bool, where it continues the row above.
        last: whether there is no strip below.
    """

    index: int
    regions: Regions
    classes: NDArray[np.uint8]
    sums: NDArray[np.int64]
    above: NDArray[np.bool_]
    last: bool


@dataclass
class _Sieve:
    """The state of the three passes; for the first fields see ``sieve``."""

    classes: Pixels
    step: Step
    weights: NDArray[np.int64]
    least: int
    rows: int
    workers: int
    out: PixelFile
    decisions: Decisions
    numbers: Numbers = field(default_factory=Numbers.none)
    starts: list[int] = field(default_factory=list)
    seam: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def run(self) -> PixelFile:
        for part in self._parts():
            self._measure(part)
        clusters = Clusters(self.least)
        seam: _Seam | None = None
        crossing: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = []
        across = np.unique(self.numbers.first[self.numbers.roots(np.arange(len(self.numbers)))])
        for part in self._parts():
            nodes, edges, seam = self._graph(part, seam)
            first, classes = clusters.add(nodes, edges)
            crosses = np.isin(first, across, assume_unique=True)
            self.decisions.add(first[~crosses], classes[~crosses])
            crossing.append((first[crosses], classes[crosses]))
        of_crossing = _sorted(*(np.concatenate(column) for column in zip(*crossing, strict=True)))
        for part in self._parts():
            first = self._identified(part)[0]
            table = part.classes.copy()
            for decided in (self.decisions.of(part.index), of_crossing):
                _look_up(table, first, *decided)
            self.out.append(table[part.regions.labels])
        return self.out

    def _parts(self) -> Iterator[_Part]:
        strips = range(math.ceil(self.classes.shape[0] / self.rows))
        with closing(ahead(self._part, strips, self.workers, self.workers)) as parts:
            for part in parts:
                yield part
                self.step.advance(part.regions.labels.size)

    def _part(self, index: int) -> _Part:
        classes, above, top, last = read_strip(self.classes, self.rows, index)
        found = find_regions(classes, IGNORE)
        return _Part(
            index=index,
            regions=Regions(found.labels, found.first + top * classes.shape[1]),
            classes=np.concatenate(([IGNORE], classes.ravel()[found.first[1:]])).astype(np.uint8),
            sums=found.sums(self.weights[top : top + len(classes)], None),
            above=continues(classes, above, IGNORE),
            last=last,
        )

    def _own(self, part: _Part, start: int) -> NDArray[np.int64]:
        return numbered(
            part.regions.labels[[0, -1]], part.above, part.last, len(part.classes), start
        )

    def _measure(self, part: _Part) -> None:
        """Find out which regions are one, and how large they are."""
        self.starts.append(len(self.numbers))
        own = self._own(part, len(self.numbers))
        crosses = own != NONE
        about = About(part.regions.first, part.classes, part.sums, np.zeros_like(own))
        self.numbers = self.numbers.extended(taken(about, crosses), part.index)
        if part.index:
            above, here = self.seam[part.above], own[part.regions.labels[0][part.above]]
            self.numbers.unite(above, here)
        self.seam = own[part.regions.labels[-1]]

    def _identified(self, part: _Part) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first pixel and the area of each region of a strip, all strips together."""
        own = self._own(part, self.starts[part.index])
        crosses = own != NONE
        roots = self.numbers.roots(own[crosses])
        first, area = part.regions.first.copy(), part.sums[:, 1].copy()
        first[crosses], area[crosses] = self.numbers.first[roots], self.numbers.sums[roots, 1]
        first[0] = NONE
        return first, area

    def _graph(self, part: _Part, seam: _Seam | None) -> tuple[Nodes, Edges, _Seam]:
        """Return the small regions of a strip, all neighbours of theirs, and its last row."""
        first, area = self._identified(part)
        labels = part.regions.labels
        small = area < self.least
        small[0] = False
        edges = shared_edges(labels, small)
        # By first pixel: of a region that is in two parts here, one may end and the other go on.
        waiting = np.isin(first, first[labels[-1]]) & (not part.last)
        meant = small.copy()
        meant[edges[:, :2].ravel()] = True
        meant[labels[0]] = True  # what the seam knows of them is out of date
        meant[0] = False
        nodes = Nodes(first[meant], area[meant], part.classes[meant], waiting[meant])
        links = Edges(first[edges[:, 0]], first[edges[:, 1]], edges[:, 2])
        if seam is not None:
            pairs = seam.pairs(first[labels[0]], small[labels[0]], self.least)
            links, nodes = stacked([links, pairs]), stacked([nodes, seam.nodes])
        row = labels[-1]
        return nodes, links, _Seam(first[row], area[row], part.classes[row])


@dataclass(frozen=True, eq=False)
class _Seam:
    """The regions in the last row of a strip.

    Attributes:
        first: (W,) int64, the first pixel of each, NONE where there is no class.
        area: (W,) int64.
        classes: (W,) uint8.
    """

    first: NDArray[np.int64]
    area: NDArray[np.int64]
    classes: NDArray[np.uint8]

    @property
    def nodes(self) -> Nodes:
        """The regions; none is waiting any more, or the strip below says so."""
        first, places = np.unique(self.first, return_index=True)
        there = first != NONE
        places = places[there]
        return Nodes(
            first[there], self.area[places], self.classes[places], np.zeros(len(places), bool)
        )

    def pairs(self, first: NDArray[np.int64], small: NDArray[np.bool_], least: int) -> Edges:
        """Return the edges shared with the row below, of which regions and smallness are given."""
        apart = (self.first != first) & (self.first != NONE) & (first != NONE)
        apart &= small | (self.area < least)
        return Edges(self.first[apart], first[apart], np.ones(np.count_nonzero(apart), np.int64))


def _look_up(
    table: NDArray[np.uint8],
    first: NDArray[np.int64],
    decided: NDArray[np.int64],
    classes: NDArray[np.uint8],
) -> None:
    """Change the classes of a strip's regions to those decided, in place."""
    if decided.size:
        places = np.minimum(np.searchsorted(decided, first), len(decided) - 1)
        found = decided[places] == first
        table[found] = classes[places[found]]


def _sorted(
    first: NDArray[np.int64], classes: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    order = np.argsort(first)
    return first[order], classes[order]
