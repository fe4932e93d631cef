"""Two tests that need no tables: how sure a share is, and how sure a paired difference."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

_Z = 1.959963984540054  # 97.5 % of the normal distribution lie below


class Paired(NamedTuple):
    """Two ways on the same problems: those that only the first got right, and only the second.

    Attributes:
        won: Problems that only the first got right.
        lost: Problems that only the second got right.
    """

    won: int
    lost: int

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely a split as uneven as this is by chance."""
        together, fewer = self.won + self.lost, min(self.won, self.lost)
        tail = sum(comb(together, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / (1 << together))


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compares what two ways got right, problem by problem."""
    both = list(zip(first, second, strict=True))
    return Paired(sum(a and not b for a, b in both), sum(b and not a for a, b in both))


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's interval for a share, 95 %."""
    share, z2 = right / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)
