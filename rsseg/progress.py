"""How the floors below the command line report what they do, without printing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """One long step under way."""

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Say that ``amount`` more units are done; ``note`` (a loss, say) is shown beside it."""


class Progress(Protocol):
    """Whoever shows progress, notes and warnings to the user."""

    def step(
        self, label: str, total: float, unit: str, done: float = 0
    ) -> AbstractContextManager[Step]:
        """Open a step of ``total`` units, ``done`` of which an earlier run has finished."""

    def note(self, message: str) -> None:
        """Tell the user something worth knowing."""

    def detail(self, message: str) -> None:
        """Tell the user something only the curious want to know."""

    def warn(self, message: str) -> None:
        """Tell the user that something may not be as intended."""


class _SilentStep:
    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Do nothing."""


class Silent:
    """A Progress that shows nothing; the default of the Python API."""

    @contextmanager
    def step(self, label: str, total: float, unit: str, done: float = 0) -> Iterator[Step]:
        """Open a step that nobody sees."""
        yield _SilentStep()

    def note(self, message: str) -> None:
        """Do nothing."""

    def detail(self, message: str) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""


SILENT = Silent()
