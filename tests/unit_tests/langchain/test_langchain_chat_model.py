"""ChatSafe as a Runnable: answers, options, copies, errors."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from chatty import OTHER, TEXT, Chatty, Recorder, chat, total
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError, ModelNotFoundError, SafeError
from safe_integrations.langchain import (
    ChatSafe,
    SafeContextOverflowError,
    SafeTimeoutError,
    result_of,
)
from safe_integrations.models import load as loading
from safe_integrations.models.spec import ModelSpec
from tests.loops import Gate, answer_beside_a_free_loop, cancel_within_a_pass

CALLS: dict[str, Callable[[ChatSafe], Any]] = {
    "invoke": lambda c: c.invoke("hi"),
    "stream": lambda c: total(c.stream("hi")),
    "batch": lambda c: c.batch(["hi", "hi"])[1],
    "ainvoke": lambda c: asyncio.run(c.ainvoke("hi")),
    "astream": lambda c: asyncio.run(_asum(c.astream("hi"))),
    "abatch": lambda c: asyncio.run(c.abatch(["hi", "hi"]))[1],
    "generate": lambda c: c.generate([[HumanMessage("hi")]]).generations[0][0].message,
}


async def _asum(chunks: Any) -> Any:
    return total([chunk async for chunk in chunks])


def _without_times(metadata: dict[str, Any]) -> dict[str, Any]:
    (payload,) = metadata["safe"]
    safe = {k: v for k, v in payload.items() if not k.endswith("seconds")}
    safe["models"] = [{**m, "seconds": 0} for m in safe["models"]]
    return {**metadata, "safe": safe}


@pytest.mark.parametrize("how", CALLS)
def test_every_path_gives_the_same_message(how: str) -> None:
    message = CALLS[how](chat())
    expected = chat().invoke("hi")
    assert message.content == TEXT
    assert message.usage_metadata == {
        "input_tokens": 2,
        "output_tokens": message.response_metadata["safe"][0]["tokens"],
        "total_tokens": 2 + message.response_metadata["safe"][0]["tokens"],
        "input_token_details": {"cache_read": 0},
    }
    assert message.response_metadata["model_name"] == "drafter+verifier"
    assert message.response_metadata["model_provider"] == "safe"
    assert message.response_metadata["finish_reason"] == "stop"
    got, wanted = message.response_metadata, expected.response_metadata
    assert _without_times(got) == _without_times(wanted)
    assert message.additional_kwargs == expected.additional_kwargs
    json.dumps([message.additional_kwargs, message.response_metadata])


def test_rounds_rebuild_the_provenance() -> None:
    result = result_of(total(chat().stream("hi")))
    assert result.text == TEXT
    assert result.statistics.ensembled > 0
    assert b"".join(p.written for p in result.pieces if p.end > p.start) == TEXT.encode()
    assert "safe-changed" in result._repr_html_()
    with pytest.raises(InvalidArgumentError, match="pass a whole answer of ChatSafe"):
        result_of(AIMessage("hi"))


def test_rounds_are_attached_where_they_are_asked_for() -> None:
    """Every checkpoint and every trace of a graph stores them again: 360 bytes for each token."""
    message = ChatSafe(drafter=Chatty(), verifiers=[Chatty("b", OTHER)]).invoke("hi")
    assert message.additional_kwargs == {}
    assert message.response_metadata["safe"][0]["judged"] > 0
    with pytest.raises(InvalidArgumentError, match="attach_rounds=True"):
        result_of(message)


@pytest.mark.parametrize("rounds", [True, False])
def test_chunks_of_several_answers_add_up(rounds: bool) -> None:
    """As in `create_agent(...).stream(stream_mode="messages")`; fractions were a TypeError."""
    model = chat(attach_rounds=rounds)
    both = total([*model.stream("hi"), *model.stream("ho")])
    assert both.content == TEXT * 2
    assert len(both.response_metadata["safe"]) == 2
    with pytest.raises(InvalidArgumentError, match="pass a whole answer of ChatSafe"):
        result_of(both)


def test_importing_and_constructing_load_nothing() -> None:
    code = (
        "import sys; from safe_integrations.langchain import ChatSafe, SafeTraceHandler;"
        "c = ChatSafe(drafter='org/a', verifiers=['org/b.gguf']); c._get_ls_params();"
        "assert c.model_name == 'a+b', c.model_name;"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_option_of_the_engine_is_an_option_here() -> None:
    for config in (EnsembleConfig, GenerationConfig):
        bound = {"response_format", "tools", "tool_choice", "parallel_tool_calls"}
        assert set(config.model_fields) - bound <= set(ChatSafe.model_fields)


def test_options_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chat(lookahead=3, temperature=0, seed=7, max_tokens=50, top_p=0.9, top_k=4, min_p=0.1)
    model = model.model_copy(update={"template_args": {"enable_thinking": False}})
    call = model._request({"max_tokens": 5, "mode": "drafter-only", "timeout": 3})
    assert call.ensemble == EnsembleConfig(lookahead=3, mode="drafter-only")
    assert call.options == GenerationConfig(
        max_tokens=5,
        seed=7,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        template_args={"enable_thinking": False},
    )
    assert call.timeout == 3
    model.invoke("hi")
    assert model.drafter.template_args[-1] == {"enable_thinking": False}


def test_a_calls_stop_takes_the_place_of_the_models() -> None:
    assert chat(stop="capital").invoke("hi").content == "Paris is the "
    assert chat(stop_sequences=["capital"]).invoke("hi", stop=["is the"]).content == "Paris "
    assert chat(stop=["capital"]).invoke("hi", stop=[]).content == TEXT


def test_max_tokens_is_told() -> None:
    message = chat().invoke("hi", max_tokens=2)
    assert message.response_metadata["finish_reason"] == "length"
    assert message.usage_metadata["output_tokens"] == 2


@pytest.mark.parametrize("how", ["invoke", "stream", "generate"])
def test_unknown_arguments_are_refused_by_name(how: str) -> None:
    call = {
        "invoke": lambda c: c.invoke("hi", max_token=3),
        "stream": lambda c: list(c.stream("hi", max_token=3)),
        "generate": lambda c: c.generate([[HumanMessage("hi")]], max_token=3),
    }[how]
    with pytest.raises(InvalidArgumentError, match="max_token=3: there is no such option"):
        call(chat())


def test_wrong_options_are_refused_when_constructing() -> None:
    with pytest.raises(ValueError, match="temprature"):
        ChatSafe(temprature=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        ChatSafe(temperature=-1)
    with pytest.raises(ValueError, match="lookahead=0"):
        ChatSafe(lookahead=0)
    with pytest.raises(ValueError, match="logprobs"):
        ChatSafe(model_kwargs={"logprobs": True})
    with pytest.raises(ValueError, match=r"verifiers\[0\]"):
        ChatSafe(verifiers=[3])


def test_names_and_aliases() -> None:
    assert ChatSafe(model="org/a").drafter == "org/a"
    assert ChatSafe(model_name="org/a", verifiers="b").verifiers == ("b",)
    assert ChatSafe(drafter={"source": "a", "dtype": "float32"}).drafter == ModelSpec(
        source="a", dtype="float32"
    )
    assert ChatSafe().model_name == "smollm2-135m+gemma3-270m"
    assert ChatSafe(drafter="smollm2-135m").model_name == "smollm2-135m"


def test_none_among_further_options_says_nothing() -> None:
    """It switched off the model's own option."""
    model = chat(temperature=0.5, model_kwargs={"temperature": None, "max_tokens": 7})
    options = model._request({}).options
    assert (options.temperature, options.max_tokens) == (0.5, 7)


