"""The floors of the house: who may know whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rsseg

PACKAGE = Path(rsseg.__file__).parent
FLOORS = (
    {"errors", "ops", "progress", "__init__"},
    {"grid", "classes", "bands", "config"},
    {"io", "nets"},
    {"learn", "stages"},
    {"run", "executors", "cluster"},
    {"api", "demo"},
    {"cli", "console", "options", "__main__"},
)
"""Lowest first; a room may know its own floor and those below."""

STRANGERS = (("stages", "learn"), ("learn", "stages"), ("io", "nets"))
"""Rooms of one floor of which the first never knows the second."""

GEO = {"rasterio", "geopandas", "pyogrio", "fiona", "osgeo"}
TERMINAL = {"typer", "click", "rich"}


def floor(room: str) -> int:
    (found,) = [height for height, rooms in enumerate(FLOORS) if room in rooms]
    return found


def modules() -> dict[str, Path]:
    """Dotted names, without ``rsseg.``, of all modules of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


MODULES = modules()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[str]:
    """Full names of what a module imports, at its top or inside a function."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def known(module: str) -> set[str]:
    """Modules of rsseg that a module imports."""
    names = set()
    for name in imported(module):
        first, _, rest = name.partition(".")
        if first == "rsseg":
            owner = rest.rpartition(".")[0]
            names.add(rest if rest in MODULES else owner or "__init__")
    return names - {module}


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert room(module) in set().union(*FLOORS), f"{module} has no floor; give it one here"
    higher = {name for name in known(module) if floor(room(name)) > floor(room(module))}
    assert not higher, f"{module} knows floors above its own"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "ops"])
def test_ops_know_nothing_of_rsseg(module):
    assert all(room(name) == "ops" for name in known(module))


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_neighbours_that_do_not_know_each_other(one, other):
    meeting = {m for m in MODULES if room(m) == one and other in map(room, known(m))}
    assert not meeting


def test_there_are_no_import_circles():
    # The package ``api`` loads its verbs when they are first asked for.
    graph = {module: known(module) for module in MODULES if module != "api"}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("libraries", "rooms"),
    [
        (GEO, {"io", "api"}),
        (TERMINAL, {"cli", "console", "options"}),
        ({"zarr", "pyarrow"}, {"io"}),
        ({"numba"}, {"ops"}),
        ({"jinja2"}, {"api"}),
        ({"dask", "distributed"}, {"cluster"}),
    ],
    ids=["files", "terminal", "stores", "compiler", "pages", "clusters"],
)
def test_libraries_stay_in_their_rooms(libraries, rooms):
    outside = {
        module: found
        for module in MODULES
        if room(module) not in rooms
        and (found := {name.partition(".")[0] for name in imported(module)} & libraries)
    }
    assert outside == {}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in FLOORS[-1]])
def test_nothing_below_the_command_line_prints(module):
    calls = [node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
