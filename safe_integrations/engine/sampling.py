"""Shaping distributions before they are used, and drawing from them (appendix H)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.ensemble import Floats, Merge
from safe_integrations.engine.model import Distribution
from safe_integrations.errors import GenerationError


def shapes(options: GenerationConfig) -> bool:
    """Whether `shape` changes anything for these options."""
    return options.temperature > 0 or options.repetition_penalty != 1


def shape(
    distribution: Distribution,
    history: Sequence[int],
    allowed: NDArray[np.bool_] | None,
    options: GenerationConfig,
) -> DenseDistribution:
    """One model's distribution as it takes part: constrained, penalised, tempered, truncated.

    The order is that of transformers: penalty, temperature, top_k, top_p, min_p. Truncation
    belongs to drawing: at temperature 0 only the constraint and the penalty act.

    Args:
        distribution: What the model expects next.
        history: Ids it has written in this answer. The penalty divides their logits where they are
            positive and multiplies them where they are negative, as transformers does.
        allowed: Which ids may come next; None for all.
        options: Sampling options.

    Returns:
        The normalised outcome.

    Raises:
        GenerationError: Nothing is left that has any probability.
    """
    logits = distribution.logits().astype(np.float64)
    if allowed is not None:
        logits[~allowed] = -np.inf
    if options.repetition_penalty != 1 and history:
        seen = np.unique(np.asarray(history))
        penalty = options.repetition_penalty
        logits[seen] *= np.where(logits[seen] > 0, 1 / penalty, penalty)
    if options.temperature > 0:
        logits /= options.temperature
    best = logits.max()
    if best == -np.inf:
        raise GenerationError("a model has no token that may come next under the response format")
    shifted = np.exp(logits - best)
    probs: Floats = shifted / shifted.sum()
    if options.temperature > 0:
        probs = _truncate(probs, options)
    with np.errstate(divide="ignore"):
        return DenseDistribution(np.log(probs))


def draw(probs: Floats, random: np.random.Generator) -> int:
    """Draws an index in proportion to `probs`, which need not sum to 1."""
    cumulative = np.cumsum(probs)
    index = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return min(index, int(np.flatnonzero(probs)[-1]))


def speculative_draw(
    merged: Merge, weights: Sequence[float], proposed: bytes, random: np.random.Generator
) -> bytes:
    """Keeps a drafted token or replaces it, so that the outcome follows the ensemble.

    The token is accepted with probability min(1, P_ens / P_draft); else the excess of the ensemble
    over the drafter is drawn from (speculative sampling, appendix H). What lies outside the merged
    symbols keeps the drafter's own probability, so nothing the drafter may say is lost.

    Args:
        merged: The models' distributions in one vocabulary, not sharpened.
        weights: One per model, drafter first.
        proposed: What the drafter drew.
        random: Source of randomness.

    Returns:
        The symbol to write.
    """
    own = bisect_left(merged.symbols, proposed)
    if own == len(merged.symbols) or merged.symbols[own] != proposed:
        return proposed
    ensemble = merged.drafter.sum() * (np.asarray(weights) @ merged.by_model)
    if random.random() * merged.drafter[own] < ensemble[own]:
        return proposed
    excess = np.maximum(ensemble - merged.drafter, 0)
    return merged.symbols[draw(excess, random)] if excess.any() else proposed


def _truncate(probs: Floats, options: GenerationConfig) -> Floats:
    """Keeps what top_k, top_p and min_p keep, each of them working on what the last one left."""
    if 0 < options.top_k < len(probs):
        probs = _keep(probs, np.argpartition(-probs, options.top_k - 1)[: options.top_k])
    if options.top_p < 1:
        # tokens below this together hold less than is cut off anyway: no need to sort them
        likely = np.flatnonzero(probs >= (1 - options.top_p) / len(probs))
        order = likely[np.argsort(-probs[likely], kind="stable")]
        before = np.cumsum(probs[order]) - probs[order]
        probs = _keep(probs, order[before < options.top_p])
    if options.min_p > 0:
        probs = _keep(probs, np.flatnonzero(probs >= options.min_p * probs.max()))
    return probs


def _keep(probs: Floats, kept: NDArray[np.intp]) -> Floats:
    out = np.zeros_like(probs)
    out[kept] = probs[kept]
    out /= out.sum()
    return out
