"""Random instances of a grammar, byte by byte and without a model."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Final

import numpy as np
from llguidance import LLMatcher, LLTokenizer

_TOKENIZER: Final = LLTokenizer("byte")
_FIRST: Final = b'"]},201' + b"3456789-:TZ/.@ntf[{ax"
"""What mostly leads to the end. 2 before 0: no date is in the year 0000."""

_ORDER: Final = sorted(range(256), key=lambda byte: (_FIRST.find(byte) % 256, byte))
_KINDS: Final = [
    0 if chr(b).isdigit() else 1 if chr(b).islower() else 2 if chr(b).isupper() else 3
    for b in range(256)
]
_PATIENCE: Final = (1000, 2, 8)
_FEW: Final = 24
_LONGEST: Final = 1000


class Walks:
    """Random instances of one grammar.

    Args:
        rule: The right side of a Lark rule.

    Raises:
        ValueError: The library does not accept it.
    """

    def __init__(self, rule: str) -> None:
        self._start = LLMatcher(_TOKENIZER, LLMatcher.grammar_from_lark(f"start: {rule}"))
        if self._start.is_error():
            raise ValueError(self._start.get_error())

    def instance(self, steps: int, random: Random) -> bytes | None:
        """A sentence of the grammar: at random for some bytes, then to its end.

        Args:
            steps: Bytes to choose at random.
            random: Where they come from.

        Returns:
            None where no end was found.
        """
        matcher, text = self._start.deep_copy(), bytearray()
        while len(text) < steps and not matcher.is_stopped():
            found = _allowed(matcher.compute_bitmask())
            if not found or not _take(matcher, text, bytes([random.choice(found)])):
                break
        if matcher.is_error():
            return None
        ends = (_end(matcher.deep_copy(), patience) for patience in _PATIENCE)
        return next((bytes(text) + end for end in ends if end is not None), None)


def _take(matcher: Any, text: bytearray, more: bytes) -> bool:
    text += more
    return bool(matcher.consume_tokens(list(more)))


def _end(matcher: Any, patience: int) -> bytes | None:
    """By the bytes that mostly lead to the end; by the others where that is a circle."""
    text, seen, used = bytearray(), Counter[bytes](), Counter[tuple[bytes, int]]()
    while not matcher.is_accepting():
        step = matcher.compute_ff_bytes()
        if not step:
            here = matcher.compute_bitmask()
            found = _allowed(here)
            if not found:
                return None
            seen[here] += 1
            if seen[here] > patience:
                found.sort(key=lambda byte: used[here, _KINDS[byte]])  # noqa: B023
            used[here, _KINDS[found[0]]] += 1
            step = bytes(found[:1])
        if not _take(matcher, text, step) or len(text) > _LONGEST:
            return None
    return bytes(text)


def _allowed(mask: bytes) -> list[int]:
    """The bytes that may follow, those first that mostly lead to the end."""
    flags = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little").tolist()
    found = [byte for byte in _ORDER if flags[byte]]
    if len(found) <= _FEW:  # outside a string: a bracket rather than another key
        found.sort(key=lambda byte: byte not in b"]}")
    return found
