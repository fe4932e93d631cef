"""Engine events become message chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from langchain_core.messages import AIMessageChunk, BaseMessage, ToolCallChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.json import parse_partial_json

from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import InvalidToolCall, ToolCallDelta
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event, Finished, Statistics, TextDelta, Verified
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report import payloads
from safe_integrations.report.result import Result, read_result

PROVIDER: Final = "safe"
"""How LangChain and its tracers call this package."""

METADATA: Final = "safe"
"""Key of the rounds in `additional_kwargs` and of the statistics in `response_metadata`."""


class Answer:
    """One answer as it grows.

    Everything is said once: chunks add up, and LangChain would add up repetitions.

    Args:
        model_name: Name of the ensemble.
        options: How the answer is made.
        rounds: Whether the message carries the rounds.
    """

    def __init__(self, model_name: str, options: GenerationConfig, *, rounds: bool) -> None:
        self._model_name = model_name
        self._stream = ToolCallStream(options.tools if options.tool_choice != "none" else ())
        self._keeps_rounds = rounds
        self._rounds: list[Any] = []
        self._calls: dict[int, str] = {}  # number of each call -> its id

    def chunks(self, event: Event) -> Iterator[ChatGenerationChunk]:
        """What an event adds to the message."""
        if isinstance(event, Verified) and self._keeps_rounds:
            self._rounds.append(payloads.round_of(event))
        elif isinstance(event, TextDelta):
            content, calls = self._read(self._stream.push(event.text))
            if content or calls:
                yield self._chunk(content=content, tool_call_chunks=calls)
        elif isinstance(event, Finished):
            yield self._last(event)

    def _read(self, pieces: list[str | ToolCallDelta]) -> tuple[str, list[ToolCallChunk]]:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = []
        for piece in pieces:
            if isinstance(piece, ToolCallDelta):
                if piece.id is not None:
                    self._calls[piece.number] = piece.id
                calls.append(
                    tool_call_chunk(
                        name=piece.name, args=piece.arguments, id=piece.id, index=piece.number
                    )
                )
        return text, calls

    def _last(self, event: Finished) -> ChatGenerationChunk:
        content, calls = self._read(self._stream.finish())
        answer = self._stream.answer()
        calls += [self._invalid(call) for call in answer.invalid]
        called = event.finish_reason == "stop" and bool(answer.calls)
        return self._chunk(
            content=content,
            tool_call_chunks=calls,
            usage_metadata=_usage(event.statistics),
            response_metadata={
                "model_name": self._model_name,
                "model_provider": PROVIDER,
                "finish_reason": "tool_calls" if called else event.finish_reason,
                METADATA: payloads.generation_end(event),
            },
            chunk_position="last",
        )

    def _invalid(self, call: InvalidToolCall) -> ToolCallChunk:
        """Makes sure that LangChain, which mends broken JSON, does not take it for a call."""
        for number, call_id in self._calls.items():
            if call_id == call.id:  # its beginning has been told already
                rest = _unmendable(call.arguments).removeprefix(call.arguments)
                return tool_call_chunk(args=rest, index=number)
        number = max(self._calls, default=-1) + 1
        self._calls[number] = call.id
        args = _unmendable(call.arguments if call.name else call.text)
        return tool_call_chunk(name=call.name, args=args, id=call.id, index=number)

    def _chunk(self, **fields: Any) -> ChatGenerationChunk:
        kwargs: dict[str, Any] = {}
        if self._rounds:
            kwargs[METADATA], self._rounds = self._rounds, []
        return ChatGenerationChunk(message=AIMessageChunk(additional_kwargs=kwargs, **fields))


def result_of(message: BaseMessage) -> Result:
    """How an answer was made, from the message that carries it; a notebook shows it as a picture.

    Args:
        message: An answer of `ChatSafe`, or its chunks added up.

    Raises:
        InvalidArgumentError: The message carries no rounds.
    """
    error = InvalidArgumentError(
        "message", message, "pass a whole answer of ChatSafe, made with attach_rounds=True"
    )
    rounds = message.additional_kwargs.get(METADATA)
    return read_result(rounds, message.response_metadata.get(METADATA), error)


def _unmendable(arguments: str) -> str:
    """Broken arguments, broken further where a lenient parser would make an object of them."""
    texts = [arguments + suffix for suffix in ("", "]", "}", '"]', '"}')]
    return next((text for text in texts if text and not _mends(text)), arguments)


def _mends(text: str) -> bool:
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False


def _usage(statistics: Statistics) -> UsageMetadata:
    """Tokens as the drafter counts them."""
    drafter = statistics.models[0]
    return UsageMetadata(
        input_tokens=drafter.prompt_tokens,
        output_tokens=statistics.tokens,
        total_tokens=drafter.prompt_tokens + statistics.tokens,
        input_token_details=InputTokenDetails(cache_read=drafter.reused_tokens),
    )
