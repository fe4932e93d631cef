"""Logits of a model as next-token distributions.

What every reader of a row asks for, its best id and the sum of its exponentials, is computed for
all rows of a forward pass at once, in its thread and on its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import Dense
from safe_integrations.engine.tokens import TokenTable

_PARTS: Final = 32  # of a row, so that several cores can work on it


class Fold:
    """Maps logits to canonical ids: silent ids get none, aliases are added to theirs."""

    def __init__(self, tokens: TokenTable) -> None:
        self.size = tokens.size
        self._aliases: list[tuple[list[int], list[int]]] = []  # of which no id gets two at once
        for alias, canonical in tokens.aliases:
            for to, of in self._aliases:  # noqa: B007
                if canonical not in to:
                    break
            else:
                to, of = [], []
                self._aliases.append((to, of))
            to.append(canonical)
            of.append(alias)
        gone = {*tokens.silent, *(alias for alias, _ in tokens.aliases)}
        self._gone = torch.tensor(sorted(gone), dtype=torch.long)

    def __call__(self, logits: torch.Tensor) -> None:
        """Folds rows in place, shape `[rows, tokens.size]`."""
        for to, of in self._aliases:
            logits[:, to] = torch.logaddexp(logits[:, to], logits[:, of])
        logits.index_fill_(1, self._gone.to(logits.device), -torch.inf)


def distributions(logits: torch.Tensor, fold: Fold) -> Sequence[Dense]:
    """What a model expects at several places.

    Args:
        logits: Its logits, shape `[rows, tokens.size or more]`; folded in place where they can be.
        fold: Maps them to canonical ids.
    """
    logits = logits[:, : fold.size].float()
    fold(logits)
    best = logits.argmax(-1, keepdim=True)
    count = 1 if logits.shape[1] % _PARTS else _PARTS
    parts = logits.reshape(len(logits), count, -1)
    peaks = parts.argmax(-1, keepdim=True)
    sums = (parts.gather(-1, peaks) - parts.log_softmax(-1).gather(-1, peaks)).double()[..., 0]
    totals = sums.masked_fill(sums.isnan(), -torch.inf).logsumexp(-1)  # parts without any: nan
    found = zip(best[:, 0].tolist(), totals.tolist(), strict=True)
    if logits.device.type == "cpu":
        rows = logits.numpy()
        return [LogitsDistribution(row, *pair) for row, pair in zip(rows, found, strict=True)]
    return [DeviceDistribution(row, *pair) for row, pair in zip(logits, found, strict=True)]


class LogitsDistribution(DenseDistribution):
    """A distribution of which the best id and the sum of all exponentials are known."""

    def __init__(self, logits: NDArray[np.float32], best: int, total: float) -> None:
        super().__init__(logits, total)
        self.best = best


class DeviceDistribution(DenseDistribution):
    """One whose logits are on another device: only what is read comes over."""

    def __init__(self, logits: torch.Tensor, best: int, total: float) -> None:
        self._there = logits
        self.best = best
        self.total = total

    @cached_property
    def _logits(self) -> NDArray[np.float32]:  # type: ignore[override]
        return self._there.cpu().numpy()

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first."""
        least = self._there.topk(min(k, len(self._there))).values[-1]
        ids = ((self._there >= least) & (self._there > -torch.inf)).nonzero()[:, 0]
        order = self._there[ids].argsort(descending=True, stable=True)  # of equals the lower first
        best: list[int] = ids[order][:k].tolist()
        return best

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of some ids."""
        values: list[float] = (self._there[list(token_ids)].double() - self.total).tolist()
        return values
