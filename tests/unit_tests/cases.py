"""Random little worlds: models with odd vocabularies that write odd texts, always the same way."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.tokens import END
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import Script, ScriptedMember

ci = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
"""How all tests run that compare random worlds with an oracle."""

ATOMS = [c.encode() for c in ("a", "b", "c", " ", "\n", "é", "中", "😀", "e\u0301")]


def chance(seed: int, *parts: bytes) -> float:
    """A number in (0, 1) that depends on the arguments only, in any process."""
    state = seed
    for part in parts:
        state = zlib.crc32(part, state)
    # crc32 is linear, which makes the chances of similar texts alike: stir it
    state = (state * 0x9E3779B1 ^ state >> 15) & 0xFFFFFFFF
    state = (state * 0x85EBCA6B ^ state >> 13) & 0xFFFFFFFF
    return (state + 0.5) / 2**32


@dataclass(frozen=True)
class World:
    """What a case is about.

    Attributes:
        plan: The text that the models have in mind.
        vocabularies: Tokens of more than one byte, one list per model.
        seed: Makes the models' minds.
        unrest: How often a model is unsure, 0 to 1.
        end: How likely END is at places where nobody expects it.
        windows: Context window per model.
    """

    plan: bytes
    vocabularies: tuple[tuple[bytes, ...], ...]
    seed: int
    unrest: float
    end: float
    windows: tuple[int, ...]

    def members(self) -> list[ScriptedMember]:
        return [
            ScriptedMember(f"model-{i}", v, self.script(i, v), context_window=w)
            for i, (v, w) in enumerate(zip(self.vocabularies, self.windows, strict=True))
        ]

    def script(self, nth: int, vocabulary: Sequence[bytes]) -> Script:
        """A model that mostly follows the plan, at times is unsure, and at times is sure of else.

        All odds come from `chance`, so no two symbols tie.
        """
        key, plan = self.seed + 7919 * nth, self.plan
        tokens = sorted({*vocabulary, *(bytes([b]) for b in plan), b"x"})

        @cache
        def script(text: bytes) -> Mapping[bytes, float]:
            ahead = plan[len(text) :]
            sure = chance(key, b"unrest", text) > self.unrest
            weights: dict[bytes, float] = {}
            for token in tokens:
                luck = chance(key, text, b"|", token)
                common = chance(self.seed, text, b"|", token)
                if ahead.startswith(token):
                    weights[token] = (20 * common**6 + luck) * (4 if sure else 1)
                elif luck > 0.8:
                    weights[token] = luck * (0.05 if sure else 1)
            luck = chance(key, text, b"|end")
            weights[END] = 0.01 + luck / 8 + (30 * luck if not ahead or luck < self.end else 0)
            total = sum(weights.values())
            return {symbol: w / total for symbol, w in weights.items()}

        return script


@st.composite
def worlds(
    draw: st.DrawFn,
    models: st.SearchStrategy[int] = st.integers(1, 4),  # noqa: B008
    atoms: Sequence[bytes] = ATOMS,
    length: tuple[int, int] = (3, 16),
    hard: bool = True,
    windows: st.SearchStrategy[int] | None = None,
) -> World:
    """Worlds. Without `hard`, one token per pair of neighbours makes no boundary hard."""
    alphabet = draw(st.lists(st.sampled_from(atoms), min_size=1, max_size=4, unique=True))
    parts = draw(st.lists(st.sampled_from(alphabet), min_size=length[0], max_size=length[1]))
    plan = b"".join(parts)

    def tokens() -> tuple[bytes, ...]:
        spans = draw(
            st.lists(st.tuples(st.integers(0, len(plan) - 1), st.integers(2, 7)), max_size=8)
        )
        out = {plan[at : at + n] for at, n in spans}
        if not hard:
            every = sorted({*plan, ord("x")})
            out |= {bytes([a, b]) for a in every for b in every}
        return tuple(sorted(t for t in out if len(t) > 1))

    count = draw(models)
    vocabularies = [tokens() for _ in range(count)]
    if count > 1 and draw(st.integers(0, 5)) == 0:
        vocabularies[1] = vocabularies[0]  # two models of one family
    return World(
        plan,
        tuple(vocabularies),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([0.2, 0.6, 1.0])),
        draw(st.sampled_from([0.0, 0.05, 0.3])),
        tuple(4096 if windows is None else draw(windows) for _ in range(count)),
    )


@st.composite
def configs(draw: st.DrawFn, models: int, **fixed: Any) -> EnsembleConfig:
    """Ways to merge so many models."""
    shares = draw(st.lists(st.integers(1, 9), min_size=models, max_size=models))
    values: dict[str, Any] = {
        "unit": "token",
        "method": draw(st.sampled_from(["unite", "gac"])),
        "sharpening": draw(st.sampled_from(["prefix", "prefix", "geometric", "none"])),
        "union_top_k": draw(st.sampled_from([1, 3, 10])),
        "lookahead": draw(st.integers(1, 16)),
        "consensus_above": draw(st.sampled_from([0.5, 0.5, 0.7])),
        "weights": draw(st.sampled_from([None, tuple(s / sum(shares) for s in shares)])),
    }
    values |= fixed
    if values["unit"] == "text":  # these belong to the other rule
        del values["method"], values["sharpening"]
    return EnsembleConfig(**values)


@st.composite
def options(draw: st.DrawFn, plan: bytes, longest: int = 24) -> GenerationConfig:
    """Ends of the answer: a number of tokens, perhaps stop strings that may really come."""
    text = plan.decode()
    stops = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text) - 1))
        stops.append(text[at : at + draw(st.integers(1, 4))])
    return GenerationConfig(max_tokens=draw(st.integers(1, longest)), stop=tuple(stops))


@st.composite
def choices(draw: st.DrawFn, plan: str) -> list[str]:
    """Texts that begin like the plan and go on with other parts of it."""
    texts = set()
    for _ in range(draw(st.integers(1, 4))):
        kept, jump = draw(st.integers(1, len(plan))), draw(st.integers(0, len(plan) - 1))
        texts.add(plan[:kept] + plan[jump : jump + draw(st.integers(0, 6))])
    return sorted(texts)


def ready_for(member: ScriptedMember, texts: list[str]) -> ScriptedMember:
    """The same model, with some probability for every byte that may be needed."""
    script, needed = member.script, sorted({bytes([b]) for t in texts for b in t.encode()})

    def ready(text: bytes) -> dict[bytes, float]:
        weights = {b: chance(7, text, b) / 100 for b in needed} | dict(script(text))
        return {symbol: w / sum(weights.values()) for symbol, w in weights.items()}

    member.script = ready
    return member


def engine_of(members: Sequence[ScriptedMember], config: EnsembleConfig) -> SafeEngine:
    return SafeEngine(members[0], members[1:], config)
