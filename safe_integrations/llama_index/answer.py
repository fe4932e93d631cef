"""An answer as it grows, in the form of LlamaIndex's responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from safe_integrations.adapters.answer import Answer, Begun, End
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event
from safe_integrations.errors import (
    IncompleteAnswerError,
    InvalidArgumentError,
    SchemaViolationError,
)
from safe_integrations.report.result import Result, read_result

INVALID: Final = "invalid_tool_calls"
"""Key, in an answer's `raw`, of the calls in it that are not whole."""

CLOSED: Final = "closed"
"""Key, in an answer's `raw`, of what max_tokens wrote to bring a structure to its end."""

VIOLATION: Final = "schema_violation"
"""Key, in an answer's `raw`, of which part of a schema it or a call breaks."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The answer so far.

    Attributes:
        text: All of its text.
        delta: What is new of it.
        calls: Tool calls so far, their arguments as JSON text that may be incomplete; in the last
            chunk those that are whole, with their arguments.
        raw: Usage, finish reason and statistics; only in the last chunk.
        reasoning: All that the models wrote in front of the answer.
        reasoning_delta: What is new of it.
    """

    text: str
    delta: str
    calls: tuple[ToolCallBlock, ...] = ()
    raw: dict[str, Any] | None = None
    reasoning: str = ""
    reasoning_delta: str = ""

    def completion(self, delta: str | None = None) -> CompletionResponse:
        """As the answer to a prompt; `delta` where it streams."""
        return CompletionResponse(text=self.text, delta=delta, raw=self.raw)

    def chat(self, delta: str | None = None) -> ChatResponse:
        """As the answer to messages; `delta` where it streams."""
        blocks: list[ContentBlock] = list(self.calls)
        if self.text or not blocks:
            blocks.insert(0, TextBlock(text=self.text))
        if self.reasoning:
            blocks.insert(0, ThinkingBlock(content=self.reasoning))
        # also where core, where it streams structured output, and tracers look for them
        calls = [_openai(call) for call in self.calls]
        extra = {"tool_calls": calls} if calls else {}
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)
        # where core's agents look for it
        beside = {"thinking_delta": self.reasoning_delta} if self.reasoning_delta else {}
        return ChatResponse(message=message, delta=delta, raw=self.raw, additional_kwargs=beside)


class Chunks:
    """An answer as it grows, in chunks. At least one comes out: the last.

    Args:
        model: Name of the ensemble.
        options: How the answer is made.
        attach_rounds: Whether the last chunk carries the rounds.
    """

    def __init__(self, model: str, options: GenerationConfig, attach_rounds: bool) -> None:
        self._model = model
        self._most = None if options.parallel_tool_calls else 1
        self._answer = Answer(options, attach_rounds)
        self._text = ""
        self._reasoning = ""
        self._calls: list[ToolCallBlock] = []

    def take(self, event: Event | Begun) -> Chunk | None:
        """Takes in an event; returns a chunk where there is something new to show."""
        delta = self._answer.take(event)
        if delta is None:
            return None
        self._text += delta.text
        self._reasoning += delta.reasoning
        for piece in delta.calls:
            if piece.id is not None:
                self._calls.append(_block(piece.id, piece.name or "", piece.arguments))
            else:
                call = self._calls[-1]
                arguments = f"{call.tool_kwargs}{piece.arguments}"
                self._calls[-1] = _block(call.tool_call_id, call.tool_name, arguments)
        if delta.end is not None and delta.end.violation is not None and not delta.end.invalid:
            raise SchemaViolationError(delta.end.violation)
        if delta.end is None:
            so_far = (tuple(self._calls), None, self._reasoning, delta.reasoning)
            return Chunk(self._text, delta.text, *so_far)
        calls = delta.end.calls[: self._most]  # a grammar keeps them to it, where there is one
        whole = tuple(_block(call.id, call.name, call.arguments) for call in calls)
        return Chunk(self._text, delta.text, whole, self._raw(delta.end), self._reasoning)

    def _raw(self, end: End) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "model": self._model,
            "finish_reason": end.finish_reason,
            "usage": {
                "prompt_tokens": end.prompt_tokens,
                "completion_tokens": end.tokens,
                "total_tokens": end.prompt_tokens + end.tokens,
            },
            "safe": dict(end.payload),
        }
        if self._answer.rounds is not None:
            raw["safe"]["rounds"] = self._answer.rounds
        if self._reasoning:
            raw["reasoning"] = self._reasoning
        if end.closed is not None:
            raw[CLOSED] = asdict(end.closed)
        if end.violation is not None:
            raw[VIOLATION] = end.violation
        if end.invalid:
            raw[INVALID] = [asdict(call) for call in end.invalid]
        return raw


