"""The budget under a grammar: what is written always leaves room for a way to the end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from safe_integrations.engine.model import Cursor, Member
from safe_integrations.engine.segments import Segmentation
from safe_integrations.engine.tokens import END, TokenTable, common_prefix
from safe_integrations.errors import ContextWindowError, InvalidArgumentError

_FAR: Final = 64
"""Tokens that must be left where no way to the end is known: the models may find one."""

_PAUSE: Final = 16
"""Tokens until a way is looked for again where none was known: that costs the most."""


@dataclass(frozen=True, slots=True)
class Way:
    """A text that ends the grammar.

    Attributes:
        text: The text.
        ids: The same in the drafter's tokens, with END.
    """

    text: bytes
    ids: tuple[int, ...]

    def behind(self, length: int) -> Way:
        """What is left of it behind its first token, which has so many bytes."""
        return Way(self.text[length:], self.ids[1:])


def find_way(cursor: Cursor, tokens: TokenTable, text: bytes) -> Way | None:
    """The way that is found behind a text; None also where the drafter's tokens cannot write it."""
    way = cursor.closing(text)
    return None if way is None else _in_tokens(tokens, way)


def _in_tokens(tokens: TokenTable, text: bytes) -> Way | None:
    ids = tokens.encode(text) if text else []
    exact = b"".join(map(tokens.symbol, ids)) == text
    return Way(text, (*ids, tokens.end_id)) if exact else None


class Window:
    """The room that a verifier's context window has for an answer.

    How a verifier tokenises a text behind its last hard boundary depends on what follows. But no
    token is shorter than a byte, so this many are enough, and stay enough while a way is written.

    Args:
        tokens: The verifier's tokens.
        room: How many of them its window leaves for the answer.
        drafter: The drafter's tokens. A verifier that has the same sees the same ids.
    """

    def __init__(self, tokens: TokenTable, room: int, drafter: TokenTable) -> None:
        self._tokens = tokens
        self._room = room
        self._shares_ids = tokens.same_tokens(drafter)
        self._segments = Segmentation(tokens)
        self._text = b""

    def holds(self, text: bytes, count: int, way: Way) -> bool:
        """Whether a text of so many of the drafter's tokens and a way behind it are sure to fit."""
        if self._shares_ids:
            return count + len(way.ids) - 1 <= self._room  # nobody reads END
        if len(text) + len(way.text) <= self._room:
            return True
        self._segments.update(text, common_prefix(self._text, text))
        self._text = text
        ends = self._segments.ends
        settled = bisect_right(ends, self._tokens.settled(text))
        rest = len(text) - (ends[settled - 1] if settled else 0)
        return settled + rest + len(way.text) <= self._room


def check_room(
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    cursor: Cursor | None,
    max_tokens: int,
) -> None:
    """Refuses budgets and windows that cannot hold the smallest answer that is known.

    Args:
        members: The models, drafter first.
        prompts: For each of them its prompt's token ids.
        cursor: The drafter's way through the grammar; None where any text will do.
        max_tokens: Most tokens of the answer.

    Raises:
        ContextWindowError: The prompt leaves no room in some model's window.
        InvalidArgumentError: `max_tokens` is too small.
    """
    rooms = [m.context_window - len(p) for m, p in zip(members, prompts, strict=True)]
    tokens = members[0].tokens
    way = None if cursor is None else find_way(cursor, tokens, b"")
    fits = [room > 0 for room in rooms]
    if way is not None and all(fits):
        if len(way.ids) > max_tokens:
            remedy = f"an answer of this form needs at least {len(way.ids)}"
            raise InvalidArgumentError("max_tokens", max_tokens, remedy)
        windows = [Window(m.tokens, r, tokens) for m, r in zip(members, rooms, strict=True)]
        fits = [window.holds(b"", 0, way) for window in windows]
        fits[0] = len(way.ids) <= rooms[0]
    for member, prompt, fit in zip(members, prompts, fits, strict=True):
        if not fit:
            raise ContextWindowError(member.name, len(prompt), member.context_window)


