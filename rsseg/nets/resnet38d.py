"""ResNet38-d: the wide residual network of PSA, SEAM and SAN, with maps of stride 8.

Model A1 of Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual
Recognition" (2016), without its classification layer. It halves the map in b2, b3 and b4 alone;
where the published classifier halves it in b5 and b6 as well, this one dilates. Tensors are named
as in PSA's and SEAM's PyTorch code, so that their checkpoints load as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rsseg.errors import InputError

LEVELS = (
    ("b2_2", "b3", 128, 2),
    ("b3_2", "b4", 256, 4),
    ("b4_5", "b5", 512, 8),
    ("b5_2", "b6", 1024, 8),
    ("bn7", "bn7", 4096, 8),
)
"""The maps to be had: module where each ends, module that makes it active, channels, stride."""


class _Wide(nn.Module):
    """Two 3 x 3 convolutions; batch norm and ReLU before each (full pre-activation).

    Args:
        channels: of the input, between the convolutions, of the output.
        stride: of the first convolution.
        dilations: of the first and the second convolution.
    """

    def __init__(
        self, channels: tuple[int, int, int], stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        before, between, after = channels
        self.bn_branch2a = nn.BatchNorm2d(before)
        self.conv_branch2a = _conv(before, between, 3, stride, dilations[0])
        self.bn_branch2b1 = nn.BatchNorm2d(between)
        self.conv_branch2b1 = _conv(between, after, 3, 1, dilations[1])
        # The published rule; in b5 the channels change without the stride.
        self.conv_branch1 = (
            None if before == after and stride == 1 else _conv(before, after, 1, stride)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of both branches, and the input as they see it: normed and relu'd."""
        active = self.bn_branch2a(x).relu_()
        inner = self.conv_branch2a(active)
        inner = self.conv_branch2b1(self.bn_branch2b1(inner).relu_())
        branch = x if self.conv_branch1 is None else self.conv_branch1(active)
        return branch + inner, active


class _Bottleneck(nn.Module):
    """1 x 1, dilated 3 x 3 and 1 x 1 convolution with dropout before the last two.

    Args:
        before: channels of the input.
        after: channels of the output; the convolutions have a quarter, a half and all of them.
        dilation: of the 3 x 3 convolution.
        dropout: share of channels dropped.
    """

    def __init__(self, before: int, after: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(before)
        self.conv_branch2a = _conv(before, after // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(after // 4)
        self.conv_branch2b1 = _conv(after // 4, after // 2, 3, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(after // 2)
        self.conv_branch2b2 = _conv(after // 2, after, 1)
        self.conv_branch1 = _conv(before, after, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of both branches, and the input as they see it: normed and relu'd."""
        active = self.bn_branch2a(x).relu_()
        inner = self.conv_branch2a(active)
        inner = self.conv_branch2b1(self.dropout(self.bn_branch2b1(inner).relu_()))
        inner = self.conv_branch2b2(self.dropout(self.bn_branch2b2(inner).relu_()))
        return self.conv_branch1(active) + inner, active


def _conv(before: int, after: int, side: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (side // 2)
    layer = nn.Conv2d(before, after, side, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _blocks() -> dict[str, nn.Module]:
    """Return the residual blocks by name, in their order."""
    blocks: dict[str, nn.Module] = {}
    before = 64
    for name, width, count in (("b2", 128, 3), ("b3", 256, 3), ("b4", 512, 6)):
        for index in range(count):
            at = f"{name}_{index}" if index else name
            blocks[at] = _Wide((before, width, width), stride=1 if index else 2)
            before = width
    for index in range(3):
        at = f"b5_{index}" if index else "b5"
        # Where the published network has stride 2, the first convolution stays undilated.
        blocks[at] = _Wide((before, 512, 1024), dilations=(2 if index else 1, 2))
        before = 1024
    blocks["b6"] = _Bottleneck(1024, 2048, dilation=4, dropout=0.3)
    blocks["b7"] = _Bottleneck(2048, 4096, dilation=4, dropout=0.5)
    return blocks


class ResNet38d(nn.Module):
    """(B, C, H, W) -> a map for each wanted level, with the interface of timm's extractors.

    A map is what the next block sees: batch-normed and relu'd, hence not negative (PSA's conv4,
    conv5 and conv6 are the three of stride 8).

    Args:
        in_channels: bands of the images.
        levels: which of ``LEVELS``, ascending.
    """

    def __init__(self, in_channels: int, levels: Sequence[int]) -> None:
        from timm.models import FeatureInfo  # costs seconds that other networks can spare

        super().__init__()
        self.conv1a = _conv(in_channels, 64, 3)
        blocks = _blocks()
        for name, block in blocks.items():
            self.add_module(name, block)
        self.bn7 = nn.BatchNorm2d(4096)
        info = [{"num_chs": c, "reduction": s, "module": end} for end, _, c, s in LEVELS]
        self.feature_info = FeatureInfo(info, tuple(levels))
        self._wanted = {LEVELS[index][1] for index in levels}
        self._names = tuple(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the wanted maps: (B, channels, H / stride, W / stride) each."""
        found: list[Tensor] = []
        x: Tensor = self.conv1a(images)
        for name in self._names:
            x, active = self.get_submodule(name)(x)
            if name in self._wanted:
                found.append(active)
        if "bn7" in self._wanted:
            found.append(self.bn7(x).relu_())
        return found


_PUBLISHED = re.compile(
    r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)"
)

_STATISTICS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


def from_mxnet(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published MXNet parameters of model A1.

    Its batch norms do not fix gamma and have PyTorch's epsilon (1e-5), so values stay as they are.

    Args:
        published: such as ``res2b1_branch2a_weight`` and ``bn2b1_branch2a_moving_mean``.

    Returns:
        The tensors by this module's names; the classification layer is left out.

    Raises:
        InputError: none of the names is this network's.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in published.items():
        match = _PUBLISHED.fullmatch(name)
        if match:
            kind, level, index, branch, value = match.groups()
            block = f"b{level}_{index}" if index else f"b{level}"
            layer = f"conv_{branch}" if kind == "res" else f"bn_{branch}"
            found[f"{block}.{layer}.{_STATISTICS.get(value, value)}"] = tensor
        elif name == "conv1a_weight":
            found["conv1a.weight"] = tensor
        elif name.removeprefix("bn7_") in _STATISTICS and name.startswith("bn7_"):
            found[f"bn7.{_STATISTICS[name.removeprefix('bn7_')]}"] = tensor
    if not found:
        raise InputError("MXNet parameters without any tensor of ResNet38; give model A1's file")
    return found
