"""LlamaIndex messages and tools as the engine takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
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
from pydantic import BaseModel

from safe_integrations.adapters.request import openai_function, schema_of
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


def tool_spec(tool: object) -> dict[str, Any]:
    """A tool in the form of OpenAI's interface.

    Raises:
        InvalidArgumentError: It is no tool of LlamaIndex.
    """
    if not isinstance(tool, BaseTool):
        raise InvalidArgumentError(
            "tools", tool, 'pass tools of LlamaIndex, or {"type": "function", "function": {...}}'
        )
    spec: dict[str, Any] = tool.metadata.to_openai_tool(skip_length_check=True)
    if tool.metadata.fn_schema is not None:
        parameters = spec["function"]["parameters"]
        parameters |= {
            key: part
            for key, part in schema_of(tool.metadata.fn_schema).items()
            if key in parameters
        }
    return spec


def _message(message: ChatMessage, index: int) -> Message:
    extra = {k: message.additional_kwargs[k] for k in _PASSED_ON if k in message.additional_kwargs}
    calls = [
        _call(block.tool_call_id, block.tool_name, block.tool_kwargs)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ] or [
        _openai_call(call, f"messages[{index}].additional_kwargs['tool_calls'][{i}]")
        for i, call in enumerate(message.additional_kwargs.get("tool_calls") or ())
    ]
    if calls:
        extra["tool_calls"] = calls
    thoughts = [b.content or "" for b in message.blocks if isinstance(b, ThinkingBlock)]
    if any(thoughts):
        extra["reasoning_content"] = "\n".join(thoughts)
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


def _openai_call(call: Any, argument: str) -> dict[str, Any]:
    """A tool call that stands beside the blocks: older messages keep it as OpenAI sent it."""
    given = call.model_dump() if isinstance(call, BaseModel) else call
    function = openai_function(given)
    if function is None or "arguments" not in function:
        remedy = 'pass {"id": ..., "function": {"name": ..., "arguments": ...}}'
        raise InvalidArgumentError(argument, call, remedy)
    return _call(given.get("id"), function["name"], function["arguments"])


def _call(call_id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    """A tool call in the form that chat templates read."""
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": call_id or "", "function": function}
