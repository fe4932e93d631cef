"""What happens while an answer is made. Byte spans and plain numbers, never tensors.

Within a cycle the order is `Drafted`, `Verified`, `Ensembled` (none, one or several), `TextDelta`;
the last event of all is `Finished`. A `ModelLost` comes in front of the `Verified` of its cycle.
Everything else in the package folds over these events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

FinishReason = Literal["stop", "length"]


class Verdict(StrEnum):
    """What became of a drafted piece: a unit, or a token where tokens are judged."""

    UNVERIFIED = "unverified"
    """No verifier was asked: there is none, or the mode is `drafter-only`."""
    UNSAFE = "unsafe"
    """Kept unchecked: some verifier has no token boundary where it starts (OOV-like, Eq. 1).

    A unit never is: it starts where all models have one.
    """
    UNANIMOUS = "unanimous"
    """Kept: it is every verifier's favourite."""
    MAJORITY = "majority"
    """Kept: the mean probability is above the threshold."""
    ACCEPTED = "accepted"
    """Kept: the model that was drawn to write here would write the same.

    A token is accepted by speculative sampling: no model is drawn for it.
    """
    FORCED = "forced"
    """Written without asking any model: the response format allows nothing else."""
    CLOSED = "closed"
    """Written because max_tokens runs out: it leads to the end of the response format."""
    CONFIRMED = "confirmed"
    """Ensembled, and the drafter's own token won."""
    CHANGED = "changed"
    """Ensembled, and something else was written in its place."""


ENSEMBLED = frozenset({Verdict.CONFIRMED, Verdict.CHANGED})


