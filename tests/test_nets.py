"""Networks: that published weights land where they belong, and nothing else gets in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from skimage.transform import resize

from rsseg import __version__
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import ClassifierConfig, TrainConfig
from rsseg.errors import InputError
from rsseg.nets.backbone import build_backbone, imagenet_weights, load_features
from rsseg.nets.checkpoint import FORMAT, KEY, Card, Checkpoint, save_checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import default_batch_size, pick_device, training_precision
from rsseg.nets.segmenter import TINY_RADIUS, Tiny, build_segmenter, encoder_parameters
from rsseg.nets.tensors import read_state_dict
from rsseg.ops.cam import pool

BANDS = Bands((3, 1), "uint16", (1.5, 2.5), (0.1, 3.0), (0, 1, 1), (0.0,) * 3, (9.0,) * 3)
CLASSES = Classes(("roof", "other", "tree"), (7, 0, 254), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), 1)
SMALL = ClassifierConfig("test_efficientnet", "none", (8, 16), hidden=4)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# --- Backbones -----------------------------------------------------------------------------------


def photograph(name):
    """A photograph as the ImageNet networks of the TensorFlow family want it: (1, 3, 224, 224)."""
    image = getattr(skimage.data, name)()[..., :3]
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True)
    return torch.tensor((square - 0.5) / 0.5, dtype=torch.float32).permute(2, 0, 1)[None]


CATS = {281, 282, 283, 284, 285}
COFFEE = {967, 968, 504}  # espresso, cup, coffee mug
ROCKET = {657, 744, 812}  # missile, projectile, space shuttle


@pytest.mark.parametrize(
    ("name", "classes"), [("cat", CATS), ("coffee", COFFEE), ("rocket", ROCKET)]
)
def test_the_published_weights_know_photographs(name, classes):
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(imagenet_weights("efficientnet_lite0", "auto"), strict=True)
    with torch.inference_mode():
        shares = network(photograph(name)).softmax(1)[0]
    assert int(shares.argmax()) in classes
    assert float(shares[list(classes)].sum()) > 0.4


def test_a_backbone_has_the_published_weights_and_levels():
    features = build_backbone("efficientnet_lite0", in_channels=3, strides=(8, 16))
    published = imagenet_weights("efficientnet_lite0", "auto")
    own = state(features.eval())
    assert all(torch.equal(tensor, published[name]) for name, tensor in own.items())
    with torch.inference_mode():
        shapes = [tuple(level.shape) for level in features(torch.zeros(1, 3, 96, 64))]
    assert shapes == [(1, 40, 12, 8), (1, 112, 6, 4)]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_first_convolution_takes_any_number_of_bands(count):
    published = imagenet_weights("efficientnet_lite0", "auto")["conv_stem.weight"]
    features = build_backbone("efficientnet_lite0", in_channels=count, strides=(8,)).eval()
    adapted = features.conv_stem.weight
    # Red, green, blue, red … scaled to the same brightness; one band is their sum.
    turns = torch.arange(count) % 3
    expected = published.sum(1, keepdim=True) if count == 1 else published[:, turns] * 3 / count
    torch.testing.assert_close(adapted.detach(), expected)
    with torch.inference_mode():
        assert features(torch.zeros(1, count, 64, 64))[0].shape == (1, 40, 8, 8)


def test_a_segmenters_encoder_has_the_same_weights():
    config = TrainConfig("deeplabv3plus", "efficientnet_lite0")
    network = build_segmenter(config, 4, 3)
    published = imagenet_weights("efficientnet_lite0", "auto")
    assert torch.equal(network.encoder.model.bn1.weight, published["bn1.weight"])
    assert len(list(encoder_parameters(network))) > 50
    random = build_segmenter(replace(config, weights="none"), 4, 3)
    first, second = (one.encoder.model.conv_stem.weight for one in (random, network))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        ("efficientnet_lite0", (64,), "no level of stride 64; its strides are 2, 4, 8, 16, 32"),
        ("test_convnext", (2, 8), "no level of stride 2; its strides are 4, 8, 16, 32"),
        ("test_vit", (8,), "no level of stride 8; its strides are 16"),
        ("no_such_net", (8,), "backbone 'no_such_net' cannot be built with timm"),
    ],
)
def test_backbones_that_do_not_fit(name, strides, message):
    with pytest.raises(InputError, match=message):
        build_backbone(name, in_channels=3, strides=strides, weights="none")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig("no_such_arch", weights="none"), "segmenter 'no_such_arch'"),
        (TrainConfig("unet", "no_such_net", "none"), "encoder 'no_such_net' cannot be built"),
    ],
)
def test_segmenters_that_cannot_be_built(config, message):
    with pytest.raises(InputError, match=message):
        build_segmenter(config, 3, 2)


# --- Weights from files --------------------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickled_code_is_never_run(tmp_path, wrapped):
    trap = Trap(tmp_path / "sprung")
    torch.save({"weight": torch.ones(1), "x": trap} if wrapped else trap, tmp_path / "evil.pth")
    for read in (
        read_state_dict,
        lambda path: build_backbone(
            "test_efficientnet", in_channels=3, strides=(8,), weights=str(path)
        ),
        lambda path: Checkpoint(path, "segmenter"),
    ):
        with pytest.raises(InputError):
            read(tmp_path / "evil.pth")
    assert not trap.path.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"random bytes", bytes(range(256)) * 40])
def test_random_files_are_not_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [torch.ones(3), {"a": [1, 2]}, {"state_dict": {}}])
def test_what_is_not_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected tensors by name"):
        read_state_dict(tmp_path / "w.pth")


def test_missing_weights():
    with pytest.raises(InputError, match="no such weights file"):
        imagenet_weights("test_efficientnet", "nowhere.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_may_be_a_file(tmp_path, suffix):
    full = timm.create_model("test_efficientnet")
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(full.state_dict(), path)
    else:
        safetensors.torch.save_file(state(full), path)
    features = build_backbone("test_efficientnet", in_channels=3, strides=(16,), weights=str(path))
    assert torch.equal(features.conv_stem.weight, full.conv_stem.weight)


def test_weights_of_another_network(tmp_path):
    features = build_backbone("test_efficientnet", in_channels=3, strides=(8,), weights="none")
    whole = state(features)
    first = next(iter(whole))
    for wrong, message in [
        ({}, f"do not fit the network: no tensor '{first}'"),
        ({**whole, "bn1.weight": torch.ones(5)}, r"'bn1.weight' is \(5,\), expected \(24,\)"),
    ]:
        with pytest.raises(InputError, match=message):
            load_features(features, wrong, "weights")


# --- Classifier ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(8,), (16,), (16, 8), (4, 32)])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 64)])
def test_a_cam_has_a_value_per_cell(strides, height, width):
    network = Classifier(replace(SMALL, strides=strides), 2, 5).eval()
    cell = min(strides)
    with torch.inference_mode():
        cam = network(torch.zeros(1, 2, height, width))
    assert cam.shape == (1, 5, height // cell, width // cell)
    assert network.cell == cell


def test_pooling_then_classifying_is_classifying_then_pooling():
    network = Classifier(replace(SMALL, hidden=0, strides=(8,), pooling="mean"), 3, 4).eval()
    image, weight = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        first = pool(network(image), weight, 2)
        features = network.backbone(image)[0]
        second = network.heads[0](pool(features, weight, 2).permute(0, 3, 1, 2))
    torch.testing.assert_close(first, second.permute(0, 2, 3, 1), atol=1e-6, rtol=1e-4)


def test_the_last_convolution_has_no_bias():
    for hidden in (0, 8):
        heads = Classifier(replace(SMALL, hidden=hidden), 3, 2).heads
        assert len(heads) == 2
        assert all(head[-1].bias is None for head in heads)


# --- Segmenter -----------------------------------------------------------------------------------


def test_tiny_sees_exactly_its_radius():
    torch.manual_seed(0)
    network = Tiny(2, 3).eval()
    image = torch.randn(1, 2, 41, 41, requires_grad=True)
    network(image)[0, :, 20, 20].sum().backward()
    rows, cols = image.grad.abs().sum((0, 1)).nonzero().T
    low, high = 20 - TINY_RADIUS, 20 + TINY_RADIUS
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (low, high, low, high)


@pytest.mark.parametrize("arch", ["deeplabv3plus", "unet", "tiny"])
def test_logits_cover_the_image(arch):
    config = TrainConfig(arch, "efficientnet_lite0", "none")
    network = build_segmenter(config, 5, 4).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 5, 64, 96)).shape == (1, 4, 64, 96)


# --- Checkpoints ---------------------------------------------------------------------------------


def saved(path, kind="segmenter", **changes):
    if kind == "segmenter":
        config = TrainConfig("tiny", window=96, overlap=0.4, lr=0.5)
        network = build_segmenter(config, 2, 3)
    else:
        config = SMALL
        network = Classifier(config, 2, 2)
    network.train()
    network(torch.randn(2, 2, 64, 64))  # the norms' running statistics belong to it as well
    card = Card(kind, config, CLASSES, BANDS, 0.3)
    save_checkpoint(path, network, replace(card, **changes))
    return network, card


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_a_checkpoint_carries_everything(tmp_path, kind):
    network, card = saved(tmp_path / "model.pt", kind)
    checkpoint = Checkpoint(tmp_path / "model.pt", kind)
    assert checkpoint.card == card
    assert checkpoint.card.version == __version__
    again = checkpoint.segmenter() if kind == "segmenter" else checkpoint.classifier()
    assert not again.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_same_network_is_the_same_file(tmp_path):
    network, card = saved(tmp_path / "a.pt")
    save_checkpoint(tmp_path / "b.pt", network.to(memory_format=torch.channels_last), card)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    prints = {Checkpoint(tmp_path / name, "segmenter").fingerprint for name in ("a.pt", "b.pt")}
    assert len(prints) == 1
    saved(tmp_path / "b.pt")
    assert Checkpoint(tmp_path / "b.pt", "segmenter").fingerprint not in prints


def test_a_checkpoint_of_the_wrong_kind(tmp_path):
    saved(tmp_path / "c.pt", "classifier")
    with pytest.raises(InputError, match="holds a classifier, a segmenter is needed here"):
        Checkpoint(tmp_path / "c.pt", "segmenter")


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "header", "missing"])
def test_what_is_not_a_checkpoint(tmp_path, damage):
    path = tmp_path / "model.pt"
    saved(path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={"made_by": "others"})
    elif damage == "header":
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={KEY: "not JSON"})
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"model\.pt: (not a checkpoint|no such checkpoint)"):
        Checkpoint(path, "segmenter")


def header(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()[KEY])


def test_a_checkpoint_of_the_future(tmp_path):
    path = tmp_path / "model.pt"
    network, _ = saved(path)
    changed = {KEY: json.dumps({**header(path), "format": FORMAT + 1})}
    safetensors.torch.save_file(state(network), path, metadata=changed)
    with pytest.raises(InputError, match=f"checkpoint format 2, this rsseg reads format {FORMAT}"):
        Checkpoint(path, "segmenter")


def test_tensors_that_do_not_fit_the_header(tmp_path):
    path = tmp_path / "model.pt"
    network, _ = saved(path)
    tensors = state(network)
    tensors.pop("layers.0.weight")
    safetensors.torch.save_file(tensors, path, metadata={KEY: json.dumps(header(path))})
    with pytest.raises(InputError, match="do not fit the network it names; the file is damaged"):
        Checkpoint(path, "segmenter").segmenter()


def test_a_header_of_unknown_keys(tmp_path):
    path = tmp_path / "model.pt"
    network, _ = saved(path)
    described = header(path)
    described["config"]["surprise"] = 1
    safetensors.torch.save_file(state(network), path, metadata={KEY: json.dumps(described)})
    with pytest.raises(InputError, match=r"model\.pt: unknown key 'surprise'"):
        Checkpoint(path, "segmenter")


# --- Devices -------------------------------------------------------------------------------------


def test_devices_by_name(monkeypatch):
    for cuda, mps, expected in [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: bool(there))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: bool(there))
        assert pick_device("auto").type == expected
    assert pick_device("cpu") == torch.device("cpu")
    for name, message in [
        ("tpu", "unknown device 'tpu': choose auto, cpu, cuda or mps"),
        ("cuda:1", "device 'cuda:1' is not available here"),
        ("mps", "device 'mps' is not available here"),
    ]:
        with pytest.raises(InputError, match=message):
            pick_device(name)


def test_precision_and_batches_by_device(monkeypatch):
    cpu = torch.device("cpu")
    for there, expected in [(True, "bf16-mixed"), (False, "32-true")]:
        monkeypatch.setattr("rsseg.nets.device.cpu_has_bf16", lambda there=there: there)
        assert training_precision(cpu) == expected
    assert training_precision(torch.device("mps")) == "32-true"
    assert default_batch_size(torch.device("cuda")) > default_batch_size(cpu) > 1


# --- Memory ---------------------------------------------------------------------------------------

FAULTS = """
import resource, sys, torch
from rsseg.nets.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    held = [torch.ones(2 * 2**20) for _ in range(30)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    def faults(way):
        command = [sys.executable, "-c", FAULTS, way]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 2
