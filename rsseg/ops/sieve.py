"""Small regions of a class map, merged into their neighbours.

The smallest goes first, into the neighbour with which it shares the longest edge; what it makes
with a neighbour that is small as well goes on from there. Of equally small ones the one that begins
first goes first, and of equal edges the neighbour that begins first wins. Small neighbours of the
class it takes come along. A region that is not small keeps its class, and counts as a neighbour by
itself even where a small one between makes it one with another of its class.

So what happens to a small region depends only on those small ones that it hangs together with, its
*cluster*, and on their neighbours: a cluster can be decided as soon as it is complete.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rsseg.ops.columns import stacked, taken
from rsseg.ops.compiled import compiled
from rsseg.ops.regions import find_root


class Nodes(NamedTuple):
    """N regions, each known by its first pixel.

    Attributes:
        first: (N,) int64, unique.
        area: (N,) int64, in any unit.
        classes: (N,) uint8.
        waiting: (N,) bool, whether the region touches what has not been seen yet.
    """

    first: NDArray[np.int64]
    area: NDArray[np.int64]
    classes: NDArray[np.uint8]
    waiting: NDArray[np.bool_]


class Edges(NamedTuple):
    """E pairs of regions, given by their first pixels, and how long an edge they share.

    Attributes:
        ones: (E,) int64.
        others: (E,) int64.
        lengths: (E,) int64, in sides of pixels.
    """

    ones: NDArray[np.int64]
    others: NDArray[np.int64]
    lengths: NDArray[np.int64]


def shared_edges(labels: NDArray[np.int32], small: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the edges between regions of which one at least is small.

    Args:
        labels: (H, W) int32, 0 … N; 0 is no class.
        small: (N + 1,) bool, not so for 0.

    Returns:
        (E, 3) int64: two labels, the lower one first, and the length in sides of pixels.
    """
    pairs, lengths = np.unique(_pairs(labels, small), return_counts=True)
    ones, others = np.divmod(pairs, len(small))
    return np.stack([ones, others, lengths], axis=1)


@compiled
def _pairs(labels: NDArray[np.int32], small: NDArray[np.bool_]) -> NDArray[np.int64]:
    height, width = labels.shape
    pairs = np.empty(1024, np.int64)
    count = 0
    for row in range(height):
        for col in range(width):
            here = labels[row, col]
            if here == 0:
                continue
            for down in range(2):
                if row + down == height or col + 1 - down == width:
                    continue
                there = labels[row + down, col + 1 - down]
                if there == 0 or there == here or not (small[here] or small[there]):
                    continue
                if count == len(pairs):
                    pairs = np.concatenate((pairs, np.empty_like(pairs)))
                pairs[count] = min(here, there) * np.int64(len(small)) + max(here, there)
                count += 1
    return pairs[:count].copy()


class Clusters:
    """Decides clusters of small regions as soon as they are complete.

    Args:
        least: a region of less area is small.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        nothing = np.empty(0, np.int64)
        self._nodes = Nodes(nothing, nothing, np.empty(0, np.uint8), np.empty(0, np.bool_))
        self._edges = Edges(nothing, nothing, nothing)

    def add(self, nodes: Nodes, edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Take in more regions; return what can be decided now.

        Args:
            nodes: all regions of the edges and all small ones seen anew; those that came before
                may come again, and are waiting or not as they are said to be now.
            edges: pairs of which one at least is small; a pair that came before adds to its length.

        Returns:
            The first pixels of small regions, (N,) int64 ascending, and the class of each, (N,).
        """
        known = stacked([nodes, self._nodes])
        first, places = np.unique(known.first, return_index=True)
        known = taken(known, places)
        links = stacked([self._edges, edges])
        ones, others = np.searchsorted(first, links.ones), np.searchsorted(first, links.others)
        small = known.area < self._least
        waits = small & _hang_together(small, ones, others, known.waiting)
        later = waits[ones] | waits[others]
        decided = small & ~waits
        classes = _decide(
            known.area,
            known.classes,
            decided,
            self._least,
            ones[~later],
            others[~later],
            links.lengths[~later],
        )
        needed = waits.copy()
        needed[ones[later]] = needed[others[later]] = True
        self._nodes, self._edges = taken(known, needed), taken(links, later)
        return first[decided], classes[decided]


