"""Backbones: the published architectures, their weight files, dilation, and what is frozen."""

from __future__ import annotations

import pickle
import struct
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from torch.nn import functional as F

from rsseg.config import ClassifierConfig, with_options
from rsseg.errors import InputError
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.objective import two_speed_groups
from rsseg.learn.tags import TagObjective
from rsseg.nets.backbone import build_backbone, freeze, load_features
from rsseg.nets.classifier import Classifier
from rsseg.nets.mxnet_params import read_mxnet_params
from rsseg.nets.resnet38d import LEVELS, ResNet38d, from_mxnet
from rsseg.progress import SILENT

# --- ResNet38-d against the published architecture -----------------------------------------------

STRIDED = {
    "2a": (64, 128, 128),
    "3a": (128, 256, 256),
    "4a": (256, 512, 512),
    "5a": (512, 512, 1024),
}
PLAIN = {"2b": (128, 128, 2), "3b": (256, 256, 2), "4b": (512, 512, 5), "5b": (1024, 512, 2)}
BOTTLENECKS = {"6a": (1024, 512, 1024, 2048), "7a": (2048, 1024, 2048, 4096)}


def published_layers():
    """Shapes of model A1's parameters by their names in the published file, without the classifier.

    Written down from Table 1 and the released symbol: B(3, 3) units at levels 2 to 5 (3, 3, 6, 3 of
    them), B(1, 3, 1) at levels 6 and 7, batch norm before each convolution.
    """
    layers = {"conv1a_weight": (64, 3, 3, 3)}

    def stage(name, before, after, side):
        for value in ("gamma", "beta", "moving_mean", "moving_var"):
            layers[f"bn{name}_{value}"] = (before,)
        layers[f"res{name}_weight"] = (after, before, side, side)

    def unit(name, widths, sides, shortcut):
        branches = ["2a", *(f"2b{i + 1}" for i in range(len(sides) - 1))]
        for branch, before, after, side in zip(branches, widths, widths[1:], sides, strict=False):
            stage(f"{name}_branch{branch}", before, after, side)
        if shortcut:
            layers[f"res{name}_branch1_weight"] = (widths[-1], widths[0], 1, 1)

    for name, widths in STRIDED.items():
        unit(name, widths, (3, 3), True)
    for name, (outer, inner, count) in PLAIN.items():
        for index in range(1, count + 1):
            unit(f"{name}{index}", (outer, inner, outer), (3, 3), False)
    for name, widths in BOTTLENECKS.items():
        unit(name, widths, (1, 3, 1), True)
    for value in ("gamma", "beta", "moving_mean", "moving_var"):
        layers[f"bn7_{value}"] = (4096,)
    return layers


def meta_resnet38d():
    with torch.device("meta"):
        return ResNet38d(3, range(len(LEVELS)))


def test_resnet38d_has_the_published_parameters():
    network = meta_resnet38d()
    published = {name: shape for name, shape in published_layers().items() if "moving" not in name}
    count = sum(int(np.prod(shape)) for shape in published.values())
    # 38 layers that count: 18 units of two, two of three (shortcuts aside), and conv1a, less the
    # classifier's one that is not here.
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    shortcuts = [name for name, _ in network.named_modules() if name.endswith("branch1")]
    assert len(convolutions) - len(shortcuts) + 1 == 38
    assert sum(parameter.numel() for parameter in network.parameters()) == count == 105_070_912


def test_every_published_name_has_its_place():
    renamed = from_mxnet({name: torch.empty(shape) for name, shape in published_layers().items()})
    own = meta_resnet38d().state_dict()
    counts = {name for name in own if name.endswith("num_batches_tracked")}
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in own.items() if name not in counts
    }


