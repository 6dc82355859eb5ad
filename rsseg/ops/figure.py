"""Figures: pictures side by side as a PNG, with titles, legend, scale bar and north arrow.

Every pixel of a picture is one of the PNG, or a square of them if the picture is very small. All
lengths are points, counted from the upper left corner, where nothing else is said.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from rsseg.ops.picture import Colour, round_length

_LEAST_SIDE = 480  # pictures whose longer side has fewer pixels are magnified
_LEAST_WIDTH = 320.0  # so that there is room for title and legend
_GAP = 12.0
_TEXT, _TITLE = 10.0, 12.5  # sizes of fonts
_LINE = 17.0  # height of a line of text
_SWATCH = 11.0
_INK, _PALE = "#1c1c1c", "#666666"


class Entry(NamedTuple):
    """A line of the legend.

    Args:
        name: of the class.
        colour: of the class; None where it is left unpainted.
        note: what else there is to say, its share for example.
    """

    name: str
    colour: Colour | None
    note: str = ""


def draw_figure(
    out: Path,
    title: str,
    panels: Sequence[tuple[str, NDArray[np.uint8]]],
    legend: Sequence[Entry] = (),
    metres_per_pixel: float | None = None,
) -> None:
    """Draw pictures side by side and write them as a PNG; equal figures are equal files.

    Args:
        out: the PNG.
        title: of the whole; empty for none.
        panels: titles, empty for none, and pictures (H, W, 3) uint8 with north up, all of one
            shape.
        legend: the classes.
        metres_per_pixel: of the pictures, on the ground; without it there is neither scale bar
            nor north arrow.
    """
    factor = max(1, round(_LEAST_SIDE / max(panels[0][1].shape)))
    pictures = [picture.repeat(factor, axis=0).repeat(factor, axis=1) for _, picture in panels]
    sheet = _Sheet(pictures[0].shape[:2], len(pictures))
    names = [name for name, _ in panels]
    top = _GAP + (_LINE + 5 if title else 0) + (_LINE if any(names) else 0)
    below = top + sheet.height + 7
    if metres_per_pixel is not None:
        below += 1.3 * _LINE
    columns, across = sheet.legend_columns(legend)
    rows = math.ceil(len(legend) / columns)
    sheet.open(below + rows * _LINE + _GAP * 0.7)
    sheet.write(_GAP, _GAP + _TITLE, sheet.fitted(title), _TITLE, weight="bold")
    sheet.place(pictures, names, top)
    if metres_per_pixel is not None:
        sheet.draw_scale(top + sheet.height + 7, metres_per_pixel / factor)
    for number, entry in enumerate(legend):
        column, row = divmod(number, rows)
        sheet.draw_entry(_GAP + column * across, below + row * _LINE, entry)
    sheet.save(out)


class _Sheet:
    """A figure to draw on.

    Args:
        shape: (height, width) of each picture, pixels.
        count: how many pictures stand side by side.
    """

    def __init__(self, shape: tuple[int, int], count: int) -> None:
        # Text grows with the pictures, so that a large figure can be reduced and still be read.
        self._point = max(1.25, max(shape[0], shape[1] * count) / 800)  # pixels in a point
        self.height = shape[0] / self._point
        self._step = shape[1] / self._point + _GAP
        self._pictures_width = count * self._step - _GAP
        width = max(self._pictures_width, _LEAST_WIDTH) + 2 * _GAP
        self._width = math.ceil(width * self._point) / self._point  # whole pixels
        self._left = (self._width - self._pictures_width) / 2

    def open(self, height: float) -> None:
        """Take a sheet of this height, rounded up to whole pixels."""
        self._height = math.ceil(height * self._point) / self._point
        size = (self._width / 72, self._height / 72)
        self._figure = Figure(figsize=size, dpi=72 * self._point, facecolor="white")

    def save(self, out: Path) -> None:
        """Write the figure as a PNG."""
        self._figure.savefig(out, format="png", metadata={"Software": None})

    def write(self, x: float, baseline: float, text: str, size: float = _TEXT, **how: Any) -> None:
        """Write a line of text as it is: a dollar sign begins no formula."""
        place = x / self._width, 1 - baseline / self._height
        how = {"color": _INK, "parse_math": False, **how}
        self._figure.add_artist(Text(*place, text, fontsize=size, figure=self._figure, **how))

    def place(
        self, pictures: Sequence[NDArray[np.uint8]], names: Sequence[str], top: float
    ) -> None:
        """Place the pictures with their names above."""
        for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            left = self._left + number * self._step
            self.write(left, top - 5, _fitted(name, self._step - _GAP, _TEXT), color=_PALE)
            corner = round(left * self._point), round((self._height - top) * self._point)
            # figimage places pixels on pixels and resamples nothing.
            self._figure.figimage(
                picture, corner[0], corner[1] - len(picture), origin="upper", zorder=1
            )
            self._box(left, top, self._step - _GAP, self.height, fill=False, edgecolor="#b5b5b5")

    def draw_scale(self, top: float, metres_per_pixel: float) -> None:
        """Draw a scale bar of a round length and an arrow to the north."""
        metres_per_point = metres_per_pixel * self._point
        metres = round_length(min(0.3 * (self._step - _GAP), 180) * metres_per_point)
        length, left, low = metres / metres_per_point, self._left, top + 4
        for part in range(4):
            face = _INK if part % 2 == 0 else "white"
            self._box(left + part * length / 4, low, length / 4, 5, facecolor=face, edgecolor=_INK)
        self.write(left + length + 6, low + 6.5, ground_length(metres))
        right = self._left + self._pictures_width
        tip = [
            (right - 5, top),
            (right - 9, top + 12),
            (right - 5, top + 9.5),
            (right - 1, top + 12),
        ]
        corners = [(x / self._width, 1 - y / self._height) for x, y in tip]
        self._figure.add_artist(Polygon(corners, facecolor=_INK, edgecolor="none"))
        self.write(right - 22, low + 6.5, "N")

    def draw_entry(self, left: float, top: float, entry: Entry) -> None:
        """Draw a line of the legend."""
        face = "none" if entry.colour is None else tuple(part / 255 for part in entry.colour)
        self._box(left, top + 2, _SWATCH * 1.5, _SWATCH, facecolor=face, edgecolor="#8a8a8a")
        self.write(left + 23, top + _SWATCH, entry.name)
        place = left + 23 + _text_width(entry.name, _TEXT) + 6
        self.write(place, top + _SWATCH, entry.note, color=_PALE)

    def legend_columns(self, legend: Sequence[Entry]) -> tuple[int, float]:
        """Return how many columns a legend has, and how far they are apart."""
        widths = [_text_width(f"{entry.name}{entry.note}", _TEXT) for entry in legend]
        across = 23 + max(widths, default=0) + 6 + 1.5 * _GAP
        return max(1, min(len(legend), int((self._width - _GAP) / across))), across

    def fitted(self, title: str) -> str:
        """Return a title that is no wider than the sheet."""
        return _fitted(title, self._width - 2 * _GAP, _TITLE, "bold")

    def _box(self, left: float, top: float, width: float, height: float, **how: Any) -> None:
        corner = left / self._width, 1 - (top + height) / self._height
        sides = width / self._width, height / self._height
        self._figure.add_artist(Rectangle(corner, *sides, linewidth=0.6, zorder=2, **how))


def _fitted(text: str, width: float, size: float, weight: str = "normal") -> str:
    """Return a text, or its ends, that is no wider than that."""
    if _text_width(text, size, weight) <= width:
        return text
    lengths = range(1, len(text))
    fitting = bisect(lengths, width, key=lambda n: _text_width(_ends(text, n), size, weight))
    return _ends(text, max(1, fitting))


def _ends(text: str, kept: int) -> str:
    return f"{text[: math.ceil(kept / 2)]}…{text[len(text) - kept // 2 :]}"


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    if not text.strip():
        return 0.0
    plain = text.replace("$", "S")  # TextPath would set what stands between two as a formula
    outline = TextPath((0, 0), plain, prop=FontProperties(size=size, weight=weight))
    # Letters are drawn on whole pixels, which makes them a little wider than their outlines.
    return 1.07 * float(outline.get_extents().width)


def ground_length(metres: float) -> str:
    """Return a length as people write it: ``200 m``, ``5 km``, ``0.5 m``."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
