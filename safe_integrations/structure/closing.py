r"""The way out of a grammar: a short text that ends it, from wherever the answer stands.

The grammar is walked in bytes. What is forced is taken; at a choice, the byte that most likely
leads out: a bracket ends an object before its optional parts, a quote a string, a comma a number.
Where that runs in circles, a place that was met before tries what a pattern may want somewhere, and
else the kind of byte that was tried least there (an e-mail address wants an `@`). What is found is
proved: the grammar has accepted it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from safe_integrations.engine.tokens import END, TokenTable, common_prefix

if TYPE_CHECKING:
    from llguidance import LLMatcher

BYTES: Final = TokenTable([*(bytes([b]) for b in range(256)), END], {256}, list)
"""A vocabulary of single bytes: an id is its byte."""

_LAST: Final = b",20134567891-:TZ/.@ntf[{ax"  # 2 first: a date of the year 0000 is no date
_OUTSIDE: Final = b']}"' + _LAST
_INSIDE: Final = b'"2' + _LAST
_FEW: Final = 24
"""A place with more choices lies in the text of a string: there a quote leads out."""

_KINDS: Final = tuple(map(re.compile, (b"[0-9]", b"[a-z]", b"[A-Z]", b"[ -~]", b"[^ -~]")))
_DIGITS: Final = frozenset("0123456789")
_CIRCLE: Final = 1 << 10
_SUSPECT: Final = 1 << 6
"""How often a place is met before a search is given up: the second inside a string, in the first
search, where a pattern may want something. From then on brackets are characters of a string."""

_PATIENCE: Final = (_CIRCLE, 1, 0, 2, 4, 8, 16)
"""How often a place is met before something else is tried there, search by search."""

_TRIES: Final = 8
"""How often at a place something that a pattern may want is tried, from then on."""

_Met = Counter[bytes]
"""How often a place was met."""


class Closing:
    """Finds ways out of one grammar. Not for use by several threads at once.

    Args:
        matcher: The library's parser at the beginning of the grammar, over `BYTES`.
        names: What has to be written where there is a choice of names, with the quote behind it.
        words: Makes what strings may want somewhere, with the quote behind it.
        ends: Texts that lead towards the end wherever they may follow.
        longest: Bytes that a way has at most.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        names: Sequence[bytes] = (),
        words: Callable[[], Sequence[bytes]] = tuple,
        ends: Sequence[bytes] = (),
        longest: int = 1 << 14,
    ) -> None:
        self._start = matcher
        self._names = names
        self._words = cache(words)
        self._ends = ends
        self._longest = longest
        self._matcher = matcher.deep_copy()
        self._text = b""
        self._ways: dict[bytes, bytes | None] = {}
        self._orders: dict[bytes, list[list[bytes]]] = {}

    def way(self, text: bytes) -> bytes | None:
        """A text that ends the grammar behind another text; None where none is found."""
        if text not in self._ways:
            ways = (self._search(text, patience) for patience in _PATIENCE)
            self._ways[text] = next((way for way in ways if way is not None), None)
        return self._ways[text]

    def ends(self, text: bytes, way: bytes) -> bool:
        """Whether a text ends the grammar behind another text: much cheaper than a search."""
        if not self._go_to(text):
            return False
        if way:
            taken: int = self._matcher.validate_tokens([*way, BYTES.end_id])
            return taken > len(way) and not self._lost()
        accepting: bool = self._matcher.is_accepting()
        return accepting

    def _go_to(self, text: bytes) -> bool:
        """Moves the matcher; False where the text leaves the grammar."""
        shared = common_prefix(self._text, text)
        self._matcher.rollback(len(self._text) - shared)
        taken = self._matcher.try_consume_tokens(list(text[shared:]))
        self._text = text[: shared + taken]
        return self._text == text and not self._lost()

    def _lost(self) -> bool:
        """Whether the grammar became too complex for the library; then the matcher starts over."""
        lost: bool = self._matcher.is_error()
        if lost:
            self._matcher, self._text = self._start.deep_copy(), b""
        return lost

    def _search(self, text: bytes, patience: int) -> bytes | None:
        """A way out of the place behind a text, where the matcher will stand again."""
        if not self._go_to(text):
            return None
        way, met = bytearray(), (_Met(), _Met())
        while not (found := self._matcher.is_accepting()) and len(way) < self._longest:
            step = next(filter(self._leads_on, self._ends), b"")
            step = step or self._matcher.compute_ff_bytes() or self._choose(met, patience)
            if not step or self._matcher.try_consume_tokens(list(step)) < len(step):
                break
            way += step
        if self._lost():
            return None
        self._matcher.rollback(len(way))
        return bytes(way) if found else None

    def _choose(self, met: tuple[_Met, _Met], patience: int) -> bytes:
        """What may follow; empty where nothing may, or nothing new is tried any more."""
        place = self._matcher.compute_bitmask()
        order = self._orders.get(place)
        if order is None:
            order = self._orders[place] = _order(place)
        if not order:
            return b""
        in_text = sum(map(len, order)) > _FEW
        here = met[in_text]
        first, count = order[0][0], here[place]
        if first in (b'"' if in_text else b"]}"):
            here[place] += 1
            met[True].clear()
            in_circle = count > _SUSPECT and any(b'"' in kind for kind in order)
            return b'"' if in_circle else first
        wanted: Sequence[bytes] = ()
        if not in_text and count < patience * _TRIES:
            wanted = [name for name in self._names if any(name[:1] in kind for kind in order)]
        elif in_text and patience <= count < patience + _TRIES:
            wanted = self._words()
        for text in wanted:
            if self._fits(text):
                here[place] += 1
                return text
        suspect = in_text and patience == _CIRCLE and count > _SUSPECT and self._words()
        if suspect or count >= _CIRCLE:
            return b""
        here[place] += 1
        turn, nth = divmod(count // max(patience, 1), len(order))
        return order[nth][turn % len(order[nth])]

    def _fits(self, word: bytes) -> bool:
        """Whether all of a word may follow."""
        taken: int = self._matcher.try_consume_tokens(list(word))
        self._matcher.rollback(taken)
        return taken == len(word)

    def _leads_on(self, text: bytes) -> bool:
        """Whether all of a text may follow, and leads somewhere else: in a string it does not."""
        taken: int = self._matcher.try_consume_tokens(list(text))
        place = self._matcher.compute_bitmask() if taken == len(text) else b""
        self._matcher.rollback(taken)
        return bool(place) and place != self._matcher.compute_bitmask()


def _order(place: bytes) -> list[list[bytes]]:
    """The bytes that may follow, by kind, in the order in which they are tried."""
    flags = np.unpackbits(np.frombuffer(place, np.uint8), count=256, bitorder="little")
    found = np.flatnonzero(flags).tolist()
    first = _OUTSIDE if len(found) <= _FEW else _INSIDE
    found.sort(key=lambda b: (first.find(b) % 256, b))
    kinds: dict[int, list[bytes]] = {}
    for byte in (bytes([b]) for b in found):
        nth = next(n for n, kind in enumerate(_KINDS) if kind.fullmatch(byte))
        kinds.setdefault(nth, []).append(byte)
    return list(kinds.values())


_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},]|[-+.\w]+')


