"""Logits of a model as next-token distributions: nothing is read before it is asked for.

Every forward pass sweeps the caches of a CPU with the model's weights, so what comes right behind
it pays for each number and each instruction it touches. numpy's small operations cost a third of
torch's there; the exceptions go through a large vocabulary in parts, on several cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from safe_integrations.engine.tokens import TokenTable

Logits = NDArray[np.float32]

_BLOCK: Final = 256
_PARTS: Final = 32  # of a row, so that several cores can work on it


class Fold:
    """Maps logits to canonical ids: silent ids get none, aliases are added to theirs.

    Args:
        tokens: The model's tokens as bytes.

    Attributes:
        column: A place in the parts of a row where all of them have a logit; None where there is
            none, or where a row cannot be cut into equal parts.
    """

    def __init__(self, tokens: TokenTable) -> None:
        by_canonical: dict[int, list[int]] = {}
        for alias, canonical in tokens.aliases:
            by_canonical.setdefault(canonical, []).append(alias)
        # one alias of each canonical id per round, so that every round can be done at once
        self._rounds = []
        while by_canonical:
            pairs = [(ids.pop(), canonical) for canonical, ids in by_canonical.items()]
            self._rounds.append(np.array(pairs, np.intp).T)
            by_canonical = {c: ids for c, ids in by_canonical.items() if ids}
        self._gone = np.array([*tokens.silent, *(alias for alias, _ in tokens.aliases)], np.intp)
        self.column: int | None = None
        if tokens.size % _PARTS == 0:
            silent = np.zeros(tokens.size, bool)
            silent[self._gone] = True
            columns = np.flatnonzero(~silent.reshape(_PARTS, -1).any(axis=0))
            self.column = int(columns[0]) if len(columns) else None

    def __call__(self, logits: Logits) -> None:
        """Folds one row in place, shape `[tokens.size]`."""
        for alias, canonical in self._rounds:
            logits[canonical] = np.logaddexp(logits[canonical], logits[alias])
        logits[self._gone] = -np.inf


class LogitsDistribution:
    """A next-token distribution of which only logits are known.

    Args:
        logits: One row as the model gave it, shape `[tokens.size]`; it is folded in place.
        fold: Maps it to canonical ids.
    """

    def __init__(self, logits: Logits, fold: Fold) -> None:
        self._raw = logits
        self._fold = fold

    @cached_property
    def _logits(self) -> Logits:
        """Folded when it is first needed: not every row is."""
        self._fold(self._raw)
        return self._raw

    @cached_property
    def best(self) -> int:
        """The most probable id; of several, the lowest."""
        return int(self._logits.argmax())

    @cached_property
    def _total(self) -> float:
        """Logarithm of the sum of all exponentials."""
        row = torch.from_numpy(self._logits)
        column = self._fold.column
        if column is not None:
            ours = row.view(_PARTS, -1).log_softmax(-1).numpy()[:, column]
            if ours.min() > -1e3:  # not so where a model masks what we look at: it would cancel
                theirs = self._logits.reshape(_PARTS, -1)[:, column]
                return float(np.logaddexp.reduce(theirs - ours))
        return float(self._logits[self.best]) - float(row.log_softmax(-1)[self.best])

    def logprob(self, token_id: int) -> float:
        """Natural logarithm of the probability of one id."""
        return float(self._logits[token_id]) - self._total

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The same for several ids."""
        return [self.logprob(token_id) for token_id in token_ids]

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first: they are in the k blocks with the largest maxima."""
        blocks = _in_blocks(self._logits)
        chosen = _largest(torch.from_numpy(blocks).amax(1).numpy(), k)
        candidates = blocks[chosen].ravel()
        places = _largest(candidates, k)
        places = places[np.argsort(-candidates[places], kind="stable")]
        ids = _BLOCK * chosen[places // _BLOCK] + places % _BLOCK
        return [int(i) for i, v in zip(ids, candidates[places], strict=True) if v > -np.inf]

    def logits(self) -> Logits:
        """Logits of all ids."""
        return self._logits

    def dense(self) -> Logits:
        """Log-probabilities of all ids."""
        return self._logits - np.float32(self._total)


def _in_blocks(logits: Logits) -> Logits:
    """Shape `[blocks, _BLOCK]`; a short last block is filled with -inf."""
    missing = -len(logits) % _BLOCK
    if missing:
        logits = np.pad(logits, (0, missing), constant_values=-np.inf)
    return logits.reshape(-1, _BLOCK)


def _largest(values: Logits, k: int) -> NDArray[np.intp]:
    """Indices of the k largest values, in any order."""
    return np.argpartition(values, -k)[-k:] if k < len(values) else np.arange(len(values))
