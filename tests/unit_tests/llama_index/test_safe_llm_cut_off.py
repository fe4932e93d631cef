"""What was cut off is never carried out, and never returned as if it were whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from scripted_llms import says

from safe_integrations.errors import IncompleteAnswerError
from safe_integrations.llama_index import SafeCallError, SafeLLM
from tests.cut_off import CALL, LENGTHS, PATH, SMALLEST, STOPS, WHOLE, left, merging

pytest.importorskip("llguidance")

# Agents inspect all attributes of themselves, and structured LLMs use `json()`.
agents = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

deleted: list[Any] = []


def delete(path: str = "/", name: str = "") -> str:
    """Deletes a folder. What is cut off between its name and its arguments fits, too."""
    deleted.append(path)
    return "gone"


TOOL = FunctionTool.from_defaults(delete)
HELLO = [ChatMessage("x", role="user")]


def last(items: Any) -> Any:
    return list(items)[-1]


async def alast(items: Any) -> Any:
    return [item async for item in await items][-1]


WAYS: dict[str, Callable[..., Any]] = {
    "chat": lambda m, **kw: m.chat(HELLO, tools=[TOOL], **kw),
    "stream_chat": lambda m, **kw: last(m.stream_chat(HELLO, tools=[TOOL], **kw)),
    "achat": lambda m, **kw: asyncio.run(m.achat(HELLO, tools=[TOOL], **kw)),
    "astream_chat": lambda m, **kw: asyncio.run(alast(m.astream_chat(HELLO, tools=[TOOL], **kw))),
}


def check(llm: SafeLLM, response: Any, whole: bool, where: object) -> None:
    """A whole call is told everywhere, one that is cut nowhere."""
    told = [("delete", {"path": PATH})] if whole else []
    blocks = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
    assert [(b.tool_name, b.tool_kwargs) for b in blocks] == told, where
    assert len(response.message.additional_kwargs.get("tool_calls", ())) == len(told)
    assert '"' not in (response.message.content or ""), "the call's JSON is not an answer"
    if whole:
        (selection,) = llm.get_tool_calls_from_response(response)
        assert (selection.tool_name, selection.tool_kwargs) == told[0]
        return
    with pytest.raises(IncompleteAnswerError, match=r"cut off.*: raise max_tokens|is broken"):
        llm.get_tool_calls_from_response(response)
    for selection in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False):
        assert selection.tool_kwargs == {} and " " in selection.tool_name, "no tool is called so"


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_max_tokens_cuts_is_no_call(way: str, choice: str) -> None:
    """LlamaIndex mends broken JSON: this one became delete(path='/home/me/pro')."""
    forced = choice == "required"
    for length in LENGTHS:
        llm = says(CALL)
        if forced and length < SMALLEST:
            with pytest.raises(SafeCallError, match=f"needs at least {SMALLEST}"):
                WAYS[way](llm, tool_choice=choice, max_tokens=length)
            continue
        response = WAYS[way](llm, tool_choice=choice, max_tokens=length)
        whole = length >= (len(CALL) + 1 if forced else WHOLE)
        check(llm, response, whole, length)
        assert ("closed" in response.raw) == (forced and not whole)
        reason = "length" if length <= len(CALL) else "tool_calls"
        assert response.raw["finish_reason"] == reason, "a cut hides behind its call"


@pytest.mark.parametrize("way", ["chat", "astream_chat"])
def test_a_call_that_a_stop_string_cuts_is_no_call(way: str) -> None:
    for stop in STOPS:
        if len(left(stop)) < len("<tool_call>"):
            continue  # what is left is text
        llm = says(CALL)
        check(llm, WAYS[way](llm, stop=[stop]), len(left(stop)) >= WHOLE, stop)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("tool_required", [True, False])
def test_predict_and_call_carries_out_whole_calls_only(tool_required: bool, error: bool) -> None:
    """On the default pair, this deleted a folder that nobody had named."""
    for length in LENGTHS:
        deleted.clear()
        call = getattr(says(CALL), "predict_and_call" if length % 2 else "apredict_and_call")
        kwargs = {"max_tokens": length, "tool_required": tool_required}

        def run() -> Any:
            answer = call([TOOL], "x", error_on_no_tool_call=error, **kwargs)  # noqa: B023
            return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

        whole = length >= (len(CALL) + 1 if tool_required else WHOLE)
        if tool_required and length < SMALLEST:
            with pytest.raises(SafeCallError, match="needs at least"):
                run()
        elif whole:
            assert run().response == "gone"
        elif error or length >= len("<tool_call>"):
            with pytest.raises(IncompleteAnswerError, match="cut off.*: raise max_tokens"):
                run()
        else:
            assert CALL.startswith(run().response)
        assert deleted == ([PATH] if whole else []), length


def test_tokens_that_reach_over_a_quote_are_no_way_out() -> None:
    """Carried out with the whole path or not at all, also where a model's tokens merge."""
    for members in (merging(), merging()[::-1]):
        llm, done = SafeLLM(drafter=members[0], verifiers=members[1:]), []
        for length in range(1, len(CALL)):
            deleted.clear()
            try:
                llm.predict_and_call([TOOL], "x", tool_required=True, max_tokens=length)
            except SafeCallError:
                continue  # not even the smallest call fits
            except IncompleteAnswerError:
                assert deleted == []
            done.append([*deleted])
        whole = done.index([PATH])
        assert done == [[]] * whole + [[PATH]] * (len(done) - whole)
        assert 5 < whole < len(done)


