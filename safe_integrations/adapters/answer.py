"""What an answer is: the one fold of the engine's events that both frameworks show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from safe_integrations.adapters.checked import checked
from safe_integrations.calls.form import Form
from safe_integrations.calls.forms import HERMES
from safe_integrations.calls.stream import ToolCallStream
from safe_integrations.calls.types import InvalidToolCall as InvalidToolCall
from safe_integrations.calls.types import ToolCall
from safe_integrations.calls.types import ToolCallDelta as ToolCallDelta
from safe_integrations.config import GenerationConfig, JsonSchema
from safe_integrations.engine.events import (
    Event,
    Finished,
    ModelStatistics,
    Reasoned,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.report import payloads
from safe_integrations.report.verdicts import why_closed


@dataclass(frozen=True, slots=True)
class Closed:
    """What max_tokens wrote of an answer, to bring a structure to its end.

    Attributes:
        at: From where on, in bytes.
        cut: JSON pointers of the values that it cut or made up.
        on_length: What is to become of it (`GenerationConfig.on_length`).
        text: The object that came of it, as JSON text: the answer, or the arguments of the call
            that was cut. Valid, and not what was meant.
    """

    at: int
    cut: list[str]
    on_length: Literal["error", "close"]
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """What is known of an answer when it is over.

    Attributes:
        calls: The calls that are whole, and so may be carried out.
        invalid: What was cut off inside, or is broken otherwise. Never to be carried out.
        closed: What max_tokens wrote of it; None where it ended by itself or broke off.
        violation: Which part of a schema the answer or a call breaks, where that could only be
            checked; None where none is broken.
        finish_reason: `tool_calls` where the answer ended by itself and holds calls that are
            whole, else `stop`; `length` where it was cut off by max_tokens or a full window.
        prompt_tokens: Length of the prompt, in the drafter's tokens.
        cached_tokens: Of these, not computed again.
        tokens: Length of the answer and of the reasoning, in the drafter's tokens.
        reasoning_tokens: Of these, the reasoning.
        payload: `safe_generation_end` of docs/events.md, and `whole`: whether nothing is missing.
            It is so where the answer ended by itself, and where it was cut off behind a call, or
            behind all of the JSON that it had to be; never where max_tokens wrote some of it.
    """

    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]
    closed: Closed | None
    violation: str | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    reasoning_tokens: int
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Begun:
    """The models are loaded, and about to begin: comes before all events of the engine.

    Attributes:
        models: Their names, drafter first.
        mode: How they are merged.
        unit: What is judged (`EnsembleConfig.unit`).
        form: How calls are written.
    """

    models: tuple[str, ...]
    mode: str
    unit: str
    form: Form


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of an answer.

    Attributes:
        text: More of its text.
        calls: More of its calls. A call may yet turn out to be invalid: `end` has the last word.
        end: In the last delta.
        reasoning: More of what the models write in front of the answer.
    """

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    end: End | None = None
    reasoning: str = ""