def _hang_together(
    small: NDArray[np.bool_],
    ones: NDArray[np.int64],
    others: NDArray[np.int64],
    marked: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return which regions are in a cluster with a small region that is marked, (N,) bool."""
    both = small[ones] & small[others]
    links = (np.ones(np.count_nonzero(both)), (ones[both], others[both]))
    graph = coo_array(links, shape=(len(small), len(small)))
    cluster = connected_components(graph, directed=False)[1]
    found: NDArray[np.bool_] = np.isin(cluster, cluster[small & marked])
    return found


@compiled
def _decide(
    area: NDArray[np.int64],
    classes: NDArray[np.uint8],
    small: NDArray[np.bool_],
    least: int,
    ones: NDArray[np.int64],
    others: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Return the class of every region after the small ones were merged, (N,) uint8."""
    count = len(area)
    parents = np.arange(count)
    area, classes = area.copy(), classes.copy()
    ends, following, heads, tails = _listed(count, ones, others)
    shared = np.zeros(count, np.int64)
    touched = np.empty(count, np.int64)
    heap = [(area[node], node) for node in range(count) if small[node]]
    heapq.heapify(heap)
    while heap:
        size, node = heapq.heappop(heap)
        if parents[node] != node or area[node] != size:
            continue
        found = _around(node, parents, ends, following, heads, lengths, shared, touched)
        neighbours = touched[:found]
        if found == 0:
            continue
        best = _longest(neighbours, shared)
        shared[neighbours] = 0
        joined = classes[best]
        host = _host(best, neighbours, small, classes)
        for index in range(-1, found):
            guest = find_root(parents, node if index == -1 else neighbours[index])
            if guest == host or not small[guest] or (index >= 0 and classes[guest] != joined):
                continue
            if small[host]:
                host = _merge(parents, area, heads, tails, following, host, guest)
            else:
                parents[guest] = host
        classes[host] = joined
        if small[host] and area[host] < least:
            heapq.heappush(heap, (area[host], host))
    for node in range(count):
        classes[node] = classes[find_root(parents, node)]
    return classes


@compiled
def _listed(
    count: int, ones: NDArray[np.int64], others: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges of each region as linked lists, which can be joined at once.

    Edge e leads from ``ends[e]`` to ``ends[e ^ 1]``; a region's first edge is ``heads``, its last
    ``tails``, and the one after e ``following[e]``; -1 is none.
    """
    ends = np.empty(2 * len(ones), np.int64)
    ends[::2], ends[1::2] = ones, others
    following = np.full(len(ends), -1)
    heads, tails = np.full(count, -1), np.full(count, -1)
    for edge in range(len(ends)):
        node = ends[edge]
        following[edge], heads[node] = heads[node], edge
        if tails[node] == -1:
            tails[node] = edge
    return ends, following, heads, tails


@compiled
def _around(
    node: int,
    parents: NDArray[np.int64],
    ends: NDArray[np.int64],
    following: NDArray[np.int64],
    heads: NDArray[np.int64],
    lengths: NDArray[np.int64],
    shared: NDArray[np.int64],
    touched: NDArray[np.int64],
) -> int:
    """Put the neighbours of a set into ``touched`` and the edges into ``shared``; return N."""
    found = 0
    edge = heads[node]
    while edge != -1:
        other = find_root(parents, ends[edge ^ 1])
        if other != node:
            if shared[other] == 0:
                touched[found] = other
                found += 1
            shared[other] += lengths[edge // 2]
        edge = following[edge]
    return found


@compiled
def _longest(neighbours: NDArray[np.int64], shared: NDArray[np.int64]) -> int:
    best = neighbours[0]
    for other in neighbours:
        if (shared[other], -other) > (shared[best], -best):
            best = other
    return int(best)


@compiled
def _host(
    best: int,
    neighbours: NDArray[np.int64],
    small: NDArray[np.bool_],
    classes: NDArray[np.uint8],
) -> int:
    """Return who takes in what gets the class of ``best``: one that is not small if there is."""
    host = best
    for other in neighbours:
        large = not small[other] and classes[other] == classes[best]
        if large and (small[host] or other < host):
            host = other
    return host


@compiled
def _merge(
    parents: NDArray[np.int64],
    area: NDArray[np.int64],
    heads: NDArray[np.int64],
    tails: NDArray[np.int64],
    following: NDArray[np.int64],
    one: int,
    other: int,
) -> int:
    """Make one set of two small ones, known by its first region; return that."""
    root, guest = min(one, other), max(one, other)
    parents[guest] = root
    area[root] += area[guest]
    following[tails[root]] = heads[guest]
    tails[root] = tails[guest]
    return root
