"""Devices: where networks run, in what precision, and what to do when memory runs out."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, TypeVar

import torch

from rsseg.errors import InputError, RunError
from rsseg.progress import Progress

T = TypeVar("T")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: an unknown name, or this machine does not have it.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.partition(":")[0]
    if kind not in available:
        raise InputError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    if not available[kind]:
        raise InputError(f"device {name!r} is not available here; use --device auto or cpu")
    return torch.device(name)


def hardware(device: torch.device) -> str:
    """Return what tells the results of a device from those of another: the GPU's make, or its kind.

    It stands in fingerprints, since other hardware rounds otherwise.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def training_precision(device: torch.device) -> Precision:
    """Return Lightning's precision name: bf16 where the hardware has it, else half or single."""
    if fast_dtype(device) == torch.bfloat16:
        return "bf16-mixed"
    return "16-mixed" if device.type == "cuda" else "32-true"


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16)."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())


def default_batch_size(device: torch.device) -> int:
    """Return how many windows of 256 x 256 pixels a device takes at once by default."""
    return 32 if device.type == "cuda" else 8


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees: the next step or window needs it again.

    glibc returns large blocks to the system at once, and each step fetches them anew, page by page.
    A training step of the default classifier takes 0.7 of the time without. Elsewhere nothing
    happens.
    """
    # From glibc's malloc.h: one arena (others return what they free), what is at its top stays, and
    # no block but the largest gets pages of its own.
    options = {-8: 1, -1: 2**31 - 1, -3: 32 * 2**20}
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute with one thread in each thread that is started meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device's memory is exhausted."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def free_memory() -> None:
    """Give cached device memory back after an out-of-memory error."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halving(run: Callable[[int], T], batch_size: int, progress: Progress, *, least: int = 1) -> T:
    """Call ``run(batch_size)``, with half of it as long as the memory does not suffice.

    Raises:
        RunError: not even a batch of ``least`` fits.
    """
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if batch_size <= least:
                raise RunError(
                    f"out of memory even with a batch of {batch_size}; "
                    "use --device cpu or a smaller window"
                ) from error
        free_memory()
        batch_size = max(least, batch_size // 2)
        progress.warn(f"out of memory: going on with a batch size of {batch_size}")


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run networks without gradients, deterministically for equal shapes and threads."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield
