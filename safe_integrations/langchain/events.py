"""Carries the engine's events to LangChain callbacks, under the model's own run id.

LangChain calls `_stream` without a run manager, and run managers cannot send custom events. So the
model notes who listens before it hands over to LangChain, and passes the note down to itself as a
private keyword argument.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.base import BaseCallbackManager

from safe_integrations.engine.events import Ensembled, Event, Verified
from safe_integrations.report import payloads

NOTE: Final = "safe_listeners"
"""Name of the private keyword argument."""


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

    run_id: UUID | None
    handlers: list[BaseCallbackHandler]
    tags: list[str]
    metadata: dict[str, Any]
    streams: list[AsyncGenerator[Any, None]] = field(default_factory=list)

    @classmethod
    def of_run(
        cls, run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
    ) -> Listeners:
        """Who listens to a run that LangChain has started; nobody where there is none."""
        if run is None:
            return cls(None, [], [], {})
        return cls(run.run_id, run.handlers, run.tags, run.metadata)

    @classmethod
    def configured(cls, run_id: UUID, manager: BaseCallbackManager) -> Listeners:
        """Who will listen to a run that LangChain starts with the same callbacks."""
        return cls(run_id, manager.handlers, manager.tags, manager.metadata)

    def send(self, event: Event) -> None:
        """Sends what an event says as custom events, where it says something."""
        for name, data in _custom(event) if self.handlers else ():
            self._manager(CallbackManager).on_custom_event(name, data, run_id=self.run_id)

    async def asend(self, event: Event) -> None:
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


def _custom(event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(event, Verified):
        yield payloads.VERIFICATION, payloads.verification(event)
    elif isinstance(event, Ensembled):
        yield payloads.ENSEMBLE, payloads.ensemble(event)
