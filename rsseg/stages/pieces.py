"""Pieces: runs of blocks of a prediction, shared out among the workers of a cluster.

A worker opens the raster and the network itself and writes finished blocks to the scratch folder,
which all share; what it sends back is nothing. Which worker makes a block changes no pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from rsseg.io.blocks import BlockStore
from rsseg.stages.blending import Network, runs
from rsseg.stages.job import Job
from rsseg.stages.predict import Advance, fill_blocks, windows_of

T = TypeVar("T")

ROWS = 20
"""Rows of windows in a piece, so that computing those above it once more costs about 1 in 15."""

PER_WORKER = 4
"""Pieces per worker at the most: the last ones then end at about the same time."""


class Workers(Protocol):
    """Whoever computes pieces side by side."""

    @property
    def size(self) -> int:
        """How many there are."""

    def each(
        self,
        function: Callable[[T], float],
        items: Sequence[T],
        advance: Advance,
        watch: Callable[[], None],
    ) -> None:
        """Compute the function of every item; call ``watch`` now and then."""

    def settle(self, missing: Callable[[], Sequence[object]]) -> None:
        """Wait until nothing is missing here."""


@dataclass(frozen=True)
class Shared:
    """Has the missing blocks of a prediction made by workers.

    Args:
        workers: of a cluster.
        make: makes the network, where it is called; a function of a module, for it pickles.
        made_of: its arguments; they tell this network from every other one.
        readers: threads of each worker that read ahead.
    """

    workers: Workers
    make: Callable[..., Network]
    made_of: tuple[Any, ...]
    readers: int

    def __call__(
        self,
        store: BlockStore,
        job: Job,
        missing: Sequence[int],
        advance: Advance,
    ) -> None:
        """Make the missing blocks; see ``Fill``."""
        cut = pieces(job, missing, store.block_rows, self.workers.size)
        fill = partial(_fill, store, job, self.make, self.made_of, self.readers)
        share = windows_of(job, missing, store.block_rows) / len(missing)
        seen = len(missing)

        def watch() -> None:
            # Pieces take long, and their blocks show here one by one.
            nonlocal seen
            left = len(store.missing())
            advance((seen - left) * share)
            seen = left

        self.workers.each(fill, cut, lambda _: None, watch)
        self.workers.settle(store.missing)
        watch()


def pieces(job: Job, missing: Sequence[int], block_rows: int, workers: int) -> list[range]:
    """Cut the blocks that are missing into runs for workers.

    Each run computes again the windows that reach into it from above, so runs are long; yet every
    worker gets one, if there are blocks enough, and up to ``PER_WORKER`` where that costs little.

    Returns:
        Disjoint ranges of block indices, ascending, that cover ``missing``.
    """
    total = max(1, len(missing))
    high = total * block_rows // max(1, job.stride) // ROWS
    count = workers * min(max(high // workers, 1), PER_WORKER)
    return [part for run in runs(missing) for part in _cut(run, -(-len(run) * count // total))]


def _cut(run: range, count: int) -> list[range]:
    """Cut a range into ``count`` parts of lengths that differ by one at the most, none empty."""
    count = min(count, len(run))
    ends = [run.start + len(run) * part // count for part in range(count + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def _fill(
    store: BlockStore,
    job: Job,
    make: Callable[..., Network],
    made_of: tuple[Any, ...],
    readers: int,
    piece: range,
) -> float:
    """Make the blocks of a piece, except those that a lost worker has left."""
    wanted = sorted(set(piece) & set(store.missing()))
    if wanted:
        network = _made(make, made_of)
        fill_blocks(store, job, wanted, _unheard, network=network, workers=readers)
    return 0


def _unheard(_: float) -> None:
    """Report to nobody: progress is what shows in the scratch folder."""


@lru_cache(maxsize=1)
def _made(make: Callable[..., Network], made_of: tuple[Any, ...]) -> Network:
    """Make a network once per worker."""
    return make(*made_of)
