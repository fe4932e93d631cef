"""`SafeLLM` on scripted models: what it says, what it is asked, what it refuses."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.llms import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ValidationError
from scripted_llms import Endless, Model, says, writer

from safe_integrations import safe_engine
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.tokens import END
from safe_integrations.errors import (
    ContextWindowError,
    GenerationError,
    InvalidArgumentError,
    SafeError,
    SafeTimeoutError,
)
from safe_integrations.llama_index import SafeCallError, SafeLLM, result_of
from safe_integrations.models import load as loading
from safe_integrations.testing import follows
from tests.loops import Gate, answer_beside_a_free_loop, cancel_within_a_pass

HELLO = [ChatMessage("Say hello.", role="user")]


async def last(stream: Any) -> Any:
    if hasattr(stream, "__aiter__"):
        return [chunk async for chunk in stream][-1]
    return list(stream)[-1]


async def complete(llm: SafeLLM, **kw: Any) -> Any:
    return llm.complete("Say hello.", **kw)


async def chat(llm: SafeLLM, **kw: Any) -> Any:
    return llm.chat(HELLO, **kw)


async def stream_complete(llm: SafeLLM, **kw: Any) -> Any:
    return await last(llm.stream_complete("Say hello.", **kw))


async def stream_chat(llm: SafeLLM, **kw: Any) -> Any:
    return await last(llm.stream_chat(HELLO, **kw))


async def acomplete(llm: SafeLLM, **kw: Any) -> Any:
    return await llm.acomplete("Say hello.", **kw)


async def achat(llm: SafeLLM, **kw: Any) -> Any:
    return await llm.achat(HELLO, **kw)


async def astream_complete(llm: SafeLLM, **kw: Any) -> Any:
    return await last(await llm.astream_complete("Say hello.", **kw))


async def astream_chat(llm: SafeLLM, **kw: Any) -> Any:
    return await last(await llm.astream_chat(HELLO, **kw))


Method = Callable[..., Awaitable[Any]]
ALL = [
    *(complete, chat, stream_complete, stream_chat),
    *(acomplete, achat, astream_complete, astream_chat),
]
all_methods = pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
async_methods = pytest.mark.parametrize("method", ALL[4:], ids=lambda m: m.__name__)


def chatting_or(wanted: bytes) -> Callable[[bytes], dict[bytes, float]]:
    """A script that would rather chat, and writes what is wanted where it may not."""

    def script(written: bytes) -> dict[bytes, float]:
        following = wanted[len(written) : len(written) + 1] or END
        return {following: 1.0} if written else {b"S": 0.9, following: 0.1}

    return script


def text_of(response: Any) -> str:
    return response.text if hasattr(response, "text") else response.message.content


@all_methods
async def test_all_eight_methods_give_the_same_answer(llm: SafeLLM, method: Method) -> None:
    response = await method(llm)
    assert text_of(response) == "hello world"
    assert response.raw["finish_reason"] == "stop"
    assert response.raw["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 12,
        "total_tokens": 13,
    }
    assert response.raw["safe"]["ensembled"] == 1
    assert json.loads(json.dumps(response.raw)) == response.raw


@all_methods
async def test_a_call_is_one_event_one_span_and_one_count(
    llm: SafeLLM, method: Method, spans: Any
) -> None:
    """The inherited methods nest: one `achat` was three events, spans and counts."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([debug, counter])
    await method(llm)
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    assert len(counter.llm_token_counts) == 1
    assert counter.prompt_llm_token_count == 1
    assert counter.completion_llm_token_count == 12
    assert spans() == [f"SafeLLM.{method.__name__}"]


@all_methods
async def test_every_model_gets_the_conversation_itself(method: Method) -> None:
    """The inherited `chat` flattens messages, so no model's chat template is used."""
    models = [writer(b"hello"), Model("other", [], follows(b"hello"))]
    await method(SafeLLM(drafter=models[0], verifiers=models[1:]))
    assert [model.asked for model in models] == [[[("user", "Say hello.")]]] * 2


