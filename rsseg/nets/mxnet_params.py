"""Tensors from MXNet's parameter files (``.params``), read without MXNet.

The layout is that of ``NDArray::Save`` in MXNet's source, all numbers little-endian: the magic
number 0x112 and a reserved one (u64 each); the number of arrays (u64) and the arrays; the number of
names (u64) and the names, each its length (u64) and its bytes. An array is its version (u32), its
shape, the device it was on (two i32), the type of its values (i32) and the values. The format has
changed twice: the first had no version, only a shape of u32; the second has a shape of i64; the
third has also a storage type (i32) before the shape.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from rsseg.errors import InputError

LIST_MAGIC = 0x112
VERSION_1 = 0xF993FAC8
VERSION_2 = 0xF993FAC9

_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
"""numpy's types by MXNet's type numbers."""

_MOST_AXES = 32


def read_mxnet_params(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file of MXNet, trained weights and running statistics alike.

    Args:
        path: such as ``ilsvrc-cls_rna-a1_cls1000_ep-0001.params``.

    Returns:
        Tensors by name, without MXNet's ``arg:`` and ``aux:`` before the names.

    Raises:
        InputError: the file is missing, cut off, or no list of named, dense arrays.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).tensors()
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable file of MXNet parameters ({error})") from error


class _Reader:
    """Reads what NDArray::Save wrote; raises ValueError where the bytes cannot be that."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def tensors(self) -> dict[str, Tensor]:
        if self._numbers("<QQ")[0] != LIST_MAGIC:
            raise ValueError("it does not begin with MXNet's magic number")
        arrays = [self._array() for _ in range(self._count(4))]
        names = [self._name() for _ in range(self._count(8))]
        if len(names) != len(arrays):
            raise ValueError(f"{len(arrays)} arrays but {len(names)} names")
        return {
            name.removeprefix("arg:").removeprefix("aux:"): torch.from_numpy(array)
            for name, array in zip(names, arrays, strict=True)
        }

    def _array(self) -> np.ndarray:
        shape = self._shape()
        if not shape:
            return np.zeros(0, np.float32)  # an array that was never filled ends here
        _, _, kind = self._numbers("<iii")
        if not 0 <= kind < len(_TYPES):
            raise ValueError(f"unknown type of values {kind}")
        values = np.dtype(_TYPES[kind])
        data = self._bytes(prod(shape) * values.itemsize)
        return np.frombuffer(bytearray(data), values).reshape(shape)

    def _shape(self) -> tuple[int, ...]:
        (version,) = self._numbers("<I")
        if version == VERSION_2 and self._numbers("<i") != (0,):
            raise ValueError("sparse arrays are not read")
        versioned = version in (VERSION_1, VERSION_2)
        (axes,) = self._numbers("<I") if versioned else (version,)
        if axes > _MOST_AXES:
            raise ValueError(f"an array of {axes} axes")
        shape = self._numbers(f"<{axes}{'q' if versioned else 'I'}")
        if min(shape, default=0) < 0:
            raise ValueError("a negative length")
        return shape

    def _name(self) -> str:
        return self._bytes(self._numbers("<Q")[0]).decode()

    def _count(self, least: int) -> int:
        """Read how many items of at least so many bytes each follow."""
        (count,) = self._numbers("<Q")
        if count * least > self._size:
            raise ValueError(f"{count} items cannot be in {self._size} bytes")
        return int(count)

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))

    def _bytes(self, count: int) -> bytes:
        # Asked for before it is read: a damaged length must not fill the memory.
        if count > self._size - self._file.tell():
            raise ValueError("it is cut off")
        return self._file.read(count)
