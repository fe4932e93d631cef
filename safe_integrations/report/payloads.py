r"""Events and results as small, JSON-safe data, and back: callbacks, tracers and messages carry it.

`dump` writes and `load` reads the engine's dataclasses, field by field. Every payload says which
version of docs/events.md it follows; within a version fields may be added at the end, never renamed
or removed, and readers pass over those that they do not know. Messages of version 1 can still be
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from safe_integrations.engine.events import (
    Candidate,
    Ensembled,
    Event,
    Finished,
    ModelLost,
    Piece,
    Reasoned,
    Statistics,
    Verdict,
    Verified,
    Vote,
)
from safe_integrations.engine.tokens import END

VERSION: Final = 2
"""Of the payloads below (docs/events.md)."""

GENERATION_START: Final = "safe_generation_start"
VERIFICATION: Final = "safe_verification"
ENSEMBLE: Final = "safe_ensemble"
MODEL_LOST: Final = "safe_model_lost"
GENERATION_END: Final = "safe_generation_end"

T = TypeVar("T")


def generation_start(models: Sequence[str], mode: str, unit: str) -> dict[str, Any]:
    """`safe_generation_start`: an answer of these models, drafter first, begins."""
    return {"version": VERSION, "models": list(models), "mode": mode, "unit": unit}


def verification(event: Verified) -> dict[str, Any]:
    """`safe_verification`: the verifiers checked a draft."""
    payload = {"version": VERSION, **dump(event)}
    for piece in payload["pieces"]:
        del piece["candidates"]  # `safe_ensemble` has them
    return payload


def ensemble(event: Ensembled) -> dict[str, Any]:
    """`safe_ensemble`: at one place the models were merged, or the one that was drawn wrote."""
    return {"version": VERSION, "cycle": event.cycle, **dump(event.piece)}


def model_lost(event: ModelLost) -> dict[str, Any]:
    """`safe_model_lost`: a verifier's server failed, and the answer goes on without it."""
    return {"version": VERSION, **dump(event)}


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


def reported(event: Event) -> tuple[str, dict[str, Any]] | None:
    """Name and payload of the event that frameworks are told; None where they are told none.

    What happens while the models reason says so: `reasoning` is true in it.
    """
    match event:
        case Verified():
            return VERIFICATION, verification(event)
        case Ensembled():
            return ENSEMBLE, ensemble(event)
        case ModelLost():
            return MODEL_LOST, model_lost(event)
        case Finished():
            return GENERATION_END, generation_end(event)
        case Reasoned(event=Verified() | Ensembled() | ModelLost() as inner):
            name, payload = cast("tuple[str, dict[str, Any]]", reported(inner))
            return name, {**payload, "reasoning": True}
    return None


def round_of(event: Verified, models: Sequence[str]) -> list[list[Any]]:
    """A round as messages carry it: the least that its pieces can be made of again.

    Messages are kept in checkpoints and sent to tracers, so every byte counts.

    Args:
        event: What was judged in it.
        models: Names of the models, drafter first.

    Returns:
        For pieces in a row that are the drafter's, with one verdict, `[verdict, symbol, ...]`, with
        the number of the model that was drawn in front of the symbols that it was drawn for. For
        any other piece its row (`_row`).
    """
    entries: list[list[Any]] = []
    verdict: Verdict | None = None  # of the pieces in a row
    drawn: str | None = None
    for piece in event.pieces:
        if piece.ensembled or piece.replaces:
            entries.append(_row(piece, models))
            verdict = None
            continue
        if piece.verdict is not verdict or (piece.drawn is None and drawn is not None):
            verdict, drawn = piece.verdict, None
            entries.append([str(verdict)])
        if piece.drawn != drawn:
            drawn = piece.drawn
            entries[-1].append(models.index(drawn))
        entries[-1].append(show(piece.written))
    return entries


def pieces_of(rounds: Iterable[Iterable[Any]], models: Sequence[str]) -> Iterator[Piece]:
    """The pieces of an answer, out of all its rounds (`round_of`); `models` are names."""
    at = 0
    for entry in chain.from_iterable(rounds):
        if isinstance(entry[0], str):
            drawn = None
            for item in entry[1:]:
                if isinstance(item, int):
                    drawn = models[item]
                    continue
                written = symbol_of(item)
                start, at = at, at + (0 if written == END else len(written))
                yield Piece(start, at, written, written, Verdict(entry[0]), drawn=drawn)
        else:
            yield (piece := _piece(entry, models))
            at = piece.end


def _row(piece: Piece, models: Sequence[str]) -> list[Any]:
    """The values of its fields, those of its votes and of its candidates.

    Tokens are told by where they cut the bytes that they are tokens of, models by their number:
    that of a vote behind its other values, where it is not its place among the votes. What is None
    or empty at the end of a row is left out.
    """
    votes = []
    for place, vote in zip(models, piece.votes, strict=False):
        number = None if vote.model == place else models.index(vote.model)
        told = _cuts(vote.tokens, piece.proposed), *dump(vote, rows=True)[2:], number
        votes.append(_trimmed([*told]))
    candidates = [
        _trimmed([*dump(c, rows=True)[:3], [_cuts(tokens, c.symbol) for tokens in c.tokens]])
        for c in piece.candidates
    ]
    drawn = None if piece.drawn is None else models.index(piece.drawn)
    made = {"votes": votes, "candidates": candidates, "drawn": drawn}
    return _trimmed(list(_named(Piece, dump(piece, rows=True), **made).values()))


def _piece(row: Sequence[Any], models: Sequence[str]) -> Piece:
    """The piece that `_row` was made of."""
    data = _named(Piece, row)
    proposed = symbol_of(data["proposed"])
    votes = []
    for place, (told, *rest) in zip(models, data.get("votes", ()), strict=False):
        vote = _named(Vote, [place, _tokens(told, proposed), *rest])
        if rest[3:] and rest[3] is not None:
            vote["model"] = models[rest[3]]
        votes.append(vote)
    data["votes"] = votes
    data["candidates"] = [_named(Candidate, candidate) for candidate in data.get("candidates", ())]
    for candidate in data["candidates"]:
        whole = symbol_of(candidate["symbol"])
        candidate["tokens"] = [_tokens(told, whole) for told in candidate.get("tokens", ())]
    drawn = data.get("drawn")
    return load(Piece, {**data, "drawn": None if drawn is None else models[drawn]})


def _named(kind: Any, row: Iterable[Any], **instead: Any) -> dict[str, Any]:
    """The values of a row by the names of the fields; further ones are passed over."""
    return {**dict(zip(_hints(kind), row, strict=False)), **instead}


def _trimmed(row: list[Any]) -> list[Any]:
    while row and row[-1] in (None, []):
        row.pop()
    return row


def _cuts(tokens: Sequence[bytes], whole: bytes) -> list[int] | list[str] | None:
    """Where tokens cut the bytes that they make up, without both ends.

    The tokens themselves where they make up other bytes; None where there are none.
    """
    if not tokens:
        return None
    if b"".join(tokens) != whole:
        return [show(token) for token in tokens]
    return list(accumulate(map(len, tokens[:-1])))


def _tokens(told: Any, whole: bytes) -> list[str]:
    """What `_cuts` was given, as shown; version 1 wrote the one token."""
    if told is None:
        return []
    if isinstance(told, str):
        return [told]
    if told and isinstance(told[0], str):
        return list(told)
    return [show(whole[start:end]) for start, end in pairwise([0, *told, len(whole)])]


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