@pytest.mark.parametrize(("height", "width"), [(64, 96), (256, 256)])
def test_resnet38d_halves_maps_three_times(height, width):
    network = meta_resnet38d()
    maps = network(torch.zeros(2, 3, height, width, device="meta"))
    sizes = [(2, c, height // s, width // s) for _, _, c, s in LEVELS]
    assert [tuple(one.shape) for one in maps] == sizes
    assert network.feature_info.channels() == [128, 256, 512, 1024, 4096]
    assert network.feature_info.reduction() == [2, 4, 8, 8, 8]
    strides = {
        n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1
    }
    assert strides == {f"b{i}.conv_branch{j}" for i in (2, 3, 4) for j in ("1", "2a")}


def test_resnet38d_dilates_and_drops_as_published():
    network = meta_resnet38d()
    dilations = {
        name: module.dilation[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
    }
    assert dilations == {
        "b5.conv_branch2b1": 2,
        **{f"b5_{i}.conv_branch{j}": 2 for i in (1, 2) for j in ("2a", "2b1")},
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }
    drops = [module.p for module in network.modules() if isinstance(module, nn.Dropout2d)]
    assert drops == [0.3, 0.5]


def published_forward(p, x):
    """The published network in functional form, from tensors by their published names."""

    def active(name, x):
        values = (p[f"bn{name}_{v}"] for v in ("moving_mean", "moving_var", "gamma", "beta"))
        return F.relu(F.batch_norm(x, *values))

    def conv(name, x, stride=1, dilation=1):
        weight = p[f"res{name}_weight"]
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    def unit(name, x, stride=1, dilations=(1, 1)):
        start = active(f"{name}_branch2a", x)
        inner = conv(f"{name}_branch2a", start, stride, dilations[0])
        for branch, dilation in zip(("2b1", "2b2"), dilations[1:], strict=False):
            inner = active(f"{name}_branch{branch}", inner)
            inner = conv(f"{name}_branch{branch}", inner, 1, dilation)
        side = conv(f"{name}_branch1", start, stride) if f"res{name}_branch1_weight" in p else x
        return side + inner

    x = F.conv2d(x, p["conv1a_weight"], padding=1)
    for level, count in ((2, 3), (3, 3), (4, 6)):
        x = unit(f"{level}a", x, 2)
        for index in range(1, count):
            x = unit(f"{level}b{index}", x)
    fourth = active("5a_branch2a", x)
    x = unit("5a", x, 1, (1, 2))
    for index in (1, 2):
        x = unit(f"5b{index}", x, 1, (2, 2))
    x = unit("7a", unit("6a", x, 1, (1, 4, 1)), 1, (1, 4, 1))
    return fourth, active("7", x)


def random_parameters(generator):
    """Values under which every batch norm matters."""
    found = {}
    for name, shape in published_layers().items():
        values = torch.rand(shape, generator=generator)
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        found[name] = values + 0.5 if len(shape) == 1 else (values - 0.5) * np.sqrt(12 / fan)
    return found


def test_resnet38d_computes_what_the_published_network_does():
    published = random_parameters(torch.Generator().manual_seed(0))
    network = build_backbone("resnet38d", in_channels=3, strides=(8, 8, 8), weights="none").eval()
    load_features(network, from_mxnet(published), "weights")
    image = torch.rand(1, 3, 24, 16)
    with torch.inference_mode():
        fourth, fifth, last = network(image)
        expected = published_forward(published, image)
    torch.testing.assert_close(fourth, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, expected[1], rtol=1e-3, atol=1e-3)
    assert fifth.shape == (1, 1024, 3, 2)


@pytest.mark.parametrize(
    ("strides", "output_stride", "message"),
    [
        ((16,), 0, "'resnet38d' has no level of stride 16; its strides are 2, 4, 8"),
        ((8, 8, 8, 8), 0, "'resnet38d' has no further level of stride 8"),
        ((8,), 16, "'resnet38d' has output stride 8"),
    ],
)
def test_what_resnet38d_cannot_give(strides, output_stride, message):
    with pytest.raises(InputError, match=message):
        build_backbone(
            "resnet38d",
            in_channels=3,
            strides=strides,
            weights="none",
            output_stride=output_stride,
        )


# --- MXNet's parameter files ---------------------------------------------------------------------

KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")


def mxnet_bytes(arrays, version=2):
    """Write arrays by name as NDArray::Save did in the three versions of the format."""
    out = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        axes = array.ndim
        if version == 0:
            out.append(struct.pack(f"<I{axes}I", axes, *array.shape))
        else:
            out.append(struct.pack("<I", 0xF993FAC8 if version == 1 else 0xF993FAC9))
            out.append(struct.pack("<i", 0) if version == 2 else b"")
            out.append(struct.pack(f"<I{axes}q", axes, *array.shape))
        if axes:
            kind = KINDS.index(array.dtype.name)
            out.append(struct.pack("<iii", 1, 0, kind) + array.tobytes())
    out.append(struct.pack("<Q", len(arrays)))
    out += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join(out)


def some_arrays():
    random = np.random.default_rng(0)
    arrays = {f"arg:{kind}_weight": (random.random((2, 3)) * 100).astype(kind) for kind in KINDS}
    return {**arrays, "aux:bn_moving_mean": np.arange(4, dtype=np.float32), "bare": np.ones((1, 2))}


@pytest.mark.parametrize("version", [0, 1, 2])
def test_mxnet_files_of_every_version_are_read(tmp_path, version):
    arrays = some_arrays()
    path = tmp_path / "net.params"
    path.write_bytes(mxnet_bytes(arrays, version))
    read = read_mxnet_params(path)
    assert list(read) == [name.split(":")[-1] for name in arrays]
    for tensor, array in zip(read.values(), arrays.values(), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


def test_arrays_that_were_never_filled(tmp_path):
    path = tmp_path / "net.params"
    path.write_bytes(mxnet_bytes({"empty": np.float32(0), "after": np.ones(2, np.float32)}))
    read = read_mxnet_params(path)
    assert read["empty"].numel() == 0
    assert read["after"].tolist() == [1, 1]


@pytest.mark.parametrize("version", [0, 2])
def test_cut_mxnet_files(tmp_path, version):
    whole = mxnet_bytes({"arg:a": np.ones((2, 2), np.float32), "aux:b": np.ones(3)}, version)
    path = tmp_path / "cut.params"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.params: not a readable file of MXNet"):
            read_mxnet_params(path)


def test_damaged_mxnet_files_fail_in_no_other_way(tmp_path):
    whole = mxnet_bytes({"arg:a": np.ones((2, 2), np.float32), "aux:b": np.ones(3)})
    path = tmp_path / "bad.params"
    random = np.random.default_rng(1)
    read = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.choice([0, 1, 127, 255, random.integers(256)])
        path.write_bytes(damaged)
        with suppress(InputError):
            read_mxnet_params(path)
            read += 1
    assert 0 < read < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1}), "magic number|cut off"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "items cannot be in"),
        (struct.pack("<QQQIiIq", 0x112, 0, 1, 0xF993FAC9, 0, 1, 2**50), "cut off"),
        (struct.pack("<QQQIi", 0x112, 0, 1, 0xF993FAC9, 1), "sparse"),
        (struct.pack("<QQQII", 0x112, 0, 1, 77, 1), "array of 77 axes"),
        (struct.pack("<QQQIiIqiii", 0x112, 0, 1, 0xF993FAC9, 0, 1, 1, 1, 0, 9), "type of values 9"),
        (struct.pack("<QQQIiIq", 0x112, 0, 1, 0xF993FAC9, 0, 1, -1), "negative"),
        (struct.pack("<QQQQQc", 0x112, 0, 0, 1, 1, b"a"), "0 arrays but 1 names"),
        (struct.pack("<QQQQQc", 0x112, 0, 0, 1, 1, b"\xff"), "codec"),
    ],
)
def test_what_is_no_mxnet_file(tmp_path, content, message):
    path = tmp_path / "other.params"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"other.params: .*({message})"):
        read_mxnet_params(path)


