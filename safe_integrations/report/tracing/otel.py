"""The span `safe.generate`, folded over the engine's events (docs/tracing.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, cast
from uuid import UUID

from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context
from opentelemetry.trace import (
    Span,
    Status,
    StatusCode,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from safe_integrations import __version__
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import (
    Ensembled,
    Event,
    Finished,
    ModelLost,
    Reasoned,
    Statistics,
    TextDelta,
    Verified,
)
from safe_integrations.errors import GenerationCancelled, InvalidArgumentError
from safe_integrations.messages import as_messages
from safe_integrations.report.payloads import reported, show, statistics_payload

Attributes = dict[str, AttributeValue]

_COUNTS: Final = ("cycles", "drafted", "judged", "unsafe", "ensembled", "changed")
"""What `Statistics.add` counts, so what is known of an answer that was never finished."""


class Tracing:
    """Tracing as it is turned on. The arguments are those of `enable`."""

    def __init__(
        self, tracer_provider: TracerProvider | None, capture_text: bool, max_events: int
    ) -> None:
        if max_events < 0:
            raise InvalidArgumentError("max_events", max_events, "pass 0 or more")
        self.tracer = get_tracer("safe_integrations", __version__, tracer_provider)
        self.capture_text = capture_text
        self.max_events = max_events

    def generation(
        self, model: str, options: GenerationConfig, prompt: Any, run_id: UUID | None
    ) -> FollowedGeneration:
        """A generation that is about to begin in the current context."""
        attributes = _request(model, options)
        if self.capture_text and prompt is not None:
            messages = [(message.role, message.content) for message in as_messages(prompt)]
            attributes["gen_ai.input.messages"] = _text(messages)
        caller = _llm_span(run_id)
        context = otel_context.get_current()
        if caller is not None:
            # the current span may be a stand-in that its tracer takes back when the call returns
            context = set_span_in_context(caller, context)
        return FollowedGeneration(self, attributes, caller, context)


@dataclass(frozen=True, slots=True)
class FollowedGeneration:
    """One generation, with the caller's context as it was when the call was made."""

    tracing: Tracing
    attributes: Attributes
    caller: Span | None
    context: Context

    def follow(
        self, events: Generator[Event, None, None], left: Callable[[], bool] | None = None
    ) -> Generator[Event, None, None]:
        """Hands the events on and records them (see `GenerationSpan`)."""
        if otel_context.get_value(_SUPPRESS_INSTRUMENTATION_KEY, self.context):
            yield from events
            return
        tracer = self.tracing.tracer
        span = tracer.start_span("safe.generate", self.context, attributes=self.attributes)
        record = _Record(span, self.caller, self.tracing)
        try:
            with closing(events):
                for event in events:
                    record.add(event)
                    yield event
        except GeneratorExit:
            record.stopped("closed")
            raise
        except GenerationCancelled:
            # the engine in a thread is also cancelled because its reader has left
            record.stopped("closed" if left is not None and left() else "cancelled")
            raise
        except BaseException as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            raise
        finally:
            record.end()


@dataclass(slots=True)
class _Record:
    """What a span has been told so far."""

    span: Span
    caller: Span | None
    tracing: Tracing
    statistics: Statistics = field(default_factory=Statistics)
    events: int = 0
    summary: Attributes = field(default_factory=dict)
    text: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        self.statistics.add(event)
        match event:
            case Verified() | Ensembled():
                self.events += 1
                if self.events <= self.tracing.max_events:
                    self.span.add_event(*_event(event, self.tracing.capture_text))
            case ModelLost() | Reasoned(event=ModelLost()):  # however many events there are
                self.span.add_event("safe.model_lost", _lost(event))
            case TextDelta() if self.tracing.capture_text:
                self.text.append(event.text)
            case Finished():
                self._finished(event)

    def stopped(self, how: str) -> None:
        """Somebody has had enough. No error."""
        if not self.summary:
            self.span.set_attribute("safe.stopped", how)

    def end(self) -> None:
        counts = {f"safe.{name}": getattr(self.statistics, name) for name in _COUNTS}
        self.span.set_attributes(counts | self.summary)
        if self.events > self.tracing.max_events:
            self.span.set_attribute("safe.events_dropped", self.events - self.tracing.max_events)
        if self.text:
            answer = _text([("assistant", "".join(self.text))])
            self.span.set_attribute("gen_ai.output.messages", answer)
        self.span.end()

    def _finished(self, event: Finished) -> None:
        self.summary = _summary(event.statistics)
        self.span.set_attribute("gen_ai.response.finish_reasons", [event.finish_reason])
        if self.caller is None:
            drafter, *_ = event.statistics.models
            self.span.set_attribute("gen_ai.usage.input_tokens", drafter.prompt_tokens)
            self.span.set_attribute("gen_ai.usage.output_tokens", event.statistics.tokens)
        elif self.caller.is_recording():
            # token counts are there already; tracers add up those of a span and its children
            self.caller.set_attributes(self.summary)


