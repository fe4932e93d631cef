"""Many answers at once: what they share, what that gives, and how long one of them waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count as counting
from itertools import cycle, islice
from statistics import mean
from time import perf_counter, sleep
from typing import Any, Final

from benchmarks.benchmark import Spread, Tell, pair_name, plain
from benchmarks.machine import resident_memory
from benchmarks.measure import Clock, Run, Way, Written, follow
from benchmarks.prompts import QUESTIONS
from benchmarks.sharing import Cost, Pass, Sharing, noting_passes
from safe_integrations.cli.many import in_threads
from safe_integrations.config import GenerationConfig
from safe_integrations.errors import GenerationCancelled
from safe_integrations.messages import Message
from safe_integrations.models.memory import return_free_memory
from safe_integrations.models.openmp import send_team_home
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine

LEVELS: Final = (1, 2, 4, 8, 16, 32)
"""Answers at once."""

TOKENS: Final = 64
"""Length of an answer, at most."""

BESIDE: Final = 15
"""Answers that are being written while somebody waits for his."""

_ROUNDS: Final = 3  # questions for each answer at once
_FEWEST: Final = 6  # questions
_WARM_UP: Final = 8  # tokens
_ARRIVALS: Final = 5
_PAUSE: Final = 1.0  # seconds, at most, before the next question arrives
_GLANCE: Final = 0.01  # seconds

Write = Callable[[Sequence[list[Message]], int, int], list[Written]]
"""Answers questions, so many at once, each with so many tokens at most."""


@dataclass(frozen=True, slots=True)
class Load:
    """A number of answers at once, kept up as long as there were questions, written in one way.

    Attributes:
        way: How they were written.
        at_once: How many.
        written: The answers.
        passes: The engine's forward passes; none of another program.
        memory: How much more memory the process took for them at most, in bytes.
    """

    way: Way
    at_once: int
    written: Sequence[Written]
    passes: Sequence[Pass] = ()
    memory: int = 0

    @property
    def begun(self) -> float:
        """When the first answer was begun."""
        return min(answer.begun for answer in self.written)

    @property
    def full_until(self) -> float:
        """Until when so many answers were on their way: then the queue was empty."""
        return sorted(answer.ended for answer in self.written)[-self.at_once]

    @property
    def tokens(self) -> int:
        """Tokens written until then."""
        return sum(
            max((n for n, at in a.run.marks if a.begun + at <= self.full_until), default=0)
            for a in self.written
        )

    @property
    def speed(self) -> float:
        """Tokens per second until then, all answers together."""
        return self.tokens / (self.full_until - self.begun)

    @property
    def latencies(self) -> list[float]:
        """Seconds from the beginning of each answer to its end."""
        return [answer.ended - answer.begun for answer in self.written]

    @property
    def sharing(self) -> Sharing:
        """The passes until then."""
        passes = [one for one in self.passes if one.ended <= self.full_until]
        return Sharing(self.at_once, self.tokens, self.full_until - self.begun, passes)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Seconds that one question took: alone, and beside others."""

    alone: float
    beside: float
    first_alone: float
    first_beside: float