class Answer:
    """An answer as it grows.

    Of what max_tokens closes, calls and text end where the models' own words do: a path that was
    cut short is valid JSON, and a wrong path. Only text is handed out as it was closed, and only
    with `on_length="close"`.

    Args:
        options: How it is made. With `tool_choice="none"` all text is text.
        attach_rounds: Whether to note the rounds.

    Attributes:
        rounds: What happened in each round so far, as messages carry it; None if not noted.
    """

    def __init__(self, options: GenerationConfig, attach_rounds: bool) -> None:
        self.rounds: list[Any] | None = [] if attach_rounds else None
        self._options = options
        self._form = HERMES
        self._models: tuple[str, ...] = ()
        self._stream = self._reader()
        self._text = ""
        self._asked: list[ModelStatistics] = []  # the drafter's, of the prompt without reasoning
        self._closed_at: int | None = None  # in bytes
        self._written: dict[str, str] = {}  # ids of calls -> their arguments
        self._ids: dict[int, str] = {}  # numbers of calls -> their ids

    def _reader(self) -> ToolCallStream:
        choice = self._options.tool_choice
        tools = self._options.tools if choice != "none" else ()
        return ToolCallStream(tools, self._form, lenient=choice == "auto")

    def take(self, event: Event | Begun) -> Delta | None:
        """Takes in an event; returns what is new, if anything is."""
        match event:
            case Begun():
                self._form = event.form
                self._models = event.models
                self._stream = self._reader()
            case Verified():
                if self.rounds is not None:
                    self.rounds.append(payloads.round_of(event, self._models))
                if self._closed_at is None:
                    closed = (p.start for p in event.pieces if p.verdict is Verdict.CLOSED)
                    self._closed_at = next(closed, None)
            case TextDelta():
                before, self._text = len(self._text), self._text + event.text
                pieces = self._stream.push(self._own[before:])
                return self._delta(pieces, None) if pieces else None
            case Reasoned(event=TextDelta(text)):
                return Delta(reasoning=text)
            case Reasoned(event=Finished() as finished):
                self._asked = finished.statistics.models[:1]
            case Finished():
                pieces = self._stream.finish()
                if self._keeps_closed:
                    pieces.append(self._text[len(self._own) :])
                return self._delta(pieces, event)
        return None

    @property
    def _own(self) -> str:
        """The text up to where max_tokens wrote on."""
        if self._closed_at is None:
            return self._text
        return self._text.encode()[: self._closed_at].decode(errors="ignore")

    @property
    def _keeps_closed(self) -> bool:
        wanted = self._options.response_format is not None and self._options.on_length == "close"
        return wanted and not self._text.startswith(self._form.opening)

    def _delta(self, pieces: Sequence[str | ToolCallDelta], end: Finished | None) -> Delta:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = _one_each(piece for piece in pieces if isinstance(piece, ToolCallDelta))
        for call in calls:
            call_id = self._ids.setdefault(call.number, call.id or "")
            self._written[call_id] = self._written.get(call_id, "") + call.arguments
        return Delta(text, calls, None if end is None else self._end(end))

    def _end(self, event: Finished) -> End:
        answer, statistics = self._stream.answer(), event.statistics
        closed = None
        if statistics.closed_at is not None:
            closed = self._as_closed(statistics.closed_at, statistics.cut, len(answer.calls))
            why = why_closed(closed.cut)
            invalid = tuple(replace(c, error=why) if c.cut_off else c for c in answer.invalid)
            text = self._text if self._keeps_closed else answer.text
            answer = replace(answer, text=text, invalid=invalid)
        answer, violation = checked(answer, self._options, self._form, self._written)
        drafter = self._asked or event.statistics.models[:1]
        ended = event.finish_reason == "stop"
        called = ended and answer.calls and not answer.invalid
        is_json = isinstance(self._options.response_format, JsonSchema)
        complete = ended or answer.calls or (is_json and _is_closed(answer.text))
        whole = closed is None and complete and not answer.invalid
        return End(
            answer.calls,
            answer.invalid,
            closed,
            violation,
            "tool_calls" if called else event.finish_reason,
            sum(model.prompt_tokens for model in drafter),
            sum(model.reused_tokens for model in drafter),
            statistics.tokens + statistics.reasoning_tokens,
            statistics.reasoning_tokens,
            {**payloads.generation_end(event), "whole": bool(whole)},
        )

    def _as_closed(self, at: int, cut: list[str], number: int) -> Closed:
        """What became of the answer, or of the call with a number."""
        reader, arguments = self._reader(), ""
        for piece in [*reader.push(self._text), *reader.finish()]:
            if isinstance(piece, ToolCallDelta) and piece.number == number:
                arguments += piece.arguments
        return Closed(at, cut, self._options.on_length, arguments or self._text)


def _one_each(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """Pieces of one call as one piece: LangChain adds up one for each call at a time."""
    joined: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        before = joined.get(piece.number)
        arguments = piece.arguments if before is None else before.arguments + piece.arguments
        joined[piece.number] = replace(before or piece, arguments=arguments)
    return tuple(joined.values())


def _is_closed(text: str) -> bool:
    """Whether a text is JSON that nothing could be added to: `1` may be the beginning of `12`."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, bool) or not isinstance(value, int | float)
