"""The segmenter: DeepLabV3+ or another architecture of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
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

TTA: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "flips": ((), (-1,), (-2,), (-2, -1)),
}
"""Test-time augmentations: over which axes an image is mirrored, each time its probabilities are
computed; they are averaged."""

PRECISIONS = ("float32", "bfloat16")
"""In what numbers a segmenter may compute. bfloat16 halves the time where the hardware has it, and
gives about one pixel in a hundred another class."""

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
        tta: of ``TTA``: whether the network also looks at the mirrored image.
        precision: of ``PRECISIONS``: what convolutions and matrix products are computed in.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        progress: Progress,
        tta: str = "none",
        precision: str = "float32",
    ) -> None:
        assert tta in TTA
        assert precision in PRECISIONS
        self._network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._device = device
        self._progress = progress
        self._mirrored = TTA[tta]
        self._reduced = precision == "bfloat16"
        self._limit: int | None = None
        self._way = _Way(device)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, S, S) float32 -> (B, K, S, S) float32, summing to one over the classes."""
        with inference(self._device):
            return np.stack(
                [torch.from_numpy(one).softmax(dim=0).numpy() for one in self.logits(images)]
            )

    def logits(self, images: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
        """Return what a softmax over the classes makes probabilities of.

        A GPU goes on working after the return; going through what is returned waits for it.

        Args:
            images: (B, C, S, S) float32; best with the pixels of an image lying together.

        Returns:
            B arrays (K, S, S) float32, to be gone through once.
        """

        def run(at_once: int) -> list[Iterable[NDArray[np.float32]]]:
            if at_once < most:  # more did not fit, so the next batches need not try it
                self._limit = at_once
            with inference(self._device):
                return [
                    self._way.back(self._scores(self._way.there(images[start : start + at_once])))
                    for start in range(0, len(images), at_once)
                ]

        most = min(len(images), self._limit or self._windows_at_once(images))
        return chain.from_iterable(halving(run, most, self._progress))

    def _windows_at_once(self, images: NDArray[np.float32]) -> int:
        """Return how many windows may go through the network together, whatever the batch.

        The device and the window's size alone decide, so it is the same in every run.
        """
        if self._device.type != "cpu":
            return len(images)
        side: int = images.shape[-1]
        return max(1, CPU_PIXELS // side**2)

    def _scores(self, batch: Tensor) -> Tensor:
        if self._mirrored == ((),):
            return self._seen(batch)
        seen = [self._seen(batch.flip(axes)).softmax(dim=1).flip(axes) for axes in self._mirrored]
        mean = torch.stack(seen).mean(dim=0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _seen(self, batch: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._reduced):
            logits: Tensor = self._network(batch)
        return logits.float()


class _Way:
    """The way of images to a device and of what it says back, beside its work where it can.

    Args:
        device: a GPU has streams of its own for both ways, and memory for them that does not move.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: list[torch.cuda.Stream] = []
        if device.type == "cuda":
            self._streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]

    def there(self, images: NDArray[np.float32]) -> Tensor:
        """(B, C, S, S) float32 -> the same on the device, pixels lying together."""
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        if not self._streams:
            return batch.to(self._device)
        upload, work = self._streams[0], torch.cuda.current_stream(self._device)
        with torch.cuda.stream(upload):
            moved = batch.pin_memory().to(self._device, non_blocking=True)
        work.wait_stream(upload)
        moved.record_stream(work)
        return moved

    def back(self, scores: Tensor) -> Iterable[NDArray[np.float32]]:
        """(B, K, S, S) -> its B parts, each there when it is asked for."""
        if not self._streams:
            arrays: NDArray[np.float32] = scores.cpu().numpy()
            return arrays
        download = self._streams[1]
        download.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(download):
            host = torch.empty_like(scores, device="cpu", pin_memory=True)
            host.copy_(scores, non_blocking=True)
        scores.record_stream(download)
        return _arrived(download.record_event(), host)


def _arrived(event: torch.cuda.Event, host: Tensor) -> Iterator[NDArray[np.float32]]:
    event.synchronize()
    yield from host.numpy()
