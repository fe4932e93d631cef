"""Forward passes that answers share: what they cost, and what perfect sharing would give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from benchmarks.measure import Clock
from safe_integrations.engine.model import Member

_CHEAP: Final = 16
"""Rows that packed weights serve well (`models/transformers/packing.py`); others cost more."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        model: Name of the model.
        ended: When, by the clock.
        seconds: How long it took.
        rows: How many rows it computed for each session.
        cache_bytes: Memory of the first session's cache.
    """

    model: str
    ended: float
    seconds: float
    rows: tuple[int, ...]
    cache_bytes: int = 0


@contextmanager
def noting_passes(members: Sequence[Member], clock: Clock = perf_counter) -> Iterator[list[Pass]]:
    """A list of all passes that some members compute from now on, complete at the end.

    Members that do not compute in passes (`models/passes.py`) are left out.
    """
    noted: list[Pass] = []
    watched = []
    try:
        for member in members:
            forward = getattr(member, "forward", None)
            if forward is not None:
                watched.append(forward)
                forward.compute = _noting(forward.compute, member.name, noted, clock)
        yield noted
    finally:
        for forward in watched:
            del forward.compute  # what is behind it is the class's own


def _noting(compute: Any, name: str, noted: list[Pass], clock: Clock) -> Any:
    def computing(parts: Any) -> None:
        started = clock()
        compute(parts)
        ended = clock()
        taken = tuple(part.taken for part in parts)
        size = getattr(getattr(parts[0], "kv", None), "nbytes", 0)
        noted.append(Pass(name, ended, ended - started, taken, size))

    return computing


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass of one model takes, in seconds: fitted to the passes of a run.

    Attributes:
        whole: For the pass.
        session: For each session in it.
        row: For each row.
        late: For each row behind the first 16, beside that.
    """

    whole: float
    session: float
    row: float
    late: float

    @classmethod
    def of(cls, passes: Sequence[Pass]) -> Cost:
        """Fits medians of passes with as many sessions and rows: relative errors, none negative."""
        groups: dict[tuple[int, int], list[float]] = defaultdict(list)
        for one in passes:
            groups[len(one.rows), sum(one.rows)].append(one.seconds)
        shapes = np.array([_shape(*key) for key in groups])
        seconds = np.array([median(group) for group in groups.values()])
        weights = np.sqrt([len(group) for group in groups.values()]) / seconds
        used = list(range(shapes.shape[1]))
        while True:
            found = np.linalg.lstsq(shapes[:, used] * weights[:, None], seconds * weights)[0]
            if found.min() >= 0:
                break
            del used[int(found.argmin())]
        costs = np.zeros(shapes.shape[1])
        costs[used] = found
        return cls(*map(float, costs))

    def seconds(self, sessions: float, rows: float) -> float:
        """What a pass of so many sessions and rows takes."""
        costs = (self.whole, self.session, self.row, self.late)
        return float(np.dot(costs, _shape(sessions, rows)))


def _shape(sessions: float, rows: float) -> tuple[float, ...]:
    return 1.0, sessions, rows, max(0.0, rows - _CHEAP)


@dataclass(frozen=True, slots=True)
class Sharing:
    """How passes were shared while so many answers were written.

    Attributes:
        at_once: Answers at the same time.
        tokens: Tokens written.
        seconds: Wall time.
        passes: All passes of that time.
    """

    at_once: int
    tokens: int
    seconds: float
    passes: Sequence[Pass]

    @property
    def models(self) -> list[str]:
        """Their names, in the order of their first passes."""
        return list(dict.fromkeys(one.model for one in self.passes))

    @property
    def outside(self) -> float:
        """Seconds in which no model computed."""
        return self.seconds - sum(one.seconds for one in self.passes)

    def bound(self, costs: Mapping[str, Cost]) -> float:
        """Tokens per second if every pass served all answers, and nothing else took any time.

        Answers need the passes and rows that they needed, as they measured.
        """
        seconds = 0.0
        for model in self.models:
            own = [one.rows for one in self.passes if one.model == model]
            sessions, rows = sum(map(len, own)), sum(map(sum, own))
            needed = sessions / self.at_once
            seconds += needed * costs[model].seconds(self.at_once, rows / needed)
        return self.tokens / seconds

    def to_dict(self) -> dict[str, Any]:
        """What is to be known of each model's passes, as JSON-safe data."""
        return {model: self._of(model) for model in self.models}

    def _of(self, model: str) -> dict[str, float]:
        own = [one for one in self.passes if one.model == model]
        sessions = sum(len(one.rows) for one in own)
        rows = sum(sum(one.rows) for one in own)
        return {
            "passes": len(own),
            "sessions_per_pass": sessions / len(own),
            "rows_per_pass": rows / len(own),
            "ms_per_pass": 1000 * sum(one.seconds for one in own) / len(own),
            "passes_per_token": len(own) / self.tokens,
            "sessions_per_token": sessions / self.tokens,
            "rows_per_token": rows / self.tokens,
            "cache_bytes": max(one.cache_bytes for one in own),
        }
