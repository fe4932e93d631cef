"""Merging next-token distributions of models with different vocabularies (section 3.3).

Everything is compared in bytes. A merge is a table with one row per model and one column per
symbol (bytes, or END), the columns in byte order, so that the continuations of a symbol stand
right behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.events import Candidate
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END, TokenTable

Floats = NDArray[np.float64]
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Merge:
    """The models' probabilities in one vocabulary.

    Attributes:
        symbols: The columns, in byte order, each once.
        by_model: Probabilities, shape `[models, symbols]`, drafter first.
        merged: What they come to together, shape `[symbols]`. Sharpening may leave it
            unnormalised: only its order counts.
        drafter: What the drafter gives each symbol as one token of its own, over its whole
            vocabulary, shape `[symbols]`; 0 where it is not one token.
    """

    symbols: Sequence[bytes]
    by_model: Floats
    merged: Floats
    drafter: Floats

    def winner(self, proposed: bytes) -> bytes:
        """The most probable symbol; of equals the drafter's proposal, else the first in order."""
        best = int(self.merged.argmax())
        own = bisect_left(self.symbols, proposed)
        if own < len(self.symbols) and self.symbols[own] == proposed:
            if self.merged[own] >= self.merged[best]:
                best = own
        return self.symbols[best]

    def candidates(self, winner: bytes) -> tuple[Candidate, ...]:
        """The winner and the next best, best first."""
        count = min(_SHOWN, len(self.symbols))
        best = np.argpartition(-self.merged, count - 1)[:count]
        order = sorted(best, key=lambda i: (self.symbols[i] != winner, -self.merged[i]))
        return tuple(
            Candidate(self.symbols[i], float(self.merged[i]), tuple(self.by_model[:, i].tolist()))
            for i in order
            if self.merged[i] > 0 or self.symbols[i] == winner
        )


def merge(
    tables: Sequence[TokenTable],
    distributions: Sequence[Distribution],
    weights: Sequence[float],
    config: EnsembleConfig,
) -> Merge:
    """Merges next-token distributions that follow the same text.

    Args:
        tables: The models' tokens, drafter first.
        distributions: What each model expects next.
        weights: One per model, summing to 1.
        config: Method and sharpening.

    Returns:
        The merge, sharpened where it was too smooth.
    """
    symbols: Sequence[bytes]
    if config.method == "unite":
        symbols, by_model = _unite(tables, distributions, config.union_top_k)
        drafter = _as_single_tokens(symbols, tables[0], distributions[0])
    else:
        symbols, by_model = _gac(tables, distributions)
        drafter = by_model[0]
    merged = _sharpen(symbols, by_model, weights, tables[0], config)
    return Merge(symbols, by_model, merged, drafter)


def _unite(
    tables: Sequence[TokenTable], distributions: Sequence[Distribution], k: int
) -> tuple[list[bytes], Floats]:
    """Union of the models' top k tokens, each model's share of it (UniTE).

    A symbol that is not one token of a model gets the score of its first piece there.
    """
    union = {t.symbol(i) for t, d in zip(tables, distributions, strict=True) for i in d.top(k)}
    symbols = sorted(union)
    scores = np.array(
        [
            d.logprobs([t.first_piece(s) for s in symbols])
            for t, d in zip(tables, distributions, strict=True)
        ]
    )
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return symbols, shares / shares.sum(axis=1, keepdims=True)


def _as_single_tokens(
    symbols: Sequence[bytes], table: TokenTable, distribution: Distribution
) -> Floats:
    ids = [table.id_of(symbol) for symbol in symbols]
    scores = distribution.logprobs([0 if i is None else i for i in ids])
    return np.where([i is None for i in ids], 0.0, np.exp(scores))


def _gac(
    tables: Sequence[TokenTable], distributions: Sequence[Distribution]
) -> tuple[Sequence[bytes], Floats]:
    """Union of the whole vocabularies (GaC). A symbol that is not one token has probability 0."""
    joint = _joint_vocabulary(tuple(tables))
    rows = [
        np.bincount(columns, np.exp(d.dense(), dtype=np.float64), len(joint.symbols) + 1)[:-1]
        for columns, d in zip(joint.columns, distributions, strict=True)
    ]
    return joint.symbols, np.stack(rows)


def _sharpen(
    symbols: Sequence[bytes],
    by_model: Floats,
    weights: Sequence[float],
    drafter: TokenTable,
    config: EnsembleConfig,
) -> Floats:
    """The weighted mean, sharpened if its maximum is low. This is the rule to change."""
    share = np.asarray(weights)
    mean: Floats = share @ by_model
    if config.sharpening == "none" or mean.max() >= config.sharpen_below:
        return mean
    if config.sharpening == "geometric":
        with np.errstate(divide="ignore"):
            logs = np.log(by_model[share > 0])
        geometric: Floats = np.exp(share[share > 0] @ logs)
        total = geometric.sum()
        return geometric / total if total > 0 else mean
    sharpened = mean.copy()
    for i in np.flatnonzero(mean > config.prefix_threshold).tolist():
        symbol = symbols[i]
        if symbol != END and drafter.id_of(symbol) is not None:
            # continuations give from the mean itself, so nested prefixes count each of them once
            sharpened[i] += mean[i + 1 : _end_of_continuations(symbols, symbol)].sum()
    return sharpened


def _end_of_continuations(symbols: Sequence[bytes], prefix: bytes) -> int:
    """Index behind the last symbol that starts with `prefix`; END continues nothing."""
    successor = prefix.rstrip(b"\xff")
    if not successor:
        return bisect_left(symbols, prefix) + 1
    return bisect_left(symbols, successor[:-1] + bytes([successor[-1] + 1]))


@dataclass(frozen=True, slots=True)
class _JointVocabulary:
    symbols: Sequence[bytes]
    columns: Sequence[NDArray[np.int64]]


@lru_cache(maxsize=8)
def _joint_vocabulary(tables: tuple[TokenTable, ...]) -> _JointVocabulary:
    """All symbols of all models, and each model's id -> column (one more for what has none)."""
    symbols = sorted({s for t in tables for s in t.symbols() if s is not None})
    column = {s: i for i, s in enumerate(symbols)}
    columns = [
        np.array([len(symbols) if s is None else column[s] for s in t.symbols()], np.int64)
        for t in tables
    ]
    return _JointVocabulary(symbols, columns)
