"""Ground area of pixels: planar where the CRS is made for it, on the ellipsoid where it is not."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from rsseg.grid import Grid

HECTARE = 10_000.0
"""Square metres in a hectare."""

_STRETCHED = {"merc", "webmerc", "eqc", "mill"}
"""PROJ's names of the cylindrical projections whose areas grow without bound towards the poles."""


def is_planar(crs: str | None) -> bool:
    """Return whether areas may be measured in the plane of a CRS.

    Not so in degrees, in Web Mercator and its like (Mercator, equirectangular, Miller): there the
    planar area of one square metre depends on the latitude. Without a CRS the plane is all there
    is.

    Args:
        crs: WKT, or anything else that pyproj understands, or None.
    """
    if crs is None:
        return True
    found = CRS.from_user_input(crs)
    return not (found.is_geographic or _projection(found) in _STRETCHED)


def row_areas(grid: Grid) -> NDArray[np.float64]:
    """Return the ground area of one pixel of each row, (H,) float64.

    Square metres; square pixel units where there is no CRS or it has no known unit. Where areas
    are not planar they are those of the ellipsoid between the pixel's parallels and meridians,
    which is exact for a grid with north (or south, east, west) up. In a grid that is turned by
    another angle a row crosses parallels: every pixel of it counts as its middle one.

    Args:
        grid: where the pixels lie.
    """
    pixel = abs(grid.transform.determinant)
    if grid.crs is None:
        return np.full(grid.shape[0], pixel)
    crs = CRS.from_user_input(grid.crs)
    if is_planar(grid.crs):
        return np.full(grid.shape[0], pixel * _unit(crs) ** 2)
    # A box of the pixel's area and height around the middle pixel of each row, sides north-south.
    height = abs(grid.transform.d) + abs(grid.transform.e)
    width = pixel / height
    transform, col = grid.transform, grid.shape[1] / 2
    rows = np.arange(grid.shape[0], dtype=np.float64) + 0.5
    x = transform.a * col + transform.b * rows + transform.c
    y = transform.d * col + transform.e * rows + transform.f
    west, south = _to_radians(crs, x - width / 2, y - height / 2)
    east, north = _to_radians(crs, x + width / 2, y + height / 2)
    return _between(crs, south, north) * (east - west)


def _projection(crs: CRS) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a PROJ string does not say all of a CRS
        try:
            return str(crs.to_dict().get("proj", ""))
        except CRSError:  # PROJ has none for local (engineering) CRSs
            return ""


def _unit(crs: CRS) -> float:
    """Return the metres in a unit of a CRS's axes; 1 where that is not known."""
    return float(crs.axis_info[0].unit_conversion_factor) or 1.0 if crs.axis_info else 1.0


def _to_radians(
    crs: CRS, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return longitudes and latitudes in radians; latitudes end at the poles."""
    if crs.is_geographic:
        lon, lat = x * _unit(crs), y * _unit(crs)
    else:
        to_geographic = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        lon, lat = (np.radians(v) for v in to_geographic.transform(x, y))
    return lon, np.clip(lat, -math.pi / 2, math.pi / 2)


def _between(
    crs: CRS, south: NDArray[np.float64], north: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the area between two parallels for one radian of longitude, square metres.

    Simpson's rule on M N cos(lat), M and N the radii of curvature in the meridian and across it.
    It is right to 1e-11 for a degree of latitude, and unlike the closed form it loses no digits
    where the parallels are centimetres apart.
    """
    ellipsoid = crs.ellipsoid or CRS.from_epsg(4326).ellipsoid
    assert ellipsoid is not None
    equatorial, polar = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    eccentricity2 = 1 - (polar / equatorial) ** 2

    def density(lat: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cos(lat) * polar**2 / (1 - eccentricity2 * np.sin(lat) ** 2) ** 2

    middle = density((south + north) / 2)
    return (density(south) + 4 * middle + density(north)) / 6 * (north - south)
