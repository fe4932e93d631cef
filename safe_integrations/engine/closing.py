"""The budget under a grammar: what is written always leaves room for a way to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safe_integrations.engine.model import Cursor
from safe_integrations.engine.tokens import END, TokenTable

_FAR: Final = 64
"""Tokens that must be left where no way to the end is known: the models may find one."""


@dataclass(frozen=True, slots=True)
class Way:
    """A text that ends the grammar.

    Attributes:
        text: The text.
        ids: The same in the drafter's tokens, with END.
    """

    text: bytes
    ids: tuple[int, ...]


class Ways:
    """The way to the end behind every token of an answer.

    What it says depends on the tokens before a place only, never on how far was drafted.

    Args:
        cursor: The drafter's way through the grammar; None where any text will do.
        tokens: The drafter's tokens.
        budget: Most tokens of the answer, END included.
    """

    def __init__(self, cursor: Cursor | None, tokens: TokenTable, budget: int) -> None:
        self._cursor = cursor
        self._tokens = tokens
        self._budget = budget
        self._in_tokens: dict[bytes, Way | None] = {}
        self._ways = [None if cursor is None else self._closing(b"")]
        self._known = self._ways[0] is not None

    @property
    def smallest(self) -> int:
        """Tokens of the smallest answer that is known, END included; 0 where none is known."""
        way = self._ways[0]
        return 0 if way is None else len(way.ids)

    def cut(self, count: int) -> None:
        """Only the first tokens of the answer stand."""
        del self._ways[count + 1 :]

    def fit(self, ids: Sequence[int], new: Sequence[int]) -> bool:
        """Whether a way to the end fits in behind some tokens, and new ones behind them.

        Where none was known before the new ones, nothing is promised, and anything fits.
        """
        before = way = self._behind(ids) if self._known else None
        if before is None:
            return True
        for n in range(1, len(new) + 1):
            way = self._next(way, [*ids, *new[:n]])
        room = self._budget - len(ids) - len(new)
        return room >= (_FAR if way is None else len(way.ids))

    def first(self, ids: Sequence[int]) -> tuple[int, bool]:
        """The first token of the way to the end, and whether any other could be written."""
        way = self._behind(ids)
        assert self._cursor is not None and way is not None, "there was a way to compare with"
        symbol = self._tokens.symbol(way.ids[0])
        if symbol == END:
            return way.ids[0], not self._cursor.finished(ids)
        return way.ids[0], not self._cursor.forced(ids).startswith(symbol)

    def _behind(self, ids: Sequence[int]) -> Way | None:
        for n in range(len(self._ways), len(ids) + 1):
            self._ways.append(self._next(self._ways[-1], ids[:n]))
        return self._ways[len(ids)]

    def _next(self, before: Way | None, ids: Sequence[int]) -> Way | None:
        """The way behind tokens, from that before the last of them: a step on it stays on it."""
        symbol = self._tokens.symbol(ids[-1])
        if before and before.ids[0] == ids[-1]:
            return Way(before.text[len(symbol) :], before.ids[1:])
        return self._closing(b"".join(map(self._tokens.symbol, ids)))

    def _closing(self, written: bytes) -> Way | None:
        """What the grammar knows; None also where these tokens cannot write it."""
        assert self._cursor is not None
        text, tokens = self._cursor.closing(written), self._tokens
        if text is not None and text not in self._in_tokens:
            ids = tokens.encode(text) if text else []
            exact = b"".join(map(tokens.symbol, ids)) == text
            self._in_tokens[text] = Way(text, (*ids, tokens.end_id)) if exact else None
        return None if text is None else self._in_tokens[text]
