"""One call of `SafeLLM`, from what is asked to the chunks of the answer; and its streams."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from safe_integrations.adapters.threads import in_thread
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event
from safe_integrations.engine.model import never
from safe_integrations.llama_index.answer import Answer, Chunk
from safe_integrations.llama_index.events import Reporter, Started
from safe_integrations.messages import Message
from safe_integrations.report.tracing import GenerationSpan

if TYPE_CHECKING:
    from safe_integrations.safe_engine import SafeEngine

T = TypeVar("T")
_Happening = tuple[datetime, Event | Started]


@dataclass(frozen=True)
class Call:
    """What is asked, how, and by whom. To be made where the caller's span is current.

    Attributes:
        conversation: What is asked.
        options: How the answer is made.
        load: Gives the engine. May block.
        model: Name of the ensemble.
        reporter: Of the caller's span.
        span: Below the caller's span.
    """

    conversation: Sequence[Message]
    options: GenerationConfig
    load: Callable[[], SafeEngine]
    model: str
    reporter: Reporter
    span: GenerationSpan

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
        answer = Answer(self.model, self.options.tools)
        with closing(self._happenings()) as happenings:
            for at, event in happenings:
                self.reporter.report(event, at)
                chunk = answer.take(event)
                if chunk is not None:
                    yield chunk

    async def achunks(self) -> AsyncGenerator[Chunk, None]:
        """The same, made in a thread; events are reported where the answer is read."""
        answer = Answer(self.model, self.options.tools)
        happenings = cast("AsyncGenerator[_Happening, None]", in_thread(self._happenings))
        async with aclosing(happenings):
            async for at, event in happenings:
                self.reporter.report(event, at)
                chunk = answer.take(event)
                if chunk is not None:
                    yield chunk

    def _happenings(
        self, cancel: threading.Event | None = None
    ) -> Generator[_Happening, None, None]:
        engine = self.load()
        stop = never if cancel is None else cancel.is_set
        events = engine.generate(self.conversation, self.options, cancel=stop)
        with closing(self.span.follow(events, left=stop)) as followed:
            names = tuple(member.name for member in engine.members)
            yield datetime.now(), Started(names, engine.config.mode)
            for event in followed:
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
    return _aclosed_with(reported, chunks)


async def _aclosed_with(
    stream: AsyncGenerator[T, None], source: AsyncGenerator[Any, None]
) -> AsyncGenerator[T, None]:
    async with aclosing(source), aclosing(stream):
        async for item in stream:
            yield item
