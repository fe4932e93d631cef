"""2) Verify and 3) ensemble by units: what is written does not depend on who drafts (issue 16).

At the place where a unit begins every model has a *proposal*: its favourite token, its favourite
behind that, and so on until the unit is whole. The proposal with the highest weighted mean of the
models' probabilities is written. The drafter's proposal is what it drafts. Two checks and a bound,
all of them made of what one forward pass of each verifier tells, prove at most places that no other
proposal can win (docs/how-it-works.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter
from typing import Final

from safe_integrations.engine.distribution import Told
from safe_integrations.engine.events import Candidate, Piece, Verdict, Vote
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
from safe_integrations.engine.unit_reader import UnitReader
from safe_integrations.engine.unit_rule import Judged, UnitRule
from safe_integrations.engine.units import Unit

_SHOWN: Final = 5
_SURE: Final = 0.5
"""A unit that ends excludes all others that do: only one of them can have more."""


def _rank(unit: Unit, score: float) -> tuple[bool, float, bytes, bool]:
    """The order of proposals, the one to be written first."""
    return not (unit.ended and score > _SURE), -score, unit.text, not unit.ended


def _kept(unit: Unit, verdict: Verdict, votes: tuple[Vote, ...]) -> Piece:
    return Piece(unit.start, unit.end, unit.text, unit.text, verdict, votes)


class MergedUnits(UnitRule):
    """Judges and merges units; `temperature` 0."""

    def pick(self, expected: Distribution) -> int:
        """The drafter's favourite; behind a unit that has ended, the one that begins the next."""
        text, (at, ended) = self.draft.text, self.draft.decided
        held = text[-1] if ended and at == len(text) and text and not self.units.single else None
        return self.drafter.favourite(expected, held)

    def _asked(self, units: Sequence[Unit]) -> Iterator[tuple[UnitReader, int, int]]:
        judged = [n for n, unit in enumerate(units) if self._unasked(unit) is None]
        for reader in self.others if judged else ():
            yield reader, judged[0], judged[-1] + 1

    def _judge(self, unit: Unit) -> Judged:
        """By check (a), all models have the same proposal, by (b), or by merging."""
        drafted = self._drafted(unit)
        if drafted is not unit:
            return self._ensemble(drafted, self._votes(drafted, "most"), ask=True)
        if all(reader.wants(unit, self.held) for reader in self.others):  # check (a)
            votes = tuple(reader.agreement(unit) for reader in self.readers)
            return _kept(unit, Verdict.UNANIMOUS, votes), unit
        votes = self._votes(unit, "most")
        if self._is_majority(unit, votes) and self._partial:  # perhaps only by a bound
            if not self._is_majority(unit, self._votes(unit, "least")):
                votes = self._votes(unit, "exact")
        if self._is_majority(unit, votes):
            return _kept(unit, Verdict.MAJORITY, votes), unit
        # a single other one may as well be gone on with: it wins mostly, as little is not known
        ask = len(self.others) > 1 or self.drafter.view.cursor is not None
        return self._ensemble(unit, votes, ask)

    def _ensemble(self, unit: Unit, votes: tuple[Vote, ...], ask: bool) -> Judged:
        """3) Ensemble: which proposal is written, and what was considered."""
        started = perf_counter() - self._model_seconds()
        found = self._merge(unit, votes, ask)
        self.merge_seconds += perf_counter() - self._model_seconds() - started
        if found is None or isinstance(found, bytes):
            return found
        winner, candidates = found
        verdict = Verdict.CONFIRMED if winner == unit else Verdict.CHANGED
        piece = Piece(winner.start, winner.end, winner.text, unit.text, verdict, votes, candidates)
        return piece, winner

    def _votes(self, unit: Unit, told: Told) -> tuple[Vote, ...]:
        return tuple(reader.vote(unit, self.held, told) for reader in self.readers)

    def _is_majority(self, unit: Unit, votes: Sequence[Vote]) -> bool:
        """Check (b): units that end exclude each other, so no other has more than 1/2, too."""
        mean = self._mean([vote.probability for vote in votes])
        return unit.ended and mean > self.config.consensus_above

    def _merge(
        self, unit: Unit, votes: Sequence[Vote], ask: bool
    ) -> tuple[Unit, tuple[Candidate, ...]] | bytes | None:
        """The proposal with the highest mean, and all that were considered.

        None where one of them fits no window. Unless models may be asked, how one begins.
        """
        chances = self._chances(unit, "least")
        found = {unit: chances}
        single = self.units.single
        for other in self._tokens(unit) if single else self._proposals(unit, votes, chances, ask):
            if other is None or isinstance(other, bytes):
                return other
            if not self._fits(other.text):
                return None
            if other not in found:
                found[other] = self._chances(other, "least")
        if self._partial and not self._is_certain(found):
            found = {one: self._chances(one, "exact") for one in found}
        scores = {one: self._mean(values) for one, values in found.items()}
        order = sorted(scores, key=lambda one: _rank(one, scores[one]))
        candidates = tuple(
            Candidate(one.text, scores[one], tuple(found[one]), self._spellings(one))
            for one in order[:_SHOWN]
        )
        return order[0], candidates

    def _chances(self, unit: Unit, told: Told) -> list[float]:
        return [reader.chance(unit, told) for reader in self.readers]

    def _is_certain(self, least: Mapping[Unit, Sequence[float]]) -> bool:
        """Whether the winner is the same for all that models with few ids may not have told."""
        low = {one: self._mean(values) for one, values in least.items()}
        first = min(low, key=lambda one: _rank(one, low[one]))
        most = {one: self._mean(self._chances(one, "most")) for one in least if one != first}
        return all(_rank(first, low[first]) < _rank(one, most[one]) for one in most)

    def _tokens(self, unit: Unit) -> Iterator[Unit]:
        """All models' best tokens: where they have the same, no further pass is needed."""
        for reader in self.readers:
            (row,) = reader.rows(())
            for token_id in row.top(self.config.union_top_k):
                yield Unit(unit.start, reader.view.tokens.symbol(token_id))

    def _proposals(
        self, unit: Unit, votes: Sequence[Vote], chances: Sequence[float], ask: bool
    ) -> Iterator[Unit | bytes | None]:
        """What the others propose, where a bound does not show that it cannot win.

        None where no window holds it. Unless they may be asked, how one begins.
        """
        score = self._mean(chances)
        for reader, vote in zip(self.others, votes[1:], strict=True):
            if unit.ended and reader.wants(unit, self.held):
                continue
            if self._bound(vote.best, unit, chances, ended=vote.best == END) < score:
                continue
            other = reader.proposal(unit.start, self.held, ask)
            if not isinstance(other, Unit):
                yield other
            elif other != unit and self._bound(other.text, unit, chances, other.ended) >= score:
                yield other

    def _bound(self, text: bytes, unit: Unit, chances: Sequence[float], ended: bool) -> float:
        """The most that a unit can have which begins with a text and is not the one judged."""
        return self._mean(
            [
                reader.at_most(text, unit, chance, ended)
                for reader, chance in zip(self.readers, chances, strict=True)
            ]
        )

    def _spellings(self, unit: Unit) -> tuple[tuple[bytes, ...], ...]:
        return tuple(
            tuple(r.view.tokens.symbol(i) for i in r.spelling(unit.text)) for r in self.readers
        )

    def _model_seconds(self) -> float:
        return math.fsum(reader.view.seconds for reader in self.readers)

    def _mean(self, values: Sequence[float]) -> float:
        return math.fsum(w * value for w, value in zip(self.weights, values, strict=True))