def selections(response: ChatResponse, on_missing: bool, on_broken: bool) -> list[ToolSelection]:
    """The calls of an answer. While it streams, their arguments are read as far as they go.

    A call that was cut off, or is broken otherwise, is no call. Where that is no error either, a
    selection stands for it that no tool answers to, and whose name says what is wrong: agents give
    that back to the model.

    Args:
        response: The answer, or a part of it while it streams.
        on_missing: Whether an answer without a call is an error.
        on_broken: Whether one with a broken call is.

    Raises:
        IncompleteAnswerError: There is a broken call, or none where the answer was cut off.
        SchemaViolationError: A call breaks a part of its schema that could only be checked.
        ValueError: There is no call.
    """
    raw = response.raw if isinstance(response.raw, dict) else {}
    cut = raw.get("finish_reason") == "length"
    calls = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
    broken = [(call, _complaint(call, cut)) for call in raw.get(INVALID, ())]
    if broken and on_broken and raw.get(VIOLATION):
        raise SchemaViolationError(raw[VIOLATION])
    if broken and on_broken:
        closed = raw.get(CLOSED)
        raise IncompleteAnswerError(
            "; ".join(complaint for _, complaint in broken),
            None if closed is None else json.loads(closed["text"]),
        )
    if on_missing and not calls:
        wrote = f"the model called no tool; it wrote {response.message.content!r}"
        if cut:
            raise IncompleteAnswerError(f"{wrote}, and was cut off: raise max_tokens")
        raise ValueError(wrote)
    found = [(c.tool_call_id or "", c.tool_name, _arguments(c.tool_kwargs)) for c in calls]
    found += [(call["id"], f"({complaint})", {}) for call, complaint in broken]
    return [ToolSelection(tool_id=i, tool_name=name, tool_kwargs=k) for i, name, k in found]


def with_closed(response: ChatResponse) -> ChatResponse:
    """An answer whose call only stands for an object, where one that was closed is wanted, too.

    To carry it out would be another matter: what max_tokens has closed is not what was meant.
    """
    raw = response.raw if isinstance(response.raw, dict) else {}
    closed = raw.get(CLOSED)
    if closed is None or closed["on_length"] == "error" or INVALID not in raw:
        return response
    calls = [_block(c["id"], c["name"], json.loads(closed["text"])) for c in raw[INVALID]]
    kept, message = {key: raw[key] for key in raw if key != INVALID}, response.message
    reasoning = "".join(b.content or "" for b in message.blocks if isinstance(b, ThinkingBlock))
    return Chunk(message.content or "", "", tuple(calls), kept, reasoning).chat(response.delta)


def _complaint(call: Mapping[str, Any], cut: bool) -> str:
    named = f"the call of {call['name']}" if call["name"] else "a call"
    if call["error"].startswith("cut off"):
        return f"{named} was {call['error']}"
    if cut and call["cut_off"]:
        return f"{named} was cut off: raise max_tokens"
    if " the schema at " in call["error"]:
        return f"{named} is invalid: {call['error']}"
    return f"{named} is broken, maybe by a stop string: {call['error']}"


def result_of(response: ChatResponse | CompletionResponse) -> Result:
    """How an answer was made, and where each piece of it comes from; notebooks show it in colours.

    Raises:
        InvalidArgumentError: It carries no rounds.
    """
    remedy = "pass an answer of SafeLLM(attach_rounds=True), or the last chunk of a stream"
    error = InvalidArgumentError("response", response, remedy)
    safe = response.raw.get("safe") if isinstance(response.raw, dict) else None
    return read_result((safe or {}).get("rounds"), safe, error)


def _openai(call: ToolCallBlock) -> dict[str, Any]:
    written = call.tool_kwargs
    arguments = written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
    function = {"name": call.tool_name, "arguments": arguments}
    return {"id": call.tool_call_id, "type": "function", "function": function}


def _block(call_id: str | None, name: str, arguments: dict[str, Any] | str) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments)


def _arguments(written: dict[str, Any] | str) -> dict[str, Any]:
    """A call's arguments, as far as they can be read."""
    if not isinstance(written, str):
        return written
    try:
        read = parse_partial_json(written)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}
