"""Both backends: how fast they write, and how near llama.cpp is to what its passes allow.

Every way to write has a process of its own. In one process torch and llama.cpp would share the
OpenMP library of whichever was loaded first, and how its threads wait; and every thread that
computes there keeps a team of them.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import mean
from time import perf_counter
from typing import Any, Final

from benchmarks.benchmark import Rounds, Spread, Tell, plain
from benchmarks.by_rows import Noting, RowCost, Samples, by_model, pass_seconds
from benchmarks.llama_loop import Loop
from benchmarks.measure import Clock, Run, follow, forget, ratio, run_alone, writing_ratio
from benchmarks.prompts import PROMPTS
from benchmarks.sharing import Pass
from benchmarks.starts import Starts, measure_starts
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Event, Verified
from safe_integrations.models.llama_cpp.library import open_model
from safe_integrations.models.llama_cpp.threads import threads
from safe_integrations.models.load import load_member
from safe_integrations.models.locate import gguf_of
from safe_integrations.models.spec import ModelSpec, name_of
from safe_integrations.safe_engine import SafeEngine

LOOP: Final = "loop"
ALONE: Final = "alone"
LLAMA: Final = "llama.cpp"
TITLES: Final = {
    LOOP: "llama.cpp's loop, drafter",
    ALONE: "drafter in this engine, llama.cpp",
    LLAMA: "SAFE, llama.cpp",
    "float32": "SAFE, transformers float32",
    "bfloat16": "SAFE, transformers bfloat16",
    "drafts": "SAFE, llama.cpp drafts for float32",
    "verifies": "SAFE, llama.cpp verifies float32",
}
"""Ways to write: llama.cpp's own loop and this engine, with models on one or both backends."""

RATIOS: Final = (
    (ALONE, LOOP),
    (LLAMA, "float32"),
    (LLAMA, "bfloat16"),
    ("drafts", "float32"),
    ("verifies", "float32"),
    (LLAMA, LOOP),
)

_QUESTION: Final = PROMPTS["chat"]
_WARM_UP: Final = 8  # tokens


@dataclass(frozen=True, slots=True)
class Answer(Run):
    """One answer, timed.

    Attributes:
        passes: Forward passes of this engine behind the first text; none of another program.
    """

    passes: Sequence[Pass] = ()

    @property
    def behind(self) -> int:
        """Tokens behind the first text."""
        return self.tokens - self.marks[0][0]

    @property
    def outside(self) -> float:
        """Seconds behind the first text in which no model computed."""
        seconds = self.marks[-1][1] - self.marks[0][1]
        return seconds - sum(one.seconds for one in self.passes)


Write = Callable[[int], Answer]
"""Writes an answer of so many tokens."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What the passes of one model were, behind the first text of an answer.

    Attributes:
        passes: Passes per token.
        rows: Rows in a pass.
        times: What they took, as a multiple of what such passes take by themselves.
    """

    passes: float
    rows: float
    times: float


@dataclass(frozen=True, slots=True)
class Length(Rounds[Answer]):
    """Answers of one length, each way, each repetition."""

    length: int = 0

    def bound(self, way: str, costs: Mapping[str, RowCost], drafter: str) -> Spread | None:
        """The speed that its passes allow, as a multiple of the drafter's loop.

        That is D / (pD + cV) with the seconds D of a pass of one row of the drafter, and those pD
        and cV of the passes that a token needed, had each taken what such a pass takes by itself.
        """
        values = [_bound(r[way], costs, drafter) for r in self.rounds if way in r]
        found = [value for value in values if value is not None]
        return Spread.of(found) if found else None

    def reached(self, way: str, costs: Mapping[str, RowCost], drafter: str) -> Spread | None:
        """What was measured of that bound, within each repetition."""
        found = []
        for runs in self.rounds:
            bound = _bound(runs[way], costs, drafter) if {way, LOOP} <= set(runs) else None
            if bound is not None:
                found.append(writing_ratio(runs[way], runs[LOOP]) / bound)
        return Spread.of(found) if found else None

    def needed(self, way: str, costs: Mapping[str, RowCost]) -> dict[str, Needed]:
        """What its passes were, by model: the mean of all repetitions."""
        answers = [runs[way] for runs in self.rounds if way in runs]
        tokens = sum(answer.behind for answer in answers)
        models = by_model([one for answer in answers for one in answer.passes])
        return {
            model: Needed(
                len(passes) / tokens,
                mean(sum(one.rows) for one in passes),
                sum(one.seconds for one in passes) / _cost(passes, costs),
            )
            for model, passes in models.items()
            if tokens
        }

    def outside(self, way: str) -> Spread | None:
        """Milliseconds per token outside the models, behind the first text."""
        answers = [runs[way] for runs in self.rounds if way in runs]
        values = [1000 * answer.outside / answer.behind for answer in answers if answer.behind]
        return Spread.of(values) if values else None


