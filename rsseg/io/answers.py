"""Answers of a vision-language model, kept in the site: one JSON file per window.

A file that exists is a window that was asked, so nobody asks twice; and it can be read by people::

    site.zarr/answers/FINGERPRINT/
    ├── question.json             which model was asked what
    └── SCENE/ROW_COL.json        {"scene": …, "window": [row, col, height, width], "answer": …}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsseg.errors import RunError
from rsseg.grid import Tile
from rsseg.io.files import replacing


@dataclass(frozen=True)
class Answered:
    """What a model said of a window.

    Args:
        text: its words, which may be none.
        frame: (height, width) of the window in the coordinates of the model.
        size: (height, width) of the window in pixels.
    """

    text: str
    frame: tuple[int, int]
    size: tuple[int, int]


class AnswerFiles:
    """The answers to one question.

    Args:
        site: folder of the site.
        fingerprint: of all that decides them.
    """

    def __init__(self, site: Path, fingerprint: str) -> None:
        self.key = fingerprint
        self.folder = site / "answers" / fingerprint

    def open(self, question: Mapping[str, Any]) -> None:
        """Make the folder and write, for its readers, what was asked; JSON-ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "question.json", question)

    def path(self, scene: str, tile: Tile) -> Path:
        """Return where the answer for a window lies."""
        return self.folder / scene / f"{tile.row}_{tile.col}.json"

    def has(self, scene: str, tile: Tile) -> bool:
        """Whether a window was asked."""
        return self.path(scene, tile).exists()

    def write(self, scene: str, tile: Tile, answered: Answered) -> None:
        """Keep an answer, complete or not at all; threads may write different ones."""
        path = self.path(scene, tile)
        path.parent.mkdir(exist_ok=True)
        core = tile.core
        record = {
            "scene": scene,
            "window": [core.row, core.col, core.height, core.width],
            "seen": [tile.read.row, tile.read.col, *answered.size],
            "frame": list(answered.frame),
            "answer": answered.text,
        }
        _write(path, record)

    def read(self, scene: str, tile: Tile) -> Answered | None:
        """Return the answer for a window; None where there is none.

        Raises:
            RunError: its file was changed.
        """
        path = self.path(scene, tile)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            height, width = record["frame"]
            seen = record["seen"]
            return Answered(str(record["answer"]), (height, width), (seen[2], seen[3]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(f"{path}: not a readable answer; delete it to ask again") from error


def _write(path: Path, record: Mapping[str, Any]) -> None:
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
