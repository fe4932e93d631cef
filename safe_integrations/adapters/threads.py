"""Running a generation in a thread, so that an event loop stays responsive meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import TypeVar

T = TypeVar("T")


async def in_thread(
    start: Callable[[threading.Event], Generator[T, None, None]],
) -> AsyncIterator[T]:
    """Iterates over a blocking iterator that runs in a thread of its own.

    The thread sees the caller's context variables. Closing this iterator, or cancelling the task
    that uses it, sets the cancel event and waits for the thread, which ends within one forward
    pass; so when this returns, nothing computes any more.

    Args:
        start: Makes the iterator; it gets the event that tells it to stop.

    Yields:
        What the iterator yields, in order.

    Raises:
        Exception: Whatever the iterator raises.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()
    ended = asyncio.Event()
    cancel = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            with contextlib.closing(start(cancel)) as items:
                for item in items:
                    put((item,))
                    if cancel.is_set():
                        break
            put(None)
        except BaseException as error:
            put(error)
        finally:
            loop.call_soon_threadsafe(ended.set)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="safe-generation", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        cancel.set()
        while not ended.is_set():
            # even a task that is cancelled twice waits for the model to be free
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
