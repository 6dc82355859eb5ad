"""report: an Evaluation as one web page that can be read, printed and sent as it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from pyproj import CRS

from rsseg.api.report_pictures import Swatch, check_image, draw_pictures, swatch
from rsseg.api.scoring import Evaluation
from rsseg.errors import InputError
from rsseg.io.files import check_output, replacing
from rsseg.io.raster import Raster
from rsseg.progress import SILENT, Progress


class Line(NamedTuple):
    """A line of the table of classes.

    Args:
        swatch: name and colour of the class.
        scores: IoU, boundary IoU, F1, precision and recall; None where undefined.
        share: of all pixels that were compared, those that are truly of the class.
        pixels: how many that are.
    """

    swatch: Swatch
    scores: tuple[float | None, ...]
    share: str
    pixels: str


class Cell(NamedTuple):
    """A cell of the confusion matrix.

    Args:
        text: the share of its row.
        title: the same in words, with the number of pixels.
        shade: 0 to 1, how dark it is.
        right: whether truth and map agree.
    """

    text: str
    title: str
    shade: float
    right: bool


def check_report(
    out: Path, map_path: Path, truth: Path, image: Path | None, overwrite: bool
) -> None:
    """Make sure that a report can be written, before anything is compared.

    Args:
        out: the page.
        map_path: the map that it will be about.
        truth: what the map is compared with.
        image: the raster to be shown beside it.
        overwrite: whether a file that exists may be replaced.

    Raises:
        InputError: the page cannot be written, or the image cannot be read or does not overlap the
            map.
    """
    _check_out(out, map_path, truth, image, overwrite)
    if image is not None:
        check_image(image, Raster(map_path).grid, map_path)


def _check_out(out: Path, map_path: Path, truth: Path, image: Path | None, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: a report is a web page; give a name that ends in .html")
    check_output(out, overwrite, [path for path in (map_path, truth, image) if path is not None])


def write_report(
    found: Evaluation,
    out: str | Path,
    *,
    image: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write an evaluation as one HTML page that needs nothing else.

    It shows the overall scores; the image, the map, the truth and the errors side by side, at a
    regular sample of the pixels; the scores of each class, and the confusion matrix. Equal
    evaluations give equal pages.

    Args:
        found: what ``evaluate`` returned.
        out: the page, ``.html``.
        image: the raster that was mapped; None leaves it out.
        overwrite: replace a file that exists.
        progress: shows the pixels of the image that are read.

    Raises:
        InputError: the page cannot be written, or the image cannot be read or does not overlap the
            map.
        RunError: the image turns out to be damaged.
    """
    out, image = Path(out), None if image is None else Path(image)
    _check_out(out, Path(found.map), Path(found.truth), image, overwrite)
    environment = Environment(
        loader=PackageLoader("rsseg"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    page = environment.get_template("report.html").render(
        map_name=Path(found.map).name,
        truth_name=Path(found.truth).name,
        facts=_facts(found),
        overall=_overall(found),
        pictures=draw_pictures(found, image, progress),
        boundary=_boundary(found),
        lines=_lines(found),
        columns=_columns(found),
        matrix=_matrix(found),
        confusions=_confusions(found),
    )
    with replacing(out, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


# --- Numbers ------------------------------------------------------------------------------------


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(pixels: int) -> str:
    return f"{pixels:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _facts(found: Evaluation) -> list[tuple[str, str]]:
    height, width = found.grid.shape
    facts = [
        ("Map", found.map),
        ("Truth", found.truth),
        ("Size of the map", f"{_count(width)} × {_count(height)} pixels"),
        ("Pixels compared", f"{_count(found.compared)}{_area(found)}"),
    ]
    if found.unpredicted:
        share = _percent(found.unpredicted / found.compared)
        facts.append(("Of them not mapped", f"{_count(found.unpredicted)} ({share}), all errors"))
    gsd = found.grid.ground_sample_distance
    if found.grid.crs is not None and gsd is not None:
        name = CRS.from_wkt(found.grid.crs).name
        facts.append(("Pixel size and CRS", f"{gsd:.3g} m, {name}"))
    return facts


def _area(found: Evaluation) -> str:
    gsd = found.grid.ground_sample_distance
    if gsd is None:
        return ""
    hectares = found.compared * gsd**2 / 1e4
    large = hectares >= 1000
    return f", about {hectares / 100 if large else hectares:.3g} {'km²' if large else 'ha'}"


def _overall(found: Evaluation) -> list[tuple[str, float | None, str]]:
    means = {row.name: row for row in found.rows()[len(found.classes) :]}
    return [
        ("Overall accuracy", means["OA"].recall, "share of the pixels that are right"),
        ("Mean IoU", means["mIoU"].iou, "overlap, mean of the classes"),
        ("Mean F1", means["mF"].f1, "precision and recall, mean of the classes"),
        (
            "Mean boundary IoU",
            means["mBIoU"].boundary_iou,
            f"overlap within {_boundary(found)} of outlines",
        ),
    ]


def _boundary(found: Evaluation) -> str:
    gsd = found.grid.ground_sample_distance
    ground = "" if gsd is None else f" ({found.boundary_width * gsd:.2g} m)"
    return f"{found.boundary_width} px{ground}"


def _lines(found: Evaluation) -> list[Line]:
    rows = zip(found.rows(), found.classes.names, found.classes.colours, strict=False)
    return [
        Line(
            swatch(name, colour),
            (row.iou, row.boundary_iou, row.f1, row.precision, row.recall),
            "–" if row.share is None else _percent(row.share),
            _count(row.pixels),
        )
        for row, name, colour in rows
    ]


def _matrix(found: Evaluation) -> list[list[Cell]]:
    fates = [*(f"mapped as {name}" for name in found.classes.names), "not mapped"]
    shown = len(_columns(found))
    return [
        [
            _cell(name, fates[column], counts[column], sum(counts), row == column)
            for column in range(shown)
        ]
        for row, (name, counts) in enumerate(
            zip(found.classes.names, found.matrix.tolist(), strict=True)
        )
    ]


def _cell(name: str, fate: str, pixels: int, total: int, right: bool) -> Cell:
    share = pixels / max(1, total)
    title = f"{_count(pixels)} pixels of {name} {fate}"
    return Cell(_percent(share) if pixels else "", title, share, right)


def _columns(found: Evaluation) -> list[str]:
    return [*found.classes.names, *(["not mapped"] if found.unpredicted else [])]


def _confusions(found: Evaluation) -> list[str]:
    """Return the three largest confusions in words."""
    wrong = found.matrix.copy()
    np.fill_diagonal(wrong, 0)
    columns = [*found.classes.names, "nothing"]
    said = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:3].tolist():
        row, column = divmod(place, wrong.shape[1])
        pixels = int(wrong[row, column])
        if pixels:
            part = _percent(pixels / int(wrong.sum()))
            said.append(f"{found.classes.names[row]} mapped as {columns[column]} ({part})")
    return said