def test_published_files_are_told_by_their_suffix(tmp_path):
    path = tmp_path / "net.params"
    build = {"in_channels": 3, "strides": (8,), "weights": str(path)}
    with pytest.raises(InputError, match=r"net\.params: no such weights file"):
        build_backbone("resnet18", **build)
    path.write_bytes(mxnet_bytes({"arg:fc1_weight": np.ones(3)}))
    with pytest.raises(InputError, match="MXNet parameters without any tensor of ResNet38"):
        build_backbone("resnet18", **build)
    path.write_bytes(mxnet_bytes({"arg:conv1a_weight": np.ones((64, 3, 3, 3), np.float32)}))
    with pytest.raises(
        InputError, match=r"weights of resnet18 do not fit .* no tensor 'conv1\.weight'"
    ):
        build_backbone("resnet18", **build)


def test_counts_of_batches_may_be_missing():
    features = build_backbone("test_efficientnet", in_channels=3, strides=(8,), weights="none")
    state = {n: t for n, t in features.state_dict().items() if "num_batches" not in n}
    assert len(state) < len(features.state_dict())
    load_features(features, state, "weights")


# --- Vision transformers -------------------------------------------------------------------------

DINOV2 = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2")


def published_dinov2(network):
    """A transformer of timm under the tensor names of DINOv2's published checkpoints."""
    state = dict(network.state_dict())
    state["mask_token"] = torch.zeros(1, network.embed_dim)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        first = torch.randn(
            1, 1, network.embed_dim
        )  # the class token's place, which timm adds to it
        state["cls_token"] = state["cls_token"] - first
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.mark.parametrize("name", DINOV2)
def test_published_dinov2_weights_give_its_tokens(tmp_path, name):
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    nn.init.normal_(whole.pos_embed)
    safetensors.torch.save_file(published_dinov2(whole), tmp_path / "dino.safetensors")
    features = build_backbone(
        name, in_channels=3, strides=(16,), weights=str(tmp_path / "dino.safetensors")
    ).eval()
    assert (features.feature_info.channels(), features.feature_info.reduction()) == ([384], [16])
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        (tokens,) = features(image)
        # 64 x 96 px are 4 x 6 cells of 16 px, seen as patches of 14 px.
        seen = F.interpolate(image, (56, 84), mode="bilinear")
        expected = whole.forward_features(seen)[:, whole.num_prefix_tokens :]
    assert tokens.shape == (1, 384, 4, 6)
    torch.testing.assert_close(tokens.flatten(2).mT, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (160, 160), (240, 64)])
