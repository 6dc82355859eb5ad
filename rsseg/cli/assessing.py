"""The commands under rsseg assess: a sample to be looked at, and what it says of the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from rsseg.cli.shell import TableFiles, open_console, print_paths
from rsseg.options import (
    CsvOut,
    JsonOut,
    MapClasses,
    MapPath,
    MinPerClass,
    Overwrite,
    Partial,
    Quiet,
    SampleCount,
    SampleOut,
    SamplePath,
    SampleSeed,
    Verbose,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rsseg.api import Assessment, Sample
    from rsseg.api.assessing import Row

assess_app = typer.Typer(
    help="Say how good a map is and how large its classes are, from points that you look at."
)


@assess_app.command("sample")
def assess_sample(
    context: typer.Context,
    map_path: MapPath,
    out: SampleOut = None,
    count: SampleCount = 300,
    min_per_class: MinPerClass = 50,
    seed: SampleSeed = 0,
    classes: MapClasses = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw points at random on a map; open them in QGIS and choose each one's class."""
    from rsseg.api import draw_sample
    from rsseg.classes import Classes

    with open_console(context, quiet, verbose) as console:
        drawn = draw_sample(
            map_path,
            out or map_path.with_name(f"{map_path.stem}_sample.gpkg"),
            count=count,
            min_per_class=min_per_class,
            seed=seed,
            classes=None if classes is None else Classes.parse(classes),
            overwrite=overwrite,
            progress=console,
        )
        for line in _allocation(drawn):
            console.note(line)
        print_paths([drawn.path])


def _allocation(drawn: Sample) -> list[str]:
    return [
        f"{one.name}: {one.points} points on {one.share:.1%} of the map"
        for one in drawn.strata
        if one.points
    ]


@assess_app.command("report")
def assess_report(
    context: typer.Context,
    map_path: MapPath,
    sample: SamplePath,
    json_path: JsonOut = None,
    csv_path: CsvOut = None,
    partial: Partial = False,
    classes: MapClasses = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Estimate accuracies and areas, with 95 % intervals, from a sample that is filled."""
    from rsseg.api import assess
    from rsseg.classes import Classes

    with open_console(context, quiet, verbose) as console:
        files = TableFiles(json_path, csv_path, overwrite)
        files.check([map_path, sample])
        found = assess(
            map_path,
            sample,
            classes=None if classes is None else Classes.parse(classes),
            partial=partial,
            progress=console,
        )
        files.write(found, lambda: _print_assessment(found))


def _print_assessment(found: Assessment) -> None:
    names = found.classes.names
    print("points, by class in the map (down) and on the ground (across)")
    _print_matrix(names, found.points, "d")
    print("\nestimated share of the area")
    _print_matrix(names, found.accuracy.proportions, ".2%")
    print("\naccuracy, with 95 % confidence intervals")
    _print_accuracies(found.rows())
    print("\narea as mapped and as estimated, with 95 % confidence intervals")
    _print_areas(found.rows())


def _print_matrix(names: Sequence[str], matrix: NDArray[Any], digits: str) -> None:
    """Print a matrix of classes with its sums."""
    from rsseg.console import print_table

    rows = [*matrix.tolist(), matrix.sum(axis=0).tolist()]
    cells = [
        [name, *(f"{value:{digits}}" for value in (*row, sum(row)))]
        for name, row in zip((*names, "all"), rows, strict=True)
    ]
    print_table(["", *names, "all"], cells)


def _print_accuracies(rows: Sequence[Row]) -> None:
    from rsseg.console import print_table

    cells = [
        [
            row.name,
            str(row.points),
            _spread(row.users, row.users_ci95, ".3f"),
            _spread(row.producers, row.producers_ci95, ".3f"),
        ]
        for row in rows
    ]
    print_table(["class", "points", "user's accuracy", "producer's accuracy"], cells)


def _print_areas(rows: Sequence[Row]) -> None:
    from rsseg.console import print_table

    whole = rows[-1].mapped_ha or 0
    digits = ",.0f" if whole >= 10_000 else ",.2f" if whole >= 10 else ",.4f"
    cells = [
        [
            row.name,
            _spread(row.mapped_share, None, ".2%"),
            _spread(row.share, row.share_ci95, ".2%"),
            _spread(row.mapped_ha, None, digits),
            _spread(row.ha, row.ha_ci95, digits),
        ]
        for row in rows
    ]
    print_table(["class", "mapped", "estimated", "mapped, ha", "estimated, ha"], cells)


def _spread(value: float | None, margin: float | None, digits: str) -> str:
    """Return ``value ± margin``, or what there is of them."""
    if value is None:
        return ""
    return f"{value:{digits}}" if margin is None else f"{value:{digits}} ± {margin:{digits}}"
