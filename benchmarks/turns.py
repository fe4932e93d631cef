"""Answers of served members as numbers per token, and ways to write them that take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.benchmark import Spread, plain
from benchmarks.trips import Trip
from safe_integrations.engine.events import Statistics


@dataclass(frozen=True, slots=True)
class Answers:
    """Some answers, and what they took together.

    Attributes:
        tokens: What was written.
        seconds: Wall time of all.
        cpu: Seconds in which this process computed: in all threads, local models included.
        statistics: Of each answer; none of a plain completion.
        trips: All requests.
    """

    tokens: int
    seconds: float
    cpu: float = 0.0
    statistics: Sequence[Statistics] = ()
    trips: Sequence[Trip] = ()

    @property
    def speed(self) -> float:
        """Tokens per second, prompts included."""
        return self.tokens / self.seconds

    @property
    def outside(self) -> float:
        """Milliseconds per token outside of waiting for models."""
        return 1000 * sum(s.overhead_seconds for s in self.statistics) / self.tokens

    @property
    def computed(self) -> float:
        """Milliseconds per token in which this process computed."""
        return 1000 * self.cpu / self.tokens

    @property
    def checked(self) -> float:
        """Tokens written per cycle."""
        return self.tokens / sum(s.cycles for s in self.statistics)

    def per_token(self, name: str) -> float:
        """A number of `ModelStatistics` per token: of all models, all answers."""
        models = (model for s in self.statistics for model in s.models)
        return float(sum(getattr(model, name) for model in models)) / self.tokens

    @property
    def sent(self) -> float:
        """Bytes of requests per token."""
        return sum(trip.sent for trip in self.trips) / self.tokens

    @property
    def waited_trips(self) -> float:
        """Round trips per token that were waited for: time waited over a round trip's median."""
        found = 0.0
        for model in {trip.model for trip in self.trips}:
            whole = [t for t in self.trips if t.model == model and t.seconds is not None]
            if whole:
                found += sum(t.waited for t in whole) / median(t.seconds or 0.0 for t in whole)
        return found / self.tokens

    def trip(self, model: str) -> float | None:
        """Milliseconds of a round trip to a model: the median."""
        found = [t.seconds for t in self.trips if t.model == model and t.seconds is not None]
        return 1000 * median(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """What was measured as JSON-safe data."""
        told: dict[str, Any] = {"tokens": self.tokens, "seconds": round(self.seconds, 6)}
        if not self.statistics:
            return told
        return told | {
            "cycles": sum(s.cycles for s in self.statistics),
            "ensembled": sum(s.ensembled for s in self.statistics),
            "drafted": sum(s.drafted for s in self.statistics),
            "per_token": {
                "outside_ms": round(self.outside, 3),
                "cpu_ms": round(self.computed, 3),
                "requests": round(self.per_token("requests"), 4),
                "waited_trips": round(self.waited_trips, 4),
                "received_bytes": round(self.per_token("received_bytes")),
                "sent_bytes": round(self.sent),
            },
            "models": {
                model.name: {
                    "requests": sum(s.models[n].requests for s in self.statistics),
                    "received_bytes": sum(s.models[n].received_bytes for s in self.statistics),
                    "seconds": round(sum(s.models[n].seconds for s in self.statistics), 6),
                    "trip_ms": self.trip(model.name),
                }
                for n, model in enumerate(self.statistics[0].models)
            },
        }


@dataclass(frozen=True, slots=True)
class Turns:
    """Several ways to write the same answers, taking turns: one of each per repetition."""

    rounds: list[dict[str, Answers]] = field(default_factory=list)

    @property
    def ways(self) -> list[str]:
        """Those that were measured."""
        return list(self.rounds[0]) if self.rounds else []

    def over(self, way: str, value: Callable[[Answers], float]) -> Spread | None:
        """The spread of a number; None where the way was not measured."""
        found = [value(answers[way]) for answers in self.rounds if way in answers]
        return Spread.of(found) if found else None

    def ratio(self, way: str, reference: str) -> Spread | None:
        """Speed as a multiple of another way's, within each repetition."""
        found = [r[way].speed / r[reference].speed for r in self.rounds if {way, reference} <= {*r}]
        return Spread.of(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """All repetitions as JSON-safe data."""
        return {
            "tokens_per_second": {
                way: plain(self.over(way, lambda answers: answers.speed)) for way in self.ways
            },
            "repetitions": [
                {way: answers.to_dict() for way, answers in turn.items()} for turn in self.rounds
            ],
        }
