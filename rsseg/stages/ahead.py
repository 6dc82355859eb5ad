"""Work done in advance by threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(
    function: Callable[[T], U], items: Iterable[T], workers: int, waiting: int
) -> Generator[U]:
    """Map in order, with threads that work up to ``waiting`` items in advance.

    Args:
        function: what to do, safe to be called by several threads.
        items: what to do it to.
        workers: threads; with 0 it is done when the result is asked for.
        waiting: how many results may wait at the most; that bounds the memory.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(workers, "rsseg-ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > waiting:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
