"""Rows of numbers: what is found block by block is what sorting all of it would find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_integrations.engine.rows import largest


def sorted_out(values: np.ndarray, k: int) -> list[int]:
    order = np.argsort(-values, kind="stable")[:k]
    return order[values[order] > -np.inf].tolist()


@given(
    size=st.sampled_from([1, 2, 255, 256, 257, 512, 1000, 5000]),
    levels=st.sampled_from([1, 2, 7, 10**6]),
    gone=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
    k=st.sampled_from([0, 1, 2, 5, 10, 300, 6000]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 10**6),
)
def test_the_largest_are_those_that_a_stable_sort_puts_first(
    size: int, levels: int, gone: float, k: int, dtype: type, seed: int
) -> None:
    """Equal values in several blocks, masked ids, a short last block, more asked for than is there.

    A selection that only promises k of the largest, such as argpartition, mixes up equal values.
    """
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, size).astype(dtype)
    values[rng.random(size) < gone] = -np.inf
    assert largest(values, k).tolist() == sorted_out(values, k)


@pytest.mark.parametrize("value", [0.0, np.finfo(np.float32).min])
def test_the_smallest_number_is_not_nothing(value: float) -> None:
    """Some models mask with the smallest number instead of -inf: those ids still have a place."""
    values = np.full(700, -np.inf, np.float32)
    values[[3, 600]] = value
    assert largest(values, 5).tolist() == [3, 600]


def test_infinity_comes_first() -> None:
    values = np.array([1, np.inf, 2, np.inf], np.float32)
    assert largest(values, 3).tolist() == [1, 3, 2]
