"""The parts of the documentation that are made from the code.

``python tests/reference.py`` writes ``docs/cli.md`` and the settings of ``docs/formats.md`` anew;
``test_docs.py`` fails where they are out of step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from rsseg.cli import app
from rsseg.config import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"

CLI_HEAD = """\
# Command line

<!-- Made by tests/reference.py; change the help texts in rsseg/cli/ and rsseg/options.py. -->

`rsseg COMMAND --help` shows the same on the terminal.

- Results go to stdout; progress, notes and warnings go to stderr. On a terminal every long step has
  a progress bar, elsewhere it writes plain lines.
- Exit codes: 0 success; 1 a run that failed, or a result below what was asked for; 2 bad usage or
  input, nothing was changed; 130 interrupted. A failure is one line on stderr.
- Long commands that were interrupted go on where they were when they are run again in the same way;
  `vectorize` begins anew.
- `--config FILE` takes a TOML file with the [settings of every step](formats.md#settings); an
  option on the command line wins over the file.
- `--quiet` and `--verbose` may stand before or after the command.
- Downloaded weights go to the folder that the environment variable `RSSEG_WEIGHTS` names, by
  default the user's cache folder.
"""


def command_tree(command: Any = None, words: tuple[str, ...] = ("rsseg",)) -> dict[str, Any]:
    """Return all commands and groups by what one types: ``rsseg weights list``."""
    command = command or typer.main.get_command(app)
    found = {" ".join(words): command}
    for name, child in getattr(command, "commands", {}).items():
        found |= command_tree(child, (*words, name))
    return found


def cli_page() -> str:
    """Return ``docs/cli.md``."""
    return CLI_HEAD + "".join(_section(words, one) for words, one in command_tree().items())


def settings_tables() -> str:
    """Return the settings as Markdown, a table for each TOML table."""
    return "".join(_settings(name, kind) for name, kind in SECTIONS.items())


def with_settings(page: str) -> str:
    """Return a page with what lies between the two marks made anew."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{settings_tables()}\n{END}{after}"


# --- Commands -------------------------------------------------------------------------------------


def _section(words: str, command: Any) -> str:
    hints = _types(command)
    arguments_first = sorted(command.params, key=_is_option)
    rows = [_row(parameter, hints.get(parameter.name)) for parameter in arguments_first]
    table = _table(("option", "value", "default", "meaning"), rows) if rows else ""
    usage = _usage(words, command)
    return f"\n## {words}\n\n```\n{usage}\n```\n\n{_text(command.help)}\n{table}"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _types(command: Any) -> dict[str, Any]:
    """Return the annotations of the function behind a command: ``Annotated[type, option]``.

    Typer's own classes for parameters are not the same in all of its versions; these are.
    """
    if command.callback is None:
        return {}
    return get_type_hints(inspect.unwrap(command.callback), include_extras=True)


def _usage(words: str, command: Any) -> str:
    places = [
        p.metavar if p.required else f"[{p.metavar}]" for p in command.params if not _is_option(p)
    ]
    needed = [p for p in command.params if _is_option(p) and p.required]
    options = [f"{p.opts[0]} {p.metavar}" for p in needed]
    more = ["[OPTIONS]"] if any(_is_option(p) and not p.required for p in command.params) else []
    if hasattr(command, "commands"):
        return " ".join([words, *more, "COMMAND ..."])
    return " ".join([words, *places, *options, *more])


def _row(parameter: Any, hint: Any) -> tuple[str, str, str, str]:
    kind, info = get_args(hint)
    if _is_option(parameter):
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        return names, _value(parameter, kind, info), _default(parameter), _text(parameter.help)
    return f"`{parameter.metavar}`", "", _default(parameter), _text(parameter.help)


def _value(parameter: Any, kind: Any, info: Any) -> str:
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return f"`{parameter.metavar}`" + (", repeatable" if parameter.multiple else "")
    [kind] = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    if issubclass(kind, Enum):
        return " or ".join(f"`{one.value}`" for one in kind)
    name = {int: "whole number", float: "number", str: "text"}[kind]
    if info.min is None:
        return name
    return f"{name} from {info.min:g}" + ("" if info.max is None else f" to {info.max:g}")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    said = getattr(parameter, "show_default", True)
    if isinstance(said, str):
        return said
    value = parameter.default
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, bool) or not isinstance(value, int | float | str | Path):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- Settings -------------------------------------------------------------------------------------


def _settings(name: str, kind: Any) -> str:
    texts = dict(_arguments(kind.__doc__))
    default = kind()
    rows = [
        (f"`{field.name}`", f"`{_toml(getattr(default, field.name))}`", _capital(texts[field.name]))
        for field in fields(kind)
    ]
    summary = _text(kind.__doc__.partition("Args:")[0])
    return f"\n### [{name}]\n\n{summary}\n{_table(('key', 'default', 'meaning'), rows)}"


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of what a docstring lists under ``Args:``."""
    listed = inspect.cleandoc(docstring).partition("Args:\n")[2]
    for match in re.finditer(r"^    (\w+): (.+(?:\n {6,}.+)*)", listed, re.MULTILINE):
        yield match[1], " ".join(match[2].split())


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


# --- Markdown -------------------------------------------------------------------------------------


def _text(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _capital(text: str) -> str:
    return _text(text[0].upper() + text[1:])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def main() -> None:
    """Write the pages."""
    (DOCS / "cli.md").write_text(cli_page(), encoding="utf-8")
    page = DOCS / "formats.md"
    page.write_text(with_settings(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
