"""Cluster: workers of dask.distributed, on this machine or on many, as an executor.

An item that is computed again, because who computed it was lost, does no harm: results are written
where everybody sees them, each whole or not at all.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from multiprocessing import current_process
from pathlib import Path
from typing import Any, TypeVar

import torch

from rsseg import __version__
from rsseg.errors import InputError, RssegError, RunError
from rsseg.executors import Advance, deaf
from rsseg.io.remote import RemotePath
from rsseg.nets.device import hardware, keep_freed_memory, pick_device
from rsseg.progress import Progress

T = TypeVar("T")
LOCAL = "auto"
"""In the place of a scheduler's address: workers on this machine, for this run."""

_VERSIONS = __version__, str(torch.__version__)

IN_FLIGHT = 2
"""Items per worker that are sent: one is computed, one waits there."""

POLL_SECONDS = 5.0
"""How often progress is looked for between results."""

CONNECT_SECONDS = 15
"""How long a scheduler may take to answer."""

WORKERS_SECONDS = 60
"""How long a scheduler's first worker may take to come."""

SETTLE_SECONDS = 90
"""How long a network file system may take to show here what was written elsewhere."""


class Cluster:
    """Workers of dask.distributed.

    Args:
        client: the connection to their scheduler, a ``distributed.Client``.
        address: what errors call the scheduler.
        device: where networks run, as in ``pick_device``.
    """

    def __init__(self, client: Any, address: str, device: str) -> None:
        self._client = client
        self._address = address
        self._device = device

    @property
    def size(self) -> int:
        """How many workers there are now."""
        try:
            return max(1, len(self._client.nthreads()))
        except OSError as error:
            raise self._gone() from error

    def each(
        self,
        function: Callable[[T], float],
        items: Sequence[T],
        advance: Advance,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute ``function(item)`` of every item on some worker; what it does is written there.

        A few items per worker are on their way at a time. What a worker that is lost was computing,
        another one computes again. Whatever ends this early cancels what was not begun.

        Args:
            function: pickles, and opens its files where it arrives.
            items: pickle as well.
            advance: is told what the function returned.
            watch: is called every few seconds.

        Raises:
            RunError: the scheduler is gone, or several workers died of one item.
        """
        from distributed import TimeoutError as NothingYet
        from distributed import wait

        left, live = iter(items), set[Any]()
        with self._explained(), self._client.as_current():
            try:
                while True:
                    room = max(0, IN_FLIGHT * self.size - len(live))
                    for item in islice(left, room):
                        live.add(self._client.submit(_computed, function, item, pure=False))
                    if not live:
                        return
                    try:
                        done = wait(live, POLL_SECONDS, return_when="FIRST_COMPLETED").done
                    except NothingYet:
                        done = set()
                    live -= done
                    for future in done:
                        advance(future.result())
                    watch()
            finally:
                with suppress(OSError):  # the scheduler may be gone
                    self._client.cancel(list(live))

    def settle(self, missing: Callable[[], Sequence[object]]) -> None:
        """Wait until this process sees all that the workers wrote.

        Args:
            missing: what it does not see yet.

        Raises:
            RunError: something does not come.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while left := missing():
            if time.monotonic() > deadline:
                raise RunError(
                    f"the workers are done, but {len(left)} of their results do not show here; "
                    "is the folder on a file system that all share? Run again to go on"
                )
            time.sleep(0.2)

    def survey(self, read: Sequence[Path], folder: Path) -> tuple[torch.device, str]:
        """Make sure that the workers there are can do the work.

        Args:
            read: files and folders that they read; those that are not plain paths are left out.
            folder: where they write.

        Returns:
            The kind of device on which they run networks, and what makes of GPUs they are.

        Raises:
            InputError: a worker cannot do it, and why.
        """
        there = [path for path in read if path.exists()]
        with _sign_in(folder) as sign:
            ask = there if sign is None else [*there, sign]
            answers = self._client.run(_surveyed, self._device, ask, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, BaseException):
                why = str(answer) if isinstance(answer, RssegError) else repr(answer)
                raise InputError(f"Dask worker {address}: {why.splitlines()[0]}") from answer
        for address, count in self._client.nthreads().items():
            if count > 1:
                raise InputError(
                    f"Dask worker {address}: has {count} threads, and a network takes one item at "
                    "a time; start it with --nthreads 1, and --nworkers for more workers"
                )
        return self._agreed(answers)

    def _agreed(self, answers: dict[str, _Answer]) -> tuple[torch.device, str]:
        """Return the one device of all workers."""
        for address, answer in answers.items():
            if answer.versions != _VERSIONS:
                raise InputError(
                    f"Dask worker {address}: has rsseg {answer.versions[0]} with torch "
                    f"{answer.versions[1]}, here are {_VERSIONS[0]} and {_VERSIONS[1]}; install "
                    "the same"
                )
        kinds = sorted({answer.kind for answer in answers.values()})
        if len(kinds) > 1:
            raise InputError(
                f"the workers of {self._address} have different devices ({', '.join(kinds)}); "
                "choose one that all have with --device"
            )
        names = sorted({answer.hardware for answer in answers.values()})
        return torch.device(kinds[0]), ", ".join(names)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what is no fault of the function into errors of one line."""
        from distributed import CancelledError, KilledWorker

        try:
            yield
        except KilledWorker as error:
            raise RunError(
                f"workers died {error.allowed_failures + 1} times over the same piece of work, for "
                "want of memory perhaps; what is done is kept: run again to go on"
            ) from error
        except CancelledError as error:
            raise self._gone() from error

    def _gone(self) -> RunError:
        return RunError(
            f"{self._address}: the scheduler is gone; what is done is kept: run again to go on"
        )


def _computed(function: Callable[[T], float], item: T) -> float:
    """Compute, on a worker; Dask starts these such that all freed memory goes back at once.

    A network needs it again for its next windows, and fetching it page by page would cost it a
    third of its time.
    """
    keep_freed_memory()
    return function(item)


@dataclass(frozen=True)
class _Answer:
    versions: tuple[str, str]
    kind: str
    hardware: str


@contextmanager
def _sign_in(folder: Path) -> Iterator[Path | None]:
    """Give a file that shows who shares the folder; none in a store, which is everywhere."""
    if isinstance(folder, RemotePath):
        yield None
        return
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rsseg-shared-") as sign:
        yield Path(sign.name)


def _surveyed(device: str, paths: Sequence[Path]) -> _Answer:
    """Say, on a worker, what it has; raise InputError where something is missing."""
    for path in paths:
        if not path.exists():
            raise InputError(
                f"does not see {path.parent if path.name.startswith('.rsseg-shared-') else path} "
                "as it is here; all workers need the same files under the same paths"
            )
    where = pick_device(device)
    return _Answer(_VERSIONS, str(where), hardware(where))


@contextmanager
def connected(
    dask: str | None, workers: int | None, device: str, progress: Progress
) -> Iterator[Cluster | None]:
    """Give the cluster that a user asks for, as long as the context lasts.

    Args:
        dask: a scheduler's address; ``auto`` for workers on this machine, which end with the
            context; None for no cluster.
        workers: how many processes ``auto`` starts; by default one per core, or per GPU where
            networks run on GPUs. No other cluster can be told.
        device: where networks run.
        progress: is told how many there are.

    Raises:
        InputError: dask.distributed is not installed, nobody answers at the address, or nobody
            works there.
    """
    if dask is None:
        yield None
        return
    if find_spec("distributed") is None:
        raise InputError(
            f"dask = {dask!r}: dask.distributed is not installed; run pip install 'rsseg[dask]'"
        )
    if dask != LOCAL and workers is not None:
        raise InputError(
            f"dask = {dask!r}: has as many workers as have joined it; "
            f"a number of workers goes with {LOCAL!r} alone"
        )
    # Of several GPUs here, each worker sees one alone.
    device = device.partition(":")[0] if dask == LOCAL else device
    with _silent(), _local(workers, device) if dask == LOCAL else _client(dask) as client:
        name = "this machine" if dask == LOCAL else dask
        cluster = Cluster(client, name, device)
        progress.note(f"{name}: {cluster.size} Dask workers")
        yield cluster


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Connect to a scheduler that has workers."""
    from distributed import Client
    from distributed import TimeoutError as NobodyCame

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address!r}; give its address, tcp://HOST:8786, "
            f"or {LOCAL} for workers on this machine ({str(error).splitlines()[0]})"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except NobodyCame:
            raise InputError(
                f"{address}: the scheduler has no workers; start some with "
                f"dask worker {address} --nthreads 1"
            ) from None
        yield client


