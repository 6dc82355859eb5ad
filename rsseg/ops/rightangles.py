"""Footprints of buildings with right angles, from polygons that follow the pixels.

Each polygon is looked at by itself, in a frame turned to its own main direction. There its outlines
are cut into runs (``rsseg.ops.runs``), and the new corners are where the lines of neighbouring runs
meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

from rsseg.ops.runs import ALONG_X, ALONG_Y, FREE, Outline, Runs, cut, sums, turned

SQUARE_SHARE = 0.6
"""Least share of an outline along the axes; with less it is no building with right angles."""

KEPT = 2.0
"""Likeness of a polygon that has not changed: more than any that has."""


def right_angled(
    polygons: NDArray[np.object_],
    *,
    pixel: float,
    scale: ArrayLike = (1.0, 1.0),
    price: float = 100.0,
    min_iou: float = 0.85,
) -> NDArray[np.object_]:
    """Return polygons with right angles where their outlines suggest them.

    Walls along the two main directions of a polygon become straight and meet at right angles; walls
    that are clearly oblique stay so. Holes stay; one that would cross the new outline becomes a
    notch. What is round stays, and so does what has less than about 60 pixels, where no right angle
    can be told. The area is kept on average, not for each polygon; a corner may come to lie some
    pixels beyond the edge of the raster.

    A polygon's result depends on nothing else, so they may come in any batches. Afterwards
    neighbours may overlap: see ``without_overlaps``.

    Args:
        polygons: (N,) valid shapely polygons that follow the pixels, simplified or not.
        pixel: side of a pixel in the units of ``coordinates × scale``.
        scale: (2,) or (N, 2), above 0: what x and y are multiplied by so that angles are those on
            the ground. (1, 1) in a conformal projection; where coordinates are degrees, metres in a
            degree of longitude and of latitude.
        price: of a run, in cubed pixels: a step of depth d and length l (pixels) is straightened
            where d² l is less than about twice the price.
        min_iou: least intersection over union with the given polygon.

    Returns:
        (N,) valid shapely polygons, changed ones counterclockwise; where right angles do not fit,
        the given ones.
    """
    units = pixel / np.broadcast_to(np.asarray(scale, np.float64), (len(polygons), 2))
    out = polygons.copy()
    for index, (polygon, unit) in enumerate(zip(polygons, units, strict=True)):
        middle = shapely.bounds(polygon).reshape(2, 2).mean(axis=0)
        found = _squared(shapely.transform(polygon, _to_pixels(middle, unit)), price, min_iou)
        if found is not None:
            placed = shapely.transform(found, _from_pixels(middle, unit))
            if placed.is_valid:
                out[index] = shapely.geometry.polygon.orient(placed)
    return out


def without_overlaps(
    given: NDArray[np.object_], changed: NDArray[np.object_]
) -> NDArray[np.object_]:
    """Return changed polygons, the given ones instead where the changed would overlap.

    Of two that overlap the one that is less like its given polygon goes back, both where they are
    equally so, until none overlap. So the result does not depend on the order of the polygons, but
    all that may overlap must be there.

    Args:
        given: (N,) valid shapely polygons that do not overlap.
        changed: (N,) valid shapely polygons; those that stayed are equal to the given ones.
    """
    out = changed.copy()
    likeness = np.where(shapely.equals_exact(given, changed), KEPT, _iou(given, changed))
    asked = np.arange(len(out))
    while len(asked):
        first, second = _overlapping(out, asked)
        first, second = np.concatenate([first, second]), np.concatenate([second, first])
        loses = (likeness[first] <= likeness[second]) & (likeness[first] < KEPT)
        asked = np.unique(first[loses])
        out[asked] = given[asked]
        likeness[asked] = KEPT
    return out


def _overlapping(
    polygons: NDArray[np.object_], asked: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of polygons whose insides meet and of which one is asked for."""
    pairs = shapely.STRtree(polygons).query(polygons[asked])
    pairs[0] = asked[pairs[0]]
    pairs = np.unique(np.sort(pairs[:, pairs[0] != pairs[1]], axis=0), axis=1)
    # Prepared, the larger one of a pair is not looked at as a whole for each small one near it.
    swapped = np.diff(shapely.get_num_coordinates(polygons)[pairs], axis=0)[0] > 0
    first, second = np.where(swapped, pairs[::-1], pairs)
    shapely.prepare(polygons[first])
    near = shapely.intersects(polygons[first], polygons[second])
    first, second = first[near], second[near]
    meet = shapely.relate_pattern(polygons[first], polygons[second], "T********")
    shapely.destroy_prepared(polygons)
    return first[meet], second[meet]


