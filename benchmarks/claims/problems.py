"""Four-step word problems with the work written out, and what is right about an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from random import Random
from typing import Final
from zlib import crc32

NAMES: Final = ("Ann", "Ben", "Eva", "Max", "Lily", "Omar", "Ruth", "Tom")
THINGS: Final = (
    "stickers", "marbles", "coins", "shells", "pencils", "buttons", "stamps", "cards",
)  # fmt: skip
GAINS: Final = ("collects", "finds", "buys", "wins", "makes", "borrows")
LOSSES: Final = ("breaks", "loses", "sells", "drops", "hides", "returns")
_STEPS: Final = ("First", "Then", "Next", "Last")
_WORDS: Final = (*NAMES, *GAINS, *LOSSES, *_STEPS, "starts", "with", "so", "The", "answer", "is")
_HELD_OUT: Final = 8
"""One problem in so many is kept for tests: which, its own text decides."""

Fact = tuple[int, int, int]
"""The last digit of a total, the number, and +1 or -1: 28+8 is (8, 8, 1)."""

FACTS: Final = tuple((d, n, s) for d in range(10) for n in range(2, 10) for s in (1, -1))


@dataclass(frozen=True, slots=True)
class Totals:
    """How large the totals of a problem may be, both ends included."""

    low: int
    high: int

    @property
    def digits(self) -> int:
        """Digits of the largest."""
        return len(str(self.high))

    def facts(self, total: int, known: Set[Fact]) -> list[Fact]:
        """The facts that may come next."""
        return [
            fact
            for fact in FACTS
            if fact[0] == total % 10
            and fact in known
            and self.low <= total + fact[1] * fact[2] <= self.high
        ]


TWO_DIGITS: Final = Totals(10, 99)
AROUND_1000: Final = Totals(940, 1059)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        question: What the models are asked.
        answer: The whole answer, the work written out.
        total: The number at its end.
    """

    question: str
    answer: str
    total: int

    @property
    def held_out(self) -> bool:
        """Whether it is kept for tests: no model is trained on it."""
        return crc32(self.question.encode()) % _HELD_OUT == 0


def problems(
    random: Random, totals: Totals, known: Set[Fact] = frozenset(FACTS), *, held_out: bool
) -> Iterator[Problem]:
    """Endless problems, either those that are kept for tests or the others.

    Args:
        random: Draws them.
        totals: How large their totals are.
        known: They need no other facts than these.
        held_out: Which ones.
    """
    while True:
        problem = _problem(random, totals, known)
        if problem is not None and problem.held_out is held_out:
            yield problem


def equation(random: Random, totals: Totals, known: Set[Fact]) -> tuple[str, str]:
    """One step alone, as `("16+4=", "20.")`."""
    while True:
        total = random.randint(totals.low, totals.high)
        facts = totals.facts(total, known)
        if facts:
            _, number, sign = random.choice(facts)
            return f"{total}{_sign(sign)}{number}=", f"{total + sign * number}."


def right(problem: Problem, text: str) -> bool:
    """Whether an answer ends in the right number."""
    found = re.findall(r"The answer is (\d+)\.", text)
    return bool(found) and int(found[-1]) == problem.total


def broken(text: str, digits: int) -> str | None:
    """The first thing between two spaces that no worked answer of any problem holds.

    Args:
        text: An answer.
        digits: Digits that a total has at most.
    """
    number = rf"\d{{1,{digits}}}"
    words = "|".join((*_WORDS, *(f"{thing}\\." for thing in THINGS)))
    whole = re.compile(rf"{words}|{number}|{number}[,.]|{number}[+-]{number}={number}\.")
    return next((part for part in text.split(" ") if not whole.fullmatch(part)), None)


def _problem(random: Random, totals: Totals, known: Set[Fact]) -> Problem | None:
    name, thing = random.choice(NAMES), random.choice(THINGS)
    total = random.randint(totals.low, totals.high)
    asked: list[str] = []
    worked = [f"{name} starts with {total} {thing}."]
    question = f"{name} has {total} {thing}."
    for step in _STEPS:
        facts = totals.facts(total, known)
        if not facts:
            return None
        _, number, sign = random.choice(facts)
        verb = random.choice(GAINS if sign > 0 else LOSSES)
        after = total + sign * number
        asked.append(f"{verb} {number}")
        work = f"{total}{_sign(sign)}{number}={after}"
        worked.append(f"{step} {name} {verb} {number}, so {work}.")
        total = after
    question += f" {name} {', '.join(asked)}."
    return Problem(question, " ".join([*worked, f"The answer is {total}."]), total)


def _sign(sign: int) -> str:
    return "+" if sign > 0 else "-"
