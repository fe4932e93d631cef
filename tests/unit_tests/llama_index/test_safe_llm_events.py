"""The engine's events on LlamaIndex's dispatcher: which, whose, when."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import datetime
from typing import Any

import pytest
from llama_index.core import Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.instrumentation.events.llm import (
    LLMChatStartEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from scripted_llms import Endless, says
from test_safe_llm import all_methods

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Ensembled, Finished, Verified
from safe_integrations.llama_index import (
    SafeEnsemble,
    SafeEvent,
    SafeGenerationEnd,
    SafeGenerationStart,
    SafeLLM,
    SafeModelLost,
    SafeVerification,
    result_of,
)
from safe_integrations.report import payloads
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import load_engine
from tests.listening import Listener

LLM_START = (LLMChatStartEvent, LLMCompletionStartEvent)


def timeless(payload: dict[str, Any]) -> dict[str, Any]:
    models = [
        {k: v for k, v in m.items() if k != "seconds"}
        for m in payload.get("models", [])
        if isinstance(m, dict)
    ]
    return {k: v for k, v in payload.items() if "seconds" not in k} | (
        {"models": models} if models else {}
    )


@all_methods
async def test_events_are_the_payloads_of_the_engine_in_order(
    llm: SafeLLM, listener: Listener, method: Any
) -> None:
    kinds = {
        Verified: (SafeVerification, payloads.verification),
        Ensembled: (SafeEnsemble, payloads.ensemble),
        Finished: (SafeGenerationEnd, payloads.generation_end),
    }
    names = ["drafter", "verifier"]
    expected: list[Any] = [(SafeGenerationStart, payloads.generation_start(names, "safe", "text"))]
    for event in load_engine(llm.drafter, llm.verifiers).generate("Say hello."):
        if type(event) in kinds:
            kind, payload = kinds[type(event)]
            expected.append((kind, timeless(payload(event))))  # type: ignore[operator]
    assert {kind for kind, _ in expected} == {*SafeEvent.__subclasses__()} - {SafeModelLost}
    await method(llm)
    events = listener.of(SafeEvent)
    assert [(type(e), timeless(e.payload)) for e in events] == expected
    dumped = events[1].model_dump()
    assert dumped["class_name"] == "SafeVerification"
    json.dumps(dumped, default=str)


@all_methods
async def test_an_answer_tells_who_was_drawn_for_each_unit(llm: SafeLLM, method: Any) -> None:
    """Names are numbers in a message, and only the job that makes the answer knows both."""
    engine = load_engine(llm.drafter, llm.verifiers)
    options = GenerationConfig(temperature=1.0, seed=3)
    told = Result.of(engine.generate("Say hello.", options))
    drawn = [(piece.written, piece.drawn) for piece in told.pieces]
    assert {name for _, name in drawn} == {"drafter", "verifier"}
    read = result_of(await method(llm, temperature=1.0, seed=3))
    assert [(piece.written, piece.drawn) for piece in read.pieces] == drawn


@all_methods
async def test_events_belong_to_the_span_of_the_call(
    llm: SafeLLM, listener: Listener, method: Any
) -> None:
    """Made in the body of a stream, events have no span: it was left when the stream began."""
    await asyncio.gather(method(llm), method(llm))
    starts = listener.of(*LLM_START)
    assert len({start.span_id for start in starts}) == 2
    for start in starts:
        assert start.span_id.startswith(f"SafeLLM.{method.__name__}-")
        own = [e for e in listener.of(SafeEvent) if e.span_id == start.span_id]
        assert [type(own[0]), type(own[-1])] == [SafeGenerationStart, SafeGenerationEnd]
    assert len({e.span_id for e in listener.of(SafeEvent)}) == 2


async def test_events_have_the_tags_of_the_call_wherever_they_are_read(
    llm: SafeLLM, listener: Listener
) -> None:
    with instrument_tags({"user": "ada"}):
        stream = llm.stream_complete("x")
        astream = await llm.astream_complete("x")
    with instrument_tags({"user": "bob"}):
        list(stream)
        _ = [chunk async for chunk in astream]
    assert {event.tags["user"] for event in listener.of(SafeEvent)} == {"ada"}


async def test_events_have_the_time_of_what_happened(listener: Listener) -> None:
    """Not that of the moment when a slow reader gets to them."""
    model = Endless()
    stream = await SafeLLM(drafter=model, max_tokens=3).astream_complete("x")
    await anext(stream)
    while not model.sessions[0].closed:
        await asyncio.sleep(0.01)
    resumed = datetime.now()
    _ = [chunk async for chunk in stream]
    times = [event.timestamp for event in listener.of(SafeEvent)]
    assert times == sorted(times)
    assert times[-1] < resumed


def test_events_arrive_while_the_answer_streams(llm: SafeLLM, listener: Listener) -> None:
    stream = llm.stream_complete("x")
    assert listener.of(SafeEvent) == []
    next(stream)
    assert listener.of(SafeVerification)
    assert not listener.of(SafeGenerationEnd)
    stream.close()
    assert not listener.of(SafeGenerationEnd)


@pytest.fixture
def offline() -> Any:
    before = Settings._tokenizer
    Settings.tokenizer = str.split
    yield
    Settings._tokenizer = before


@pytest.mark.parametrize("streaming", [False, True])
async def test_events_from_a_query_engine(
    llm: SafeLLM, listener: Listener, offline: None, streaming: bool
) -> None:
    index = SummaryIndex([TextNode(text="Hello is what one says.")])
    engine = index.as_query_engine(llm=llm, streaming=streaming)
    sync = engine.query("What does one say?")
    assert str(sync) == "hello world"
    response = await engine.aquery("What does one say?")
    text = [t async for t in response.async_response_gen()] if streaming else [str(response)]
    assert "".join(text) == "hello world"
    spans = {e.span_id for e in listener.of(SafeEvent)}
    assert spans == {e.span_id for e in listener.of(*LLM_START)}
    assert len(spans) == 2
    assert len(listener.of(SafeGenerationEnd)) == 2


async def test_events_from_a_chat_engine(llm: SafeLLM, listener: Listener, offline: None) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=1000, tokenizer_fn=str.split)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    engine.chat("hi")
    streamed = engine.stream_chat("hi")
    assert "".join(streamed.response_gen) == "hello world"
    await engine.achat("hi")
    astreamed = await engine.astream_chat("hi")
    assert "".join([t async for t in astreamed.async_response_gen()]) == "hello world"
    assert len({e.span_id for e in listener.of(SafeGenerationEnd)}) == 4
    assert None not in {e.span_id for e in listener.of(SafeEvent)}


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_events_from_an_agent(listener: Listener) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'

    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    with instrument_tags({"session": "7"}):
        await FunctionAgent(tools=[add], llm=says(call, "It is 5.")).run("2 + 3?")
    events = listener.of(SafeEvent)
    assert len({e.span_id for e in events}) == 2
    assert all(e.span_id.startswith("SafeLLM.astream_chat-") for e in events)
    assert {e.tags["session"] for e in events} == {"7"}


def test_a_broken_handler_does_not_break_the_answer(llm: SafeLLM, listener: Listener) -> None:
    """And it was asked: an answer whose events go nowhere does not break either."""
    heard: list[str] = []

    def breaks(event: Any, **kwargs: Any) -> None:
        heard.append(event.class_name())
        raise RuntimeError("I am broken")

    root = get_dispatcher()
    root.event_handlers[0] = type(listener)(seen=[])
    object.__setattr__(root.event_handlers[0], "handle", breaks)
    assert llm.chat([ChatMessage("x")]).message.content == "hello world"
    assert heard.count("SafeGenerationStart") == heard.count("SafeGenerationEnd") == 1
    assert "SafeVerification" in heard and "SafeEnsemble" in heard


def test_a_tracer_is_not_told_to_complain_about_our_events(
    llm: SafeLLM, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing this package changed the logger of another one, whether it was in use or not."""
    name = "openinference.instrumentation.llama_index._handler"
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.delitem(sys.modules, name, raising=False)
    llm.complete("x")
    assert logger.filters == []
    monkeypatch.setitem(sys.modules, name, object())
    llm.complete("x")
    llm.complete("x")
    assert len(logger.filters) == 1
    logger.warning("Unhandled event of type SafeVerification")
    logger.warning("Unhandled event of type Other")
    assert caplog.messages == ["Unhandled event of type Other"]