def _iou(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return intersection over union of polygons, pair by pair."""
    common = shapely.area(shapely.intersection(one, other))
    together: NDArray[np.float64] = common / (shapely.area(one) + shapely.area(other) - common)
    return together


def _to_pixels(
    middle: NDArray[np.float64], unit: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda places: (places - middle) / unit


def _from_pixels(
    middle: NDArray[np.float64], unit: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda places: places * unit + middle


def _squared(polygon: shapely.Polygon, price: float, min_iou: float) -> shapely.Polygon | None:
    """Return a polygon in pixels with right angles, None where none fits."""
    rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
    least = max(min_iou, float(_iou(_disc(polygon), polygon)))
    for found in _rectilinear(rings, price):
        sound = isinstance(found, shapely.Polygon) and found.is_valid
        if sound and float(_iou(found, polygon)) >= least:
            return found
    return None


def _disc(polygon: shapely.Polygon) -> shapely.Polygon:
    """Return a disc of the place and area of a polygon."""
    return polygon.centroid.buffer(math.sqrt(polygon.area / math.pi))


def _rectilinear(rings: list[NDArray[np.float64]], price: float) -> Iterator[shapely.Geometry]:
    """Yield polygons of runs, the likeliest first, then closer ones."""
    outlines = [Outline.of(ring) for ring in rings]
    angle = _main_direction(outlines[0], price)
    for paid in (price, price / 4):
        shell, *holes = (_fitted(outline, angle, paid) for outline in outlines)
        if shell is None:
            continue
        pairs = zip(rings[1:], holes, strict=True)
        yield _with_holes(shell, [ring if hole is None else hole for ring, hole in pairs])


def _with_holes(shell: NDArray[np.float64], holes: list[NDArray[np.float64]]) -> shapely.Geometry:
    """Return a polygon; holes that cross its outline become notches."""
    outer, whole = shapely.Polygon(shell), shapely.Polygon(shell, holes)
    if whole.is_valid or not outer.is_valid:
        return whole
    inner = shapely.make_valid(np.array([shapely.Polygon(hole) for hole in holes]))
    return shapely.difference(outer, shapely.union_all(inner))


def _directions(outline: Outline) -> list[float]:
    """Return angles that the walls may have, of a quarter turn: by the walls, by the rectangle."""
    walls = outline.chords @ [1, 1j]
    box = shapely.get_coordinates(shapely.oriented_envelope(shapely.LinearRing(outline.points)))
    side = complex(*(box[1] - box[0]))
    # Directions a quarter turn apart are one at four times the angle; long walls tell it better.
    quartered = np.sum(np.abs(walls) ** 2 * np.exp(4j * np.angle(walls)))
    return [float(np.angle(quartered)) / 4, float(np.angle(side**4)) / 4]


def _main_direction(outline: Outline, price: float) -> float:
    """Return the angle under which runs fit best; angles are improved by the runs they lead to."""
    tried = []
    for first in _directions(outline):
        angle = first
        for _ in range(2):
            frame = outline.turned(-angle)
            runs = cut(frame, price)
            tried.append((runs.cost, angle))
            if not len(runs.kinds):
                break
            angle += _correction(frame, runs)
    return min(tried)[1]


def _correction(outline: Outline, runs: Runs) -> float:
    """Return the angle by which runs along the axes are turned away from them on average."""
    scatter = _scatter(sums(outline, runs))
    sign = np.array([1, -1, 0])[runs.kinds]
    return 0.5 * math.atan2(2 * sign @ scatter[:, 2], sign @ (scatter[:, 0] - scatter[:, 1]))


def _scatter(integrals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what runs scatter about their middles: x², y² and xy, integrated; (R, 3)."""
    length, once = integrals[:, :1], integrals[:, 1:3]
    return integrals[:, 3:] - np.column_stack([once**2, once.prod(axis=1)]) / length


def _fitted(outline: Outline, angle: float, price: float) -> NDArray[np.float64] | None:
    """Return a ring of runs, (R, 2), None where they make none or few run along the axes."""
    frame = outline.turned(-angle)
    runs = cut(frame, price)
    if len(runs.kinds) < 4:
        return None
    corners = _corners(frame, runs)
    lengths = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
    if lengths[runs.kinds != FREE].sum() < SQUARE_SHARE * lengths.sum():
        return None
    return turned(corners, angle)


def _corners(outline: Outline, runs: Runs) -> NDArray[np.float64]:
    """Return where each run begins, (R, 2): where the lines of runs along the axes meet.

    A free run has no line of its own; it goes from where the outline was cut to where it was next.
    """
    integrals = sums(outline, runs)
    middles = integrals[:, 1:3] / integrals[:, :1]
    corners = outline.points[outline.breaks][runs.starts % len(outline.breaks)]
    for kind, axis in ((ALONG_X, 1), (ALONG_Y, 0)):
        (these,) = np.nonzero(runs.kinds == kind)
        for ends in (these, (these + 1) % len(corners)):
            corners[ends, axis] = middles[these, axis]
    return corners
