from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError

LAND = Classes.from_names(["water", "forest", "field"])

names = st.text(min_size=1, max_size=12)
colours = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def any_classes(draw):
    named = draw(st.lists(names, min_size=2, max_size=8, unique=True))
    count = len(named)
    ids = draw(st.lists(st.integers(0, 254), min_size=count, max_size=count, unique=True))
    shown = draw(st.lists(colours, min_size=count, max_size=count))
    background = draw(st.none() | st.integers(0, count - 1))
    return Classes(tuple(named), tuple(ids), tuple(shown), background)


# --- names --------------------------------------------------------------------------------------


def test_names_alone_are_enough():
    classes = Classes.parse("building, other,road")
    assert classes.names == ("building", "other", "road")
    assert classes.ids == (0, 1, 2)
    assert classes.background == 1
    assert classes.foreground == (0, 2)


def test_one_class_gets_a_background():
    classes = Classes.parse("building")
    assert classes.names == ("background", "building")
    assert classes.foreground == (1,)


@pytest.mark.parametrize("count", [2, 7, 8, 20, 60])
def test_default_colours_are_distinct(count):
    classes = Classes.from_names(["background", *(f"c{i}" for i in range(count))])
    assert len(set(classes.colours)) == count + 1
    first = np.array(classes.colours[: min(count + 1, 8)])
    apart = np.abs(first[:, None] - first).sum(axis=-1)
    assert apart[~np.eye(len(first), dtype=bool)].min() > 60


@pytest.mark.parametrize(
    ("asked", "index"),
    [("forest", 1), (" forest ", 1), (2, 2), ("2", 2), ("2.0", 2), (2.0, 2)],
)
def test_a_class_by_name_or_id(asked, index):
    assert LAND.index(asked) == index


def test_a_name_goes_before_an_id():
    assert Classes(("1", "0"), (0, 1), ((0, 0, 0), (1, 1, 1))).index("1") == 0


@pytest.mark.parametrize("asked", ["Forest", "", 3, -1, "1.5", None])
def test_a_class_that_is_not_there(asked):
    with pytest.raises(InputError, match=r"unknown class .* water, forest, field \(ids 0, 1, 2\)"):
        LAND.index(asked)


# --- ids ----------------------------------------------------------------------------------------


@given(any_classes(), st.data())
def test_indices_become_ids_and_come_back(classes, data):
    known = st.sampled_from([*range(len(classes)), IGNORE])
    indices = data.draw(arrays(np.uint8, (3, 4), elements=known))
    ids = classes.to_ids(indices)
    assert ids.dtype == np.uint8
    assert set(ids.ravel()) <= {*classes.ids, IGNORE}
    for dtype in ("uint8", "int16", "float64"):
        assert_array_equal(classes.from_ids(ids.astype(dtype)), indices)


@given(any_classes())
def test_any_other_id_is_no_class(classes):
    values = np.array([v for v in range(-5, 300) if v not in classes.ids], np.int16)
    assert (classes.from_ids(values) == IGNORE).all()
    assert (classes.from_ids(np.array([np.nan, np.inf, 0.5])) == IGNORE).all()


@given(any_classes())
def test_the_colour_table_is_by_id(classes):
    table = classes.colour_table()
    assert table.keys() == {*classes.ids, IGNORE}
    assert table[IGNORE][3] == 0
    for class_id, colour in zip(classes.ids, classes.colours, strict=True):
        assert table[class_id] == (*colour, 255)


# --- descriptions -------------------------------------------------------------------------------


@given(any_classes())
def test_a_description_gives_the_same_classes(classes):
    assert Classes.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes


def toml(folder: Path, *rows: str) -> str:
    path = folder / "classes.toml"
    path.write_text("\n".join(f"[[classes]]\n{row}" for row in rows), encoding="utf-8")
    return str(path)


def test_a_toml_file(tmp_path):
    text = toml(
        tmp_path,
        'name = "été"\nid = 7\ncolour = "#0A141e"',
        'name = "b"\nid = 3\ncolor = [1, 2, 3]',
        'name = "rest"\nid = 9\nbackground = true',
        'name = "other"\nid = 0\nbackground = false',
    )
    classes = Classes.parse(text)
    assert classes.names == ("été", "b", "rest", "other")
    assert classes.ids == (7, 3, 9, 0)
    assert classes.colours[:2] == ((10, 20, 30), (1, 2, 3))
    assert classes.background == 2


@pytest.mark.parametrize("name", ["background", "Other"])
def test_the_background_is_known_by_its_name(tmp_path, name):
    classes = Classes.parse(toml(tmp_path, 'name = "a"', f'name = "{name}"'))
    assert classes.background == 1
    said = Classes.parse(toml(tmp_path, 'name = "a"', f'name = "{name}"\nbackground = false'))
    assert said.background is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "at least one"),
        (('name = "a"',), "at least two classes are needed, got 1"),
        (('name = "a"', 'name = "a"'), "duplicate class name 'a'"),
        (('name = "a"\nid = 1', 'name = "b"\nid = 1'), "duplicate class id 1"),
        (('name = "a"\nid = 1', 'name = "b"'), "duplicate class id 1"),
        (('name = "a"', 'name = ""'), "name is empty"),
        (('name = "a"', "id = 1"), "without a name"),
        (('name = "a"', "name = 3"), "without a name"),
        (('name = "a"', 'name = "b"\nspare = 1'), "unknown key 'spare'"),
        (('name = "a"', 'name = "b"\nid = 255'), "class id 255 is not .* 0 to 254"),
        (('name = "a"', 'name = "b"\nid = -1'), "class id -1 is not"),
        (('name = "a"', 'name = "b"\nid = 1.0'), r"class id 1\.0 is not"),
        (('name = "a"', 'name = "b"\nid = "1"'), "class id '1' is not"),
        (('name = "a"', 'name = "b"\nid = true'), "class id True is not"),
        (('name = "a"', 'name = "b"\ncolour = "red"'), "colour 'red' is neither"),
        (('name = "a"', 'name = "b"\ncolour = "#12345"'), "colour '#12345' is neither"),
        (('name = "a"', 'name = "b"\ncolour = [1, 2]'), "is neither"),
        (('name = "a"', 'name = "b"\ncolour = [1, 2, 256]'), "is neither"),
        (('name = "a"', 'name = "b"\ncolour = 7'), "colour 7 is neither"),
        (('name = "a"\nbackground = true', 'name = "b"\nbackground = true'), "only one class"),
    ],
)
def test_descriptions_that_do_not_serve(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as caught:
        Classes.parse(toml(tmp_path, *rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a,a", "a,,b", "", ","])
def test_names_that_do_not_serve(text):
    with pytest.raises(InputError):
        Classes.parse(text)


def test_files_that_do_not_serve(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Classes.parse(str(tmp_path / "gone.toml"))
    (tmp_path / "bad.toml").write_text("[[classes")
    with pytest.raises(InputError, match="not a readable TOML file"):
        Classes.parse(str(tmp_path / "bad.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9t\xe9")
    with pytest.raises(InputError, match="not a readable TOML file"):
        Classes.parse(str(tmp_path / "latin.toml"))
    (tmp_path / "flat.toml").write_text('classes = ["a", "b"]')
    with pytest.raises(InputError, match="table with a name"):
        Classes.parse(str(tmp_path / "flat.toml"))
