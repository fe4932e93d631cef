"""Shaping what a model tells that answers with its best ids only (see `TopDistribution`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, inf, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import (
    DenseDistribution,
    Flags,
    SparseDistribution,
    Told,
    TopDistribution,
)
from safe_integrations.engine.sampling import COLDEST, NOTHING_LEFT, keep
from safe_integrations.errors import GenerationError

_NEGLIGIBLE: Final = 1e-5
"""Ids that together have no more than this share of what is told are not asked for."""


def shape_told(
    row: TopDistribution,
    allowed: NDArray[np.bool_] | None,
    options: GenerationConfig,
    size: int,
    limit: int | None,
) -> SparseDistribution | AllowedDistribution:
    """Shapes a row of which the best ids are told, as `shape` does a whole one.

    The order is constraint, temperature, top_k, top_p, min_p.

    The best id is exact, always. If no id is told that may come next, the model is asked: about all
    of them if one question may, else about the best of them. At temperature 0 nothing else is asked
    here, but by the outcome once it must be (`AllowedDistribution`). Above, the outcome holds the
    `top_k` best, all of them asked for but those that can have a share of 1e-5 at most together.

    Args:
        row: What the model told.
        allowed: Which ids may come next; None for all.
        options: How distributions are shaped: without a penalty, and above temperature 0 with
            `top_k` from 1 to the number of ids that the model tells.
        size: Number of all ids.
        limit: Most ids that one question asks for; None for any number.

    Raises:
        GenerationError: Nothing is left that has any probability.
    """
    told = row.top(size)
    if allowed is not None:
        told = [i for i in told if allowed[i]]
        unknown = _without(allowed, row.told)
        if not told and _fits(unknown, limit):
            told, unknown = _best_first(unknown.tolist(), row), unknown[:0]
        elif not told:
            told = list(row.best_of(unknown.tolist()))
            unknown = _without(allowed, [*row.told, *told])
        if not told:
            raise GenerationError(NOTHING_LEFT)
        known = AllowedDistribution(row, told, unknown, allowed, limit)
        if options.temperature == 0:
            return known if unknown.size else _sparse(size, told, row.logprobs(told))
        told = known.top(options.top_k)
    ids = np.sort(np.array(told[: options.top_k], np.intp))
    logits = np.array(row.logprobs(ids.tolist()))
    logits = (logits - logits.max()) / max(options.temperature, COLDEST)
    return keep(size, ids, DenseDistribution(logits, None), options)


class AllowedDistribution(TopDistribution):
    """What may come next, of a row of which only the best ids are told.

    Order is exact: an id that is not told has less than any that is. What the allowed ids have
    together is needed for probabilities. What the unknown of them can add lies between two bounds.
    Where these decide, nobody is asked. Where they do not, all unknown ids are asked for if one
    question may, and then everything is exact. If there are too many, they count as much as their
    number says, of what the model left for all that it did not tell: that may be wrong by a share
    of `rest` of the row over what is told of the allowed ids. If all unknown ids have a share of
    1e-5 at most, they count as nothing in this sum.

    Args:
        row: What the model told.
        told: The allowed ids that are told, at least one, best first.
        unknown: The allowed ids that are not, ascending.
        allowed: Which ids may come next, shape `[tokens.size]`.
        limit: Most ids that one question asks for; None for any number.
    """

    def __init__(
        self,
        row: TopDistribution,
        told: Sequence[int],
        unknown: NDArray[np.intp],
        allowed: NDArray[np.bool_],
        limit: int | None,
    ) -> None:
        super().__init__(told, row.logprobs(told), row.logprobs, row.best_of)
        self.ceiling = min(self.ceiling, row.ceiling)
        self.rest = row.rest
        self._allowed, self._unknown = allowed, unknown
        self._order = list(told)  # with what was asked for since
        self._mass = sum(exp(value) for value in self.told.values())
        most = self._most(len(unknown))
        self._sure = most <= _NEGLIGIBLE * self._mass
        self._fits = _fits(unknown, limit)
        self._whole: SparseDistribution | None = None
        others = allowed.size - len(row.told)
        hidden = min(most, row.rest * len(unknown) / max(others, 1))
        self._hidden = 0.0 if self._sure else hidden
        sums = {"exact": self._hidden, "most": 0.0, "least": most}
        self._totals = {told: log(self._mass + more) for told, more in sums.items()}

    @property
    def _asks(self) -> bool:
        """Whether something is open that one question would tell."""
        return self._fits and not self._sure and self._whole is None

    def _resolve(self) -> SparseDistribution:
        if self._whole is None:
            ids = [*self._top, *self._unknown.tolist()]
            self._whole = _sparse(self._allowed.size, ids, super().logprobs(ids))
        return self._whole

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first; fewer where the rest is negligible. May ask."""
        if self._whole is None and len(self._order) < k and not self._sure:
            if self._fits:
                self._resolve()
            else:
                self._find(k)
        return self._order[:k] if self._whole is None else self._whole.top(k)

    def _find(self, k: int) -> None:
        """Asks for one best id after another."""
        while len(self._order) < k:
            unknown = np.setdiff1d(self._unknown, self._order, assume_unique=True)
            last = min(self.ceiling, self._known[self._order[-1]])
            if min(unknown.size * exp(last), self.rest) <= _NEGLIGIBLE * self._mass:
                break
            found = list(self.best_of(unknown.tolist()))
            if not found:
                break
            self._order += found

    def bounds(self, token_ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """The same, and -inf for ids that may not come next."""
        if self._whole is not None:
            return self._whole.logprobs(token_ids), [True] * len(token_ids)
        values, exact = super().bounds(token_ids)
        total, pairs = self._totals["exact"], zip(token_ids, values, strict=True)
        values = [value - total if self._allowed[i] else -inf for i, value in pairs]
        return values, [
            sure or not self._allowed[i] for i, sure in zip(token_ids, exact, strict=True)
        ]

    def best_among(self, flags: Flags) -> int | None:
        """The most probable of the ids that are flagged; None where none has any probability."""
        flags = flags * self._allowed
        if self._whole is None and (flags[self._top].any() or not self._fits):
            return super().best_among(flags)
        return self._resolve().best_among(flags)

    def mass(self, flags: Flags, told: Told = "exact") -> float:
        """What the ids that are flagged have together."""
        if told == "exact" and self._asks:
            self._resolve()
        if self._whole is not None:
            return self._whole.mass(flags)
        values = [(exp(self.told[i]), flags[i]) for i in self._top]
        own = sum(value for value, flag in values if flag)
        count = int((flags[self._unknown] > 0).sum())
        if told == "most":
            more = self._most(count)
            return (own + more) / (self._mass + more)
        if told == "least":
            return own / (self._mass + self._most(len(self._unknown) - count))
        more = self._hidden * count / max(len(self._unknown), 1)
        return (own + more) / (self._mass + self._hidden)

    def logprobs(self, token_ids: Sequence[int], told: Told = "exact") -> list[float]:
        """Natural logarithms of the probabilities of some ids; -inf for what may not come next."""
        if told == "exact" and self._asks:
            self._resolve()
        if self._whole is not None:
            return self._whole.logprobs(token_ids)
        inside = [i for i in token_ids if self._allowed[i]]
        total, values = self._totals[told], super().logprobs(inside, told)
        found = {i: min(0.0, value - total) for i, value in zip(inside, values, strict=True)}
        return [found.get(i, -inf) for i in token_ids]

    def _most(self, count: int) -> float:
        """The most that so many of the unknown ids can have together."""
        return min(count * exp(self.ceiling), self.rest)


def _fits(ids: NDArray[np.intp], limit: int | None) -> bool:
    return limit is None or ids.size <= limit


def _without(allowed: NDArray[np.bool_], known: Iterable[int]) -> NDArray[np.intp]:
    """The allowed ids but for some, ascending."""
    flags = allowed.copy()
    flags[[*known]] = False
    return np.flatnonzero(flags)


def _best_first(ids: Sequence[int], row: TopDistribution) -> list[int]:
    """Those of some ids that have any probability, best first. Asks."""
    pairs = sorted((-value, i) for i, value in zip(ids, row.logprobs(ids), strict=True))
    return [i for value, i in pairs if value < inf]


def _sparse(size: int, ids: Sequence[int], logprobs: Sequence[float]) -> SparseDistribution:
    """A distribution of these ids alone, normalised."""
    values = np.array(logprobs)
    kept = np.flatnonzero(values > -inf)
    order = kept[np.argsort(np.asarray(ids)[kept])]
    values = values[order]
    highest = values.max()
    total = highest + np.log(np.exp(values - highest).sum())
    return SparseDistribution(size, np.asarray(ids, np.intp)[order], values - total)
