"""Class maps at random, and their polygons, for the tests of the vector engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from rsseg.grid import Window
from rsseg.ops.arcs import OUTSIDE, Pieces, trace
from rsseg.ops.regions import find_regions
from rsseg.ops.rings import Polygons, join
from rsseg.ops.strips import Strip, draw_strip

NODATA = 255


@dataclass(frozen=True)
class ArrayPixels:
    """A class map in memory, as the stages read one."""

    array: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def read(self, window: Window) -> NDArray[np.uint8]:
        return self.array[window.slices]


@dataclass
class MemoryKeeper:
    """A Keeper without files."""

    pieces: dict[int, Pieces] = field(default_factory=dict)

    def keep(self, strip: int, pieces: Pieces) -> None:
        self.pieces[strip] = pieces

    def kept(self, strip: int) -> Pieces:
        return self.pieces[strip]

    def drop(self, before: int) -> None:
        self.pieces = {strip: kept for strip, kept in self.pieces.items() if strip >= before}


def class_map(*rows: str) -> NDArray[np.uint8]:
    """Return a map drawn with a character for each pixel: a digit is a class, a dot is none."""
    return np.array([[NODATA if c == "." else int(c) for c in row] for row in rows], np.uint8)


@st.composite
def class_maps(draw: st.DrawFn, side: int = 16) -> NDArray[np.uint8]:
    """Draw a map of 1 to 6 classes: noise or blobs, with or without nodata."""
    shape = draw(st.integers(1, side)), draw(st.integers(1, side))
    classes, grain = draw(st.integers(1, 6)), draw(st.sampled_from([1, 1, 2, 3, 5]))
    speckle, holes = draw(st.sampled_from([0, 0.1])), draw(st.sampled_from([0, 0, 0.1, 0.4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = rng.integers(0, classes, [-(-length // grain) for length in shape])
    grid = np.kron(coarse, np.ones((grain, grain), int))[: shape[0], : shape[1]]
    drawn = np.where(rng.random(shape) < speckle, rng.integers(0, classes, shape), grid)
    return np.where(rng.random(shape) < holes, NODATA, drawn).astype(np.uint8)


def around(labels: ArrayLike) -> tuple[NDArray[Any], ...]:
    """Return the pixel northwest, northeast, southwest and southeast of each corner, 0 beyond."""
    rim = np.pad(np.asarray(labels), 1)
    return rim[:-1, :-1], rim[:-1, 1:], rim[1:, :-1], rim[1:, 1:]


def degrees(labels: ArrayLike) -> NDArray[np.int64]:
    """Return how many boundaries meet at each corner, (H + 1, W + 1)."""
    a, b, c, d = around(labels)
    return (a != b).astype(int) + (b != d) + (d != c) + (c != a)


def turns(labels: ArrayLike) -> NDArray[np.bool_]:
    """Return at which corners a line turns or ends, (H + 1, W + 1)."""
    a, b, c, d = around(labels)
    return ~((a == b) & (c == d) | (a == c) & (b == d))


def strips_of(
    classes: NDArray[np.uint8], rows: int, values: NDArray[np.uint8] | None = None
) -> Iterator[Strip]:
    """Cut a map into strips, and draw them."""
    for index, top in enumerate(range(0, len(classes), rows)):
        yield draw_strip(
            classes[top : top + rows],
            classes[top - 1] if top else None,
            index=index,
            top=top,
            last=top + rows >= len(classes),
            values=None if values is None else values[top : top + rows],
        )


def whole_arcs(classes: NDArray[np.uint8]) -> tuple[Pieces, NDArray[np.uint8]]:
    """Return the arcs of a map at once, with sides 0 … N - 1 or OUTSIDE, and its corner bits."""
    pieces, bits = trace(classes, find_regions(classes).labels, None, top=0, last=True)
    arcs = join(pieces)
    return arcs._replace(sides=np.where(arcs.sides == 0, OUTSIDE, arcs.sides - 1)), np.packbits(
        bits, axis=1
    )


def lines(arcs: Pieces) -> list[list[tuple[int, int]]]:
    """Return the points of each arc."""
    points = [(int(row), int(col)) for row, col in arcs.points]
    return [points[start:stop] for start, stop in pairwise(arcs.offsets)]


def rings(polygons: Polygons, index: int) -> list[list[tuple[int, int]]]:
    """Return the rings of a polygon as points (row, column)."""
    offsets = polygons.ring_offsets
    first, last = polygons.polygon_offsets[index : index + 2]
    return [
        [(int(row), int(col)) for row, col in polygons.points[offsets[ring] : offsets[ring + 1]]]
        for ring in range(first, last)
    ]


def geometries(polygons: Polygons) -> NDArray[Any]:
    """Return the polygons in shapely, with x = column and y = -row, so that north is up."""
    points = polygons.points[:, ::-1] * [1.0, -1.0]
    offsets = polygons.ring_offsets, polygons.polygon_offsets
    if len(polygons.doubled_area) == 0:
        return np.empty(0, object)
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets))
