"""Generations as OpenTelemetry spans (docs/tracing.md). Off until `enable` is called.

While tracing is off this costs one look at a global per generation, and OpenTelemetry is not
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event
from safe_integrations.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from safe_integrations.report.tracing.otel import Tracing

__all__ = ["GenerationSpan", "disable", "enable", "generation_span"]

_tracing: Tracing | None = None


class GenerationSpan(Protocol):
    """The span of one generation, to come."""

    def follow(
        self, events: Generator[Event, None, None], left: Callable[[], bool] | None = None
    ) -> Generator[Event, None, None]:
        """Hands the engine's events on and records them; the span lives as long as this iterator.

        Call it once. Closing the iterator closes `events`. `left` tells whether the reader has
        left, where a thread finds that out by a cancelled engine.
        """
        return events


class _NoSpan(GenerationSpan):
    """Tracing is off."""


def enable(
    tracer_provider: TracerProvider | None = None,
    *,
    capture_text: bool = False,
    max_events: int = 64,
) -> None:
    """Turns tracing on for every generation that begins from now on, in all adapters.

    Args:
        tracer_provider: Where spans go. None takes OpenTelemetry's global one.
        capture_text: Whether spans hold prompts, answers and the texts of pieces.
        max_events: Most rounds and ensembles that one span lists; the totals are exact all the
            same. OpenTelemetry's SDK keeps 128 events of a span, the last ones.

    Raises:
        MissingDependencyError: OpenTelemetry is not installed.
        InvalidArgumentError: `max_events` is negative.
    """
    global _tracing
    try:
        from safe_integrations.report.tracing.otel import Tracing
    except ImportError as error:
        raise MissingDependencyError("tracing", "OpenTelemetry", "tracing") from error
    _tracing = Tracing(tracer_provider, capture_text, max_events)


def disable() -> None:
    """Turns tracing off. Generations that are under way finish their spans."""
    global _tracing
    _tracing = None


def generation_span(
    model: str, options: GenerationConfig, *, prompt: Any = None, run_id: UUID | None = None
) -> GenerationSpan:
    """The span of a generation that is about to begin; call it where the caller's span is current.

    Nothing is started before the first event is asked for. The parent is fixed here and now: the
    LLM span of a tracer that has one for this call (in LangChain, the run `run_id`), else the
    current span. `model` names the ensemble; `prompt` is shown where text is captured.
    """
    return _NoSpan() if _tracing is None else _tracing.generation(model, options, prompt, run_id)
