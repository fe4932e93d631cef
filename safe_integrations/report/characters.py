"""An answer cut into whole characters, each with the pieces that wrote it.

A token may hold half a character, so pieces and text do not end at the same places. The command
line and the notebook view both show text with its provenance; this is what they share.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.tokens import END

_LOUDEST_FIRST = (Verdict.CHANGED, Verdict.CONFIRMED, Verdict.UNSAFE)


@dataclass(frozen=True, slots=True)
class Span:
    """Whole characters that come from the same pieces.

    Attributes:
        text: Empty only for END.
        pieces: Most often one; several where they share a character.
    """

    text: str
    pieces: tuple[Piece, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict that matters most among the pieces."""
        verdicts = [piece.verdict for piece in self.pieces]
        return next((v for v in _LOUDEST_FIRST if v in verdicts), verdicts[-1])


class SpanReader:
    """Takes pieces as they are written; gives characters as soon as they are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open: tuple[Piece, ...] = ()  # those that hold the first bytes of a character

    def push(self, piece: Piece) -> Span | None:
        """Adds a piece; returns the characters that are whole now, or None where none is."""
        if piece.written == END:
            return Span("", (piece,))
        text = self._decoder.decode(piece.written)
        pieces = (*self._open, piece)
        unfinished = bool(self._decoder.getstate()[0])
        self._open = () if not unfinished else (piece,) if text else pieces
        return Span(text, pieces) if text else None


def spans(pieces: Iterable[Piece], text: str) -> Iterator[Span]:
    """Cuts a finished answer into spans; their texts together are `text`.

    Args:
        pieces: The pieces of the answer, in order. The last may reach past its end.
        text: The answer.
    """
    reader = SpanReader()
    at = 0
    for piece in pieces:
        span = reader.push(piece)
        if span is None:
            continue
        kept = span.text[: len(text) - at]
        at += len(kept)
        if kept or not span.text:
            yield Span(kept, span.pieces)
