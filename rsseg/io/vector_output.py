"""Vector files as outputs: which there are, whether they can be written, how they appear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyproj import Transformer
from pyproj.exceptions import ProjError

from rsseg.errors import InputError
from rsseg.io.files import check_output, replacing
from rsseg.io.geopackage import check_geopackage

DRIVERS = {
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".fgb": "FlatGeobuf",
    ".shp": "ESRI Shapefile",
}
"""GDAL's driver for each ending."""

WGS84 = "EPSG:4326"
"""The CRS of GeoJSON."""

PARTS_OF_A_SHAPEFILE = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx", ".shp.xml")
"""What lies beside a ``.shp`` and would be wrong beside another."""


def check_vectors(out: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Make sure that a vector file can be written and that none of the user's is lost by it.

    Args:
        out: the file to be written.
        overwrite: whether a file that is already there may be replaced, with all its parts.
        inputs: files that the same run reads.

    Raises:
        InputError: no known ending, a name that GeoPackages keep for themselves, one that is open
            in another program, or see ``check_output``.
    """
    if out.suffix.lower() not in DRIVERS:
        raise InputError(f"{out}: not a vector file; give a name that ends in {', '.join(DRIVERS)}")
    if out.suffix.lower() == ".gpkg":
        _check_layer(out)
        check_geopackage(out, overwrite, inputs)
    for path in (out, *(part for part in _parts(out) if part.exists())):
        check_output(path, overwrite, inputs)


def check_degrees(out: Path, crs: str | None, source: Path) -> None:
    """Make sure that a map's polygons can be longitudes and latitudes where the format wants that.

    Args:
        out: the vector file to be written.
        crs: the map's.
        source: what to call the map in messages.

    Raises:
        InputError: GeoJSON is to be written of a map that has no CRS, or one that lies nowhere.
    """
    if out.suffix.lower() != ".geojson":
        return
    try:
        if crs is not None:
            Transformer.from_crs(crs, WGS84, always_xy=True)
            return
        found = "has no CRS"
    except ProjError:
        found = "has a CRS of its own"
    raise InputError(
        f"{source}: {found}, and GeoJSON is in longitudes and latitudes; "
        "give another format, or assign a CRS with gdal_edit.py -a_srs"
    )


def publish(written: Path, out: Path, overwrite: bool) -> None:
    """Give a finished vector file its final name; of several files ``out`` itself comes last.

    Args:
        written: the file, of the same name in another folder of the same disk.
        out: its final path.
        overwrite: whether a file that is already there may be replaced.

    Raises:
        InputError: see ``check_output``.
        RunError: it cannot take its final name.
    """
    for part in _parts(out):
        new = written.with_suffix(part.name.removeprefix(out.stem))
        if new.exists():
            _move(new, part, overwrite)
        else:
            part.unlink(missing_ok=True)
    _move(written, out, overwrite)


def _check_layer(out: Path) -> None:
    name = out.stem.lower()
    if name.startswith(("gpkg", "sqlite_")) or name == "layer_styles":
        raise InputError(
            f"{out}: GeoPackages keep the name {out.stem!r} for themselves; give another name"
        )


def _parts(out: Path) -> list[Path]:
    """Return the files that belong to a vector file besides itself, there or not."""
    if out.suffix.lower() != ".shp":
        return []
    return [out.with_suffix(suffix) for suffix in PARTS_OF_A_SHAPEFILE]


def _move(written: Path, path: Path, overwrite: bool) -> None:
    with replacing(path, overwrite=overwrite) as temporary:
        written.replace(temporary)
