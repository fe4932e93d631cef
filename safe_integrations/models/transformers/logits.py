"""Logits of a model as next-token distributions: nothing is read before it is asked for.

Every forward pass sweeps the caches of a CPU with the model's weights, so what comes right behind
it pays for each number and each instruction it touches. numpy's small operations cost a third of
torch's there; the exceptions go through a large vocabulary in parts, on several cores.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.tokens import TokenTable

Logits = NDArray[np.float32]

_PARTS: Final = 32  # of a row, so that several cores can work on it


class Fold:
    """Maps logits to canonical ids: silent ids get none, aliases are added to theirs.

    Args:
        tokens: The model's tokens as bytes.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self._alias, self._canonical = np.array(tokens.aliases, np.intp).reshape(-1, 2).T
        self._gone = np.array([*tokens.silent, *self._alias], np.intp)

    def __call__(self, logits: Logits) -> None:
        """Folds one row in place, shape `[tokens.size]`."""
        np.logaddexp.at(logits, self._canonical, logits[self._alias])
        logits[self._gone] = -np.inf


class LogitsDistribution(DenseDistribution):
    """A next-token distribution of which only logits are known.

    Args:
        logits: One row as the model gave it, shape `[tokens.size]`; it is folded in place.
        fold: Maps it to canonical ids.
    """

    def __init__(self, logits: Logits, fold: Fold) -> None:
        self._raw = logits
        self._fold = fold

    @cached_property
    def _logits(self) -> Logits:  # type: ignore[override]
        """Folded when it is first needed: not every row is."""
        self._fold(self._raw)
        return self._raw

    @cached_property
    def total(self) -> float:
        """Logarithm of the sum of all exponentials."""
        parts = self._logits.reshape(1 if len(self._logits) % _PARTS else _PARTS, -1)
        peaks = parts.argmax(axis=1, keepdims=True)
        ours = np.take_along_axis(torch.from_numpy(parts).log_softmax(-1).numpy(), peaks, 1)
        theirs = np.take_along_axis(parts, peaks, 1)
        return float(np.logaddexp.reduce((theirs - ours)[theirs > -np.inf]))
