"""Tags from vector features: which classes' polygons, lines or points meet which cores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.tag_table import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    SceneTiles,
    TagTable,
    completed,
    listed,
    unknown_tags,
)
from rsseg.io.vector import classify, read_features, transformed
from rsseg.progress import SILENT, Progress

SHARED_EDGE = 0.01
"""Pixels by which a polygon must reach into a core: neighbours that share an edge, moved by a
reprojection's rounding, do not overlap."""


def tags_from_vectors(
    path: Path,
    scenes: Sequence[SceneTiles],
    classes: Classes,
    field: str | None = None,
    only: str | None = None,
    min_area: float = 0.0,
    progress: Progress = SILENT,
) -> TagTable:
    """Return presence per core from polygons, lines or points in any CRS.

    A class is present where its features meet the core, its polygons with at least ``min_area``
    together; every other foreground class is absent. Two kinds of tiles stay unlabelled: those of a
    scene that no feature meets (it was not mapped, and that is said), and, where there is no
    background class, those that no feature meets (some class must be there).

    Args:
        path: anything OGR reads.
        scenes: the site's scenes.
        classes: the classes.
        field: the field that holds class names or ids, or None.
        only: the one class that all features are of, or None.
        min_area: m² on the ground inside the core (map units where a scene has no CRS).
        progress: is told of scenes without features.

    Raises:
        InputError: unreadable; classes unclear or unknown; no feature meets the site.
    """
    tags = unknown_tags(scenes, classes)
    met = []
    for crs in dict.fromkeys(scene.grid.crs for scene in scenes):
        features = read_features(path, crs)
        indices = classify(features, classes, field, only, path)
        for scene in (scene for scene in scenes if scene.grid.crs == crs):
            present = _presence(scene, features.geometry.to_numpy(), indices, classes, min_area)
            if present is not None:
                tags[scene.name][scene.valid_tiles] = _from_presence(present, classes)
                met.append(scene.name)
    if not met:
        raise InputError(
            f"{path}: none of its features meets a raster of the site; "
            "check that both are of the same place and have the right CRS"
        )
    empty = [scene.name for scene in scenes if scene.name not in met]
    if empty:
        progress.warn(f"{path}: no feature meets {listed(empty)}: its tiles stay unlabelled")
    return completed(tags, scenes, classes)


def _presence(
    scene: SceneTiles,
    geometries: NDArray[Any],
    indices: NDArray[np.uint8],
    classes: Classes,
    min_area: float,
) -> NDArray[np.bool_] | None:
    """Return (N, K) which classes the N valid tiles have; None where nothing meets the scene.

    Everything in pixels, so that rotated grids are no case of their own and the pixel's area on
    the ground is the only factor between the plane and m².
    """
    shapes = transformed(geometries, ~scene.grid.transform)
    outline = shapely.box(0, 0, *scene.grid.shape[::-1])
    if not shapely.intersects(shapes, outline).any():
        return None
    shape, tile, areas = _meetings(shapes, scene.core_bounds, measured=min_area > 0)
    cell = tile * len(classes) + indices[shape]
    cells = (int(scene.valid.sum()), len(classes))
    met = np.bincount(cell, minlength=cells[0] * cells[1]).reshape(cells) > 0
    area = np.bincount(cell, areas, minlength=cells[0] * cells[1]).reshape(cells)
    return met & (area * _pixel_area(scene.grid) >= min_area)


def _meetings(
    shapes: NDArray[Any], bounds: NDArray[np.float64], measured: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return which shapes meet which cores: shape (M,), core (M,), area of the common part (M,).

    Points and lines, and all if not ``measured``, have infinite area: they are enough as they are.
    """
    edge = SHARED_EDGE * np.array([1, 1, -1, -1])
    areal = shapely.get_dimensions(shapes) == 2
    pairs = []
    for chosen, boxes in ((areal, bounds + edge), (~areal, bounds)):
        which = np.flatnonzero(chosen)
        tree = shapely.STRtree(shapely.box(*boxes.T))
        shape, core = tree.query(shapes[which], predicate="intersects")
        pairs.append((which[shape], core))
    shape, core = (np.concatenate(part) for part in zip(*pairs, strict=True))
    areas = np.full(shape.size, np.inf)
    if measured:
        polygons = areal[shape]
        areas[polygons] = _common_area(shapes[shape[polygons]], bounds[core[polygons]])
    return shape, core, areas


def _common_area(shapes: NDArray[Any], bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area (M,) of polygons (M,) inside boxes (M, 4)."""
    extent = shapely.bounds(shapes)
    # Most features lie in one core: only the others need the costly intersection.
    crossing = (extent[:, :2] < bounds[:, :2]).any(1) | (extent[:, 2:] > bounds[:, 2:]).any(1)
    areas: NDArray[np.float64] = shapely.area(shapes)
    boxes = shapely.box(*bounds[crossing].T)
    areas[crossing] = shapely.area(shapely.intersection(shapes[crossing], boxes))
    return areas


def _pixel_area(grid: Grid) -> float:
    gsd = grid.ground_sample_distance
    return abs(float(grid.transform.determinant)) if gsd is None else gsd**2


def _from_presence(present: NDArray[np.bool_], classes: Classes) -> NDArray[np.int8]:
    tags = np.where(present, np.int8(PRESENT), np.int8(ABSENT))
    if classes.background is None:
        tags[~present.any(axis=1)] = UNKNOWN
    else:
        tags[:, classes.background] = PRESENT
    return tags
