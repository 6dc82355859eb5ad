"""draw_sample: points drawn at random on a map, for an assessment of its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.io.classmap import ClassMap, ClassRaster
from rsseg.io.geopackage import check_geopackage
from rsseg.io.ground import HECTARE
from rsseg.io.map_classes import open_map
from rsseg.io.remote import as_path
from rsseg.io.sample import LEAST, SamplePoints, write_sample
from rsseg.io.strata import Strata, count_strata, find_columns
from rsseg.ops.sampling import allocate, draw
from rsseg.progress import SILENT, Progress


class Stratum(NamedTuple):
    """How much of a map is of a class, and how many points of a sample lie in it."""

    name: str
    pixels: int
    hectares: float | None
    share: float
    points: int


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample that was drawn.

    Args:
        path: where its points are.
        strata: the classes of the map, those without pixels too; hectares are None where the map
            has no CRS.
    """

    path: Path
    strata: tuple[Stratum, ...]


def draw_sample(
    map_path: str | Path,
    out: str | Path,
    *,
    count: int = 300,
    min_per_class: int = 50,
    seed: int = 0,
    classes: Classes | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Sample:
    """Draw points at random on a map, at which somebody is to say what is on the ground.

    Each class of the map gets points in proportion to its ground area, but not fewer than the
    minimum; see ``rsseg.ops.sampling``. The same map, options and version of numpy give the same
    points, however the map is cut into blocks.

    Args:
        map_path: a raster of class ids, one band; 255 and nodata are no class.
        out: the GeoPackage to write, with an empty field ``reference``.
        count: points in all.
        min_per_class: the least for a class; where ``count`` does not suffice for it, all classes
            get the same number of points.
        seed: draws other points.
        classes: the classes; by default those that the map carries in its ``RSSEG_CLASSES`` tag,
            else one for each value that occurs, named by it.
        overwrite: whether a sample that exists, and a user's work in it, may be replaced.
        progress: shows the blocks read, and is told of classes with few points.

    Raises:
        InputError: the map cannot be read or is no raster of class ids, the output cannot be
            written, or the points are too few for the classes.
        RunError: the map turns out to be damaged.
    """
    map_path, out = as_path(map_path), as_path(out)
    if out.suffix.lower() != ".gpkg":
        raise InputError(f"{out}: a sample is a GeoPackage; give a name that ends in .gpkg")
    if min_per_class < LEAST:
        raise InputError(f"--min-per-class {min_per_class}: at least {LEAST} are needed")
    check_geopackage(out, overwrite, [map_path])
    with ClassRaster(map_path) as raster:
        pixels = open_map(raster, classes, progress)
        strata = count_strata(pixels, progress)
        _check_count(count, int(np.count_nonzero(strata.sizes)), map_path)
        number = allocate(strata.areas, strata.sizes, count, min_per_class)
        _tell_of_few_points(strata, number, min_per_class, progress)
        points = _drawn(pixels, strata, number, seed, progress)
        write_sample(out, raster.grid, points, pixels.classes, overwrite=overwrite)
        known_area = raster.grid.crs is not None
    return Sample(out, _described(strata, number, known_area))


def _check_count(count: int, present: int, path: Path) -> None:
    if count < LEAST * present:
        raise InputError(
            f"--n {count}: {path} has {present} classes, and each needs at least {LEAST} points; "
            "50 for each are a usual minimum"
        )


def _tell_of_few_points(
    strata: Strata, number: NDArray[np.int64], wanted: int, progress: Progress
) -> None:
    names = strata.classes.names
    absent = [name for name, size in zip(names, strata.sizes, strict=True) if not size]
    if absent:
        progress.note(f"not in the map, so without points: {', '.join(absent)}")
    few = [
        f"{name} {points}"
        for name, points, size in zip(names, number, strata.sizes, strict=True)
        if size and points < wanted
    ]
    if few:
        progress.warn(
            f"fewer than {wanted} points for some classes ({', '.join(few)}): their user's "
            "accuracies will be imprecise; give a larger --n unless they have no more pixels"
        )


def _drawn(
    pixels: ClassMap, strata: Strata, number: NDArray[np.int64], seed: int, progress: Progress
) -> SamplePoints:
    """Return the points in random order, so that neither number nor place tells the class."""
    random = np.random.default_rng(seed)
    drawn = [
        draw(strata.counts[:, index], strata.row_areas, int(points), random)
        for index, points in enumerate(number)
    ]
    order = random.permutation(int(number.sum()))
    rows, ranks = (np.concatenate(parts)[order] for parts in zip(*drawn, strict=True))
    classes = np.repeat(np.arange(len(number)), number)[order]
    cols = find_columns(pixels, classes, rows, ranks, progress)
    return SamplePoints(rows, cols, np.full(len(rows), IGNORE, np.uint8), strata.fingerprint)


def _described(strata: Strata, number: NDArray[np.int64], known_area: bool) -> tuple[Stratum, ...]:
    shares = strata.areas / strata.areas.sum()
    return tuple(
        Stratum(
            name,
            int(strata.sizes[index]),
            float(strata.areas[index]) / HECTARE if known_area else None,
            float(shares[index]),
            int(number[index]),
        )
        for index, name in enumerate(strata.classes.names)
    )
