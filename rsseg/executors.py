"""Executors: who computes a function of many items, when all that comes back is a count.

This process, its threads, or processes beside it; ``cluster`` has one more. The function writes its
results where everybody sees them, each whole or not at all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

from rsseg.nets.device import single_threaded

T = TypeVar("T")
Advance = Callable[[float], None]
"""Is told how much of the work was done."""


def serial(function: Callable[[T], float], items: Sequence[T], advance: Advance) -> None:
    """Compute in this thread, in order."""
    for item in items:
        advance(function(item))


def threads(
    function: Callable[[T], float], items: Sequence[T], workers: int, advance: Advance
) -> None:
    """Compute in threads, each of which lets torch use one core."""
    with single_threaded():
        pool = ThreadPoolExecutor(min(workers, len(items)), "rsseg-stage")
        try:
            _wait([pool.submit(function, item) for item in items], advance)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def processes(
    function: Callable[[T], float], items: Sequence[T], workers: int, advance: Advance
) -> None:
    """Compute in processes, to which the function is pickled."""
    # "spawn" everywhere: forking a process that has threads (torch, GDAL) can hang it.
    pool = ProcessPoolExecutor(
        min(workers, len(items)), mp_context=get_context("spawn"), initializer=_end_with_parent
    )
    try:
        with deaf():
            futures = [pool.submit(function, item) for item in items]
        _wait(futures, advance)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end with the one that started it, even if that one is killed.

    Else it would wait for work for ever: the pipe that brings it never closes, for its sisters
    have it open as well.
    """
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="rsseg-parent", daemon=True).start()


def _wait(futures: Sequence[Future[float]], advance: Advance) -> None:
    for future in as_completed(futures):
        advance(future.result())


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore Ctrl-C; processes that start meanwhile ignore it for good: it is ours to answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
