"""Carries the engine's events to LangChain callbacks, under the model's own run id.

LangChain calls `_stream` without a run manager, and run managers cannot send custom events. So the
model notes who listens before it hands over to LangChain, in a context variable: a keyword argument
would be shown to every tracer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7

from safe_integrations.adapters.answer import Begun
from safe_integrations.adapters.threads import Closing
from safe_integrations.engine.events import Event
from safe_integrations.report import payloads

T = TypeVar("T")
M = TypeVar("M", CallbackManager, AsyncCallbackManager)

_heard: ContextVar[Listeners] = ContextVar("safe_listeners")


@dataclass
class Listeners:
    """Who listens to one run of the model.

    Attributes:
        run_id: The run that events belong to.
        handlers: Who gets them.
        tags: Of the run.
        metadata: Of the run.
        streams: What must be closed when the run is over.
    """

    run_id: UUID | None = None
    handlers: list[BaseCallbackHandler] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    streams: list[AsyncGenerator[Any, None]] = field(default_factory=list)

    @classmethod
    def of_run(
        cls, run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
    ) -> Listeners:
        """Who listens to a run; where LangChain does not say which, to the noted one."""
        if run is None:
            return _heard.get(None) or cls()
        return cls(run.run_id, run.handlers, run.tags, run.metadata)

    @classmethod
    def of_next_run(
        cls, config: RunnableConfig | None, model: BaseChatModel, kind: type[M]
    ) -> tuple[RunnableConfig, Listeners]:
        """Who will listen to the run that LangChain is about to start with a config.

        Callbacks are configured here, once: LangChain finds nothing left to add to them.
        """
        config = ensure_config(config)
        manager = kind.configure(
            config.get("callbacks"),
            model.callbacks,
            model.verbose,
            config.get("tags"),
            model.tags,
            config.get("metadata"),
            model.metadata,
        )
        config["callbacks"] = manager
        run_id = config["run_id"] = config.get("run_id") or uuid7()
        return config, cls(run_id, manager.handlers, manager.tags, manager.metadata)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While LangChain calls back without saying for which run."""
        token = _heard.set(self)
        try:
            yield
        finally:
            _heard.reset(token)

    def following(self, chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """What LangChain streams for the run, with this note while it does."""
        return Closing(chunks, self.aclose, self.noted)

    def send(self, event: Event | Begun) -> None:
        """Sends what an event says as custom events, where it says something."""
        for name, data in _custom(event) if self.handlers else ():
            self._manager(CallbackManager).on_custom_event(name, data, run_id=self.run_id)

    async def asend(self, event: Event | Begun) -> None:
        """The same, for handlers of an event loop."""
        for name, data in _custom(event) if self.handlers else ():
            manager = self._manager(AsyncCallbackManager)
            await manager.on_custom_event(name, data, run_id=self.run_id)

    async def aclose(self) -> None:
        """Stops what is still computing for the run, and waits for it."""
        for stream in self.streams:
            await stream.aclose()

    def _manager(self, kind: type[Any]) -> Any:
        return kind(handlers=self.handlers, tags=self.tags, metadata=self.metadata)


def _custom(event: Event | Begun) -> Iterator[tuple[str, dict[str, Any]]]:
    found = None if isinstance(event, Begun) else payloads.reported(event)
    if found is not None and found[0] != payloads.GENERATION_END:  # the message says it
        yield found
