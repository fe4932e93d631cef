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
        Message("assistant", "I look\nit up.", {"tool_calls": [call]})
    ]


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
