"""Running a generation in a thread, so that an event loop stays responsive meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import Any, Final, Generic, TypeVar

P = TypeVar("P")
T = TypeVar("T")

AHEAD: Final = 16
"""Items that may wait for their reader. Then the models wait, too."""


class InThread(AsyncIterator[T]):
    """Iterates over a blocking iterator that runs in a thread of its own.

    The thread begins with the first item and sees the context variables of that moment. Closing
    this iterator, or cancelling the task that waits for it, stops the thread and waits for its
    end, one forward pass later at most; then nothing computes any more. Only while it prepares,
    which nothing can interrupt, it is left alone: it ends by itself once it is prepared.

    Not an async generator: an event loop that ends closes all of these at once, and those that
    close one another get in each other's way.

    Args:
        prepare: Makes what the iterator needs, such as loaded models. May block for long.
        start: Makes the iterator of it; also gets a function that says whether to stop.

    Raises:
        Exception: Whatever preparing or iterating raises.
    """

    def __init__(
        self,
        prepare: Callable[[], P],
        start: Callable[[P, Callable[[], bool]], Generator[T, None, None]],
    ) -> None:
        self._work: Callable[[_Line[T]], None] = lambda line: line.work(prepare, start)
        self._line: _Line[T] | None = None
        self._over = False

    async def __anext__(self) -> T:
        if self._over:
            raise StopAsyncIteration
        if self._line is None:
            self._line = _Line(asyncio.get_running_loop())
            run = contextvars.copy_context().run
            arguments = (self._work, self._line)
            threading.Thread(target=run, args=arguments, name="safe-answer", daemon=True).start()
        try:
            item = await self._line.items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(item, tuple):
            self._line.room.release()
            return item[0]
        await self.aclose()
        raise StopAsyncIteration if item is None else item

    async def aclose(self) -> None:
        """Stops the thread and, unless it is preparing, waits for its end."""
        self._over = True
        line, cancelled = self._line, None
        if line is None:
            return
        line.items.put_nowait(None)  # another task may be waiting for an item
        if line.stop():
            return
        while not line.ended.is_set():
            try:
                await line.ended.wait()
            except asyncio.CancelledError as error:  # told below: the model must be free first
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def __del__(self) -> None:
        if self._line is not None:
            self._line.stop()


class _Line(Generic[T]):
    """What the thread and its reader share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.items: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()
        self.room = threading.Semaphore(AHEAD)
        self.ended = asyncio.Event()
        self._loop = loop
        self._preparing = True
        self._stopped = False

    def stop(self) -> bool:
        """Tells the thread to stop; whether it is preparing, and so ends without having begun."""
        # the thread writes and reads these two the other way round, so one of both sees the other
        self._stopped = True
        self.room.release()
        return self._preparing

    def work(
        self,
        prepare: Callable[[], P],
        start: Callable[[P, Callable[[], bool]], Generator[T, None, None]],
    ) -> None:
        """What the thread does."""
        try:
            prepared = prepare()
            self._preparing = False
            if not self._stopped:
                with closing(start(prepared, lambda: self._stopped)) as items:
                    for item in items:
                        self._put((item,))
                self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            self._tell(self.ended.set)

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        if not self._stopped:
            self.room.acquire()
        if not self._stopped:
            self._tell(self.items.put_nowait, item)

    def _tell(self, function: Callable[..., Any], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)


class Closing(AsyncGenerator[T, None]):
    """An async generator, and what to close when it ends, fails or is closed.

    Args:
        items: The generator.
        aclose: Closes the rest. Called when `items` is closed; may be called several times.
        within: Makes the context in which the generator works on its next item.
    """

    def __init__(
        self,
        items: AsyncGenerator[T, None],
        aclose: Callable[[], Awaitable[None]],
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._items = items
        self._aclose = aclose
        self._within = within

    @property
    def ag_frame(self) -> object:
        """None once it has ended; tracers ask."""
        return getattr(self._items, "ag_frame", None)

    async def asend(self, value: None) -> T:
        """The next item."""
        try:
            with self._within():
                return await self._items.asend(value)
        except BaseException:
            await self._aclose()
            raise

    async def athrow(self, *error: Any) -> T:
        """Raises an error inside the generator."""
        return await self._items.athrow(*error)

    async def aclose(self) -> None:
        """Closes everything."""
        try:
            await self._items.aclose()
        finally:
            await self._aclose()
