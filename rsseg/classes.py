"""Classes: the one value that carries names, ids and colours from the site to the map."""

from __future__ import annotations

import colorsys
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.errors import InputError

IGNORE = 255
"""Class index and class id of a pixel without a class (nodata, unlabelled)."""

BACKGROUND_NAMES = ("background", "other")
"""A class of one of these names is the background unless the TOML says ``background = false``."""

Colour = tuple[int, int, int]

# Okabe and Ito's colour-blind safe palette (https://jfly.uni-koeln.de/color/), black left out,
# reordered so that the first few classes differ most; then hues by the golden angle.
_PALETTE: tuple[Colour, ...] = (
    (213, 94, 0),
    (0, 114, 178),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
)
_BACKGROUND_COLOUR: Colour = (222, 222, 214)


@dataclass(frozen=True)
class Classes:
    """The classes of a map, in network order.

    Inside rsseg a class is its *index* (0 … K-1, the network's channel); in GeoTIFFs and vector
    files it is its *id* (0 … 254, the user's choice). ``IGNORE`` (255) is neither.

    Args:
        names: one unique name per class.
        ids: one unique id in 0 … 254 per class.
        colours: one (red, green, blue) in 0 … 255 per class.
        background: index of the class that is "everything else", or None.

    Raises:
        InputError: duplicate or empty names, ids out of range, wrong lengths.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    colours: tuple[Colour, ...]
    background: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of all classes but the background: those the image-level classifier learns."""
        return tuple(i for i in range(len(self)) if i != self.background)

    def index(self, name_or_id: str | int) -> int:
        """Return the index of a class given by its name or its id.

        Raises:
            InputError: there is no such class.
        """
        text = str(name_or_id).strip()
        if text in self.names:
            return self.names.index(text)
        if re.fullmatch(r"\d+(\.0+)?", text) and int(float(text)) in self.ids:
            return self.ids.index(int(float(text)))
        raise InputError(
            f"unknown class {text!r}: the classes are {', '.join(self.names)} "
            f"(ids {', '.join(map(str, self.ids))})"
        )

    def to_ids(self, indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Map class indices to class ids; 255 stays 255. Any shape, uint8."""
        table = np.full(256, IGNORE, np.uint8)
        table[: len(self)] = self.ids
        return table[indices]

    def from_ids(self, ids: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Map class ids to class indices; every other value becomes 255. Any shape and dtype."""
        indices = np.full(ids.shape, IGNORE, np.uint8)
        for index, class_id in enumerate(self.ids):
            indices[ids == class_id] = index
        return indices

    def colour_table(self) -> dict[int, tuple[int, int, int, int]]:
        """Return id → (red, green, blue, alpha); 255 (no class) is transparent."""
        table = {i: (*colour, 255) for i, colour in zip(self.ids, self.colours, strict=True)}
        return {**table, IGNORE: (0, 0, 0, 0)}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; ``from_dict`` is its inverse."""
        rows = zip(self.names, self.ids, self.colours, strict=True)
        return {
            "classes": [
                {
                    "name": name,
                    "id": class_id,
                    "colour": "#{:02x}{:02x}{:02x}".format(*colour),
                    "background": index == self.background,
                }
                for index, (name, class_id, colour) in enumerate(rows)
            ]
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any], source: str = "classes") -> Classes:
        """Build from ``{"classes": [{"name", "id", "colour", "background"}, …]}``.

        Only ``name`` is required. Colours are ``"#rrggbb"`` or ``[r, g, b]``.

        Raises:
            InputError: the description does not have that form.
        """
        rows = description.get("classes")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{source}: expected at least one [[classes]] table with a name")
        for row in rows:
            unknown = sorted(set(row) - {"name", "id", "colour", "color", "background"})
            if unknown:
                raise InputError(
                    f"{source}: unknown key {unknown[0]!r} in a class; "
                    "the keys are name, id, colour, background"
                )
            if not isinstance(row.get("name"), str):
                raise InputError(f"{source}: a class without a name (text) was found: {row}")
        background = _background([row["name"] for row in rows], [r.get("background") for r in rows])
        given = [_parse_colour(row.get("colour", row.get("color")), source) for row in rows]
        spare = (colour for colour in _distinct_colours(2 * len(rows)) if colour not in given)
        colours = tuple(
            colour or (_BACKGROUND_COLOUR if index == background else next(spare))
            for index, colour in enumerate(given)
        )
        ids = tuple(row.get("id", index) for index, row in enumerate(rows))
        return cls(tuple(row["name"] for row in rows), ids, colours, background)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Classes:
        """Build from names alone: ids 0, 1, 2 … and distinct colours.

        A single class gets ``background`` as its counterpart: a map of one class says nothing.
        """
        stripped = [name.strip() for name in names]
        if len(stripped) == 1 and stripped[0] not in BACKGROUND_NAMES:
            stripped = ["background", *stripped]
        return cls.from_dict({"classes": [{"name": name} for name in stripped]}, "--classes")

    @classmethod
    def parse(cls, text: str) -> Classes:
        """Build from what a user types: ``building,other`` or the path of a TOML file.

        Raises:
            InputError: the file is missing or does not describe classes.
        """
        if not text.lower().endswith(".toml"):
            return cls.from_names(text.split(","))
        path = Path(text)
        try:
            description = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such file; give a TOML file or names like a,b,c"
            ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path}: not a readable TOML file ({error})") from error
        return cls.from_dict(description, str(path))


def _check(classes: Classes) -> None:
    names, ids = classes.names, classes.ids
    if len(names) < 2:
        raise InputError(f"at least two classes are needed, got {len(names)} ({', '.join(names)})")
    if any(not name for name in names):
        raise InputError(f"a class name is empty in: {', '.join(names)!r}")
    for what, values in (("class name", names), ("class id", ids)):
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise InputError(f"duplicate {what} {repeated!r}: every class needs its own")
    wrong = next((i for i in ids if type(i) is not int or not 0 <= i < IGNORE), None)
    if wrong is not None:
        raise InputError(f"class id {wrong!r} is not a whole number from 0 to 254 (255 is nodata)")


def _background(names: Sequence[str], said: Sequence[bool | None]) -> int | None:
    by_key = [index for index, value in enumerate(said) if value]
    if len(by_key) > 1:
        raise InputError(f"only one class can be the background, got {len(by_key)}")
    by_name = [
        index
        for index, (name, value) in enumerate(zip(names, said, strict=True))
        if value is None and name.lower() in BACKGROUND_NAMES
    ]
    return next(iter(by_key + by_name), None)


def _parse_colour(value: object, source: str) -> Colour | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value.removeprefix("#"))
        return red, green, blue
    if isinstance(value, list) and len(value) == 3:
        red, green, blue = value
        if all(type(v) is int and 0 <= v <= 255 for v in value):
            return red, green, blue
    raise InputError(f'{source}: colour {value!r} is neither "#rrggbb" nor [r, g, b] from 0 to 255')


def _distinct_colours(count: int) -> list[Colour]:
    colours = list(_PALETTE[:count])
    for step in range(count - len(colours)):
        red, green, blue = colorsys.hsv_to_rgb((0.08 + step * 0.381966) % 1.0, 0.75, 0.85)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours
