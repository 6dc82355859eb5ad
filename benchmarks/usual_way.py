"""Polygons of a class map the usual way: all of it in memory, one call.

Usage: python benchmarks/usual_way.py MAP [OUT]

Only counts the polygons of ``rasterio.features.shapes``, or writes them to a GeoPackage by way of
shapely and geopandas.
"""

from __future__ import annotations

import sys

import rasterio
from rasterio.features import shapes


def main() -> None:
    """Draw the polygons."""
    with rasterio.open(sys.argv[1]) as dataset:
        labels, transform, crs = dataset.read(1), dataset.transform, dataset.crs
    found = shapes(labels, mask=labels != 255, transform=transform)
    if len(sys.argv) == 2:
        print(sum(1 for _ in found))
        return
    import geopandas
    from shapely.geometry import shape

    drawn = [(shape(polygon), int(value)) for polygon, value in found]
    geometry, ids = zip(*drawn, strict=True)
    frame = geopandas.GeoDataFrame({"class_id": ids}, geometry=list(geometry), crs=crs)
    frame.to_file(sys.argv[2], driver="GPKG")
    print(len(frame))


if __name__ == "__main__":
    main()
