"""Logits as a distribution: what is read in parts and in blocks is what reading all of it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.models.transformers.logits import (
    DeviceDistribution,
    Fold,
    LogitsDistribution,
    _best_and_total,
    distributions,
)

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
    (distribution,) = distributions(torch.tensor(logits)[None], Fold(table(size)))
    got = np.exp(distribution.logprobs(range(size)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.exp(distribution.dense()), expected, rtol=1e-4, atol=1e-9)
    assert distribution.best == expected.argmax()
    order = np.argsort(-expected, kind="stable")[:10]
    assert distribution.top(10) == order.tolist()


def rows_with_ties(size: int) -> torch.Tensor:
    """Rows of few values, of two kinds of nothing, and one as it mostly is."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 4, (5, size)).astype(np.float32)
    rows[0] = rng.normal(0, 8, size)
    rows[1, rng.random(size) < 0.9] = -np.inf
    rows[2] = -np.inf
    rows[2, 200] = 1
    rows[3] = np.finfo(np.float32).min
    rows[3, [9, 200, 300]] = 2
    return torch.tensor(rows)


class NoDoubles(TorchFunctionMode):
    """As on a GPU of Apple: a tensor has to come over before it can be a double."""

    def __init__(self) -> None:
        super().__init__()
        self._here: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.double and not any(args[0] is here for here in self._here):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            self._here.append(result)
        return result


@pytest.mark.parametrize("size", [320, 333], ids=["equal parts", "no equal parts"])
def test_all_kinds_of_distributions_are_one(size: int) -> None:
    """Of equals the lowest id comes first, wherever the logits are."""
    rows = rows_with_ties(size)
    known = list(zip(*_best_and_total(rows), strict=True))
    with NoDoubles():
        known_there = list(zip(*_best_and_total(rows), strict=True))
    assert known_there == known
    flags = (np.arange(size) % 3 == 0).astype(np.float32)
    for row, facts in zip(rows, known, strict=True):
        whole = DenseDistribution(row.numpy(), None)
        here, there = LogitsDistribution(row.numpy(), *facts), DeviceDistribution(row, *facts)
        for one in (here, there):
            assert one.best == whole.best
            assert one.total == pytest.approx(whole.total, abs=1e-5)
            for k in (1, 2, 5, 32, 33, size, size + 9):
                assert one.top(k) == whole.top(k)
            with NoDoubles():
                got = one.logprobs([0, 9, size - 1, 200])
            np.testing.assert_allclose(got, whole.logprobs([0, 9, size - 1, 200]), atol=1e-5)
            assert one.logprobs([]) == whole.logprobs([]) == []
            assert one.best_among(flags) == whole.best_among(flags)
            assert one.mass(flags) == pytest.approx(whole.mass(flags), abs=1e-5)
            np.testing.assert_array_equal(one.logits(), whole.logits())
            np.testing.assert_allclose(one.dense(), whole.dense(), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_at_once_are_what_each_is_alone(rows: int, dtype: torch.dtype) -> None:
    """Against the definition; a model may give more logits than there are tokens."""
    logits = (torch.randn(rows, 350, generator=torch.manual_seed(1)) * 8).to(dtype)
    fold = Fold(table(333))
    folded = logits[:, :333].float().clone()
    fold(folded)
    found = distributions(logits.clone(), fold)
    assert len(found) == rows
    for one, row in zip(found, folded, strict=True):
        old = DenseDistribution(row.numpy(), None)
        assert (one.best, one.top(40)) == (old.best, old.top(40))
        assert one.total == pytest.approx(old.total, abs=1e-5)
        np.testing.assert_array_equal(one.logits(), old.logits())
