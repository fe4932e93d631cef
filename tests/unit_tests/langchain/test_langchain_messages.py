"""LangChain's messages as the engine's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chatty import TEXT, Chatty, chat
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain import ChatSafe
from safe_integrations.langchain.messages import engine_messages
from safe_integrations.messages import Message

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}


def test_every_kind_of_message() -> None:
    given = [
        SystemMessage("s"),
        SystemMessage("t"),
        HumanMessage("u", name="ann"),
        AIMessage("a", tool_calls=[CALL]),
        ToolMessage("3", tool_call_id="c1", name="add"),
        FunctionMessage("4", name="add"),
        ChatMessage("c", role="assistant"),
    ]
    function = {"name": "add", "arguments": {"a": 1}}
    assert engine_messages(given) == [
        Message("system", "s"),
        Message("system", "t"),
        Message("user", "u", {"name": "ann"}),
        Message(
            "assistant",
            "a",
            {"tool_calls": [{"type": "function", "id": "c1", "function": function}]},
        ),
        Message("tool", "3", {"name": "add", "tool_call_id": "c1"}),
        Message("tool", "4", {"name": "add"}),
        Message("assistant", "c"),
    ]


def test_a_broken_call_is_shown_as_it_was_written() -> None:
    broken = {"name": "add", "args": '{"a": ', "id": "c1", "error": "cut off"}
    message = AIMessage("", invalid_tool_calls=[{**broken, "type": "invalid_tool_call"}])
    (converted,) = engine_messages([message])
    assert converted.extra["tool_calls"][0]["function"]["arguments"] == '{"a": '


def test_text_blocks_are_joined_and_calls_are_not_repeated() -> None:
    content = [
        "Hello, ",
        {"type": "text", "text": "wor"},
        {"type": "text", "text": "ld", "cache_control": {}},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
        {"type": "reasoning", "reasoning": "hm"},
    ]
    (converted,) = engine_messages([AIMessage(content, tool_calls=[CALL])])
    assert converted.content == "Hello, world"
    assert len(converted.extra["tool_calls"]) == 1


def test_blocks_of_other_providers_are_read_or_left_out() -> None:
    """A history begun with another model was refused."""
    content = [
        {"type": "output_text", "text": "It is 5."},
        {"type": "refusal", "refusal": "I cannot say more."},
        {"type": "server_tool_call", "name": "search", "args": {}, "id": "s1"},
        {"type": "server_tool_result", "tool_call_id": "s1", "status": "success"},
        {"type": "non_standard", "value": {"x": 1}},
    ]
    (converted,) = engine_messages([AIMessage(content)])
    assert converted.content == "It is 5.I cannot say more."


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
        {"type": "audio", "base64": "aGk=", "mime_type": "audio/wav"},
        {"type": "file", "base64": "aGk=", "mime_type": "application/pdf"},
    ],
)
@pytest.mark.parametrize("path", ["invoke", "stream", "ainvoke"])
def test_what_is_not_text_is_refused_by_name(block: dict[str, Any], path: str) -> None:
    message = HumanMessage([{"type": "text", "text": "look"}, block])
    model = chat()
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\].content\[1\]=.*text only"):
        if path == "invoke":
            model.invoke([message])
        elif path == "stream":
            list(model.stream([message]))
        else:
            asyncio.run(model.ainvoke([message]))
    assert model.drafter.passes == 0


def test_unknown_roles_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\]='critic'"):
        chat().invoke([ChatMessage("x", role="critic")])


def test_the_models_get_the_conversation() -> None:
    model = chat()
    model.invoke([("system", "Be brief."), ("user", "hi"), ("ai", "yes?"), ("user", "go")])
    for member in (model.drafter, *model.verifiers):
        roles = [m.role for m in member.conversations[-1]]
        assert roles == ["system", "user", "assistant", "user"]


def test_the_answer_can_be_said_again() -> None:
    """An answer carries rounds and statistics; in a history they must not get in the way."""
    model = ChatSafe(drafter=Chatty())
    history: list[Any] = [HumanMessage("hi"), model.invoke("hi"), HumanMessage("and?")]
    assert model.invoke(history).content == TEXT
    assert model.drafter.conversations[-1][1] == Message("assistant", TEXT)
