"""Footprints with right angles as a vector file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from rsseg.io.polygon_file import KEY, PolygonTable
from rsseg.ops.rightangles import right_angled, without_overlaps
from rsseg.ops.rings import Polygons

GIVEN, CHANGED = "given", "changed"
"""Columns: polygons on the corners of pixels, and the same with right angles (WKB)."""


class FootprintTable(PolygonTable):
    """A ``PolygonTable`` whose polygons get right angles; none overlaps another.

    Whether two overlap is only known when all are there, so all of them are held in memory when
    they are written.
    """

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """Metres in a pixel along rows and columns, in the middle of the map.

        Angles are those on the ground there.
        """
        transform = self.grid.transform
        plane = math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)
        return self.grid.ground_steps or plane

    def shape_columns(self, polygons: Polygons) -> dict[str, pa.Array]:
        """Return the polygons in pixels, as they are and with right angles."""
        rings = polygons.ring_offsets, polygons.polygon_offsets
        places = polygons.points[:, ::-1].astype(np.float64)
        given = shapely.from_ragged_array(shapely.GeometryType.POLYGON, places, rings)
        pixel = math.sqrt(math.prod(self._scale))
        changed = right_angled(given, pixel=pixel, scale=self._scale)
        return {
            name: pa.array(shapely.to_wkb(shapes), pa.binary())
            for name, shapes in ((GIVEN, given), (CHANGED, changed))
        }

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the polygons in their order, with the columns of the file and others."""
        tables = list(self.shelves())
        if not tables:
            return
        table = pa.concat_tables(tables)
        table = table.take(pc.sort_indices(table, sort_keys=[(KEY, "ascending")]))
        given, changed = (shapely.from_wkb(table[name].to_numpy()) for name in (GIVEN, CHANGED))
        for name, column in self.placed(_in_pixels(without_overlaps(given, changed))).items():
            table = table.append_column(name, column)
        yield from table.combine_chunks().to_batches()


def _in_pixels(shapes: NDArray[Any]) -> Polygons:
    """Return polygons, columns and rows for x and y, as ``Polygons``."""
    # Rows grow downwards: what is counterclockwise on the picture is clockwise in numbers.
    turned = shapely.orient_polygons(shapes, exterior_cw=True)
    _, places, (ring_offsets, polygon_offsets) = shapely.to_ragged_array(turned)
    return Polygons(
        polygon_offsets=polygon_offsets,
        ring_offsets=ring_offsets,
        points=places[:, ::-1],
        doubled_area=2 * shapely.area(turned),
    )
