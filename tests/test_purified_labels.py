"""Pseudo-labels that a vision-language model's opinions mend where the posterior is unsure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chat_server import chat_server
from numpy.testing import assert_array_equal
from test_selftraining import COLS, CORE, ROWS, labelled, layer, saved, site_of

from rsseg.cli import main
from rsseg.errors import InputError
from rsseg.io.layers import LayerSpec
from rsseg.io.opinions import SURE
from rsseg.io.site import Site

FIELD, WOOD = 0, 1
UNSURE, SURE_OF_IT = (0.6, 0.4), (0.8, 0.2)


@pytest.fixture
def site(tmp_path):
    """Cores of which the first column is field, the last untagged, the others are either."""
    return site_of(tmp_path)


def model_of(folder, shares):
    return saved(folder / "model.pt", *shares, names=("field", "wood"))


def with_opinions(site, values):
    """Lay (2, H, W) opinions into the site."""
    opened = Site(site)
    spec = LayerSpec("opinions", channels=2, dtype="uint8", fill=0, cell=1)
    made = opened.scenes["a"].layer(spec, "said")
    for tile in opened.scenes["a"].tiling:
        made.write(tile.core, values[(..., *tile.core.slices)])
    opened.set_layer("opinions", "said")


def opinions_on(*classes):
    """The same opinions on the upper half of every core."""
    values = np.zeros((2, ROWS * CORE, COLS * CORE), np.uint8)
    values[list(classes)] = SURE
    return values * (np.arange(ROWS * CORE) % CORE < CORE // 2)[:, None]


def halves(site, column):
    """The labels of a column's cores: their upper halves, and their lower ones."""
    labels = layer(Site(site), "labels").reshape(ROWS, 2, CORE // 2, COLS, CORE)[:, :, :, column]
    # Within half a cell of another core's tags its scores mix with these.
    return [set(labels[:, half, :, 4:-4].ravel()) for half in (0, 1)]


def test_where_it_is_unsure_opinions_rectify(site, tmp_path):
    with_opinions(site, opinions_on(WOOD))
    labelled(site, model_of(tmp_path, UNSURE), purify="vlm")
    assert halves(site, 1) == halves(site, 2) == [{WOOD}, {FIELD}]


def test_what_the_posterior_is_sure_of_stays(site, tmp_path):
    with_opinions(site, opinions_on(WOOD))
    labelled(site, model_of(tmp_path, SURE_OF_IT), purify="vlm")
    assert halves(site, 1) == [{FIELD}, {FIELD}]


def test_opinions_on_what_tags_exclude_are_not_heard(site, tmp_path):
    with_opinions(site, opinions_on(WOOD))
    labelled(site, model_of(tmp_path, UNSURE), purify="vlm")
    assert halves(site, 0) == [{FIELD}, {FIELD}]
    assert halves(site, 3) == [{255}, {255}]


def test_among_equal_opinions_the_label_stands(site, tmp_path):
    with_opinions(site, opinions_on(FIELD, WOOD))
    labelled(site, model_of(tmp_path, UNSURE), purify="vlm")
    assert halves(site, 1) == [{FIELD}, {FIELD}]


def test_no_opinion_is_as_if_nobody_had_been_asked(site, tmp_path):
    model = model_of(tmp_path, UNSURE)
    labelled(site, model)
    before, key = layer(Site(site), "labels"), Site(site).layers["labels"]
    with_opinions(site, 0 * opinions_on(WOOD))
    labelled(site, model)
    assert Site(site).layers["labels"] == key
    labelled(site, model, purify="vlm")
    assert Site(site).layers["labels"] != key
    assert_array_equal(layer(Site(site), "labels"), before)


def test_without_the_layer_nothing_is_begun(site, tmp_path):
    with pytest.raises(InputError, match="has no opinions of a vision-language model: name one"):
        labelled(site, model_of(tmp_path, UNSURE), purify="vlm")
    assert Site(site).layers == {}


def test_on_the_command_line_a_model_is_asked_once(site, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_of(tmp_path, UNSURE)
    (tmp_path / "settings.toml").write_text(
        "[crf]\niterations = 0\n[classifier]\nwindow = 64\n[vlm]\nwindow = 64\nhalo = 16\n"
        "side = 224\n"
    )
    command = "pseudo-label s.zarr --model model.pt --config settings.toml --proposals none"
    command += " --workers 1 --device cpu"
    everywhere = json.dumps([{"bbox_2d": [0, 0, 1000, 1000], "label": "wood"}])
    monkeypatch.setattr("rsseg.api.opinions.sam_at_hand", lambda: None)
    with chat_server(lambda asked: everywhere, ["looker"]) as server:
        named = ["--vlm-url", server.url, "--vlm-coordinates", "thousandths"]
        assert main([*command.split(), *named]) == 2
        assert "give --purify vlm" in capsys.readouterr().err
        assert not server.asked
        assert main([*command.split(), *named, "--purify", "vlm"]) == 0
        assert halves(site, 1) == [{WOOD}, {WOOD}]
        count = len(server.asked)
        assert count == ROWS * COLS
        assert main([*command.split(), *named, "--purify", "vlm"]) == 0
        assert len(server.asked) == count
    assert main([*command.split(), "--purify", "vlm"]) == 0


def test_a_site_without_tags_is_refused_before_anybody_is_asked(
    site, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for scene in Site(site).scenes.values():
        del scene.group["tags"]
    with chat_server(lambda asked: "[]", ["looker"]) as server:
        command = f"pseudo-label s.zarr --purify vlm --vlm-url {server.url}"
        assert main(command.split()) == 2
        assert "has no tags" in capsys.readouterr().err
        assert not server.asked


def test_under_torchrun_nobody_is_asked(site, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    command = "train s.zarr --out m.pt --method semi --purify vlm --vlm-url http://127.0.0.1:9/v1"
    assert main(command.split()) == 2
    assert "several processes" in capsys.readouterr().err
