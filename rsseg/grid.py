"""Grid, Window, Tile, Tiling: where pixels are. Integers and affines only, no IO.

Indexing a Grid by a Window gives a Grid. A Tiling of a Grid yields Tiles; each has a disjoint
*core* window (the cores partition the raster exactly) and a padded *read* window, which may reach
beyond the raster: whoever reads pads there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from affine import Affine

from rsseg.errors import InputError

TILE_MULTIPLE = 16
"""Tile cores are whole numbers of the classifier's coarsest CAM cells (output stride 16)."""

_SAME_PIXEL = 1e-3
"""Grids whose corners lie closer than this, in pixels, are the same."""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows ``row … row+height-1``, columns ``col … col+width-1``."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices into a (H, W) array; only for windows inside the raster."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.col, self.col + self.width),
        )

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def padded(self, halo: int) -> Window:
        """Return the window grown by ``halo`` pixels on every side."""
        return Window(
            self.row - halo, self.col - halo, self.height + 2 * halo, self.width + 2 * halo
        )

    def clipped(self, shape: tuple[int, int]) -> Window:
        """Return the part inside a raster of ``shape`` (height, width); its area may be 0."""
        return self.intersection(Window(0, 0, *shape))

    def intersection(self, other: Window) -> Window:
        """Return the common part of two windows; empty windows have area 0."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom = min(self.row + self.height, other.row + other.height)
        right = min(self.col + self.width, other.col + other.width)
        return Window(row, col, max(0, bottom - row), max(0, right - col))

    def relative_to(self, other: Window) -> Window:
        """Return this window in coordinates whose origin is the corner of ``other``."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)

    def scaled(self, factor: int) -> Window:
        """Return the window in cells of ``factor`` pixels, grown outwards to whole cells."""
        row, col = self.row // factor, self.col // factor
        bottom = math.ceil((self.row + self.height) / factor)
        right = math.ceil((self.col + self.width) / factor)
        return Window(row, col, bottom - row, right - col)


