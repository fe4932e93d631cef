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


def distributions(logits: torch.Tensor, fold: Fold) -> Sequence[DenseDistribution]:
    """What a model expects at several places.

    Args:
        logits: Its logits, shape `[rows, tokens.size or more]`; folded in place where they can be.
        fold: Maps them to canonical ids.
    """
    logits = logits[:, : fold.size].float()
    fold(logits)
    here = logits.device.type == "cpu"
    known: list[tuple[int, float]] = []
    for rows in torch.split(logits, 1 if here else len(logits)):  # what a cache of a CPU can hold
        known += zip(*_best_and_total(rows), strict=True)
    if here:
        return [LogitsDistribution(r, *k) for r, k in zip(logits.numpy(), known, strict=True)]
    return [DeviceDistribution(r, *k) for r, k in zip(logits, known, strict=True)]


def _best_and_total(rows: torch.Tensor) -> tuple[list[int], list[float]]:
    """Of each row the best id, and the logarithm of the sum of all exponentials."""
    count = 1 if rows.shape[1] % _PARTS else _PARTS
    parts = rows.reshape(len(rows), count, -1)
    peaks = parts.amax(-1)
    sums = (peaks - parts.log_softmax(-1).amax(-1)).cpu().double()  # Apple's GPUs have no doubles
    totals = sums.masked_fill(sums.isnan(), -torch.inf).logsumexp(-1)  # parts without any: nan
    where = peaks.argmax(-1)  # of equals the first
    inside = parts[torch.arange(len(rows), device=rows.device), where].argmax(-1)
    best: list[int] = (where * parts.shape[-1] + inside).tolist()
    return best, totals.tolist()


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
        values: list[float] = (self._there[list(token_ids)].cpu().double() - self.total).tolist()
        return values
