"""What the commands share: the console, values that users type, results on stdout."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rsseg.errors import InputError

if TYPE_CHECKING:
    from rsseg.console import Console
    from rsseg.io.tables import Tabular


@contextmanager
def open_console(context: typer.Context, quiet: bool, verbose: bool) -> Iterator[Console]:
    """Give the console of the level asked for before or after the command.

    Libraries' warnings and log messages are details.
    """
    from rsseg.console import Console, Level

    before = context.find_root().obj or (False, False)
    if quiet or before[0]:
        level = Level.QUIET
    else:
        level = Level.VERBOSE if verbose or before[1] else Level.NORMAL
    console = Console(level)
    relay = _Relay(console)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_: console.detail(
            f"{category.__name__}: {message}"
        )
        logging.getLogger().addHandler(relay)
        try:
            yield console
        finally:
            logging.getLogger().removeHandler(relay)


class _Relay(logging.Handler):
    """Passes log messages on as details."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.detail(f"{record.name}: {record.getMessage()}")


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave, so that the verb's own defaults stand."""
    return {name: value for name, value in options.items() if value is not None}


def numbers(option: str, text: str | None) -> list[int] | None:
    """Return the whole numbers of a text like ``1,2,3``; None stays None.

    Raises:
        InputError: it is no such text; the message names the option.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: give band numbers like 1,2,3") from None


def share_or_number(option: str, text: str | None) -> float | None:
    """Return a share like ``5%`` or ``0.05`` as a float and a number like ``12`` as an int.

    Raises:
        InputError: it is neither; the message names the option.
    """
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise InputError(
            f"{option} {text}: give a share like 5% or 0.05, or a number of tiles"
        ) from None


def share(present: int, known: int) -> str:
    """Return ``present / known`` in percent; nothing where nothing is known."""
    return f"{present / known:.1%}" if known else ""


def print_paths(paths: Sequence[Path]) -> None:
    """Print what was written to stdout, a line each, for the next program to read."""
    from rsseg.io.remote import as_path  # gives a URI its slashes back

    for path in paths:
        print(as_path(path))


@dataclass(frozen=True)
class TableFiles:
    """Where a table goes besides the screen.

    Args:
        json_path: the JSON file; ``-`` is stdout, in place of the printed table.
        csv_path: the CSV file.
        overwrite: whether existing files may be replaced.
    """

    json_path: Path | None
    csv_path: Path | None
    overwrite: bool

    @property
    def _to_stdout(self) -> bool:
        return self.json_path is not None and str(self.json_path) == "-"

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise InputError where a file cannot be written; ``inputs`` are read by the command."""
        from rsseg.io.files import check_output

        for path in (None if self._to_stdout else self.json_path, self.csv_path):
            if path is not None:
                check_output(path, self.overwrite, inputs)

    def write(self, found: Tabular, show: Callable[[], None]) -> None:
        """Write the files, and print JSON or else what ``show`` shows."""
        if self.csv_path is not None:
            found.write_csv(self.csv_path, overwrite=self.overwrite)
        if self._to_stdout:
            print_json(found.to_dict())
            return
        if self.json_path is not None:
            found.write_json(self.json_path, overwrite=self.overwrite)
        show()


def print_json(description: dict[str, Any]) -> None:
    """Print JSON to stdout.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    print(json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False))
