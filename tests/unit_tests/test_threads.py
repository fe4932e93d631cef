"""Blocking iterators on an event loop: nothing runs on unseen, nothing blocks, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Generator
from contextlib import aclosing
from typing import Any

import pytest

from safe_integrations.adapters.threads import AHEAD, InThread


class Numbers:
    """Counts for ever, and knows how far and whether it was closed."""

    def __init__(self, at_most: int = 10**9) -> None:
        self.at_most = at_most
        self.made = 0
        self.moved = threading.Event()
        self.closed = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    def __call__(self, _: Any, stopped: Callable[[], bool]) -> Generator[int, None, None]:
        try:
            while self.made < self.at_most and not stopped():
                self.made += 1
                self.moved.set()
                yield self.made
        finally:
            self.may_close.wait(10)
            self.closed.set()


async def settled(value: Callable[[], int]) -> int:
    """What a value is once it does not change any more."""
    before = -1
    while before != value():
        before = value()
        await asyncio.sleep(0.05)
    return before


async def test_items_come_in_order_and_what_is_prepared_is_passed_on() -> None:
    def start(prepared: int, stopped: Any) -> Generator[int, None, None]:
        yield from range(prepared)

    assert [item async for item in InThread(lambda: 100, start)] == list(range(100))


async def test_a_slow_reader_slows_the_thread_down() -> None:
    """A queue without a bound let the models write a whole answer that nobody read."""
    numbers = Numbers()
    async with aclosing(InThread(lambda: None, numbers)) as items:
        assert await anext(items) == 1
        assert await settled(lambda: numbers.made) <= AHEAD + 2
        assert await anext(items) == 2
    assert numbers.closed.is_set()


@pytest.mark.parametrize("phase", ["preparing", "iterating"])
async def test_errors_reach_the_reader(phase: str) -> None:
    def prepare() -> None:
        if phase == "preparing":
            raise OSError("no such file")

    def start(_: None, stopped: Any) -> Generator[int, None, None]:
        yield 1
        raise OSError("no such file")

    items = InThread(prepare, start)
    with pytest.raises(OSError, match="no such file"):
        async for _ in items:
            pass
    assert [item async for item in items] == []


async def test_whoever_gives_up_does_not_wait_for_what_is_being_loaded() -> None:
    """`wait_for(ainvoke, 1)` returned when the models were loaded, minutes later."""
    may_go_on, loaded = threading.Event(), threading.Event()

    def load() -> None:
        may_go_on.wait(10)
        loaded.set()

    numbers = Numbers()
    task = asyncio.create_task(anext(InThread(load, numbers)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not loaded.is_set(), "the caller has waited"
    may_go_on.set()
    assert await asyncio.to_thread(loaded.wait, 10)
    await asyncio.sleep(0.05)
    assert numbers.made == 0, "an answer was begun that nobody waits for"


async def test_a_task_that_is_cancelled_waits_until_the_model_is_free() -> None:
    numbers = Numbers()

    async def read() -> None:
        async with aclosing(InThread(lambda: None, numbers)) as items:
            async for _ in items:
                pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(numbers.moved.wait, 10)
    numbers.may_close.clear()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    assert not task.done()
    numbers.may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert numbers.closed.is_set()


async def test_a_cancellation_while_waiting_for_the_end_is_not_lost() -> None:
    """It landed in the last `await`, and the task went on as if nobody had cancelled it."""
    numbers = Numbers()
    items = InThread(lambda: None, numbers)
    await anext(items)
    numbers.may_close.clear()
    closing = asyncio.create_task(items.aclose())
    await asyncio.sleep(0.02)
    closing.cancel()
    await asyncio.sleep(0.02)
    numbers.may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert numbers.closed.is_set()


@pytest.mark.parametrize("preparing", [True, False])
async def test_closing_it_elsewhere_ends_the_reading(preparing: bool) -> None:
    """The reader waited for ever: whoever closes it takes the last item away with it."""
    may_go_on = threading.Event()

    def start(_: Any, stopped: Callable[[], bool]) -> Generator[int, None, None]:
        while not stopped():
            may_go_on.wait(0.01)
        yield from ()

    wait = may_go_on.wait if preparing else lambda _: None
    items = InThread(lambda: wait(10), start)
    reader = asyncio.create_task(anext(items, "nothing"))
    await asyncio.sleep(0.05)
    await items.aclose()
    assert await asyncio.wait_for(reader, 5) == "nothing"
    may_go_on.set()


async def test_what_is_forgotten_stops() -> None:
    numbers = Numbers()
    items = InThread(lambda: None, numbers)
    await anext(items)
    del items
    gc.collect()
    assert await asyncio.to_thread(numbers.closed.wait, 10)


def test_a_loop_that_is_closed_before_the_thread_ends_does_no_harm() -> None:
    numbers, may_go_on = Numbers(), threading.Event()

    async def give_up() -> None:
        items = InThread(lambda: may_go_on.wait(10), numbers)
        task = asyncio.create_task(anext(items))
        await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(give_up())
    before = threading.active_count()
    may_go_on.set()
    for thread in threading.enumerate():
        if thread.name == "safe-answer":
            thread.join(10)
    assert numbers.made == 0 and threading.active_count() <= before
