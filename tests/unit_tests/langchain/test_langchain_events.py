"""Custom events reach callbacks under the model's own run id, on every path that LangChain has."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from chatty import TEXT, AsyncRecorder, Chatty, Recorder, chat
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from rich.console import Console

from safe_integrations.langchain import ChatSafe, SafeTraceHandler
from safe_integrations.report.payloads import VERSION, symbol_of

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")

HI = {"messages": [("user", "hi")]}


def _chain(model: ChatSafe) -> Any:
    return ChatPromptTemplate.from_messages([("user", "{q}")]) | model | StrOutputParser()


def _graph(model: ChatSafe) -> Any:
    def node(state: MessagesState) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    async def anode(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", RunnableLambda(node, anode))
    graph.add_edge(START, "answer")
    return graph.compile()


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def _drain_v3(stream: Any) -> None:
    assert (await (await stream).output).text == TEXT


SYNC: dict[str, Callable[[ChatSafe, Any], Any]] = {
    "invoke": lambda m, c: m.invoke("hi", c),
    "auto-streamed invoke": lambda m, c: m.invoke("hi", c, stream=True),
    "stream": lambda m, c: list(m.stream("hi", c)),
    "batch": lambda m, c: m.batch(["hi", "hi"], c),
    "bound stream": lambda m, c: list(m.bind(seed=1).stream("hi", c)),
    "stream_events v3": lambda m, c: m.stream_events("hi", c, version="v3").output.text,
    "chain invoke": lambda m, c: _chain(m).invoke({"q": "hi"}, c),
    "chain stream": lambda m, c: list(_chain(m).stream({"q": "hi"}, c)),
    "agent invoke": lambda m, c: create_agent(m).invoke(HI, c),
    "agent stream": lambda m, c: list(create_agent(m).stream(HI, c, stream_mode="messages")),
    "graph invoke": lambda m, c: _graph(m).invoke(HI, c),
    "graph stream": lambda m, c: list(_graph(m).stream(HI, c, stream_mode="messages")),
}
ASYNC: dict[str, Callable[[ChatSafe, Any], Any]] = {
    "ainvoke": lambda m, c: m.ainvoke("hi", c),
    "astream": lambda m, c: _drain(m.astream("hi", c)),
    "abatch": lambda m, c: m.abatch(["hi", "hi"], c),
    "astream_events v2": lambda m, c: _drain(m.astream_events("hi", c, version="v2")),
    "astream_events v3": lambda m, c: _drain_v3(m.astream_events("hi", c, version="v3")),
    "chain ainvoke": lambda m, c: _chain(m).ainvoke({"q": "hi"}, c),
    "chain astream": lambda m, c: _drain(_chain(m).astream({"q": "hi"}, c)),
    "chain events v2": lambda m, c: _drain(_chain(m).astream_events({"q": "hi"}, c, version="v2")),
    "agent ainvoke": lambda m, c: create_agent(m).ainvoke(HI, c),
    "agent astream": lambda m, c: _drain(create_agent(m).astream(HI, c, stream_mode="messages")),
    "agent events v2": lambda m, c: _drain(create_agent(m).astream_events(HI, c, version="v2")),
    "graph ainvoke": lambda m, c: _graph(m).ainvoke(HI, c),
    "graph astream": lambda m, c: _drain(_graph(m).astream(HI, c, stream_mode="messages")),
}


def _check(model: ChatSafe, recorder: Any) -> None:
    runs = set(recorder.starts)
    assert runs
    by_name: dict[str, list[Any]] = {}
    for name, data, run_id in recorder.custom:
        assert run_id in runs, f"{name} came under a run that is not the model's"
        by_name.setdefault(name, []).append(data)
    assert set(by_name) == {"safe_verification", "safe_ensemble"}
    message = model.invoke("hi")
    rounds = message.additional_kwargs["safe"]
    assert len(by_name["safe_verification"]) == len(rounds) * len(runs)
    (statistics,) = message.response_metadata["safe"]
    assert len(by_name["safe_ensemble"]) == statistics["ensembled"] * len(runs) > 0


@pytest.mark.parametrize("path", SYNC)
def test_events_reach_callbacks(path: str) -> None:
    model, recorder = chat(), Recorder()
    SYNC[path](model, {"callbacks": [recorder]})
    _check(model, recorder)


@pytest.mark.parametrize("handler", [Recorder, AsyncRecorder])
@pytest.mark.parametrize("path", ASYNC)
async def test_events_reach_callbacks_of_an_event_loop(path: str, handler: Any) -> None:
    model, recorder = chat(), handler()
    await ASYNC[path](model, {"callbacks": [recorder]})
    _check(model, recorder)


def test_events_reach_the_models_own_callbacks() -> None:
    recorder = Recorder()
    model = chat(callbacks=[recorder])
    model.invoke("hi")
    list(model.stream("hi"))
    assert len(recorder.starts) == 2
    assert {run for *_, run in recorder.custom} == set(recorder.starts)


async def test_astream_events_v2_shows_them_in_place() -> None:
    """Between the model's start and its end, and below the run that contains it."""
    events = [e async for e in _chain(chat()).astream_events({"q": "hi"}, version="v2")]
    kinds = [e["event"] for e in events]
    custom = [e for e in events if e["event"] == "on_custom_event"]
    model = next(e for e in events if e["event"] == "on_chat_model_start")
    assert {e["run_id"] for e in custom} == {model["run_id"]}
    assert custom[0]["parent_ids"] == model["parent_ids"]
    first, last = kinds.index("on_custom_event"), kinds.index("on_chat_model_end")
    assert kinds.index("on_chat_model_start") < first < last


