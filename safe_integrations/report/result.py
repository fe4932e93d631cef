"""One finished answer."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from safe_integrations.engine.events import (
    Candidate,
    Event,
    Finished,
    FinishReason,
    ModelStatistics,
    Piece,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
    Vote,
)
from safe_integrations.engine.tokens import END
from safe_integrations.report.payloads import piece_payload, show, statistics_payload


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


def read_result(rounds: Iterable[Mapping[str, Any]], end: Mapping[str, Any]) -> Result:
    """Puts an answer together again, to show where its pieces come from.

    Args:
        rounds: All rounds, as `round_of` gives them.
        end: What `generation_end` gives.
    """
    length = end["length"]
    pieces = [_read_piece(piece) for r in rounds for piece in r["pieces"]]
    kept = tuple(p for p in pieces if p.start < length or (p.start == length and _is_end(p)))
    written = b"".join(p.written for p in kept if not _is_end(p))
    reason: FinishReason = end["finish_reason"]
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(written[:length])
    return Result(text, reason, _read_statistics(end), kept)


def _is_end(piece: Piece) -> bool:
    return piece.written == END


def _read_piece(data: Mapping[str, Any]) -> Piece:
    start, end = data["start"], data["end"]
    written = bytes.fromhex(data["hex"]) if "hex" in data else data["written"].encode()
    if start == end:
        written = END
    return Piece(
        start,
        end,
        written,
        _symbol(data["proposed"]) if "proposed" in data else written,
        Verdict(data["verdict"]),
        tuple(
            Vote(
                v["model"],
                _symbol(v["token"]),
                v["probability"],
                _symbol(v["best"]),
                v["best_probability"],
            )
            for v in data.get("votes", ())
        ),
        tuple(
            Candidate(_symbol(c["text"]), c["probability"], tuple(c["by_model"]))
            for c in data.get("candidates", ())
        ),
    )


def _symbol(shown: str) -> bytes:
    return END if shown == show(END) else shown.encode()


def _read_statistics(data: Mapping[str, Any]) -> Statistics:
    counts = ("tokens", "cycles", "drafted", "judged", "unsafe", "ensembled", "changed")
    return Statistics(
        **{name: data[name] for name in (*counts, "seconds", "first_token_seconds")},
        models=[ModelStatistics(**model) for model in data["models"]],
    )
