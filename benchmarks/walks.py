"""Random instances of a grammar, byte by byte and without a model."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

import numpy as np

from safe_integrations.structure.constraint import Constraint, Cursor
from safe_integrations.testing import ScriptedMember, follows

BYTES: Final = ScriptedMember("bytes", [], follows(b"")).tokens
"""256 tokens of one byte, and END."""

_FIRST: Final = b'"]},201' + b"3456789-:TZ/.@ntf[{ax"
"""What comes first on the way to the end. 2 before 0: no date is in the year 0000."""

_ORDER: Final = {byte: i for i, byte in enumerate(_FIRST)}
_PATIENCE: Final = (1, 4, 16)
_LONGEST: Final = 3000


def walk(rule: str, steps: int, random: Random) -> bytes | None:
    """A sentence of a grammar: at random for some bytes, then to its end.

    Args:
        rule: The right side of a Lark rule.
        steps: Bytes to choose at random.
        random: Where they come from.

    Returns:
        None where no end was found.
    """
    cursor = Constraint(f"start: {rule}", "rule", rule).cursor(BYTES)
    ids: list[int] = []
    while len(ids) < steps and not cursor.finished(ids):
        ids.append(random.choice(_allowed(cursor, ids)))
    return next(filter(None, (_close(cursor, ids, n) for n in _PATIENCE)), None)


def _close(cursor: Cursor, ids: list[int], patience: int) -> bytes | None:
    """Goes to the end by the bytes that mostly lead there; the others where that is a circle."""
    ids, seen = list(ids), Counter[tuple[int, ...]]()
    used: Counter[tuple[tuple[int, ...], int]] = Counter()
    while not cursor.complete(ids):
        ids += BYTES.encode(cursor.forced(ids))
        if len(ids) > _LONGEST:
            return None
        if cursor.complete(ids):
            break
        here = tuple(_allowed(cursor, ids))
        if not here:
            return None
        seen[here] += 1
        best = min(here, key=lambda i: (used[here, _kind(i)] // patience, _rank(i)))
        used[here, _kind(best)] += 1
        ids.append(best)
    return b"".join(map(BYTES.symbol, ids))


def _allowed(cursor: Cursor, ids: list[int]) -> list[int]:
    """Bytes that may follow."""
    mask = cursor.allowed(ids)
    found = range(256) if mask is None else map(int, np.flatnonzero(mask))
    return [i for i in found if i != BYTES.end_id]


def _rank(i: int) -> int:
    byte = BYTES.symbol(i)[0]
    return _ORDER.get(byte, 100 + byte)


def _kind(i: int) -> str:
    character = chr(BYTES.symbol(i)[0])
    kinds = {"digit": character.isdigit(), "lower": character.islower(), "upper": character.isupper()}
    return next((kind for kind, is_it in kinds.items() if is_it), "other")