def _event(event: Verified | Ensembled, capture_text: bool) -> tuple[str, Attributes]:
    """A round or an ensemble: its name and attributes."""
    told: Attributes
    if isinstance(event, Verified):
        told = {
            "judged": len(event.pieces),
            "verdicts": [str(piece.verdict) for piece in event.pieces],
            "pending": event.pending,
            "dropped": event.dropped,
        }
        text: Attributes = {"written": [show(piece.written) for piece in event.pieces]}
    else:
        piece = event.piece
        told = {
            "verdict": str(piece.verdict),
            "start": piece.start,
            "end": piece.end,
            "candidates": len(piece.candidates),
        }
        if piece.drawn is not None:
            told["drawn"] = piece.drawn
        for winner in (c for c in piece.candidates if c.symbol == piece.written):
            told |= {"probability": winner.probability, "probability_by_model": winner.by_model}
        text = {"written": show(piece.written), "proposed": show(piece.proposed)}
    told = {"cycle": event.cycle, **told, **(text if capture_text else {})}
    name = "safe.verification" if isinstance(event, Verified) else "safe.ensemble"
    return name, {f"safe.{key}": value for key, value in told.items()}


def _lost(event: ModelLost | Reasoned) -> Attributes:
    """What is told of a model that an answer goes on without."""
    found = reported(event)
    assert found is not None
    return {f"safe.{key}": value for key, value in found[1].items() if key != "version"}


def _request(model: str, options: GenerationConfig) -> Attributes:
    attributes: Attributes = {
        "openinference.span.kind": "CHAIN",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "safe_integrations",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": options.max_tokens,
        "gen_ai.request.temperature": options.temperature,
        "gen_ai.request.top_p": options.top_p,
    }
    if options.stop:
        attributes["gen_ai.request.stop_sequences"] = options.stop
    if options.seed is not None:
        attributes["gen_ai.request.seed"] = options.seed
    return attributes


def _summary(statistics: Statistics) -> Attributes:
    totals = statistics_payload(statistics)
    models, lost = totals.pop("models"), totals.pop("lost")
    summary = {f"safe.{name}": value for name, value in totals.items() if value is not None}
    summary["safe.models"] = [model.pop("name") for model in models]
    if lost:
        summary |= {"safe.lost": [*lost], "safe.lost_at": [*lost.values()]}
    for name in models[0] if models else ():
        summary[f"safe.models.{name}"] = [model[name] for model in models]
    return summary


def _text(messages: Iterable[tuple[str, str]]) -> str:
    """Roles and texts as OpenTelemetry writes messages."""
    shown = [
        {"role": role, "parts": [{"type": "text", "content": text}]} for role, text in messages
    ]
    return json.dumps(shown, ensure_ascii=False)


# Neither framework makes its tracer's LLM span the current one: OpenInference's handlers keep it to
# themselves and give it out by id. Nothing is imported here that the application has not imported.


def _llm_span(run_id: UUID | None) -> Span | None:
    """The span of the LLM call we are in; None where no tracer has one."""
    framework = "llama_index" if run_id is None else "langchain"
    module: Any = sys.modules.get(f"openinference.instrumentation.{framework}")
    if module is None:
        return None
    if run_id is None:
        return cast("Span | None", module.get_current_span())
    instrumentor: Any = module.LangChainInstrumentor()
    if getattr(instrumentor, "_tracer", None) is None:  # get_span would print a reproach
        return None
    return cast("Span | None", instrumentor.get_span(run_id))
