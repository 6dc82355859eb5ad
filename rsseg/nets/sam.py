"""Segment Anything: its checkpoints, point prompts, and the automatic proposals of the SAM stage.

ViT-B, ViT-L and ViT-H are segment_anything's own networks (Kirillov et al., ICCV 2023). MobileSAM
(Zhang et al., arXiv:2306.14289) is the same prompt encoder and mask decoder behind a TinyViT, for
which timm's serves under other tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
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
from rsseg.ops.segments import Masks, confident, overlap_filter, priority_nms

Kind = Literal["vit_t", "vit_b", "vit_l", "vit_h"]

_IMAGE_SIZE = 1024
_EMBEDDING = 256
_STRIDE = 16
# Logits 1 above and below the mask threshold, as in SAM's own mask generator.
_STABILITY_OFFSET = 1.0

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


def load_sam(path: str | Path, kind: Kind | None = None) -> Sam:
    """A SAM from its official checkpoint, in eval mode and without gradients, on the CPU.

    Args:
        path: a ViT-B, ViT-L, ViT-H or MobileSAM checkpoint.
        kind: what it must be; by default whatever its tensors say.

    Raises:
        InputError: the file is missing, needs unpickling of foreign code, is no SAM, is another
            kind than asked for, or its tensors do not fit.
    """
    if kind is not None and kind not in _SIGNATURES:
        raise InputError(f"unknown kind of SAM {kind!r}: it is one of {', '.join(get_args(Kind))}")
    state = _read(Path(path))
    found = _recognise(state)
    if found is None:
        raise InputError(
            f"{path} is not a SAM checkpoint: none of its {len(state)} tensors is the patch "
            "embedding of ViT-B, ViT-L, ViT-H or MobileSAM; see `rsseg weights list`"
        )
    if kind is not None and found != kind:
        raise InputError(f"{path} is a SAM {found}, not {kind}: give another file or kind")
    sam = build_mobile_sam() if found == "vit_t" else sam_model_registry[found]()
    _fill(sam, _timm_names(state) if found == "vit_t" else state, path)
    return sam.eval().requires_grad_(False)


@torch.inference_mode()
def encode(sam: Sam, image_rgb: NDArray[np.uint8]) -> Tensor:
    """SAM's features of an image, to be prompted many times.

    Args:
        sam: on the device to run on.
        image_rgb: (H, W, 3) uint8; SAM scales its longer side to 1024 px.

    Returns:
        (1, 256, 64, 64) float32 on SAM's device.
    """
    scaled = ResizeLongestSide(sam.image_encoder.img_size).apply_image(image_rgb)
    pixels = torch.from_numpy(scaled).to(sam.device).permute(2, 0, 1).float()
    features: Tensor = sam.image_encoder(sam.preprocess(pixels)[None])
    return features


@torch.inference_mode()
def prompt_points(
    sam: Sam, features: Tensor, points: NDArray[np.float64], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Three masks (sub-part, part, whole) for each of B single foreground points.

    Args:
        sam: the SAM that made the features.
        features: (1, 256, 64, 64) of `encode`.
        points: (B, 2) x, y in pixels of the image.
        size: (H, W) of the image.

    Returns:
        Mask logits (B, 3, 256, 256) on the frame of `upsample`, and predicted IoU (B, 3).
    """
    scale = sam.image_encoder.img_size / max(size)
    xy = torch.from_numpy(points * scale).to(features)[:, None]  # (B, 1, 2)
    foreground = torch.ones(xy.shape[:2], dtype=torch.int, device=xy.device)
    sparse, dense = sam.prompt_encoder(points=(xy, foreground), boxes=None, masks=None)
    logits, score = sam.mask_decoder(
        image_embeddings=features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return logits, score


def upsample(logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask logits (N, h, w) of SAM's padded square frame -> (N, H, W) bool masks of the image."""
    height, width = size
    side = max(size)
    # The image's longer side fills the frame, so the frame is side x side image pixels; for a
    # tile of 256 px, the mask decoder's own size, nothing is resampled.
    full = nn.functional.interpolate(logits[:, None], (side, side), mode="bilinear")
    masks: NDArray[np.bool_] = (full[:, 0, :height, :width] > 0).cpu().numpy()
    return masks


@torch.inference_mode()
def propose(
    sam: Sam,
    image_rgb: NDArray[np.uint8],
    *,
    points_per_side: int,
    device: torch.device | str,
    t_score: float = 0.86,
    t_whole: float = 0.76,
    t_stability: float = 0.92,
    nms: float = 0.7,
    min_area: int = 100,
    max_share: float = 0.5,
    t_overlap: float = 0.3,
    batch: int | None = None,
) -> Masks:
    """Segment proposals of an image from a regular grid of points (SAN section 3.3.1).

    Args:
        sam: moved to `device`.
        image_rgb: (H, W, 3) uint8.
        points_per_side: the grid has its square.
        device: where to run.
        t_score: least predicted IoU of parts and sub-parts.
        t_whole: least predicted IoU of wholes.
        t_stability: least IoU of the masks cut 1 logit above and below the threshold.
        nms: box IoU above which the lower in priority goes.
        min_area: least area in pixels of the image.
        max_share: largest share of the image. A tile of a town is often "whole" in one mask,
            which would leave no room for any other; 1 allows that.
        t_overlap: share of a mask in a coarser one from which it goes.
        batch: points prompted at a time; by default 64, and on a CPU 4, which its caches like.

    Returns:
        Proposals of (H, W), coarsest first, then by falling score.
    """
    size = (image_rgb.shape[0], image_rgb.shape[1])
    features = encode(sam.to(device), image_rgb)
    good = partial(
        _good,
        size=size,
        t_score=t_score,
        t_whole=t_whole,
        t_stability=t_stability,
        max_share=max_share,
    )
    grid = _grid(points_per_side, size)
    step = batch or (4 if features.device.type == "cpu" else 64)
    found = [
        good(*prompt_points(sam, features, grid[i : i + step], size))
        for i in range(0, len(grid), step)
    ]
    logits = torch.cat([one[0] for one in found])
    level, score = (np.concatenate([one[i] for one in found]) for i in (1, 2))
    # Boxes overlap alike at any resolution, so only the survivors are upsampled.
    kept = priority_nms(Masks((logits > 0).cpu().numpy(), level, score), nms=nms)
    masks = upsample(logits[torch.from_numpy(kept)], size)
    proposals = Masks(masks, level[kept], score[kept])
    proposals = proposals[proposals.areas() >= min_area]
    return proposals[overlap_filter(proposals, t_overlap=t_overlap)]


def _good(
    logits: Tensor,
    score: Tensor,
    *,
    size: tuple[int, int],
    t_score: float,
    t_whole: float,
    t_stability: float,
    max_share: float,
) -> tuple[Tensor, NDArray[np.int8], NDArray[np.float32]]:
    """The masks of a batch to go on with: logits (M, 256, 256), level (M,), score (M,).

    Logits come as (B, 3, 256, 256) and scores as (B, 3), in the order of the levels. What lies
    outside the image is cleared, so that it counts for nothing.
    """
    scores = score.float().cpu().numpy()
    levels = np.broadcast_to(np.arange(scores.shape[1], dtype=np.int8), scores.shape)
    keep = confident(levels, scores, t_score=t_score, t_whole=t_whole)
    chosen = logits[torch.from_numpy(keep)]
    height, width = (-(-side * chosen.shape[-1] // max(size)) for side in size)
    chosen[:, height:] = -torch.inf
    chosen[:, :, width:] = -torch.inf
    share = (chosen > 0).sum(dim=(1, 2)) / (height * width)
    fits = ((_stability(chosen) >= t_stability) & (share <= max_share)).cpu()
    return chosen[fits], levels[keep][fits.numpy()], scores[keep][fits.numpy()]


def _stability(logits: Tensor) -> Tensor:
    """IoU of the masks cut above and below the threshold: (N, h, w) -> (N,) in [0, 1]."""
    inner = (logits > _STABILITY_OFFSET).sum(dim=(1, 2))
    outer = (logits > -_STABILITY_OFFSET).sum(dim=(1, 2))
    return inner / outer.clamp(min=1)


def _grid(points_per_side: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Centres of points_per_side x points_per_side equal cells of the image: (n * n, 2) x, y."""
    centre = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(centre * size[1], centre * size[0])
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such checkpoint: {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign pickle can raise nearly anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and would run foreign code to load; "
            "give an official SAM checkpoint (`rsseg weights list`)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(
            f"{path} is not a SAM checkpoint: it must hold tensors by name and nothing else; "
            "give an official one (`rsseg weights list`)"
        )
    return state


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


def _fill(sam: Sam, state: Mapping[str, Tensor], path: str | Path) -> None:
    own = sam.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise InputError(
            f"{path} looks like SAM, but {len(wrong)} of its tensors are missing, unknown or of "
            f"another shape ({wrong[0]} first); give an official checkpoint (`rsseg weights list`)"
        )
    sam.load_state_dict(state, strict=True)