@all_methods
async def test_the_system_prompt_is_there_once(method: Method) -> None:
    model = writer(b"hello")
    await method(SafeLLM(drafter=model, system_prompt="Be kind."))
    assert model.asked == [[("system", "Be kind."), ("user", "Say hello.")]]


async def test_the_system_prompt_is_not_repeated_by_predict_or_over_another_one() -> None:
    model = writer(b"hello")
    llm = SafeLLM(drafter=model, system_prompt="Be kind.")
    llm.predict(PromptTemplate("Say {what}."), what="hello")
    await llm.apredict(PromptTemplate("Say {what}."), what="hello")
    assert model.asked == [[("system", "Be kind."), ("user", "Say hello.")]] * 2
    llm.chat([ChatMessage("Be brief.", role="system"), *HELLO])
    assert model.asked[-1] == [("system", "Be brief."), ("user", "Say hello.")]
    llm.complete("Say hello.", formatted=True)
    assert model.asked[-1] == [("user", "Say hello.")]


def test_prompt_hooks_are_honoured() -> None:
    model = writer(b"hello")
    llm = SafeLLM(
        drafter=model,
        system_prompt="S",
        completion_to_prompt=lambda prompt: f"<<{prompt}>>",
        messages_to_prompt=lambda messages: "|".join(str(m) for m in messages),
    )
    llm.complete("Say hello.")
    llm.complete("Say hello.", formatted=True)
    llm.chat(HELLO)
    assert model.asked == [
        [("system", "S"), ("user", "<<Say hello.>>")],
        [("user", "Say hello.")],
        [("user", "system: S|user: Say hello.")],
    ]


@all_methods
async def test_options_of_a_call_are_honoured(llm: SafeLLM, method: Method) -> None:
    """Elsewhere temperature, stop and max_tokens of a call are silently ignored."""
    stopped = await method(llm, stop=["wor"], temperature=0.0, max_tokens=None)
    assert text_of(stopped) == "hello "
    cut = await method(llm, max_tokens=3)
    assert cut.raw["finish_reason"] == "length"
    assert cut.raw["usage"]["completion_tokens"] == 3


@all_methods
async def test_unknown_options_are_refused(llm: SafeLLM, method: Method) -> None:
    with pytest.raises(SafeCallError, match="temprature=1: there is no such option"):
        await method(llm, temprature=1)


@all_methods
async def test_what_only_servers_need_is_ignored(llm: SafeLLM, method: Method) -> None:
    """Callers that are written for servers pass these on; a call was refused for them."""
    response = await method(llm, user="me", stream=True, timeout=60)
    assert text_of(response) == "hello world"


@all_methods
async def test_the_ensemble_is_an_option_of_a_call_too(llm: SafeLLM, method: Method) -> None:
    response = await method(llm, mode="drafter-only")
    assert response.raw["safe"]["ensembled"] == 0


def test_every_option_has_a_default_in_the_llm() -> None:
    """Those about tools belong to a call."""
    options = EnsembleConfig.model_fields.keys() | GenerationConfig.model_fields.keys()
    of_calls = {"tools", "tool_choice", "parallel_tool_calls"}
    assert options - SafeLLM.model_fields.keys() == of_calls
    assert SafeLLM(lookahead="auto", stop="x").to_dict()["lookahead"] == "auto"


def test_unknown_and_wrong_options_are_refused_at_construction() -> None:
    with pytest.raises(InvalidArgumentError, match="there is no such option"):
        SafeLLM(temprature=1)
    with pytest.raises(InvalidArgumentError, match="temperature=-1"):
        SafeLLM(temperature=-1)


@pytest.mark.parametrize("method", ALL[2:4] + ALL[6:], ids=lambda m: m.__name__)
async def test_an_empty_answer_is_one_chunk(method: Method) -> None:
    """Elsewhere an empty stream raises in the consumer."""
    response = await method(SafeLLM(drafter=writer(b"")))
    assert text_of(response) == ""
    assert response.delta == ""
    assert response.raw["usage"]["completion_tokens"] == 1


