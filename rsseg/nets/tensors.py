"""Tensors from files, without ever unpickling foreign code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rsseg.errors import InputError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or a torch file of plain data.

    In a torch file they may also stand under ``model``, as training scripts leave them.

    Raises:
        InputError: the file is missing, damaged, or holds anything that would have to be unpickled.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; rsseg weights list shows what can be had")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    except Exception as error:  # a damaged or foreign pickle can raise nearly anything
        raise InputError(
            f"{path}: damaged, or it holds more than tensors and would run foreign code to load; "
            "give a file of tensors by name (.safetensors or an official .pt/.pth)"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{path}: expected tensors by name and nothing else in it")
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Load tensors into a network that must have exactly these.

    Args:
        network: filled in place.
        state: tensors by the network's own names.
        path: where they come from, for the message.
        what: the network's name, for the message.

    Raises:
        InputError: a tensor is missing, unknown or of another shape.
    """
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += sorted(n for n in own.keys() & state.keys() if own[n].shape != state[n].shape)
    if wrong:
        raise InputError(
            f"{path} looks like {what}, but {len(wrong)} of its tensors are missing, unknown or of "
            f"another shape ({wrong[0]} first); give an official checkpoint (`rsseg weights list`)"
        )
    network.load_state_dict(state, strict=True)
