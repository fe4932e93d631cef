"""What counts prove: intervals of a share, and an exact test of two ways on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Final

_Z: Final = 1.959963984540054  # 97.5 % of the normal distribution lie below


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """From 0 to 1; 0 of nothing."""
        return self.right / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share is, at 95 % (Wilson 1927)."""
        if not self.of:
            return 0.0, 1.0
        n, share, square = self.of, self.value, _Z * _Z
        middle = (share + square / (2 * n)) / (1 + square / n)
        half = _Z * sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, slots=True)
class Paired:
    """One way against another on the same problems: where only one of them did better."""

    won: int
    lost: int

    @classmethod
    def of(cls, new: Sequence[float], old: Sequence[float]) -> Paired:
        """Compares scores of the same problems, in the same order."""
        pairs = [*zip(new, old, strict=True)]
        return cls(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))

    @property
    def p(self) -> float:
        """The exact two-sided p-value: each difference is as likely won as lost (McNemar)."""
        n = self.won + self.lost
        tail = sum(comb(n, k) for k in range(min(self.won, self.lost) + 1))
        return min(1.0, float(2 * tail / 2**n))

    def __str__(self) -> str:
        return f"{self.won}:{self.lost}, p {self.p:.2g}"


def agree(text: str, ended: bool, other: str, other_ended: bool) -> bool:
    """Whether two answers are one, up to where a budget cut the shorter one.

    Args:
        text: One of them.
        ended: Whether it came to its end by itself.
        other: The other one.
        other_ended: The same of it.
    """
    if ended and other_ended:
        return text == other
    if ended:
        return text.startswith(other)
    return other.startswith(text) if other_ended else _one_begins(text, other)


def _one_begins(text: str, other: str) -> bool:
    length = min(len(text), len(other))
    return text[:length] == other[:length]
