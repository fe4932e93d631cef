"""How far to draft, and what to guess before asking the drafter. Neither changes the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

MAX_LOOKAHEAD: Final = 16
_FIRST: Final = 5
_MEMORY: Final = 0.9
_KEPT_ANYWAY: Final = 0.4
_KEY: Final = 3
_MOST_GUESSED: Final = 8


class AutoLookahead:
    """Decides after every drafted token whether another one is worth its time before a check.

    It is worth it while the chance that all tokens before it are kept, times what a token costs in
    this answer, exceeds what it costs to draft one. A token is kept about as often as the drafter
    believes in it, and more: of tokens with probability p, a share of 0.4 + 0.6 p, about, was kept
    in answers of the default pair (docs/performance.md).
    """

    def __init__(self) -> None:
        self._drafted = _Mean()  # seconds per token
        self._written = _Mean()
        self.start()

    def start(self) -> None:
        """A new draft begins."""
        self._kept = 1.0
        self._length = 0

    def goes_on(self, probabilities: Iterable[float]) -> bool:
        """Whether to draft on.

        Args:
            probabilities: What the drafter gave each of the tokens that it has just drafted.
        """
        for probability in probabilities:
            self._kept *= _KEPT_ANYWAY + (1 - _KEPT_ANYWAY) * probability
            self._length += 1
        step, token = self._drafted.value, self._written.value
        if step is None or token is None:
            return self._length < _FIRST
        return self._length < MAX_LOOKAHEAD and self._kept * token > step

    def learn(self, drafted: int, draft_seconds: float, judged: int, check_seconds: float) -> None:
        """Takes in one cycle.

        Args:
            drafted: Tokens drafted.
            draft_seconds: Time that took.
            judged: Drafted tokens that were judged: what was written.
            check_seconds: Time that verifying took.
        """
        self._drafted.add(drafted, draft_seconds)
        self._written.add(judged, draft_seconds + check_seconds)


class _Mean:
    """A mean that forgets."""

    def __init__(self) -> None:
        self._count = self._total = 0.0

    def add(self, count: int, total: float) -> None:
        self._count = _MEMORY * self._count + count
        self._total = _MEMORY * self._total + total

    @property
    def value(self) -> float | None:
        return self._total / self._count if self._count else None


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
