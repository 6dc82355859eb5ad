"""Vector files: features in a raster's CRS, their classes, and the pixels they draw."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.features import rasterize

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.remote import as_path, gdal_name

_LAYER_KEY = "|layername="


def split_layer(path: Path) -> tuple[Path, str | None]:
    """Split ``file.gpkg|layername=roofs``, QGIS's way to name a layer, into file and layer.

    Raises:
        InputError: there is no such file.
    """
    name, key, layer = str(path).partition(_LAYER_KEY)
    file = as_path(name)
    if not file.exists():
        raise InputError(f"{file}: no such file; check the path")
    return file, layer if key else None


def is_vector(path: Path) -> bool:
    """Return whether OGR opens the file and finds at least one layer in it.

    Raises:
        InputError: there is no such file.
    """
    file, _ = split_layer(path)
    try:
        return len(pyogrio.list_layers(gdal_name(file))) > 0
    except DataSourceError:
        return False


def field_names(path: Path) -> list[str]:
    """Return the attribute fields of the layer that ``read_features`` would read.

    Raises:
        InputError: missing or unreadable file, no such layer.
    """
    file, layer = _choose_layer(path)
    return [str(name) for name in pyogrio.read_info(gdal_name(file), layer=layer)["fields"]]


def read_table(path: Path) -> geopandas.GeoDataFrame:
    """Return the features as they are in the file, Z dropped, in the file's own CRS.

    Args:
        path: anything OGR reads; ``path|layername=x`` names a layer, else the first layer with
            geometries is taken.

    Raises:
        InputError: missing or unreadable file, no such layer, no geometries.
    """
    file, layer = _choose_layer(path)
    try:
        table = pyogrio.read_dataframe(gdal_name(file), layer=layer, force_2d=True)
    except (DataSourceError, DataLayerError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: layer {layer!r} cannot be read ({error})") from error
    if not isinstance(table, geopandas.GeoDataFrame):
        raise InputError(f"{file}: layer {layer!r} has no geometries; give a layer with features")
    return table


def read_features(path: Path, crs: str | None) -> geopandas.GeoDataFrame:
    """Return a file's features in the CRS of a raster, ready to be met with its pixels.

    Null and empty geometries and those that the CRS cannot express are dropped, invalid polygons
    are repaired, Z is dropped. Features without a CRS are taken to be in the raster's; where the
    raster has none, coordinates stay as they are.

    Args:
        path: anything OGR reads; ``path|layername=x`` names a layer.
        crs: the raster's CRS as WKT, or None.

    Raises:
        InputError: missing or unreadable file, or no feature is left.
    """
    table = read_table(path)
    if crs is not None:
        table = table.set_crs(crs) if table.crs is None else table.to_crs(crs)
    geometries = table.geometry.to_numpy()
    there = ~shapely.is_missing(geometries) & ~shapely.is_empty(geometries)
    if not there.any():
        raise InputError(f"{path}: no features in it ({len(table)} rows without a geometry)")
    finite = there & np.isfinite(shapely.bounds(geometries)).all(axis=1)
    if not finite.any():
        raise InputError(
            f"{path}: no feature can be placed in the raster's CRS; check the file's own CRS"
        )
    kept = table[finite].reset_index(drop=True)
    kept = kept.set_geometry(repaired(kept.geometry.to_numpy()), crs=kept.crs)
    return kept[~kept.geometry.is_empty].reset_index(drop=True)


def repaired(geometries: NDArray[Any]) -> NDArray[Any]:
    """Make invalid polygons valid; (N,) shapely geometries in and out.

    Only polygons: a degenerate line is still a place on the ground, and repairing would drop it.
    """
    broken = (shapely.get_dimensions(geometries) == 2) & ~shapely.is_valid(geometries)
    fixed = geometries.copy()
    fixed[broken] = shapely.make_valid(geometries[broken], method="structure", keep_collapsed=False)
    return fixed


def transformed(geometries: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """Apply an affine transform to geometries; (N,) shapely geometries in and out."""
    matrix = np.array([[affine.a, affine.d], [affine.b, affine.e]])
    shift = np.array([affine.c, affine.f])
    moved: NDArray[Any] = shapely.transform(geometries, lambda xy: xy @ matrix + shift)
    return moved


def classify(
    features: geopandas.GeoDataFrame,
    classes: Classes,
    field: str | None,
    only: str | None,
    source: Path | str,
) -> NDArray[np.uint8]:
    """Return the class index of every feature, (N,) uint8.

    Args:
        features: N features.
        classes: the classes.
        field: the field that holds class names or ids, or None.
        only: the one class (name or id) that all features are of, or None.
        source: what to call the file in messages.

    Raises:
        InputError: a value or class that is unknown, a field that is missing, or no way to tell.
    """
    if field is not None and only is not None:
        raise InputError(f"{source}: --field and --class exclude each other; give one of them")
    if field is not None:
        return _classify_by_field(features, classes, field, source)
    if only is None and len(classes.foreground) != 1:
        names = ", ".join(classes.names[i] for i in classes.foreground)
        raise InputError(
            f"{source}: which of the classes ({names}) its features are is not said; "
            "give --field NAME (of a field with class names or ids) or --class NAME"
        )
    index = classes.foreground[0] if only is None else classes.index(only)
    return np.full(len(features), index, np.uint8)


def meets(features: geopandas.GeoDataFrame, part: Grid) -> bool:
    """Return whether any feature, in the grid's CRS, shares a point with a grid."""
    outline = shapely.Polygon(part.corners)
    return bool(features.sindex.query(outline, predicate="intersects").size)


