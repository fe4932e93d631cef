"""Who the tiny models are: how each splits text, and what it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from benchmarks.claims.problems import AROUND_1000, FACTS, TWO_DIGITS, Fact, Totals

_MISSING: Final = 0.2


@dataclass(frozen=True)
class Recipe:
    """One member.

    Attributes:
        name: One letter.
        size: Tokens of its vocabulary at most.
        numbers: How it splits numbers, a regular expression.
        space: How it splits a space from the word behind it: " ?" keeps them together.
        totals: How large the totals of its problems are.
    """

    name: str
    size: int
    numbers: str = "[0-9]"
    space: str = " ?"
    totals: Totals = TWO_DIGITS

    @property
    def pattern(self) -> str:
        """What no token reaches across."""
        return rf"{self.space}[A-Za-z]+|{self.numbers}|[^A-Za-z0-9]"


RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe("A", 340),  # words in fragments
        Recipe("B", 396, space=""),
        Recipe("C", 423),
        Recipe("D", 560, numbers="[0-9]+"),
        Recipe("G", 700, numbers="[0-9]{1,3}", totals=AROUND_1000),
        Recipe("S", 423, totals=AROUND_1000),
    )
}


def seed_of(name: str, seeds: int) -> int:
    """The seed of a member's facts, problems, weights and batches in a set of seeds."""
    return 1000 * seeds + ord(name)


def known_facts(name: str, seeds: int) -> frozenset[Fact]:
    """All facts but the fifth that a member never sees."""
    random = Random(f"facts {seed_of(name, seeds)}")
    return frozenset(FACTS) - set(random.sample(FACTS, round(_MISSING * len(FACTS))))
