"""Tensors from files, without ever unpickling foreign code."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rsseg.errors import InputError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a ``.safetensors`` file or a torch file that holds only tensors.

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
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"{path}: expected tensors by name and nothing else in it")
    return state
