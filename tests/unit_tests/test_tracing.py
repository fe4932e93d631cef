"""Spans of generations, read back from an exporter that keeps them in memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda
from llama_index.core import SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from openinference.instrumentation import suppress_tracing
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Verified
from safe_integrations.errors import (
    GenerationCancelled,
    GenerationError,
    InvalidArgumentError,
    MissingDependencyError,
)
from safe_integrations.langchain import ChatSafe, SafeTimeoutError
from safe_integrations.llama_index import SafeLLM
from safe_integrations.report import tracing
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows
from tests.spans import Recorder
from tests.spans import instrumented as instrumented
from tests.spans import recorder as recorder

TEXT = b"hello world"


def members(text: bytes = TEXT) -> list[ScriptedMember]:
    """Every other piece is ensembled, and confirmed."""

    def doubtful(written: bytes) -> Mapping[bytes, float]:
        following = next(iter(follows(text)(written)))
        other = 0.05 if len(written) % 2 else 0.35
        return {following: 1 - 2 * other, b"x": other, b"y": other}

    drafter = ScriptedMember("drafter", [], follows(text, sure=0.6))
    return [drafter, ScriptedMember("verifier", [], doubtful)]


def engine(text: bytes = TEXT) -> SafeEngine:
    drafter, *verifiers = members(text)
    return SafeEngine(drafter, verifiers)


def run(**kwargs: Any) -> list[Any]:
    events = engine().generate("Say hello.", GenerationConfig(**kwargs))
    return list(tracing.generation_span("both", GenerationConfig(**kwargs)).follow(events))


def test_off_there_is_nothing() -> None:
    events = engine().generate("x")
    assert tracing.generation_span("both", GenerationConfig()).follow(events) is events
    code = (
        "import sys; from safe_integrations.report import tracing;"
        "from safe_integrations.config import *;"
        "tracing.generation_span('both', GenerationConfig());"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safe_integrations.report.tracing.otel", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "safe-integrations\[tracing\]"'):
        tracing.enable()


def test_a_generation_is_a_span_with_its_rounds_and_totals(recorder: Recorder) -> None:
    events = run(stop="zzz", seed=1)
    statistics = events[-1].statistics
    span = recorder.generation()
    assert span.attributes is not None
    attributes = dict(span.attributes)
    assert attributes == attributes | {
        "openinference.span.kind": "CHAIN",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "safe_integrations",
        "gen_ai.request.model": "both",
        "gen_ai.request.max_tokens": 512,
        "gen_ai.request.stop_sequences": ("zzz",),
        "gen_ai.request.seed": 1,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 12,
        "safe.tokens": 12,
        "safe.judged": 12,
        "safe.ensembled": statistics.ensembled,
        "safe.changed": 0,
        "safe.acceptance": 1.0,
        "safe.models": ("drafter", "verifier"),
        "safe.models.forward_passes": tuple(m.forward_passes for m in statistics.models),
    }
    assert statistics.ensembled > 2
    assert "safe.events_dropped" not in attributes
    names = [event.name for event in span.events]
    assert names.count("safe.ensemble") == statistics.ensembled
    assert names.count("safe.verification") == statistics.cycles
    first = dict(span.events[0].attributes or {})
    assert first["safe.cycle"] == 1
    assert first["safe.judged"] == len(first["safe.verdicts"])  # type: ignore[arg-type]
    ensemble = dict(span.events[1].attributes or {})
    assert ensemble["safe.verdict"] == "confirmed"
    assert len(ensemble["safe.probability_by_model"]) == 2  # type: ignore[arg-type]
    times = [event.timestamp for event in span.events]
    assert times == sorted(times)
    assert span.status.status_code is StatusCode.UNSET


def test_many_events_are_capped_and_totals_stay_exact() -> None:
    """The SDK keeps the last 128 events of a span and says nothing about the others."""
    recorder = Recorder()
    tracing.enable(recorder.provider, max_events=5)
    text = TEXT * 20
    span = tracing.generation_span("both", GenerationConfig())
    events = list(span.follow(engine(text).generate("x")))
    tracing.disable()
    finished = recorder.generation()
    told = sum(
        isinstance(e, Verified) + sum(p.ensembled for p in e.pieces)
        for e in events
        if isinstance(e, Verified)
    )
    assert told > 128
    assert len(finished.events) == 5
    assert finished.attributes is not None
    assert finished.attributes["safe.events_dropped"] == told - 5
    assert finished.attributes["safe.ensembled"] == events[-1].statistics.ensembled
    with pytest.raises(InvalidArgumentError, match="max_events=-1"):
        tracing.enable(max_events=-1)


def everything(spans: list[ReadableSpan]) -> str:
    return "".join(span.to_json() for span in spans)


def test_text_is_captured_only_where_asked_for() -> None:
    recorder = Recorder()
    for capture_text in (False, True):
        recorder.exporter.clear()
        tracing.enable(recorder.provider, capture_text=capture_text)
        SafeLLM(drafter=members()[0]).complete("SECRET question")
        tracing.disable()
        exported = everything(recorder.spans())
        assert ("SECRET" in exported) == capture_text
        assert ("hello world" in exported) == capture_text
    attributes = dict(recorder.generation().attributes or {})
    assert json.loads(str(attributes["gen_ai.input.messages"])) == [
        {"role": "user", "parts": [{"type": "text", "content": "SECRET question"}]}
    ]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "hello world"}]}
    ]


def test_closing_early_ends_the_span_and_counts_what_was_done(recorder: Recorder) -> None:
    drafter, *verifiers = members()
    events = SafeEngine(drafter, verifiers).generate("x")
    followed = tracing.generation_span("both", GenerationConfig()).follow(events)
    for _ in range(3):
        next(followed)
    assert recorder.spans() == []
    followed.close()
    span = recorder.generation()
    assert span.attributes is not None
    assert span.attributes["safe.stopped"] == "closed"
    assert span.attributes["safe.cycles"] == 1
    assert span.attributes["safe.judged"] > 0  # type: ignore[operator]
    assert span.status.status_code is StatusCode.UNSET
    assert drafter.sessions[0].closed


def test_a_reader_that_leaves_after_the_last_event_has_the_whole(recorder: Recorder) -> None:
    followed = tracing.generation_span("both", GenerationConfig()).follow(engine().generate("x"))
    while not hasattr(next(followed), "finish_reason"):
        pass
    followed.close()
    attributes = dict(recorder.generation().attributes or {})
    assert "safe.stopped" not in attributes
    assert attributes["safe.tokens"] == 12


def test_an_error_is_recorded_and_raised(recorder: Recorder) -> None:
    def breaks(written: bytes) -> Mapping[bytes, float]:
        raise RuntimeError("out of luck")

    events = SafeEngine(ScriptedMember("broken", [], breaks)).generate("x")
    with pytest.raises(GenerationError):
        list(tracing.generation_span("broken", GenerationConfig()).follow(events))
    span = recorder.generation()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == (
        "GenerationError: broken failed while generating: out of luck"
    )
    assert [event.name for event in span.events] == ["exception"]


def test_a_cancelled_generation_is_no_error(recorder: Recorder) -> None:
    cancel = threading.Event()
    events = engine().generate("x", cancel=cancel.is_set)
    followed = tracing.generation_span("both", GenerationConfig()).follow(events)
    next(followed)
    cancel.set()
    with pytest.raises(GenerationCancelled):
        list(followed)
    span = recorder.generation()
    assert dict(span.attributes or {})["safe.stopped"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET


class Gate:
    """Lets forward passes begin; every one of them says that it has begun, and waits."""

    def __init__(self, open_for: int) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.left = open_for

    def members(self) -> list[ScriptedMember]:
        """Of an answer that stands still after some steps of the drafter."""
        drafter, verifier = members(TEXT * 50)
        script = drafter.script

        def held(written: bytes) -> Mapping[bytes, float]:
            self.left -= 1
            if self.left < 0:
                self.begun.set()
                assert self.open.wait(30)
            return script(written)

        drafter.script = held
        return [drafter, verifier]


async def leave(stream: Any, gate: Gate, how: str) -> None:
    """Reads one chunk, then leaves while a forward pass is under way."""

    async def read() -> None:
        async for _ in stream:
            read_one.set()
            if how == "close":
                await asyncio.to_thread(gate.begun.wait, 30)
                break
        await stream.aclose()

    read_one = asyncio.Event()
    task = asyncio.create_task(read())
    await read_one.wait()
    await asyncio.to_thread(gate.begun.wait, 30)
    if how == "cancel":
        task.cancel()
    for _ in range(20):  # the reader's farewell reaches the thread
        await asyncio.sleep(0.005)
    gate.open.set()
    await asyncio.wait([task])


@pytest.mark.parametrize("how", ["close", "cancel"])
@pytest.mark.parametrize("adapter", ["ChatSafe", "SafeLLM"])
@pytest.mark.parametrize("open_for", [9, 12])
async def test_a_reader_who_leaves_a_thread_has_closed_wherever_the_thread_is(
    recorder: Recorder, adapter: str, how: str, open_for: int
) -> None:
    """Inside a forward pass the thread's engine is cancelled, between two its events are closed.

    Which of the two `safe.stopped` told was a race.
    """
    gate = Gate(open_for)
    drafter, *verifiers = gate.members()
    if adapter == "ChatSafe":
        stream: Any = ChatSafe(drafter=drafter, verifiers=verifiers, lookahead=4).astream("x")
    else:
        model = SafeLLM(drafter=drafter, verifiers=verifiers, lookahead=4)
        stream = await model.astream_complete("x")
    await leave(stream, gate, how)
    span = recorder.generation()
    assert dict(span.attributes or {})["safe.stopped"] == "closed"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_thread_that_is_cancelled_before_its_reader_leaves_is_cancelled(
    recorder: Recorder,
) -> None:
    """A timeout of an asynchronous call is not the reader's doing."""
    drafter, *verifiers = members()
    model = ChatSafe(drafter=drafter, verifiers=verifiers, timeout=1e-9)
    with pytest.raises(SafeTimeoutError):
        await model.ainvoke("x")
    assert dict(recorder.generation().attributes or {})["safe.stopped"] == "cancelled"


