"""Random little worlds for judging by units: tokens that do not map one to one, texts of all kinds.

Everything comes from the number of a case, so a failing case is named by its number alone.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
from cases import chance

from safe_integrations.config import Choice, EnsembleConfig, GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import never
from safe_integrations.engine.tokens import END
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows
from tests.oracle_units import Noise
from tests.places_by_hand import NEUTRAL, whole

KINDS = ("words", "numbers", "chinese", "thai", "spaces", "mixed")

SHORT = ("words", "numbers", "spaces")
"""Kinds of text in which a hard place is never far."""

CUTS: Mapping[str, re.Pattern[bytes]] = {
    "whole": re.compile(rb"(?s).+"),
    "words": re.compile(rb" ?[^\s\d]+|\d{1,3}|\s+(?!\S)|\s+"),
    "digits": re.compile(rb" ?[^\s\d]+|\d|\s+(?!\S)|\s+"),
    "tight": re.compile(rb"[^\s\d]+|\d+|\s"),
}
"""How tokenizers cut a text before they merge: not at all, as GPT-2 and its heirs, or more."""

LONGEST_TOKEN = 12

Mind = Callable[[tuple[int, ...]], Mapping[bytes, float]]
"""The tokens so far -> weights of the next symbols, not normalised."""


class Toy(ScriptedMember):
    """A byte-level BPE model whose next token depends on its tokens so far, not on text alone.

    Args:
        name: What it is called.
        merges: Its tokens of more than one byte in the order in which they are merged.
        letters: Its tokens of one byte.
        cut: A key of `CUTS`.
        context_window: Tokens it can hold.
    """

    def __init__(
        self, name: str, merges: Sequence[bytes], letters: bytes, cut: str, context_window: int
    ) -> None:
        single = sorted({bytes([b]) for b in letters + NEUTRAL})
        self.ranks = {token: rank for rank, token in enumerate(dict.fromkeys(merges))}
        symbols = sorted([*self.ranks, *single], key=lambda s: chance(len(self.ranks), s))
        super().__init__(name, symbols, follows(b""), complete=False, context_window=context_window)
        self.cut = cut
        self.mind: Mind = lambda ids: {END: 1.0}

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        self.sessions.append(ToySession(self))
        return self.sessions[-1]

    def _encode(self, text: bytes) -> list[int]:
        ids = []
        for chunk in CUTS[self.cut].findall(text):
            parts = [bytes([b]) for b in chunk]
            while True:
                pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
                known = [pair for pair in pairs if pair in self.ranks]
                if not known:
                    break
                at = pairs.index(min(known, key=lambda pair: self.ranks[pair]))
                parts[at : at + 2] = [pairs[at]]
            ids += [self.tokens.id_of(part) for part in parts]
        return [i for i in ids if i is not None]


class ToySession(ScriptedSession):
    """A toy at work; it computes every row afresh."""

    def __init__(self, toy: Toy) -> None:
        super().__init__(toy)
        self._toy = toy

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        self.work.passes += 1
        self.work.tokens += len(ids) - since + 1
        return [self._after(tuple(ids[:count])) for count in range(since, len(ids) + 1)]

    def _after(self, ids: tuple[int, ...]) -> DenseDistribution:
        tokens, weights = self._toy.tokens, self._toy.mind(ids)
        row = np.zeros(tokens.size)
        for symbol, weight in weights.items():
            row[tokens.id_of(symbol)] = weight
        with np.errstate(divide="ignore"):
            return DenseDistribution(np.log(row / row.sum()).astype(np.float32))


@dataclass(frozen=True)
class UnitWorld:
    """What a case is about.

    Attributes:
        plans: The text that each model has in mind.
        merges: Tokens of more than one byte, one list per model.
        cuts: How each tokenizer cuts a text first.
        seed: Makes the models' minds.
        unrest: How often a model is unsure, 0 to 1.
        end: How likely END is at places where nobody expects it.
        floor: Weight of tokens that nobody has in mind; 0 leaves them without any probability.
        windows: Context window per model.
        wild: Whether a model may write bytes that are no text.
    """

    plans: tuple[str, ...]
    merges: tuple[tuple[bytes, ...], ...]
    cuts: tuple[str, ...]
    seed: int
    unrest: float = 0.3
    end: float = 0.05
    floor: float = 0.0
    windows: tuple[int, ...] = ()
    wild: bool = False

    def members(self) -> list[Toy]:
        toys = []
        for nth, (merges, cut) in enumerate(zip(self.merges, self.cuts, strict=True)):
            window = self.windows[nth] if self.windows else 4096
            letters = "".join(self.plans).encode()
            toys.append(Toy(f"model-{nth}", merges, letters, cut, window))
            toys[-1].mind = self._mind(nth, toys[-1])
        return toys

    def _mind(self, nth: int, toy: Toy) -> Mind:
        """Mostly follows the plan, at times is unsure, and at times is sure of something else."""
        key, plan = self.seed + 7919 * nth, self.plans[nth].encode()
        symbols = [s for s in toy.tokens.symbols() if s not in (None, END)]
        letters = set("".join(self.plans).encode())

        @cache
        def mind(ids: tuple[int, ...]) -> Mapping[bytes, float]:
            text = b"".join(toy.tokens.symbol(i) for i in ids)
            path = b",".join(b"%d" % i for i in ids)
            ahead = plan[len(text) :]
            sure = chance(key, b"unrest", text) > self.unrest
            weights: dict[bytes, float] = {}
            for symbol in symbols:
                assert symbol is not None
                if not letters.issuperset(symbol):
                    continue
                if not self.wild and not may_follow(text, symbol):
                    continue
                luck = chance(key, text, b"|", symbol)
                common = chance(self.seed, text, b"|", symbol)
                weights[symbol] = self.floor * luck
                if ahead.startswith(symbol):
                    weights[symbol] = (20 * common**6 + luck) * (4 if sure else 1) * len(symbol)
                elif luck > 0.85:
                    weights[symbol] = luck * (0.05 if sure else 1)
                weights[symbol] *= 0.6 + 0.8 * chance(key, path, b"|", symbol)
            luck = chance(key, text, b"|end")
            weights[END] = 0.01 + luck / 8 + (30 * luck if not ahead or luck < self.end else 0)
            return {symbol: weight for symbol, weight in weights.items() if weight}

        return mind


def may_follow(text: bytes, symbol: bytes) -> bool:
    """Whether a symbol behind whole characters, or part of one, is text."""
    half = text[len(whole(text)) :]
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(half + symbol)
    except UnicodeDecodeError:
        return False
    return True


def plan_of(random: Random, kind: str) -> str:
    """A text of some kind."""

    def some(letters: str, low: int, high: int) -> str:
        return "".join(random.choice(letters) for _ in range(random.randint(low, high)))

    if kind == "words":
        gaps = [" ", " ", " ", "\n", ", ", ". ", "  "]
        words = [some("abcé", 1, 5) + random.choice(gaps) for _ in range(random.randint(2, 7))]
        return "".join(words).strip()
    if kind == "numbers":
        return some("+=", 0, 1).join(some("1234", 1, 6) for _ in range(random.randint(2, 4))) + "."
    if kind == "spaces":
        return "".join(some("ab", 1, 2) + some(" \n ", 1, 5) for _ in range(random.randint(2, 5)))
    if kind == "chinese":
        letters = "".join(random.sample("中国人民大学生的，。", random.randint(3, 5)))
        return some(letters, 5, 32)
    if kind == "thai":
        letters = "".join(random.sample("กขคงานาีเไ้", random.randint(3, 5)))
        return some(letters, 10, 30) + random.choice(["", " "]) + some(letters, 1, 4)
    parts = random.sample([k for k in KINDS if k != "mixed"], 2)
    return "😀".join(plan_of(random, part)[:12] for part in parts)


def merges_of(
    random: Random, texts: Sequence[bytes], cut: str, count: int, never: set[bytes]
) -> tuple[bytes, ...]:
    """Tokens that were learned from some texts as byte-pair encoding does, in random order."""
    chunks = [[bytes([b]) for b in chunk] for t in texts for chunk in CUTS[cut].findall(t)]
    merges: list[bytes] = []
    for _ in range(count):
        pairs = sorted(
            {
                a + b
                for parts in chunks
                for a, b in zip(parts, parts[1:], strict=False)
                if a[-1:] + b[:1] not in never and len(a + b) <= LONGEST_TOKEN
            }
        )
        if not pairs:
            break
        merges.append(random.choice(pairs))
        for parts in chunks:
            at = 0
            while at + 1 < len(parts):
                if parts[at] + parts[at + 1] == merges[-1]:
                    parts[at : at + 2] = [merges[-1]]
                at += 1
    return tuple(merges)


def world_of(number: int, models: int | None = None, kind: str | None = None) -> UnitWorld:
    """The world of a case."""
    random = Random(number)
    kind = kind or random.choice(KINDS)
    plan = plan_of(random, kind)
    text = plan.encode()
    texts = [text, "".join(random.sample(plan, len(plan))).encode()]
    pairs = sorted({text[i : i + 2] for i in range(len(text) - 1)})
    share = random.choice([0, 0, 0.1]) if kind in ("chinese", "thai") else random.choice([0.2, 0.5])
    whole = [p for p in pairs if p[1] & 0xC0 != 0x80]
    never = set(random.sample(whole, int(share * len(whole))))
    count = models or random.choice([1, 2, 2, 2, 3, 3, 4])
    long = kind in ("chinese", "thai")
    merges, cuts = [], []
    for _ in range(count):
        cuts.append(random.choice(list(CUTS)))
        tokens = random.randint(4, 40) if long else random.randint(0, 14)
        merges.append(merges_of(random, texts, cuts[-1], tokens, never))
    if random.random() < 0.1:
        merges, cuts = [merges[0]] * count, [cuts[0]] * count
    elif count > 2 and random.random() < 0.2:
        merges[1], cuts[1] = merges[0], cuts[0]  # two models of one family
    plans = [plan] * count
    for nth in range(1, count) if random.random() < 0.5 else ():
        rest = plan[random.randint(1, len(plan)) :]
        kept = random.sample(rest, len(rest) // 2) if random.random() < 0.5 else ""
        plans[nth] = plan.removesuffix(rest) + "".join(kept)
    return UnitWorld(
        tuple(plans),
        tuple(merges),
        tuple(cuts),
        number,
        random.choice([0.1, 0.3, 0.6, 1.0]),
        random.choice([0.0, 0.02, 0.1]),
        random.choice([0.0, 0.001]),
        wild=random.random() < 0.05,
    )


def config_of(number: int, models: int, **fixed: Any) -> EnsembleConfig:
    """How the models of a case are merged."""
    random = Random(f"config {number}")
    shares = [random.randint(1, 9) * (random.random() > 0.1) for _ in range(models)]
    shares = shares if any(shares) else [1] * models
    values: dict[str, Any] = {
        "union_top_k": random.choice([1, 3, 10]),
        "lookahead": random.choice([1, 2, 3, 5, 8, 16]),
        "consensus_above": random.choice([0.5, 0.5, 0.5, 0.7, 1.0]),
        "weights": random.choice([None, tuple(s / sum(shares) for s in shares)]),
    }
    return EnsembleConfig(**{**values, **fixed})


def options_of(number: int, world: UnitWorld, **fixed: Any) -> GenerationConfig:
    """Ends of the answer of a case, perhaps stop strings that may come, perhaps a penalty."""
    random = Random(f"options {number}")
    stops = []
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        at = random.randrange(len(world.plans[0]))
        stops.append(world.plans[0][at : at + random.randint(1, 3)])
    most = random.choice([random.randint(1, 12), random.randint(10, 40)])
    values: dict[str, Any] = {"repetition_penalty": random.choice([1.0, 1.0, 1.0, 1.4])}
    return GenerationConfig(**{"max_tokens": most, "stop": tuple(stops), **values, **fixed})


def choice_of(number: int, world: UnitWorld, **fixed: Any) -> GenerationConfig:
    """Texts that begin like the plan and go on with other parts of it."""
    random, plan, texts = Random(f"choice {number}"), world.plans[0], set()
    for _ in range(random.randint(1, 4)):
        jump = random.randrange(len(plan))
        rest = plan[jump : jump + random.randint(0, 6)]
        texts.add(plan[: random.randint(1, len(plan))] + rest)
    form = Choice(options=tuple(sorted(texts)))
    return GenerationConfig(max_tokens=300, response_format=form, **fixed)


def shape_of(number: int) -> dict[str, Any]:
    """How distributions are shaped before a case draws from them."""
    random = Random(f"shape {number}")
    return {
        "temperature": random.choice([0.3, 0.7, 1.0, 1.5]),
        "top_p": random.choice([1.0, 1.0, 0.9, 0.6]),
        "top_k": random.choice([0, 0, 3, 8]),
        "min_p": random.choice([0.0, 0.0, 0.05]),
    }


def gumbel(seed: int) -> Noise:
    """Noise that depends on its arguments alone; it need not be that of the package."""

    def noise(stream: str, at: int, symbol: bytes) -> float:
        u = chance(seed, stream.encode(), b"|%d|" % at, symbol)
        return float(-np.log(-np.log(u)))

    return noise
