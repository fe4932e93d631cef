"""What a forward pass takes by the rows in it, and which passes an answer needed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from benchmarks.measure import Clock
from benchmarks.sharing import Pass
from safe_integrations.calls.form import Form
from safe_integrations.engine.model import Distribution, Member, Session, Work, never

ROWS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
"""Rows of a pass that are measured; what is between them is interpolated.

All small ones are: kernels take them in blocks, so that four rows can cost less than three.
"""

_TIMES: Final = 4


Samples = dict[int, list[float]]
"""Seconds of passes, by rows."""


@dataclass(frozen=True, slots=True)
class RowCost:
    """What passes of one model take.

    Attributes:
        model: Its name.
        medians: Seconds by rows, from few to many.
    """

    model: str
    medians: dict[int, float]

    @classmethod
    def of(cls, model: str, samples: Samples) -> RowCost:
        """The medians of what was measured."""
        return cls(model, {rows: median(seconds) for rows, seconds in samples.items()})

    @property
    def units(self) -> dict[int, float]:
        """The same as multiples of what one row takes."""
        first = next(iter(self.medians.values()))
        return {rows: seconds / first for rows, seconds in self.medians.items()}

    def seconds(self, rows: int) -> float:
        """What a pass of so many rows takes; beyond those measured, as the last of them grow."""
        known, taken = list(self.medians), list(self.medians.values())
        if rows <= known[-1]:
            return float(np.interp(rows, known, taken))
        slope = (taken[-1] - taken[-2]) / (known[-1] - known[-2])
        return taken[-1] + (rows - known[-1]) * slope


def pass_seconds(member: Member, prompt: Sequence[int], times: int = _TIMES) -> Samples:
    """Has a member compute passes of all sizes behind a prompt, in shuffled order.

    Args:
        member: The model. Its own clock is taken (`Work.seconds`).
        prompt: Token ids that every pass looks back at.
        times: How often each size is measured.
    """
    order, nth = random.Random(1), 0
    taken: Samples = {rows: [] for rows in ROWS}
    session = member.start(prompt)
    try:
        session.score([], 0)
        for _ in range(times):
            for rows in order.sample(ROWS, len(ROWS)):
                nth += 1
                # never the token that the last pass began with, which is known
                ids = [(nth % 2 + k) % member.tokens.size for k in range(rows)]
                passes, tokens, seconds = _counts(session.work)
                session.score(ids, 0)
                found = _counts(session.work)
                if (found[0] - passes, found[1] - tokens) != (1, rows):
                    raise RuntimeError(f"{member.name}: it did not compute {rows} rows in a pass")
                taken[rows].append(found[2] - seconds)
    finally:
        session.close()
    return taken


def _counts(work: Work) -> tuple[int, int, float]:
    return work.passes, work.tokens, work.seconds


def by_model(passes: Sequence[Pass]) -> dict[str, list[Pass]]:
    """Passes of each model, in the order of their first ones."""
    found: dict[str, list[Pass]] = defaultdict(list)
    for one in passes:
        found[one.model].append(one)
    return dict(found)


class Noting:
    """A member that notes which passes its sessions compute.

    Whatever else it is asked is answered by the member behind it.

    Args:
        member: The member.
        passes: Where they are noted. What one `score` computes counts as one pass: behind the
            prompt, it is one.
        clock: Seconds, from anywhere.
    """

    def __init__(self, member: Member, passes: list[Pass], clock: Clock = perf_counter) -> None:
        self._member = member
        self._passes = passes
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    @property
    def teaches(self) -> Form | None:
        """What the engine looks for in a class must stand there."""
        return getattr(self._member, "teaches", None)

    def writing(self, form: Form) -> Noting:
        """The same where calls have a form."""
        writing = getattr(self._member, "writing", lambda _: self._member)
        return Noting(writing(form), self._passes, self._clock)

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Session:
        """Opens a session of the member."""
        session = self._member.start(prompt, cancel)
        return _NotingSession(session, self._member.name, self._passes, self._clock)


class _NotingSession:
    def __init__(self, session: Session, name: str, passes: list[Pass], clock: Clock) -> None:
        self._session = session
        self._name = name
        self._passes = passes
        self._clock = clock

    @property
    def work(self) -> Work:
        return self._session.work

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        _, tokens, seconds = _counts(self.work)
        rows = self._session.score(ids, since)
        _, tokens_now, seconds_now = _counts(self.work)
        if tokens_now > tokens:
            taken = (tokens_now - tokens,)
            self._passes.append(Pass(self._name, self._clock(), seconds_now - seconds, taken))
        return rows

    def close(self) -> None:
        self._session.close()
