"""What was cut off is never carried out, and never returned as if it were whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from chatty import Chatty, total
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from pydantic import BaseModel

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from tests.cut_off import CALL, LENGTHS, PATH, SMALLEST, STOPS, WHOLE, left, merging

pytest.importorskip("llguidance")

deleted: list[str] = []


@tool
def delete(path: str = "/") -> str:
    """Deletes a folder."""
    deleted.append(path)
    return "gone"


class Delete(BaseModel):
    """A folder to delete; that there is a default makes a shorter call valid."""

    path: str = "/"


async def acollected(stream: Any) -> Any:
    return total([chunk async for chunk in stream])


WAYS: dict[str, Callable[..., Any]] = {
    "invoke": lambda m, **kw: m.invoke("x", **kw),
    "stream": lambda m, **kw: total(m.stream("x", **kw)),
    "ainvoke": lambda m, **kw: asyncio.run(m.ainvoke("x", **kw)),
    "astream": lambda m, **kw: asyncio.run(acollected(m.astream("x", **kw))),
    "streaming invoke": lambda m, **kw: m.invoke("x", stream=True, **kw),
}


def writing(text: str, **options: Any) -> ChatSafe:
    return ChatSafe(drafter=Chatty("drafter", text, words=[], doubts=True), lookahead=8, **options)


def calls(message: AIMessage | AIMessageChunk) -> list[Any]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize(
    ("way", "choice"), [*((way, "auto") for way in WAYS), ("invoke", "any"), ("astream", "any")]
)
def test_a_call_that_max_tokens_cuts_is_no_call(way: str, choice: str) -> None:
    """At one place in this call LangChain mended it to delete(path='/home'), at another to ''."""
    bound = writing(CALL).bind_tools([delete], tool_choice=choice)
    forced = choice == "any"
    for length in LENGTHS:
        if forced and length < SMALLEST:
            with pytest.raises(InvalidArgumentError, match=f"needs at least {SMALLEST}"):
                WAYS[way](bound, max_tokens=length)
            continue
        message = WAYS[way](bound, max_tokens=length)
        whole = length >= (len(CALL) + 1 if forced else WHOLE)
        assert ("closed" in message.response_metadata) == (forced and not whole), length
        assert calls(message) == ([("delete", {"path": PATH})] if whole else []), length
        assert message.response_metadata["finish_reason"] == (
            "length" if length <= len(CALL) else "tool_calls"
        )
        assert not whole or not message.invalid_tool_calls


def test_tokens_that_reach_over_a_quote_are_no_way_out() -> None:
    """Carried out with the whole path or not at all, also where a model's tokens merge."""
    for members in (merging(), merging()[::-1]):
        model = ChatSafe(drafter=members[0], verifiers=members[1:])
        bound, done = model.bind_tools([delete], tool_choice="any"), []
        for length in range(1, len(CALL)):
            deleted.clear()
            try:
                message = bound.invoke("x", max_tokens=length)
            except InvalidArgumentError:
                continue
            for call in message.tool_calls:
                delete.invoke(call)
            done.append([*deleted])
        whole = done.index([PATH])
        assert done == [[]] * whole + [[PATH]] * (len(done) - whole)
        assert 5 < whole < len(done)


@pytest.mark.parametrize("way", ["invoke", "astream"])
def test_a_call_that_a_stop_string_cuts_is_no_call(way: str) -> None:
    bound = writing(CALL).bind_tools([delete])
    for stop in STOPS:
        message = WAYS[way](bound, stop=[stop])
        whole = len(left(stop)) >= WHOLE
        assert calls(message) == ([("delete", {"path": PATH})] if whole else []), stop


@pytest.mark.parametrize("path", ['a\\"b', "a\\", '{"x": [', "🗼", '"]"}'])
def test_arguments_that_are_hard_to_break_are_broken(path: str) -> None:
    """Brackets and escapes inside a string hide the bracket that should break it."""
    text = CALL.replace(PATH, json.dumps(path, ensure_ascii=False)[1:-1])
    bound = writing(text).bind_tools([delete])
    for length in range(1, len(text.encode()) - len("\n</tool_call>")):
        assert calls(bound.invoke("x", max_tokens=length)) == [], length


@pytest.mark.parametrize("length", range(20, WHOLE, 5))
def test_an_agent_does_not_carry_it_out(length: int) -> None:
    deleted.clear()
    agent = create_agent(writing(CALL, max_tokens=length), [delete])
    agent.invoke({"messages": [("user", "go")]})
    assert deleted == []