def test_a_given_run_id_is_kept() -> None:
    from langchain_core.utils.uuid import uuid7

    recorder, run_id = Recorder(), uuid7()
    list(chat().stream("hi", {"callbacks": [recorder], "run_id": run_id}))
    assert recorder.starts == [run_id]
    assert {run for *_, run in recorder.custom} == {run_id}


class Started(Recorder):
    """Keeps what tracers are shown of a call before it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        super().on_chat_model_start(serialized, messages, **kwargs)
        self.shown.append({k: kwargs[k] for k in ("options", "invocation_params", "metadata")})


@pytest.mark.parametrize("path", ["invoke", "stream", "chain stream", "agent stream"])
def test_tracers_see_nothing_of_ours(path: str) -> None:
    """They keep and send what they see: handlers, metadata and generators were among it."""
    started = Started()
    SYNC[path](chat(), {"callbacks": [started]})
    json.dumps(started.shown)
    assert "safe_listeners" not in str(started.shown)


@pytest.mark.parametrize("path", ["ainvoke", "astream", "agent astream"])
async def test_tracers_of_an_event_loop_see_nothing_of_ours(path: str) -> None:
    started = Started()
    await ASYNC[path](chat(), {"callbacks": [started]})
    json.dumps(started.shown)


async def test_a_handler_of_the_environment_hears_everything_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LangChain configures callbacks for a stream; doing so again made every tracer twice."""
    from langchain_core.tracers import context

    made: list[Recorder] = []

    class Hooked(Recorder):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(context, "_configure_hooks", [])
    monkeypatch.setenv("HOOKED", "true")
    context.register_configure_hook(ContextVar("hooked", default=None), True, Hooked, "HOOKED")
    list(chat().stream("hi"))
    await _drain(chat().astream("hi"))
    heard = [hooked for hooked in made if hooked.starts or hooked.custom]
    assert [len(hooked.starts) for hooked in heard] == [1, 1]
    assert all(hooked.custom for hooked in heard)


def test_a_stream_inside_a_callback_does_not_mix_with_the_one_outside() -> None:
    """Who listens is noted in a context variable, which both of them see."""
    inner = Recorder()

    class Curious(Recorder):
        def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
            if not inner.starts:
                list(chat().stream("hi", {"callbacks": [inner]}))

    outer = Curious()
    list(chat().stream("hi", {"callbacks": [outer]}))
    for recorder in (inner, outer):
        assert {run for *_, run in recorder.custom} == set(recorder.starts)
        assert len(recorder.starts) == 1


