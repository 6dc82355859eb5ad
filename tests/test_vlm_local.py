"""Local vision-language models: a small Qwen2.5-VL of the real classes, by way of its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from helpers import noise, write_raster
from small_vlms import small_vlm

from rsseg.api import tile
from rsseg.api.opinions import ask_opinions
from rsseg.classes import Classes
from rsseg.config import TileConfig, VlmConfig
from rsseg.errors import InputError
from rsseg.nets import vlm as vlm_module
from rsseg.nets.vision import guess_coordinates
from rsseg.nets.vlm import LocalModel
from rsseg.ops.answers import question

CPU = torch.device("cpu")
QUESTION = question(["building", "road"], "pixels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(str(folder), CPU, max_tokens=12)


def images(count: int, side: int = 112) -> list:
    random = np.random.default_rng(3)
    return [random.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def test_answers_are_greedy_and_hang_on_the_image(model):
    first, second = model.ask(images(2), QUESTION)
    assert first != second
    assert model.ask(images(2), QUESTION) == [first, second]
    assert model.ask(images(2)[1:], QUESTION) == [second]
    # The prompt is no part of an answer.
    assert "visible" not in first
    assert "assistant" not in first


def test_answers_hang_on_the_question(model):
    assert model.ask(images(1), QUESTION) != model.ask(images(1), "What is this?")


def test_answers_are_no_longer_than_wanted(model):
    short = replace(model, max_tokens=3).ask(images(1), QUESTION)[0]
    assert model.ask(images(1), QUESTION)[0].startswith(short)
    assert len(short) < len(model.ask(images(1), QUESTION)[0])


@pytest.mark.parametrize(
    ("size", "seen"), [((896, 896), (896, 896)), ((100, 200), (112, 196)), ((30, 30), (56, 56))]
)
def test_boxes_are_in_pixels_of_what_the_processor_makes_of_an_image(model, size, seen):
    assert model.coordinates == "pixels"
    assert model.frame(size) == seen


def test_the_frame_is_what_the_network_is_given(model):
    given = model._processor.image_processor(images=images(1, 100), return_tensors="pt")
    _, rows, cols = given["image_grid_thw"][0].tolist()
    assert model.frame((100, 100)) == (14 * rows, 14 * cols)


def test_coordinates_can_be_said(folder):
    model = LocalModel(str(folder), CPU, measures="thousandths")
    assert model.coordinates == "thousandths"
    assert model.frame((512, 512)) == (1000, 1000)


@pytest.mark.parametrize(
    ("name", "coordinates"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "pixels"),
        ("qwen2_5_vl", "pixels"),
        ("qwen2.5vl:7b", "pixels"),
        ("/models/Qwen2.5-VL-7B-Q4_K_M.gguf", "pixels"),
        ("Qwen/Qwen2-VL-2B-Instruct", "thousandths"),
        ("qwen3_vl", "thousandths"),
        ("Qwen/Qwen3-VL-8B-Instruct", "thousandths"),
        ("llava", "thousandths"),
    ],
)
def test_coordinates_by_name(name, coordinates):
    assert guess_coordinates(name) == coordinates


def test_other_weights_are_another_model(model, folder, tmp_path):
    assert model.identity == LocalModel(str(folder), CPU, max_tokens=12).identity
    assert model.identity != replace(model, max_tokens=13).identity
    other = small_vlm(tmp_path / folder.name)
    assert LocalModel(str(other), CPU, max_tokens=12).identity != model.identity
    json.dumps(model.identity)
    assert str(folder.parent) not in json.dumps(model.identity)


def test_pickled_weights_are_not_read(folder, tmp_path):
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        LocalModel(str(tmp_path), CPU).prepare()


def test_code_of_a_model_is_not_run(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    config |= {"model_type": "evil", "auto_map": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    witness = tmp_path / "witness"
    (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    with pytest.raises(InputError, match="not a vision-language model"):
        LocalModel(str(tmp_path), CPU).prepare()
    assert not witness.exists()


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "bert"}', "no json"])
def test_folders_that_hold_no_such_model(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="not a vision-language model") as caught:
        LocalModel(str(tmp_path), CPU).prepare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "message"), [(3, "4 or 8"), (4, "NVIDIA")])
def test_quantising_what_cannot_be(bits, message):
    with pytest.raises(InputError, match=message):
        LocalModel("anything", CPU, bits=bits)


def test_quantising_without_bitsandbytes(monkeypatch):
    there = ("transformers",)
    monkeypatch.setattr(vlm_module, "find_spec", lambda name: name in there or None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        LocalModel("anything", torch.device("cuda"), bits=4)


def test_without_transformers(monkeypatch):
    monkeypatch.setattr(vlm_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"rsseg\[vlm\]"):
        LocalModel("anything", CPU)


def test_a_site_is_asked(folder, tmp_path):
    raster = write_raster(tmp_path / "ortho.tif", noise((3, 64, 64)))
    classes = Classes.parse("building,other")
    site = tile([raster], tmp_path / "s.zarr", classes, config=TileConfig(64, 0.5))
    config = VlmConfig(window=64, halo=16, side=224, max_tokens=4)
    report = ask_opinions(site.path, vlm=str(folder), sam="boxes", config=config, device="cpu")
    assert (report.windows, report.answered, report.readable) == (4, 4, 0)  # it talks nonsense
    texts = [json.loads(path.read_text()) for path in report.answers.glob("ortho/*.json")]
    assert all(one["frame"] == [224, 224] and one["answer"] for one in texts)


def test_loading_shows_nothing(folder, capfd):
    LocalModel(str(folder), CPU, max_tokens=1).ask(images(1), QUESTION)
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""