@pytest.mark.parametrize(("name", "side"), [("test_vit", 16), (DINOV2[0], 14)])
def test_images_of_any_size_have_a_token_per_cell(name, side, height, width):
    features = build_backbone(name, in_channels=4, strides=(16,), weights="none").eval()
    seen = []
    features.model.patch_embed.register_forward_hook(lambda _, given, __: seen.extend(given))
    with torch.inference_mode():
        (tokens,) = features(torch.zeros(1, 4, height, width))
    assert tokens.shape[-2:] == (height // 16, width // 16)
    assert seen[0].shape[-2:] == (height // 16 * side, width // 16 * side)


def test_tokens_lie_where_the_image_has_them():
    torch.manual_seed(0)
    features = build_backbone("test_vit", in_channels=3, strides=(16,), weights="none").eval()
    image = torch.zeros(1, 3, 64, 96)
    other = image.clone()
    other[..., 16:32, 48:64] = 5
    with torch.inference_mode():
        change = (features(other)[0] - features(image)[0]).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 6) == (1, 3)


def test_positions_of_another_grid_are_interpolated(tmp_path):
    small = timm.create_model("test_vit", img_size=96)
    nn.init.normal_(small.pos_embed)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    features = build_backbone(
        "test_vit", in_channels=5, strides=(16,), weights=str(tmp_path / "small.pth")
    )
    grid = small.pos_embed[:, small.num_prefix_tokens :].reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, (10, 10), mode="bicubic", antialias=True).flatten(2).mT
    positions = features.model.pos_embed[:, small.num_prefix_tokens :]
    torch.testing.assert_close(positions, larger)
    kernel = small.patch_embed.proj.weight[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(features.model.patch_embed.proj.weight, kernel)


def test_a_transformer_gives_its_last_blocks():
    features = build_backbone("test_vit", in_channels=3, strides=(16, 16), weights="none").eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        first, last = features(image)
        features.model.blocks[-1] = nn.Identity()
        shortened = features(image)[1]
    torch.testing.assert_close(first, shortened)
    assert not torch.allclose(first, last)


@pytest.mark.parametrize(
    ("name", "strides", "output_stride", "message"),
    [
        ("test_vit", (8,), 0, "'test_vit' has no level of stride 8; its strides are 16"),
        ("test_vit", (16, 16, 16, 16, 16, 16, 16), 0, "no further level of stride 16"),
        ("test_vit", (16,), 8, "'test_vit' cannot be dilated to output_stride = 8"),
        ("vit_relpos_small_patch16_224", (16,), 0, "cannot take images of any size"),
    ],
)
def test_what_transformers_cannot_give(name, strides, output_stride, message):
    with pytest.raises(InputError, match=message):
        build_backbone(
            name, in_channels=3, strides=strides, weights="none", output_stride=output_stride
        )


@pytest.mark.parametrize("other", ["test_efficientnet", "vit_tiny_patch16_224"])
def test_weights_of_another_transformer(tmp_path, other):
    path = tmp_path / "w.pth"
    torch.save(timm.create_model(other).state_dict(), path)
    with pytest.raises(InputError, match="weights of test_vit do not fit the network"):
        build_backbone("test_vit", in_channels=3, strides=(16,), weights=str(path))


# --- Dilation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_dilated_networks_keep_their_maps_large(name, output_stride):
    build = {"in_channels": 3, "strides": (output_stride,), "weights": "none"}
    stock = build_backbone(name, **{**build, "strides": (32,)})
    dilated = build_backbone(name, **build, output_stride=output_stride).eval()
    with torch.inference_mode():
        (deepest,) = dilated(torch.zeros(1, 3, 64, 96))
    assert deepest.shape[-2:] == (64 // output_stride, 96 // output_stride)
    assert deepest.shape[1] == stock.feature_info.channels()[0]
    load_features(dilated, stock.state_dict(), "weights")


def test_the_deepest_levels_of_one_stride():
    features = build_backbone(
        "resnet18", in_channels=3, strides=(4, 8, 8), weights="none", output_stride=8
    )
    assert features.feature_info.channels() == [64, 256, 512]
    assert features.feature_info.reduction() == [4, 8, 8]


@pytest.mark.parametrize(
    ("name", "strides", "output_stride", "message"),
    [
        ("resnet18", (16,), 8, "no level of stride 16; its strides are 2, 4, 8"),
        ("resnet18", (8, 8), 16, "no further level of stride 8"),
        ("resnet18", (8,), 4, "output_stride = 4: must be 8, 16, or 0"),
        ("densenet121", (8,), 8, "'densenet121' cannot be dilated to output_stride = 8"),
        ("vgg11", (8,), 16, "'vgg11' cannot be dilated to output_stride = 16"),
    ],
)
def test_what_cannot_be_dilated(name, strides, output_stride, message):
    with pytest.raises(InputError, match=message) as caught:
        build_backbone(
            name, in_channels=3, strides=strides, weights="none", output_stride=output_stride
        )
    assert "\n" not in str(caught.value)


def test_the_classifier_is_dilated_by_its_configuration():
    config = ClassifierConfig("resnet18", "none", (8,), hidden=0, output_stride=8)
    network = Classifier(config, 3, 2).eval()
    assert network.heads[0][-1].in_channels == 512
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 8, 8)
    with pytest.raises(InputError, match="output_stride = 17: must be from 0 to 16"):
        with_options(config, output_stride=17)


# --- Freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "frozen", "free"),
    [
        ("resnet18", 1, {"conv1", "bn1"}, {"layer1", "layer2"}),
        ("resnet18", 2, {"conv1", "bn1", "layer1"}, {"layer2"}),
        ("resnet18", 5, {"conv1", "bn1", "layer1", "layer2"}, set()),
        ("convnext_atto", 1, {"stem_0", "stem_1", "stages_0"}, {"stages_1"}),
        ("efficientnet_lite0", 1, {"conv_stem", "bn1", "blocks.0"}, {"blocks.1", "blocks.2"}),
        (
            "test_vit",
            1,
            {"model.cls_token", "model.pos_embed", "model.patch_embed", "model.blocks.0"},
            {"model.blocks.1", "model.norm"},
        ),
    ],
)
def test_frozen_levels_do_not_learn(name, blocks, frozen, free):
    stride = 16 if name == "test_vit" else 8
    backbone = build_backbone(name, in_channels=3, strides=(stride,), weights="none")
    freeze(backbone, blocks, batch_norm=False)

    def within(name, parts):
        return any(name == part or name.startswith(f"{part}.") for part in parts)

    for parameter, values in backbone.named_parameters():
        if within(parameter, frozen):
            assert not values.requires_grad, parameter
        elif within(parameter, free):
            assert values.requires_grad, parameter
    names = [name for name, _ in backbone.named_parameters()]
    for part in frozen | free:
        assert any(within(name, {part}) for name in names), part


