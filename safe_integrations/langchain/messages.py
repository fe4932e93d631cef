"""LangChain messages as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from safe_integrations.errors import InvalidArgumentError
from safe_integrations.messages import ROLES, Message, Role

_SAID: Final = ("text", "text-plain", "output_text", "input_text", "refusal", None)
"""Types of blocks that are text."""

_SAID_ELSEWHERE: Final = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call"}
    | {"thinking", "redacted_thinking", "reasoning", "reasoning_content", "non_standard"}
    | {"server_tool_call", "server_tool_call_chunk", "server_tool_result"}
)
"""Blocks of an assistant's turn that are not part of its text: calls have a field of their own."""


def engine_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Converts a conversation.

    Raises:
        InvalidArgumentError: A message has content that is not text, or an unknown role.
    """
    return [_message(message, i) for i, message in enumerate(messages)]


def _message(message: BaseMessage, index: int) -> Message:
    extra: dict[str, Any] = {"name": message.name} if message.name else {}
    role: Role
    match message:
        case SystemMessage():
            role = "system"
        case HumanMessage():
            role = "user"
        case AIMessage():
            role = "assistant"
            if isinstance(message.additional_kwargs.get("reasoning_content"), str):
                extra["reasoning_content"] = message.additional_kwargs["reasoning_content"]
            calls = _calls(message)
            if calls:
                extra["tool_calls"] = calls
        case ToolMessage():
            role = "tool"
            extra["tool_call_id"] = message.tool_call_id
        case FunctionMessage():
            role = "tool"
        case ChatMessage() if message.role in ROLES:
            role = message.role  # type: ignore[assignment]
        case _:
            given = getattr(message, "role", message.type)
            raise InvalidArgumentError(
                f"messages[{index}]", given, f"unknown role; use one of {', '.join(ROLES)}"
            )
    return Message(role, _text(message.content, f"messages[{index}].content"), extra)


def _calls(message: AIMessage) -> list[dict[str, Any]]:
    """Tool calls in the form that chat templates read."""
    wrong = [(c["name"], c["args"], c["id"]) for c in message.invalid_tool_calls]
    right = [(c["name"], c["args"], c["id"]) for c in message.tool_calls]
    return [
        {
            "type": "function",
            "id": call_id or "",
            "function": {"name": name or "", "arguments": {} if args is None else args},
        }
        for name, args, call_id in [*right, *wrong]
    ]


def _text(content: str | Sequence[str | Mapping[str, Any]], where: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_block_text(block, f"{where}[{i}]") for i, block in enumerate(content))


def _block_text(block: str | Mapping[str, Any], where: str) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    text = block.get("refusal" if kind == "refusal" else "text")
    if isinstance(text, str) and kind in _SAID:
        return text
    if kind in _SAID_ELSEWHERE:
        return ""
    raise InvalidArgumentError(
        where, kind, "these models read text only: remove the block or describe it in words"
    )
