"""Logits as a distribution: what is read in parts and in blocks is what reading all of it gives."""

from __future__ import annotations

import numpy as np
import pytest

from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.models.folding import Fold
from safe_integrations.models.transformers.logits import LogitsDistribution

NOTHING: list[int] = []
COLUMNS = [n for n in range(320) if n % 10 < 3]  # the first three of each of 32 parts of 320
PARTS = list(range(40, 100))  # whole ones


def table(size: int) -> TokenTable:
    """Ids 3 and 7 are silent, ids 5 and 6 stand for the same bytes as id 4, the last one ends."""
    symbols: list[bytes | None] = [f"<{i}>".encode() for i in range(size)]
    symbols[3] = symbols[7] = None
    symbols[5] = symbols[6] = symbols[4]
    symbols[-1] = END
    return TokenTable(symbols, {size - 1}, lambda text: [4])


@pytest.mark.parametrize("size", [320, 333], ids=["equal parts", "no equal parts"])
@pytest.mark.parametrize("masked", [NOTHING, COLUMNS, PARTS], ids=["nothing", "columns", "parts"])
@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min])
def test_probabilities_are_those_of_a_softmax_over_canonical_ids(
    size: int, masked: list[int], mask: float
) -> None:
    """A model may mask ids; -inf must not become NaN, nor a large number cancel."""
    logits = np.random.default_rng(7).normal(0, 8, size).astype(np.float32)
    logits[masked] = mask
    weights = np.exp(logits.astype(np.float64))
    weights[4] += weights[5] + weights[6]
    weights[[3, 5, 6, 7]] = 0
    expected = weights / weights.sum()
    distribution = LogitsDistribution(logits.copy(), Fold(table(size)))
    got = np.exp(distribution.logprobs(range(size)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.exp(distribution.dense()), expected, rtol=1e-4, atol=1e-9)
    assert distribution.best == expected.argmax()
    order = np.argsort(-expected, kind="stable")[:10]
    assert distribution.top(10) == order.tolist()
