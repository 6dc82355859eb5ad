"""SAMs of the official classes, small enough for tests, whose weights leave no part unused."""

from __future__ import annotations

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn


def small_sam(frame: int = 64, embed_dim: int = 64) -> Sam:
    """A SAM of the official classes and tensor names, of one block and for small frames."""
    side = frame // 16
    return Sam(
        ImageEncoderViT(
            img_size=frame, embed_dim=embed_dim, depth=1, num_heads=8, mlp_ratio=0.1, out_chans=256
        ),
        PromptEncoder(
            embed_dim=256,
            image_embedding_size=(side, side),
            input_image_size=(frame, frame),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=64),
        ),
    ).eval()


def roughened(net: nn.Module, *, contrast: float = 1) -> nn.Module:
    """The net without gradients, with norms and biases of its own and choosy attentions.

    Args:
        net: has a ``mask_decoder``; changed in place.
        contrast: factor for the logits of its masks.
    """
    net.requires_grad_(False)
    for name, weights in net.mask_decoder.named_parameters():
        if weights.ndim == 1:
            weights += 0.3 * torch.randn(weights.shape)
        elif "q_proj" in name:
            weights *= 3
    for pen in net.mask_decoder.output_hypernetworks_mlps:
        pen.layers[-1].weight *= contrast
        pen.layers[-1].bias *= contrast
    return net
