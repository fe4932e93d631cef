r"""Events and results as small, JSON-safe data, and back: callbacks, tracers and messages carry it.

`dump` writes and `load` reads the engine's dataclasses, field by field. Every payload says which
version of docs/events.md it follows; within a version fields may be added at the end, never renamed
or removed, and readers pass over those that they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from safe_integrations.engine.events import (
    Ensembled,
    Finished,
    Piece,
    Statistics,
    Verdict,
    Verified,
)
from safe_integrations.engine.tokens import END

VERSION: Final = 1
"""Of the payloads below (docs/events.md)."""

GENERATION_START: Final = "safe_generation_start"
VERIFICATION: Final = "safe_verification"
ENSEMBLE: Final = "safe_ensemble"
GENERATION_END: Final = "safe_generation_end"

T = TypeVar("T")


def generation_start(models: Sequence[str], mode: str) -> dict[str, Any]:
    """`safe_generation_start`: an answer of these models, drafter first, begins."""
    return {"version": VERSION, "models": list(models), "mode": mode}


def verification(event: Verified) -> dict[str, Any]:
    """`safe_verification`: the verifiers checked a draft."""
    payload = {"version": VERSION, **dump(event)}
    for piece in payload["pieces"]:
        del piece["candidates"]  # `safe_ensemble` has them
    return payload


def ensemble(event: Ensembled) -> dict[str, Any]:
    """`safe_ensemble`: the models' distributions were merged at one place."""
    return {"version": VERSION, "cycle": event.cycle, **dump(event.piece)}


def generation_end(event: Finished) -> dict[str, Any]:
    """`safe_generation_end`: the answer is complete."""
    return {
        "version": VERSION,
        "finish_reason": event.finish_reason,
        "length": event.length,
        **statistics_payload(event.statistics),
    }


def statistics_payload(statistics: Statistics) -> dict[str, Any]:
    """Statistics, and what follows from them."""
    derived = ("ensembled_ratio", "acceptance", "overhead_seconds")
    return {**dump(statistics), **{name: dump(getattr(statistics, name)) for name in derived}}


def round_of(event: Verified) -> list[list[Any]]:
    """A round as messages carry it: the least that its pieces can be made of again.

    Messages are kept in checkpoints and sent to tracers, so every byte counts.

    Returns:
        For tokens in a row that are the drafter's, with one verdict, `[verdict, token, ...]`; for
        any other piece the values of its fields, those of its votes (without the model) and of its
        candidates.
    """
    entries: list[list[Any]] = []
    for piece in event.pieces:
        if piece.ensembled or piece.replaces:
            row = dict(zip(_hints(Piece), dump(piece, rows=True), strict=True))
            row["votes"] = [vote[1:] for vote in row["votes"]]
            entries.append(list(row.values()))
        elif entries and entries[-1][0] == piece.verdict:
            entries[-1].append(show(piece.written))
        else:
            entries.append([str(piece.verdict), show(piece.written)])
    return entries


def pieces_of(rounds: Iterable[Iterable[Any]], models: Sequence[str]) -> Iterator[Piece]:
    """The pieces of an answer, out of all its rounds (`round_of`); `models` are names."""
    at = 0
    for entry in chain.from_iterable(rounds):
        if isinstance(entry[0], str):
            for written in map(symbol_of, entry[1:]):
                start, at = at, at + (0 if written == END else len(written))
                yield Piece(start, at, written, written, Verdict(entry[0]))
        else:
            row = dict(zip(_hints(Piece), entry, strict=False))
            row["votes"] = [[m, *vote] for m, vote in zip(models, row["votes"], strict=False)]
            yield (piece := load(Piece, row))
            at = piece.end


# Dataclasses as JSON-safe data


def dump(value: Any, *, rows: bool = False) -> Any:
    """Dataclasses by their fields, symbols by `show`, numbers with six digits.

    Fields have no names where `rows` are wanted.
    """
    match value:
        case bytes():
            return show(value)
        case str():
            return str(value)  # an enum's plain value
        case float():
            return round(float(value), 6)
        case list() | tuple():
            return [dump(item, rows=rows) for item in value]
    if is_dataclass(value):
        row = {field.name: dump(getattr(value, field.name), rows=rows) for field in fields(value)}
        return list(row.values()) if rows else row
    return value


def load(kind: type[T], data: Any) -> T:
    """What `dump` was given, out of what it made.

    Unknown fields are passed over, those that are missing have their default.
    """
    made, many = data, get_origin(kind)
    if is_dataclass(kind):
        hints = _hints(kind)
        given = data if isinstance(data, Mapping) else dict(zip(hints, data, strict=False))
        made = kind(**{name: load(hints[name], given[name]) for name in hints if name in given})
    elif many in (list, tuple):
        made = many(load(get_args(kind)[0], item) for item in data)
    elif kind is bytes:
        made = symbol_of(data)
    elif kind is Verdict:
        made = Verdict(data)
    return cast("T", made)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


_SHOWN_END: Final = "<end>"


def show(symbol: bytes) -> str:
    r"""A symbol as text: for people and for JSON, and no two alike.

    END is `<end>`. Bytes that are no whole characters are written `\xf0`; so are a backslash that
    stands where it would look like that, and the first byte of a token that spells `<end>`.
    """
    if symbol == END:
        return _SHOWN_END
    if symbol == _SHOWN_END.encode():
        return rf"\x{symbol[0]:02x}" + _SHOWN_END[1:]
    literal = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", symbol)
    return literal.decode(errors="backslashreplace")


def symbol_of(shown: str) -> bytes:
    """The symbol that `show` shows like this."""
    if shown == _SHOWN_END:
        return END
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), shown.encode())