@dataclass(frozen=True, slots=True)
class Many:
    """Everything that was measured.

    Attributes:
        pair: The models.
        loads: By way and answers at once.
        arrivals: Questions beside others.
        failed: Ways that did not run, and why.
    """

    pair: str
    loads: dict[tuple[Way, int], Load] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    failed: dict[Way, str] = field(default_factory=dict)

    @property
    def ways(self) -> list[Way]:
        """Those that ran."""
        return list(dict.fromkeys(way for way, _ in self.loads))

    @property
    def levels(self) -> list[int]:
        """Answers at once, from few to many."""
        return sorted({at_once for _, at_once in self.loads})

    def ratio(self, way: Way, at_once: int) -> float:
        """Speed as a multiple of the fewest answers at once, the same way."""
        return self.loads[way, at_once].speed / self.loads[way, self.levels[0]].speed

    def costs(self) -> dict[str, Cost]:
        """What passes took, by model: of all ways and levels together."""
        passes = [one for load in self.loads.values() for one in load.passes]
        models = dict.fromkeys(one.model for one in passes)
        return {m: Cost.of([one for one in passes if one.model == m]) for m in models}

    def slowdown(self) -> Spread | None:
        """How many times longer a question took beside others than alone."""
        ratios = [arrival.beside / arrival.alone for arrival in self.arrivals]
        return Spread.of(ratios) if ratios else None

    def bound(self, way: Way, at_once: int) -> float | None:
        """Tokens per second under perfect sharing (`Sharing.bound`); None of another program."""
        load = self.loads[way, at_once]
        return load.sharing.bound(self.costs()) if load.passes else None

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-safe data."""
        return {
            "pair": self.pair,
            "tokens": TOKENS,
            "failed": dict(self.failed),
            "costs": {model: asdict(cost) for model, cost in self.costs().items()},
            "levels": [
                {"at_once": n, "ways": {way: self._load(way, n) for way in self.ways}}
                for n in self.levels
            ],
            "interactive": {
                "beside": BESIDE,
                "slowdown": plain(self.slowdown()),
                "arrivals": [asdict(arrival) for arrival in self.arrivals],
            },
        }

    def _load(self, way: Way, at_once: int) -> dict[str, Any]:
        load = self.loads[way, at_once]
        sharing, bound = load.sharing, self.bound(way, at_once)
        told: dict[str, Any] = {
            "questions": len(load.written),
            "tokens": sum(answer.run.tokens for answer in load.written),
            "seconds_full": load.full_until - load.begun,
            "tokens_full": load.tokens,
            "tokens_per_second": load.speed,
            "ratio": self.ratio(way, at_once),
            "latency": {"mean": mean(load.latencies), "worst": max(load.latencies)},
            "memory_per_answer": load.memory / at_once,
        }
        if bound is not None:
            told["bound"] = bound
            told["bound_ratio"] = bound / self.loads[way, self.levels[0]].speed
            told["reached"] = load.speed / bound
            told["outside_ms_per_token"] = 1000 * sharing.outside / load.tokens
            told["outside_share"] = sharing.outside / sharing.seconds
            told["passes"] = sharing.to_dict()
        return told


def by_engine(engine: SafeEngine, way: Way, clock: Clock = perf_counter) -> Write:
    """Answers in threads, as LangChain's and LlamaIndex's batches do."""

    def write(questions: Sequence[list[Message]], at_once: int, count: int) -> list[Written]:
        written: list[Written] = []

        def work(question: list[Message], stopped: Callable[[], bool]) -> None:
            begun = clock()
            events = engine.generate(question, GenerationConfig(max_tokens=count), cancel=stopped)
            with closing(events):
                run = follow(way, events, clock)
            written.append(Written(begun, clock(), run))

        in_threads(work, questions, at_once)
        return written

    return write


def as_questions(
    write: Callable[[Sequence[list[int]], int, int], list[Written]],
    render: Callable[[list[Message]], list[int]],
) -> Write:
    """Another program, which is given prompts as the drafter would read them."""

    def ask(questions: Sequence[list[Message]], at_once: int, count: int) -> list[Written]:
        return write([render(question) for question in questions], at_once, count)

    return ask


def questions_for(at_once: int, most: int = 1 << 30) -> list[list[Message]]:
    """A queue that keeps so many answers going."""
    return list(islice(cycle(QUESTIONS), min(most, max(_FEWEST, _ROUNDS * at_once))))


def measure_many(
    engine: SafeEngine,
    others: Mapping[Way, Write],
    levels: Sequence[int] = LEVELS,
    tell: Tell = lambda _: None,
    clock: Clock = perf_counter,
    pause: Callable[[float], object] = sleep,
) -> Many:
    """Measures all ways at each level, taking turns.

    Args:
        engine: The ensemble; its models keep no caches of finished prompts.
        others: Other programs.
        levels: Answers at once.
        tell: Told what is going on.
        clock: Seconds; those of `others` are from the same clock.
        pause: Waits for some seconds.
    """
    alone = SafeEngine(
        engine.drafter,
        (),
        engine.config.model_copy(update={"mode": "drafter-only", "weights": None}),
    )
    engines: dict[Way, SafeEngine] = {"safe": engine, "drafter-only": alone}
    ways = {way: by_engine(one, way, clock) for way, one in engines.items()} | dict(others)
    measured = Many(pair_name(engine))
    for way in [*ways]:
        tell(f"{way}: warming up")
        try:
            ways[way](questions_for(1, most=4), 2, _WARM_UP)
        except Exception as error:
            if way in engines:
                raise
            measured.failed[way] = f"{type(error).__name__}: {error}"
            del ways[way]
    for nth, at_once in enumerate(levels):
        order = [*ways]
        for way in order[nth % len(order) :] + order[: nth % len(order)]:
            tell(f"{at_once} at once: {way}")
            return_free_memory()
            members = engines[way].members if way in engines else ()
            with noting_passes(members, clock) as passes, _watching_memory() as memory:
                send_team_home()  # of `generate`, which computes in this thread
                written = ways[way](questions_for(at_once), at_once, TOKENS)
            measured.loads[way, at_once] = Load(way, at_once, written, passes, memory())
    send_team_home()
    tell(f"one question beside {BESIDE} others")
    measured.arrivals.extend(arrivals(engine, clock, pause))
    return measured


@contextmanager
def _watching_memory() -> Iterator[Callable[[], int]]:
    """How much more memory this process has taken, at most; looked at now and then."""
    before = resident_memory()
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(_GLANCE):
            seen.append(resident_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(seen) - before
    finally:
        done.set()
        watcher.join()


def arrivals(
    engine: SafeEngine,
    clock: Clock = perf_counter,
    pause: Callable[[float], object] = sleep,
    beside: int = BESIDE,
) -> list[Arrival]:
    """Asks questions one after the other, alone and while so many other answers are kept going."""
    asked, generator = QUESTIONS[:_ARRIVALS], random.Random(1)
    options = GenerationConfig(max_tokens=TOKENS)
    full, enough, written = threading.Event(), threading.Event(), counting(1)

    def ask(question: list[Message]) -> Run:
        with closing(engine.generate(question, options)) as events:
            return follow("safe", events, clock)

    def questions() -> Iterator[list[Message]]:
        for question in cycle(QUESTIONS[_ARRIVALS:]):
            if enough.is_set():
                return
            yield question

    def work(question: list[Message], _: Callable[[], bool]) -> None:
        try:
            Result.of(engine.generate(question, options, cancel=enough.is_set))
        except GenerationCancelled:
            return
        if next(written) > beside / 2:  # they began together, and now they do not any more
            full.set()

    def crowd() -> None:
        try:
            in_threads(work, questions(), beside)
        finally:
            full.set()

    alone = [ask(question) for question in asked]
    others = threading.Thread(target=crowd)
    others.start()
    try:
        full.wait()
        found = []
        for question, quiet in zip(asked, alone, strict=True):
            pause(generator.uniform(0, _PAUSE))
            busy = ask(question)
            first = (quiet.first_token_seconds, busy.first_token_seconds)
            found.append(Arrival(quiet.seconds, busy.seconds, *first))
    finally:
        enough.set()
        others.join()
    return found
