"""The user's terminal: progress, notes and warnings on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from rsseg.progress import Step

LINE_SECONDS = 10.0
"""Where there is no terminal, a step says how far it is at least this often …"""

LINE_SHARE = 0.1
"""… or whenever this share of it is done, but at most once a second."""

PLAIN_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""

SCALED_UNITS = ("px", "B")
"""Units that come in millions and are shown with k, M, G."""


class Level(IntEnum):
    """How much the user wants to hear."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


class Console:
    """A ``Progress`` for people: bars on a terminal, plain lines elsewhere.

    Steps may be nested; their bars share one display. Nothing that is shown is taken for markup.

    Args:
        level: ``QUIET`` shows warnings alone, ``VERBOSE`` also details.
        stderr: where to write; by default the process's stderr.
        clock: seconds, ever growing.
    """

    def __init__(
        self,
        level: Level = Level.NORMAL,
        stderr: RichConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._level = level
        self._stderr = stderr or RichConsole(stderr=True, markup=False, highlight=False)
        self._clock = clock
        self._bars: Progress | None = None

    @contextmanager
    def step(self, label: str, total: float, unit: str, done: float = 0) -> Iterator[Step]:
        """Open a step; see ``rsseg.progress.Progress``."""
        if self._level == Level.QUIET:
            yield _Unseen()
        elif self._stderr.is_terminal and not self._stderr.is_dumb_terminal:
            with self._shared_bars() as bars:
                task = bars.add_task(label, total=total, completed=int(done), unit=unit, note="")
                yield _Bar(bars, task)
        else:
            lines = _Lines(self._print, self._clock, label, total, unit, done)
            yield lines
            lines.finish()

    def note(self, message: str) -> None:
        """Show a message unless ``--quiet``."""
        if self._level >= Level.NORMAL:
            self._print(message)

    def detail(self, message: str) -> None:
        """Show a message with ``--verbose``."""
        if self._level >= Level.VERBOSE:
            self._print(message)

    def warn(self, message: str) -> None:
        """Show a warning, always."""
        self._print(f"warning: {message}")

    def _print(self, message: str) -> None:
        # Soft wrapping leaves long lines to the terminal, so that paths can be copied.
        self._stderr.print(Text(message), soft_wrap=True)

    @contextmanager
    def _shared_bars(self) -> Iterator[Progress]:
        """Give the display that is already there, or one of its own."""
        if self._bars is not None:
            yield self._bars
            return
        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Pace(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._stderr,
            refresh_per_second=4,
        )
        self._bars = bars
        try:
            with bars:
                yield bars
        finally:
            self._bars = None


class _Unseen:
    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Do nothing."""


class _Bar:
    """One bar of a display."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self._bars.advance(self._task, amount)
        if note is not None:
            self._bars.update(self._task, note=note)


class _Pace(ProgressColumn):
    """How far a bar is, how fast, and how long it will take."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        if task.finished:
            return Text(f"{quantity(task.completed, unit)} in {duration(task.finished_time or 0)}")
        speed, left = task.speed, task.time_remaining
        parts = [f"{quantity(task.completed)} of {quantity(task.total or 0, unit)}"]
        if speed:
            parts.append(f"{rate(speed, unit)}")
        if left is not None:
            parts.append(f"{duration(left)} left")
        return Text(", ".join(parts))


class _Lines:
    """A step as lines of text: one when it starts, some while it runs, one when it ends."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float],
        label: str,
        total: float,
        unit: str,
        done: float,
    ) -> None:
        self._write, self._clock = write, clock
        self._label, self._total, self._unit = label, total, unit
        self._begun_at, self._done = done, done
        self._note = ""
        self._start = self._said_time = clock()
        self._said_done = done
        going_on = f", {quantity(done)} of them done before" if done else ""
        write(f"{label}: {quantity(total, unit)}{going_on}")

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self._done += amount
        self._note = f", {note}" if note is not None else self._note
        waited = self._clock() - self._said_time
        far = self._done - self._said_done >= LINE_SHARE * self._total
        if self._done < self._total and (waited >= LINE_SECONDS or (far and waited >= 1)):
            self._say()

    def _say(self) -> None:
        now = self._clock()
        speed = (self._done - self._begun_at) / (now - self._start)
        left = duration((self._total - self._done) / speed) if speed > 0 else "?"
        self._write(
            f"{self._label}: {quantity(self._done)} of {quantity(self._total, self._unit)}, "
            f"{rate(speed, self._unit)}, {left} left{self._note}"
        )
        self._said_time, self._said_done = now, self._done

    def finish(self) -> None:
        """Say that the step is complete."""
        spent = duration(self._clock() - self._start)
        self._write(f"{self._label}: done in {spent}{self._note}")


def quantity(value: float, unit: str = "") -> str:
    """Return a count with its unit: ``12 tiles``, ``3.4 Mpx``; a bare count in full below 10^5."""
    scaled, prefix = _scaled(value) if unit in SCALED_UNITS or value >= 1e5 else (value, "")
    number = f"{scaled:.1f}" if prefix else f"{scaled:.0f}"
    return f"{number} {prefix}{unit}".rstrip() if unit else f"{number}{prefix and ' ' + prefix}"


def rate(speed: float, unit: str) -> str:
    """Return a speed: ``12.3 Mpx/s``, ``2.1 tiles/s``."""
    scaled, prefix = _scaled(speed)
    return f"{scaled:.1f} {prefix}{unit}/s"


def _scaled(value: float) -> tuple[float, str]:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return value / factor, prefix
    return value, ""


def duration(seconds: float) -> str:
    """Return a time span: ``0:07``, ``12:30``, ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Download:
    """A step in the shape of a tqdm bar, which is what pooch knows; use it as a context.

    Args:
        console: where the step is shown.
        label: what it is called.
    """

    def __init__(self, console: Console, label: str) -> None:
        self.total = 0
        self._console, self._label = console, label
        self._context: Any = None
        self._step: Step | None = None
        self._done = 0.0

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)

    def update(self, amount: float) -> None:
        """Say that ``amount`` more bytes are here; the last chunk may be counted too long."""
        if self._step is None:
            # Only now is the total known.
            self._context = self._console.step(self._label, self.total, "B")
            self._step = self._context.__enter__()
        shown = min(amount, self.total - self._done)
        self._done += shown
        self._step.advance(shown)

    def reset(self) -> None:
        """Do nothing: pooch resets a bar only to fill it up."""

    def close(self) -> None:
        """Do nothing: the context ends the step."""


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
) -> None:
    """Print a table on stdout; all columns after the first ``text_columns`` hold numbers."""
    stdout = RichConsole(markup=False, highlight=False)
    if not stdout.is_terminal:
        stdout.width = PLAIN_WIDTH
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        justify: Any = "left" if index < text_columns else "right"
        table.add_column(Text(name), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    stdout.print(table)


def print_error(message: str) -> None:
    """Print a message on stderr, as one line whatever a library put into it."""
    print(" ".join(message.splitlines()), file=sys.stderr)
