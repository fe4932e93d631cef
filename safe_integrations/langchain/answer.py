"""An answer as message chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from langchain_core.messages import AIMessageChunk, BaseMessage, ToolCallChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.json import parse_partial_json

from safe_integrations.adapters.answer import Answer, Begun, End, InvalidToolCall, ToolCallDelta
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report.result import Result, read_result

PROVIDER: Final = "safe"
"""How LangChain and its tracers call this package."""

CLOSED: Final = "closed"
"""Key, in `response_metadata`, of what max_tokens wrote to bring a structure to its end."""

VIOLATION: Final = "schema_violation"
"""Key, in `response_metadata`, of which part of a schema a finished answer or call breaks."""

REASONING: Final = "reasoning_content"
"""Key, in `additional_kwargs`, of what the models wrote in front of the answer, as LangChain's own
integrations have it: `content_blocks` makes a reasoning block of it."""

METADATA: Final = "safe"
"""Key of the rounds in `additional_kwargs`, and in `response_metadata` of a list of statistics: one
entry per answer, because LangChain adds messages up, and cannot add up fractions."""


class Chunks:
    """One answer as it grows, in chunks.

    Everything is said once: chunks add up, and LangChain would add up repetitions.

    Args:
        model_name: Name of the ensemble.
        options: How the answer is made.
        attach_rounds: Whether the message carries the rounds.
    """

    def __init__(self, model_name: str, options: GenerationConfig, attach_rounds: bool) -> None:
        self._model_name = model_name
        self._answer = Answer(options, attach_rounds)
        self._told: dict[str, int] = {}  # ids of the calls that have begun -> their numbers

    def take(self, event: Event | Begun) -> Iterator[ChatGenerationChunk]:
        """What an event adds to the message."""
        delta = self._answer.take(event)
        if delta is None:
            return
        end = delta.end
        calls = [self._call(call) for call in delta.calls]
        calls += [self._invalid(call) for call in (() if end is None else end.invalid)]
        kwargs: dict[str, Any] = {}
        if self._answer.rounds:
            kwargs[METADATA], self._answer.rounds = self._answer.rounds, []
        if delta.reasoning:
            kwargs[REASONING] = delta.reasoning
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content=delta.text,
                tool_call_chunks=calls,
                additional_kwargs=kwargs,
                **({} if end is None else self._last(end)),
            ),
            generation_info=None if end is None else {"finish_reason": end.finish_reason},
        )

    def _last(self, end: End) -> dict[str, Any]:
        usage = UsageMetadata(
            input_tokens=end.prompt_tokens,
            output_tokens=end.tokens,
            total_tokens=end.prompt_tokens + end.tokens,
            input_token_details=InputTokenDetails(cache_read=end.cached_tokens),
        )
        if end.reasoning_tokens:
            usage["output_token_details"] = OutputTokenDetails(reasoning=end.reasoning_tokens)
        return {
            "usage_metadata": usage,
            "response_metadata": {
                "model_name": self._model_name,
                "model_provider": PROVIDER,
                "finish_reason": end.finish_reason,
                METADATA: [end.payload],
                **({} if end.closed is None else {CLOSED: asdict(end.closed)}),
                **({} if end.violation is None else {VIOLATION: end.violation}),
            },
            "chunk_position": "last",
        }

    def _call(self, call: ToolCallDelta) -> ToolCallChunk:
        if call.id is not None:
            self._told[call.id] = call.number
        return tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.number)

    def _invalid(self, call: InvalidToolCall) -> ToolCallChunk:
        """Makes sure that LangChain, which mends broken JSON, does not take it for a call."""
        written = call.arguments if call.name else call.text
        broken = _unmendable(written)
        number = self._told.get(call.id)
        if number is not None:  # its beginning has been told already
            return tool_call_chunk(args=broken.removeprefix(written), index=number)
        number = self._told[call.id] = max(self._told.values(), default=-1) + 1
        return tool_call_chunk(name=call.name, args=broken, id=call.id, index=number)


def result_of(message: BaseMessage) -> Result:
    """How an answer was made, from the message that carries it; a notebook shows it as a picture.

    Args:
        message: An answer of `ChatSafe`, or its chunks added up.

    Raises:
        InvalidArgumentError: The message carries no rounds.
    """
    error = InvalidArgumentError(
        "message", message, "pass a whole answer of ChatSafe(attach_rounds=True)"
    )
    rounds = message.additional_kwargs.get(METADATA)
    end = message.response_metadata.get(METADATA)
    if not isinstance(end, list) or len(end) != 1:
        raise error
    return read_result(rounds, end[0], error)


def _unmendable(arguments: str) -> str:
    """Broken arguments, broken further where a lenient parser would make an object of them.

    A closing bracket that nothing has opened does it. In a string the quote comes first; one that
    is escaped there does not end the string, the next one does.
    """
    texts = (arguments + suffix for suffix in ("", "]", "}", '"]', '"}', '""]', '""}'))
    return next(text for text in texts if text and not _mends(text))


def _mends(text: str) -> bool:
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False