def areal(features: geopandas.GeoDataFrame, source: Path | str, use: str) -> geopandas.GeoDataFrame:
    """Return the polygons among the features.

    Args:
        features: what a file holds.
        source: what to call the file in messages.
        use: what polygons are needed for, for messages.

    Raises:
        InputError: there are none.
    """
    flat = shapely.get_dimensions(features.geometry.to_numpy()) == 2
    if not flat.any():
        raise InputError(f"{source}: no polygons in it; {use}")
    return features[flat].reset_index(drop=True)


def rasterise(
    features: geopandas.GeoDataFrame,
    class_indices: NDArray[np.uint8],
    grid: Grid,
    window: Window | None,
    fill: int,
) -> NDArray[np.uint8]:
    """Return the class map that the features draw on a window of a grid.

    A polygon takes the pixels whose centre it holds; later features paint over earlier ones.

    Args:
        features: N features in the grid's CRS.
        class_indices: (N,) uint8, the value each feature is drawn with.
        grid: the raster's grid.
        window: the part to draw, which may reach beyond the raster; None for all of it.
        fill: the value of pixels without a feature.

    Returns:
        (h, w) uint8.
    """
    part = grid if window is None else grid[window]
    # Sorted: the order in the file decides who paints over whom.
    near = np.sort(features.sindex.query(shapely.Polygon(part.corners)))
    if part.window.area == 0 or near.size == 0:
        return np.full(part.shape, fill, np.uint8)
    shapes = zip(features.geometry.to_numpy()[near], class_indices[near].tolist(), strict=True)
    drawn: NDArray[np.uint8] = rasterize(
        shapes, out_shape=part.shape, fill=fill, transform=part.transform, dtype="uint8"
    )
    return drawn


@dataclass(frozen=True)
class Area:
    """Polygons that say which part of a raster is wanted (``--aoi``).

    Pickles to its two arguments and reads the file again where it arrives.

    Args:
        path: anything OGR reads, in any CRS.
        grid: the raster's grid.

    Raises:
        InputError: missing or unreadable file, no polygons, or none of them meets the raster.
    """

    path: Path
    grid: Grid

    def __post_init__(self) -> None:
        if not self.covers(self.grid.window):
            raise InputError(
                f"{self.path}: its polygons lie wholly outside the raster; "
                "check that both are of the same place and have the right CRS"
            )

    def __reduce__(self) -> tuple[type[Area], tuple[Path, Grid]]:
        return Area, (self.path, self.grid)

    @cached_property
    def polygons(self) -> geopandas.GeoDataFrame:
        """The polygons in the grid's CRS."""
        features = read_features(self.path, self.grid.crs)
        return areal(features, self.path, "an area is given by polygons")

    def covers(self, window: Window) -> bool:
        """Return whether any polygon meets the window."""
        return meets(self.polygons, self.grid[window])

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return which pixels of the window have their centre in a polygon, (h, w) bool."""
        inside = np.ones(len(self.polygons), np.uint8)
        return rasterise(self.polygons, inside, self.grid, window, fill=0).astype(bool)


def _choose_layer(path: Path) -> tuple[Path, str]:
    file, wanted = split_layer(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layers = pyogrio.list_layers(gdal_name(file))
    except DataSourceError as error:
        raise InputError(
            f"{file}: not a vector file that GDAL can read ({error}); "
            "give a GeoPackage, GeoJSON, Shapefile or the like"
        ) from error
    names = [str(name) for name, _ in layers]
    if not names:
        raise InputError(f"{file}: no vector layer in it; give a file with features")
    if wanted is not None and wanted not in names:
        raise InputError(f"{file}: no layer {wanted!r}; the layers are {', '.join(names)}")
    spatial = (str(name) for name, geometry_type in layers if geometry_type is not None)
    return file, wanted or next(spatial, names[0])


def _classify_by_field(
    features: geopandas.GeoDataFrame, classes: Classes, field: str, source: Path | str
) -> NDArray[np.uint8]:
    fields = [str(name) for name in features.columns if name != features.geometry.name]
    if field not in fields:
        there = f"the fields are {', '.join(fields)}" if fields else "it has no fields"
        raise InputError(f"{source}: no field {field!r}; {there}")
    empty = int(features[field].isna().sum())
    if empty:
        raise InputError(
            f"{source}: field {field!r} is empty in {empty} of {len(features)} features; "
            "give every feature a class or remove it"
        )
    values = features[field].astype(object)
    indices: dict[Any, int] = {}
    for value in values.unique():
        try:
            indices[value] = classes.index(value)
        except InputError as error:
            raise InputError(f"{source}: field {field!r}: {error}") from None
    return np.array([indices[value] for value in values], np.uint8)
