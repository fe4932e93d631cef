"""Spans read back from an exporter that keeps them in memory, and its fixtures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from safe_integrations.report import tracing


class Recorder:
    """A tracer provider and what it exports."""

    def __init__(self, **kwargs: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**kwargs)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [s for s in self.exporter.get_finished_spans() if name in s.name]

    def generation(self) -> ReadableSpan:
        (span,) = self.spans("safe.generate")
        return span

    def parent_of(self, span: ReadableSpan) -> ReadableSpan | None:
        parents = [s for s in self.spans() if span.parent and s.context == span.parent]
        return parents[0] if parents else None


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    tracing.enable(recorder.provider)
    yield recorder
    tracing.disable()


@pytest.fixture
def instrumented(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> Iterator[Recorder]:
    """Under the instrumentations of both frameworks, which log their errors and swallow them."""
    caplog.set_level(logging.WARNING)
    instrumentors = [LlamaIndexInstrumentor(), LangChainInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=recorder.provider)
    yield recorder
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
    assert caplog.messages == []
