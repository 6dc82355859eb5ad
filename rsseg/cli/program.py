"""The program: all commands in the order of the way, the root options, the exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rsseg.cli.assessing import assess_app
from rsseg.cli.looking import demo, info, quicklook
from rsseg.cli.making import pseudo_label, tag, tile, train
from rsseg.cli.mapping import export, predict, vectorize
from rsseg.cli.quality import evaluate
from rsseg.cli.weights import weights_app
from rsseg.errors import RssegError
from rsseg.options import Quiet, Verbose

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

# typer has its own copy of click or imports it, by version; this base class is reached in both.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Turn large orthophotos into maps with almost no labelling.",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The way: tile, tag, pseudo-label, train, predict, vectorize, evaluate, assess. "
    "Try it with: rsseg demo",
)
# Here and not where they are defined, so that --help has them in this order.
for _command in (
    *(tile, tag, pseudo_label, train, predict, vectorize, evaluate),
    *(info, quicklook, export, demo),
):
    app.command()(_command)
app.add_typer(assess_app, name="assess")
app.add_typer(weights_app, name="weights")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Take the options that stand before the command."""
    context.obj = quiet, verbose
    if version:
        from rsseg import __version__

        print(f"rsseg {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 is success, 1 a failed run, 2 bad usage or input, 130 an interruption; each failure is one
    line on stderr. Anything else that is raised is a bug and keeps its traceback.

    Args:
        arguments: what follows ``rsseg``; by default the process's own.
    """
    from rsseg.console import print_error

    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not command.main: it would answer Ctrl-C and usage errors itself, each in its own way.
        with command.make_context("rsseg", given) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    except RssegError as error:
        print_error(f"error: {error}")
        return error.exit_code
    except _UsageError as error:
        where = "rsseg" if error.ctx is None else error.ctx.command_path
        print_error(f"error: {error.format_message().rstrip('.')}; see {where} --help")
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        if not _is_interruption(stop):
            raise
        # A second Ctrl-C while Python cleans up would end in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print_error("interrupted: run the same command again to go on")
        return INTERRUPTED
    return 0


def _is_interruption(stop: BaseException) -> bool:
    """Whether the user pressed Ctrl-C; Lightning makes a SystemExit of it."""
    return isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
