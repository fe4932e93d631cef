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

from safe_integrations.engine.events import Candidate, Piece, Verdict, Vote
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
from safe_integrations.engine.unit_reader import Told, UnitReader
from safe_integrations.engine.unit_rule import UnitRule
from safe_integrations.engine.units import Unit

_SHOWN: Final = 5
_SURE: Final = 0.5
"""A unit that ends excludes all others that do: only one of them can have more."""


def _rank(unit: Unit, score: float) -> tuple[bool, float, bytes, bool]:
    """The order of proposals, the one to be written first."""
    return not (unit.ended and score > _SURE), -score, unit.text, not unit.ended


class MergedUnits(UnitRule):
    """Judges and merges units; `temperature` 0."""

    def pick(self, expected: Distribution) -> int:
        """The drafter's favourite; behind a unit that has ended, the one that begins the next."""
        text, (at, ended) = self.draft.text, self.draft.decided
        held = text[-1] if ended and at == len(text) and text and not self.units.single else None
        return self.drafter.favourite(expected, held)

    def _asked(self, units: Sequence[Unit]) -> Iterator[tuple[UnitReader, int, int]]:
        judged = [n for n, unit in enumerate(units) if not self._is_written(unit)]
        for reader in self.others if judged else ():
            yield reader, judged[0], judged[-1] + 1

    def _judge(self, unit: Unit) -> tuple[Piece, Unit] | None:
        """By check (a), all models have the same proposal, by (b), or by merging."""
        drafted = self._drafted(unit)
        if drafted is not unit:
            self._was_begun = True
            return self._ensemble(drafted, self._votes(drafted, "most"))
        agreed: Verdict | None = None
        if all(reader.wants(unit, self.held) for reader in self.others):  # check (a)
            agreed = Verdict.UNANIMOUS
            votes = tuple(reader.agreement(unit) for reader in self.readers)
        else:
            votes = self._votes(unit, "most")
            if self._is_majority(unit, votes) and self._partial:  # perhaps only by a bound
                votes = self._votes(unit, "exact")
            if self._is_majority(unit, votes):
                agreed = Verdict.MAJORITY
        if agreed is not None:
            return Piece(unit.start, unit.end, unit.text, unit.text, agreed, votes), unit
        return self._ensemble(unit, votes)

    def _ensemble(self, unit: Unit, votes: tuple[Vote, ...]) -> tuple[Piece, Unit] | None:
        """3) Ensemble: which proposal is written, and what was considered."""
        started = perf_counter() - self._model_seconds()
        found = self._merge(unit, votes)
        self.merge_seconds += perf_counter() - self._model_seconds() - started
        if found is None:
            return None
        winner, candidates = found
        self._begun = None
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
        self, unit: Unit, votes: Sequence[Vote]
    ) -> tuple[Unit, tuple[Candidate, ...]] | None:
        """The proposal with the highest mean, and all that were considered.

        None where one of them fits no window.
        """
        chances = self._chances(unit, "least")
        score = self._mean(chances)
        found = {unit: chances}
        for reader, vote in zip(self.others, votes[1:], strict=True):
            for other in self._proposals(reader, vote, unit, score, chances):
                if other is None or not self._fits(other.text):
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

    def _proposals(
        self, reader: UnitReader, vote: Vote, unit: Unit, score: float, chances: Sequence[float]
    ) -> Iterator[Unit | None]:
        """What a model proposes, where a bound does not show that it cannot win.

        None where no window holds it.
        """
        if self.units.single:
            (row,) = reader.rows(())
            symbol = reader.view.tokens.symbol
            for one in (r.rows(())[0] for r in self.readers):
                for token_id in one.top(self.config.union_top_k):
                    yield Unit(unit.start, symbol(token_id))
            return
        if unit.ended and reader.wants(unit, self.held):
            return
        if self._bound(vote.best, unit, chances, ended=vote.best == END) < score:
            return
        # alone, it may as well be gone on with: it wins mostly, as what is not known is little
        begun = self._begun is not None or not unit.ended
        ask = len(self.others) > 1 or reader.view.cursor is not None or begun
        proposal = reader.proposal(unit.start, self.held, ask)
        if proposal is None:
            yield None
        elif isinstance(proposal, bytes):
            self._beginning = proposal
            yield None
        elif proposal != unit:
            if self._bound(proposal.text, unit, chances, proposal.ended) >= score:
                yield proposal

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
