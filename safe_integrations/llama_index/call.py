"""One call of `SafeLLM`, from what is asked to the chunks of the answer; and its streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from safe_integrations.adapters.answer import Begun
from safe_integrations.adapters.request import Job, SafeEngine
from safe_integrations.adapters.threads import Closing, InThread
from safe_integrations.engine.events import Event
from safe_integrations.errors import SafeError
from safe_integrations.llama_index.answer import Chunk, Chunks
from safe_integrations.llama_index.events import Reporter

T = TypeVar("T")
_Happening = tuple[datetime, Event | Begun]


class SafeCallError(SafeError):
    """Something was wrong with a call of `SafeLLM`; `__cause__` is the error itself.

    LlamaIndex takes a `ValueError` or `TypeError` for an answer that may be left out: query
    engines go on without the documents that were in the call. This is neither.
    """


@contextmanager
def heard() -> Iterator[None]:
    """Makes errors that LlamaIndex would swallow come through. Belongs around all of a call."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise SafeCallError(str(error)) from error


@dataclass(frozen=True)
class Call:
    """One call. To be made where the caller's span is current.

    Attributes:
        job: What is asked, and how.
        answer: What it grows in.
        reporter: Of the caller's span.
    """

    job: Job
    answer: Chunks
    reporter: Reporter

    def chunks(self) -> Generator[Chunk, None, None]:
        """The answer piece by piece; at least one, and the last has `raw`."""
        with heard(), closing(self._happenings(self.job.load())) as happenings:
            for at, event in happenings:
                self.reporter.report(event, at)
                if chunk := self.answer.take(event):
                    yield chunk

    async def achunks(self) -> AsyncGenerator[Chunk, None]:
        """The same, made in a thread; events are reported where the answer is read."""
        with heard():
            async with aclosing(InThread(self.job.load, self._happenings)) as happenings:
                async for at, event in happenings:
                    self.reporter.report(event, at)
                    if chunk := self.answer.take(event):
                        yield chunk

    def _happenings(
        self, engine: SafeEngine, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[_Happening, None, None]:
        with closing(self.job.events(engine, stopped)) as events:
            for event in events:
                yield datetime.now(), event


@dataclass(frozen=True)
class Reported(Generic[T]):
    """A call as LlamaIndex's decorators report it, once.

    Attributes:
        make: Makes the call, inside what is reported.
        respond: A chunk, and its delta where it streams, in LlamaIndex's form.
        report: Decorates a function that answers, and calls it.
        prepare: What must be read before the decorators ask: they would do so on an event loop.
    """

    make: Callable[[], Call]
    respond: Callable[..., T]
    report: Callable[[Callable[..., Any]], Any]
    prepare: Callable[[], object]

    def whole(self) -> T:
        """The answer."""
        self._prepare()

        def start(*_args: Any, **_kwargs: Any) -> T:
            *_, last = self.make().chunks()
            return self.respond(last)

        answer: T = self.report(start)
        return answer

    async def awhole(self) -> T:
        """The answer; the event loop stays free."""
        await asyncio.to_thread(self._prepare)

        async def start(*_args: Any, **_kwargs: Any) -> T:
            async with aclosing(self.make().achunks()) as chunks:
                async for chunk in chunks:
                    last = chunk
            return self.respond(last)

        answer: T = await self.report(start)
        return answer

    def stream(self) -> Generator[T, None, None]:
        """The answer piece by piece. Closing it stops the engine.

        LlamaIndex's reporting generator leaves that to the garbage collector, and handlers that
        keep its exception keep the engine's generator alive.
        """
        self._prepare()
        source: list[Generator[Chunk, None, None]] = []

        def start(*_args: Any, **_kwargs: Any) -> Generator[T, None, None]:
            source.append(self.make().chunks())
            return (self.respond(chunk, chunk.delta) for chunk in source[0])

        return _closed_with(self.report(start), source[0])

    async def astream(self) -> AsyncGenerator[T, None]:
        """The same for event loops, which stay free."""
        await asyncio.to_thread(self._prepare)
        source: list[AsyncGenerator[Chunk, None]] = []

        async def start(*_args: Any, **_kwargs: Any) -> AsyncGenerator[T, None]:
            source.append(self.make().achunks())
            return (self.respond(chunk, chunk.delta) async for chunk in source[0])

        return Closing(await self.report(start), source[0].aclose)

    @heard()
    def _prepare(self) -> None:
        self.prepare()


def _closed_with(
    stream: Generator[T, None, None], source: Generator[Any, None, None]
) -> Generator[T, None, None]:
    with closing(source), closing(stream):
        yield from stream
