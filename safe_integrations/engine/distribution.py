"""A next-token distribution held as an array: of scripted models, and of shaped ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class DenseDistribution:
    """A next-token distribution held as an array.

    Args:
        logprobs: Log-probabilities, shape `[tokens.size]`.
    """

    def __init__(self, logprobs: NDArray[np.float32]) -> None:
        self._logprobs = logprobs
        self.best = int(logprobs.argmax())

    def logprob(self, token_id: int) -> float:
        """Natural logarithm of the probability of one id."""
        return float(self._logprobs[token_id])

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The same for several ids."""
        return [float(self._logprobs[i]) for i in token_ids]

    def top(self, k: int) -> list[int]:
        """The k most probable ids, best first."""
        order = np.argsort(-self._logprobs, kind="stable")[:k]
        return [int(i) for i in order if self._logprobs[i] > -np.inf]

    def logits(self) -> NDArray[np.float32]:
        """Log-probabilities of all ids."""
        return self._logprobs

    def dense(self) -> NDArray[np.float32]:
        """Log-probabilities of all ids."""
        return self._logprobs
