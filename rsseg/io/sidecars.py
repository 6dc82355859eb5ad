"""Files beside a raster: the names and the style of its classes, and what other programs left.

GDAL and every GIS built on it read ``map.tif.aux.xml``, QGIS reads ``map.qml``. Both only help to
show the map: what rsseg itself needs is in the map's tags.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.files import check_output, replacing
from rsseg.io.style import category_names_xml, raster_qml

OF_ONE_RASTER = (".aux.xml", ".ovr", ".msk")
"""What GDAL appends to a raster's name for statistics, overviews and masks of its pixels."""


def style_path(path: Path) -> Path:
    """Return where QGIS looks for the style of a raster."""
    return path.with_suffix(".qml")


def check_sidecars(
    path: Path, classes: Classes | None, overwrite: bool, sources: Iterable[Path] = ()
) -> None:
    """Make sure that nothing of the user's is lost, or shown wrongly, by a raster's side files.

    Args:
        path: the raster to be written.
        classes: its classes, if it has any.
        overwrite: whether side files of another raster of that name may be replaced.
        sources: rasters that the user will want to see unstyled.

    Raises:
        InputError: a side file is there that is not exactly the one to be written, or QGIS would
            show a source in the style of the map.
    """
    ours = _documents(path, classes)
    for file in {*ours, *_leftovers(path)}:
        if file.exists():
            is_ours = file in ours and file.is_file() and file.read_bytes() == ours[file]
            check_output(file, overwrite or is_ours)
    for source in sources if classes is not None else ():
        if source != path and style_path(source).resolve() == style_path(path).resolve():
            raise InputError(
                f"{path}: QGIS would draw {source} in the colours of its classes, for both would "
                f"share {style_path(path).name}; give the map another name"
            )


def write_sidecars(
    path: Path, classes: Classes | None, *, former: Classes | None, temporary: Path
) -> None:
    """Bring the side files in line with a raster that is about to take its name.

    Args:
        path: the raster.
        classes: its classes, if it has any.
        former: the classes of the raster that is replaced. A style that shows just these goes;
            one that the user made stays.
        temporary: where the raster is now. What GDAL could not put into the file itself (a CRS
            that GeoTIFF knows no keys for) it has put beside it.

    Raises:
        RunError: a file cannot take its place.
    """
    documents = _documents(path, classes)
    beside, names = _names_path(temporary), _names_path(path)
    if beside.exists():
        documents[names] = _merged(beside, documents.get(names))
    for left in _leftovers(path):
        if left not in documents:
            left.unlink(missing_ok=True)
    style = style_path(path)
    of_former = _documents(path, former).get(style)
    if classes is None and style.is_file() and style.read_bytes() == of_former:
        style.unlink()
    for file, document in documents.items():
        with replacing(file, overwrite=True) as written:
            written.write_bytes(document)


def _merged(beside: Path, names: bytes | None) -> bytes:
    """Return GDAL's own side file with the names of the classes added."""
    root = ElementTree.parse(beside).getroot()
    if names is not None:
        root.extend(ElementTree.fromstring(names))
    return ElementTree.tostring(root)


def _documents(path: Path, classes: Classes | None) -> dict[Path, bytes]:
    if classes is None:
        return {}
    return {
        _names_path(path): category_names_xml(classes).encode(),
        style_path(path): raster_qml(classes).encode(),
    }


def _names_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.aux.xml")


def _leftovers(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in OF_ONE_RASTER]
