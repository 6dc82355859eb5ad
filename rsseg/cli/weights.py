"""The commands under rsseg weights, and what segments a user wants."""

from __future__ import annotations

import typer

from rsseg.cli.shell import open_console, print_paths
from rsseg.config import Proposals
from rsseg.errors import InputError
from rsseg.options import (
    ProposalKind,
    Quiet,
    Verbose,
    WeightName,
    WeightNames,
)

weights_app = typer.Typer(help="List, download and find pretrained weights.")


@weights_app.command("list")
def weights_list() -> None:
    """List the weights that rsseg knows, and where they lie."""
    from rsseg.console import print_table
    from rsseg.nets.weights import listing

    rows = [
        [one.name, one.use, one.licence, str(one.path or "not here"), f"{one.size / 1e6:.0f} MB"]
        for one in listing()
    ]
    print_table(["name", "for", "licence", "file", "size"], rows, text_columns=4)


@weights_app.command("fetch")
def weights_fetch(
    context: typer.Context,
    names: WeightNames,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download weights into the cache folder (RSSEG_WEIGHTS) and print their paths."""
    from rsseg.console import Download
    from rsseg.nets.weights import fetch

    with open_console(context, quiet, verbose) as console:
        for name in names:
            with Download(console, name) as bar:
                path = fetch(name, progress=bar)
            print_paths([path])


@weights_app.command("path")
def weights_path(
    name: WeightName,
) -> None:
    """Print where weights lie on this machine."""
    from rsseg.nets.weights import find

    print_paths([find(name)])


def segments(
    proposals: ProposalKind | None, sam: str | None, points_per_side: int | None = None
) -> tuple[Proposals | None, str | None]:
    """Return what the user wants as segments, and SAM's weights; None where they do not say.

    Who names SAM's weights or points wants SAM.

    Raises:
        InputError: SAM is wanted and has no weights.
    """
    if proposals is None and (sam is not None or points_per_side is not None):
        proposals = ProposalKind.SAM
    if proposals is None:
        return None, sam
    return proposals.value, _sam_at_hand(sam) if proposals == ProposalKind.SAM else sam


def _sam_at_hand(sam: str | None) -> str:
    from rsseg.nets.weights import find, sam_at_hand

    if sam is not None:
        return str(find(sam))
    at_hand = sam_at_hand()
    if at_hand is None:
        raise InputError(
            "--proposals sam: no SAM weights at hand; run rsseg weights fetch mobile_sam, "
            "or give --sam FILE"
        )
    return str(at_hand.path)