def test_deltas_add_up_and_only_the_last_chunk_has_raw(llm: SafeLLM) -> None:
    chunks = list(llm.stream_complete("Say hello."))
    assert len(chunks) > 2
    assert "".join(chunk.delta or "" for chunk in chunks) == chunks[-1].text == "hello world"
    assert [chunk.raw is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@all_methods
async def test_an_error_reaches_the_caller(method: Method) -> None:
    def breaks(written: bytes) -> dict[bytes, float]:
        if len(written) > 3:
            raise RuntimeError("out of luck")
        return {b"a": 1.0}

    model = Model("broken", [], breaks)
    with pytest.raises(GenerationError, match="broken failed while generating: out of luck"):
        await asyncio.wait_for(method(SafeLLM(drafter=model)), 10)
    assert [session.closed for session in model.sessions] == [True]


@async_methods
async def test_the_event_loop_stays_free(method: Method) -> None:
    """The inherited methods compute on the loop."""
    gate = Gate()
    llm = SafeLLM(drafter=Endless(gate), max_tokens=30)
    assert "aaa" in str(await answer_beside_a_free_loop(gate, method(llm)))


@async_methods
async def test_a_cancelled_task_stops_the_engine(method: Method) -> None:
    gate = Gate()
    model = Endless(gate)
    await cancel_within_a_pass(gate, method(SafeLLM(drafter=model)))
    assert model.sessions[0].closed


def test_closing_a_stream_stops_the_engine_whoever_keeps_its_exception(listener: Any) -> None:
    """Handlers that keep GeneratorExit keep the engine's generator alive, by its traceback."""
    model = Endless()
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SafeLLM(drafter=model, callback_manager=CallbackManager([debug]))
    for stream in (llm.stream_complete("x"), llm.stream_chat(HELLO)):
        next(stream)
        stream.close()
        assert model.sessions[-1].closed


async def test_closing_an_async_stream_stops_the_engine(listener: Any) -> None:
    model = Endless()
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SafeLLM(drafter=model, callback_manager=CallbackManager([debug]))
    for start in (llm.astream_complete("x"), llm.astream_chat(HELLO)):
        async with aclosing(await start) as stream:
            await anext(stream)
        assert model.sessions[-1].closed


def test_a_stream_that_nobody_reads_computes_nothing() -> None:
    model = Endless()
    llm = SafeLLM(drafter=model)
    llm.stream_complete("x").close()
    assert model.sessions == []


async def test_concurrent_calls_do_not_mix(llm: SafeLLM) -> None:
    answers = await asyncio.gather(*(method(llm, stop=["world"]) for method in ALL[4:] * 3))
    assert {text_of(answer) for answer in answers} == {"hello "}


@all_methods
async def test_an_answer_tells_where_it_comes_from(llm: SafeLLM, method: Method) -> None:
    result = result_of(await method(llm))
    assert result.text == "hello world"
    (piece,) = [piece for piece in result.pieces if piece.ensembled]
    assert (piece.start, piece.written) == (6, b"w")
    assert {c.symbol for c in piece.candidates} >= {b"w", b"x", b"y"}


def test_rounds_are_attached_where_they_are_asked_for(llm: SafeLLM) -> None:
    """They made `raw` many times as large for everybody, and the other framework left them out."""
    llm.attach_rounds = False
    response = llm.complete("x")
    assert "rounds" not in response.raw["safe"] and response.raw["safe"]["judged"] > 0
    with pytest.raises(InvalidArgumentError, match="attach_rounds=True"):
        result_of(response)


def test_only_a_whole_answer_tells_where_it_comes_from(llm: SafeLLM) -> None:
    with pytest.raises(InvalidArgumentError, match="the last chunk of a stream"):
        result_of(next(llm.stream_complete("x")))


def test_what_needs_no_reading_is_told_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex asks on the loop; reading the default pair's tokenizers took 6.7 seconds."""
    monkeypatch.setattr(loading, "peek", lambda source: pytest.fail(f"{source} was read"))
    metadata = SafeLLM(max_tokens=10).metadata
    assert metadata.model_name == "smollm2-135m+gemma3-270m"
    assert (metadata.num_output, metadata.system_role) == (10, "system")
    assert metadata.is_chat_model and metadata.is_function_calling_model
    assert SafeLLM(context_window=100).metadata.context_window == 100


@all_methods
async def test_a_window_that_is_lowered_is_what_prompt_and_answer_get(method: Method) -> None:
    """LlamaIndex packs with another tokenizer; users of other LLMs lower the window then."""
    models = [writer(b"hello" * 9), Model("other", [], follows(b"hello" * 9))]
    llm = SafeLLM(drafter=models[0], verifiers=models[1:], context_window=7)
    assert llm.metadata.context_window == llm.metadata.model_dump()["context_window"] == 7
    response = await method(llm)
    assert response.raw["finish_reason"] == "length"
    assert response.raw["usage"]["total_tokens"] <= 7
    with pytest.raises(ContextWindowError, match="8 tokens long for drafter.* window is 7"):
        llm.chat(HELLO * 8)
    assert models[0].context_window == 4096


def test_a_window_is_not_raised() -> None:
    small = Model("small", [], follows(b""), context_window=100)
    with pytest.raises(InvalidArgumentError, match="context_window=101: small holds 100 tokens"):
        SafeLLM(drafter=writer(b""), verifiers=[small], context_window=101)
    with pytest.raises(ValidationError, match="context_window"):
        SafeLLM(context_window=1)


async def test_a_window_that_a_named_model_does_not_have_is_refused_by_its_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Model("small", [], follows(b""), context_window=100)
    monkeypatch.setattr(safe_engine, "load_members", lambda names, _: [small for _ in names])
    llm = SafeLLM(drafter="small", context_window=101)
    with pytest.raises(SafeCallError, match="context_window=101: small holds 100 tokens"):
        await llm.achat(HELLO)


def test_text_is_counted_by_the_model_that_needs_most_tokens() -> None:
    """LlamaIndex counts with OpenAI's tokenizer: German came out at two thirds of its length."""
    llm = SafeLLM(drafter=writer(b""), verifiers=[Model("other", [b"hello "], follows(b""))])
    assert len(llm.tokenize("hello ")) == 3
    assert len(llm.tokenize("\ud800 hello")) == 7
    parser = SentenceSplitter(chunk_size=12, chunk_overlap=0, tokenizer=llm.tokenize)
    assert {len(llm.tokenize(part)) <= 12 for part in parser.split_text("hello. " * 20)} == {True}


def test_a_response_format_is_taken_in_every_form_and_survives_a_dump() -> None:
    class City(BaseModel):
        name: str

    schema = City.model_json_schema()
    openai = {"type": "json_schema", "json_schema": {"name": "City", "schema": schema}}
    for given in (City, openai, {"type": "json_schema", "schema": schema}):
        chatty = Model("chatty", [], chatting_or(b'{"name": "Paris"}'))
        llm = SafeLLM(drafter=chatty, response_format=given)
        assert llm.complete("x").text == '{"name": "Paris"}'
        read_back = SafeLLM.from_dict({**llm.to_dict(), "drafter": chatty})
        assert read_back.response_format == llm.response_format
        called = SafeLLM(drafter=chatty).complete("x", response_format=given)
        assert called.text == '{"name": "Paris"}'
    chatty = Model("chatty", [], chatting_or(b"{}"))
    json_object = {"type": "json_object"}
    assert SafeLLM(drafter=chatty).complete("x", response_format=json_object).text == "{}"
    free = SafeLLM(drafter=writer(b"Paris"), response_format={"type": "text"})
    assert free.complete("x").text == "Paris"


@pytest.mark.parametrize(
    "given",
    [
        "json",
        {"type": "yaml"},
        {"type": "object", "properties": {}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"type": "object"}},
    ],
    ids=str,
)
def test_another_response_format_is_refused_with_those_that_there_are(given: Any) -> None:
    known = "response_format=.*pass a pydantic class, .*json_object.*or a JsonSchema"
    with pytest.raises(ValidationError, match=known):
        SafeLLM(response_format=given)
    with pytest.raises(SafeCallError, match=known):
        SafeLLM(drafter=writer(b"")).complete("x", response_format=given)


