"""Where units end and how models write them, read word by word; for the oracle of units.

Nothing of the package's logic is used, only a token table's `symbols`, `encode` and `end_id`.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from safe_integrations.engine.model import Member
from safe_integrations.engine.tokens import END

MAX_UNIT = 24
"""Bytes within which a unit ends by itself."""

CONTEXT = 48
"""Bytes behind the beginning of a longer unit that say where it is cut."""

NEUTRAL = b"a1(A.x0"
"""What may follow white space, so that a tokenizer shows how it cuts it in a longer text."""


class Unit(NamedTuple):
    """A piece of text between two places, or END.

    Attributes:
        data: Its bytes, or END.
        ended: Whether it ends at a hard place. If not, it was cut for being too long.
    """

    data: bytes
    ended: bool


LAST = Unit(END, True)


class Vocabulary:
    """A model's tokens."""

    def __init__(self, member: Member) -> None:
        self.table = member.tokens
        self.symbols = list(member.tokens.symbols())
        self.ids = {s: i for i, s in reversed(list(enumerate(self.symbols))) if s is not None}

    def same_as(self, other: Vocabulary) -> bool:
        return self.symbols == other.symbols and self.table.end_id == other.table.end_id

    def encode(self, text: bytes) -> list[int]:
        return self.table.encode(text) if text else []

    def ends(self, text: bytes) -> set[int]:
        """Where its tokens of a text end."""
        ends = np.cumsum([len(self.symbols[i] or b"") for i in self.encode(text)])
        return {int(end) for end in ends}


class Units:
    """Where the units of a text end, and how each model writes them."""

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        self.vocabularies = vocabularies
        self.tokenwise = all(v.same_as(vocabularies[0]) for v in vocabularies)
        tokens = {s for v in vocabularies for s in v.ids if s != END}
        self.pairs = {t[i : i + 2] for t in tokens for i in range(len(t) - 1)}

    def joins(self, before: bytes, symbol: bytes) -> bool:
        """Whether a symbol belongs to the unit of the byte before it."""
        if self.tokenwise or symbol == END:
            return False
        return symbol[0] & 0xC0 == 0x80 or before[-1:] + symbol[:1] in self.pairs

    def first(self, text: bytes, ended: bool) -> Unit | None:
        """The first unit of a text, behind which END may stand; None where more must be known."""
        if not text:
            return LAST if ended else None
        places = [i for i in range(1, len(text)) if not self.joins(text[:i], text[i:])]
        places += [len(text)] if ended else []
        hard = places[0] if places else inf
        if hard <= MAX_UNIT:
            return Unit(text[: int(hard)], True)
        if hard > CONTEXT and len(text) <= CONTEXT:
            return None
        context = whole(text[: int(min(hard, CONTEXT))])
        shared = set.intersection(*(v.ends(context) for v in self.vocabularies))
        shared = {at for at in shared if context[at : at + 1] < b"\x80" or context[at] >= 0xC0}
        cut = min(shared | {len(context)})
        return Unit(text[:cut], cut == hard)

    def tokens_of(self, nth: int, unit: Unit) -> list[int]:
        """How a model writes a unit, whatever it drafted."""
        vocabulary, data = self.vocabularies[nth], unit.data
        if data == END or self.tokenwise:
            return [vocabulary.ids[data]]
        followers = [bytes([c]) for c in NEUTRAL if not self.joins(data, bytes([c]))]
        if data[-1:].isspace() and followers:
            kept, length = [], 0
            for i in vocabulary.encode(data + followers[0]):
                length += len(vocabulary.symbols[i] or b"")
                if length <= len(data):
                    kept.append(i)
                if length == len(data):
                    return kept
        return vocabulary.encode(data)


def whole(text: bytes) -> bytes:
    """A text without half a character at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return text[: len(text) - len(decoder.getstate()[0])]


def text_of(written: Sequence[Unit]) -> bytes:
    return b"".join(unit.data for unit in written if unit != LAST)


def stopped(text: bytes, stops: Sequence[str]) -> tuple[int, int] | None:
    """Start and end of the stop string that is completed first, the longest of equals."""
    longest = sorted((s.encode() for s in stops), key=len, reverse=True)
    for end in range(len(text) + 1):
        for stop in longest:
            if text[:end].endswith(stop):
                return end - len(stop), end
    return None