class Ways:
    """The way to the end behind every token of an answer.

    One is looked for where the answer has left the way before it. It need not be short: where
    it has become too long for the room that is left, another one is looked for. What is decided
    depends on the tokens before a place only, never on how far was drafted.

    Args:
        cursor: The drafter's way through the grammar; None where any text will do.
        tokens: The drafter's tokens.
        budget: Most tokens of the answer, END included.
        windows: The verifiers' windows.

    Attributes:
        windows: The same; those that matter no longer may be taken out.
    """

    def __init__(
        self,
        cursor: Cursor | None,
        tokens: TokenTable,
        budget: int,
        windows: Sequence[Window] = (),
    ) -> None:
        self._cursor = cursor
        self._tokens = tokens
        self._budget = budget
        self.windows = windows
        self._ways = [None if cursor is None else find_way(cursor, tokens, b"")]
        self._last: tuple[list[int], Way | None] = [], self._ways[0]

    def cut(self, count: int) -> None:
        """Only the first tokens of the answer stand."""
        del self._ways[count + 1 :]

    def fit(self, text: bytes, ids: Sequence[int], new: Sequence[int]) -> bool:
        """Whether there is room for a way to the end behind a text and new tokens.

        Where no way was known before them, or none that fits, nothing is promised: anything fits.

        Args:
            text: The text.
            ids: The same in the drafter's tokens.
            new: Tokens that may be written behind it, without END.
        """
        if self._cursor is None:
            return True
        way = self._behind(text, ids)
        if not self._fits(text, ids, way):
            return True
        ids = [*ids]
        for token_id in new:
            text += self._tokens.symbol(token_id)
            ids = [*ids, token_id]
            way = self._next(way, text, ids)
        return self._budget - len(ids) >= _FAR if way is None else self._fits(text, ids, way)

    def first(self, text: bytes, ids: Sequence[int]) -> tuple[int, bool]:
        """The first token of a way that fits, and whether any other token could be written."""
        assert self._cursor is not None
        direct = find_way(self._cursor, self._tokens, text)
        way = direct if self._fits(text, ids, direct) else self._behind(text, ids)
        assert way is not None, "there was one that fits"
        symbol = self._tokens.symbol(way.ids[0])
        if symbol == END:
            return way.ids[0], not self._cursor.finished(ids)
        return way.ids[0], not self._cursor.forced(ids).startswith(symbol)

    def _fits(self, text: bytes, ids: Sequence[int], way: Way | None) -> bool:
        return (
            way is not None
            and len(ids) + len(way.ids) <= self._budget
            and all(window.holds(text, len(ids), way) for window in self.windows)
        )

    def _behind(self, text: bytes, ids: Sequence[int]) -> Way | None:
        known = len(self._ways) - 1
        lengths = [len(self._tokens.symbol(i)) for i in ids[known:]]
        for n in range(1, len(lengths) + 1):
            before = text[: len(text) - sum(lengths[n:])]
            self._ways.append(self._next(self._ways[-1], before, [*ids[: known + n]]))
        return self._ways[len(ids)]

    def _next(self, before: Way | None, text: bytes, ids: list[int]) -> Way | None:
        """The way behind a text, from that before its last token: the first that fits, if any."""
        if self._last[0] != ids:  # else the token that was tried last is written
            found = None
            for way in self._candidates(before, text, ids):
                if self._fits(text, ids, way):
                    found = way
                    break
                found = found or way
            self._last = ids, found
        return self._last[1]

    def _candidates(self, before: Way | None, text: bytes, ids: list[int]) -> Iterator[Way | None]:
        """Ways behind a text, those that are cheap to find first."""
        assert self._cursor is not None
        symbol = self._tokens.symbol(ids[-1])
        if before is None and len(ids) % _PAUSE:
            return
        if before is not None:
            if before.ids[0] == ids[-1]:
                yield before.behind(len(symbol))
            elif before.text.startswith(symbol):  # in other tokens
                yield _in_tokens(self._tokens, before.text[len(symbol) :])
            elif self._cursor.ends(text, before.text):
                yield before
        yield find_way(self._cursor, self._tokens, text)
        direct = find_way(self._cursor, self._tokens, text[: -len(symbol)])
        if direct is not None and direct.ids[0] == ids[-1]:  # it was written for lack of room
            yield direct.behind(len(symbol))
