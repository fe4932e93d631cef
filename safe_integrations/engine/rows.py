"""Rows of numbers, one per token of a vocabulary: what is asked of them at every token."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 256


def largest(values: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """The indices of the k largest values, best first; of equals the lower index comes first.

    Sorting a large vocabulary takes as long as a small model's forward pass. But k blocks of the
    row have maxima that are no less than the k-th largest of all maxima, so nothing below that is
    wanted, and only those blocks are looked into.

    Args:
        values: One row, shape `[n]`, without NaN.
        k: How many.

    Returns:
        Indices, shape `[at most k]`: -inf is left out.
    """
    maxima = np.maximum.reduceat(values, np.arange(0, len(values), _BLOCK))
    floor = float(np.finfo(values.dtype).min)  # all but -inf
    if k < len(maxima):
        floor = max(floor, float(np.partition(maxima, -k)[-k]))
    elif k < len(values):
        floor = max(floor, float(np.partition(values, -k)[-k]))
    blocks = np.flatnonzero(maxima >= floor)
    indices: NDArray[np.intp] = (_BLOCK * blocks[:, None] + np.arange(_BLOCK)).ravel()
    indices = indices[: np.searchsorted(indices, len(values))]  # the last block may be short
    indices = indices[values[indices] >= floor]
    order = np.argsort(-values[indices], kind="stable")[:k]
    return indices[order]
