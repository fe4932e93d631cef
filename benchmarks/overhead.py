"""What is spent outside the models on each token, for the kinds of answers that users ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

from benchmarks.benchmark import Rounds, Spread, Tell, pair_name, plain
from benchmarks.measure import Clock, Parts, Run, run_engine
from benchmarks.prompts import PROMPTS
from safe_integrations.config import GenerationConfig, JsonSchema, Tool
from safe_integrations.safe_engine import SafeEngine

LENGTH: Final = 100  # tokens
_WARM_UP: Final = 64  # tokens: the schema needs more than a few

_STORY: Final = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "year": {"type": "integer", "minimum": 1700, "maximum": 1999},
        "summary": {"type": "string", "maxLength": 800},
    },
    "required": ["title", "year", "summary"],
    "additionalProperties": False,
}
_WEATHER: Final = Tool(
    name="get_weather",
    description="The weather in a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
)

KINDS: Final = {
    "greedy": (PROMPTS["chat"], GenerationConfig(max_tokens=LENGTH)),
    "sampled": (PROMPTS["chat"], GenerationConfig(max_tokens=LENGTH, temperature=0.8, seed=1)),
    "tools": (PROMPTS["chat"], GenerationConfig(max_tokens=LENGTH, tools=(_WEATHER,))),
    "schema": (
        PROMPTS["chat"],
        GenerationConfig(max_tokens=LENGTH, response_format=JsonSchema(schema=_STORY)),
    ),
}
"""Kind of answer -> prompt and options: the first is what the others are compared with.

With tools bound the prompt still asks for text, as most turns of an agent do; the schema leaves
most of its tokens free, so that a mask is needed for each of them.
"""


@dataclass(frozen=True, slots=True)
class Overhead(Rounds[Run]):
    """Each kind of answer, each repetition."""

    def per_token(self, kind: str, part: str = "outside") -> Spread | None:
        """Milliseconds per token: of all that is outside the models, or of one of its `Parts`."""
        return self.over(kind, partial(Run.per_token, part=part))

    def against_greedy(self, kind: str) -> Spread | None:
        """Time outside the models as a multiple of a greedy answer's, within each repetition."""
        return self.ratio(kind, "greedy", lambda run, greedy: run.per_token() / greedy.per_token())

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-safe data, raw repetitions included."""
        return {
            "pair": self.pair,
            "kinds": {
                kind: {
                    "ms_per_token": plain(self.per_token(kind)),
                    "ratio": plain(self.against_greedy(kind)),
                    "parts": {part: plain(self.per_token(kind, part)) for part in Parts._fields},
                    "runs": [runs[kind].to_dict() for runs in self.rounds],
                }
                for kind in KINDS
            },
        }


def measure_overhead(
    engine: SafeEngine,
    repetitions: int,
    tell: Tell = lambda _: None,
    clock: Clock = perf_counter,
) -> Overhead:
    """Writes every kind of answer, taking turns.

    Args:
        engine: The ensemble.
        repetitions: How often everything is measured.
        tell: Told what is going on.
        clock: Seconds, from anywhere.
    """
    found = Overhead(pair_name(engine))
    for nth in range(repetitions + 1):
        runs = {}
        for kind, (messages, options) in KINDS.items():
            tell(f"{nth}: {kind}" if nth else f"{kind}: warming up")
            if not nth:
                options = options.model_copy(update={"max_tokens": _WARM_UP})
            runs[kind] = run_engine(engine, "safe", messages, options, clock)
        if nth:
            found.rounds.append(runs)
    return found