@dataclass(frozen=True)
class Grid:
    """Where a raster's pixels lie on the ground.

    Args:
        shape: (height, width) in pixels.
        transform: pixel (column, row) to map coordinates, GDAL's convention (pixel corners).
        crs: coordinate reference system as WKT, or None where it is unknown.
    """

    shape: tuple[int, int]
    transform: Affine
    crs: str | None = None

    def __getitem__(self, window: Window) -> Grid:
        corner = Affine.translation(window.col, window.row)
        return Grid((window.height, window.width), self.transform @ corner, self.crs)

    @property
    def window(self) -> Window:
        """The whole raster."""
        return Window(0, 0, *self.shape)

    @property
    def is_georeferenced(self) -> bool:
        """Whether the pixels have a place on the ground at all."""
        return self.crs is not None or self.transform != Affine.identity()

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Map coordinates of the four outer corners, counter-clockwise in pixel order."""
        height, width = self.shape
        return tuple(
            self.transform @ point for point in ((0, 0), (0, height), (width, height), (width, 0))
        )

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in map coordinates, also for rotated grids."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def coincides(self, other: Grid) -> bool:
        """Return whether both have the same pixels, up to a thousandth of a pixel."""
        if self.shape != other.shape or not _same_crs(self.crs, other.crs):
            return False
        if self.transform.is_degenerate or other.transform.is_degenerate:
            return self.transform == other.transform
        to_pixels = ~other.transform
        pairs = zip(self.corners, other.corners, strict=True)
        return all(math.dist(to_pixels @ one, to_pixels @ two) < _SAME_PIXEL for one, two in pairs)

    def coarsened(self, factor: int) -> Grid:
        """Return the grid of cells of ``factor`` x ``factor`` pixels (outer cells may overhang)."""
        height, width = (math.ceil(side / factor) for side in self.shape)
        return Grid((height, width), self.transform @ Affine.scale(factor), self.crs)

    @property
    def ground_sample_distance(self) -> float | None:
        """Metres on the ground per pixel at the centre (geodesic, so Web Mercator is corrected).

        None where there is no CRS. The geometric mean of both pixel directions.
        """
        steps = self.ground_steps
        return None if steps is None else math.sqrt(steps[0] * steps[1])

    @cached_property
    def ground_steps(self) -> tuple[float, float] | None:
        """Metres on the ground per pixel at the centre: along a row, and along a column.

        None where there is no CRS.
        """
        if self.crs is None:
            return None
        from pyproj import CRS, Geod, Transformer

        height, width = self.shape
        row, col = height / 2, width / 2
        points = [self.transform @ p for p in ((col, row), (col + 1, row), (col, row + 1))]
        crs = CRS.from_wkt(self.crs)
        if not (crs.is_geographic or crs.is_projected):
            scale = self.transform
            return math.hypot(scale.a, scale.d), math.hypot(scale.b, scale.e)
        to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        (lon, lat), right, below = (to_degrees.transform(*point) for point in points)
        ellipsoid = crs.ellipsoid
        geod = (
            Geod(ellps="WGS84")
            if ellipsoid is None
            else Geod(a=ellipsoid.semi_major_metre, b=ellipsoid.semi_minor_metre)
        )
        along_row, along_column = (geod.inv(lon, lat, *end)[2] for end in (right, below))
        return along_row, along_column


def _same_crs(first: str | None, second: str | None) -> bool:
    if first is None or second is None or first == second:
        return first == second
    from pyproj import CRS

    return bool(CRS.from_wkt(first) == CRS.from_wkt(second))


@dataclass(frozen=True)
class Tile:
    """One piece of a Tiling.

    Args:
        row: row of the tile in the tiling.
        col: column of the tile in the tiling.
        core: the pixels that belong to this tile alone; inside the raster.
        read: the pixels a stage sees; every tile of a tiling has the same size here, so this
            window may reach beyond the raster.
    """

    row: int
    col: int
    core: Window
    read: Window

    @property
    def inner(self) -> Window:
        """The core in coordinates of the read window."""
        return self.core.relative_to(self.read)


@dataclass(frozen=True)
class Tiling:
    """Overlapping tiles on a raster: disjoint cores of ``core`` pixels, each padded by ``halo``.

    Args:
        shape: (height, width) of the raster in pixels.
        core: side of a core in pixels; the last row and column of cores may be smaller.
        halo: pixels added around each core; two neighbours overlap by twice the halo.
    """

    shape: tuple[int, int]
    core: int
    halo: int

    def __post_init__(self) -> None:
        assert self.core > 0
        assert self.halo >= 0
        assert min(self.shape) > 0

    @property
    def size(self) -> int:
        """Side of the read windows in pixels."""
        return self.core + 2 * self.halo

    @property
    def counts(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        rows, cols = (math.ceil(side / self.core) for side in self.shape)
        return rows, cols

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def __iter__(self) -> Iterator[Tile]:
        rows, cols = self.counts
        return (self[row, col] for row in range(rows) for col in range(cols))

    def __getitem__(self, index: tuple[int, int]) -> Tile:
        row, col = index
        full = Window(row * self.core, col * self.core, self.core, self.core)
        return Tile(row, col, full.clipped(self.shape), full.padded(self.halo))

    def merged(self, count: int, halo: int) -> Tiling:
        """Return the tiling whose cores are blocks of ``count`` x ``count`` of this one's cores."""
        return Tiling(self.shape, self.core * count, halo)

    def members(self, core: Window) -> list[tuple[int, int]]:
        """Return (row, col) of this tiling's tiles whose cores meet the window."""
        cells = core.clipped(self.shape).scaled(self.core)
        return [
            (cells.row + row, cells.col + col)
            for row in range(cells.height)
            for col in range(cells.width)
        ]


def split_overlap(size: int, overlap: float) -> tuple[int, int]:
    """Return (core, halo) in pixels for tiles of ``size`` pixels that overlap by a share of it.

    The core is rounded to a multiple of 16 pixels, so the overlap is met as nearly as that allows.

    Raises:
        InputError: the size is not a positive multiple of 16, or the overlap not in [0, 0.75].
    """
    if size < 2 * TILE_MULTIPLE or size % TILE_MULTIPLE:
        near = max(2, round(size / TILE_MULTIPLE)) * TILE_MULTIPLE
        raise InputError(
            f"tile size {size} does not fit: it must be a multiple of {TILE_MULTIPLE} "
            f"from {2 * TILE_MULTIPLE} on; use {near}"
        )
    if not 0 <= overlap <= 0.75:
        raise InputError(f"overlap {overlap} is out of range: give a share from 0 to 0.75")
    core = max(1, round(size * (1 - overlap) / TILE_MULTIPLE)) * TILE_MULTIPLE
    return core, (size - core) // 2


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows of ``size`` begin along an axis so that they cover ``length`` pixels.

    Anchored at 0 and ``stride`` apart; the last may reach beyond the axis. Nothing but these three
    numbers decides, so a window never depends on blocks or workers.
    """
    return [0, *range(stride, max(1, length - size + stride), stride)]
