"""Logits of a model as next-token distributions: nothing is read before it is asked for."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.tokens import TokenTable

Logits = NDArray[np.float32]


class Fold:
    """Maps logits to canonical ids: silent ids get none, aliases are added to theirs."""

    def __init__(self, tokens: TokenTable) -> None:
        self._alias, self._canonical = np.array(tokens.aliases, np.intp).reshape(-1, 2).T
        self._gone = np.array([*tokens.silent, *self._alias], np.intp)

    def __call__(self, logits: Logits) -> None:
        """Folds one row in place, shape `[tokens.size]`."""
        np.logaddexp.at(logits, self._canonical, logits[self._alias])
        logits[self._gone] = -np.inf


class FoldedDistribution(DenseDistribution):
    """A distribution of which only logits are known, shape `[tokens.size]`; folded in place."""

    def __init__(self, logits: Logits, fold: Fold) -> None:
        self._raw = logits
        self._fold = fold

    @cached_property
    def _logits(self) -> Logits:  # type: ignore[override]
        """Folded when it is first needed: not every row is."""
        self._fold(self._raw)
        return self._raw