def test_the_first_level_of_resnet38d_is_what_seam_freezes():
    with torch.device("meta"):
        backbone = ResNet38d(3, (4,))
    freeze(backbone, 1, batch_norm=False)
    frozen = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1a", "b2", "b2_1", "b2_2"}


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        ("resnet18", (8,), "frozen_blocks = 9: the backbone has 5 levels"),
        ("hrnet_w18_small", (4, 32), "frozen_blocks = 1: this backbone's levels cannot be frozen"),
    ],
)
def test_levels_that_cannot_be_frozen(name, strides, message):
    backbone = build_backbone(name, in_channels=3, strides=strides, weights="none")
    with pytest.raises(InputError, match=message):
        freeze(backbone, 9 if name == "resnet18" else 1, batch_norm=False)


FROZEN = ClassifierConfig("resnet18", "none", (8,), hidden=4, pooling="mean", dropout=0.0, lr=0.1)


@pytest.mark.parametrize(("blocks", "batch_norm"), [(2, False), (0, True), (1, True)])
@pytest.mark.parametrize("switched", [False, True])
def test_what_is_frozen_stays_so_when_training_is_switched_on(blocks, batch_norm, switched):
    network = Classifier(replace(FROZEN, frozen_blocks=blocks, freeze_bn=batch_norm), 3, 2)
    if switched:
        network.eval()
        network.train()
    norms = {
        name: module.training
        for name, module in network.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert not norms["bn1"]
    assert norms["layer2.0.bn1"] is not batch_norm
    assert network.heads[0][1].training
    assert network.backbone.layer2.training
    assert not any(module.training for module in network.eval().modules())


class Windows(torch.utils.data.Dataset):
    """Noise with one tag, addressed by (epoch, index)."""

    def __len__(self):
        return 4

    def __getitem__(self, address):
        generator = torch.Generator().manual_seed(address[1])
        return {
            "image": torch.randn(3, 32, 32, generator=generator) * 3 + 1,
            "weight": torch.ones(1, 4, 4),
            "tags": torch.tensor([[[1, address[1] % 2]]]),
        }


def test_frozen_parts_come_through_a_training_unchanged(tmp_path):
    config = replace(FROZEN, frozen_blocks=2, freeze_bn=True)
    network = Classifier(config, 3, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective = TagObjective(network, config, 0, 1, 2, False)
    fit(
        objective,
        Windows(),
        Windows(),
        Schedule(2, 1, 2, 0),
        tmp_path,
        torch.device("cpu"),
        SILENT,
        "training",
    )
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert "backbone.layer2.0.conv1.weight" in changed
    assert "heads.0.1.running_mean" in changed
    parts = {tuple(name.split(".")[1:3]) for name in changed if name.startswith("backbone")}
    assert {part for part, _ in parts} == {"layer2"}
    assert not {n for n in changed if n.startswith("backbone") and ".bn" in n}


def test_the_optimiser_is_not_given_what_is_frozen():
    network = Classifier(replace(FROZEN, frozen_blocks=1, freeze_bn=True), 3, 2)
    slow = list(network.backbone.parameters())
    groups = two_speed_groups(network, slow, 1.0, 0.1, 0.5)
    given = {id(parameter) for group in groups for parameter in group["params"]}
    expected = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert given == expected
    assert len(expected) < len(list(network.parameters())) - 3


# --- ImageNet weights at hand --------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("strides", "output_stride"), [((8, 16), 0), ((16,), 0), ((8,), 8), ((16,), 16)]
)
def test_resnet50_with_its_imagenet_weights(tmp_path, weights_root, strides, output_stride):
    packed = safetensors.torch.load_file(weights_root / "resnet50_v1_imagenet_int8.safetensors")
    weights = {
        name: tensor.float() * packed[f"{name}.scale"] if tensor.dtype == torch.int8 else tensor
        for name, tensor in packed.items()
        if not name.endswith(".scale")
    }
    safetensors.torch.save_file(weights, tmp_path / "r50.safetensors")
    config = ClassifierConfig(
        "resnet50", str(tmp_path / "r50.safetensors"), strides, output_stride=output_stride
    )
    network = Classifier(config, 4, 3).eval()
    assert torch.equal(network.backbone.layer2[0].conv1.weight, weights["layer2.0.conv1.weight"])
    with torch.inference_mode():
        cam = network(torch.zeros(1, 4, 64, 96))
    assert cam.shape == (1, 3, 64 // strides[0], 96 // strides[0])
