"""One call of `SafeLLM`, from what is asked to the chunks of the answer; and its streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from safe_integrations.adapters.request import Job, SafeEngine
from safe_integrations.adapters.threads import Closing, InThread
from safe_integrations.engine.events import Event
from safe_integrations.llama_index.answer import Chunk, Chunks
from safe_integrations.llama_index.events import Reporter, Started

T = TypeVar("T")
_Happening = tuple[datetime, Event | Started]


@dataclass(frozen=True)
class Call:
    """One call. To be made where the caller's span is current.

    Attributes:
        job: What is asked, and how.
        model: Name of the ensemble.
        reporter: Of the caller's span.
    """

    job: Job
    model: str
    reporter: Reporter

    def run(self) -> Chunk:
        """The whole answer."""
        for chunk in self.chunks():
            last = chunk
        return last

    async def arun(self) -> Chunk:
        """The whole answer, made in a thread."""
        async with aclosing(self.achunks()) as chunks:
            async for chunk in chunks:
                last = chunk
        return last

    def chunks(self) -> Generator[Chunk, None, None]:
        """The answer piece by piece; at least one, and the last has `raw`."""
        chunks = Chunks(self.model, self.job.request.options)
        with closing(self._happenings(self.job.load())) as happenings:
            for at, event in happenings:
                self.reporter.report(event, at)
                if chunk := chunks.take(event):
                    yield chunk

    async def achunks(self) -> AsyncGenerator[Chunk, None]:
        """The same, made in a thread; events are reported where the answer is read."""
        chunks = Chunks(self.model, self.job.request.options)
        async with aclosing(InThread(self.job.load, self._happenings)) as happenings:
            async for at, event in happenings:
                self.reporter.report(event, at)
                if chunk := chunks.take(event):
                    yield chunk

    def _happenings(
        self, engine: SafeEngine, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[_Happening, None, None]:
        with closing(self.job.events(engine, stopped)) as events:
            names = tuple(member.name for member in engine.members)
            yield datetime.now(), Started(names, engine.config.mode)
            for event in events:
                yield datetime.now(), event


def stream(
    make: Callable[[], Call],
    response: Callable[[Chunk], T],
    report: Callable[[Callable[..., Any]], Generator[T, None, None]],
) -> Generator[T, None, None]:
    """A reported stream of responses that stops the engine when it is closed.

    LlamaIndex's reporting generator leaves that to the garbage collector, and handlers that keep
    its exception keep the engine's generator alive.

    Args:
        make: Makes the call, inside what is reported.
        response: A chunk in LlamaIndex's form.
        report: Decorates a function that starts the stream, and calls it.
    """
    chunks: Generator[Chunk, None, None] | None = None

    def start(*_args: Any, **_kwargs: Any) -> Generator[T, None, None]:
        nonlocal chunks
        chunks = make().chunks()
        return (response(chunk) for chunk in chunks)

    reported = report(start)
    assert chunks is not None
    return _closed_with(reported, chunks)


def _closed_with(
    stream: Generator[T, None, None], source: Generator[Any, None, None]
) -> Generator[T, None, None]:
    with closing(source), closing(stream):
        yield from stream


async def astream(
    make: Callable[[], Call],
    response: Callable[[Chunk], T],
    report: Callable[[Callable[..., Any]], Coroutine[Any, Any, AsyncGenerator[T, None]]],
) -> AsyncGenerator[T, None]:
    """The same for event loops. Arguments are those of `stream`."""
    chunks: AsyncGenerator[Chunk, None] | None = None

    async def start(*_args: Any, **_kwargs: Any) -> AsyncGenerator[T, None]:
        nonlocal chunks
        chunks = make().achunks()
        return (response(chunk) async for chunk in chunks)

    reported = await report(start)
    assert chunks is not None
    return Closing(reported, chunks.aclose)
