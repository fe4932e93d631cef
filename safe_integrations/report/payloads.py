"""Engine events as small, JSON-safe data: what callbacks, tracers and messages carry.

One definition for all adapters. Every payload says which version of `docs/events.md` it follows;
fields may be added within a version, never renamed or removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from safe_integrations.engine.events import Ensembled, Finished, Piece, Statistics, Verified
from safe_integrations.engine.tokens import END

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


def show(symbol: bytes) -> str:
    """A symbol for people and for JSON: its text, `<end>`, or escapes for half a character."""
    return "<end>" if symbol == END else symbol.decode(errors="backslashreplace")


def piece_payload(piece: Piece) -> dict[str, Any]:
    """A piece as JSON-safe data (docs/events.md)."""
    return {
        "start": piece.start,
        "end": piece.end,
        "written": show(piece.written),
        "proposed": show(piece.proposed),
        "verdict": str(piece.verdict),
        "votes": [
            {
                "model": v.model,
                "token": show(v.token),
                "probability": round(v.probability, 6),
                "best": show(v.best),
                "best_probability": round(v.best_probability, 6),
            }
            for v in piece.votes
        ],
        "candidates": [
            {
                "text": show(c.symbol),
                "probability": round(c.probability, 6),
                "by_model": [round(p, 6) for p in c.by_model],
            }
            for c in piece.candidates
        ],
    }


def statistics_payload(statistics: Statistics) -> dict[str, Any]:
    """Statistics as JSON-safe data (docs/events.md)."""
    return {
        "tokens": statistics.tokens,
        "cycles": statistics.cycles,
        "drafted": statistics.drafted,
        "judged": statistics.judged,
        "unsafe": statistics.unsafe,
        "ensembled": statistics.ensembled,
        "changed": statistics.changed,
        "ensembled_ratio": round(statistics.ensembled_ratio, 6),
        "acceptance": round(statistics.acceptance, 6),
        "seconds": round(statistics.seconds, 6),
        "overhead_seconds": round(statistics.overhead_seconds, 6),
        "first_token_seconds": statistics.first_token_seconds
        and round(statistics.first_token_seconds, 6),
        "tokenise_seconds": round(statistics.tokenise_seconds, 6),
        "ensemble_seconds": round(statistics.ensemble_seconds, 6),
        "models": [
            {
                "name": m.name,
                "prompt_tokens": m.prompt_tokens,
                "reused_tokens": m.reused_tokens,
                "forward_passes": m.forward_passes,
                "forwarded_tokens": m.forwarded_tokens,
                "seconds": round(m.seconds, 6),
            }
            for m in statistics.models
        ],
    }


def _piece(piece: Piece) -> dict[str, Any]:
    payload = piece_payload(piece)
    payload["candidates"] = [
        candidate
        for rank, candidate in enumerate(payload["candidates"])
        if rank < CANDIDATES or piece.candidates[rank].symbol == piece.written
    ]
    if not piece.written == END and show(piece.written).encode() != piece.written:
        payload["hex"] = piece.written.hex()
    return payload