def _cost(passes: Sequence[Pass], costs: Mapping[str, RowCost]) -> float:
    return sum(costs[one.model].seconds(sum(one.rows)) for one in passes)


def _bound(answer: Answer, costs: Mapping[str, RowCost], drafter: str) -> float | None:
    if not answer.behind or not answer.passes:
        return None
    return costs[drafter].seconds(1) * answer.behind / _cost(answer.passes, costs)


@dataclass(slots=True)
class Backends:
    """Everything that was measured so far.

    Attributes:
        pair: The models.
        drafter: Name of the drafter as llama.cpp computes it: what bounds are multiples of.
        samples: What passes took, by model and backend.
        lengths: How fast answers were written.
        starts: How fast processes start; None where that was not measured yet.
    """

    pair: str
    drafter: str
    samples: dict[str, Samples] = field(default_factory=dict)
    lengths: list[Length] = field(default_factory=list)
    starts: Starts | None = None

    @property
    def costs(self) -> dict[str, RowCost]:
        """What passes take, by model and backend."""
        return {model: RowCost.of(model, samples) for model, samples in self.samples.items()}

    def add(self, model: str, samples: Samples) -> None:
        """Takes in what more passes took."""
        known = self.samples.setdefault(model, {rows: [] for rows in samples})
        for rows, seconds in samples.items():
            known[rows] += seconds

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-safe data, raw repetitions included."""
        return {
            "pair": self.pair,
            "threads": threads(),
            "passes": {
                model: {
                    "times": len(self.samples[model][1]),
                    "seconds": {n: plain(Spread.of(s)) for n, s in self.samples[model].items()},
                    "units": cost.units,
                }
                for model, cost in self.costs.items()
            },
            "lengths": [self._length(length) for length in self.lengths if length.rounds],
            "starts": self.starts and self.starts.to_dict(),
        }

    def _length(self, length: Length) -> dict[str, Any]:
        ways, costs = list(length.rounds[0]), self.costs
        return {
            "length": length.length,
            "tokens_per_second": {w: plain(length.over(w, lambda run: run.speed)) for w in ways},
            "ratios": {f"{w}/{o}": plain(length.ratio(w, o, ratio)) for w, o in RATIOS},
            "writing_ratios": {
                f"{w}/{o}": plain(length.ratio(w, o, writing_ratio)) for w, o in RATIOS
            },
            "bounds": {w: plain(length.bound(w, costs, self.drafter)) for w in ways},
            "reached": {w: plain(length.reached(w, costs, self.drafter)) for w in ways},
            "outside_ms_per_token": {w: plain(length.outside(w)) for w in ways if w != LOOP},
            "needed": {
                way: {
                    model: {"passes": n.passes, "rows": n.rows, "times": n.times}
                    for model, n in length.needed(way, costs).items()
                }
                for way in ways
            },
            "repetitions": [
                [run.to_dict() | {"way": way} for way, run in runs.items()]
                for runs in length.rounds
            ],
        }


# in a process of its own


def own_process() -> Executor:
    """A process that calls functions, one after the other."""
    # who asks is interrupted, and says so
    ignored = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(1, get_context("spawn"), signal.signal, ignored)


def by_loop(spec: ModelSpec, count: int, clock: Clock = perf_counter) -> Answer:
    """Has llama.cpp's loop write."""
    loop = _loop(gguf_of(spec, lambda _: None))
    prompt = load_member(spec).render(_QUESTION)

    def alone(ids: Sequence[int], count: int, tell: Callable[[], None]) -> None:
        loop.write(ids, count, (), tell)

    run = run_alone(alone, prompt, count, clock)
    return Answer(run.way, run.marks, run.first_token_seconds)


@cache
def _loop(path: Path) -> Loop:
    return Loop(open_model(path))


def by_engine(
    specs: Sequence[ModelSpec], config: EnsembleConfig, count: int, clock: Clock = perf_counter
) -> Answer:
    """Has this engine write, on a prompt that no model has read."""
    members = [load_member(spec) for spec in specs]
    passes: list[Pass] = []
    drafter, *verifiers = (Noting(member, passes, clock) for member in members)
    engine = SafeEngine(drafter, verifiers, config)
    forget(members)
    gc.collect()
    events = engine.generate(_QUESTION, GenerationConfig(max_tokens=count))
    run = follow("safe", _without_the_first(events, passes), clock)
    return Answer(run.way, run.marks, run.first_token_seconds, run.statistics, tuple(passes))