Place = tuple[str, int, int]
"""Where JSON, or the text of a string, stands in an answer: its JSON pointer, start and end."""


def json_lines(text: bytes) -> list[Place]:
    """The lines of an answer that may be JSON."""
    return [("", *line.span()) for line in re.finditer(rb"^[^<\s].*", text, re.M)]


def cut_values(
    text: bytes,
    spans: Sequence[tuple[int, int]],
    places: Callable[[bytes], Sequence[Place]] = json_lines,
) -> list[str]:
    """Which values of an answer in JSON, or of the calls in it, are not what the models wrote.

    Args:
        text: The answer.
        spans: From where to where the budget wrote, in order, in bytes.
        places: Finds JSON in the answer.

    Returns:
        JSON pointers: of strings, numbers and words that it cut or made up, and of the innermost
        object or list that it ended between two of them. None where the text is no JSON.
    """
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, end))
    found: dict[str, None] = {}
    for place in places(text):
        for pointer, value, start, end in _values(text.decode("latin-1"), *place):
            for a, b in joined:
                if value in ("}", "]"):
                    hit = a == start and text[a - 1 : a].decode("latin-1") not in _DIGITS
                else:
                    hit = (a < end and b > start) or (a == end and value[-1:] in _DIGITS)
                if hit:
                    found[pointer.encode("latin-1").decode()] = None
    return list(found)


def _values(text: str, at: str, first: int, last: int) -> Iterator[tuple[str, str, int, int]]:
    """Pointer, text, start and end of every simple value, and of every closing bracket."""
    text = text[first:last]
    try:
        json.loads(text)
    except ValueError:
        if at:  # a string without quotes
            yield at, text, first, last
        return
    open_: list[tuple[str, str, int]] = []  # pointer, bracket, number of the item
    key: str | None = None
    for match in _TOKEN.finditer(text):
        token, where = match[0], (first + match.start(), first + match.end())
        pointer, bracket, number = open_[-1] if open_ else (at, "", 0)
        if token == ",":
            open_[-1] = pointer, bracket, number + 1
        elif token in "}]":
            open_.pop()
            yield pointer, token, *where
        elif bracket == "{" and key is None:
            key = json.loads(token)
        else:
            if bracket:
                name = str(number) if key is None else key
                pointer += "/" + name.replace("~", "~0").replace("/", "~1")
            key = None
            if token in "{[":
                open_.append((pointer, token, 0))
            else:
                yield pointer, token, *where
