"""What an answer is: the one fold of the engine's events that both frameworks show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import InvalidToolCall as InvalidToolCall
from safe_integrations.calls.types import ToolCall
from safe_integrations.calls.types import ToolCallDelta as ToolCallDelta
from safe_integrations.config import GenerationConfig, JsonSchema
from safe_integrations.engine.events import Event, Finished, TextDelta, Verified
from safe_integrations.report import payloads


@dataclass(frozen=True, slots=True)
class End:
    """What is known of an answer when it is over.

    Attributes:
        calls: The calls that are whole, and so may be carried out.
        invalid: What was cut off inside, or is broken otherwise. Never to be carried out.
        finish_reason: `tool_calls` where the answer ended by itself and holds calls that are
            whole, else `stop`; `length` where it was cut off by max_tokens or a full window.
        prompt_tokens: Length of the prompt, in the drafter's tokens.
        cached_tokens: Of these, not computed again.
        tokens: Length of the answer, in the drafter's tokens.
        payload: `safe_generation_end` of docs/events.md, and `whole`: whether nothing is missing.
            It is so where the answer ended by itself, and where it was cut off behind a call, or
            behind all of the JSON that it had to be.
    """

    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of an answer.

    Attributes:
        text: More of its text.
        calls: More of its calls. A call may yet turn out to be invalid: `end` has the last word.
        end: In the last delta.
    """

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    end: End | None = None


class Answer:
    """An answer as it grows.

    Args:
        options: How it is made. With `tool_choice="none"` all text is text.
        attach_rounds: Whether to note the rounds.

    Attributes:
        rounds: What happened in each round so far, as messages carry it; None if not noted.
    """

    def __init__(self, options: GenerationConfig, attach_rounds: bool) -> None:
        self.rounds: list[Any] | None = [] if attach_rounds else None
        self._is_json = isinstance(options.response_format, JsonSchema)
        self._stream = ToolCallStream(options.tools if options.tool_choice != "none" else ())

    def take(self, event: Event) -> Delta | None:
        """Takes in an event; returns what is new, if anything is."""
        match event:
            case Verified() if self.rounds is not None:
                self.rounds.append(payloads.round_of(event))
            case TextDelta():
                pieces = self._stream.push(event.text)
                return _delta(pieces, None) if pieces else None
            case Finished():
                return _delta(self._stream.finish(), self._end(event))
        return None

    def _end(self, event: Finished) -> End:
        answer = self._stream.answer()
        drafter = event.statistics.models[:1]
        ended = event.finish_reason == "stop"
        called = ended and answer.calls and not answer.invalid
        complete = ended or answer.calls or (self._is_json and _closed(answer.text))
        return End(
            answer.calls,
            answer.invalid,
            "tool_calls" if called else event.finish_reason,
            sum(model.prompt_tokens for model in drafter),
            sum(model.reused_tokens for model in drafter),
            event.statistics.tokens,
            {**payloads.generation_end(event), "whole": bool(complete and not answer.invalid)},
        )


def _closed(text: str) -> bool:
    """Whether a text is JSON that nothing could be added to: `1` may be the beginning of `12`."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, bool) or not isinstance(value, int | float)


def _delta(pieces: list[str | ToolCallDelta], end: End | None) -> Delta:
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return Delta(text, tuple(p for p in pieces if isinstance(p, ToolCallDelta)), end)
