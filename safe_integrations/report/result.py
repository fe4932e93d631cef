"""One finished answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from safe_integrations.engine.events import Event, Finished, FinishReason, TextDelta, Verified
from safe_integrations.engine.tokens import END
from safe_integrations.engine.trace import Piece, Statistics, piece_payload, statistics_payload


@dataclass(frozen=True, slots=True)
class Result:
    """An answer, how it was made, and where each piece of it comes from.

    Attributes:
        text: The answer.
        finish_reason: `stop` at END or a stop string, `length` at max_tokens or a full window.
        statistics: How it was made.
        pieces: The answer piece by piece, in order. The last one may reach past the end of `text`
            where a stop string or max_tokens cut it.
    """

    text: str
    finish_reason: FinishReason
    statistics: Statistics
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, events: Iterable[Event]) -> Result:
        """Folds the events of one generation, up to and including `Finished`."""
        text: list[str] = []
        pieces: list[Piece] = []
        for event in events:
            if isinstance(event, TextDelta):
                text.append(event.text)
            elif isinstance(event, Verified):
                pieces += event.pieces
            elif isinstance(event, Finished):
                end = event.length
                kept = tuple(
                    p for p in pieces if p.start < end or (p.start == end and p.written == END)
                )
                return cls("".join(text), event.finish_reason, event.statistics, kept)
        raise ValueError("the events hold no Finished")

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-safe data (docs/events.md)."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "statistics": statistics_payload(self.statistics),
            "pieces": [piece_payload(piece) for piece in self.pieces],
        }

    def _repr_html_(self) -> str:
        from safe_integrations.report.html import provenance_html

        return provenance_html(self)
