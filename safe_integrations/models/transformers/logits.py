"""The normaliser of a large row by torch, on several cores.

Every forward pass sweeps the caches of a CPU with the model's weights, so what comes right behind
it pays for each number and each instruction it touches. numpy's small operations cost a third of
torch's there; the exceptions go through a large vocabulary in parts, on several cores.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch

from safe_integrations.models.folding import FoldedDistribution

_PARTS: Final = 32  # of a row, so that several cores can work on it


class LogitsDistribution(FoldedDistribution):
    """A distribution of which only logits are known, shape `[tokens.size]`; folded in place."""

    @cached_property
    def total(self) -> float:
        """Logarithm of the sum of all exponentials."""
        parts = self._logits.reshape(1 if len(self._logits) % _PARTS else _PARTS, -1)
        peaks = parts.argmax(axis=1, keepdims=True)
        ours = np.take_along_axis(torch.from_numpy(parts).log_softmax(-1).numpy(), peaks, 1)
        theirs = np.take_along_axis(parts, peaks, 1)
        return float(np.logaddexp.reduce((theirs - ours)[theirs > -np.inf]))