def test_metadata_tells_about_the_loaded_models() -> None:
    small = Model("small", [], follows(b""), context_window=100)
    llm = SafeLLM(drafter=writer(b""), verifiers=[small], max_tokens=10)
    assert llm.metadata.model_dump() == {
        "context_window": 100,
        "num_output": 10,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "model_name": "drafter+small",
        "system_role": "system",
    }


def test_to_dict_holds_names_and_reads_back(llm: SafeLLM) -> None:
    dumped = llm.to_dict()
    assert dumped["drafter"] == "drafter"
    assert dumped["verifiers"] == ["verifier"]
    json.dumps(dumped)
    again = SafeLLM(**{**llm.model_dump(), "callback_manager": None})
    assert again.to_dict() == dumped, "the class's name in it was refused"
    spec = {"source": "smollm2-135m", "dtype": "float32"}
    named = SafeLLM(drafter=spec, verifiers="gemma3-270m", stop=["x"], seed=3)
    assert named.to_dict()["drafter"] == spec
    assert SafeLLM.from_dict(named.to_dict()).to_dict() == named.to_dict()
    assert SafeLLM.from_json(named.to_json()).to_json() == named.to_json()


def test_copies_share_the_models_and_pickles_leave_them_behind(llm: SafeLLM) -> None:
    """A pickle without the models would come back as the default pair.

    Refusing to be pickled does not help: LlamaIndex then leaves the LLM out of the component that
    uses it, and a worker of an `IngestionPipeline` ends in an AttributeError.
    """
    assert copy.deepcopy(llm).drafter is llm.drafter
    program = pickle.loads(pickle.dumps(SummaryExtractor(llm=llm)))
    assert program.llm.metadata.model_name == "drafter+verifier"
    for use in (program.llm.complete, program.llm.tokenize):
        with pytest.raises(SafeError, match="='drafter': a pickle holds no weights: name the"):
            use("x")
    again = pickle.loads(pickle.dumps(program.llm))
    with pytest.raises(InvalidArgumentError, match="='drafter': a pickle holds no weights"):
        assert again.metadata.context_window
    named = SafeLLM(drafter="a", verifiers=["b"], seed=1)
    assert pickle.loads(pickle.dumps(named)).to_dict() == named.to_dict()