@dataclass(frozen=True, slots=True)
class Vote:
    """What one model thinks of a piece of the draft.

    Attributes:
        model: Name of the model.
        tokens: Its own tokens of the piece, as bytes or END. Judged token by token it is one, and
            need not end where the piece ends.
        probability: What it gives them one after another and, where units were compared, that they
            end there. The most that can be, where a model that tells only its best ids was not
            asked.
        best: What it wants: its own tokens as far as they are its favourites, and where they are
            not, its favourite.
        best_probability: What it gives these, one after another.
    """

    model: str
    tokens: tuple[bytes, ...]
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
        tokens: Each model's own tokens of it, drafter first. Empty where tokens are judged.
    """

    symbol: bytes
    probability: float
    by_model: tuple[float, ...]
    tokens: tuple[tuple[bytes, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the answer: a drafted unit or token, or what an ensemble wrote instead.

    Attributes:
        start: Offset in the answer, in bytes.
        end: Where it ends, in bytes.
        written: Its bytes, or END.
        proposed: What the drafter wanted for this place. Differs from `written` when CHANGED, and
            mostly when CLOSED.
        verdict: Why it stands.
        votes: One per model, drafter first; where a model was drawn, its vote alone. Empty where
            nobody was asked.
        candidates: Best first. Empty where nothing was merged.
        drawn: Name of the model that was drawn to write this unit; None where none was.
    """

    start: int
    end: int
    written: bytes
    proposed: bytes
    verdict: Verdict
    votes: tuple[Vote, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    drawn: str | None = None

    @property
    def ensembled(self) -> bool:
        """Whether the models together decided this piece: by merging, or by who was drawn.

        One that was ACCEPTED does not count, although that told that it may stay.
        """
        return self.verdict in ENSEMBLED

    @property
    def replaces(self) -> bool:
        """Whether something else was written than the drafter wanted."""
        return self.written != self.proposed


@dataclass(slots=True)
class ModelStatistics:
    """What one model did for one answer.

    Attributes:
        name: Name of the model.
        prompt_tokens: Length of its prompt.
        reused_tokens: Prompt tokens it did not have to compute again.
        forward_passes: Forward passes.
        forwarded_tokens: Tokens forwarded, prompt included.
        seconds: Wall time inside its forward passes; of a model that is computed elsewhere, how
            long it was waited for.
        requests: Requests to its server; 0 for a model that is computed here.
        received_bytes: Bytes of the server's answers.
    """

    name: str
    prompt_tokens: int
    reused_tokens: int = 0
    forward_passes: int = 0
    forwarded_tokens: int = 0
    seconds: float = 0.0
    requests: int = 0
    received_bytes: int = 0


@dataclass(slots=True)
class Statistics:
    """How one answer was made. `models[0]` is the drafter.

    Attributes:
        tokens: Tokens of the answer, counted by the drafter; END counts where it was written.
        cycles: Rounds of generate, verify, ensemble.
        drafted: Tokens the drafter proposed, rejected ones included.
        judged: Pieces that were looked at: drafted units, or tokens where tokens are judged.
        unsafe: Of these, kept because a boundary would have been cut.
        ensembled: Of these, ensembled (see `Piece.ensembled`).
        changed: Of the ensembled, those where something else was written.
        seconds: Wall time of the whole.
        first_token_seconds: Wall time until the first text could be shown; None if there was none.
        tokenise_seconds: Wall time of tokenising the text for the verifiers.
        ensemble_seconds: Wall time of merging, outside of forward passes.
        models: One entry per model.
        closed: Of the judged, written to end within max_tokens.
        closed_at: From where on max_tokens decided what was written, in bytes; None where it did
            not.
        cut: JSON pointers of the values that it cut or made up.
        reasoning_tokens: Length of the reasoning in front of the answer, in the drafter's tokens.
        waited_seconds: Wall time before it began, until other answers had left memory for it.
        lost: Verifiers whose servers failed, and from where on it was written without them, in
            bytes.
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
    closed: int = 0
    closed_at: int | None = None
    cut: list[str] = field(default_factory=list)
    reasoning_tokens: int = 0
    waited_seconds: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Counts what an event says: a fold over the events of an answer.

        `cycles` to `changed`, `closed` and `lost` are made of nothing else,
        so they are right after every event, also of an answer that is never finished.

        Args:
            event: The next one.
        """
        match event:
            case Drafted():
                self.cycles = event.cycle
                self.drafted += len(event.tokens)
            case ModelLost():
                self.lost[event.model] = event.at
            case Verified():
                verdicts = [piece.verdict for piece in event.pieces]
                self.judged += len(verdicts)
                self.unsafe += verdicts.count(Verdict.UNSAFE)
                self.ensembled += sum(piece.ensembled for piece in event.pieces)
                self.changed += verdicts.count(Verdict.CHANGED)
                self.closed += verdicts.count(Verdict.CLOSED)

    def add_wait(self, seconds: float) -> None:
        """Counts time before the answer began, which is part of the whole."""
        self.waited_seconds += seconds
        self.seconds += seconds
        if self.first_token_seconds is not None:
            self.first_token_seconds += seconds

    @property
    def ensembled_ratio(self) -> float:
        """Share of the judged pieces that were ensembled (E/T in the paper)."""
        return self.ensembled / self.judged if self.judged else 0.0

    @property
    def acceptance(self) -> float:
        """Share of the judged pieces that stand as drafted."""
        return 1 - self.changed / self.judged if self.judged else 1.0

    @property
    def overhead_seconds(self) -> float:
        """Wall time outside all forward passes, without that of waiting to begin."""
        return self.seconds - self.waited_seconds - sum(model.seconds for model in self.models)


@dataclass(frozen=True, slots=True)
class Drafted:
    """The drafter wrote ahead.

    Attributes:
        cycle: Number of the cycle, from 1.
        start: Where the new tokens begin, in bytes.
        tokens: The new tokens, as bytes or END.
    """

    cycle: int
    start: int
    tokens: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ModelLost:
    """A verifier's server failed; the answer goes on without it (`EnsembleConfig.on_missing`).

    Attributes:
        cycle: Number of the cycle, from 1. A draft that was being verified is dropped, and written
            again in the next.
        model: Name of the verifier.
        at: From where on it has no vote, in bytes.
        reason: What went wrong.
    """

    cycle: int
    model: str
    at: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The verifiers checked the draft.

    Attributes:
        cycle: Number of the cycle, from 1.
        pieces: What was judged, in order; an ensembled one can only be followed by others where
            it was confirmed.
        pending: Drafted tokens that wait for more text before they can be judged.
        dropped: Drafted tokens that were thrown away.
    """

    cycle: int
    pieces: tuple[Piece, ...]
    pending: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Ensembled:
    """The models decided one place together.

    Attributes:
        cycle: Number of the cycle, from 1.
        piece: What was written, by whose votes, out of which candidates, or by which model.
    """

    cycle: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text: whole characters, never part of a stop string.

    Attributes:
        text: Not empty. All deltas together are the answer.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Attributes:
        finish_reason: `stop` at END or a stop string, `length` where max_tokens or a full
            window ended it.
        length: Bytes of the answer: offsets of pieces beyond it were cut off by a stop string.
        statistics: How it was made.
    """

    finish_reason: FinishReason
    length: int
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Reasoned:
    """Something happened while the models were reasoning, in front of the answer.

    Attributes:
        event: What. Its cycles and offsets are those of the reasoning alone.
    """

    event: Event


Event = Drafted | ModelLost | Verified | Ensembled | TextDelta | Finished | Reasoned
