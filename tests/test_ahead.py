from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from rsseg.stages.ahead import ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("waiting", [0, 1, 5])
def test_results_come_in_order(workers: int, waiting: int) -> None:
    assert list(ahead(lambda n: n * n, range(20), workers, waiting)) == [n * n for n in range(20)]
    assert list(ahead(str, [], workers, waiting)) == []


def test_without_threads_nothing_is_done_before_it_is_asked_for() -> None:
    done: list[int] = []
    results = ahead(done.append, range(5), 0, 9)
    assert done == []
    next(results)
    assert done == [0]


@pytest.mark.parametrize("waiting", [0, 1, 4])
def test_no_more_than_so_many_items_are_taken_in_advance(waiting: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    with_threads = ahead(str, items(), 2, waiting)
    for count, _ in enumerate(with_threads, start=1):
        assert taken == min(100, count + waiting)


def test_threads_work_side_by_side_and_while_nobody_asks() -> None:
    meeting = threading.Barrier(3, timeout=60)
    results = ahead(lambda _: meeting.wait(), range(3), 3, 3)
    assert sorted(results) == [0, 1, 2]  # or the barrier is broken


def test_an_error_comes_out_where_its_result_would_and_ends_the_work() -> None:
    done: list[int] = []

    def divide(number: int) -> float:
        done.append(number)
        return 1 / (number - 2)

    results = ahead(divide, range(1000), 1, 3)
    assert [next(results), next(results)] == [-0.5, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(done) <= 6
    assert not [t for t in threading.enumerate() if t.name.startswith("rsseg-ahead")]


def test_closing_it_cancels_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    first, cancelled = threading.Event(), threading.Semaphore(0)
    cancel = Future.cancel

    def noted(future: Future[int]) -> bool:
        result = cancel(future)
        cancelled.release()
        return result

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            first.set()
            for _ in range(10):
                cancelled.acquire(timeout=5)
        return number

    monkeypatch.setattr(Future, "cancel", noted)
    results = ahead(work, range(100), 1, 10)
    assert next(results) == 0
    assert first.wait(60)
    results.close()
    assert begun == [0, 1]


@pytest.mark.parametrize("waiting", [1, 9])
def test_what_was_begun_is_given_before_the_failure_to_draw_more(waiting: int) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no fourth")

    given: list[int] = []
    with pytest.raises(ValueError, match="no fourth"):
        given.extend(ahead(lambda n: n, items(), 1, waiting))
    assert given == [0, 1, 2]