def test_profile_and_tracing_parameters() -> None:
    model = ChatSafe(model="org/a", temperature=0.5, max_tokens=9, stop=["x"])
    assert model.profile is not None and model.profile["tool_calling"]
    assert model._get_ls_params() == {
        "ls_provider": "safe",
        "ls_model_name": "a",
        "ls_model_type": "chat",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert model._get_ls_params(max_tokens=3)["ls_max_tokens"] == 3
    assert "safe-integrations" in model.metadata["lc_versions"]


# Sharing, copying


def test_one_process_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(spec: ModelSpec, tell: Any) -> Any:
        loads.append(spec.source)
        return Chatty(spec.source)

    monkeypatch.setattr(loading, "backend_of", lambda _: SimpleNamespace(load=load))
    monkeypatch.setattr(loading, "_slots", {})
    models = [ChatSafe(drafter="a", verifiers=["b"], lookahead=n) for n in (2, 3)]
    threads = [threading.Thread(target=m.invoke, args=("hi",)) for m in models * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copied = pickle.loads(pickle.dumps(models[0]))
    assert copied.invoke("hi").content == TEXT
    assert copied == models[0]
    assert sorted(loads) == ["a", "b"]


def test_copies_share_loaded_models_and_pickling_refuses_them() -> None:
    model = chat()
    for copied in (copy.copy(model), copy.deepcopy(model), model.model_copy(deep=True)):
        assert copied.drafter is model.drafter
        assert copied.verifiers[0] is model.verifiers[0]
    with pytest.raises(InvalidArgumentError, match="a loaded model cannot be pickled"):
        pickle.dumps(model)


def test_bind_with_config_and_configurable_fields() -> None:
    recorder = Recorder()
    model = chat()
    bound = model.bind(stop=["capital"]).with_config({"callbacks": [recorder]})
    assert bound.invoke("hi").content == "Paris is the "
    assert recorder.custom
    fields = {"max_tokens": ConfigurableField(id="n"), "stop": ConfigurableField(id="s")}
    configurable = model.configurable_fields(**fields)
    answer = configurable.invoke("hi", {"configurable": {"n": 2}})
    assert answer.response_metadata["finish_reason"] == "length"
    chunks = list(configurable.stream("hi", {"configurable": {"s": ["capital"]}}))
    assert len(chunks) > 1
    assert total(chunks).content == "Paris is the "


# Caching


def test_the_cache_never_serves_another_models_answer() -> None:
    cache = InMemoryCache()
    first = chat(cache=cache)
    assert first.invoke("hi").content == TEXT
    passes = first.drafter.passes
    again = first.invoke("hi")
    assert again.content == TEXT and again.response_metadata["safe"]
    assert first.drafter.passes == passes, "a cached answer computes nothing"
    others = [
        chat("Lyon.", "Lyon.", cache=cache),
        first.model_copy(update={"lookahead": 2}),
        first.model_copy(update={"verifiers": ()}),
        first.model_copy(update={"template_args": {"a": 1}}),
        first.model_copy(update={"max_tokens": 3}),
    ]
    for other in others:
        before = other.drafter.passes
        other.invoke("hi")
        assert other.drafter.passes > before
    before = first.drafter.passes
    first.invoke("hi", stop=["x"])
    assert first.drafter.passes > before


def test_everything_that_changes_the_answer_identifies_the_model() -> None:
    base = {"drafter": "a", "verifiers": ["b"]}
    variants: list[dict[str, Any]] = [
        {},
        {"drafter": "c"},
        {"drafter": ModelSpec(source="a", dtype="float32")},
        {"verifiers": []},
        {"verifiers": ["c"]},
        {"mode": "drafter-only"},
        {"unit": "token"},
        {"lookahead": 2},
        {"prompt_lookup": False},
        {"unit": "token", "method": "gac"},
        {"union_top_k": 3},
        {"unit": "token", "sharpening": "none"},
        {"unit": "token", "sharpen_below": 0.1},
        {"unit": "token", "prefix_threshold": 0.2},
        {"consensus_above": 0.6},
        {"weights": (0.4, 0.6)},
        {"on_missing": "continue"},
        {"max_tokens": 3},
        {"stop": ["x"]},
        {"temperature": 1.0},
        {"top_p": 0.5},
        {"top_k": 2},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"seed": 1},
        {"template_args": {"a": 1}},
        {"model_kwargs": {"max_tokens": 4}},
    ]
    strings = {ChatSafe(**{**base, **v})._get_llm_string() for v in variants}
    assert len(strings) == len(variants)
    assert ChatSafe(**base)._get_llm_string() == ChatSafe(**base)._get_llm_string()
    assert chat()._get_llm_string() != chat()._get_llm_string()


# Errors


def test_a_prompt_that_is_too_long_is_langchains_overflow() -> None:
    model = ChatSafe(drafter=Chatty(context_window=2))
    with pytest.raises(ContextOverflowError) as caught:
        model.invoke("hi")
    assert isinstance(caught.value, SafeContextOverflowError | SafeError)
    with pytest.raises(ContextOverflowError):
        asyncio.run(model.ainvoke("hi"))


def test_a_timeout_stops_the_models() -> None:
    """Before the next forward pass, of which there are at most five in time."""
    model = chat(before_pass=lambda: time.sleep(0.02), timeout=0.1)
    with pytest.raises(SafeTimeoutError, match="not complete after 0.1 seconds"):
        model.invoke("hi")
    assert 1 <= model.drafter.passes <= 5
    with pytest.raises(TimeoutError):
        asyncio.run(model.ainvoke("hi"))
    assert model.drafter.passes <= 10
    assert all(session.closed for session in model.drafter.sessions)


def test_a_model_that_fails_is_reported_to_callbacks() -> None:
    def reply(messages: Any) -> str:
        raise ValueError("no such luck")

    recorder = Recorder()
    with pytest.raises(ValueError, match="no such luck"):
        ChatSafe(drafter=Chatty(reply=reply)).invoke("hi", {"callbacks": [recorder]})
    assert len(recorder.errors) == 1


# Stopping and concurrency


def test_closing_a_stream_stops_the_models() -> None:
    model, recorder = chat(), Recorder()
    stream = model.stream("hi", {"callbacks": [recorder]})
    next(stream)
    passes = model.drafter.passes
    stream.close()
    assert model.drafter.passes == passes
    assert all(session.closed for session in model.drafter.sessions)
    assert isinstance(recorder.errors[0], GeneratorExit)
    assert model.invoke("hi").content == TEXT


async def test_closing_an_async_stream_stops_the_models() -> None:
    model = chat()
    stream = model.astream("hi")
    await anext(stream)
    await stream.aclose()
    assert all(session.closed for session in model.drafter.sessions)
    assert (await model.ainvoke("hi")).content == TEXT


ASYNC: dict[str, Callable[[ChatSafe], Any]] = {
    "ainvoke": lambda c: c.ainvoke("hi"),
    "astream": lambda c: _asum(c.astream("hi")),
    "abatch": lambda c: c.abatch(["hi"]),
    "agenerate": lambda c: c.agenerate([[HumanMessage("hi")]]),
}


@pytest.mark.parametrize("path", ASYNC)
async def test_cancelling_a_task_stops_the_models(path: str) -> None:
    gate = Gate()
    model = chat(before_pass=gate)
    await cancel_within_a_pass(gate, ASYNC[path](model))
    assert all(session.closed for session in model.drafter.sessions)
    assert (await model.ainvoke("hi", max_tokens=1)).content


async def test_a_caller_that_gives_up_does_not_wait_for_the_models_to_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`wait_for` came back when they were loaded and converted, minutes late."""
    may_go_on = threading.Event()
    model = Chatty()

    def load(*_: Any) -> Chatty:
        may_go_on.wait(60)
        return model

    monkeypatch.setattr(loading, "backend_of", lambda _: SimpleNamespace(load=load))
    monkeypatch.setattr(loading, "_slots", {})
    chatty = ChatSafe(drafter="a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chatty.ainvoke("hi"), 0.05)
    assert not may_go_on.is_set()
    may_go_on.set()
    assert (await chatty.ainvoke("hi")).content == TEXT
    assert len(model.conversations) == 1, "the first call was answered all the same"


@pytest.mark.parametrize("path", ASYNC)
async def test_the_event_loop_stays_free(path: str) -> None:
    """A blocking ainvoke gives the loop no turn at all while it computes."""
    gate = Gate()
    answer = await answer_beside_a_free_loop(gate, ASYNC[path](chat(before_pass=gate)))
    assert "Paris" in str(answer)


def test_threads_do_not_mix_their_answers() -> None:
    model = chat(lambda m: f"echo {m[-1].content}", lambda m: f"echo {m[-1].content}")
    prompts = [f"number {n}" for n in range(24)]
    answers = model.batch(prompts, {"max_concurrency": 8})
    assert [a.content for a in answers] == [f"echo {p}" for p in prompts]


async def test_tasks_do_not_mix_their_answers() -> None:
    model = chat(lambda m: f"echo {m[-1].content}", lambda m: f"echo {m[-1].content}")
    prompts = [f"number {n}" for n in range(24)]
    answers = await asyncio.gather(*(_asum(model.astream(p)) for p in prompts))
    assert [a.content for a in answers] == [f"echo {p}" for p in prompts]


def test_counting_tokens_is_the_drafters() -> None:
    model = chat()
    assert model.get_num_tokens("Paris the") == 3
    assert model.get_num_tokens_from_messages([HumanMessage("hi"), AIMessage("x")]) == 3


def test_counting_takes_the_callers_tokenizer_and_empty_conversations() -> None:
    assert chat(custom_get_token_ids=lambda text: [1, 2]).get_num_tokens("a") == 2
    assert chat().get_num_tokens_from_messages([]) == 0


def test_generations_say_why_they_ended() -> None:
    generation = chat().generate([[HumanMessage("hi")]]).generations[0][0]
    assert generation.generation_info == {"finish_reason": "stop"}


def test_the_profile_knows_the_smallest_window_and_looks_it_up_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it, middleware refuses to summarise at a fraction; and finding out takes seconds.

    A dict that looked the window up by itself lost it in every copy.
    """
    from langchain.agents.middleware import SummarizationMiddleware

    model = ChatSafe(drafter=Chatty(), verifiers=[Chatty("v", context_window=99)])
    assert SummarizationMiddleware(model, trigger=("fraction", 0.5)).model is model
    for profile in (model.profile, dict(model.profile), {**model.profile}, model.profile.copy()):
        assert profile["max_input_tokens"] == 99
    alone = model.model_copy(update={"verifiers": ()})
    assert alone.profile["max_input_tokens"] > 99
    assert chat(profile={"tool_calling": False}).profile == {"tool_calling": False}
    asked: list[str] = []

    def not_there(source: Any) -> Any:
        asked.append(source)
        raise ModelNotFoundError(f"there is no {source}")

    monkeypatch.setattr(loading, "peek", not_there)
    named = pickle.loads(pickle.dumps(ChatSafe(drafter="a", verifiers=["b"])))
    assert named == ChatSafe(drafter="a", verifiers=["b"]) and asked == []
    assert named.profile["tool_calling"] and "max_input_tokens" not in named.profile
    assert named.model_dump()["verifiers"] == ("b",)


def test_streaming_can_be_disabled() -> None:
    recorder = Recorder()
    chunks = list(chat(disable_streaming=True).stream("hi", {"callbacks": [recorder]}))
    assert [c.content for c in chunks] == [TEXT]
    assert {run_id for *_, run_id in recorder.custom} == set(recorder.starts)
