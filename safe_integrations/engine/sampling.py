"""Shaping distributions before they are used, and drawing from them (appendix H)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution, Row, SparseDistribution
from safe_integrations.engine.ensemble import Floats, Merge
from safe_integrations.engine.model import Dense
from safe_integrations.engine.rows import largest
from safe_integrations.errors import GenerationError

Shaped = DenseDistribution | SparseDistribution

DRAFTING: Final = 0
JUDGING: Final = 1
"""What randomness is for: a token's draft and its acceptance must not share it."""

COLDEST: Final = 1e-30
"""The least that a temperature above 0 counts as."""

NOTHING_LEFT: Final = "a model has no token that may come next under the response format"

_ROUNDING: Final = 1e-3


def random_at(seed: int, offset: int, purpose: int) -> np.random.Generator:
    """Randomness for a byte offset and a purpose (`DRAFTING`, `JUDGING`), whenever it is asked for.

    So a seed gives one text, whatever the lookahead and whatever was drafted in vain.
    """
    return np.random.default_rng([seed, offset, purpose])


def shapes(options: GenerationConfig) -> bool:
    """Whether `shape` changes anything for these options, where nothing is forbidden."""
    return options.temperature > 0 or options.repetition_penalty != 1


def shape(
    distribution: Dense,
    history: Sequence[int],
    allowed: NDArray[np.bool_] | None,
    options: GenerationConfig,
) -> Shaped:
    """One model's distribution as it takes part: constrained, penalised, tempered, truncated.

    The order is that of transformers: penalty, temperature, top_k, top_p, min_p; of equal ids at
    the edge of top_k the lowest stay. Truncation belongs to drawing: at temperature 0 only the
    constraint and the penalty act. Only what is asked of the outcome is computed.

    The penalty divides the logits of ids in `history`, what the model has written in this answer,
    where they are positive and multiplies them where they are negative. `allowed` tells which ids
    may come next; None for all. The outcome is normalised.

    Raises:
        GenerationError: Nothing is left that has any probability.
    """
    logits = distribution.logits()
    if allowed is not None:
        logits = np.where(allowed, logits, -np.inf)
    if options.repetition_penalty != 1 and history:
        seen = np.unique(np.asarray(history))
        penalty = options.repetition_penalty
        logits = logits.copy()
        logits[seen] *= np.where(logits[seen] > 0, 1 / penalty, penalty)
    highest = logits.max()
    if highest > -np.inf and options.temperature > 0:
        with np.errstate(over="ignore"):
            logits = (logits - highest) / np.float32(max(options.temperature, COLDEST))
    shaped = DenseDistribution(logits, None)
    if highest == -np.inf:
        raise GenerationError(NOTHING_LEFT)
    return _truncated(shaped, options) if options.temperature > 0 else shaped


def pick(distribution: Shaped, random: np.random.Generator) -> int:
    """Draws one id."""
    if isinstance(distribution, SparseDistribution):
        return int(distribution.ids[draw(np.exp(distribution.own), random)])
    return draw(distribution.weights, random)


def draw(weights: Row, random: np.random.Generator) -> int:
    """Draws an index in proportion to `weights`, which need not sum to 1."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


def speculative_draw(
    merged: Merge,
    drafter: Floats,
    weights: Sequence[float],
    proposed: bytes,
    random: np.random.Generator,
) -> bytes:
    """Keeps a drafted token or replaces it, so that the outcome follows the ensemble.

    The token is accepted with probability min(1, P_ens / P_draft); else the excess of the ensemble
    over the drafter is drawn from (speculative sampling, appendix H). What lies outside the merged
    symbols keeps the drafter's own probability, so nothing the drafter may say is lost.

    Args:
        merged: The models' distributions in one vocabulary, not sharpened.
        drafter: What the drafter gives the symbols, shape `[symbols]`; see `as_single_tokens`.
        weights: One per model, drafter first.
        proposed: What the drafter drew.
        random: Source of randomness.
    """
    own = merged.column(proposed)
    if own is None:
        return proposed
    ensemble = drafter.sum() * (np.asarray(weights) @ merged.by_model)
    if random.random() * drafter[own] < ensemble[own]:
        return proposed
    excess = np.maximum(ensemble - drafter, 0)
    return merged.symbols[draw(excess, random)] if excess.any() else proposed


def _truncated(shaped: DenseDistribution, options: GenerationConfig) -> Shaped:
    """Keeps what top_k, top_p and min_p keep, each of them working on what the last one left."""
    logits, total, size = shaped.logits(), None, shaped.logits().size
    if 0 < options.top_k < size:
        ids = np.sort(largest(logits, options.top_k))
    elif options.top_p < 1:
        # ids below this together hold less than is cut off anyway: no need to sort them
        total = shaped.total
        ids = np.flatnonzero(logits >= total + np.log((1 - options.top_p) / size))
    elif options.min_p > 0:
        ids = np.flatnonzero(logits >= logits[shaped.best] + np.log(options.min_p) - _ROUNDING)
    else:
        return shaped
    return keep(size, ids, DenseDistribution(logits[ids].astype(np.float64), total), options)


def keep(
    size: int, ids: NDArray[np.intp], kept: DenseDistribution, options: GenerationConfig
) -> SparseDistribution:
    """Keeps what top_p and min_p keep of what top_k has left.

    Args:
        size: Number of all ids.
        ids: Those that are left, ascending.
        kept: What they have, shape `[ids]`.
        options: How they are drawn from.
    """
    probs: Floats = np.exp(kept.logits() - kept.total)
    if options.top_p < 1:
        order = np.argsort(-probs, kind="stable")
        before = np.cumsum(probs[order]) - probs[order]
        inside = np.sort(order[before < options.top_p])
        ids, probs = ids[inside], probs[inside]
    inside = np.flatnonzero((probs > 0) & (probs >= options.min_p * probs.max()))
    return SparseDistribution(size, ids[inside], np.log(probs[inside] / probs[inside].sum()))
