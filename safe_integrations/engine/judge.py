"""What becomes of a drafted token: consensus (section 3.2), or the ensemble decides (3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.distribution import Told
from safe_integrations.engine.draft import Step
from safe_integrations.engine.ensemble import as_single_tokens, merge
from safe_integrations.engine.events import Piece, Verdict, Vote
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.sampling import JUDGING, random_at, speculative_draw
from safe_integrations.engine.tokens import END
from safe_integrations.engine.view import View

Opinion = tuple[int, Distribution]
"""A place in a verifier's view of the text, in its tokens, and what it expects there."""


def consensus(votes: Sequence[Vote], weights: Sequence[float], above: float) -> Verdict | None:
    """Judges one drafted token at a place where every model has a token boundary.

    Either check proves that the drafted token already is the most probable one of the averaged
    distribution (appendix C), so ensembling would change nothing.

    Args:
        votes: One per model, the drafter's first.
        weights: One per model, summing to 1.
        above: Threshold of check (b), at least 1/2.

    Returns:
        UNANIMOUS where every verifier's favourite is its own token here (a); MAJORITY where the
        mean probability of the models' own tokens is above the threshold (b); else None.
    """
    if all(vote.tokens == (vote.best,) for vote in votes[1:]):
        return Verdict.UNANIMOUS
    mean = math.fsum(w * vote.probability for w, vote in zip(weights, votes, strict=True))
    return Verdict.MAJORITY if mean > above else None


class Judge:
    """Gives every drafted token its verdict; `models` and `weights` begin with the drafter's.

    Attributes:
        seconds: Wall time of merging distributions so far.
    """

    def __init__(
        self,
        models: Sequence[View],
        config: EnsembleConfig,
        weights: Sequence[float],
        options: GenerationConfig,
        seed: int,
    ) -> None:
        self.seconds = 0.0
        self.ask(models, weights)
        self._draws = options.temperature > 0
        self._seed = seed
        self._above = config.consensus_above
        # drawing follows the plain mixture (appendix H)
        self._config = config.model_copy(update={"sharpening": "none"}) if self._draws else config

    def ask(self, models: Sequence[View], weights: Sequence[float]) -> None:
        """From now on these models are asked."""
        self._models = models
        self._tables = [model.tokens for model in models]
        self._weights = weights
        self._partial = any(model.limits.top is not None for model in models)

    def judge(self, step: Step, opinions: Sequence[Opinion] | None) -> Piece:
        """The verdict on one drafted token, by what the verifiers expect at its place.

        `opinions` are None where it is not safe to ask (Eq. 1), or nobody is there to be asked.
        """
        if step.expected is None:
            return _kept(step, Verdict.FORCED if step.instead_of is None else Verdict.CLOSED)
        if opinions is None:
            return _kept(step, Verdict.UNSAFE if self._models[1:] else Verdict.UNVERIFIED)
        own, distributions = [step.id], [step.expected]
        for model, (index, expected) in zip(self._models[1:], opinions, strict=True):
            own.append(model.own_token(index))
            distributions.append(model.shaped(expected, model.segments.ids[:index]))
        votes = self._votes(own, distributions, "most")
        if not self._draws:
            agreed = consensus(votes, self._weights, self._above)
            if agreed is Verdict.MAJORITY and self._partial:  # perhaps only by a bound
                least = self._votes(own, distributions, "least")
                if consensus(least, self._weights, self._above) is None:
                    votes = self._votes(own, distributions, "exact")
                    agreed = consensus(votes, self._weights, self._above)
            if agreed is not None:
                return _kept(step, agreed, votes)
        return self.ensemble(step, distributions, votes)

    def ensemble(
        self, step: Step, distributions: Sequence[Distribution], votes: tuple[Vote, ...] = ()
    ) -> Piece:
        """What the models expect, drafter first, merged: that decides what stands at a place."""
        started = perf_counter()
        merged = merge(self._tables, distributions, self._weights, self._config)
        if self._draws:
            if self._config.method == "gac":
                drafter = merged.by_model[0]
            else:
                drafter = as_single_tokens(merged.symbols, self._tables[0], distributions[0])
            random = random_at(self._seed, step.start, JUDGING)
            winner = speculative_draw(merged, drafter, self._weights, step.token, random)
            kept = Verdict.ACCEPTED
        else:
            winner = merged.winner(step.token)
            kept = Verdict.CONFIRMED
        candidates = merged.candidates(winner)
        self.seconds += perf_counter() - started
        return Piece(
            step.start,
            step.start + (0 if winner == END else len(winner)),
            winner,
            step.token,
            kept if winner == step.token else Verdict.CHANGED,
            votes,
            candidates,
        )

    def _votes(
        self, token_ids: Sequence[int], distributions: Sequence[Distribution], told: Told
    ) -> tuple[Vote, ...]:
        asked = zip(self._models, token_ids, distributions, strict=True)
        return tuple(model.vote(own, expected, told) for model, own, expected in asked)


def _kept(step: Step, verdict: Verdict, votes: tuple[Vote, ...] = ()) -> Piece:
    end = step.start + (0 if step.token == END else len(step.token))
    return Piece(step.start, end, step.token, step.instead_of or step.token, verdict, votes)
