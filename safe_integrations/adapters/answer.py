"""What an answer is: the one fold of the engine's events that both frameworks show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from safe_integrations.adapters.checked import checked
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import InvalidToolCall as InvalidToolCall
from safe_integrations.calls.types import ToolCall
from safe_integrations.calls.types import ToolCallDelta as ToolCallDelta
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Event, Finished, TextDelta, Verified
from safe_integrations.report import payloads


@dataclass(frozen=True, slots=True)
class End:
    """What is known of an answer when it is over.

    Attributes:
        calls: The calls that are whole, and so may be carried out.
        invalid: What was cut off inside, or is broken otherwise. Never to be carried out.
        violation: Which part of a schema the answer or a call breaks, where that could only be
            checked; None where none is broken.
        finish_reason: `tool_calls` where the answer ended by itself and holds calls that are
            whole, else `stop`; `length` where it was cut off by max_tokens or a full window.
        prompt_tokens: Length of the prompt, in the drafter's tokens.
        cached_tokens: Of these, not computed again.
        tokens: Length of the answer, in the drafter's tokens.
        payload: `safe_generation_end` of docs/events.md.
    """

    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]
    violation: str | None
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

    Attributes:
        rounds: What happened in each round so far, as messages carry it.
    """

    def __init__(self, options: GenerationConfig) -> None:
        self.rounds: list[Any] = []
        self._options = options
        self._ids: dict[int, str] = {}  # numbers of calls -> their ids
        self._written: dict[str, str] = {}  # ids of calls -> their arguments
        self._stream = ToolCallStream(options.tools if options.tool_choice != "none" else ())

    def take(self, event: Event) -> Delta | None:
        """Takes in an event; returns what is new, if anything is."""
        match event:
            case Verified():
                self.rounds.append(payloads.round_of(event))
            case TextDelta():
                pieces = self._stream.push(event.text)
                return self._delta(pieces, None) if pieces else None
            case Finished():
                return self._delta(self._stream.finish(), event)
        return None

    def _end(self, event: Finished) -> End:
        answer, violation = checked(self._stream.answer(), self._options, self._written)
        drafter = event.statistics.models[:1]
        called = event.finish_reason == "stop" and answer.calls and not answer.invalid
        return End(
            answer.calls,
            answer.invalid,
            violation,
            "tool_calls" if called else event.finish_reason,
            sum(model.prompt_tokens for model in drafter),
            sum(model.reused_tokens for model in drafter),
            event.statistics.tokens,
            payloads.generation_end(event),
        )

    def _delta(self, pieces: list[str | ToolCallDelta], last: Finished | None) -> Delta:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = tuple(piece for piece in pieces if isinstance(piece, ToolCallDelta))
        for call in calls:
            call_id = self._ids.setdefault(call.number, call.id or "")
            self._written[call_id] = self._written.get(call_id, "") + call.arguments
        return Delta(text, calls, None if last is None else self._end(last))