@contextmanager
def _local(workers: int | None, device: str) -> Iterator[Any]:
    """Start workers on this machine, and end them."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if getattr(current_process(), "_inheriting", False):
        raise InputError("processes cannot start yet: " + _GUARD)
    own = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    # No limit of memory: a tile's results are small, and a network is as large as it is.
    nanny = {**own, "nthreads": 1, "memory_limit": None, "silence_logs": logging.CRITICAL}
    places = _places(workers, pick_device(device))
    with _environment():
        try:
            with deaf():
                cluster = SpecCluster(
                    scheduler={"cls": Scheduler, "options": {**own, "port": 0}},
                    workers={
                        index: {"cls": Nanny, "options": {**nanny, "env": place}}
                        for index, place in enumerate(places)
                    },
                    silence_logs=logging.CRITICAL,
                )
        except RuntimeError as error:
            raise RunError(f"Dask's workers did not start ({error}); {_GUARD}") from error
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


_GUARD = "a script calls rsseg below: if __name__ == '__main__':"


def _places(workers: int | None, device: torch.device) -> list[dict[str, str]]:
    """Return the variables of each worker's environment: on GPUs each sees one first."""
    if device.type != "cuda":
        return [{} for _ in range(workers or os.cpu_count() or 1)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if device.index is not None:
        gpus = [gpus[device.index]]
    count = workers or len(gpus)
    return [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count)]


@contextmanager
def _environment() -> Iterator[None]:
    """Take back what Dask sets in this process for those that it starts (one thread each)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Dask's own remarks from the user; ours say what they need to know."""
    import distributed  # noqa: F401  # sets its handlers up

    handlers = {
        handler
        for name in ("distributed", *logging.root.manager.loggerDict)
        if name.partition(".")[0] == "distributed"
        for handler in logging.getLogger(name).handlers
    }
    levels = {handler: handler.level for handler in handlers}
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)
