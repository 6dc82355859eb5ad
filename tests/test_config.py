from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from rsseg.config import (
    RECIPES,
    SECTIONS,
    CamConfig,
    ClassifierConfig,
    CrfConfig,
    Settings,
    TileConfig,
    TrainConfig,
    fingerprint,
    from_table,
    with_options,
)
from rsseg.errors import InputError
from rsseg.options import RecipeName

FIELDS = [(kind, field.name) for kind in SECTIONS.values() for field in fields(kind)]


def other(value):
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case ():
            return (1,)
        case tuple():
            return value[:-1]
    raise AssertionError(value)


# --- fingerprints -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SECTIONS.values())
def test_equal_configurations_have_equal_fingerprints(kind):
    found = fingerprint(kind())
    assert found == fingerprint(kind(**{f.name: getattr(kind(), f.name) for f in fields(kind)}))
    assert len(found) == 12
    assert int(found, 16) >= 0


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_every_field_changes_the_fingerprint(kind, name):
    changed = replace(kind(), **{name: other(getattr(kind(), name))})
    assert fingerprint(changed) != fingerprint(kind())


def test_kinds_and_order_change_the_fingerprint():
    found = {fingerprint(kind()) for kind in SECTIONS.values()}
    assert len(found) == len(SECTIONS)
    assert fingerprint(CamConfig(), CrfConfig()) != fingerprint(CrfConfig(), CamConfig())


def test_a_fingerprint_lasts():
    # Layers on disk are found by it: it must be the same in every process and every version.
    text = json.dumps([{"TileConfig": {"overlap": 0.25, "size": 256}}, "x"], separators=(",", ":"))
    assert fingerprint(TileConfig(), "x") == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": (2,), "a": 1})


def test_configurations_are_values():
    config = TrainConfig()
    with pytest.raises(FrozenInstanceError):
        config.window = 1
    assert config == TrainConfig()
    assert hash(config) == hash(TrainConfig())


def test_options_that_were_not_given_change_nothing():
    config = CamConfig()
    assert with_options(config, flips=None, scales=None) == config
    assert with_options(config, flips=False) == replace(config, flips=False)


# --- TOML ---------------------------------------------------------------------------------------


def load(folder: Path, text: str) -> Settings:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return Settings.load(path)


def test_no_file_gives_the_defaults(tmp_path):
    assert Settings.load(None) == Settings() == load(tmp_path, "")


def test_sections_are_those_of_the_settings():
    assert list(SECTIONS) == [field.name for field in fields(Settings)]
    assert all(type(getattr(Settings(), name)) is kind for name, kind in SECTIONS.items())


def test_a_file_changes_what_it_names(tmp_path):
    settings = load(
        tmp_path,
        "[tile]\nsize = 128\noverlap = 0\n"
        "[cam]\nscales = [1, 2.5]\nflips = false\n"
        '[train]\narch = "tiny"\n',
    )
    assert settings.tile == TileConfig(128, 0.0)
    assert type(settings.tile.overlap) is float
    assert settings.cam == CamConfig(scales=(1.0, 2.5), flips=False)
    assert settings.train == TrainConfig(arch="tiny")
    assert settings.crf == CrfConfig()


def test_a_recipe_is_what_a_file_starts_from(tmp_path):
    assert load(tmp_path, "[classifier]\nhidden = 8").classifier == ClassifierConfig(hidden=8)
    paper = RECIPES["paper"]
    changed = replace(paper.classifier, hidden=8, affinity_strides=())
    text = 'recipe = "paper"\n[classifier]\nhidden = 8\naffinity_strides = []'
    assert load(tmp_path, text) == replace(paper, classifier=changed)
    # What the command line says wins over the file's recipe, not over its other keys.
    cover = Settings.load(tmp_path / "run.toml", "cover").classifier
    assert cover == ClassifierConfig(hidden=8)
    load(tmp_path, "[cam]\nflips = false")
    both = Settings.load(tmp_path / "run.toml", "paper")
    assert both == replace(paper, cam=replace(paper.cam, flips=False))
    assert Settings.load(None, "paper") == paper
    with pytest.raises(InputError, match=r"recipe = 'papers' is none of cover, objects, paper"):
        Settings.load(None, "papers")


def test_recipes_are_those_of_the_command_line():
    assert [one.value for one in RecipeName] == list(RECIPES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tile", "not a readable TOML file"),
        ("[tiles]", r"unknown table \[tiles\]; the tables are tile, classifier"),
        ("tile = 3", "unknown table"),
        ("[tile]\nsise = 3", "unknown key 'sise'; the keys are size, overlap"),
        ('[tile]\nsize = "256"', "size = '256' is not a int"),
        ('recipe = "x"', r"run.toml: recipe = 'x' is none of cover, objects, paper"),
        ("recipe = 1", "recipe = 1 is none of"),
        ("[classifier]\naffinity_strides = [8.5]", r"affinity_strides = 8\.5 is not a int"),
        ("[cam]\nscales = []", r"scales = \[\] is not a tuple"),
        ("[tile]\nsize = 256.0", r"size = 256\.0 is not a int"),
        ("[tile]\nsize = true", "size = True is not a int"),
        ("[cam]\nflips = 1", "flips = 1 is not a bool"),
        ("[cam]\nscales = 1.0", r"scales = 1\.0 is not a tuple"),
        ('[cam]\nscales = [1.0, "2"]', "scales = '2' is not a float"),
    ],
)
def test_files_that_do_not_serve(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, text)
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"gone\.toml"):
        Settings.load(tmp_path / "gone.toml")


def test_a_table_of_another_source():
    assert from_table(CrfConfig, {"iterations": 3}, "model.pt") == CrfConfig(iterations=3)
    with pytest.raises(InputError, match=r"model\.pt: unknown key 'x'"):
        from_table(CrfConfig, {"x": 3}, "model.pt")
