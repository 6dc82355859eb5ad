"""Tables and descriptions for other programs: CSV and JSON, complete or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rsseg.io.files import replacing


def write_json(path: Path, description: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write a description as JSON.

    Raises:
        InputError: the path cannot be written to, or exists without ``overwrite``.
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    with replacing(path, overwrite=overwrite) as temporary:
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, overwrite: bool = False
) -> None:
    """Write a table as CSV; None becomes an empty cell.

    Raises:
        InputError: the path cannot be written to, or exists without ``overwrite``.
    """
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
