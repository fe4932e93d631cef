"""Engine events as small, JSON-safe data: what callbacks, tracers and messages carry.

One definition for all adapters. Every payload says which version of `docs/events.md` it follows;
fields may be added within a version, never renamed or removed.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from safe_integrations.engine.events import Ensembled, Finished, FinishReason, Verified
from safe_integrations.engine.tokens import END
from safe_integrations.engine.trace import (
    Candidate,
    ModelStatistics,
    Piece,
    Statistics,
    Verdict,
    Vote,
    piece_payload,
    show,
    statistics_payload,
)
from safe_integrations.report.result import Result

VERSION: Final = 1
"""Of the payloads below (docs/events.md)."""

GENERATION_START: Final = "safe_generation_start"
VERIFICATION: Final = "safe_verification"
ENSEMBLE: Final = "safe_ensemble"
GENERATION_END: Final = "safe_generation_end"

CANDIDATES: Final = 8
"""Most candidates that a payload lists, best first; the written one is always among them."""


def generation_start(models: Sequence[str], mode: str) -> dict[str, Any]:
    """`safe_generation_start`: an answer begins.

    Args:
        models: Names of the models, drafter first.
        mode: Ensemble mode.
    """
    return {"version": VERSION, "models": list(models), "mode": mode}


def verification(event: Verified) -> dict[str, Any]:
    """`safe_verification`: the verifiers checked a draft."""
    pieces = [_piece(piece) for piece in event.pieces]
    for piece in pieces:
        piece.pop("candidates")  # `safe_ensemble` has them
    return {
        "version": VERSION,
        "cycle": event.cycle,
        "pieces": pieces,
        "pending": event.pending,
        "dropped": event.dropped,
    }


def ensemble(event: Ensembled) -> dict[str, Any]:
    """`safe_ensemble`: the models' distributions were merged at one place."""
    return {"version": VERSION, "cycle": event.cycle, **_piece(event.piece)}


def generation_end(event: Finished) -> dict[str, Any]:
    """`safe_generation_end`: the answer is complete."""
    return {
        "version": VERSION,
        "finish_reason": event.finish_reason,
        "length": event.length,
        **statistics_payload(event.statistics),
    }


def round_of(event: Verified) -> dict[str, Any]:
    """A round as messages carry it: votes and candidates only where models were merged."""
    pieces = []
    for piece in event.pieces:
        payload = _piece(piece)
        if not piece.ensembled:
            for key in ("proposed", "votes", "candidates"):
                del payload[key]
        pieces.append(payload)
    return {"cycle": event.cycle, "pieces": pieces, "dropped": event.dropped}


def read_result(rounds: Iterable[Mapping[str, Any]], end: Mapping[str, Any]) -> Result:
    """Puts an answer together again, to show where its pieces come from.

    Args:
        rounds: All rounds, as `round_of` gives them.
        end: What `generation_end` gives.
    """
    length = end["length"]
    pieces = [_read_piece(piece) for r in rounds for piece in r["pieces"]]
    kept = tuple(p for p in pieces if p.start < length or (p.start == length and _is_end(p)))
    written = b"".join(p.written for p in kept if not _is_end(p))
    reason: FinishReason = end["finish_reason"]
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(written[:length])
    return Result(text, reason, _read_statistics(end), kept)


def _piece(piece: Piece) -> dict[str, Any]:
    payload = piece_payload(piece)
    payload["candidates"] = [
        candidate
        for rank, candidate in enumerate(payload["candidates"])
        if rank < CANDIDATES or piece.candidates[rank].symbol == piece.written
    ]
    if not _is_end(piece) and show(piece.written).encode() != piece.written:
        payload["hex"] = piece.written.hex()
    return payload


def _is_end(piece: Piece) -> bool:
    return piece.written == END


def _read_piece(data: Mapping[str, Any]) -> Piece:
    start, end = data["start"], data["end"]
    written = bytes.fromhex(data["hex"]) if "hex" in data else data["written"].encode()
    if start == end:
        written = END
    return Piece(
        start,
        end,
        written,
        _symbol(data["proposed"]) if "proposed" in data else written,
        Verdict(data["verdict"]),
        tuple(
            Vote(
                v["model"],
                _symbol(v["token"]),
                v["probability"],
                _symbol(v["best"]),
                v["best_probability"],
            )
            for v in data.get("votes", ())
        ),
        tuple(
            Candidate(_symbol(c["text"]), c["probability"], tuple(c["by_model"]))
            for c in data.get("candidates", ())
        ),
    )


def _symbol(shown: str) -> bytes:
    return END if shown == show(END) else shown.encode()


def _read_statistics(data: Mapping[str, Any]) -> Statistics:
    counts = ("tokens", "cycles", "drafted", "judged", "unsafe", "ensembled", "changed")
    return Statistics(
        **{name: data[name] for name in (*counts, "seconds", "first_token_seconds")},
        models=[ModelStatistics(**model) for model in data["models"]],
    )
