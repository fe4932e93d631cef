"""How far to draft, and what to guess before asking the drafter. Neither changes the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Final

MAX_LOOKAHEAD: Final = 16
_FIRST: Final = 5
_RUN: Final = 9
_MOST_AT_ONCE: Final = 8
_MEMORY: Final = 0.9
_FADING: Final = 0.97
_KEPT_ANYWAY: Final = 0.4
_KEYS: Final = (3, 2, 1)
_MOST_GUESSED: Final = MAX_LOOKAHEAD - 1


class AutoLookahead:
    """Decides after every drafted token whether another one is worth its time before a check.

    It is worth it while the chance that all tokens before it are kept, times what a token costs in
    this answer, exceeds what it costs to draft one and to check it. Checking is all but free where
    an answer is alone; where answers share passes it is not, and drafts get shorter. A token is
    kept about as often as the drafter believes in it, and more: of tokens with probability p, a
    share of 0.4 + 0.6 p, about, was kept in answers of the default pair (docs/performance.md).
    What a model elsewhere has told ahead costs no drafting any more.
    """

    def __init__(self) -> None:
        self._drafted = _Mean()  # seconds per token
        self._written = _Mean()
        self._check = 0.0  # seconds per token
        self._changed = _Mean()  # tokens written for each place where a draft did not stand
        self.start(())

    @property
    def at_once(self) -> int:
        """Tokens to ask a model elsewhere for in one request: a third of what stands in a row.

        The next ones are written while these are checked, and only if all of them stand is that
        of use: else they are waited for (docs/performance.md).
        """
        changes, written = self._changed.count + 1, self._changed.total + _RUN
        return max(2, min(round(written / changes / 3), _MOST_AT_ONCE))

    def start(self, pending: Iterable[float]) -> None:
        """A new draft begins; `pending` is what the drafter gave tokens that are not judged yet."""
        self._kept = prod(map(_kept, pending))
        self._length = 0

    def goes_on(self, probabilities: Iterable[float], known: bool = False) -> bool:
        """Whether to draft on.

        Args:
            probabilities: What the drafter gave each of the tokens it has just drafted.
            known: Whether it has told the next one already, so that only the check costs.
        """
        for probability in probabilities:
            self._kept *= _kept(probability)
            self._length += 1
        step, token = self._drafted.value, self._written.value
        if step is None or not token:  # nothing measured yet, or models that tell no time
            return self._length < _FIRST
        cost = self._check if known else step + self._check
        return self._length < MAX_LOOKAHEAD and self._kept * token > cost

    def learn(
        self,
        drafted: int,
        draft_seconds: float,
        judged: int,
        check_seconds: float,
        row: float,
        changed: bool = False,
    ) -> None:
        """Takes in one cycle.

        Args:
            drafted: Tokens drafted.
            draft_seconds: What that took.
            judged: Tokens judged, and so written.
            check_seconds: What that took.
            row: What it takes to check one more.
            changed: Whether something else was written in the place of a drafted token.
        """
        self._check = row
        self._changed.add(changed, judged)
        self._drafted.add(drafted, draft_seconds)
        self._written.add(judged, draft_seconds + check_seconds)


def _kept(probability: float) -> float:
    """How often a token is kept that the drafter gives a probability."""
    return _KEPT_ANYWAY + (1 - _KEPT_ANYWAY) * probability


class _Mean:
    """A mean that forgets."""

    def __init__(self) -> None:
        self.count = self.total = 0.0

    def add(self, count: int, total: float) -> None:
        self.count = _MEMORY * self.count + count
        self.total = _MEMORY * self.total + total

    def fade(self) -> None:
        self.total *= _FADING

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class PromptLookup:
    """Guesses the next tokens by finding the last few of them earlier in the prompt or the answer.

    Answers copy from their context, and small models repeat themselves. The drafter checks a guess
    in one forward pass: a right one saves steps, a wrong one changes nothing. How many tokens are
    guessed depends on how often guesses after so many matching tokens were right, and on what a
    further token in one pass costs, measured.

    Args:
        prompt: Token ids of the drafter's prompt.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt_length = len(prompt)
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # last ids -> where they were followed up
        self._rates = {n: _Rate() for n in _KEYS}
        self._matched = 0  # ids that the last guess was found by
        self._step = _Mean()  # seconds of a forward pass of one token
        self._more: dict[int, _Mean] = {}  # so many guessed -> seconds of each
        self._row = 0.0  # the same by all answers of the model, for the first guess
        self._read(prompt)

    def guess(self, answer: Sequence[int], judged: int, count: int) -> list[int]:
        """Up to `count` ids that may follow; none where nothing is found, or where it does not pay.

        Of the ids in `answer`, the first `judged` will stay.
        """
        self._read(answer[len(self._ids) - self._prompt_length : judged])
        self._matched = 0
        last = (*self._ids[-_KEYS[0] :], *answer[judged:])
        for n in _KEYS if count > 0 else ():
            at = self._next.get(last[-n:])
            if at is not None:
                self._matched = n
                return self._ids[at : at + min(count, self._worth(self._rates[n]))]
        return []

    def learn(
        self, guessed: int, right: int, wrong: bool, seconds: float, row: float = 0.0
    ) -> None:
        """Takes in what became of a guess.

        Args:
            guessed: Ids that were guessed.
            right: How many of them were right.
            wrong: Whether the next was not; a response format may leave it open.
            seconds: Time of the forward pass that checked them, in the model.
            row: What one more token in a pass takes, by all answers of the model; 0 if unknown.
        """
        self._row = row
        if guessed:
            self._rates[self._matched].add(right + wrong, right)
            if self._step.value is not None:
                more = self._more.setdefault(guessed, _Mean())
                more.add(guessed, max(0.0, seconds - self._step.value))
        else:
            self._step.add(1, seconds)
            if self._matched:  # found and not tried: doubt what speaks against it, to try it again
                self._rates[self._matched].add(0, 0)
                for more in self._more.values():
                    more.fade()

    def _worth(self, rate: _Rate) -> int:
        """How many ids to guess: as many as save most time, by the chance that they are right."""
        step = self._step.value
        if step is None:
            return 0
        if not self._more:  # what costs as much as a step, to see whether it is right
            most = step / self._row if self._row else _MOST_GUESSED
            return max(1, min(int(most), _MOST_GUESSED))
        best, saved, chance, right = 0, 0.0, 1.0, 0.0
        for count in range(1, _MOST_GUESSED + 1):
            chance *= rate.value
            right += chance
            gain = right - count * self._cost(count, step)
            if gain >= saved:
                best, saved = count, gain
        return best

    def _cost(self, count: int, step: float) -> float:
        """What each of so many guessed ids takes, as a share of a step.

        By the number that was measured next to it: the first few rows of a pass may cost more each
        than many, or less.
        """
        nearest = min(self._more, key=lambda n: abs(n - count))
        # nothing is known of models that tell no time
        return (self._more[nearest].value or 0.0) / step if step else 0.5

    def _read(self, ids: Sequence[int]) -> None:
        for token_id in ids:
            at = len(self._ids)
            for n in _KEYS:
                if n <= at:
                    self._next[tuple(self._ids[at - n :])] = at
            self._ids.append(token_id)


class _Rate(_Mean):
    """How often one more guessed token is right: 1/2 before any was tried."""

    @property
    def value(self) -> float:
        return (self.total + 1) / (self.count + 2)
