"""Answers of the engine by units, each of them checked for what must hold of every answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Finished, TextDelta, Verdict, Verified
from safe_integrations.engine.tokens import END
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember
from tests.oracle_units import Judged, Outcome

TINY = 1e-5
"""A decision that hangs on less may fall otherwise where numbers are rounded otherwise."""

VERDICTS = {
    Verdict.UNANIMOUS,
    Verdict.MAJORITY,
    Verdict.CONFIRMED,
    Verdict.CHANGED,
    Verdict.ACCEPTED,
    Verdict.UNVERIFIED,
    Verdict.FORCED,
    Verdict.CLOSED,
}
"""All but UNSAFE: nothing that a verifier could be asked about is kept unasked."""


def run(members: Sequence[Any], config: EnsembleConfig, options: GenerationConfig) -> Result:
    """One answer; its pieces tile its text, and each of them has a verdict."""
    events = list(SafeEngine(members[0], members[1:], config).generate("Go.", options))
    deltas = [e.text for e in events if isinstance(e, TextDelta)]
    assert all(deltas), "a delta is not empty"
    assert isinstance(events[-1], Finished) and sum(isinstance(e, Finished) for e in events) == 1
    for member in members:
        if isinstance(member, ScriptedMember):
            assert all(session.closed for session in member.sessions)
            member.sessions.clear()
    result, at = Result.of(events), 0
    for piece in (p for e in events if isinstance(e, Verified) for p in e.pieces):
        assert piece.verdict in VERDICTS
        assert piece.start == at and piece.written
        at += 0 if piece.written == END else len(piece.written)
        assert piece.end == at
    assert result.text == "".join(deltas)
    written = text_of(b"".join(p.written for p in result.pieces if p.written != END))
    assert written.startswith(result.text.rstrip("\ufffd"))
    return result


def pieces_of(result: Result) -> list[Judged]:
    return [Judged(p.start, p.proposed, p.written, str(p.verdict)) for p in result.pieces]


def text_of(data: bytes) -> str:
    """Bytes as text; half a character at the end is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final=False)


def same(outcome: Outcome, result: Result) -> dict[str, tuple[object, object]]:
    """What differs between the oracle and the engine; empty where nothing does."""
    pairs: dict[str, tuple[object, object]] = {
        "text": (outcome.text, result.text),
        "finish_reason": (outcome.finish_reason, result.finish_reason),
        "tokens": (outcome.tokens, result.statistics.tokens),
        "pieces": (outcome.judged, pieces_of(result)),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
