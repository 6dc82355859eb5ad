"""The command that says how good a map is: evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from rsseg.cli.shell import open_console, print_json
from rsseg.errors import RunError
from rsseg.options import (
    CsvOut,
    Field,
    JsonOut,
    MapClasses,
    MapPath,
    MinMiou,
    OneClass,
    Overwrite,
    Quiet,
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
    min_miou: MinMiou = None,
    field: Field = None,
    only: OneClass = None,
    classes: MapClasses = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a map with the truth: IoU, precision, recall and F1 of each class."""
    from rsseg.api import evaluate
    from rsseg.classes import Classes
    from rsseg.io.files import check_output

    with open_console(context, quiet, verbose) as console:
        to_stdout = json_path is not None and str(json_path) == "-"
        for path in (None if to_stdout else json_path, csv_path):
            if path is not None:
                check_output(path, overwrite, [map_path, truth])
        found = evaluate(
            map_path,
            truth,
            classes=None if classes is None else Classes.parse(classes),
            field=field,
            only=only,
            progress=console,
        )
        if csv_path is not None:
            found.write_csv(csv_path, overwrite=overwrite)
        if json_path is not None and not to_stdout:
            found.write_json(json_path, overwrite=overwrite)
        if to_stdout:
            print_json(found.to_dict())
        else:
            _print_scores(found)
        _check_miou(found, min_miou)


def _check_miou(found: Evaluation, least: float | None) -> None:
    miou = found.scores.miou
    if least is not None and not miou >= least:  # also where it is undefined (NaN)
        raise RunError(f"mIoU {miou:.4f} is below --min-miou {least:g}")


def _print_scores(found: Evaluation) -> None:
    from rsseg.console import print_table

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    rows = [
        [r.name, cell(r.iou), cell(r.precision), cell(r.recall), cell(r.f1), str(r.pixels)]
        for r in found.rows()
    ]
    print_table(["class", "IoU", "precision", "recall", "F1", "pixels"], rows)
