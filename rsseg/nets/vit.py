"""Vision transformers as backbones: patch tokens as a map of the image."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from math import log2

from torch import Tensor, nn
from torch.nn.functional import interpolate

from rsseg.errors import InputError


def is_plain_transformer(features: nn.Module) -> bool:
    """Whether timm's feature extractor is a transformer whose maps all have one size."""
    strides = {level["reduction"] for level in features.feature_info.info}  # type: ignore[union-attr]
    return len(strides) == 1 and hasattr(getattr(features, "model", None), "patch_embed")


def token_stride(patch: int) -> int:
    """Return the stride offered for patches of so many pixels: the nearest power of two."""
    return int(2 ** round(log2(patch)))


class PatchTokens(nn.Module):
    """A vision transformer: (B, C, H, W) -> patch tokens after its last norm, as maps.

    Strides are powers of two. Where patches are not (DINOv2's are 14 px), the image is resized
    such that one patch covers ``stride`` pixels of it: 256 px become 224 px, 16 x 16 tokens.
    Positions are interpolated to the size of each image; class and register tokens are left out.

    Args:
        network: one of timm's transformers, built with ``dynamic_img_size``.
        patch: side of a patch, pixels.
        levels: which blocks give a map, ascending.
    """

    def __init__(self, network: nn.Module, patch: int, levels: tuple[int, ...]) -> None:
        from timm.models import FeatureInfo  # costs seconds that other networks can spare

        super().__init__()
        self.model = network
        self.stride = token_stride(patch)
        self._patch = patch
        channels: int = network.embed_dim  # type: ignore[assignment]
        self._levels = levels
        blocks: nn.Module = network.get_submodule("blocks")
        self.feature_info = FeatureInfo(
            [
                {"num_chs": channels, "reduction": self.stride, "module": f"blocks.{index}"}
                for index in range(len(list(blocks.children())))
            ],
            levels,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps: (B, channels, H / stride, W / stride) each."""
        cells = [max(1, round(side / self.stride)) for side in images.shape[-2:]]
        size = [count * self._patch for count in cells]
        if size != list(images.shape[-2:]):
            images = interpolate(images, size, mode="bilinear", align_corners=False)
        maps: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=list(self._levels), norm=True, intermediates_only=True
        )
        return maps


def fitted_weights(
    network: nn.Module, weights: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Return published weights by timm's names, positions interpolated to the network's grid.

    Args:
        network: a transformer of timm, whose own conversion is used.
        weights: such as DINOv2's published checkpoint, or timm's own.
        source: what they are, for the message.

    Raises:
        InputError: they are another network's.
    """
    convert = getattr(import_module(type(network).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return dict(weights)
    try:
        fitted: dict[str, Tensor] = convert(dict(weights), network)
    except (RuntimeError, KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{source} do not fit the network: {str(error).splitlines()[0]}"
        ) from error
    return fitted
