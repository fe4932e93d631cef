"""An answer as it grows, in the form of LlamaIndex's responses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)

from safe_integrations.config import Tool
from safe_integrations.engine.events import Event, Finished, TextDelta, Verified
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.llama_index.events import Started
from safe_integrations.report import payloads
from safe_integrations.report.result import Result, read_result


@dataclass(frozen=True, slots=True)
class Chunk:
    """The answer so far.

    Attributes:
        text: All of its text.
        delta: What is new of it.
        calls: Tool calls so far; the arguments of the last one may be incomplete JSON text.
        raw: Usage, finish reason and statistics; only in the last chunk.
    """

    text: str
    delta: str
    calls: tuple[ToolCallBlock, ...] = ()
    raw: dict[str, Any] | None = None

    def completion(self, delta: str | None = None) -> CompletionResponse:
        """As the answer to a prompt; `delta` where it streams."""
        return CompletionResponse(text=self.text, delta=delta, raw=self.raw)

    def chat(self, delta: str | None = None) -> ChatResponse:
        """As the answer to messages; `delta` where it streams."""
        blocks: list[ContentBlock] = list(self.calls)
        if self.text or not blocks:
            blocks.insert(0, TextBlock(text=self.text))
        # also where core, where it streams structured output, and tracers look for them
        calls = [_openai(call) for call in self.calls]
        extra = {"tool_calls": calls} if calls else {}
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)
        return ChatResponse(message=message, delta=delta, raw=self.raw)


class Answer:
    """Folds engine events into chunks. At least one comes out: the last.

    Args:
        model: Name of the ensemble.
        tools: The tools that were offered.
    """

    def __init__(self, model: str, tools: Iterable[Tool]) -> None:
        self._model = model
        self._rounds: list[Any] = []
        self._text = ""
        self._calls: list[ToolCallBlock] = []
        self._stream = None
        if tools:
            from safe_integrations.calls.stream import ToolCallStream

            self._stream = ToolCallStream(tools)

    def take(self, event: Event | Started) -> Chunk | None:
        """Takes in an event; returns a chunk where there is something new to show."""
        match event:
            case Verified():
                self._rounds.append(payloads.round_of(event))
            case TextDelta():
                before = len(self._text)
                changed = self._add(event.text)
                if changed:
                    return Chunk(self._text, self._text[before:], tuple(self._calls))
            case Finished():
                return self._last(event)
        return None

    def _add(self, text: str) -> bool:
        if self._stream is None:
            self._text += text
            return True
        return self._take(self._stream.push(text))

    def _take(self, pieces: Iterable[Any]) -> bool:
        """Takes in what the tool call stream gives; whether there was anything."""
        changed = False
        for piece in pieces:
            changed = True
            if isinstance(piece, str):
                self._text += piece
            elif piece.id is not None:
                self._calls.append(_block(piece.id, piece.name, piece.arguments))
            else:
                call = self._calls[-1]
                arguments = f"{call.tool_kwargs}{piece.arguments}"
                self._calls[-1] = _block(call.tool_call_id, call.tool_name, arguments)
        return changed

    def _last(self, event: Finished) -> Chunk:
        before = len(self._text)
        calls: list[ToolCallBlock] = []
        called = False
        if self._stream is not None:
            self._take(self._stream.finish())
            answer = self._stream.answer()
            called = bool(answer.calls)
            calls = [_block(call.id, call.name, call.arguments) for call in answer.calls]
            calls += [_block(c.id, c.name, c.arguments) for c in answer.invalid if c.name]
            # the beginning of a call that was cut off before its name is text after all
            self._text += "".join(c.text for c in answer.invalid if not c.name)
        return Chunk(self._text, self._text[before:], tuple(calls), self._raw(event, called))

    def _raw(self, event: Finished, called: bool) -> dict[str, Any]:
        statistics = event.statistics
        prompt = statistics.models[0].prompt_tokens if statistics.models else 0
        return {
            "model": self._model,
            "finish_reason": "tool_calls" if called else event.finish_reason,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": statistics.tokens,
                "total_tokens": prompt + statistics.tokens,
            },
            "safe": {**payloads.generation_end(event), "rounds": self._rounds},
        }


def result_of(response: ChatResponse | CompletionResponse) -> Result:
    """How an answer was made, and where each piece of it comes from; notebooks show it in colours.

    Raises:
        InvalidArgumentError: It is not the answer of a `SafeLLM`, or a chunk but the last.
    """
    error = InvalidArgumentError(
        "response", response, "pass an answer of SafeLLM, or the last chunk of a stream"
    )
    safe = response.raw.get("safe") if isinstance(response.raw, dict) else None
    return read_result((safe or {}).get("rounds"), safe, error)


def _openai(call: ToolCallBlock) -> dict[str, Any]:
    written = call.tool_kwargs
    arguments = written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
    function = {"name": call.tool_name, "arguments": arguments}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def _block(call_id: str | None, name: str, arguments: dict[str, Any] | str) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments)
