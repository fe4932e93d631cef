"""An answer cut into whole characters, each with the pieces that wrote it.

A piece may hold half a character, so pieces and text do not end at the same places. The terminal
and the notebook both show text with its provenance; this is what they share.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.tokens import END
from safe_integrations.report.verdicts import loudest


@dataclass(frozen=True, slots=True)
class Characters:
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
        return loudest(piece.verdict for piece in self.pieces)


class CharacterReader:
    """Takes pieces as they are written; gives characters as soon as they are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open: tuple[Piece, ...] = ()  # those that hold the first bytes of a character

    def push(self, piece: Piece) -> Characters | None:
        """Adds a piece; returns the characters that are whole now, or None where none is."""
        if piece.written == END:
            return Characters("", (piece,))
        text = self._decoder.decode(piece.written)
        pieces = (*self._open, piece)
        unfinished = bool(self._decoder.getstate()[0])
        self._open = () if not unfinished else (piece,) if text else pieces
        return Characters(text, pieces) if text else None


def characters(pieces: Iterable[Piece], text: str) -> Iterator[Characters]:
    """Cuts an answer into whole characters, together `text`; the last piece may reach past it."""
    reader = CharacterReader()
    at = 0
    for piece in pieces:
        whole = reader.push(piece)
        if whole is None:
            continue
        kept = whole.text[: len(text) - at]
        at += len(kept)
        if kept or not whole.text:
            yield Characters(kept, whole.pieces)
