"""A handler that keeps what LlamaIndex reports, and its fixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent


class Listener(BaseEventHandler):
    """Keeps all events."""

    seen: list[Any] = []

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kinds)]


@pytest.fixture
def listener() -> Iterator[Listener]:
    root = get_dispatcher()
    before = list(root.event_handlers)
    handler = Listener(seen=[])
    root.add_event_handler(handler)
    yield handler
    root.event_handlers = before
