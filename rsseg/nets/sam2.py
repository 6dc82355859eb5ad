"""SAM 2 and 2.1 for single images, from their official checkpoints (Ravi et al., arXiv:2408.00714).

Without its memory, SAM 2 is SAM's prompt encoder and mask decoder, with one more token and finer
image features, behind a Hiera. Hiera is timm's, encoder and decoder are segment_anything's, all
under other tensor names, so nothing has to be installed for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg.errors import InputError
from rsseg.nets.tensors import fill, read_state_dict

Size = Literal["tiny", "small", "base_plus", "large"]

_FRAME = 1024
_WIDTH = 256
_STRIDE = 16
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_PATCHES = "image_encoder.trunk.patch_embed.proj.weight"
_BLOCK = re.compile(r"image_encoder\.trunk\.blocks\.\d+\.norm1\.weight")
# Channels of the first stage and number of blocks.
_SIZES: dict[tuple[int, int], Size] = {
    (96, 12): "tiny",
    (96, 16): "small",
    (112, 24): "base_plus",
    (144, 48): "large",
}
# Tensors of the memory and of what it remembers of an object, which one image does not need.
_VIDEO = (
    "mask_downsample.",
    "maskmem_tpos_enc",
    "memory_attention.",
    "memory_encoder.",
    "no_mem_pos_enc",
    "no_obj_embed_spatial",
    "no_obj_ptr",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "sam_mask_decoder.pred_obj_score_head.",
)


class PaddedPromptEncoder(PromptEncoder):  # type: ignore[misc]  # an untyped library
    """SAM's prompt encoder as SAM 2 uses it: boxes come with the padding token of points, too."""

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed B prompts, in pixels of the frame.

        Args:
            points: (B, N, 2) x, y and (B, N) labels: 1 object, 0 not, -1 padding.
            boxes: (B, 4) x0, y0, x1, y1.
            masks: (B, 1, frame / 4, frame / 4) logits.

        Returns:
            Sparse (B, tokens, 256) and dense (B, 256, frame / 16, frame / 16) embeddings.
        """
        if boxes is not None:
            xy, labels = boxes.new_zeros(len(boxes), 1, 2), boxes.new_full((len(boxes), 1), -1)
            if points is not None:
                xy, labels = torch.cat([points[0], xy], 1), torch.cat([points[1], labels], 1)
            points = xy, labels
        embedded: tuple[Tensor, Tensor] = super().forward(points, boxes, masks)
        return embedded


class FineMaskDecoder(MaskDecoder):  # type: ignore[misc]  # an untyped library
    """SAM's mask decoder with SAM 2's object token, fine features and predicted IoU in [0, 1].

    Its parts have their official names; ``pred_obj_scores`` says that there is an object token.
    """

    def __init__(self) -> None:
        super().__init__(
            transformer_dim=_WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=2048),
        )
        self.iou_prediction_head.sigmoid_output = True
        self.pred_obj_scores = True
        self.obj_score_token = nn.Embedding(1, _WIDTH)
        self.conv_s0 = nn.Conv2d(_WIDTH, _WIDTH // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(_WIDTH, _WIDTH // 4, kernel_size=1)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        fine: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Answer B prompts on one image of h x w cells (64 x 64).

        Args:
            image_embeddings: (1, 256, h, w) of `Sam2.embed`.
            image_pe: (1, 256, h, w), the prompt encoder's dense positional encoding.
            sparse_prompt_embeddings: (B, tokens, 256).
            dense_prompt_embeddings: (B, 256, h, w).
            multimask_output: three masks (sub-part, part, whole) instead of one.
            fine: (1, 32, 4h, 4w) and (1, 64, 2h, 2w) of `Sam2.embed`.

        Returns:
            Mask logits (B, 3 or 1, 4h, 4w) and predicted IoU (B, 3 or 1) in [0, 1].
        """
        # Nothing in the transformer knows the order of tokens, so the object token, which SAM 2
        # has in front, may stand where it leaves the others at SAM's own places.
        own = (self.iou_token.weight, self.mask_tokens.weight, self.obj_score_token.weight)
        prompts = len(sparse_prompt_embeddings)
        tokens = torch.cat([torch.cat(own).expand(prompts, -1, -1), sparse_prompt_embeddings], 1)
        cells = image_embeddings + dense_prompt_embeddings
        queries, keys = self.transformer(cells, image_pe, tokens)
        drawn = self._upscale(keys.transpose(1, 2).unflatten(2, cells.shape[2:]), *fine)
        shapes = [mlp(queries[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("bmc,bchw->bmhw", torch.stack(shapes, 1), drawn)
        iou = self.iou_prediction_head(queries[:, 0])
        kept = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, kept], iou[:, kept]

    def _upscale(self, cells: Tensor, fine: Tensor, middle: Tensor) -> Tensor:
        """(B, 256, h, w) -> (B, 32, 4h, 4w); the image's own detail is added at each step."""
        first, norm, act, second, last_act = self.output_upscaling
        drawn: Tensor = last_act(second(act(norm(first(cells) + middle))) + fine)
        return drawn


class Sam2(nn.Module):
    """SAM 2 for single images; fulfils `rsseg.nets.decoder.PromptNet`.

    An image is squeezed to the frame (see `squeeze`), so x and y have scales of their own: a point
    or box of an (H, W) image is asked at (x * frame / W, y * frame / H), and mask logits come back
    to the image by bilinear interpolation.

    Args:
        trunk: a Hiera of timm's.
        frame: side in pixels of the square it sees; other than 1024 only in tests.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Any, frame: int = _FRAME) -> None:
        super().__init__()
        trunk.head = nn.Identity()
        self.frame = frame
        self.trunk = trunk
        # Coarsest first, as in the checkpoints.
        channels = [stage["num_chs"] for stage in reversed(trunk.feature_info)]
        self.laterals = nn.ModuleList(nn.Conv2d(count, _WIDTH, 1) for count in channels)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.prompt_encoder = PaddedPromptEncoder(
            embed_dim=_WIDTH,
            image_embedding_size=(frame // _STRIDE, frame // _STRIDE),
            input_image_size=(frame, frame),
            mask_in_chans=16,
        )
        self.mask_decoder = FineMaskDecoder()
        for name, values in (("mean", _MEAN), ("std", _STD)):
            buffer = 255 * torch.tensor(values)[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the frame that an image of any (H, W) fills: all."""
        return self.frame, self.frame

    def framed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images (H, W, 3) uint8 RGB as the network sees them: (B, 3, frame, frame), 0 to 255."""
        return squeeze(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self.frame)

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features of B images, all that a prompt does not change.

        Args:
            pixels: (B, 3, frame, frame) float RGB, 0 to 255, as `squeeze` gives it.

        Returns:
            (B, 256, frame / 16, frame / 16), to which the prompt's dense embedding is still to be
            added, and the fine features (B, 32, frame / 4, frame / 4) and
            (B, 64, frame / 8, frame / 8).
        """
        stages = self.trunk.forward_intermediates(
            (pixels - self.mean) / self.std, intermediates_only=True
        )
        coarsest, coarse, middle, fine = (
            lateral(stage) for lateral, stage in zip(self.laterals, reversed(stages), strict=True)
        )
        features = coarse + F.interpolate(coarsest, scale_factor=2, mode="nearest")
        # In video frames attend to a memory; an image has this in its place.
        features = features + self.no_mem_embed.view(1, -1, 1, 1)
        decoder = self.mask_decoder
        return features, (decoder.conv_s0(fine), decoder.conv_s1(middle))


def squeeze(images: Tensor, frame: int = _FRAME) -> Tensor:
    """Images as SAM 2 sees them: squeezed to its square frame, bilinear with antialiasing.

    Args:
        images: (B, 3, H, W) RGB, 0 to 255, of any type.
        frame: side of the frame in pixels.

    Returns:
        (B, 3, frame, frame) float32, 0 to 255, not rounded.
    """
    return F.interpolate(images.float(), (frame, frame), mode="bilinear", antialias=True)


def load_sam2(path: str | Path) -> Sam2:
    """A SAM 2 from an official checkpoint, in eval mode and without gradients, on the CPU.

    Args:
        path: a checkpoint of SAM 2 or 2.1, tiny, small, base_plus or large. Its memory, which
            serves video, is left aside.

    Raises:
        InputError: the file is missing, needs unpickling of foreign code, is no SAM 2, or its
            tensors do not fit.
    """
    state = read_state_dict(Path(path))
    size = recognise(state)
    if size is None:
        what = "a checkpoint of the first SAM" if "mask_decoder.iou_token.weight" in state else ""
        raise InputError(
            f"{path} is {what or 'not a SAM 2 checkpoint'}: its {len(state)} tensors have no Hiera "
            "of tiny, small, base_plus or large; see `rsseg weights list`"
        )
    sam = build_sam2(size)
    needed = {_own_name(n): t for n, t in state.items() if not n.startswith(_VIDEO)}
    fill(sam, needed, path, f"SAM 2 {size}")
    return sam.eval().requires_grad_(False)


def recognise(state: Mapping[str, Tensor]) -> Size | None:
    """The size of the SAM 2 that these tensors of a checkpoint are; None if they are none."""
    patches = state.get(_PATCHES)
    if patches is None:
        return None
    return _SIZES.get((len(patches), sum(_BLOCK.fullmatch(name) is not None for name in state)))


def build_sam2(size: Size, frame: int = _FRAME) -> Sam2:
    """A SAM 2 with random weights."""
    return Sam2(timm.create_model(f"sam2_hiera_{size}", pretrained=False), frame)


def _own_name(name: str) -> str:
    """The name in `Sam2` of an official tensor."""
    name = re.sub(r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"laterals.\1.", name)
    name = re.sub(r"^image_encoder\.trunk\.", "trunk.", name)
    name = re.sub(r"^sam_(prompt_encoder|mask_decoder)\.", r"\1.", name)
    # timm and segment_anything count the two layers of an MLP from 1.
    name = re.sub(r"^(trunk\..*\.mlp)\.layers\.0\.", r"\1.fc1.", name)
    name = re.sub(r"^(trunk\..*\.mlp)\.layers\.1\.", r"\1.fc2.", name)
    name = re.sub(r"^(mask_decoder\.transformer\..*\.mlp)\.layers\.0\.", r"\1.lin1.", name)
    return re.sub(r"^(mask_decoder\.transformer\..*\.mlp)\.layers\.1\.", r"\1.lin2.", name)
