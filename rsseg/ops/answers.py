"""Answers: what a vision-language model (VLM) is asked, and the boxes in what it says.

The question is SemiEarth's (eq. 6: list and locate all visible classes), with the names of the
classes and the form of the answer. Models keep to that form more or less: the parser takes a JSON
list with or without code fences around it, with single quotes or a tail that is cut off, and lines
of a name and numbers in brackets.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Coordinates = Literal["pixels", "thousandths"]
"""What a model measures boxes in: pixels of the image that it sees (Qwen2.5-VL), or thousandths of
the image's width and height (Qwen2-VL, Qwen3-VL)."""

_UNITS: dict[Coordinates, str] = {
    "pixels": "pixels of the image",
    "thousandths": "thousandths of its width and height, 0 to 1000",
}

_LEAST = 1.0
"""Boxes narrower than this, in pixels of the tile, have nothing in them."""

_LONGEST = 2000
"""Characters of an entry of an answer; what is longer is no box."""

_NAME = 40
"""Characters that are kept of names that are no class."""

_BOX_KEYS = ("bbox_2d", "bbox", "box")
_NAME_KEYS = ("label", "class", "name", "category")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_ENTRY = re.compile(r"\{[^{}]*\}")
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PLAIN_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")

Named = tuple[str, tuple[float, ...]]
"""A name as the model wrote it, and four numbers."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The boxes of an answer.

    Attributes:
        boxes: (n, 4) float32 x0, y0, x1, y1 in pixels of the tile, inside it; none twice.
        classes: (n,) int64 index of each box's class.
        unknown: names that are no class, as often as they came.
        rejected: boxes that say nothing, by what is wrong with them: ``outside`` the image,
            ``empty``, ``reversed``, ``malformed``.
        readable: whether the answer has a form that was asked for: some box, or a list of none.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    unknown: Counter[str]
    rejected: Counter[str]
    readable: bool


def question(names: Sequence[str], coordinates: Coordinates) -> str:
    """Return what to ask about an image.

    Args:
        names: of the classes; a background is nothing that could be located.
        coordinates: what the model measures boxes in.

    Source: SemiEarth eq. 6.
    """
    return (
        "List and locate all visible classes in the image, which was taken from above. "
        f"The classes are: {', '.join(names)}. "
        "Answer with a JSON list and nothing else. It has one entry for each object or connected "
        'area: {"bbox_2d": [x1, y1, x2, y2], "label": "class name"}, from the upper left to the '
        f"lower right corner in {_UNITS[coordinates]}. Use these class names only, and answer [] "
        "if none of them is visible."
    )


def parse(
    text: str, names: Sequence[str | None], frame: tuple[int, int], size: tuple[int, int]
) -> Answer:
    """Read the boxes in an answer.

    Class names are recognised in upper and lower case, in the singular and the plural, with
    underscores or hyphens for spaces, and with a number behind them.

    Args:
        text: what the model said.
        names: of the classes in the order of their indices; None for one that was not asked for.
        frame: (height, width) of the image in the model's coordinates: of the resized image in
            pixels, or (1000, 1000).
        size: (height, width) of the tile in pixels.
    """
    rejected: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    known = {key: index for index, name in enumerate(names) if name for key in _forms(name)}
    known |= {_plain(name): index for index, name in enumerate(names) if name}
    scale = size[1] / frame[1], size[0] / frame[0]
    text = _THOUGHT.sub("", text)
    found: dict[tuple[int, tuple[float, ...]], None] = {}  # ordered, and without repetitions
    entries = list(_entries(text, rejected))
    if not entries and (entries := list(_lines(text))):
        rejected.clear()  # they were of another form
    for name, corners in entries:
        index = _class_of(name, known)
        if index is None:
            unknown[_plain(name)[:_NAME]] += 1
            continue
        box = _fitted(corners, scale, size, rejected)
        if box is not None:
            found[index, box] = None
    return Answer(
        boxes=np.array([box for _, box in found], np.float32).reshape(-1, 4),
        classes=np.array([index for index, _ in found], np.int64),
        unknown=unknown,
        rejected=rejected,
        readable=bool(entries) or _says_none(text),
    )


def _says_none(text: str) -> bool:
    return re.fullmatch(r"\s*(?:```\w*)?\s*\[\s*\]\s*(?:```)?\s*", text) is not None


def _entries(text: str, rejected: Counter[str]) -> Iterator[Named]:
    """Find JSON objects that have a box and a name.

    Each by itself, so it matters neither what is around them nor where the text ends.
    """
    for match in _ENTRY.finditer(text):
        entry = _object(match[0])
        corners = next((entry[key] for key in _BOX_KEYS if key in entry), None)
        name = next((entry[key] for key in _NAME_KEYS if isinstance(entry.get(key), str)), None)
        numbers = _numbers(corners)
        if name is None or numbers is None:
            rejected["malformed"] += 1
        else:
            yield name, numbers
    if text.count("{") > text.count("}"):
        rejected["malformed"] += 1  # cut off in the middle


def _object(text: str) -> dict[str, Any]:
    """Read an object in JSON, or in Python's notation; empty where it is neither."""
    if len(text) > _LONGEST:
        return {}
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _numbers(corners: object) -> tuple[float, ...] | None:
    if not isinstance(corners, list | tuple) or len(corners) != 4:
        return None
    try:
        numbers = tuple(float(value) for value in corners)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _lines(text: str) -> Iterator[Named]:
    """Find numbers in brackets; a name before them holds until the next one."""
    name, end = "", 0
    for match in _PLAIN_BOX.finditer(text):
        before = text[end : match.start()].splitlines() or [""]
        # Whatever stands between a name and its numbers, or begins its line.
        name = re.sub(r"^[\W\d_]+|[\W_]+$", "", before[-1]) or name
        end = match.end()
        if name and name not in _BOX_KEYS and '"' not in name:  # else of an entry that is cut off
            yield name, tuple(float(value) for value in match.groups())


def _plain(name: str) -> str:
    """Return a name in lower case, its words parted by single spaces."""
    return " ".join(re.split(r"[\s_-]+", name.strip().lower()))


def _forms(name: str) -> set[str]:
    """Return a name as it is, in the singular and in the plural, as far as English is regular."""
    base = _plain(name)
    forms = {base, base + "s", base + "es"}
    if base.endswith("y"):
        forms.add(base[:-1] + "ies")
    if base.endswith("ies"):
        forms.add(base[:-3] + "y")
    if base.endswith("es"):
        forms.add(base[:-2])
    if base.endswith("s"):
        forms.add(base[:-1])
    return forms


def _class_of(name: str, known: dict[str, int]) -> int | None:
    plain = _plain(name)
    return known.get(plain, known.get(re.sub(r"\s*\d+$", "", plain)))


def _fitted(
    corners: tuple[float, ...],
    scale: tuple[float, float],
    size: tuple[int, int],
    rejected: Counter[str],
) -> tuple[float, ...] | None:
    """Bring a box to pixels of the tile and cut it to the tile; None where nothing is left."""
    x0, y0, x1, y1 = (corner * scale[axis % 2] for axis, corner in enumerate(corners))
    height, width = size
    if x1 < x0 or y1 < y0:
        rejected["reversed"] += 1
    elif x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        rejected["outside"] += 1
    else:
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if box[2] - box[0] >= _LEAST and box[3] - box[1] >= _LEAST:
            return box
        rejected["empty"] += 1
    return None
