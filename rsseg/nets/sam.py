"""Segment Anything: its networks from their checkpoints.

ViT-B, ViT-L and ViT-H are segment_anything's own networks (Kirillov et al., ICCV 2023). MobileSAM
(Zhang et al., arXiv:2306.14289) is the same prompt encoder and mask decoder behind a TinyViT, for
which timm's serves under other tensor names. SAM 2 has a module of its own, `rsseg.nets.sam2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from rsseg.errors import InputError
from rsseg.nets.decoder import PromptNet
from rsseg.nets.sam2 import load_sam2
from rsseg.nets.sam2 import recognise as recognise_sam2
from rsseg.nets.tensors import fill, read_state_dict

Kind = Literal["vit_t", "vit_b", "vit_l", "vit_h"]

_IMAGE_SIZE = 1024
_EMBEDDING = 256
_STRIDE = 16

# A tensor that is there in one kind only, and its shape.
_SIGNATURES: dict[Kind, tuple[str, tuple[int, ...]]] = {
    "vit_t": ("image_encoder.patch_embed.seq.0.c.weight", (32, 3, 3, 3)),
    "vit_b": ("image_encoder.patch_embed.proj.weight", (768, 3, 16, 16)),
    "vit_l": ("image_encoder.patch_embed.proj.weight", (1024, 3, 16, 16)),
    "vit_h": ("image_encoder.patch_embed.proj.weight", (1280, 3, 16, 16)),
}


class TinyViTEncoder(nn.Module):
    """MobileSAM's image encoder: (B, 3, 1024, 1024) normalised RGB -> (B, 256, 64, 64)."""

    img_size = _IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        # SAM wants features at stride 16, so the last stage must not halve them again.
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed = trunk.patch_embed
        self.stages = trunk.stages
        self.neck = nn.Sequential(
            nn.Conv2d(trunk.num_features, _EMBEDDING, kernel_size=1, bias=False),
            LayerNorm2d(_EMBEDDING),
            nn.Conv2d(_EMBEDDING, _EMBEDDING, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(_EMBEDDING),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The features of normalised images, as the class says."""
        features: Tensor = self.neck(self.stages(self.patch_embed(x)))
        return features


class FirstSam(nn.Module):
    """The first SAM, or MobileSAM, behind `rsseg.nets.decoder.PromptNet`.

    Args:
        sam: segment_anything's own network.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.frame = int(sam.image_encoder.img_size)
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the frame that an image of (H, W) fills: its longer side, all."""
        height, width = ResizeLongestSide.get_preprocess_shape(*size, self.frame)
        return height, width

    def framed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images (H, W, 3) uint8 RGB as the network sees them: (B, 3, frame, frame), 0 to 255."""
        resize = ResizeLongestSide(self.frame)
        scaled = [torch.from_numpy(resize.apply_image(image)) for image in images]
        pixels = torch.stack(scaled).permute(0, 3, 1, 2).float()
        beyond = (0, self.frame - pixels.shape[3], 0, self.frame - pixels.shape[2])
        # The mean of the training images is 0 once they are normalised, and SAM pads with 0.
        means = self.sam.pixel_mean.to(pixels).view(1, 3, 1, 1)
        framed: Tensor = nn.functional.pad(pixels - means, beyond) + means
        return framed

    def embed(self, pixels: Tensor) -> tuple[Tensor, None]:
        """Features (B, 256, frame / 16, frame / 16) of framed images; no finer ones."""
        normalised = (pixels - self.sam.pixel_mean) / self.sam.pixel_std
        return self.sam.image_encoder(normalised), None


def load_sam(path: str | Path, kind: Kind | None = None) -> PromptNet:
    """A SAM or SAM 2 from its official checkpoint, in eval mode, without gradients, on the CPU.

    Args:
        path: a checkpoint of ViT-B, ViT-L, ViT-H or MobileSAM, or of SAM 2 or 2.1.
        kind: which of the first four it must be; by default whatever its tensors say.

    Raises:
        InputError: the file is missing, needs unpickling of foreign code, is no SAM, is another
            kind than asked for, or its tensors do not fit.
    """
    if kind is not None and kind not in _SIGNATURES:
        raise InputError(f"unknown kind of SAM {kind!r}: it is one of {', '.join(get_args(Kind))}")
    state = read_state_dict(Path(path))
    if kind is None and recognise_sam2(state) is not None:
        return load_sam2(path)
    found = _recognise(state)
    if found is None:
        raise InputError(
            f"{path} is not a SAM checkpoint: none of its {len(state)} tensors is the patch "
            "embedding of ViT-B, ViT-L, ViT-H, MobileSAM or SAM 2; see `rsseg weights list`"
        )
    if kind is not None and found != kind:
        raise InputError(f"{path} is a SAM {found}, not {kind}: give another file or kind")
    sam = build_mobile_sam() if found == "vit_t" else sam_model_registry[found]()
    fill(sam, _timm_names(state) if found == "vit_t" else state, path, "SAM")
    return FirstSam(sam).eval().requires_grad_(False)


def _recognise(state: Mapping[str, Tensor]) -> Kind | None:
    for kind, (name, shape) in _SIGNATURES.items():
        if name in state and tuple(state[name].shape) == shape:
            return kind
    return None


def build_mobile_sam() -> Sam:
    """MobileSAM with random weights: SAM's prompt encoder and mask decoder behind a TinyViT."""
    side = _IMAGE_SIZE // _STRIDE
    return Sam(
        image_encoder=TinyViTEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=_EMBEDDING,
            image_embedding_size=(side, side),
            input_image_size=(_IMAGE_SIZE, _IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=_EMBEDDING, mlp_dim=2048, num_heads=8
            ),
            transformer_dim=_EMBEDDING,
            iou_head_depth=3,
            iou_head_hidden_dim=_EMBEDDING,
        ),
    )


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's tensors under the names of `TinyViTEncoder`, without the unused classifier."""
    unused = ("image_encoder.norm_head.", "image_encoder.head.")
    return {_timm_name(n): t for n, t in state.items() if not n.startswith(unused)}


def _timm_name(name: str) -> str:
    if not name.startswith("image_encoder."):
        return name
    name = name.replace(".patch_embed.seq.0.", ".patch_embed.conv1.")
    name = name.replace(".patch_embed.seq.2.", ".patch_embed.conv2.")
    name = re.sub(r"\.c\.weight$", ".conv.weight", name)
    # The downsampling ends a stage in MobileSAM and begins the next one in timm.
    name = re.sub(r"\.layers\.(\d)\.downsample\.", _next_stage, name)
    return name.replace(".layers.", ".stages.")


def _next_stage(match: re.Match[str]) -> str:
    return f".stages.{int(match[1]) + 1}.downsample."