def _without_the_first(events: Iterable[Event], passes: list[Pass]) -> Iterator[Event]:
    """Drops the passes up to the first mark of a run: `follow` sets it."""
    first = True
    for event in events:
        if first and isinstance(event, Verified) and event.pieces:
            passes.clear()
            first = False
        yield event


def passes_of(spec: ModelSpec) -> Samples:
    """What passes of a model take, with as much in front of them as in the middle of an answer."""
    member = load_member(spec)
    return pass_seconds(member, 2 * member.render(_QUESTION))


# in this process


def measure_backends(
    specs: Sequence[ModelSpec],
    config: EnsembleConfig,
    lengths: Sequence[int],
    repetitions: int,
    tell: Tell = lambda _: None,
    save: Callable[[Backends], None] = lambda _: None,
) -> Backends:
    """Measures passes, answers and starts.

    Args:
        specs: The models, drafter first: GGUF files.
        config: How they are merged.
        lengths: Tokens to write.
        repetitions: How often answers and starts are measured.
        tell: Told what is going on.
        save: Told what was measured so far, again and again.

    Raises:
        ModelError: One of them is no GGUF file, or cannot be used.
    """
    files = {name_of(spec): gguf_of(spec, tell).stat().st_size for spec in specs}
    llama = [_on(spec, backend="llama.cpp") for spec in specs]
    others = {
        dtype: [_on(spec, backend="transformers", dtype=dtype) for spec in specs]
        for dtype in ("float32", "bfloat16")
    }
    float32 = others["float32"]
    pure = {LLAMA: llama, **others}
    mixed = {"drafts": [llama[0], *float32[1:]], "verifies": [float32[0], *llama[1:]]}
    drafter, *verifiers = files
    measured = Backends(f"{drafter} -> {', '.join(verifiers)}", name_of(llama[0]))
    with ExitStack() as stack:
        processes = {way: stack.enter_context(own_process()) for way in TITLES}

        def call(way: str, function: Callable[..., Any], *arguments: Any) -> Any:
            return processes[way].submit(function, *arguments).result()

        def measure_passes() -> None:
            for way, models in pure.items():
                for spec in models:
                    tell(f"{name_of(spec)}: passes by rows")
                    measured.add(name_of(spec), call(way, passes_of, spec))
                    save(measured)

        measure_passes()
        ways: dict[str, Write] = {
            LOOP: partial(call, LOOP, by_loop, llama[0]),
            ALONE: partial(call, ALONE, by_engine, llama[:1], _unweighted(config)),
        }
        for way, models in (pure | mixed).items():
            ways[way] = partial(call, way, by_engine, models, config)
        measured.lengths = [Length(measured.pair, length=length) for length in lengths]
        for _ in measure_speeds(ways, measured.lengths, repetitions, tell):
            measure_passes()  # in the same minutes as answers
    starts = {LLAMA: llama, "transformers": float32}
    measured.starts = measure_starts(starts, files, repetitions, tell)
    save(measured)
    return measured


def measure_speeds(
    ways: Mapping[str, Write],
    found: Sequence[Length],
    repetitions: int,
    tell: Tell = lambda _: None,
) -> Iterator[None]:
    """Lets all ways write, taking turns in an order that is shuffled for every round.

    Args:
        ways: All ways to write.
        found: Where their answers are put, by length.
        repetitions: How often.
        tell: Told what is going on.

    Yields:
        Behind every round.
    """
    for way, write in ways.items():
        tell(f"{TITLES[way]}: loading, and warming up")
        write(_WARM_UP)
    shuffled = Random(1)
    for nth in range(1, repetitions + 1):
        for length in found:
            runs = {}
            for way in shuffled.sample(list(ways), len(ways)):
                tell(f"{nth}: {length.length} tokens, {TITLES[way]}")
                runs[way] = ways[way](length.length)
            length.rounds.append({way: runs[way] for way in ways})
            yield


def _on(spec: ModelSpec, **options: str) -> ModelSpec:
    """A model on a backend, which its name tells."""
    where = options.get("dtype", options["backend"])
    named = {"name": f"{name_of(spec)} ({where})", "dtype": "auto"}
    return spec.model_copy(update=named | options)


def _unweighted(config: EnsembleConfig) -> EnsembleConfig:
    """The same for one model."""
    return config.model_copy(update={"weights": None})
