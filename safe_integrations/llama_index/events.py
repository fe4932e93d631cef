"""The engine's events as LlamaIndex instrumentation events (docs/events.md).

Where a call streams, its span has been left before the first token is made, and the task or thread
that reads the stream may be another one. So span id and tags are noted when the call is made.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from llama_index_instrumentation.span import active_span_id
from pydantic import Field

from safe_integrations.adapters.answer import Begun
from safe_integrations.engine.events import Event
from safe_integrations.report import payloads

_dispatcher = get_dispatcher(__name__)
_TRACER: Final = "openinference.instrumentation.llama_index._handler"


class SafeEvent(BaseEvent):
    """Something happened while an answer was made.

    Attributes:
        payload: What happened, as JSON-safe data (docs/events.md).
    """

    payload: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """Name of the event in dumps."""
        return cls.__name__


class SafeGenerationStart(SafeEvent):
    """An answer begins: `safe_generation_start`."""


class SafeVerification(SafeEvent):
    """The verifiers checked a draft: `safe_verification`."""


class SafeEnsemble(SafeEvent):
    """At one place the models were merged, or the one that was drawn wrote: `safe_ensemble`."""


class SafeModelLost(SafeEvent):
    """A verifier's server failed, and the answer goes on without it: `safe_model_lost`."""


class SafeGenerationEnd(SafeEvent):
    """The answer is complete: `safe_generation_end`."""


_KINDS: Final = {
    payloads.VERIFICATION: SafeVerification,
    payloads.ENSEMBLE: SafeEnsemble,
    payloads.MODEL_LOST: SafeModelLost,
    payloads.GENERATION_END: SafeGenerationEnd,
}


@dataclass(frozen=True, slots=True)
class Reporter:
    """Dispatches the events of one call.

    Attributes:
        span_id: The span of the call.
        tags: The instrument tags of the call.
    """

    span_id: str | None
    tags: dict[str, Any]

    @classmethod
    def here(cls) -> Reporter:
        """For the call we are in."""
        if _TRACER in sys.modules:
            logging.getLogger(_TRACER).addFilter(_is_known)
        return cls(active_span_id.get(), dict(active_instrument_tags.get()))

    def report(self, event: Event | Begun, at: datetime) -> None:
        """Reports what an event says, where it says something.

        Args:
            event: Of the engine.
            at: When it happened.
        """
        if isinstance(event, Begun):
            payload = payloads.generation_start(event.models, event.mode, event.unit)
            self._dispatch(SafeGenerationStart, payload, at)
        elif found := payloads.reported(event):
            self._dispatch(_KINDS[found[0]], found[1], at)

    def _dispatch(self, kind: type[SafeEvent], payload: dict[str, Any], at: datetime) -> None:
        event = kind(timestamp=at, span_id=self.span_id, tags=dict(self.tags), payload=payload)
        with instrument_tags(self.tags):  # the dispatcher adds those that are active now
            _dispatcher.event(event)


def _is_known(record: logging.LogRecord) -> bool:
    """Whether OpenInference's handler is at a loss with something other than our events."""
    return not record.getMessage().startswith("Unhandled event of type Safe")
