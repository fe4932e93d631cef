"""Members that servers compute: how fast they write, and what each token costs on its way.

Every model is also asked to write by itself, by the plain completions of OpenAI's API: that is what
speeds are multiples of. A network's latency is a proxy's (`benchmarks/delays.py`).
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any, Final
from unittest.mock import patch

import httpx

from benchmarks.backends import own_process
from benchmarks.benchmark import Tell, pair_name, plain
from benchmarks.delays import delayed
from benchmarks.measure import Clock, follow
from benchmarks.prompts import PROMPTS, QUESTIONS
from benchmarks.trips import noting_trips
from benchmarks.turns import Answers, Turns
from safe_integrations.cli.many import in_threads
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.drafter import Drafter
from safe_integrations.engine.events import Statistics
from safe_integrations.engine.model import Member
from safe_integrations.messages import Message
from safe_integrations.models.load import load_member
from safe_integrations.models.locate import gguf_of
from safe_integrations.models.served.member import ServedMember
from safe_integrations.models.spec import ModelSpec, name_of
from safe_integrations.safe_engine import SafeEngine

TOKENS: Final = 60
"""Length of an answer, at most."""

LEVELS: Final = (1, 4, 16)
"""Answers at once."""

DELAYS: Final = (0, 10, 50)
"""Milliseconds that a network adds to a round trip."""

LOOKAHEADS: Final = (2, 3, 5, 8, "auto")

PAIR: Final = "pair"
ALONE: Final = "drafter"
SERVED: Final = "both served"
MIXED: Final = "drafter here"
ON: Final = "drafted on"
OFF: Final = "waited"

_FEWEST: Final = 2  # answers at a level
_WARM_UP: Final = 8  # tokens
_SHOWN: Final = 16  # functions
_WINDOW: Final = 1024
_PLAIN_TIMEOUT: Final = 300.0

Question = Sequence[Message]


@dataclass(slots=True)
class Served:
    """Everything that was measured so far.

    Attributes:
        pair: The models.
        kinds: What serves each of them.
        levels: The pair and the plain completions of its drafter, by answers at once.
        overlap: Both served and the drafter here, by delay: with drafting on while the verifier is
            waited for, and without.
        lookaheads: The pair by `lookahead`.
        profile: Functions of the thread that writes an answer, the busiest first: name, calls and
            milliseconds per token.
    """

    pair: str
    kinds: Mapping[str, str]
    levels: dict[int, Turns] = field(default_factory=dict)
    overlap: dict[int, Turns] = field(default_factory=dict)
    lookaheads: Turns = field(default_factory=Turns)
    profile: list[tuple[str, float, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON-safe data, raw repetitions included."""
        return {
            "pair": self.pair,
            "kinds": dict(self.kinds),
            "tokens": TOKENS,
            "levels": {
                str(n): {"ratio": plain(turns.ratio(PAIR, ALONE)), **turns.to_dict()}
                for n, turns in self.levels.items()
            },
            "overlap": {
                str(delay): {
                    "gain": {
                        who: plain(turns.ratio(way(who, ON), way(who, OFF)))
                        for who in (SERVED, MIXED)
                    },
                    **turns.to_dict(),
                }
                for delay, turns in self.overlap.items()
            },
            "lookaheads": {
                "against_auto": {
                    str(n): plain(self.lookaheads.ratio(str(n), "auto")) for n in LOOKAHEADS
                },
                **self.lookaheads.to_dict(),
            },
            "profile": [
                {"function": name, "calls_per_token": calls, "ms_per_token": milliseconds}
                for name, calls, milliseconds in self.profile
            ],
        }


def way(who: str, how: str) -> str:
    """A way of `Served.overlap`."""
    return f"{who}, {how}"


@contextmanager
def servers(specs: Sequence[ModelSpec], urls: Sequence[str], tell: Tell) -> Iterator[list[str]]:
    """Where the models are served: llama-servers of one thread each, where nobody names others."""
    from tests.llama_server import llama_server

    with ExitStack() as stack:
        if urls:
            yield list(urls)
            return
        started = []
        for spec in specs:
            tell(f"{name_of(spec)}: starting a llama-server")
            file: Path = gguf_of(spec, tell)
            server = llama_server(file, window=_WINDOW)
            started.append(stack.enter_context(server).url)
        yield started