@pytest.mark.parametrize("way", ["predict_and_call", "apredict_and_call"])
def test_arguments_may_be_given_by_position(way: str) -> None:
    """The sixth, given so, met its own name: a TypeError."""
    deleted.clear()
    answer = getattr(says(CALL), way)([TOOL], "x", [], False, False, False, True)
    answer = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    assert (answer.response, deleted) == ("gone", [PATH])
    with pytest.raises(TypeError, match="multiple values"):
        getattr(says(CALL), "predict_and_call")([TOOL], "x", user_msg="y")  # noqa: B009


@pytest.mark.parametrize("way", ["predict_and_call", "apredict_and_call"])
def test_without_a_tool_choice_no_call_is_read(way: str) -> None:
    """A model that calls all the same was obeyed, against its caller's word."""
    deleted.clear()
    answer = getattr(says(CALL), way)([TOOL], "x", tool_choice="none", error_on_no_tool_call=False)
    answer = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    assert (answer.response, deleted) == (CALL, [])
    for run in WAYS.values():
        response = run(says(CALL), tool_choice="none")
        assert response.message.content == CALL
        assert response.raw["finish_reason"] == "stop"


class Delete(BaseModel):
    """A folder to delete; that there is a default makes a shorter call valid."""

    path: str = "/"


DELETE = CALL.replace('"delete"', '"Delete"')
QUESTION = PromptTemplate("x")
STRUCTURED: dict[str, Callable[..., Any]] = {
    "structured_predict": lambda m: m.structured_predict(Delete, QUESTION),
    "astructured_predict": lambda m: asyncio.run(m.astructured_predict(Delete, QUESTION)),
    "stream_structured_predict": lambda m: last(m.stream_structured_predict(Delete, QUESTION)),
    "astream_structured_predict": lambda m: asyncio.run(
        alast(m.astream_structured_predict(Delete, QUESTION))
    ),
    "streamed as_structured_llm": lambda m: (
        last(m.as_structured_llm(Delete).stream_chat(HELLO)).raw
    ),
}


