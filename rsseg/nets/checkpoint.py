"""Checkpoints: one safetensors file with everything that prediction needs.

The tensors are the network's; the header is JSON under the key ``rsseg``: kind, version, classes
with colours, bands with normalisation, configuration (with window and overlap) and ground sample
distance. Nothing is ever unpickled. See docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
from torch import Tensor, nn

from rsseg import __version__
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.config import ClassifierConfig, TrainConfig, from_table
from rsseg.errors import InputError
from rsseg.io.files import replacing
from rsseg.io.remote import local_copy
from rsseg.nets.classifier import Classifier
from rsseg.nets.segmenter import build_segmenter

FORMAT = 1
KEY = "rsseg"

Kind = Literal["classifier", "segmenter"]
_CONFIGS: dict[str, type[ClassifierConfig] | type[TrainConfig]] = {
    "classifier": ClassifierConfig,
    "segmenter": TrainConfig,
}


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    Args:
        kind: ``classifier`` or ``segmenter``.
        config: the configuration it was trained with.
        classes: the classes, in the order of the network's channels.
        bands: the bands, their normalisation and the 8-bit view.
        ground_sample_distance: metres per pixel of the training imagery, or None.
        version: of rsseg.
    """

    kind: Kind
    config: ClassifierConfig | TrainConfig
    classes: Classes
    bands: Bands
    ground_sample_distance: float | None = None
    version: str = __version__

    def to_json(self) -> str:
        """Return the header."""
        return json.dumps(
            {
                "format": FORMAT,
                "kind": self.kind,
                "version": self.version,
                "config": asdict(self.config),
                "classes": self.classes.to_dict(),
                "bands": self.bands.to_dict(),
                "ground_sample_distance": self.ground_sample_distance,
            },
            sort_keys=True,
        )


def save_checkpoint(path: Path, network: nn.Module, card: Card, *, overwrite: bool = True) -> None:
    """Write a checkpoint, atomically."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with replacing(path, overwrite=overwrite) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={KEY: card.to_json()}))


class Checkpoint:
    """A checkpoint on disk.

    Args:
        path: the file.
        kind: what it must be.

    Raises:
        InputError: missing, not a checkpoint of ours, of another kind, or by a newer format.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path
        self.card = _read_card(path)
        if self.card.kind != kind:
            raise InputError(f"{path}: holds a {self.card.kind}, a {kind} is needed here")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        with local_copy(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's tensors, on the CPU."""
        return safetensors.torch.load_file(local_copy(self.path))

    def segmenter(self) -> nn.Module:
        """Return the trained segmenter, in evaluation mode, on the CPU."""
        config = self.card.config
        assert isinstance(config, TrainConfig)
        network = build_segmenter(
            config, len(self.card.bands), len(self.card.classes), pretrained=False
        )
        return self._filled(network)

    def classifier(self) -> Classifier:
        """Return the trained classifier, in evaluation mode, on the CPU."""
        config = self.card.config
        assert isinstance(config, ClassifierConfig)
        foreground = len(self.card.classes.foreground)
        network = Classifier(config, len(self.card.bands), foreground, pretrained=False)
        self._filled(network)
        return network

    def _filled(self, network: nn.Module) -> nn.Module:
        try:
            network.load_state_dict(self.tensors(), strict=True)
        except RuntimeError as error:
            raise InputError(
                f"{self.path}: its tensors do not fit the network it names; the file is damaged"
            ) from error
        return network.eval()


def _read_card(path: Path) -> Card:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; make one with rsseg train")
    try:
        with safetensors.safe_open(local_copy(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        header: dict[str, Any] = json.loads(metadata[KEY])
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"{path}: not a checkpoint of rsseg (a safetensors file with an {KEY!r} header)"
        ) from error
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path}: checkpoint format {header.get('format')}, this rsseg reads format {FORMAT}"
        )
    kind: Kind = header["kind"]
    return Card(
        kind=kind,
        config=from_table(_CONFIGS[kind], header["config"], str(path)),
        classes=Classes.from_dict(header["classes"], str(path)),
        bands=Bands.from_dict(header["bands"]),
        ground_sample_distance=header["ground_sample_distance"],
        version=header["version"],
    )
