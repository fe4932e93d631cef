"""LlamaIndex messages and tools as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import BaseTool

from safe_integrations.config import Tool
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import Message, Role

_ROLES: Final[dict[MessageRole, Role]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_PASSED_ON: Final[tuple[str, ...]] = ("name", "tool_call_id")
_NOT_SAID: Final = (ToolCallBlock, ThinkingBlock, CachePoint)


def engine_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Converts a conversation.

    Raises:
        InvalidArgumentError: A message has content that is not text.
    """
    return [_message(message, i) for i, message in enumerate(messages)]


def engine_tool(tool: object) -> Tool:
    """Converts a tool of LlamaIndex, or one in the form of OpenAI's interface.

    Raises:
        InvalidArgumentError: It is neither.
    """
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, BaseTool):
        tool = tool_spec(tool)
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidArgumentError(
            "tools", tool, 'pass tools of LlamaIndex, or {"type": "function", "function": {...}}'
        )
    keys = ("name", "description", "parameters")
    return Tool(**{key: function[key] for key in keys if function.get(key) is not None})


def tool_spec(tool: BaseTool) -> dict[str, Any]:
    """A tool in the form of OpenAI's interface."""
    spec: dict[str, Any] = tool.metadata.to_openai_tool(skip_length_check=True)
    return spec


def tool_choice(choice: object) -> str:
    """Reads what callers of LLMs pass: a name, `auto`, `any`, or OpenAI's dict with a name."""
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, str) or not choice:
        raise InvalidArgumentError(
            "tool_choice", choice, 'pass "auto", "none", "required" or the name of a tool'
        )
    return "required" if choice == "any" else choice


def _message(message: ChatMessage, index: int) -> Message:
    extra = {k: message.additional_kwargs[k] for k in _PASSED_ON if k in message.additional_kwargs}
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        extra["tool_calls"] = calls
    texts = []
    for i, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif not isinstance(block, _NOT_SAID):
            raise InvalidArgumentError(
                f"messages[{index}].blocks[{i}]",
                block.block_type,
                "these models read text only: remove the block or describe it in words",
            )
    return Message(_ROLES[message.role], "\n".join(texts), extra)


def _call(block: ToolCallBlock) -> dict[str, Any]:
    """A tool call in the form that chat templates read."""
    return {
        "type": "function",
        "id": block.tool_call_id or "",
        "function": {"name": block.tool_name, "arguments": block.tool_kwargs},
    }
