"""Which rasters ``predict`` reads, and where what it writes goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.files import check_output
from rsseg.io.mapfile import check_map
from rsseg.io.raster import list_rasters
from rsseg.io.remote import as_path, workplace
from rsseg.io.vector_output import check_vectors
from rsseg.stages.outputs import Outputs

SUFFIXES = (".tif", ".tiff")


def hidden_confidence(vectors: Path) -> Path:
    """Return where the confidence waits that nobody asked for but the polygons need."""
    return workplace(vectors).with_name(f".{vectors.stem}.confidence.tif")


def sources_of(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the rasters that are meant by files and folders.

    Raises:
        InputError: there is none, or a folder that holds none.
    """
    given = _listed(inputs)
    if not given:
        raise InputError("no raster to map: give files or a folder")
    return [path for one in given for path in list_rasters(one)]


def _several(inputs: str | Path | Sequence[str | Path]) -> bool:
    given = _listed(inputs)
    return len(given) > 1 or as_path(given[0]).is_dir()


def _listed(inputs: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


@dataclass(frozen=True)
class Targets:
    """Where the maps go.

    Args:
        places: the rasters to write, or the folders for them.
        several: whether they are folders.
        vectors: the polygons to write, or the folder for them; or None.
    """

    places: Outputs
    several: bool
    vectors: Path | None

    @classmethod
    def of(
        cls,
        inputs: str | Path | Sequence[str | Path],
        sources: Sequence[Path],
        places: Outputs,
        vectors: Path | None,
    ) -> Targets:
        """Check the names.

        Raises:
            InputError: no GeoTIFF's name, no place for a folder, or two outputs of one name.
        """
        targets = cls(places, _several(inputs), vectors)
        for path in places.paths:
            if targets.several:
                _check_folder(path)
            elif path.suffix.lower() not in SUFFIXES and not path.is_dir():
                raise InputError(f"{path}: a map is a GeoTIFF; give a name that ends in .tif")
        places.check_distinct()
        if targets.several:
            _check_stems(sources)
            if vectors is not None:
                _check_folder(vectors)
        return targets

    @property
    def parent(self) -> Path:
        """A folder that exists, on the disk where maps are made."""
        folder = workplace(self.places.map).resolve()
        return folder if folder.is_dir() else folder.parent

    def of_source(self, source: Path) -> Outputs:
        """Return the files of one raster."""
        one, name = self.places, f"{source.stem}.tif"
        if self.several:
            one = replace(
                one,
                map=one.map / name,
                confidence=one.confidence and one.confidence / name,
                probabilities=one.probabilities and one.probabilities / name,
            )
        vectors = self.vectors_of(source)
        if vectors is not None and one.confidence is None:
            one = replace(one, confidence=hidden_confidence(vectors))
        return one

    def vectors_of(self, source: Path) -> Path | None:
        """Return where the polygons of one raster go, or None."""
        if self.vectors is None or not self.several:
            return self.vectors
        return self.vectors / f"{source.stem}.gpkg"

    def check_vectors(self, path: Path, overwrite: bool, read: Sequence[Path]) -> None:
        """Raise InputError where polygons cannot be written, unless their folder is yet to come."""
        if path.parent.is_dir() or not self.several:
            check_vectors(path, overwrite, read)

    def check_file(
        self,
        path: Path,
        classes: Classes | None,
        overwrite: bool,
        read: Sequence[Path],
        sources: Sequence[Path] = (),
    ) -> None:
        """Raise InputError where a file cannot be written, unless its folder is yet to come."""
        if path.parent.is_dir() or not self.several:
            check_map(path, classes, overwrite, inputs=read, sources=sources)

    def make_folders(self) -> None:
        """Create the folders of several maps."""
        if self.several:
            for folder in (*self.places.paths, *([] if self.vectors is None else [self.vectors])):
                folder.mkdir(exist_ok=True)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; several inputs or a folder need a folder")
    # The folder itself, or the one it will be created in, must be writable.
    check_output(folder / "map.tif" if folder.is_dir() else folder, overwrite=True)


def _check_stems(sources: Sequence[Path]) -> None:
    by_stem: dict[str, Path] = {}
    for path in sources:
        other = by_stem.setdefault(path.stem.lower(), path)
        if other is not path:
            raise InputError(
                f"{path} and {other} would both be mapped to {path.stem}.tif; "
                "map one of them by itself"
            )
