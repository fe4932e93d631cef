"""Who is measured, in which order, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from benchmarks.measure import (
    Alone,
    Clock,
    Run,
    Way,
    first_token_seconds,
    forget,
    ratio,
    run_alone,
    run_engine,
    writing_ratio,
)
from benchmarks.prompts import AGAIN, PROMPTS
from safe_integrations.config import GenerationConfig
from safe_integrations.safe_engine import SafeEngine

WAYS: Final[tuple[Way, ...]] = ("generate", "safe", "by-token", "every-token")
_WARM_UP: Final = 8

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Contest:
    """An ensemble, and its drafter on its own."""

    engine: SafeEngine
    alone: Alone

    @property
    def name(self) -> str:
        """Drafter, arrow, verifiers."""
        return pair_name(self.engine)


def pair_name(engine: SafeEngine) -> str:
    """Drafter, arrow, verifiers."""
    return f"{engine.drafter.name} -> {', '.join(member.name for member in engine.verifiers)}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        lengths: Tokens to write.
        repetitions: How often everything is done.
        prompts: Names of `PROMPTS`.
        ways: How answers are written; `generate` and `safe` are needed for the ratio.
    """

    lengths: tuple[int, ...] = (50, 200)
    repetitions: int = 3
    prompts: tuple[str, ...] = tuple(PROMPTS)
    ways: tuple[Way, ...] = WAYS


@dataclass(frozen=True, slots=True)
class Spread:
    """What several repetitions gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The middle and both ends of some values."""
        return cls(median(values), min(values), max(values))


def plain(spread: Spread | None) -> dict[str, float] | None:
    """A spread as JSON-safe data."""
    return None if spread is None else asdict(spread)


_Run = TypeVar("_Run", bound=Run)


@dataclass(frozen=True, slots=True)
class Rounds(Generic[_Run]):
    """Several ways to write an answer, taking turns: one run of each per repetition."""

    pair: str
    rounds: list[dict[str, _Run]] = field(default_factory=list)

    def over(self, way: str, value: Callable[[_Run], float]) -> Spread | None:
        """The spread of a number of each run; None where the way was not measured."""
        values = [value(runs[way]) for runs in self.rounds if way in runs]
        return Spread.of(values) if values else None

    def ratio(
        self, way: str, reference: str, by: Callable[[Run, Run], float] = ratio
    ) -> Spread | None:
        """How one way compares with another, within each repetition."""
        values = [by(r[way], r[reference]) for r in self.rounds if {way, reference} <= set(r)]
        return Spread.of(values) if values else None


@dataclass(frozen=True, slots=True)
class Cell(Rounds[Run]):
    """All ways to write one answer: a column of the report."""

    prompt: str = ""
    length: int = 0

    def forwarded(self, way: str) -> list[float]:
        """Tokens forwarded behind the prompt per token written: the median, one per model."""
        per_run = [
            [
                # the last token of a prompt is always forwarded: its answer is the first token
                (m.forwarded_tokens + m.reused_tokens - m.prompt_tokens + 1) / run.tokens
                for m in run.statistics.models
            ]
            for run in (runs[way] for runs in self.rounds if way in runs)
            if run.statistics
        ]
        return [median(column) for column in zip(*per_run, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON-safe data, raw repetitions included."""
        speeds = {way: self.over(way, lambda run: run.speed) for way in self.rounds[0]}
        against = ("generate", "by-token", "every-token")
        ratios = {f"safe/{other}": self.ratio("safe", other) for other in against}
        writing = {f"safe/{other}": self.ratio("safe", other, writing_ratio) for other in against}
        return {
            "pair": self.pair,
            "prompt": self.prompt,
            "length": self.length,
            "tokens_per_second": {way: plain(s) for way, s in speeds.items()},
            "ratios": {name: plain(s) for name, s in ratios.items()},
            "writing_ratios": {name: plain(s) for name, s in writing.items()},
            "forwarded_per_token": {way: self.forwarded(way) for way in self.rounds[0]},
            "repetitions": [[run.to_dict() for run in ways.values()] for ways in self.rounds],
        }


class FirstToken(NamedTuple):
    """Seconds to the first text of `rag`: new, and with another question about its context."""

    pair: str
    cold: float
    again: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured."""

    settings: Settings
    cells: list[Cell] = field(default_factory=list)
    first_tokens: list[FirstToken] = field(default_factory=list)

    def first_token(self, pair: str) -> list[Spread]:
        """Cold, again, and again as a share of cold."""
        found = [(f.cold, f.again, f.again / f.cold) for f in self.first_tokens if f.pair == pair]
        return [Spread.of(values) for values in zip(*found, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-safe data."""
        return {
            "settings": asdict(self.settings),
            "cells": [cell.to_dict() for cell in self.cells],
            "first_token_seconds": [first._asdict() for first in self.first_tokens],
        }


def benchmark(
    contests: Sequence[Contest],
    settings: Settings,
    tell: Tell = lambda _: None,
    clock: Clock = perf_counter,
) -> Report:
    """Measures everything, interleaved, so that a slow minute of the machine hits all alike.

    Args:
        contests: The ensembles.
        settings: What is measured.
        tell: Told what is going on.
        clock: Seconds, from anywhere.
    """
    report = Report(settings)
    for contest in contests:
        tell(f"{contest.name}: warming up")
        _round(contest, "chat", _WARM_UP, settings.ways, clock)
        for prompt in settings.prompts:
            report.cells.extend(
                Cell(contest.name, prompt=prompt, length=n) for n in settings.lengths
            )
    for nth in range(settings.repetitions):
        shift = nth % len(settings.ways)  # nobody is always first
        order = settings.ways[shift:] + settings.ways[:shift]
        for contest in contests:
            for cell in report.cells:
                if cell.pair == contest.name:
                    tell(f"{nth + 1}: {cell.pair}: {cell.prompt}, {cell.length} tokens")
                    cell.rounds.append(_round(contest, cell.prompt, cell.length, order, clock))
            if "rag" in settings.prompts:
                report.first_tokens.append(_first_token(contest, clock))
    return report


def _round(
    contest: Contest, prompt: str, count: int, ways: Sequence[Way], clock: Clock
) -> dict[str, Run]:
    messages, engine = PROMPTS[prompt], contest.engine
    runs: dict[str, Run] = {}
    for way in ways:
        if way == "generate":
            runs[way] = run_alone(contest.alone, engine.drafter.render(messages), count, clock)
        else:
            options = GenerationConfig(max_tokens=count)
            runs[way] = run_engine(engine, way, messages, options, clock)
    forget(engine.members)
    return runs


def _first_token(contest: Contest, clock: Clock) -> FirstToken:
    forget(contest.engine.members)
    cold = first_token_seconds(contest.engine, PROMPTS["rag"], clock)
    again = first_token_seconds(contest.engine, AGAIN, clock)
    forget(contest.engine.members)
    return FirstToken(contest.name, cold, again)
