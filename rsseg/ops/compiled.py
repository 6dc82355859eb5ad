"""The one way in which loops over pixels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers to machine code, at its first call.

    The code is kept on disk for later runs and runs without Python's lock, so that threads run it
    side by side. With the environment variable ``NUMBA_DISABLE_JIT=1`` it stays plain Python, for
    debugging.
    """
    return cast(F, numba.njit(cache=True, nogil=True)(function))
