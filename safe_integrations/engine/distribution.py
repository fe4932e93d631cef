"""Next-token distributions as the engine holds them: whole, shaped to few ids, or only the top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ContextDecorator
from copy import copy
from functools import cached_property
from math import exp, inf, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.model import Distribution
from safe_integrations.engine.rows import largest
from safe_integrations.errors import GenerationError

Row = NDArray[np.float32] | NDArray[np.float64]
Flags = NDArray[np.float32]
"""1 or 0 per id, shape `[tokens.size]`."""

Told = Literal["exact", "most", "least"]
"""Whether a model that tells only its best ids is asked about others, or else whether what it has
not told counts as the most or the least that it can be."""

_SLACK = 1e-6  # numbers that come as text are rounded


class DenseDistribution:
    """A distribution over all ids, held as an array.

    Args:
        logits: One number per id, shape `[tokens.size]`, -inf where there is no probability.
        total: Logarithm of the sum of their exponentials: 0 where they are log-probabilities;
            None to compute it when it is needed.
    """

    def __init__(self, logits: Row, total: float | None = 0.0) -> None:
        self._logits = logits
        if total is not None:
            self.total = total

    @cached_property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        return int(self._logits.argmax())

    @cached_property
    def weights(self) -> Row:
        """What is in proportion to the probabilities: 1 for the best, shape `[tokens.size]`."""
        weights: Row = np.exp(self._logits - self._logits[self.best])
        return weights

    @cached_property
    def total(self) -> float:
        """Logarithm of the sum of all exponentials."""
        return float(self._logits[self.best] + np.log(self.weights.sum(dtype=np.float64)))

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first."""
        return [int(i) for i in largest(self._logits, k)]

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of some ids."""
        values: list[float] = (self._logits[token_ids].astype(np.float64) - self.total).tolist()
        return values

    def best_among(self, flags: Flags) -> int | None:
        """The most probable of the ids that are flagged; None where none has any probability."""
        best = int(np.where(flags > 0, self._logits, -np.inf).argmax())
        return best if flags[best] and self._logits[best] > -np.inf else None

    def mass(self, flags: Flags) -> float:
        """What the ids that are flagged have together."""
        total = np.einsum("i,i", self.weights, flags)  # not by BLAS, which may spin on other cores
        return float(total) * exp(float(self._logits[self.best]) - self.total)

    def logits(self) -> Row:
        """Logits of all ids."""
        return self._logits

    def dense(self) -> Row:
        """Log-probabilities of all ids."""
        return self._logits - np.float32(self.total) if self.total else self._logits


class SparseDistribution:
    """A distribution over `size` ids of which only few, ascending, have any probability."""

    def __init__(self, size: int, ids: NDArray[np.intp], logprobs: NDArray[np.float64]) -> None:
        self._size = size
        self.ids = ids
        self.own = logprobs

    @cached_property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        return int(self.ids[self.own.argmax()])

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first."""
        return [int(i) for i in self.ids[largest(self.own, k)]]

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of some ids."""
        places = np.minimum(np.searchsorted(self.ids, token_ids), len(self.ids) - 1)
        found = np.where(self.ids[places] == token_ids, self.own[places], -np.inf)
        return [float(value) for value in found]

    def best_among(self, flags: Flags) -> int | None:
        """The most probable of the ids that are flagged; None where none has any probability."""
        own = np.where(flags[self.ids] > 0, self.own, -np.inf)
        return int(self.ids[own.argmax()]) if own.max() > -np.inf else None

    def mass(self, flags: Flags) -> float:
        """What the ids that are flagged have together."""
        return float(np.exp(self.own) @ flags[self.ids])

    def logits(self) -> Row:
        """Log-probabilities of all ids."""
        return self.dense()

    def dense(self) -> Row:
        """Log-probabilities of all ids."""
        row = np.full(self._size, -np.inf)
        row[self.ids] = self.own
        return row


class TopDistribution:
    """What a model tells that answers with its best ids only: these, and a bound for the rest.

    Exact until proved otherwise: `logprobs` asks the model again for what it has not told, and
    remembers it. Who can decide with a bound asks nobody.

    Args:
        ids: The best ids.
        logprobs: Their log-probabilities.
        ask: Gives the log-probabilities of other ids, of any number. It may take forward passes.
        among: Gives the log-probabilities of the best of some ids, of any number: of one at least;
            of none where none has any probability. It may take a forward pass.

    Attributes:
        told: What was told unasked, log-probabilities by id.
        rest: The most that all other ids have together.
        ceiling: The most that one other id has, as a logarithm.

    Raises:
        GenerationError: None of the ids has any probability.
    """

    def __init__(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        ask: Callable[[Sequence[int]], Sequence[float]],
        among: Callable[[Sequence[int]], Mapping[int, float]],
    ) -> None:
        pairs = sorted(zip(ids, logprobs, strict=True), key=lambda pair: (-pair[1], pair[0]))
        if not pairs or pairs[0][1] == -inf:
            raise GenerationError("a model told no id that has any probability")
        self.told = dict(pairs)
        self.rest = max(0.0, 1 - sum(exp(value) for _, value in pairs)) + _SLACK
        self.ceiling = min(pairs[-1][1], log(self.rest))
        self._top = [token_id for token_id, value in pairs if value > -inf]
        self._known = dict(pairs)
        self._ask, self._among = ask, among
        self._found: dict[bytes, int | None] = {}

    def within(self, context: ContextDecorator) -> TopDistribution:
        """The same, with its questions asked within a context; they share what they learn."""
        made = copy(self)
        made._ask, made._among = context(self._ask), context(self._among)
        return made

    @property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        return self._top[0]

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first; no more than the model has told."""
        return self._top[:k]

    def bounds(self, token_ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """The most that some ids can have, unasked, and which are exact; logarithms.

        Where not all ids may come next, up to a constant that they share.

        Others are the least that the model has told, or what the told ids leave of 1.
        """
        values = [self._known.get(i, self.ceiling) for i in token_ids]
        return values, [i in self._known for i in token_ids]

    def best_among(self, flags: Flags) -> int | None:
        """The most probable of the ids that are flagged; None where none has any probability."""
        best = next((i for i in self._top if flags[i]), None)
        if best is None:
            key = np.packbits(flags > 0).tobytes()
            if key not in self._found:
                found = self.best_of(np.flatnonzero(flags).tolist())
                self._found[key] = next(iter(found), None)
            best = self._found[key]
        return best

    def best_of(self, token_ids: Sequence[int]) -> Mapping[int, float]:
        """The best of some ids, best first: one at least, if any has any probability. Asks.

        Raises:
            GenerationError: The model told none of these, but others.
        """
        found = self._among(token_ids) if token_ids else {}
        asked = set(token_ids)
        kept = [(i, value) for i, value in found.items() if i in asked]
        if found and not kept:
            raise GenerationError(
                f"a model was asked for the best of {len(asked)} ids and told others; "
                "its server must keep to the ids that it is given"
            )
        self._known |= kept
        kept.sort(key=lambda pair: (-pair[1], pair[0]))
        return {i: value for i, value in kept if value > -inf}

    def mass(self, flags: Flags, told: Told = "exact") -> float:
        """About what the ids that are flagged have together: their share of the best that are told.

        No question can tell more: a model is asked about some ids, not about most of them.
        """
        values = {i: exp(self.told[i]) for i in self._top}
        return sum(value for i, value in values.items() if flags[i]) / sum(values.values())

    def logprobs(self, token_ids: Sequence[int], told: Told = "exact") -> list[float]:
        """Natural logarithms of the probabilities of some ids."""
        if told != "exact":
            beyond = self.ceiling if told == "most" else -inf
            return [self._known.get(i, beyond) for i in token_ids]
        unknown = sorted({i for i in token_ids if i not in self._known})
        if unknown:
            self._known |= zip(unknown, self._ask(unknown), strict=True)
        return [self._known[i] for i in token_ids]


def logprobs_of(row: Distribution, token_ids: Sequence[int], told: Told) -> list[float]:
    """Natural logarithms of the probabilities of some ids, or bounds of them."""
    if isinstance(row, TopDistribution):
        return row.logprobs(token_ids, told)
    return row.logprobs(token_ids)


def mass_of(row: Distribution, flags: Flags, told: Told) -> float:
    """What the ids that are flagged have together, or a bound of it."""
    return row.mass(flags, told) if isinstance(row, TopDistribution) else row.mass(flags)
