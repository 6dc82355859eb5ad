"""Tables and descriptions for other programs: CSV and JSON, complete or not at all."""

from __future__ import annotations

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsseg.io.files import replacing


def defined(value: float) -> float | None:
    """Return a number as JSON and CSV take it: None where it is NaN."""
    return None if math.isnan(value) else float(value)


class Tabular(ABC):
    """What can be written as JSON and as CSV."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; what is undefined is None."""

    @abstractmethod
    def rows(self) -> Sequence[Any]:
        """Return the table: at least one named tuple, whose first value is a name."""

    def write_json(self, path: Path, *, overwrite: bool = False) -> None:
        """Write ``to_dict`` as JSON, complete or not at all.

        Raises:
            InputError: the path cannot be written to, or exists without ``overwrite``.
        """
        with replacing(path, overwrite=overwrite) as temporary:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def write_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write ``rows`` as CSV, complete or not at all; what is undefined is empty.

        Raises:
            InputError: the path cannot be written to, or exists without ``overwrite``.
        """
        table = self.rows()
        with (
            replacing(path, overwrite=overwrite) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", *table[0]._fields[1:]])
            writer.writerows(table)
