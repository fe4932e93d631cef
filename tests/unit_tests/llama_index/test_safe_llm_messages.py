"""Messages and tools on their way to the engine."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from safe_integrations.adapters.request import read_tools
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.llama_index.messages import engine_messages, tool_spec
from safe_integrations.messages import Message


@pytest.mark.parametrize("role", list(MessageRole))
def test_every_role_has_one_of_ours(role: MessageRole) -> None:
    (message,) = engine_messages([ChatMessage("x", role=role)])
    expected = {"developer": "system", "chatbot": "assistant", "model": "assistant"}
    expected |= {"function": "tool"}
    assert message.role == expected.get(role.value, role.value)


def test_blocks_become_text_and_tool_calls() -> None:
    blocks = [
        ThinkingBlock(content="hm"),
        TextBlock(text="I look"),
        TextBlock(text="it up."),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
        ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Köln"}),
    ]
    call = {
        "type": "function",
        "id": "1",
        "function": {"name": "weather", "arguments": {"city": "Köln"}},
    }
    assert engine_messages([ChatMessage(role="assistant", blocks=blocks)]) == [
        Message("assistant", "I look\nit up.", {"tool_calls": [call], "reasoning_content": "hm"})
    ]


class _Function(BaseModel):
    name: str = "weather"
    arguments: str = '{"city": "Köln"}'


class _Call(BaseModel):
    """A call as OpenAI's library gives it."""

    id: str = "1"
    type: str = "function"
    function: _Function = _Function()


def test_calls_beside_the_blocks_are_read_and_not_twice() -> None:
    """Older and hand-written histories keep them there: the tool's result stood orphaned."""
    function = {"name": "weather", "arguments": {"city": "Köln"}}
    call = {"type": "function", "id": "1", "function": function}
    expected = [Message("assistant", "", {"tool_calls": [call]})]
    block = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Köln"})
    for beside in (_Call(), _Call().model_dump(), call):
        message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [beside]})
        assert engine_messages([message]) == expected
        message.blocks = [block]
        assert engine_messages([message]) == expected
    empty = ChatMessage("x", role="assistant", additional_kwargs={"tool_calls": None})
    assert engine_messages([empty]) == [Message("assistant", "x")]


@pytest.mark.parametrize("call", ["weather", {"name": "weather"}, {"function": {"name": "x"}}])
def test_calls_that_cannot_be_read_are_refused_by_place(call: object) -> None:
    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [_Call(), call]})
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\].*\['tool_calls'\]\[1\]=.*pass"):
        engine_messages([message])


def test_a_tool_result_keeps_its_call_id_and_nothing_unknown_passes() -> None:
    message = ChatMessage("22 °C", role="tool")
    message.additional_kwargs = {"tool_call_id": "1", "name": "weather", "secret": "x"}
    assert engine_messages([message]) == [
        Message("tool", "22 °C", {"name": "weather", "tool_call_id": "1"})
    ]


def test_a_message_without_content_is_empty_text() -> None:
    assert engine_messages([ChatMessage(role="assistant")]) == [Message("assistant", "")]


def test_images_are_refused_by_place_and_kind() -> None:
    image = ChatMessage(role="user", blocks=[TextBlock(text="x"), ImageBlock(image=b"")])
    with pytest.raises(InvalidArgumentError, match=r"messages\[1\].blocks\[1\]='image'"):
        engine_messages([ChatMessage("x"), image])


def test_tools_are_read_in_every_form() -> None:
    def weather(city: str) -> str:
        """Tells the weather."""
        return city

    (tool,) = read_tools([FunctionTool.from_defaults(weather)], tool_spec)
    assert tool.name == "weather"
    assert tool.parameters["required"] == ["city"]
    assert "Tells the weather." in tool.description
    with pytest.raises(InvalidArgumentError, match="pass tools of LlamaIndex"):
        read_tools(["weather"], tool_spec)
