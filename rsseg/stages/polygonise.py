"""Polygons of a class map of any size: strip by strip, the same as of the whole map at once.

The polygons are a coverage: where regions are neighbours both have the same points. Memory is that
of a few strips and of the largest polygon; what waits for the strips below lies on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE
from rsseg.grid import Window
from rsseg.io.pieces import CornerFile, PieceFiles
from rsseg.ops.rings import Polygons, assemble, join
from rsseg.ops.strips import Finished, Seams, Strip, draw_strip
from rsseg.ops.visvalingam import simplify
from rsseg.progress import Step
from rsseg.stages.ahead import ahead

STRIP_PIXELS = 3_000_000
"""About how many pixels a strip has where its rows are not given …"""

STRIP_ROWS = 64
"""… and how many rows it has at the least: each seam has its price."""


class Pixels(Protocol):
    """Where class indices are read from; safe to be read by several threads."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return (h, w) uint8, 255 where there is none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N polygons, ordered by the first pixel of each.

    Attributes:
        regions: their classes, first pixels and sums.
        polygons: their rings, in corners of pixels.
    """

    regions: Finished
    polygons: Polygons


def default_strip_rows(width: int) -> int:
    """Return how many rows a strip of a raster of this width has by default."""
    return max(STRIP_ROWS, STRIP_PIXELS // width)


def polygonise(
    classes: Pixels,
    scratch: Path,
    step: Step,
    *,
    confidence: Pixels | None = None,
    strip_rows: int | None = None,
    tolerance: float = 0,
    workers: int = 2,
) -> Iterator[Batch]:
    """Yield the polygons of a class map, in batches.

    Args:
        classes: the map.
        scratch: an empty folder.
        step: is told of the pixels done.
        confidence: what is summed over each polygon, 255 being none.
        strip_rows: height of a strip; changes no polygon.
        tolerance: in pixels: corners of polygons whose triangle is smaller than its square go, the
            smallest first (see ``rsseg.ops.visvalingam``). 0 keeps them all.
        workers: threads that read and draw strips ahead; changes no polygon.
    """
    height, width = classes.shape
    rows = strip_rows or default_strip_rows(width)
    draw = partial(_draw, classes, confidence, rows)
    seams = Seams(width, PieceFiles(scratch))
    corners = CornerFile(scratch / "corners", classes.shape) if tolerance > 0 else None
    with closing(ahead(draw, range(math.ceil(height / rows)), workers, workers)) as strips:
        for strip in strips:
            bits = None if corners is None else corners.open()
            if bits is not None:
                bits[strip.top : strip.top + len(strip.corners)] = strip.corners
            for found in seams.add(strip):
                arcs = join(found.pieces)
                if bits is not None:
                    arcs = simplify(arcs, bits, doubled_limit(tolerance))
                yield Batch(found, assemble(arcs, len(found.first)))
            step.advance(math.prod(strip.shape))


def doubled_limit(tolerance: float) -> int:
    """Return the least doubled area, a whole number, of a triangle that stays."""
    return math.ceil(min(2 * tolerance * tolerance, 2.0**62))


def read_strip(
    classes: Pixels, rows: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, int, bool]:
    """Return a strip of a map, the row above (None for the first), its top, and if it is last."""
    height, width = classes.shape
    top = index * rows
    above = classes.read(Window(top - 1, 0, 1, width))[0] if top else None
    strip = classes.read(Window(top, 0, min(rows, height - top), width))
    return strip, above, top, top + rows >= height


def _draw(classes: Pixels, confidence: Pixels | None, rows: int, index: int) -> Strip:
    strip, above, top, last = read_strip(classes, rows, index)
    window = Window(top, 0, *strip.shape)
    values = None if confidence is None else confidence.read(window)
    return draw_strip(strip, above, index=index, top=top, last=last, values=values, nodata=IGNORE)
