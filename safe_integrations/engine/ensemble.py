"""Merging next-token distributions of models with different vocabularies (section 3.3).

Everything is compared in bytes. A merge is a table with one row per model and one column per
symbol (bytes, or END), the columns in byte order, so that the continuations of a symbol stand
right behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.events import Candidate
from safe_integrations.engine.model import Dense, Distribution
from safe_integrations.engine.rows import largest
from safe_integrations.engine.tokens import END, TokenTable

Floats = NDArray[np.float64]
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Merge:
    """The models' probabilities in one vocabulary.

    Attributes:
        symbols: The columns, in byte order, each once.
        by_model: Probabilities, shape `[models, symbols]`, drafter first. Where a model that tells
            only its best ids was not asked for more, the least that they can be.
        merged: What they come to together, shape `[symbols]`. Sharpening may leave it
            unnormalised: only its order counts.
    """

    symbols: Sequence[bytes]
    by_model: Floats
    merged: Floats

    def column(self, symbol: bytes) -> int | None:
        """Where a symbol stands; None where it is none of these."""
        at = bisect_left(self.symbols, symbol)
        return at if at < len(self.symbols) and self.symbols[at] == symbol else None

    def winner(self, proposed: bytes) -> bytes:
        """The most probable symbol; of equals the drafter's proposal, else the first in order."""
        best, own = int(self.merged.argmax()), self.column(proposed)
        wins = own is not None and self.merged[own] >= self.merged[best]
        return proposed if wins else self.symbols[best]

    def candidates(self, written: bytes) -> tuple[Candidate, ...]:
        """What was written, and the best of the others, best first; five together."""
        order = [i for i in largest(self.merged, _SHOWN) if self.symbols[i] != written]
        if (own := self.column(written)) is not None:
            order.insert(0, own)
        return tuple(
            Candidate(self.symbols[i], float(self.merged[i]), tuple(self.by_model[:, i].tolist()))
            for i in order[:_SHOWN]
            if self.merged[i] > 0 or self.symbols[i] == written
        )


def merge(
    tables: Sequence[TokenTable],
    distributions: Sequence[Distribution],
    weights: Sequence[float],
    config: EnsembleConfig,
) -> Merge:
    """Merges next-token distributions that follow the same text; sharpens what is too smooth.

    A model that tells only its best ids is asked for others where, and only where, the winner
    could be another one for all that is known.

    Args:
        tables: The models' tokens, drafter first.
        distributions: What each model expects next; `Dense` ones for `gac`.
        weights: One per model, summing to 1.
        config: Method and sharpening.
    """
    if config.method == "gac":
        symbols, by_model = _gac(tables, cast("Sequence[Dense]", distributions))
        return Merge(symbols, by_model, _sharpen(symbols, by_model, weights, tables[0], config))
    pairs = list(zip(tables, distributions, strict=True))
    symbols = sorted({t.symbol(i) for t, d in pairs for i in d.top(config.union_top_k)})
    low, high = _unite(symbols, pairs, _bounds)
    merged = _sharpen(symbols, low, weights, tables[0], config)
    if high is not low and not _is_certain(
        merged,
        _sharpen(symbols, high, weights, tables[0], config),
        [np.asarray(weights) @ shares for shares in (low, high)],
        config,
    ):
        low, _ = _unite(symbols, pairs, _exact)
        merged = _sharpen(symbols, low, weights, tables[0], config)
    return Merge(symbols, low, merged)


Scores = tuple[Sequence[float], Sequence[bool] | None]
"""Log-probabilities, and which of them are exact, not the most that is possible; None for all."""


def _exact(distribution: Distribution, token_ids: Sequence[int]) -> Scores:
    return distribution.logprobs(token_ids), None


def _bounds(distribution: Distribution, token_ids: Sequence[int]) -> Scores:
    if isinstance(distribution, TopDistribution):
        return distribution.bounds(token_ids)
    return _exact(distribution, token_ids)


def _unite(
    symbols: Sequence[bytes],
    models: Sequence[tuple[TokenTable, Distribution]],
    scores_of: Callable[[Distribution, Sequence[int]], Scores],
) -> tuple[Floats, Floats]:
    """Each model's share of the union of the models' top k tokens (UniTE).

    A symbol that is not one token of a model gets the score of its first piece there.

    Returns:
        The least and the most that the shares can be, shape `[models, symbols]`; the same array
        twice where all are exact.
    """
    found = [scores_of(d, [t.first_piece(s) for s in symbols]) for t, d in models]
    scores = np.array([values for values, _ in found])
    most = np.exp(scores - scores.max(axis=1, keepdims=True))
    known = np.array([[True] * len(symbols) if e is None else e for _, e in found])
    if known.all():
        shares = most / most.sum(axis=1, keepdims=True)
        return shares, shares
    least = np.where(known, most, 0)
    total = least.sum(axis=1, keepdims=True)
    return least / most.sum(axis=1, keepdims=True), most / (total + np.where(known, 0, most))


def _is_certain(low: Floats, high: Floats, means: Sequence[Floats], config: EnsembleConfig) -> bool:
    """Whether all that lies between two bounds has the same winner.

    Sharpened values grow with what they are made of, so their bounds are the sharpened bounds, as
    long as both are sharpened or none is; but for the geometric mean, which is normalised.
    """
    smooth = [mean.max() < config.sharpen_below for mean in means]
    if smooth[0] != smooth[1] or (smooth[0] and config.sharpening == "geometric"):
        return False
    best = int(low.argmax())
    return bool(low[best] > np.delete(high, best).max(initial=-1))


def as_single_tokens(
    symbols: Sequence[bytes], table: TokenTable, distribution: Distribution
) -> Floats:
    """What a model gives each symbol as one token of its own; 0 where it is not one.

    Probabilities over its whole vocabulary, shape `[symbols]`.
    """
    ids = [table.id_of(symbol) for symbol in symbols]
    scores = distribution.logprobs([0 if i is None else i for i in ids])
    return np.where([i is None for i in ids], 0.0, np.exp(scores))


def _gac(
    tables: Sequence[TokenTable], distributions: Sequence[Dense]
) -> tuple[Sequence[bytes], Floats]:
    """Union of the whole vocabularies (GaC). A symbol that is not one token has probability 0."""
    joint = _joint_vocabulary(tables)
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
    tables: Sequence[ref[TokenTable]]
    symbols: Sequence[bytes]
    columns: Sequence[NDArray[np.int64]]


_joint: Final[WeakKeyDictionary[TokenTable, list[_JointVocabulary]]] = WeakKeyDictionary()
"""By drafter; what belongs to models that are gone goes with them."""


def _joint_vocabulary(tables: Sequence[TokenTable]) -> _JointVocabulary:
    """All symbols of all models, and each model's id -> column (one more for what has none)."""
    known = [j for j in _joint.get(tables[0], ()) if all(table() for table in j.tables)]
    for joint in known:
        if len(joint.tables) == len(tables) and all(
            r() is t for r, t in zip(joint.tables, tables, strict=True)
        ):
            return joint
    symbols = sorted({s for t in tables for s in t.symbols() if s is not None})
    column = {s: i for i, s in enumerate(symbols)}
    columns = [
        np.array([len(symbols) if s is None else column[s] for s in t.symbols()], np.int64)
        for t in tables
    ]
    made = _JointVocabulary([ref(table) for table in tables], symbols, columns)
    _joint[tables[0]] = [*known, made]
    return made