OBJECT = '{"path": "/home/me"}'
METHODS = {
    "function_calling": CALL.replace(PATH, "/home/me").replace("delete", "Delete"),
    "json_schema": OBJECT,
    "json_mode": OBJECT,
}


def last(items: Any) -> Any:
    return list(items)[-1]


async def alast(items: Any) -> Any:
    return [item async for item in items][-1]


STRUCTURED: dict[str, Callable[..., Any]] = {
    "invoke": lambda m: m.invoke("x"),
    "stream": lambda m: last(m.stream("x")),
    "ainvoke": lambda m: asyncio.run(m.ainvoke("x")),
    "astream": lambda m: asyncio.run(alast(m.astream("x"))),
}


@pytest.mark.parametrize("way", STRUCTURED)
@pytest.mark.parametrize("method", METHODS)
def test_an_object_that_was_cut_off_is_an_error(method: Any, way: str) -> None:
    """One that was cut off behind its end is whole, and was an error, too."""
    text = METHODS[method]
    smallest = SMALLEST if method == "function_calling" else len("{}") + 1
    for length in range(1, len(text) + 1):
        model = writing(text, max_tokens=length).with_structured_output(Delete, method=method)
        if length < smallest:
            with pytest.raises(InvalidArgumentError, match=f"needs at least {smallest}"):
                STRUCTURED[way](model)
            continue
        with pytest.raises(OutputParserException, match="raise max_tokens") as caught:
            STRUCTURED[way](model)
        assert PATH.startswith(Delete.model_validate(closed_object(caught.value)).path)
    for options in ({"stop": ["/"]}, {"max_tokens": len(text) + 1}):
        model = writing(text, **options).with_structured_output(Delete, method=method)
        assert STRUCTURED[way](model) == Delete(path="/home/me"), options


def test_digits_may_be_the_beginning_of_a_longer_number() -> None:
    """`12` parses, and is no proof that `123` was not cut off."""
    schema = {"title": "N", "type": "integer"}
    model = writing("123", max_tokens=3).with_structured_output(schema, method="json_schema")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        model.invoke("x")


def closed_object(error: OutputParserException) -> Any:
    written = json.loads(error.llm_output or "")
    return written.get("arguments", written)


@pytest.mark.parametrize("way", STRUCTURED)
@pytest.mark.parametrize("method", METHODS)
def test_a_closed_object_is_returned_where_it_is_wanted(method: Any, way: str) -> None:
    """At any budget that can hold one, it is valid, and the beginning of what was meant."""
    text, seen = METHODS[method], set()
    smallest = SMALLEST if method == "function_calling" else len("{}") + 1
    for length in range(smallest, len(text) + 2):
        model = writing(text, max_tokens=length, on_length="close")
        found = STRUCTURED[way](model.with_structured_output(Delete, method=method))
        path = Delete.model_validate(found).path
        assert path in ("", "/") or "/home/me".startswith(path)
        seen.add(path)
    assert {"", "/h", "/home/me"} <= seen


def test_what_was_closed_is_told() -> None:
    form = {"type": "json_schema", "json_schema": {"schema": Delete.model_json_schema()}}
    model = writing(OBJECT, max_tokens=len(OBJECT) - 2)
    message = model.invoke("x", response_format=form)
    assert message.text == '{"path": "/home', "no parser takes it for a whole one"
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["closed"] == {
        "at": len('{"path": "/home'),
        "cut": ["/path"],
        "on_length": "error",
        "text": '{"path": "/home"}',
    }
    assert message.response_metadata["safe"][0]["closed_at"] == len('{"path": "/home')
    message = model.invoke("x", response_format=form, on_length="close")
    assert message.text == '{"path": "/home"}'
    assert message.response_metadata["closed"]["on_length"] == "close"


@pytest.mark.parametrize("method", METHODS)
def test_with_the_raw_answer_the_error_is_told(method: Any) -> None:
    text = METHODS[method]
    smallest = SMALLEST if method == "function_calling" else len("{}") + 1
    for length in range(smallest, len(text), 3):
        model = writing(text, max_tokens=length).with_structured_output(
            Delete, method=method, include_raw=True
        )
        for answer in (model.invoke("x"), asyncio.run(model.ainvoke("x"))):
            assert answer["parsed"] is None
            assert "raise max_tokens" in str(answer["parsing_error"])
