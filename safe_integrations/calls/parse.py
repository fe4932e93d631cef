"""Takes calls out of a whole answer (`stream` says which forms are read)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from safe_integrations.calls.scanner import read_call
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import ParsedAnswer, ToolCall, new_call_id
from safe_integrations.config import Tool


def parse(
    text: str,
    tools: Iterable[Tool],
    *,
    native: Callable[[str], Mapping[str, Any] | None] | None = None,
    new_id: Callable[[], str] = new_call_id,
) -> ParsedAnswer:
    """Takes the calls out of a whole answer.

    Args:
        text: What the model wrote.
        tools: The tools that were offered. Without any, all text is text.
        native: Reads a model's own format: text in, a message in OpenAI's form out (`content`,
            `tool_calls`), or None. It is asked first; a ValueError counts as None. A
            tokenizer's `parse_response` fits.
        new_id: Where ids of calls come from.
    """
    tools = tuple(tools)
    if native is not None and tools:
        answer = _ask(native, text, new_id)
        if answer is not None:
            return answer
    stream = ToolCallStream(tools, new_id=new_id)
    stream.push(text)
    stream.finish()
    return stream.answer()


def _ask(
    native: Callable[[str], Mapping[str, Any] | None], text: str, new_id: Callable[[], str]
) -> ParsedAnswer | None:
    try:
        message = native(text) or {}
        found = [read_call(call.get("function", call)) for call in message.get("tool_calls") or ()]
    except ValueError:
        return None
    if not found:
        return None
    calls = tuple(ToolCall(new_id(), name, arguments) for name, arguments, _ in found)
    return ParsedAnswer(message.get("content") or "", calls)
