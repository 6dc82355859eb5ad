"""Polygons of a map as a vector file, from batches that come in any order and of any number."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from rsseg.classes import Classes
from rsseg.errors import RunError
from rsseg.grid import Grid
from rsseg.io.geopackage import fixed_time
from rsseg.io.ground import is_planar, row_areas
from rsseg.io.mapfile import SHARE_SCALE
from rsseg.io.style import EPOCH
from rsseg.io.vector_output import DRIVERS, WGS84
from rsseg.ops.rings import Polygons
from rsseg.ops.strips import Finished
from rsseg.progress import Step

DEGREE_DIGITS = 9
"""Decimals of longitudes and latitudes in GeoJSON: a tenth of a millimetre."""

BATCH_BYTES = 32_000_000
"""About how much is handed to GDAL at a time."""

PART_POINTS = 500_000
"""About how many points are brought to coordinates at a time."""

SHELF_PIXELS = 8_000_000
"""About how many pixels of the map a shelf stands for."""

KEY, AREA, GEOMETRY = "key", "area_m2", "geometry"
"""Columns: what the polygons are ordered by, and what depends on their corners."""

_OPTIONS = {
    "GeoJSON": {"RFC7946": "YES", "COORDINATE_PRECISION": DEGREE_DIGITS},
    # Otherwise it holds the day on which it was written.
    "ESRI Shapefile": {"DBF_DATE_LAST_UPDATE": EPOCH[:10]},
}


class PolygonTable:
    """The polygons of a map, kept in a folder until a vector file can be written in their order.

    They are ordered by the first pixel of each, however they were cut into batches: each goes to
    the shelf of the rows its first pixel lies in, and is sorted when the shelf is read.

    Args:
        folder: where they are kept.
        grid: the map's.
        classes: of the map.
        wanted: indices of the classes whose polygons are kept.
        with_confidence: whether the values summed up over the regions are confidences.
        degrees: whether coordinates are longitudes and latitudes (WGS 84) and not the map's.

    Attributes:
        grid: as given.
        counts: (K,) int64, polygons of each class so far.
        points: points of all polygons so far.
    """

    def __init__(
        self,
        folder: Path,
        grid: Grid,
        classes: Classes,
        *,
        wanted: Collection[int],
        with_confidence: bool,
        degrees: bool,
    ) -> None:
        self.counts = np.zeros(len(classes), np.int64)
        self.points = 0
        self._folder = folder
        self.grid = grid
        self._classes = classes
        self._wanted = np.isin(np.arange(256), list(wanted))
        self._with_confidence = with_confidence
        self._shelf_keys = grid.shape[1] * max(1, SHELF_PIXELS // grid.shape[1])
        self._ground = Ground(grid)
        self._placing = Placing(grid, degrees=degrees)
        self._parts = 0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, regions: Finished, polygons: Polygons) -> None:
        """Keep N polygons, ordered by first pixel, of which ``regions`` knows the sums."""
        chosen = np.flatnonzero(self._wanted[regions.classes])
        sizes = np.diff(polygons.ring_offsets[polygons.polygon_offsets])[chosen]
        for start, stop in _runs(sizes, PART_POINTS):
            self._keep(regions, polygons, chosen[start:stop])

    def _keep(self, regions: Finished, polygons: Polygons, chosen: NDArray[np.int64]) -> None:
        part = polygons.take(chosen)
        table = self._attributes(regions, chosen)
        for name, column in self.shape_columns(part).items():
            table = table.append_column(name, column)
        shelves = regions.first[chosen] // self._shelf_keys
        starts = np.flatnonzero(np.diff(shelves, prepend=-1))
        for start, stop in pairwise([*starts, len(shelves)]):
            path = self._folder / f"{shelves[start]:08d}-{self._parts:08d}.arrow"
            rows = table.slice(start, stop - start)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
        self._parts += 1
        self.counts += np.bincount(regions.classes[chosen], minlength=len(self._classes))
        self.points += len(part.points)

    def _attributes(self, regions: Finished, chosen: NDArray[np.int64]) -> pa.Table:
        classes = regions.classes[chosen]
        columns = {
            KEY: regions.first[chosen],
            "class_id": np.array(self._classes.ids, np.int32)[classes],
            "class_name": pa.array(self._classes.names).take(classes),
        }
        if self._with_confidence:
            sums, counted = regions.sums[chosen, 2], regions.sums[chosen, 3]
            with np.errstate(invalid="ignore"):
                mean = np.round(sums / counted / SHARE_SCALE, 4)
            columns["confidence"] = pa.array(mean, from_pandas=True)
        return pa.table(columns)

    def shape_columns(self, polygons: Polygons) -> dict[str, pa.Array]:
        """Return the columns that polygons are kept in: those of the file."""
        return self.placed(polygons)

    def placed(self, polygons: Polygons) -> dict[str, pa.Array]:
        """Return the area and the geometry (WKB) of polygons, as they come into the file."""
        rings = polygons.ring_offsets, polygons.polygon_offsets
        places = self._placing(polygons)
        shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, places, rings)
        wkb = pa.array(shapely.to_wkb(shapes), pa.binary())
        return {AREA: pa.array(self._ground.areas(polygons)), GEOMETRY: wkb}

    def shelves(self) -> Iterator[pa.Table]:
        """Yield what is kept, shelf by shelf; it lies in memory only where it is looked at."""
        for shelf in sorted({path.name.partition("-")[0] for path in self._folder.glob("*.arrow")}):
            files = sorted(self._folder.glob(f"{shelf}-*.arrow"))
            maps = [pa.memory_map(str(path)) for path in files]
            yield pa.concat_tables([pa.ipc.open_file(one).read_all() for one in maps])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the polygons in their order, with the columns of the file and others."""
        for table in self.shelves():
            order = pc.sort_indices(table, sort_keys=[(KEY, "ascending")])
            sizes = pc.binary_length(table[GEOMETRY]).to_numpy()[order.to_numpy()]
            for start, stop in _runs(sizes, BATCH_BYTES):
                part = table.take(order.slice(start, stop - start))
                yield from part.combine_chunks().to_batches()

    def write(self, path: Path, layer: str, step: Step) -> None:
        """Write the polygons as a vector file, one layer, GDAL's driver by the ending.

        Args:
            path: the file, not yet at its final name.
            layer: name of the layer.
            step: is told of the polygons written.

        Raises:
            RunError: GDAL cannot write it, for want of disk space for example.
        """
        driver = DRIVERS[path.suffix.lower()]
        schema = self._schema()

        failures: list[BaseException] = []

        def told() -> Iterator[pa.RecordBatch]:
            try:
                for batch in self.batches():
                    yield batch.select(schema.names)
                    step.advance(batch.num_rows)
            except BaseException as error:  # Arrow would make another one of it: Ctrl+C too
                failures.append(error)
                raise

        crs = WGS84 if self._placing.degrees else self.grid.crs
        with fixed_time(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            try:
                pyogrio.write_arrow(
                    pa.RecordBatchReader.from_batches(schema, told()),
                    path,
                    layer=layer,
                    driver=driver,
                    geometry_name=GEOMETRY,
                    geometry_type="Polygon",
                    crs=crs,
                    layer_options=_OPTIONS.get(driver),
                )
            except RuntimeError as error:  # all of pyogrio's are
                if failures:
                    raise failures[0] from None
                raise RunError(
                    f"{path.name}: writing failed ({error}); is the disk full?"
                ) from error
        self._verify(path, layer)

    def _verify(self, path: Path, layer: str) -> None:
        """Raise RunError for a file cut short: what fails at closing, GDAL does not tell."""
        if path.suffix.lower() == ".geojson":
            # Reading it takes long, but how it ends is enough.
            with path.open("rb") as file:
                file.seek(-min(64, path.stat().st_size), os.SEEK_END)
                whole = file.read().rstrip().endswith(b"}")
        else:
            whole = _last_is_there(path, layer, len(self))
        if not whole:
            raise RunError(f"{path.name}: what was written is incomplete; is the disk full?")

    def _schema(self) -> pa.Schema:
        fields = [("class_id", pa.int32()), ("class_name", pa.string()), (AREA, pa.float64())]
        if self._with_confidence:
            fields.append(("confidence", pa.float64()))
        return pa.schema([*fields, (GEOMETRY, pa.binary())])


class Placing:
    """Brings polygons from corners of pixels to coordinates.

    Args:
        grid: the map's.
        degrees: whether to longitudes and latitudes (WGS 84) and not to the map's CRS.
    """

    def __init__(self, grid: Grid, *, degrees: bool) -> None:
        self.degrees = degrees
        self._transform = grid.transform
        self._to_degrees = (
            Transformer.from_crs(grid.crs, WGS84, always_xy=True) if degrees else None
        )

    def __call__(self, polygons: Polygons) -> NDArray[np.float64]:
        """Return x and y of the points, (V, 2) float64; exteriors run counterclockwise."""
        points = polygons.points
        if self._transform.determinant > 0:  # south is up: what turned left now turns right
            offsets = polygons.ring_offsets
            ends = np.repeat(offsets[:-1] + offsets[1:] - 1, np.diff(offsets))
            points = points[ends - np.arange(len(points))]
        rows, cols = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
        a, b, c, d, e, f = tuple(self._transform)[:6]
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        if self._to_degrees is not None:
            x, y = self._to_degrees.transform(x, y)
        return np.stack([x, y], axis=1)


class Ground:
    """Measures polygons on the ground.

    In the plane where the CRS is made for it, else on the ellipsoid, along geodesics.

    Args:
        grid: the map's.
    """

    def __init__(self, grid: Grid) -> None:
        self._pixel = float(row_areas(grid)[0])
        self._geod: Geod | None = None
        if not is_planar(grid.crs):
            crs = CRS.from_user_input(grid.crs)
            self._geod = crs.get_geod()
            self._placing = Placing(grid, degrees=False)
            self._to_geodetic = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)

    def areas(self, polygons: Polygons) -> NDArray[np.float64]:
        """Return the area of each polygon, (N,) float64 in square metres."""
        if self._geod is None:
            return polygons.doubled_area.astype(np.float64) * (self._pixel / 2)
        places = self._placing(polygons)
        lon, lat = self._to_geodetic.transform(places[:, 0], places[:, 1])
        offsets = polygons.ring_offsets
        rings = [
            self._geod.polygon_area_perimeter(lon[start:stop], lat[start:stop])[0]
            for start, stop in pairwise(offsets)
        ]
        # Holes run the other way round and have negative areas.
        areas: NDArray[np.float64] = np.add.reduceat(rings, polygons.polygon_offsets[:-1])
        return areas


def _last_is_there(path: Path, layer: str, count: int) -> bool:
    try:
        found = pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"]
        last = pyogrio.read_dataframe(path, layer=layer, skip_features=max(0, count - 1))
    except (RuntimeError, ValueError):  # pyogrio has both for what it cannot read
        return False
    return bool(found == count and last.geometry.notna().sum() == min(count, 1))


def _runs(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield runs that add up to ``most`` or little more; at least one item each."""
    groups = np.cumsum(sizes) // most
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    yield from pairwise([*starts.tolist(), len(sizes)])
