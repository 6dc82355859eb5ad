"""The pictures of a report: image, map, truth and errors, as data URIs."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from rsseg.api.scoring import Evaluation
from rsseg.errors import InputError
from rsseg.grid import Grid
from rsseg.io.classmap import share_ground
from rsseg.io.preview import picture
from rsseg.io.raster import Raster
from rsseg.ops.picture import MISSING, RIGHT, Colour, error_colours, errors, on_white, paint
from rsseg.progress import Progress

SMALL = 400
"""Pictures with fewer pixels on their longer side are magnified with sharp edges."""

WIDE = 2.2
"""Pictures with more width to their height than this want the page for themselves."""


class Figure(NamedTuple):
    """A picture of the page.

    Args:
        title: what it is.
        alt: what it shows, for those who cannot see it.
        source: the picture itself, as a data URI.
    """

    title: str
    alt: str
    source: str


class Swatch(NamedTuple):
    """A name and its colour, ``#rrggbb``."""

    name: str
    colour: str


class Pictures(NamedTuple):
    """All pictures of a page.

    Args:
        figures: the pictures.
        legend: of their colours.
        across: how many of them stand side by side.
        small: whether they have few pixels.
        reduction: they show one pixel of this many along each side.
    """

    figures: list[Figure]
    legend: list[Swatch]
    across: int
    small: bool
    reduction: int


def check_image(image: Path, grid: Grid, map_path: Path) -> None:
    """Make sure that an image can be shown beside a map.

    Args:
        image: the raster.
        grid: the map's grid.
        map_path: the map.

    Raises:
        InputError: it cannot be read, or does not overlap the map.
    """
    if not share_ground(Raster(image).grid, grid, image):
        raise InputError(
            f"{image}: does not overlap {map_path}; "
            "check that both are of the same place and have the right CRS"
        )


def draw_pictures(found: Evaluation, image: Path | None, progress: Progress) -> Pictures:
    """Draw the image, the map, the truth and the errors at the evaluation's sample of pixels.

    Args:
        found: the evaluation.
        image: the raster that was mapped; None leaves it out.
        progress: shows the pixels of the image that are read.

    Raises:
        InputError: see ``check_image``.
        RunError: the image turns out to be damaged.
    """
    height, width = found.preview.grid.shape
    figures = [] if image is None else [_photograph(found, image, progress)]
    together = 3 if image is None else 2
    return Pictures(
        [*figures, *_painted(found)],
        _legend(found),
        1 if width > WIDE * height else together,
        max(height, width) < SMALL,
        max(1, round(math.sqrt(found.grid.window.area / (height * width)))),
    )


def _photograph(found: Evaluation, image: Path, progress: Progress) -> Figure:
    check_image(image, found.grid, Path(found.map))
    placed = Raster(image).grid.is_georeferenced and found.grid.is_georeferenced
    own = None if placed else found.grid
    seen = picture(image, found.preview.grid, own=own, progress=progress)
    # As JPEG it is many times smaller.
    source = _uri(on_white(*seen), "jpeg", pil_kwargs={"quality": 85})
    return Figure(image.name, f"The image {image.name} that was mapped", source)


def _painted(found: Evaluation) -> list[Figure]:
    _, mapped, truth = found.preview
    colours = found.classes.colours
    painted = (
        ("Map", "The map, in the colours of the legend", paint(mapped, colours)),
        ("Truth", "The truth, in the colours of the legend", paint(truth, colours)),
        (
            "Errors",
            "Where the map is wrong, in the true class's colour; pale where it is right",
            errors(truth, mapped, colours),
        ),
    )
    plain: dict[str, Any] = {"metadata": {"Software": None}}
    return [Figure(title, alt, _uri(rgb, "png", **plain)) for title, alt, rgb in painted]


def _uri(rgb: NDArray[np.uint8], kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    imsave(buffer, rgb, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _legend(found: Evaluation) -> list[Swatch]:
    names, colours = found.classes.names, found.classes.colours
    legend = [swatch(name, colour) for name, colour in zip(names, colours, strict=True)]
    legend += [
        swatch(f"in Errors: {name}", shown)
        for name, own, shown in zip(names, colours, error_colours(colours), strict=True)
        if own != shown
    ]
    legend.append(swatch("in Errors: right", RIGHT))
    if found.unpredicted:
        legend.append(swatch("in Errors: not mapped", MISSING))
    return legend


def swatch(name: str, colour: Colour) -> Swatch:
    """Return a name with its colour as the page wants it."""
    return Swatch(name, "#{:02x}{:02x}{:02x}".format(*colour))
