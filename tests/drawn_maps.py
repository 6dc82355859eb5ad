"""Class maps on disk and what is read back of their polygons, for the tests of vectorize."""

from __future__ import annotations

import numpy as np
import pyogrio
import shapely
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM, write_raster
from numpy.testing import assert_allclose
from rasterio.features import rasterize, shapes
from rasterio.transform import from_origin

from rsseg.classes import Classes

ENDINGS = (".gpkg", ".geojson", ".fgb", ".shp")
NAMES = ("other", "été's end", "a class of a long name, " + 5 * "very long, " + "indeed", "b")
IDS = (0, 7, 3, 254)
CLASSES = Classes(NAMES, IDS, ((9, 9, 9), (10, 20, 30), (255, 0, 0), (0, 0, 255)))
SHAPE = (60, 83)
TINY = Affine(2e-4, 0, 30.0, 0, -3e-4, 61.0)
"""A transform in degrees."""

PLACES = {
    **{name: (transform, UTM) for name, transform in TRANSFORMS.items()},
    "no CRS": (NORTH_UP, None),
    "local CRS": (NORTH_UP, 'LOCAL_CS["site",UNIT["metre",1]]'),
    "feet": (NORTH_UP, "EPSG:2263"),
    "degrees": (TINY, "EPSG:4326"),
    "web mercator": (from_origin(4.3e6, -7e5, 0.0746, 0.0746), "EPSG:3857"),
}


def class_ids(seed=0, shape=SHAPE):
    """Class ids (H, W): blocks with single pixels strewn in, and a corner of nodata."""
    random = np.random.default_rng(seed)
    rows, cols = shape
    coarse = random.integers(0, 4, (rows // 6 + 1, cols // 6 + 1))
    indices = coarse.repeat(6, 0).repeat(6, 1)[:rows, :cols]
    strewn = random.random(shape) < 0.08
    indices[strewn] = random.integers(0, 4, strewn.sum())
    ids = np.array(IDS, np.uint8)[indices]
    ids[: rows // 4, : cols // 4] = 255
    return ids


def draw(folder, ids=None, transform=NORTH_UP, crs=UTM, name="map.tif", classes=CLASSES):
    ids = class_ids() if ids is None else np.asarray(ids, np.uint8)
    return write_raster(folder / name, ids, transform, crs, nodata=255, classes=classes)


def layer(path):
    """All features of a vector file, the fields and the geometries as arrays."""
    meta, _, geometries, values = pyogrio.raw.read(path, layer=path.stem)
    fields = dict(zip(meta["fields"].tolist(), values, strict=True))
    return fields, shapely.from_wkb(geometries), meta


def regions(ids):
    """What GDAL's own polygoniser finds: class id → number of regions."""
    found = [int(value) for _, value in shapes(ids, ids != 255, connectivity=4)]
    return {class_id: found.count(class_id) for class_id in set(found)}


def counted(class_ids):
    return dict(zip(*(v.tolist() for v in np.unique(class_ids, return_counts=True)), strict=True))


def burnt(geometries, values, transform, shape=SHAPE):
    return rasterize(
        zip(geometries, values, strict=True), shape, 255, transform=transform, dtype="uint8"
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_covers(geometries, ids, pixel):
    """The polygons are valid and cover what has a class once: no gaps, no overlaps."""
    assert shapely.is_valid(geometries).all()
    assert shapely.coverage_is_valid(geometries)
    valid = np.count_nonzero(ids != 255) * pixel
    moved = shapely.transform(
        geometries, lambda xy: xy - np.floor(shapely.total_bounds(geometries)[:2])
    )
    union = shapely.area(shapely.union_all(moved))
    assert_allclose([union, shapely.area(moved).sum()], valid, rtol=1e-9)


def surely(folder, values, **options):
    return write_raster(folder / "sure.tif", np.asarray(values, np.uint8), nodata=255, **options)
