"""The span `safe.generate`, folded over the engine's events (docs/tracing.md)."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Final
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
    Drafted,
    Ensembled,
    Event,
    Finished,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.errors import GenerationCancelled, InvalidArgumentError
from safe_integrations.messages import Message
from safe_integrations.report.payloads import show
from safe_integrations.report.tracing.callers import llm_span

Attributes = dict[str, AttributeValue]

_TOTALS: Final = ("cycles", "drafted", "judged", "unsafe", "ensembled", "changed")


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
            attributes["gen_ai.input.messages"] = _prompt_json(prompt)
        caller = llm_span(run_id)
        context = otel_context.get_current()
        if caller is not None:
            # the current span may be a stand-in that its tracer takes back when the call returns
            context = set_span_in_context(caller, context)
        return FollowedGeneration(self, attributes, caller, context)


class FollowedGeneration:
    """One generation, with the caller's context as it was when the call was made."""

    def __init__(
        self, tracing: Tracing, attributes: Attributes, caller: Span | None, context: Context
    ) -> None:
        self._tracing = tracing
        self._attributes = attributes
        self._caller = caller
        self._context = context

    def follow(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """Hands the events on and records them."""
        if otel_context.get_value(_SUPPRESS_INSTRUMENTATION_KEY, self._context):
            yield from events
            return
        span = self._tracing.tracer.start_span(
            "safe.generate", self._context, attributes=self._attributes
        )
        record = _Record(span, self._caller, self._tracing)
        try:
            with closing(events):
                for event in events:
                    record.add(event)
                    yield event
        except GeneratorExit:
            record.stopped("closed")
            raise
        except GenerationCancelled:
            record.stopped("cancelled")
            raise
        except BaseException as error:
            record.failed(error)
            raise
        finally:
            record.end()


class _Record:
    """What a span has been told so far."""

    def __init__(self, span: Span, caller: Span | None, tracing: Tracing) -> None:
        self._span = span
        self._caller = caller
        self._tracing = tracing
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._events = 0
        self._summary: Attributes = {}
        self._text: list[str] = []

    def add(self, event: Event) -> None:
        totals = self._totals
        match event:
            case Drafted():
                totals["cycles"] = event.cycle
                totals["drafted"] += len(event.tokens)
            case Verified():
                verdicts = [piece.verdict for piece in event.pieces]
                totals["judged"] += len(verdicts)
                totals["unsafe"] += verdicts.count(Verdict.UNSAFE)
                totals["ensembled"] += sum(piece.ensembled for piece in event.pieces)
                totals["changed"] += verdicts.count(Verdict.CHANGED)
                self._event("safe.verification", self._verification, event)
            case Ensembled():
                self._event("safe.ensemble", self._ensemble, event)
            case TextDelta() if self._tracing.capture_text:
                self._text.append(event.text)
            case Finished():
                self._finished(event)

    def stopped(self, how: str) -> None:
        """Somebody has had enough. No error."""
        if not self._summary:
            self._span.set_attribute("safe.stopped", how)

    def failed(self, error: BaseException) -> None:
        self._span.record_exception(error)
        self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))

    def end(self) -> None:
        summary = {f"safe.{name}": count for name, count in self._totals.items()} | self._summary
        if (dropped := self._events - self._tracing.max_events) > 0:
            summary["safe.events_dropped"] = dropped
        if self._text:
            answer = [{"role": "assistant", "parts": [_text_part("".join(self._text))]}]
            self._span.set_attribute(
                "gen_ai.output.messages", json.dumps(answer, ensure_ascii=False)
            )
        self._span.set_attributes(summary)
        self._span.end()

    def _event(self, name: str, attributes: Any, event: Event) -> None:
        self._events += 1
        if self._events <= self._tracing.max_events:
            self._span.add_event(name, attributes(event))

    def _verification(self, event: Verified) -> Attributes:
        attributes: Attributes = {
            "safe.cycle": event.cycle,
            "safe.judged": len(event.pieces),
            "safe.verdicts": [str(piece.verdict) for piece in event.pieces],
            "safe.pending": event.pending,
            "safe.dropped": event.dropped,
        }
        if self._tracing.capture_text:
            attributes["safe.written"] = [show(piece.written) for piece in event.pieces]
        return attributes

    def _ensemble(self, event: Ensembled) -> Attributes:
        piece = event.piece
        winner = next((c for c in piece.candidates if c.symbol == piece.written), None)
        attributes: Attributes = {
            "safe.cycle": event.cycle,
            "safe.verdict": str(piece.verdict),
            "safe.start": piece.start,
            "safe.end": piece.end,
            "safe.candidates": len(piece.candidates),
        }
        if winner is not None:
            attributes["safe.probability"] = winner.probability
            attributes["safe.probability_by_model"] = winner.by_model
        if self._tracing.capture_text:
            attributes["safe.written"] = show(piece.written)
            attributes["safe.proposed"] = show(piece.proposed)
        return attributes

    def _finished(self, event: Finished) -> None:
        statistics = event.statistics
        self._summary = _summary(statistics)
        self._span.set_attribute("gen_ai.response.finish_reasons", [event.finish_reason])
        if self._caller is None:
            self._span.set_attributes(_usage(statistics))
        elif self._caller.is_recording():
            # token counts are there already; tracers add up those of a span and its children
            self._caller.set_attributes(self._summary)


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


def _usage(statistics: Statistics) -> Attributes:
    prompt = statistics.models[0].prompt_tokens if statistics.models else 0
    return {
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": statistics.tokens,
    }


def _summary(statistics: Statistics) -> Attributes:
    summary: Attributes = {
        f"safe.{name}": getattr(statistics, name)
        for name in ("tokens", *_TOTALS, "ensembled_ratio", "acceptance")
    }
    summary["safe.seconds"] = statistics.seconds
    summary["safe.overhead_seconds"] = statistics.overhead_seconds
    if statistics.first_token_seconds is not None:
        summary["safe.first_token_seconds"] = statistics.first_token_seconds
    models = statistics.models
    summary["safe.models"] = [model.name for model in models]
    summary["safe.models.prompt_tokens"] = [model.prompt_tokens for model in models]
    summary["safe.models.reused_tokens"] = [model.reused_tokens for model in models]
    summary["safe.models.forward_passes"] = [model.forward_passes for model in models]
    summary["safe.models.seconds"] = [model.seconds for model in models]
    return summary


def _prompt_json(prompt: object) -> str:
    messages: Sequence[Any] = [prompt] if isinstance(prompt, str | Message) else list(prompt)  # type: ignore[call-overload]
    shown = [
        {"role": m.role, "parts": [_text_part(m.content)]}
        if isinstance(m, Message)
        else {"role": "user", "parts": [_text_part(str(m))]}
        for m in messages
    ]
    return json.dumps(shown, ensure_ascii=False)


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}
