"""The command that says how good a map is: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rsseg.cli.shell import TableFiles, open_console
from rsseg.errors import InputError, RunError
from rsseg.options import (
    BoundaryWidth,
    CsvOut,
    Field,
    JsonOut,
    MapClasses,
    MapPath,
    MinMiou,
    OneClass,
    Overwrite,
    Quiet,
    ReportImage,
    ReportOut,
    Truth,
    Verbose,
)

if TYPE_CHECKING:
    from rsseg.api import Evaluation


def evaluate(
    context: typer.Context,
    map_path: MapPath,
    truth: Truth,
    json_path: JsonOut = None,
    csv_path: CsvOut = None,
    report: ReportOut = None,
    image: ReportImage = None,
    boundary: BoundaryWidth = 3,
    min_miou: MinMiou = None,
    field: Field = None,
    only: OneClass = None,
    classes: MapClasses = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a map with the truth: IoU, precision, recall, F1 and boundary IoU of each class."""
    from rsseg.api import evaluate
    from rsseg.classes import Classes

    with open_console(context, quiet, verbose) as console:
        files = TableFiles(json_path, csv_path, overwrite)
        files.check([map_path, truth])
        _check_report(report, map_path, truth, image, overwrite)
        found = evaluate(
            map_path,
            truth,
            classes=None if classes is None else Classes.parse(classes),
            field=field,
            only=only,
            boundary=boundary,
            progress=console,
        )
        if report is not None:
            from rsseg.api import write_report

            write_report(found, report, image=image, overwrite=overwrite, progress=console)
        files.write(found, lambda: _print_scores(found))
        _check_miou(found, min_miou)


def _check_report(
    report: Path | None, map_path: Path, truth: Path, image: Path | None, overwrite: bool
) -> None:
    if report is None:
        if image is not None:
            raise InputError("--image: is shown in the report; give --report FILE.html too")
        return
    from rsseg.api.reporting import check_report

    check_report(report, map_path, truth, image, overwrite)


def _check_miou(found: Evaluation, least: float | None) -> None:
    miou = found.scores.miou
    if least is not None and not miou >= least:  # also where it is undefined (NaN)
        raise RunError(f"mIoU {miou:.4f} is below --min-miou {least:g}")


def _print_scores(found: Evaluation) -> None:
    from rsseg.console import print_table

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = [
        [r.name, *map(cell, (r.iou, r.precision, r.recall, r.f1, r.boundary_iou)), str(r.pixels)]
        for r in found.rows()
    ]
    columns = ["class", "IoU", "precision", "recall", "F1", "boundary IoU", "pixels"]
    print_table(columns, rows)
