"""The files that a prediction writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.io.mapfile import check_map
from rsseg.io.remote import workplace

SCRATCH_SUFFIX = ".partial"
"""What the folder of finished blocks is called, after the name of the map."""


@dataclass(frozen=True)
class Outputs:
    """The files that a prediction writes.

    Args:
        map: the map of class ids, uint8, 255 = nodata.
        confidence: the winner's probability, uint8, 0 … 254 for 0 … 1, 255 = nodata; or None.
        probabilities: the same of every class, one band each; or None.
        tags: metadata of all of them.
        overwrite: whether existing files may be replaced.
    """

    map: Path
    confidence: Path | None = None
    probabilities: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False

    @property
    def others(self) -> list[Path]:
        """All but the map, in the order in which they are written."""
        return [path for path in (self.probabilities, self.confidence) if path is not None]

    @property
    def paths(self) -> list[Path]:
        """All files; the map, which is written last, comes first."""
        return [self.map, *self.others]

    @property
    def scratch(self) -> Path:
        """The folder of finished blocks, on this machine."""
        place = workplace(self.map)
        return place.with_name(place.name + SCRATCH_SUFFIX)

    def layers(self, class_count: int) -> int:
        """Return how many values of a pixel wait in the scratch folder until they are written.

        The class comes first. The confidence is the greatest of all probabilities, so it needs no
        layer where these are kept.
        """
        if self.probabilities is not None:
            return 1 + class_count
        return 1 if self.confidence is None else 2

    def check_distinct(self) -> None:
        """Raise InputError where two files have one name."""
        places = [path.resolve() for path in self.paths]
        if len(set(places)) < len(places):
            raise InputError(
                f"{self.map}: map, confidence and probabilities need different places; "
                "give each another name"
            )

    def check(self, classes: Classes, *, others_ours: bool) -> None:
        """Make sure that all files can be written.

        Args:
            classes: of the map.
            others_ours: whether all but the map may be replaced, because an interrupted run of the
                same prediction has left them.

        Raises:
            InputError: two files have one name, or one cannot be written.
        """
        self.check_distinct()
        check_map(self.map, classes, self.overwrite, sources=self.others)
        for path in self.others:
            check_map(path, None, self.overwrite or others_ours)
