"""SAM's mask decoder, replayed so that one image answers many prompts at little cost.

The networks stay as they are; only the order of their sums changes. What does not depend on the
prompt is computed once per image: what the first attentions see of the image, and of the positions
all of them. A later attention between the N cells of an image and the T tokens of a prompt (4096
and about 7) is folded onto the tokens: instead of projecting all cells for every prompt, the few
tokens are projected back. Only answers that are wanted are drawn; in bfloat16, which is not exact
anyway, in full only where their outline may run.

Source of the networks: Kirillov et al., "Segment Anything", ICCV 2023, appendix A; Ravi et al.,
"SAM 2", arXiv:2408.00714, appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_Part = tuple[slice, slice]
_ALL: _Part = (slice(None), slice(None))
# Of the 4 x 4 pixels of a cell the one in row 1, column 1.
_SAMPLE: _Part = (slice(0, 1), slice(3, 4))

_ROUND = 512
"""Cells are drawn in multiples of so many."""

_COMPLETE = {torch.float32}
"""Types in which all cells are drawn, outline or not."""

_CLEAR = 4.0
"""Logits this far from 0 in a cell and all around it hold no outline, or one of a few pixels."""


class PromptNet(Protocol):
    """A network that answers prompts with masks: SAM, MobileSAM, SAM 2.

    Attributes:
        frame: side in pixels of the square that it sees.
        prompt_encoder: makes tokens of points and boxes.
        mask_decoder: makes masks of tokens and features.
    """

    frame: int
    prompt_encoder: Any
    mask_decoder: Any

    def extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the frame that an image of (H, W) fills, from the upper left."""

    def framed(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images (H, W, 3) uint8 RGB of one size as (B, 3, frame, frame), 0 to 255, on the CPU."""

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Features (B, C, h, w) of framed images; SAM 2's (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w)."""


@dataclass(frozen=True)
class Prepared:
    """What of an image does not depend on the prompt.

    Args:
        cells: (1, N, C) features of the image's N cells.
        keys: (heads, d, N) keys of the first attention to the image.
        values: (heads, N, d) its values.
        queries: (heads, d, N) queries of the first attention from the image.
        fine: SAM 2's finer features by cell, (N, 4, C / 4) and (N, 4, 4, C / 8).
    """

    cells: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    fine: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Answers:
    """What the network says of B prompts.

    Args:
        scores: (B, 3) predicted IoU of sub-part, part and whole.
        cells: (B, N, C) the image as these prompts see it.
        pens: (B, 3, C / 8) what draws each mask from the cells.
    """

    scores: Tensor
    cells: Tensor
    pens: Tensor


class PromptDecoder:
    """The mask decoder of a network, for any number of images and prompts.

    The arithmetic on tokens is single precision, that on cells is of ``dtype``.

    Args:
        net: on the device to run on.
        dtype: float32, or bfloat16 where that is faster.
    """

    def __init__(self, net: PromptNet, dtype: torch.dtype) -> None:
        self._prompts = net.prompt_encoder
        decoder = net.mask_decoder
        self._iou_head = decoder.iou_prediction_head
        self._pens = decoder.output_hypernetworks_mlps[1:]
        output = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if getattr(decoder, "pred_obj_scores", False):
            output.insert(0, decoder.obj_score_token.weight)
        self._output = torch.cat(output)
        # The first output token that is read: the IoU's; the masks' follow.
        self._read = slice(len(output) - 2, len(self._output))
        encoding = self._prompts.get_dense_pe()
        positions = encoding.flatten(2)[0].T
        cross = partial(_Cross, positions=positions, dtype=dtype)
        self._layers = [
            (one, cross(one.cross_attn_token_to_image), cross(one.cross_attn_image_to_token))
            for one in decoder.transformer.layers
        ]
        self._last = cross(decoder.transformer.final_attn_token_to_image)
        self._last_norm = decoder.transformer.norm_final_attn
        self._drawing = _Drawing(decoder.output_upscaling, tuple(encoding.shape[-2:]), dtype)
        self._positions, self._dtype = positions, dtype

    def prepare(self, features: Tensor, fine: tuple[Tensor, Tensor] | None = None) -> Prepared:
        """Compute what an image's prompts share.

        Args:
            features: (C, h, w) of ``PromptNet.embed``.
            fine: its finer features of the same image.
        """
        cells = features.flatten(1).T + self._prompts.no_mask_embed.weight
        placed = cells + self._positions
        _, to, back = self._layers[0]
        return Prepared(
            cells=cells[None].to(self._dtype),
            keys=to.keys(placed),
            values=to.values(cells),
            queries=back.queries(placed),
            fine=None if fine is None else self._drawing.by_cell(*fine),
        )

    def tokens(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens (B, T, C) of B prompts.

        Args:
            points: (B, P, 2) x, y in pixels of the frame.
            labels: (B, P) int, of each point: 1 in the object, 0 not in it.
            boxes: (B, 4) x0, y0, x1, y1 in pixels of the frame.
        """
        asked = None if points is None or labels is None else (points, labels)
        sparse, _ = self._prompts(points=asked, boxes=boxes, masks=None)
        return torch.cat([self._output.expand(len(sparse), -1, -1), sparse], dim=1)

    def answer(self, image: Prepared, tokens: Tensor) -> Answers:
        """Ask an image B prompts, given as tokens (B, T, C)."""
        layer, to, back = self._layers[0]
        queries = layer.norm1(layer.self_attn(tokens, tokens, tokens))
        found = to.of_image(queries + tokens, image.keys, image.values)
        queries = layer.norm2(queries + found)
        queries = layer.norm3(queries + layer.mlp(queries))
        shares = back.shares_of_image(queries + tokens, image.queries)
        cells = back.updated(image.cells.expand(len(tokens), -1, -1), shares, queries, layer.norm4)
        for layer, to, back in self._layers[1:]:
            placed = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(placed, placed, queries))
            queries = layer.norm2(queries + to.of_cells(queries + tokens, cells))
            queries = layer.norm3(queries + layer.mlp(queries))
            shares = back.shares_of_cells(queries + tokens, cells)
            cells = back.updated(cells, shares, queries, layer.norm4)
        queries, tokens = queries[:, self._read], tokens[:, self._read]
        queries = self._last_norm(queries + self._last.of_cells(queries + tokens, cells))
        # The first mask token is for prompts that leave no choice; it is not asked for.
        pens = [pen(queries[:, 2 + level]) for level, pen in enumerate(self._pens)]
        return Answers(self._iou_head(queries[:, 0])[:, 1:], cells, torch.stack(pens, dim=1))

    def draw(self, image: Prepared, answers: Answers, wanted: Tensor) -> Tensor:
        """Return the logits (M, 4h, 4w), float32, of the M masks wanted, in their order.

        Args:
            image: the image asked.
            answers: its answers to B prompts.
            wanted: (B, 3) bool.
        """
        return self._drawing(answers, wanted, image.fine)


class _Cross:
    """A cross attention between tokens and cells, with the work on cells folded onto the tokens.

    Args:
        attention: the network's, of either direction.
        positions: (N, C) encoding of the cells' positions.
        dtype: of the arithmetic on cells.
    """

    def __init__(self, attention: Any, positions: Tensor, dtype: torch.dtype) -> None:
        self._attention = attention
        self._heads = int(attention.num_heads)
        self._width = int(attention.internal_dim) // self._heads
        self._dtype = dtype
        self._position_keys = self.keys(positions)
        self._position_queries = self.queries(positions)

    def keys(self, cells: Tensor) -> Tensor:
        """Keys (heads, d, N) of cells (N, C), less their bias, which softmax over cells ignores."""
        return self._by_head(cells @ self._attention.k_proj.weight.T)

    def queries(self, cells: Tensor) -> Tensor:
        """Queries (heads, d, N) of cells (N, C)."""
        return self._by_head(self._attention.q_proj(cells))

    def values(self, cells: Tensor) -> Tensor:
        """Values (heads, N, d) of cells (N, C)."""
        return self._by_head(self._attention.v_proj(cells)).mT

    def of_image(self, asking: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What tokens (B, T, C) gather from an image that all prompts still see alike."""
        query = self._scaled(self._attention.q_proj(asking))
        shares = self._products(query, keys).softmax(-1)
        found = torch.bmm(shares.flatten(1, 2), values).float()
        return self._joined(found, asking)

    def of_cells(self, asking: Tensor, cells: Tensor) -> Tensor:
        """What tokens (B, T, C) gather from cells (B, N, C)."""
        query = self._scaled(self._attention.q_proj(asking))
        weight = self._attention.k_proj.weight
        shares = self._logits(query, weight, cells, self._position_keys).softmax(-1)
        seen = torch.bmm(shares.flatten(1, 2), cells).float()  # (B, heads * T, C)
        seen = torch.unflatten(seen, 1, (self._heads, -1)).transpose(0, 1).flatten(1, 2)
        value = self._attention.v_proj
        found = torch.bmm(seen, value.weight.view(self._heads, self._width, -1).mT)
        return self._joined(found + value.bias.view(self._heads, 1, -1), asking)

    def shares_of_image(self, asked: Tensor, queries: Tensor) -> Tensor:
        """How cells that all prompts see alike share in tokens (B, T, C): (B, heads, T, N)."""
        key = self._scaled(self._attention.k_proj(asked))
        return self._products(key, queries).transpose(0, 1).softmax(2)

    def shares_of_cells(self, asked: Tensor, cells: Tensor) -> Tensor:
        """How the cells (B, N, C) share in tokens (B, T, C): (B, heads, T, N)."""
        key = self._scaled(self._attention.k_proj(asked))
        weight = self._attention.q_proj.weight
        return self._logits(key, weight, cells, self._position_queries).softmax(2)

    def updated(self, cells: Tensor, shares: Tensor, tokens: Tensor, norm: Any) -> Tensor:
        """Cells (B, N, C) plus their shares of the tokens (B, T, C), normalised."""
        out = self._attention.out_proj
        offers = self._folded(self._split(self._attention.v_proj(tokens)), out.weight.T)
        # The shares of a head's tokens add up to 1, so every offer brings its part of the bias.
        offers = (offers + out.bias / self._heads).to(self._dtype)
        cells = torch.baddbmm(cells, shares.flatten(1, 2).mT, offers)
        weight, bias = norm.weight.to(self._dtype), norm.bias.to(self._dtype)
        return F.layer_norm(cells, norm.normalized_shape, weight, bias, norm.eps)

    def _by_head(self, flat: Tensor) -> Tensor:
        """(N, heads * d) -> (heads, d, N)."""
        return flat.T.reshape(self._heads, self._width, -1).to(self._dtype)

    def _split(self, flat: Tensor) -> Tensor:
        """(B, T, heads * d) -> (heads, B, T, d)."""
        return torch.unflatten(flat, -1, (self._heads, self._width)).permute(2, 0, 1, 3)

    def _scaled(self, flat: Tensor) -> Tensor:
        return self._split(flat) / math.sqrt(self._width)

    def _joined(self, found: Tensor, asking: Tensor) -> Tensor:
        """(heads, B * T, d), by head -> (B, T, C), as the attention puts it out."""
        apart = torch.unflatten(found, 1, asking.shape[:2]).permute(1, 2, 0, 3)
        joined: Tensor = self._attention.out_proj(apart.flatten(2))
        return joined

    def _products(self, tokens: Tensor, fixed: Tensor) -> Tensor:
        """Tokens (heads, B, T, d) times cells (heads, d, N): (heads, B, T, N)."""
        products = torch.bmm(tokens.flatten(1, 2).to(self._dtype), fixed)
        return torch.unflatten(products, 1, tokens.shape[1:3])

    def _folded(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Tokens (heads, B, T, d) times a weight (heads * d, C): (B, heads * T, C)."""
        by_head = weight.reshape(self._heads, self._width, -1)
        folded = torch.unflatten(torch.bmm(tokens.flatten(1, 2), by_head), 1, tokens.shape[1:3])
        return folded.transpose(0, 1).flatten(1, 2)

    def _logits(self, tokens: Tensor, weight: Tensor, cells: Tensor, fixed: Tensor) -> Tensor:
        """Tokens (heads, B, T, d) times projected cells (B, N, C): (B, heads, T, N).

        ``fixed`` (heads, d, N) is what the cells' positions add to their projections.
        """
        folded = self._folded(tokens, weight).to(self._dtype)
        content = torch.unflatten(torch.bmm(folded, cells.mT), 1, (self._heads, -1))
        return content + self._products(tokens, fixed).transpose(0, 1)


class _Drawing:
    """Masks from cells: each cell becomes 4 x 4 pixels.

    In float32 all of them are drawn, so that the masks are the network's own, specks of some pixels
    included; else one pixel of each cell, and all of those of the cells where an outline may run.

    Args:
        upscaling: the decoder's two transposed convolutions, norm and activations.
        side: (h, w) cells of an image.
        dtype: of the arithmetic.
    """

    def __init__(self, upscaling: Any, side: tuple[int, int], dtype: torch.dtype) -> None:
        first, norm, self._activation, second, self._last_activation = upscaling
        self._side, self._dtype = side, dtype
        self._first, self._second = (self._matrix(one) for one in (first, second))
        self._norm = (norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    def _matrix(self, convolution: Any) -> tuple[Tensor, Tensor]:
        """A transposed convolution of stride 2 as weight (4, Cin, Cout) and bias (Cout,)."""
        weight = convolution.weight.permute(2, 3, 0, 1).flatten(0, 1)
        return weight.to(self._dtype), convolution.bias.to(self._dtype)

    def by_cell(self, finest: Tensor, finer: Tensor) -> tuple[Tensor, Tensor]:
        """Order finer features (C, n h, n w) by cell: (N, 4, C / 4) and (N, 4, 4, C / 8)."""
        height, width = self._side
        halves = finer.view(-1, height, 2, width, 2).permute(1, 3, 2, 4, 0)
        quarters = finest.view(-1, height, 2, 2, width, 2, 2).permute(1, 4, 2, 5, 3, 6, 0)
        return (
            halves.reshape(height * width, 4, -1).to(self._dtype),
            quarters.reshape(height * width, 4, 4, -1).to(self._dtype),
        )

    def __call__(
        self, answers: Answers, wanted: Tensor, fine: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Logits of the masks wanted, as ``PromptDecoder.draw`` says."""
        prompts = wanted.any(dim=1)
        cells, wanted = answers.cells[prompts], wanted[prompts]
        pens = answers.pens[prompts].to(self._dtype)
        features = self._features(cells, fine, _SAMPLE).flatten(2)
        sample = torch.bmm(features, pens.mT).mT  # (P, 3, N)
        places = self._near_outline(sample, wanted).nonzero().T
        # Few different sizes, for libraries plan and keep each; a place drawn twice is no harm.
        prompt, cell = F.pad(places, (0, -places.shape[1] % _ROUND))
        there = None if fine is None else (fine[0][cell], fine[1][cell])
        features = self._features(cells[prompt, cell], there, _ALL).flatten(1, 2)
        pixels = torch.bmm(features, pens[prompt].mT).mT  # (R, 3, 16)
        canvas = sample[..., None].repeat(1, 1, 1, 16)
        canvas[prompt, :, cell] = pixels
        # Both halvings have rows before columns: (h, w, half y, half x, quarter y, quarter x).
        apart = canvas[wanted].view(-1, *self._side, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        height, width = self._side
        return apart.reshape(-1, 4 * height, 4 * width).float()

    def _features(self, cells: Tensor, fine: tuple[Tensor, Tensor] | None, part: _Part) -> Tensor:
        """What pens draw with: cells (…, C) -> (…, halves, quarters, C / 8)."""
        halves, quarters = part
        weight, bias = self._first
        x = torch.einsum("...c,hcd->...hd", cells, weight[halves]) + bias
        if fine is not None:
            x = x + fine[0][:, halves]
        scale, shift, eps = self._norm
        x = self._activation(F.layer_norm(x, scale.shape, scale, shift, eps))
        weight, bias = self._second
        x = torch.einsum("...hc,qcd->...hqd", x, weight[quarters]) + bias
        if fine is not None:
            x = x + fine[1][:, halves, quarters]
        drawn: Tensor = self._last_activation(x)
        return drawn

    def _near_outline(self, sample: Tensor, wanted: Tensor) -> Tensor:
        """Cells (P, N) around which a mask wanted changes sides, from its samples (P, 3, N)."""
        if self._dtype in _COMPLETE:
            return torch.ones_like(sample[:, 0], dtype=torch.bool)
        sample = torch.unflatten(sample.float(), -1, self._side)
        highest = F.max_pool2d(sample, 3, stride=1, padding=1)
        lowest = -F.max_pool2d(-sample, 3, stride=1, padding=1)
        near = (highest > -_CLEAR) & (lowest < _CLEAR)
        return (near & wanted[..., None, None]).any(dim=1).flatten(1)
