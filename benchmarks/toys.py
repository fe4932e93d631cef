"""Times the engine by itself, on two models without weights: python benchmarks/toys.py.

The models' own work is counted as theirs. What the engine needs per token must not grow with the
length of the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from safe_integrations.bench.measure import Clock, run_engine
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import never
from safe_integrations.messages import Message
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import Script, ScriptedMember, ScriptedSession

LENGTHS: Final = (50, 200, 1000, 2000)
_WORDS: Final = 400
_DOUBT: Final = 12  # one word in so many is ensembled, one in twice as many is changed


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What the engine needed for one answer, beside its models.

    Attributes:
        length: Tokens that were asked for.
        tokens: Tokens written.
        ensembled: Of these, ensembled.
        seconds: Wall time outside the models.
    """

    length: int
    tokens: int
    ensembled: int
    seconds: float

    @property
    def per_token(self) -> float:
        """Seconds per token."""
        return self.seconds / self.tokens


def engine_cost(length: int, clock: Clock = perf_counter) -> EngineCost:
    """Lets two toys write an answer and times what is not the toys."""
    engine = toy_engine(length, clock)
    options = GenerationConfig(max_tokens=length)
    run = run_engine(engine, "safe", [Message("user", "Go.")], options, clock)
    assert run.statistics is not None
    return EngineCost(length, run.tokens, run.statistics.ensembled, run.parts.outside)


def toy_engine(length: int, clock: Clock = perf_counter) -> SafeEngine:
    """A drafter with words for tokens, and a verifier with halves of words that doubts some."""
    generator = random.Random(7)
    words = [_word(generator) for _ in range(_WORDS)]
    text = [words[generator.randrange(_WORDS)] for _ in range(length + 8)]
    halves = [part for word in words for part in (word[:4], word[4:])]
    drafter = _Timed("words", words, _follow(text, sure=0.6), clock)
    verifier = _Timed("halves", halves, _follow(text, sure=0.9, cut=4), clock)
    return SafeEngine(drafter, (verifier,))


def _word(generator: random.Random) -> bytes:
    """A space and seven letters."""
    return b" " + bytes(generator.choice(b"abcdefghijklmnopqrstuvwxyz") for _ in range(7))


def _follow(text: Sequence[bytes], *, sure: float, cut: int = 8) -> Script:
    """Expects the text in pieces of `cut` bytes; where those are halves, doubts now and then.

    Off its own boundaries it expects single bytes.
    """

    def script(written: bytes) -> Mapping[bytes, float]:
        nth, inside = divmod(len(written), 8)
        expected = text[nth][inside:][: 1 if inside % cut else cut]
        if cut < 8 and inside == 0 and nth % _DOUBT == _DOUBT - 1:
            other = text[(nth + 1) % len(text)][:cut]
            trust = 0.05 if nth % (2 * _DOUBT) == _DOUBT - 1 else 0.35
            if other != expected:
                return {other: 1 - trust, expected: trust}
        return {expected: sure, b"?": 1 - sure}

    return script


class _Timed(ScriptedMember):
    """A scripted member that counts the time of its script as its own."""

    def __init__(self, name: str, words: Sequence[bytes], script: Script, clock: Clock) -> None:
        super().__init__(name, words, script, context_window=1 << 20)
        self.clock = clock

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        return _TimedSession(self)


class _TimedSession(ScriptedSession):
    def __init__(self, member: _Timed) -> None:
        super().__init__(member)
        self._clock = member.clock

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        started = self._clock()
        rows = super().score(ids, since)
        self.work.seconds += self._clock() - started
        return rows


if __name__ == "__main__":
    engine_cost(8)
    for tokens in LENGTHS:
        cost = engine_cost(tokens)
        print(f"{tokens:5} tokens: {1000 * cost.per_token:.3f} ms per token outside the models")
