"""One finished answer."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from safe_integrations.engine.events import (
    Event,
    Finished,
    FinishReason,
    Piece,
    Reasoned,
    Statistics,
    TextDelta,
    Verified,
)
from safe_integrations.engine.tokens import END
from safe_integrations.errors import SafeError
from safe_integrations.report.html import provenance_html
from safe_integrations.report.payloads import dump, load, pieces_of, statistics_payload


@dataclass(frozen=True, slots=True)
class Result:
    """An answer, how it was made, and where each piece of it comes from.

    Attributes:
        text: The answer.
        finish_reason: `stop` at END or a stop string, `length` at max_tokens or a full window.
        statistics: How it was made.
        pieces: The answer piece by piece, in order. The last one may reach past the end of `text`
            where a stop string or max_tokens cut it.
        reasoning: What the models wrote in front of it; empty where they were not asked to reason.
    """

    text: str
    finish_reason: FinishReason
    statistics: Statistics
    pieces: tuple[Piece, ...]
    reasoning: str = ""

    @classmethod
    def of(cls, events: Iterable[Event]) -> Result:
        """Folds the events of one generation, up to and including `Finished`."""
        text: list[str] = []
        reasoning: list[str] = []
        pieces: list[Piece] = []
        for event in events:
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, Reasoned):
                if isinstance(event.event, TextDelta):
                    reasoning.append(event.event.text)
            elif isinstance(event, Verified):
                pieces += event.pieces
            elif isinstance(event, Finished):
                kept = _within(pieces, event.length)
                thought = "".join(reasoning).strip()
                return cls("".join(text), event.finish_reason, event.statistics, kept, thought)
        raise ValueError("the events hold no Finished")

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-safe data (docs/events.md)."""
        return {**dump(self), "statistics": statistics_payload(self.statistics)}

    def _repr_html_(self) -> str:
        return provenance_html(self.text, self.pieces, self.statistics, self.finish_reason)


def read_result(rounds: Any, end: Any, otherwise: SafeError) -> Result:
    """Puts an answer together again out of its rounds (`round_of`) and its `generation_end`.

    Raises `otherwise` where the two are something else.
    """
    try:
        statistics = load(Statistics, end)
        length = end["length"]
        models = [model.name for model in statistics.models]
        pieces = _within(pieces_of(rounds, models), length)
        written = b"".join(piece.written for piece in pieces if piece.written != END)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(written[:length])
        return Result(text, end["finish_reason"], statistics, pieces)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise otherwise from None


def _within(pieces: Iterable[Piece], length: int) -> tuple[Piece, ...]:
    """The pieces of an answer that has so many bytes: a stop string cuts off those behind it."""
    return tuple(p for p in pieces if p.start < length or (p.start == length and p.written == END))
