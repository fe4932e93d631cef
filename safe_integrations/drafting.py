"""How far to draft, and what to guess before asking the drafter. Neither changes the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_LOOKAHEAD: Final = 16
_FIRST: Final = 5
_MEMORY: Final = 0.9
_KEY: Final = 3
_MOST_GUESSED: Final = 8


class AutoLookahead:
    """Chooses the lookahead that should write the most text per second.

    A cycle of n drafted tokens costs n draft steps and one verification, and writes what comes
    before the first change: with a share a of tokens kept, (1 - a^n) / (1 - a) tokens. All three
    numbers are running means of what was measured in this answer.
    """

    def __init__(self) -> None:
        self._kept = 0.85
        self._step: float | None = None
        self._check: float | None = None

    def choose(self) -> int:
        """The lookahead for the next cycle."""
        if self._step is None or self._check is None:
            return _FIRST
        step, check, kept = self._step, self._check, min(self._kept, 0.995)

        def rate(n: int) -> float:
            return (1 - kept**n) / (1 - kept) / (n * step + check)

        return max(range(2, MAX_LOOKAHEAD + 1), key=rate)

    def learn(
        self, drafted: int, draft_seconds: float, judged: int, changed: bool, check_seconds: float
    ) -> None:
        """Takes in one cycle.

        Args:
            drafted: Tokens drafted.
            draft_seconds: Time that took.
            judged: Drafted tokens that were judged.
            changed: Whether the last of them was replaced.
            check_seconds: Time that verifying took.
        """
        if drafted:
            self._step = _mean(self._step, draft_seconds / drafted)
        if judged:
            self._check = _mean(self._check, check_seconds)
            weight = _MEMORY**judged
            self._kept = weight * self._kept + (1 - weight) * (1 - changed / judged)


class PromptLookup:
    """Guesses the next tokens by finding the last few of them in the prompt.

    Answers over a context copy from it. The drafter checks a guess in one forward pass: a right one
    saves steps, a wrong one changes nothing. Guessing pauses while it does not pay.

    Args:
        prompt: Token ids of the drafter's prompt.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = list(prompt)
        self._next = {tuple(prompt[i - _KEY : i]): i for i in range(_KEY, len(prompt))}
        self._success = 1.0

    def guess(self, answer: Sequence[int], count: int) -> list[int]:
        """Up to `count` ids that may follow; none where the last ids are not in the prompt.

        Args:
            answer: All generated ids.
            count: Most ids to guess.
        """
        last = (*self._prompt[-_KEY:], *answer[-_KEY:])[-_KEY:]
        at = self._next.get(last)
        if at is None or count <= 0:
            return []
        if self._success < 0.5:
            self._success += 0.1
            return []
        return self._prompt[at : at + min(count, _MOST_GUESSED)]

    def learn(self, guessed: int, right: int) -> None:
        """Takes in how many of the guessed ids were right."""
        if guessed:
            self._success = 0.5 * self._success + 0.5 * right / guessed


def _mean(old: float | None, new: float) -> float:
    return new if old is None else _MEMORY * old + (1 - _MEMORY) * new
