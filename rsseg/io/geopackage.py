"""GeoPackages: layers written with their style, equal bytes for equal features."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import geopandas
import pyogrio

from rsseg.errors import InputError
from rsseg.io.files import check_output
from rsseg.io.style import EPOCH, embed_style

_CLOCK = "OGR_CURRENT_DATE"


@contextmanager
def fixed_time() -> Iterator[None]:
    """Have GDAL take ``EPOCH`` for the time of all that it changes in GeoPackages meanwhile.

    It is not enough to set the time afterwards: how often GDAL stores it depends on the clock, and
    SQLite counts that in the file's header.
    """
    before = pyogrio.get_gdal_config_option(_CLOCK)
    pyogrio.set_gdal_config_options({_CLOCK: EPOCH})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({_CLOCK: before})


def check_geopackage(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Make sure that a GeoPackage can be written; see ``check_output``.

    Raises:
        InputError: see ``check_output``; or the one that is there is open in another program, whose
            journal would be taken for the new one's.
    """
    check_output(path, overwrite, inputs)
    if path.with_name(path.name + "-wal").exists():
        raise InputError(f"{path}: is open in another program; close it there first")


def write_layer(
    path: Path,
    layer: str,
    features: geopandas.GeoDataFrame,
    geometry_type: str,
    style: str,
) -> None:
    """Write a GeoPackage of one layer, which QGIS opens in the style embedded.

    Args:
        path: the file, not yet at its final name; one that is there is replaced.
        layer: the layer's name.
        features: the features; without a CRS, the layer has none.
        geometry_type: OGR's name for their type, ``Polygon`` for example.
        style: a QML document.

    Raises:
        RunError: the style cannot be stored.
    """
    with fixed_time(), warnings.catch_warnings():
        # Chips have no CRS, and no need for one.
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_dataframe(
            features, path, layer=layer, driver="GPKG", geometry_type=geometry_type
        )
    embed_style(path, layer, style)
