"""The segmenter: DeepLabV3+ or another architecture of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsseg.config import TrainConfig
from rsseg.errors import InputError
from rsseg.nets.backbone import TIMM_NAMES, imagenet_weights, load_features
from rsseg.nets.device import halving, inference
from rsseg.progress import Progress

TINY_RADIUS = 8
"""Pixels that the ``tiny`` network sees beyond the pixel it classifies."""

CPU_PIXELS = 2**18
"""Pixels that go through a network together on a CPU, where larger batches save no time: bounds
the memory of the activations."""


def build_segmenter(
    config: TrainConfig, in_channels: int, classes: int, *, pretrained: bool = True
) -> nn.Module:
    """Return a network (B, C, S, S) -> logits (B, K, S, S).

    Args:
        config: architecture, encoder and weights.
        in_channels: bands of the images.
        classes: number of classes K.
        pretrained: load ImageNet weights; False where a checkpoint follows.

    Raises:
        InputError: unknown architecture or encoder, or weights that do not fit.
    """
    if config.arch == "tiny":
        return Tiny(in_channels, classes)
    import segmentation_models_pytorch as smp  # costs seconds and memory that ``tiny`` can spare

    encoder = TIMM_NAMES.get(config.encoder, config.encoder)
    name = f"tu-{encoder}" if config.encoder in TIMM_NAMES else encoder
    try:
        network: nn.Module = smp.create_model(
            config.arch,
            encoder_name=name,
            encoder_weights=None,
            in_channels=in_channels,
            classes=classes,
        )
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"segmenter {config.arch!r} with encoder {config.encoder!r} cannot be built: {reason}"
        ) from error
    weights = imagenet_weights(config.encoder, config.weights) if pretrained else None
    if weights is not None:
        encoder_module: Any = network.encoder
        load_features(
            getattr(encoder_module, "model", encoder_module), weights, f"weights of {encoder}"
        )
    return network


def encoder_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the (pretrained) encoder; none where there is no encoder."""
    encoder = getattr(network, "encoder", None)
    return encoder.parameters() if isinstance(encoder, nn.Module) else iter(())


class Tiny(nn.Module):
    """A small local network: four 3 x 3 convolutions (dilations 1, 2, 4, 1) and a 1 x 1.

    It sees exactly ``TINY_RADIUS`` pixels around each pixel, so it suits textures, weak machines,
    and every check that needs a network whose sight is known.
    """

    def __init__(self, in_channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for dilation in (1, 2, 4, 1):
            layers += [
                nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class Forward:
    """A segmenter as a plain array function: normalised windows in, probabilities out.

    Args:
        network: gives logits.
        device: where it runs.
        progress: told when the memory forces smaller batches.
    """

    def __init__(self, network: nn.Module, device: torch.device, progress: Progress) -> None:
        self._network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._device = device
        self._progress = progress
        self._limit: int | None = None

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, S, S) float32 -> (B, K, S, S) float32, summing to one over the classes."""

        def run(at_once: int) -> NDArray[np.float32]:
            if at_once < most:  # more did not fit, so the next batches need not try it
                self._limit = at_once
            parts = [
                self._probabilities(images[start : start + at_once])
                for start in range(0, len(images), at_once)
            ]
            return np.concatenate(parts)

        most = min(len(images), self._limit or self._windows_at_once(images))
        return halving(run, most, self._progress)

    def _windows_at_once(self, images: NDArray[np.float32]) -> int:
        """Return how many windows may go through the network together, whatever the batch.

        The device and the window's size alone decide, so it is the same in every run.
        """
        if self._device.type != "cpu":
            return len(images)
        side: int = images.shape[-1]
        return max(1, CPU_PIXELS // side**2)

    def _probabilities(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with inference(self._device):
            batch = torch.from_numpy(images).to(self._device, memory_format=torch.channels_last)
            logits: Tensor = self._network(batch)
            return logits.softmax(dim=1).float().cpu().numpy()
