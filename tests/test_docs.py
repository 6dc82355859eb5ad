"""The documentation: in step with the code, its commands exist and its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from reference import cli_page, command_tree, with_settings

import rsseg
from rsseg import api
from rsseg.api.orders import RUN_TAG
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import Settings, TrainConfig
from rsseg.io.mapfile import CLASSES_TAG
from rsseg.nets.checkpoint import Card
from rsseg.nets.weights import REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "examples/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
COMMANDS = command_tree()
REMAKE = "run: python tests/reference.py"


def blocks(page, *languages):
    """The contents of a page's fenced blocks of some languages ("" is none)."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [text for language, text in fences if language in languages]


def spans(page):
    """The inline code of a page, fenced blocks left out."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", text)


def command_lines():
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    if part.split()[:1] == ["rsseg"]:
                        yield page, part.strip()


def find(words):
    """The longest command that words begin with, and the words after it."""
    count = 1
    while " ".join(words[: count + 1]) in COMMANDS and count < len(words):
        count += 1
    return " ".join(words[:count]), words[count:]


def options(name):
    return {
        option
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


# --- In step with the code -----------------------------------------------------------------------


def test_the_command_reference():
    assert PAGES["docs/cli.md"] == cli_page(), REMAKE


def test_the_settings():
    page = PAGES["docs/formats.md"]
    assert page == with_settings(page), REMAKE


def test_the_changelog_knows_this_version():
    assert f"## {rsseg.__version__}" in PAGES["CHANGELOG.md"]


def test_the_citation_knows_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {rsseg.__version__}\n" in citation


@pytest.mark.parametrize("name", api.__all__)
def test_the_python_api(name):
    assert f"| `{name}` |" in PAGES["docs/architecture.md"]
    documented = inspect.getdoc(getattr(api, name)) or ""
    assert documented
    listed = re.findall(r"^    (\w+):", documented, re.MULTILINE)
    assert set(inspect.signature(getattr(api, name)).parameters) <= set(listed)


def test_the_architecture_names_every_module():
    package = Path(rsseg.__file__).parent
    names = {path.stem for path in package.rglob("*.py")} - {"__init__"}
    page = PAGES["docs/architecture.md"]
    assert {name for name in names if not re.search(rf"\b{name}\b", page)} == set()


def test_the_formats():
    bands = Bands((1,), "uint8", (0.0,), (1.0,), (0, 0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    card = Card("segmenter", TrainConfig(), Classes.from_names(["a", "b"]), bands)
    keys = {*json.loads(card.to_json()), CLASSES_TAG, RUN_TAG, *("tile", "reviewed")}
    assert keys <= set(spans("docs/formats.md"))


def test_the_weights():
    for weights in REGISTRY.values():
        row = rf"^\|.*`{weights.name}`.*\| {weights.licence} \|$"
        assert re.search(row, PAGES["README.md"], re.MULTILINE), weights.name


# --- Commands and files that a reader may copy ----------------------------------------------------


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_commands_can_be_typed(page, line):
    name, arguments = find(shlex.split(line))
    COMMANDS[name].make_context(name, arguments)  # fails on what the command does not take


def test_the_readme_shows_the_whole_way():
    shown = {find(shlex.split(line))[0] for page, line in command_lines() if page == "README.md"}
    groups = {name for name, command in COMMANDS.items() if hasattr(command, "commands")}
    assert shown == set(COMMANDS) - groups


def test_the_readme_sets_up_with_two_commands():
    shown = "".join(blocks("README.md", "console")).splitlines()
    assert {"pip install . && rsseg demo", "pip install '.[test]' && pytest"} <= set(shown)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    for span in spans(page):
        if re.match(r"rsseg [a-z-]", span):
            name, rest = find(span.split())
            assert name != "rsseg" or span == "rsseg --help", span
            rest = [word for word in rest if word != "--help"]
            assert {w for w in rest if w.startswith("--")} <= options(name), span


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    known = set().union(*(options(name) for name in COMMANDS))
    named = {span.split()[0] for span in spans(page) if span.startswith("--")}
    assert named <= known


def test_python_examples_call_what_exists():
    (example,) = blocks("docs/architecture.md", "python")
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    verbs = [call for call in calls if getattr(call.func, "id", None) in api.__all__]
    assert len(verbs) == 6
    for call in verbs:
        given = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(getattr(api, call.func.id)).bind(*call.args, **given)


def test_toml_examples_are_valid(tmp_path):
    classes, settings = blocks("docs/formats.md", "toml")
    assert Classes.from_dict(tomllib.loads(classes)).background == 1
    path = tmp_path / "settings.toml"
    path.write_text(settings, encoding="utf-8")
    assert Settings.load(path).train.encoder == "resnet50"


# --- Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not re.match(r"https?://", target):
            path, _, heading = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.is_file(), f"{page} links to {target}"
            assert not heading or heading in headings(file), f"{page} links to {target}"


def headings(file):
    """What GitHub and others make of a page's headings to link to."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}
