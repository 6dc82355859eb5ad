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
from rsseg.stages.outputs import Outputs

SUFFIXES = (".tif", ".tiff")


def sources_of(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the rasters that are meant by files and folders.

    Raises:
        InputError: there is none, or a folder that holds none.
    """
    given = _listed(inputs)
    if not given:
        raise InputError("no raster to map: give files or a folder")
    return [path for one in given for path in list_rasters(Path(one))]


def _several(inputs: str | Path | Sequence[str | Path]) -> bool:
    given = _listed(inputs)
    return len(given) > 1 or Path(given[0]).is_dir()


def _listed(inputs: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


@dataclass(frozen=True)
class Targets:
    """Where the maps go.

    Args:
        places: the files to write, or the folders for them.
        several: whether they are folders.
    """

    places: Outputs
    several: bool

    @classmethod
    def of(
        cls, inputs: str | Path | Sequence[str | Path], sources: Sequence[Path], places: Outputs
    ) -> Targets:
        """Check the names.

        Raises:
            InputError: no GeoTIFF's name, no place for a folder, or two outputs of one name.
        """
        targets = cls(places, _several(inputs))
        for path in places.paths:
            if targets.several:
                _check_folder(path)
            elif path.suffix.lower() not in SUFFIXES and not path.is_dir():
                raise InputError(f"{path}: a map is a GeoTIFF; give a name that ends in .tif")
        places.check_distinct()
        if targets.several:
            _check_stems(sources)
        return targets

    @property
    def parent(self) -> Path:
        """A folder that exists, on the disk of the maps."""
        folder = self.places.map.resolve()
        return folder if folder.is_dir() else folder.parent

    def of_source(self, source: Path) -> Outputs:
        """Return the files of one raster."""
        if not self.several:
            return self.places
        one, name = self.places, f"{source.stem}.tif"
        return replace(
            one,
            map=one.map / name,
            confidence=one.confidence and one.confidence / name,
            probabilities=one.probabilities and one.probabilities / name,
        )

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
            for folder in self.places.paths:
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
