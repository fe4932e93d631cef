"""Where each piece of an answer comes from: who proposed it, who disagreed, what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from safe_integrations.engine.tokens import END


class Verdict(StrEnum):
    """What became of a drafted token."""

    UNVERIFIED = "unverified"
    """No verifier was asked: there is none, or the mode is `drafter-only`."""
    UNSAFE = "unsafe"
    """Kept unchecked: some verifier has no token boundary where it starts (OOV-like, Eq. 1)."""
    UNANIMOUS = "unanimous"
    """Kept: it is every verifier's favourite."""
    MAJORITY = "majority"
    """Kept: the mean probability is above the threshold."""
    ACCEPTED = "accepted"
    """Kept: drawn by the drafter and accepted by speculative sampling."""
    FORCED = "forced"
    """Written without asking any model: the response format allows nothing else."""
    CONFIRMED = "confirmed"
    """Ensembled, and the drafter's own token won."""
    CHANGED = "changed"
    """Ensembled, and something else was written in its place."""


ENSEMBLED = frozenset({Verdict.CONFIRMED, Verdict.CHANGED})


@dataclass(frozen=True, slots=True)
class Vote:
    """What one model thinks of a drafted token.

    Attributes:
        model: Name of the model.
        token: Its own token at this place, as bytes or END.
        probability: What it gives that token.
        best: Its favourite.
        best_probability: What it gives its favourite.
    """

    model: str
    token: bytes
    probability: float
    best: bytes
    best_probability: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One continuation that was considered in an ensemble.

    Attributes:
        symbol: The bytes, or END.
        probability: Its merged probability, after sharpening.
        by_model: What each model gives it, drafter first.
    """

    symbol: bytes
    probability: float
    by_model: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the answer: a drafted token, or what an ensemble wrote instead.

    Attributes:
        start: Offset in the answer, in bytes.
        end: Where it ends, in bytes.
        written: Its bytes, or END.
        proposed: The drafter's token for this place. Differs from `written` when CHANGED.
        verdict: Why it stands.
        votes: One per model, drafter first. Empty where nobody was asked.
        candidates: Best first. Empty where nothing was merged.
    """

    start: int
    end: int
    written: bytes
    proposed: bytes
    verdict: Verdict
    votes: tuple[Vote, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def ensembled(self) -> bool:
        """Whether merging decided this piece.

        A drawn token that was ACCEPTED does not count, although merging told that it may stay.
        """
        return self.verdict in ENSEMBLED


@dataclass(slots=True)
class ModelStatistics:
    """What one model did for one answer.

    Attributes:
        name: Name of the model.
        prompt_tokens: Length of its prompt.
        reused_tokens: Prompt tokens it did not have to compute again.
        forward_passes: Forward passes.
        forwarded_tokens: Tokens forwarded, prompt included.
        seconds: Wall time inside its forward passes.
    """

    name: str
    prompt_tokens: int
    reused_tokens: int = 0
    forward_passes: int = 0
    forwarded_tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Statistics:
    """How one answer was made. `models[0]` is the drafter.

    Attributes:
        tokens: Tokens of the answer, counted by the drafter; END counts where it was written.
        cycles: Rounds of generate, verify, ensemble.
        drafted: Tokens the drafter proposed, rejected ones included.
        judged: Drafted tokens that were looked at.
        unsafe: Of these, kept because a boundary would have been cut.
        ensembled: Of these, ensembled (see `Piece.ensembled`).
        changed: Of the ensembled, those where something else was written.
        seconds: Wall time of the whole.
        first_token_seconds: Wall time until the first text could be shown; None if there was none.
        tokenise_seconds: Wall time of tokenising the text for the verifiers.
        ensemble_seconds: Wall time of merging distributions.
        models: One entry per model.
    """

    tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    judged: int = 0
    unsafe: int = 0
    ensembled: int = 0
    changed: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    tokenise_seconds: float = 0.0
    ensemble_seconds: float = 0.0
    models: list[ModelStatistics] = field(default_factory=list)

    @property
    def ensembled_ratio(self) -> float:
        """Share of the judged tokens that were ensembled (E/T in the paper)."""
        return self.ensembled / self.judged if self.judged else 0.0

    @property
    def acceptance(self) -> float:
        """Share of the judged tokens that stand as drafted."""
        return 1 - self.changed / self.judged if self.judged else 1.0

    @property
    def overhead_seconds(self) -> float:
        """Wall time outside all forward passes."""
        return self.seconds - sum(model.seconds for model in self.models)


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