@pytest.mark.parametrize("left", [True, False])
def test_what_stopped_a_generation_does_not_depend_on_when(recorder: Recorder, left: bool) -> None:
    """Neither how many events had been read, nor whether a thread was computing just then."""
    for steps in range(1, 6):
        recorder.exporter.clear()
        cancel = threading.Event()
        events = engine().generate("x", cancel=cancel.is_set)
        followed = tracing.generation_span("both", GenerationConfig()).follow(events, lambda: left)
        for _ in range(steps):
            next(followed)
        cancel.set()
        with pytest.raises(GenerationCancelled):
            list(followed)
        told = dict(recorder.generation().attributes or {})["safe.stopped"]
        assert told == ("closed" if left else "cancelled")


def test_the_parent_is_fixed_where_the_call_is_made(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("caller") as caller:
        followed = tracing.generation_span("both", GenerationConfig()).follow(
            engine().generate("x")
        )
    with recorder.tracer.start_as_current_span("somebody else"):
        thread = threading.Thread(target=copy_context().run, args=(list, followed))
        thread.start()
        thread.join()
    assert recorder.generation().parent == caller.get_span_context()
    assert "gen_ai.usage.output_tokens" in dict(recorder.generation().attributes or {})


def test_a_generation_that_is_never_read_is_no_span(recorder: Recorder) -> None:
    tracing.generation_span("both", GenerationConfig()).follow(engine().generate("x")).close()
    assert recorder.spans() == []


def test_what_is_not_sampled_or_suppressed_is_written_all_the_same(recorder: Recorder) -> None:
    with suppress_tracing():
        assert run()[-1].statistics.tokens == 12
    tracing.enable(Recorder(sampler=ALWAYS_OFF).provider)
    assert run()[-1].statistics.tokens == 12
    assert recorder.spans() == []


def test_the_global_tracer_provider_is_the_default() -> None:
    tracing.enable()
    try:
        assert run()[-1].statistics.tokens == 12
    finally:
        tracing.disable()


# Under the spans of a real instrumentation of either framework. That of LlamaIndex calls
# pydantic's deprecated json(), and swallows its own errors.

deprecated = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def llm() -> SafeLLM:
    drafter, *verifiers = members()
    return SafeLLM(drafter=drafter, verifiers=verifiers)


def chat_model() -> ChatSafe:
    drafter, *verifiers = members()
    return ChatSafe(drafter=drafter, verifiers=verifiers)


async def collect(stream: Any) -> None:
    async for _ in stream:
        pass


HELLO = [ChatMessage("Say hello.")]
LLAMA_INDEX: dict[str, Callable[[], Any]] = {
    "complete": lambda: llm().complete("x"),
    "chat": lambda: llm().chat(HELLO),
    "stream_complete": lambda: list(llm().stream_complete("x")),
    "stream_chat": lambda: list(llm().stream_chat(HELLO)),
    "acomplete": lambda: llm().acomplete("x"),
    "achat": lambda: llm().achat(HELLO),
    "astream_complete": lambda: acollect(llm().astream_complete("x")),
    "astream_chat": lambda: acollect(llm().astream_chat(HELLO)),
}
LANGCHAIN: dict[str, Callable[[], Any]] = {
    "invoke": lambda: chat_model().invoke("x"),
    "stream": lambda: list(chat_model().stream("x")),
    "ainvoke": lambda: chat_model().ainvoke("x"),
    "astream": lambda: collect(chat_model().astream("x")),
}


async def acollect(stream: Any) -> None:
    await collect(await stream)


def check_under_llm_span(recorder: Recorder, span: ReadableSpan, name: str) -> None:
    parent = recorder.parent_of(span)
    assert parent is not None
    assert parent.name == name
    mine, theirs = dict(span.attributes or {}), dict(parent.attributes or {})
    assert theirs["openinference.span.kind"] == "LLM"
    summary = {key: value for key, value in mine.items() if key.startswith("safe.")}
    assert len(summary) > 10
    assert summary.items() <= theirs.items()
    assert theirs["llm.token_count.total"] == 13
    assert not [key for key in mine if key.startswith("gen_ai.usage")]
    assert {event.name for event in span.events} == {"safe.verification", "safe.ensemble"}


@pytest.mark.parametrize("method", LLAMA_INDEX)
@deprecated
async def test_under_the_span_of_a_llama_index_call(instrumented: Recorder, method: str) -> None:
    result = LLAMA_INDEX[method]()
    if asyncio.iscoroutine(result):
        await result
    check_under_llm_span(instrumented, instrumented.generation(), f"SafeLLM.{method}")
    assert len(instrumented.spans()) == 2


@pytest.mark.parametrize("method", LANGCHAIN)
@deprecated
async def test_under_the_span_of_a_langchain_call(instrumented: Recorder, method: str) -> None:
    result = LANGCHAIN[method]()
    if asyncio.iscoroutine(result):
        await result
    check_under_llm_span(instrumented, instrumented.generation(), "ChatSafe")
    assert len(instrumented.spans()) == 2


@deprecated
async def test_calls_at_the_same_time_keep_to_their_own_spans(instrumented: Recorder) -> None:
    model = chat_model()
    chain = RunnableLambda(lambda x: x) | model
    same = llm()
    await asyncio.gather(
        *(chain.ainvoke("x") for _ in range(3)),
        *(acollect(same.astream_chat(HELLO)) for _ in range(3)),
    )
    spans = instrumented.spans("safe.generate")
    parents = [instrumented.parent_of(span) for span in spans]
    assert len({parent.context.span_id for parent in parents if parent}) == 6
    for span, parent in zip(spans, parents, strict=True):
        assert parent is not None
        check_under_llm_span(instrumented, span, parent.name)


@pytest.mark.parametrize("streaming", [False, True])
@deprecated
def test_under_a_query_engine(instrumented: Recorder, streaming: bool) -> None:
    index = SummaryIndex([TextNode(text="Hello is what one says.")])
    response = index.as_query_engine(llm=llm(), streaming=streaming).query("What does one say?")
    assert str(response) == "hello world"
    span: ReadableSpan | None = instrumented.generation()
    names = []
    while span is not None:
        names.append(span.name)
        span = instrumented.parent_of(span)
    assert names[0] == "safe.generate"
    assert names[1] == ("SafeLLM.stream_chat" if streaming else "SafeLLM.chat")
    assert names[-1] == "RetrieverQueryEngine.query"


@deprecated
def test_closing_a_stream_early_under_an_instrumentation(instrumented: Recorder) -> None:
    stream = llm().stream_chat(HELLO)
    next(stream)
    stream.close()
    assert dict(instrumented.generation().attributes or {})["safe.stopped"] == "closed"
    chunks = chat_model().stream("x")
    next(chunks)
    chunks.close()
    assert len(instrumented.spans("safe.generate")) == 2


@deprecated
def test_without_an_instrumentation_spans_stand_alone(recorder: Recorder) -> None:
    llm().complete("x")
    chat_model().invoke("x")
    assert [span.parent for span in recorder.spans()] == [None, None]


@deprecated
def test_the_span_of_a_caller_that_is_no_llm_is_left_alone(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request"):
        llm().complete("x")
    (request,) = recorder.spans("request")
    assert not request.attributes
    parent = recorder.parent_of(recorder.generation())
    assert parent is not None and parent.name == "request"
    assert trace.get_current_span() is trace.INVALID_SPAN