def measure_served(
    specs: Sequence[ModelSpec],
    urls: Sequence[str],
    config: EnsembleConfig,
    repetitions: int,
    tell: Tell = lambda _: None,
    save: Callable[[Served], None] = lambda _: None,
) -> Served:
    """Measures everything, section by section; in each of them all ways take turns.

    Args:
        specs: The models as this process would load them, drafter first. Their tokenizers are
            those of the served ones.
        urls: Where each of them is served.
        config: How they are merged.
        repetitions: How often everything is measured.
        tell: Told what is going on.
        save: Told what was measured so far, again and again.

    Raises:
        ModelError: One of them cannot be used.
    """
    members = [served(spec, url) for spec, url in zip(specs, urls, strict=True)]
    local = load_member(specs[0])
    engine = _engine(members, config)
    kinds = {member.name: member.dialect.kind for member in members}
    measured = Served(pair_name(engine), kinds)
    story, shuffled = [PROMPTS["chat"]], Random(1)

    def turns(into: Turns, what: str, ways: Mapping[str, Callable[[int], Answers]]) -> None:
        for nth in range(repetitions + 1):
            found = {}
            for name in shuffled.sample(list(ways), len(ways)):
                tell(f"{what}: {name}, {f'round {nth}' if nth else 'warming up'}")
                found[name] = ways[name](TOKENS if nth else _WARM_UP)
            if nth:
                into.rounds.append({name: found[name] for name in ways})
                save(measured)

    for at_once in LEVELS:
        questions = QUESTIONS[: max(_FEWEST, at_once)]
        measured.levels[at_once] = Turns()
        ways = {
            PAIR: partial(by_engine, engine, questions, at_once, True),
            ALONE: partial(by_server, members[0], questions, at_once),
        }
        turns(measured.levels[at_once], f"{at_once} at once", ways)
    with own_process() as network:
        for delay in DELAYS:
            far = members
            if delay:
                through = [network.submit(delayed, url, delay / 1000).result() for url in urls]
                far = [served(*one) for one in zip(specs, through, strict=True)]
            who: dict[str, Sequence[Member]] = {SERVED: far, MIXED: [local, *far[1:]]}
            measured.overlap[delay] = Turns()
            ways = {
                way(name, how): partial(by_engine, _engine(them, config), story, 1, how == ON)
                for name, them in who.items()
                for how in (ON, OFF)
            }
            turns(measured.overlap[delay], f"{delay} ms", ways)
    fixed = {
        str(n): _engine(members, config.model_copy(update={"lookahead": n})) for n in LOOKAHEADS
    }
    both = [*story, QUESTIONS[1]]
    ways = {n: partial(by_engine, one, both, 1, True) for n, one in fixed.items()}
    turns(measured.lookaheads, "lookahead", ways)
    measured.profile = profile(engine, story)
    save(measured)
    return measured


def served(spec: ModelSpec, url: str) -> ServedMember:
    """A model on a server; its tokenizer is that of the model as it would be loaded here."""
    far = ModelSpec(source=url, tokenizer=spec.source, name=name_of(spec))
    member = load_member(far)
    assert isinstance(member, ServedMember)
    return member


def _engine(members: Sequence[Member], config: EnsembleConfig) -> SafeEngine:
    return SafeEngine(members[0], members[1:], config)


def by_engine(
    engine: SafeEngine,
    questions: Sequence[Question],
    at_once: int,
    drafts_on: bool,
    count: int,
    clock: Clock = perf_counter,
) -> Answers:
    """Has the ensemble answer, in threads.

    Args:
        engine: The ensemble.
        questions: What is answered.
        at_once: How many at the same time.
        drafts_on: Whether the drafter goes on while verifiers are waited for.
        count: Tokens of an answer, at most.
        clock: Seconds, from anywhere.
    """
    found: list[Statistics] = []

    def work(question: Question, stopped: Callable[[], bool]) -> None:
        options = GenerationConfig(max_tokens=count)
        run = follow("safe", engine.generate(question, options, cancel=stopped), clock)
        assert run.statistics
        found.append(run.statistics)

    waits = nullcontext() if drafts_on else patch.object(Drafter, "go_on", lambda _: None)
    with waits, noting_trips(engine.members, clock) as trips:
        cpu, started = process_time(), clock()
        in_threads(work, questions, at_once)
        seconds, cpu = clock() - started, process_time() - cpu
    return Answers(sum(s.tokens for s in found), seconds, cpu, found, trips)


def by_server(
    member: ServedMember,
    questions: Sequence[Question],
    at_once: int,
    count: int,
    clock: Clock = perf_counter,
) -> Answers:
    """Has a server answer by itself: as many tokens, greedily."""
    written: list[int] = []
    http = httpx.Client(timeout=_PLAIN_TIMEOUT)
    fields = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "model": member.called}

    def work(question: Question, _: Callable[[], bool]) -> None:
        body = {"prompt": member.render(question), **fields}
        answer = http.post(f"{member.client.url}/completions", json=body).raise_for_status()
        written.append(int(answer.json()["usage"]["completion_tokens"]))

    with http:
        started = clock()
        in_threads(work, questions, at_once)
        return Answers(sum(written), clock() - started)


def profile(engine: SafeEngine, questions: Sequence[Question]) -> list[tuple[str, float, float]]:
    """What the thread that writes answers does outside of waiting (`Served.profile`)."""
    watch = cProfile.Profile()
    tokens = 0
    for question in questions:
        tokens += watch.runcall(
            engine.complete, question, GenerationConfig(max_tokens=TOKENS)
        ).statistics.tokens
    rows: Mapping[tuple[str, int, str], tuple[Any, ...]] = vars(pstats.Stats(watch))["stats"]
    found = [
        (f"{Path(file).name}:{function}", calls / tokens, 1000 * own / tokens)
        for (file, _, function), (_, calls, own, *_) in rows.items()
        if "acquire" not in function  # that is waiting
    ]
    return sorted(found, key=lambda row: -row[2])[:_SHOWN]