@agents
@pytest.mark.parametrize("way", STRUCTURED)
def test_an_object_that_was_cut_off_is_an_error(way: str) -> None:
    """`structured_predict` gave Captain(name='Maria Lu'), and nobody was told."""
    for length in LENGTHS:
        llm = says(DELETE)
        llm.max_tokens = length
        if length > len(CALL):
            assert STRUCTURED[way](llm) == Delete(path=PATH)
        elif length < SMALLEST:
            with pytest.raises(SafeCallError, match=f"needs at least {SMALLEST}"):
                STRUCTURED[way](llm)
        else:
            with pytest.raises(IncompleteAnswerError, match="raise max_tokens") as caught:
                STRUCTURED[way](llm)
            assert PATH.startswith(Delete.model_validate(caught.value.closed).path)


@agents
@pytest.mark.parametrize("way", STRUCTURED)
def test_a_closed_object_is_returned_where_it_is_wanted(way: str) -> None:
    """At any budget that can hold one, it is valid, and the beginning of what was meant."""
    seen = set()
    for length in range(SMALLEST, len(CALL) + 2):
        llm = says(DELETE)
        llm.max_tokens, llm.on_length = length, "close"
        found = STRUCTURED[way](llm)
        assert isinstance(found, Delete) and PATH.startswith(found.path)
        seen.add(found.path)
    assert {"", PATH[:6], PATH} <= seen


def program(llm: SafeLLM) -> FunctionCallingProgram[Delete]:
    return FunctionCallingProgram.from_defaults(Delete, "x", llm=llm)


FORCED = {"tool_required": True}
STREAMED: dict[str, Callable[..., Any]] = {
    "stream_call": lambda m: last(program(m).stream_call()),
    "astream_call": lambda m: asyncio.run(alast(program(m).astream_call())),
    "stream_chat_with_tools": lambda m: called(
        m, last(m.stream_chat_with_tools([TOOL], "x", **FORCED))
    ),
    "astream_chat_with_tools": lambda m: called(
        m, asyncio.run(alast(m.astream_chat_with_tools([TOOL], "x", tool_choice="delete")))
    ),
}


def called(llm: SafeLLM, response: Any) -> Delete:
    (selection,) = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return Delete(**selection.tool_kwargs)


@pytest.mark.parametrize("way", STREAMED)
def test_a_stream_does_not_end_as_if_its_call_were_whole(way: str) -> None:
    """Core swallows what is raised where it reads a call, and keeps the object so far."""
    for length in LENGTHS:
        llm = says(DELETE if way.endswith("stream_call") else CALL)
        llm.max_tokens = length
        if length > len(CALL):
            assert STREAMED[way](llm) == Delete(path=PATH)
        elif length < SMALLEST:
            with pytest.raises(SafeCallError, match=f"needs at least {SMALLEST}"):
                STREAMED[way](llm)
        else:
            with pytest.raises(IncompleteAnswerError, match="raise max_tokens"):
                STREAMED[way](llm)


def test_a_checked_stream_that_is_left_stops_the_engine() -> None:
    llm = says(CALL)
    stream = llm.stream_chat_with_tools([TOOL], "x", tool_required=True)
    next(stream)
    stream.close()
    assert all(session.closed for session in llm.drafter.sessions)

    async def leave() -> None:
        stream = await llm.astream_chat_with_tools([TOOL], "x", tool_required=True)
        await anext(stream)
        await stream.aclose()

    llm = says(CALL)
    asyncio.run(leave())
    assert all(session.closed for session in llm.drafter.sessions)


@agents
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("length", [*range(12, WHOLE, 6), WHOLE - 1])
async def test_an_agent_is_told_and_goes_on(length: int, streaming: bool) -> None:
    """It called delete('/home/me/pro'); an error in its place would end the agent."""
    deleted.clear()
    llm = says(CALL, "It is there.")
    llm.max_tokens = length
    handler = FunctionAgent(tools=[delete], llm=llm, streaming=streaming).run("x")
    events = [event async for event in handler.stream_events()]
    assert str(await handler) == "It is there."
    assert deleted == []
    (result,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert result.tool_output.is_error
    assert "cut off: raise max_tokens" in result.tool_output.content
    assert "cut off: raise max_tokens" in llm.drafter.messages[-1].content
    assert any(isinstance(event, AgentStream) for event in events) == streaming
