"""One timed run of one way to write an answer."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple

from safe_integrations.config import GenerationConfig, Mode
from safe_integrations.engine.events import Event, Finished, Statistics, TextDelta, Verified
from safe_integrations.engine.model import Member
from safe_integrations.messages import Message
from safe_integrations.report.payloads import statistics_payload
from safe_integrations.safe_engine import SafeEngine

Clock = Callable[[], float]
Way = Literal["generate", "packed", "continuous", "by-token"] | Mode
"""How an answer is written: by another program, or by this engine in one of its modes.

`packed` is `generate` with the weights packed as this engine packs them, `continuous` the same with
transformers' continuous batching. `by-token` is the mode `safe` by the paper's rule, `safe` itself
judges units.
"""

TITLES: Final[dict[Way, str]] = {
    "generate": "generate() of the drafter",
    "packed": "generate(), packed weights",
    "continuous": "continuous batching, packed",
    "safe": "SAFE",
    "by-token": "SAFE, judged by tokens",
    "every-token": "every token ensembled",
    "drafter-only": "drafter in this engine",
}

Alone = Callable[[Sequence[int], int, Callable[[], None]], None]
"""Another program: writes exactly so many tokens after a prompt, greedily; tells after each."""


class Parts(NamedTuple):
    """Where the time of a run went, in seconds."""

    draft: float
    verify: float
    ensemble: float
    tokenise: float
    rest: float

    @property
    def outside(self) -> float:
        """Everything but the models' forward passes."""
        return self.ensemble + self.tokenise + self.rest


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, timed.

    Attributes:
        way: How it was written.
        marks: Tokens so far and the seconds they took, from the first to the last.
        first_token_seconds: Until the first text could be shown.
        statistics: What the engine says about it; None where another program wrote it.
    """

    way: Way
    marks: tuple[tuple[int, float], ...]
    first_token_seconds: float
    statistics: Statistics | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer, counted by the drafter."""
        return self.marks[-1][0]

    @property
    def seconds(self) -> float:
        """Wall time of the whole, reading the prompt included."""
        return self.marks[-1][1]

    @property
    def speed(self) -> float:
        """Tokens per second, reading the prompt included."""
        return self.tokens / self.seconds

    @property
    def writing_speed(self) -> float:
        """Tokens per second behind the first text; `speed` where nothing is behind it."""
        (tokens, seconds), *more = self.marks
        return (self.tokens - tokens) / (self.seconds - seconds) if more else self.speed

    @property
    def parts(self) -> Parts:
        """Forward passes of the drafter and of the verifiers, merging, tokenising, the rest."""
        s = self.statistics or Statistics()
        draft, verify = sum(m.seconds for m in s.models[:1]), sum(m.seconds for m in s.models[1:])
        known = (draft, verify, s.ensemble_seconds, s.tokenise_seconds)
        return Parts(*known, self.seconds - sum(known))

    def seconds_for(self, count: int) -> float:
        """Wall time until `count` tokens were written."""
        return self.marks[bisect_left(self.marks, count, key=lambda mark: mark[0])][1]

    def per_token(self, part: str = "outside") -> float:
        """Milliseconds per token: of all that is outside the models, or of one of its `Parts`."""
        return 1000 * float(getattr(self.parts, part)) / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-safe data."""
        return {
            "way": self.way,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
            "first_token_seconds": round(self.first_token_seconds, 6),
            "writing_speed": round(self.writing_speed, 6),
            "parts": self.statistics and {k: round(v, 6) for k, v in self.parts._asdict().items()},
            "statistics": self.statistics and statistics_payload(self.statistics),
        }


class Written(NamedTuple):
    """One answer of many: when it was begun, when whoever asked had it, and the answer itself."""

    begun: float
    ended: float
    run: Run


def ratio(run: Run, reference: Run) -> float:
    """How fast a run was, as a multiple of another one, over equally many tokens.

    An answer may end early, and reading the prompt weighs more in a short one: so both are timed
    up to the length of the shorter.
    """
    count = min(run.tokens, reference.tokens)
    return reference.seconds_for(count) / run.seconds_for(count)


def writing_ratio(run: Run, reference: Run) -> float:
    """How fast a run was behind its first text, as a multiple of another one."""
    return run.writing_speed / reference.writing_speed


def run_alone(alone: Alone, prompt: Sequence[int], count: int, clock: Clock = perf_counter) -> Run:
    """Times another program. The prompt is rendered already, as it is for the engine."""
    gc.collect()
    times: list[float] = []
    started = clock()
    alone(prompt, count, lambda: times.append(clock() - started))
    return Run("generate", tuple(enumerate(times, 1)), times[0])


def run_engine(
    engine: SafeEngine,
    way: Way,
    messages: Sequence[Message],
    options: GenerationConfig,
    clock: Clock = perf_counter,
) -> Run:
    """Times the engine on a prompt that no model has seen."""
    forget(engine.members)
    gc.collect()
    rule = {"mode": "safe", "unit": "token"} if way == "by-token" else {"mode": way}
    config = engine.config.model_copy(update=rule)
    events = SafeEngine(engine.drafter, engine.verifiers, config).generate(messages, options)
    return follow(way, events, clock)


def follow(way: Way, events: Iterable[Event], clock: Clock = perf_counter) -> Run:
    """Times an answer by its events."""
    marks: list[tuple[int, float]] = []
    first: float | None = None
    tokens = 0
    started = clock()
    for event in events:
        if isinstance(event, Verified) and event.pieces:
            tokens += sum(len(p.votes[0].tokens) if p.votes else 1 for p in event.pieces)
            marks.append((tokens, clock() - started))
        elif isinstance(event, TextDelta) and first is None:
            first = clock() - started
        elif isinstance(event, Finished):
            seconds = clock() - started
            # an ensemble may have written several tokens in one piece: only now the count is exact
            marks[-1] = (event.statistics.tokens, seconds)
            return Run(way, tuple(marks), seconds if first is None else first, event.statistics)
    raise AssertionError("the events hold no Finished")


def first_token_seconds(
    engine: SafeEngine, messages: Sequence[Message], clock: Clock = perf_counter
) -> float:
    """Seconds until the first text of an answer, with whatever the models remember."""
    gc.collect()
    started = clock()
    with closing(engine.generate(messages, GenerationConfig(max_tokens=32))) as events:
        next(event for event in events if isinstance(event, TextDelta | Finished))
        return clock() - started


def forget(members: Sequence[Member]) -> None:
    """Makes members drop what they keep of earlier prompts."""
    for member in members:
        drop = getattr(member, "forget", None)
        if drop is not None:
            drop()
