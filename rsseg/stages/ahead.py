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

    The items are drawn by the caller's own thread. Where drawing one fails, also by Ctrl-C, the
    results of those before are still given, and then the failure.

    Args:
        function: what to do, safe to be called by several threads if there are several.
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
            failure = yield from _mapped(pool, function, items, pending, waiting)
            while pending:
                yield pending.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in pending:
                future.cancel()


def _mapped(
    pool: ThreadPoolExecutor,
    function: Callable[[T], U],
    items: Iterable[T],
    pending: deque[Future[U]],
    waiting: int,
) -> Generator[U, None, BaseException | None]:
    """Yield results as new items push them out; return what kept the items from going on."""
    drawn = iter(items)
    while True:
        try:
            item = next(drawn)
        except StopIteration:
            return None
        except BaseException as failure:
            return failure
        pending.append(pool.submit(function, item))
        if len(pending) > waiting:
            yield pending.popleft().result()
