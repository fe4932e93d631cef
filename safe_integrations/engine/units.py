"""Units: what models with different tokenizers can judge together (issue 16).

A token of one model is often several of another's, or part of one, so their probabilities cannot be
compared. A *unit* is a piece of text that no token of any model reaches across, mostly a word with
its space. Every model writes it in tokens of its own, and gives it a probability.

Where a unit ends depends on the text alone, never on a model or on how far was drafted. Text of
one unit is a function of nothing else, either: `tokens` splits each unit by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.tokens import END, TokenTable

MAX_UNIT: Final = 24
"""Bytes after which a unit is cut at the next boundary that all tokenizers share."""

CONTEXT: Final = 48
"""Bytes of text that such boundaries are looked for in: tokens depend on what follows them."""

_FOLLOWERS: Final = b"a1(A.x0"
"""What may follow white space: some tokenizers split a run of it by what comes behind."""

_KEPT: Final = 1 << 15
"""Units whose tokens are remembered, per model."""


def whole_characters(text: bytes) -> int:
    """How many bytes of a text are left without half a character at its end."""
    for back in range(1, min(3, len(text)) + 1):
        lead = text[-back]
        if lead >= 0xC0:
            needed = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return len(text) - back if back < needed else len(text)
        if lead < 0x80:
            break
    return len(text)


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of the text that is judged as one.

    Attributes:
        start: Where it begins, in bytes.
        text: Its bytes, or END.
        ended: Whether no token of any model reaches across its end. If not it was cut there for
            its length, at a boundary that all models share as far as their tokenizers can tell.
    """

    start: int
    text: bytes
    ended: bool = True

    @property
    def end(self) -> int:
        """Where it ends, in bytes."""
        return self.start + (0 if self.text == END else len(self.text))


class Units:
    """Where units end, and what they are in the tokens of each model.

    Args:
        tables: The models' tokens, drafter first.

    Attributes:
        single: Whether all models have the same tokens. Each token is a unit by itself then.
    """

    def __init__(self, tables: Sequence[TokenTable]) -> None:
        self._tables = tables
        self.single = all(table.same_tokens(tables[0]) for table in tables)
        joins = np.zeros((256, 256), bool)
        if not self.single:
            for table in tables:
                joins |= table.joins
            joins[:, 0x80:0xC0] = True  # never inside a character
            joins[:, END[0]] = False
        self._joins = joins
        self.tokens = lru_cache(_KEPT * len(tables))(self._tokens)
        self.enders = lru_cache(1 << 7)(self._enders)

    def joins(self, last: int, symbol: bytes) -> bool:
        """Whether a symbol behind a text with such a last byte does not begin a new unit."""
        return bool(self._joins[last, symbol[0]])

    def _enders(self, nth: int, last: int) -> NDArray[np.float32]:
        """The tokens of a model that end a unit with such a last byte, END among them.

        Returns:
            1 or 0 per id, shape `[tokens.size]`.
        """
        return np.take(~self._joins[last], self._tables[nth].first_bytes).astype(np.float32)

    def next(self, text: bytes | bytearray, start: int, final: bool) -> Unit | None:
        """The unit that begins at a place.

        Args:
            text: All of the text that is known.
            start: The place, in bytes.
            final: Whether END follows the text.

        Returns:
            The unit; None where what is known of the text does not tell where it ends.
        """
        if start == len(text):
            return Unit(start, END) if final else None
        near = self._hard(text, start, MAX_UNIT, final)
        if near is not None:
            return Unit(start, bytes(text[start:near]))
        if len(text) - start <= MAX_UNIT:
            return None
        far = self._hard(text, start, CONTEXT, final)
        if far is None and len(text) - start <= CONTEXT:
            return None
        window = bytes(text[start : start + CONTEXT if far is None else far])
        window = window[: whole_characters(window)]
        shared = self._shared(window)
        length = next((n for n in shared if n <= MAX_UNIT), next(iter(shared), len(window)))
        return Unit(start, window[:length], ended=start + length == far)

    def _hard(self, text: bytes | bytearray, start: int, most: int, final: bool) -> int | None:
        """The first place behind `start` that no token of any model reaches across."""
        joins = self._joins
        for at in range(start + 1, min(len(text), start + most + 1)):
            if not joins[text[at - 1], text[at]]:
                return at
        return len(text) if final and len(text) <= start + most else None

    def _shared(self, window: bytes) -> list[int]:
        """Where all models have a token boundary that is inside of no character."""
        places = set(range(1, len(window) + 1))
        for table in self._tables:
            at, ends = 0, set()
            for token_id in table.encode(window):
                at += len(table.symbol(token_id))
                ends.add(at)
            places &= ends
        return sorted(n for n in places if n == len(window) or window[n] & 0xC0 != 0x80)

    def _tokens(self, nth: int, text: bytes) -> tuple[int, ...]:
        """What a unit is in the tokens of a model: it depends on its bytes alone.

        Args:
            nth: Which model, 0 for the drafter.
            text: The unit's bytes, or END.
        """
        table = self._tables[nth]
        if text == END:
            return (table.end_id,)
        if self.single:
            return tuple(table.pieces(text))
        if text[-1:].isspace():
            for byte in _FOLLOWERS:
                if not self._joins[text[-1], byte]:
                    ids, at = [], 0
                    for token_id in table.encode(text + bytes([byte])):
                        if at < len(text):
                            ids.append(token_id)
                            at += len(table.symbol(token_id))
                    if at == len(text):
                        return tuple(ids)
                    break
        return tuple(table.encode(text))
