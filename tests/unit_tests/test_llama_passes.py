"""One thread computes for all: what shares a pass, and what happens to one leaves others alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.llama_cpp import passes
from safe_integrations.models.llama_cpp.passes import Passes, Task


class Sums:
    """Computes what its tasks weigh; a pass waits until it may end, or is told to stop."""

    room = 10

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.stopped = threading.Event()
        self.stops: list[bool] = []
        self.fails: int | None = None

    def compute(self, tasks: Sequence[Task]) -> None:
        self.passes.append([task.weight for task in tasks])
        self.entered.release()
        while not self.may_end.acquire(timeout=0.01):
            if self.stopped.is_set():
                return
        if any(task.weight == self.fails for task in tasks):
            raise ZeroDivisionError("one of them fails")
        for task in tasks:
            task.result = 100 + task.weight

    def stop(self, yes: bool) -> None:
        self.stops.append(yes)
        if yes:
            self.stopped.set()
        else:
            self.stopped.clear()

    def end(self, count: int = 1) -> None:
        self.may_end.release(count)


class Callers:
    """Threads that want something computed."""

    def __init__(self) -> None:
        self.passes = Passes()
        self._pool = ThreadPoolExecutor(20)

    def ask(self, computer: Sums, weight: int, cancel: Callable[[], bool] = never) -> Future[int]:
        """One more asks; when this returns, it waits in line or is computed."""
        future = self._pool.submit(self.passes.do, task := Task(computer, weight), cancel)
        while task not in [*self.passes._waiting, *self.passes._running] and not future.done():
            pass
        return future

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def callers() -> Iterator[Callers]:
    made = Callers()
    yield made
    made.close()


def yes_after(count: int) -> Callable[[], bool]:
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def test_one_alone_has_every_pass_to_itself(callers: Callers) -> None:
    sums = Sums()
    sums.end(2)
    assert [callers.ask(sums, weight).result() for weight in (3, 4)] == [103, 104]
    assert sums.passes == [[3], [4]]


def test_who_asks_while_a_pass_runs_shares_the_next(callers: Callers) -> None:
    sums = Sums()
    asked = [callers.ask(sums, 1)]
    sums.entered.acquire()
    asked += [callers.ask(sums, weight) for weight in (2, 3, 4)]
    sums.end(2)
    assert [future.result() for future in asked] == [101, 102, 103, 104]
    assert sums.passes == [[1], [2, 3, 4]]


def test_a_pass_takes_no_more_than_there_is_room_for(callers: Callers) -> None:
    """A part of a long prompt has a pass to itself, and steps go past it, but not for ever."""
    sums = Sums()
    asked = [callers.ask(sums, 1)]
    sums.entered.acquire()
    asked += [callers.ask(sums, weight) for weight in (4, 256, 5, 2, 256)]
    sums.end(5)
    assert [future.result() for future in asked] == [101, 104, 356, 105, 102, 356]
    assert sums.passes == [[1], [4, 5], [256], [2], [256]]


def test_models_do_not_share_passes_but_take_turns(callers: Callers) -> None:
    one, other = Sums(), Sums()
    asked = [callers.ask(one, 1)]
    one.entered.acquire()
    asked += [callers.ask(computer, 2) for computer in (other, one, other)]
    one.end(2)
    other.end(1)
    assert [future.result() for future in asked] == [101, 102, 102, 102]
    assert (one.passes, other.passes) == ([[1], [2]], [[2, 2]])


def test_an_error_hits_only_the_one_it_belongs_to(callers: Callers) -> None:
    sums = Sums()
    sums.fails = 3
    asked = [callers.ask(sums, 1)]
    sums.entered.acquire()
    asked += [callers.ask(sums, weight) for weight in (2, 3, 4)]
    sums.end(5)
    with pytest.raises(ZeroDivisionError):
        asked.pop(2).result()
    assert [future.result() for future in asked] == [101, 102, 104]


def test_who_stops_waiting_in_line_is_never_computed(callers: Callers) -> None:
    sums = Sums()
    first = callers.ask(sums, 1)
    sums.entered.acquire()
    with pytest.raises(GenerationCancelled):
        callers.ask(sums, 2, yes_after(1)).result()
    sums.end()
    assert first.result() == 101
    assert sums.passes == [[1]]
    assert True not in sums.stops


def test_the_only_one_who_wants_a_pass_can_end_it(callers: Callers) -> None:
    """When the caller knows that it is cancelled, nobody computes for it any more."""
    sums = Sums()
    with pytest.raises(GenerationCancelled):
        callers.ask(sums, 1, yes_after(1)).result()
    assert callers.passes._running == []
    sums.end()
    assert callers.ask(sums, 2).result() == 102, "the next pass runs"


def test_a_pass_that_somebody_else_wants_goes_on(callers: Callers) -> None:
    sums = Sums()
    first = callers.ask(sums, 1)
    sums.entered.acquire()
    gives_up = threading.Event()

    def cancel() -> bool:
        if len(sums.passes) == 2:
            gives_up.set()
        return gives_up.is_set()

    wanted, cancelled = callers.ask(sums, 2), callers.ask(sums, 3, cancel)
    sums.end()
    assert first.result() == 101
    assert gives_up.wait(10)
    assert not cancelled.done(), "who is in a pass waits until nobody computes for it any more"
    sums.end()
    assert wanted.result() == 102
    with pytest.raises(GenerationCancelled):
        cancelled.result()
    assert (sums.passes, True in sums.stops) == ([[1], [2, 3]], False)


def test_what_a_caller_is_asked_may_fail(callers: Callers) -> None:
    sums = Sums()

    def broken() -> bool:
        raise LookupError("whom to ask")

    with pytest.raises(LookupError):
        callers.ask(sums, 1, broken).result()
    assert callers.passes._running == []


def test_an_errand_shares_no_pass(callers: Callers) -> None:
    sums = Sums()
    first = callers.ask(sums, 1)
    sums.entered.acquire()
    seen: list[int] = []
    with ThreadPoolExecutor() as pool:
        errand = pool.submit(
            callers.passes.call, sums, lambda: seen.append(len(sums.passes)) or "done"
        )
        while not callers.passes._waiting:
            pass
        second = callers.ask(sums, 2)
        sums.end(2)
        assert errand.result() == "done"
    assert [first.result(), second.result()] == [101, 102]
    assert seen == [1]
    assert sums.passes == [[1], [2]]


def test_a_thread_without_work_ends_and_another_comes(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waited for ever would keep the models it has computed for the last time."""
    monkeypatch.setattr(passes, "_IDLE", 0.01)
    sums = Sums()
    sums.end(2)
    assert callers.ask(sums, 1).result() == 101
    thread = callers.passes._thread
    if thread is not None:
        thread.join(5)
    assert callers.passes._thread is None
    assert callers.ask(sums, 2).result() == 102