@pytest.mark.parametrize("path", ["model", "chain", "agent"])
@pytest.mark.parametrize("kept", [True, False])
def test_an_abandoned_stream_is_closed_without_a_word(path: str, kept: bool) -> None:
    """At its end a loop closes all async generators at once; ours closed one another."""
    said: list[Any] = []
    model = chat("word " * 400)

    async def abandon() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        stream: Any = {
            "model": lambda: model.astream("hi"),
            "chain": lambda: _chain(model).astream({"q": "hi"}),
            "agent": lambda: create_agent(model).astream(HI, stream_mode="messages"),
        }[path]()
        async for _ in stream:
            break
        return stream if kept else None

    asyncio.run(abandon())
    gc.collect()
    assert said == []
    assert all(session.closed for session in model.drafter.sessions)


def test_payloads_are_small_versioned_json() -> None:
    recorder = Recorder()
    chat().invoke("hi", {"callbacks": [recorder]})
    for name, data, _ in recorder.custom:
        text = json.dumps(data, allow_nan=False)
        assert data["version"] == VERSION
        assert len(text) < 4000
        if name == "safe_ensemble":
            assert data["written"] == data["candidates"][0]["symbol"]
            assert [v["model"] for v in data["votes"]] == ["drafter", "verifier"]
    verifications = [data for name, data, _ in recorder.custom if name == "safe_verification"]
    pieces = [p for data in verifications for p in data["pieces"]]
    written = b"".join(symbol_of(p["written"]) for p in pieces if p["end"] > p["start"])
    assert written.decode() == TEXT


def test_a_handler_that_fails_does_not_stop_the_answer(caplog: Any) -> None:
    class Broken(Recorder):
        def on_custom_event(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("broken")

    assert chat().invoke("hi", {"callbacks": [Broken()]}).content == TEXT
    assert "broken" in caplog.text


def test_the_example_of_the_documentation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.setattr("safe_integrations.langchain.ChatSafe", chat)
    exec(code, {})


# The terminal


def _trace(work: Callable[[Any], Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    work(SafeTraceHandler(console))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_trace_is_readable_without_colours() -> None:
    text = _trace(lambda handler: chat().invoke("hi", {"callbacks": [handler]}))
    lines = text.splitlines()
    assert lines[0].split() == ["●", "drafter+verifier"]
    assert lines[1].strip().startswith("1 ")
    assert "↳ “o”" in text or "↳ “a”" in text
    assert "drafter 80%, verifier" in text
    assert lines[-1].strip().startswith("■ ") and "finish: stop" in lines[-1]


def test_the_trace_tells_parallel_answers_apart() -> None:
    begun: set[int] = set()
    both_begun = threading.Barrier(2)

    def before_pass() -> None:
        if threading.get_ident() not in begun:
            begun.add(threading.get_ident())
            both_begun.wait(20)

    def work(handler: Any) -> None:
        chat(before_pass=before_pass).batch(["a", "b"], {"callbacks": [handler]})

    text = _trace(work)
    assert text.count("●") == text.count("■") == 2


def test_the_trace_says_why_an_answer_is_missing() -> None:
    def work(handler: Any) -> None:
        stream = chat().stream("hi", {"callbacks": [handler]})
        next(stream)
        stream.close()

    assert "✗ stopped: GeneratorExit" in _trace(work)


def test_the_trace_shows_control_characters() -> None:
    reply = "a\n\t\x1b[31mred"
    model = ChatSafe(drafter=Chatty(reply=reply), verifiers=[Chatty("v", reply, sure=0.2)])
    text = _trace(lambda handler: model.invoke("hi", {"callbacks": [handler]}))
    assert "⏎" in text and "\x1b" not in text


async def test_the_trace_works_in_an_event_loop() -> None:
    console = Console(file=io.StringIO(), width=120)
    handler = SafeTraceHandler(console)
    await asyncio.gather(*(chat().ainvoke("hi", {"callbacks": [handler]}) for _ in range(2)))
    assert console.file.getvalue().count("■") == 2  # type: ignore[attr-defined]