async def test_even_looking_a_model_up_leaves_the_event_loop_free(
    llm: SafeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LlamaIndex asks for `metadata`, on the loop, before it calls; tokenizers are large."""
    threads = []
    peek = loading.peek

    def slow_peek(source: Any) -> Any:
        threads.append(threading.current_thread())
        return peek(source)

    monkeypatch.setattr(loading, "peek", slow_peek)
    await llm.achat(HELLO)
    assert threads[0] is not threading.main_thread()


@all_methods
async def test_a_timeout_stops_the_models(method: Method) -> None:
    model = Endless(before_pass=lambda: time.sleep(0.005))
    with pytest.raises(SafeTimeoutError, match=r"not complete after 0\.1 seconds"):
        await method(SafeLLM(drafter=model), timeout=0.1)
    assert all(session.closed for session in model.sessions)


@pytest.mark.parametrize("kept", [True, False])
def test_an_abandoned_stream_is_closed_without_a_word(kept: bool) -> None:
    """At its end a loop closes all async generators at once; ours closed one another."""
    said: list[Any] = []
    model = Endless()

    async def abandon() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        stream = await SafeLLM(drafter=model).astream_chat(HELLO)
        async for _ in stream:
            break
        return stream if kept else None

    asyncio.run(abandon())
    assert said == []
    assert all(session.closed for session in model.sessions)


def test_payloads_of_events_hold_no_secrets() -> None:
    llm = says("x")
    assert set(llm.to_payload()) == {"class_name", *llm.metadata.model_dump()}


def test_importing_and_constructing_load_nothing_heavy() -> None:
    code = (
        "import sys; from safe_integrations.llama_index import SafeLLM; SafeLLM();"
        "heavy = {'torch', 'transformers', 'opentelemetry'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
