"""A verifier whose server fails in the middle of an answer: `on_missing`.

What is written before is what the whole ensemble writes, what is written behind is what the other
models write without it. The oracles know how: they are told from where on which model is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import Any

import pytest
from cases import World, ci, configs, options, worlds
from elsewhere import RemoteMember
from failing import PROBLEM, TEXT, Refuses, Server, engine_of, served
from hypothesis import given, settings
from hypothesis import strategies as st
from truncated import TruncatedMember
from unit_answers import TINY, pieces_of, same
from unit_worlds import KINDS, config_of, options_of, shape_of, world_of

from safe_integrations.config import Choice, EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Event,
    Finished,
    ModelLost,
    Reasoned,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.engine.model import never
from safe_integrations.engine.noise import Noise
from safe_integrations.engine.tokens import END
from safe_integrations.errors import GenerationError, ServerError
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows
from tests.oracle import Judged, Oracle, Outcome
from tests.oracle_units import Noise as Luck
from tests.oracle_units import UnitOracle
from tests.places_by_hand import Unit, Units

seen: Counter[str] = Counter()


# What an answer must be like, whatever fails


@dataclass
class Answer:
    """An answer, and which models were lost in it."""

    result: Result
    events: list[Event]
    lost: dict[str, int]


def answer(servers: Sequence[Server], config: EnsembleConfig, limits: GenerationConfig) -> Answer:
    """An answer with `on_missing="continue"`, checked for what must hold of every one."""
    config = config.model_copy(update={"on_missing": "continue"})
    members: list[Any] = [RemoteMember(server) for server in servers]  # type: ignore[arg-type]
    events = list(SafeEngine(members[0], members[1:], config).generate("Go.", limits))
    assert all(s.closed == 1 for server in servers for s in server.sessions)
    result = Result.of(events)
    folded, lost, told, kinds, at = Statistics(), {}, "", [], 0
    for event in events:
        folded.add(event)
        assert not isinstance(event, Reasoned)
        if isinstance(event, ModelLost):
            assert (
                event.model not in lost and event.at == at and "closed (status 502)" in event.reason
            )
            lost[event.model] = at
        elif isinstance(event, Verified):
            for piece in event.pieces:
                assert piece.start == at and piece.written
                at = piece.end
                assert lost.keys().isdisjoint({vote.model for vote in piece.votes} | {piece.drawn})
                if len(lost) == len(servers) - 1 and config.mode == "safe":
                    assert piece.verdict in (Verdict.UNVERIFIED, Verdict.FORCED, Verdict.CLOSED)
        elif isinstance(event, TextDelta):
            told += event.text
        kinds.append((getattr(event, "cycle", None), type(event)))
    assert told == result.text
    last = max(cycle for cycle, _ in kinds if cycle)
    for kind in (Drafted, Verified):
        assert [cycle for cycle, k in kinds if k is kind] == [*range(1, last + 1)]
    for cycle, kind in kinds:
        if kind is ModelLost:
            assert kinds.index((cycle, kind)) < kinds.index((cycle, Verified))
        if kind is Ensembled:
            assert kinds.index((cycle, kind)) > kinds.index((cycle, Verified))
    statistics = result.statistics
    assert statistics.lost == folded.lost == lost
    for name in ("cycles", "drafted", "judged", "unsafe", "ensembled", "changed", "closed"):
        assert getattr(statistics, name) == getattr(folded, name), name
    assert [model.name for model in statistics.models] == [server.name for server in servers]
    seen["lost"] += len(lost)
    seen["in the middle"] += sum(0 < at < len(result.text.encode()) for at in lost.values())
    return Answer(result, events, lost)


def numbers_of_questions(random: Random, asked: int, most: int) -> list[int]:
    """Some numbers of questions after which a server is gone, none of them among them."""
    return sorted(random.sample(range(asked), min(asked, most)))


# Oracles that lose models


class LosingTokens(Oracle):
    """By tokens, with some models only up to a place."""

    def __init__(self, *args: Any, lost: Mapping[str, int]) -> None:
        super().__init__(*args)
        self.lost = lost

    def _write_one(self) -> None:
        at = len(self._text(self.ids))
        kept = [n for n, m in enumerate(self.members) if self.lost.get(m.name, inf) > at]
        if len(kept) < len(self.members):
            for name in ("members", "vocabularies", "shares", "prompts", "rooms", "weights"):
                setattr(self, name, [getattr(self, name)[n] for n in kept])
            self.weights = shares(self.weights)
        super()._write_one()


class LosingUnits(UnitOracle):
    """By units, with some models only up to a place: what was written stays as it is spelled."""

    def __init__(self, *args: Any, lost: Mapping[str, int]) -> None:
        super().__init__(*args)
        self.lost = lost
        self.known = 0
        self.prefixes: list[list[int]] = [[] for _ in self.members]

    def ids_of(self, nth: int, written: Sequence[Unit]) -> list[int]:
        return [*self.prefixes[nth], *super().ids_of(nth, written[self.known :])]

    def _greedy(self, written: list[Unit]) -> tuple[Unit, Judged]:
        self._lose(written)
        return super()._greedy(written)

    def _drawn(self, written: list[Unit], noise: Luck) -> tuple[Unit, Judged]:
        self._lose(written)
        return super()._drawn(written, noise)

    def _lose(self, written: list[Unit]) -> None:
        at = len(text_of_units(written))
        kept = [n for n, m in enumerate(self.members) if self.lost.get(m.name, inf) > at]
        if len(kept) == len(self.members):
            return
        self.prefixes = [self.ids_of(n, written) for n in range(len(self.members))]
        self.known = len(written)
        for name in ("members", "vocabularies", "prompts", "weights", "prefixes"):
            setattr(self, name, [getattr(self, name)[n] for n in kept])
        self.weights = shares(self.weights)
        self.units = Units(self.vocabularies)
        self.everyone = range(len(kept))


def text_of_units(written: Sequence[Unit]) -> bytes:
    return b"".join(unit.data for unit in written if unit.data != END)


def shares(weights: Sequence[float]) -> list[float]:
    """They sum to 1 again; equal ones where nothing is left."""
    total = sum(weights)
    return [w / total if total else 1 / len(weights) for w in weights]


def assert_as_the_oracle(
    members: Sequence[Any],
    config: EnsembleConfig,
    limits: GenerationConfig,
    random: Random,
    oracle: Callable[[Mapping[str, int]], Outcome],
    top: int | None = None,
    most: int = 3,
) -> None:
    """Each verifier is lost after several numbers of questions, or two of them are."""

    def served(last: Mapping[int, float]) -> list[Server]:
        cut = [TruncatedMember(m, top) if top else m for m in members]
        return [Server(member, last.get(nth, inf)) for nth, member in enumerate(cut)]

    servers = served({})
    whole = answer(servers, config, limits)
    assert not whole.lost
    asked = [server.asked for server in servers]
    losses: list[dict[int, float]] = []
    for nth in range(1, len(members)):
        losses += [{nth: k} for k in numbers_of_questions(random, asked[nth], most)]
    if len(members) > 2:
        for _ in range(most):
            losses.append({n: random.randrange(asked[n] + 1) for n in (1, 2)})
    for loss in losses:
        found = answer(served(loss), config, limits)
        assert set(found.lost) <= {members[nth].name for nth in loss}
        outcome = oracle(found.lost)
        seen["tight"] += outcome.margin <= TINY
        if outcome.margin > TINY:
            seen["compared"] += 1
            seen.update(f"behind: {p.verdict}" for p in found.result.pieces if _behind(p, found))
            assert same(outcome, found.result) == {}, loss


def _behind(piece: Any, found: Answer) -> bool:
    return any(piece.start >= at for at in found.lost.values())


@settings(ci, max_examples=40)
@given(st.data())
def test_by_tokens_the_rest_is_what_the_others_write(data: st.DataObject) -> None:
    world: World = data.draw(worlds(models=st.integers(2, 4)))
    mode = data.draw(st.sampled_from(["safe", "safe", "every-token"]))
    config = data.draw(configs(len(world.vocabularies), mode=mode))
    limits = data.draw(options(world.plan))
    members = world.members()

    def oracle(lost: Mapping[str, int]) -> Outcome:
        return LosingTokens(members, config, limits, lost=lost).write("Go.")

    assert_as_the_oracle(members, config, limits, Random(world.seed), oracle)


@settings(ci, max_examples=40)
@given(st.data())
def test_by_tokens_a_question_in_the_middle_of_a_merge_may_fail(data: st.DataObject) -> None:
    world: World = data.draw(worlds(models=st.integers(2, 3)))
    world = replace(world, unrest=1.0)
    config = data.draw(configs(len(world.vocabularies), method="unite", union_top_k=1))
    limits = data.draw(options(world.plan))
    members = world.members()

    def oracle(lost: Mapping[str, int]) -> Outcome:
        return LosingTokens(members, config, limits, lost=lost).write("Go.")

    assert_as_the_oracle(members, config, limits, Random(world.seed), oracle, top=1, most=6)


@pytest.mark.parametrize("kind", KINDS)
def test_by_units_a_question_in_the_middle_of_a_merge_may_fail(kind: str) -> None:
    """What was judged before stays: the pieces of an answer in which nothing fails."""
    for number in range(4):
        world = replace(world_of(number, models=2 + number % 2, kind=kind), unrest=1.0)
        config = config_of(number, len(world.merges), union_top_k=1)
        limits = GenerationConfig(max_tokens=20)
        members = world.members()

        def served(last: float) -> list[Server]:
            first, second, *rest = (TruncatedMember(member, 1) for member in members)  # noqa: B023
            return [Server(first), Server(second, last), *map(Server, rest)]

        servers = served(inf)
        whole = pieces_of(answer(servers, config, limits).result)
        for k in numbers_of_questions(Random(number), servers[1].asked, 12):
            found = answer(served(k), config, limits)
            at = found.lost.get("model-1", inf)
            before = [piece for piece in pieces_of(found.result) if piece.start < at]
            assert before == whole[: len(before)], (number, k)


@pytest.mark.parametrize("kind", KINDS)
def test_by_units_the_rest_is_what_the_others_write(kind: str) -> None:
    """Their own units, too: behind a loss all that is left may be one model, or one vocabulary."""
    for number in range(8):
        world = world_of(number, models=2 + number % 3, kind=kind)
        members = world.members()
        config, limits = config_of(number, len(members)), options_of(number, world)

        def oracle(lost: Mapping[str, int]) -> Outcome:
            return LosingUnits(members, config, limits, lost=lost).write("Go.")  # noqa: B023

        assert_as_the_oracle(members, config, limits, Random(number), oracle)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_units_are_drawn_from_the_others(kind: str) -> None:
    """With the same noise for the same model, wherever it stands among those that are left."""
    for number in range(8):
        world = world_of(number, models=2 + number % 3, kind=kind)
        members = world.members()
        config = config_of(number, len(members))
        limits = options_of(number, world, seed=number, **shape_of(number))
        noise = Noise(number).gumbel

        def oracle(lost: Mapping[str, int]) -> Outcome:
            found = LosingUnits(members, config, limits, lost=lost)  # noqa: B023
            return found.sample("Go.", noise)  # noqa: B023

        assert_as_the_oracle(members, config, limits, Random(number), oracle)


@settings(ci, max_examples=40)
@given(st.data())
def test_drawn_tokens_are_accepted_by_the_others(data: st.DataObject) -> None:
    """As in an ensemble without the model that is sure of all that was written until then."""
    world: World = data.draw(worlds(models=st.integers(2, 3)))
    config = data.draw(configs(len(world.vocabularies), weights=None))
    limits = GenerationConfig(max_tokens=20, temperature=1, seed=data.draw(st.integers(0, 9)))
    servers = [Server(member) for member in world.members()]
    answer(servers, config, limits)
    for k in numbers_of_questions(Random(world.seed), servers[1].asked, 4):
        lossy = [Server(m, k if n == 1 else inf) for n, m in enumerate(world.members())]
        found = answer(lossy, config, limits)
        pieces = found.result.pieces
        at = found.lost.get("model-1", len(found.result.text.encode()))
        before = b"".join(p.written for p in pieces if p.start < at)
        rest = [m for m in world.members() if m.name not in found.lost]
        for member in rest:
            member.script = behind(member, before)
        same_rest = SafeEngine(rest[0], rest[1:], config).complete("Go.", limits)
        again = b"".join(p.written for p in same_rest.pieces if p.start < at)
        if not found.lost or again != before:
            continue  # another model has a token across the place
        seen["drawn tokens"] += 1
        expected = [piece for piece in pieces_of(same_rest) if piece.start >= at]
        assert [piece for piece in pieces_of(found.result) if piece.start >= at] == expected


def behind(member: ScriptedMember, text: bytes) -> Any:
    """What a member expects behind a text; until then it is sure of its own tokens of the text."""
    script = member.script

    def sure(written: bytes) -> Mapping[bytes, float]:
        if len(written) >= len(text):
            return script(written)
        first = member.tokens.encode(text[len(written) :])[0]
        return {member.tokens.symbol(first): 1.0}

    return sure


def test_the_cases_above_lost_models_in_the_middle_of_answers() -> None:
    if not seen["drawn tokens"]:  # they ran in another process, or not at all
        pytest.skip("alone it has nothing to count")
    assert seen["lost"] > 500 and seen["in the middle"] > 250
    assert seen["compared"] > 10 * seen["tight"]
    assert seen["drawn tokens"] > 20
    for verdict in Verdict:
        if verdict not in (Verdict.FORCED, Verdict.CLOSED):
            assert seen[f"behind: {verdict}"] > 10, verdict


# By hand

UNITS = ("text", "token")


MODES = [{"unit": "text"}, {"unit": "token"}, {"unit": "token", "mode": "every-token"}]


@pytest.mark.parametrize("config", MODES)
@pytest.mark.parametrize("kind", [RemoteMember, Refuses])
def test_without_a_word_about_it_an_answer_ends(config: dict[str, Any], kind: Any) -> None:
    for k in (0, 1, 3):
        servers = served(k)
        with pytest.raises(ServerError, match="^v: the connection was closed") as caught:
            engine_of(servers, kind, **config).complete("Go.")
        assert caught.value.status == 502
        assert all(s.closed == 1 for server in servers for s in server.sessions)


@pytest.mark.parametrize("config", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_drafter_cannot_be_left_out(config: dict[str, Any], temperature: float) -> None:
    limits = GenerationConfig(temperature=temperature, seed=1)
    servers = served(inf)
    engine_of(servers, **config).complete("Go.", limits)
    for k in range(0, servers[0].asked // 2, 5):
        servers = served(inf)
        servers[0].last = k
        with pytest.raises(ServerError, match="^drafter: "):
            engine_of(servers, on_missing="continue", **config).complete("Go.", limits)
        assert all(s.closed == 1 for server in servers for s in server.sessions)


@pytest.mark.parametrize("config", MODES)
@pytest.mark.parametrize("kind", [RemoteMember, Refuses])
def test_one_that_was_never_there_is_told_of_first(config: dict[str, Any], kind: Any) -> None:
    servers = served(0, inf)
    engine = engine_of(servers, kind, on_missing="continue", lookahead=8, **config)
    events = list(engine.generate("Go."))
    lost = next(n for n, event in enumerate(events) if isinstance(event, ModelLost))
    verified = next(n for n, event in enumerate(events) if isinstance(event, Verified))
    assert lost < verified
    assert events[lost] == ModelLost(1, "v", 0, str(ServerError("v", *PROBLEM)))
    result = Result.of(events)
    assert result.text.encode() == TEXT
    assert result.statistics.lost == {"v": 0}
    assert {vote.model for p in result.pieces for vote in p.votes} <= {"drafter", "v#2"}


@pytest.mark.parametrize("config", MODES[:2])
def test_two_of_three_are_lost_one_after_the_other(config: dict[str, Any]) -> None:
    """They share their name as models; which of them fails is told all the same."""
    servers = served(inf, inf, inf)
    answer_of(servers, lookahead=3, **config)
    asked = servers[1].asked
    found = answer_of(served(asked // 3, inf, 2 * asked // 3), lookahead=3, **config)
    assert [*found.lost] == ["v", "v#3"] and 0 < found.lost["v"] < found.lost["v#3"] < len(TEXT)
    votes = [(p.start, [vote.model for vote in p.votes]) for p in found.result.pieces if p.votes]
    for start, names in votes:
        whole = ["drafter", "v", "v#2", "v#3"]
        gone = [name for name, at in found.lost.items() if start >= at]
        assert names == [name for name in whole if name not in gone]
    assert {len(names) for _, names in votes} == {4, 3, 2}
    assert found.result.text.encode() == TEXT


def answer_of(servers: Sequence[Server], **config: Any) -> Answer:
    """The same for members that share names."""
    config["on_missing"] = "continue"
    events = list(engine_of(servers, **config).generate("Go."))
    lost = {event.model: event.at for event in events if isinstance(event, ModelLost)}
    result = Result.of(events)
    assert result.statistics.lost == lost
    return Answer(result, events, lost)


@pytest.mark.parametrize("config", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_the_weight_may_be_lost(config: dict[str, Any], temperature: float) -> None:
    for weights in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
        limits = GenerationConfig(temperature=temperature, seed=1)
        servers = served(2, inf, sure=0.9)
        engine = engine_of(servers, on_missing="continue", weights=weights, **config)
        result = engine.complete("Go.", limits)
        assert result.text and result.statistics.lost.keys() <= {"v"}
        seen[f"weights {weights}"] += len(result.statistics.lost)
    assert seen["weights (0.0, 1.0, 0.0)"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_lost_window_ends_nothing(unit: str) -> None:
    """With it, the answer is cut in front of what does not fit."""
    config = {"unit": unit, "lookahead": 2, "on_missing": "continue"}
    small = {"context_window": 30}
    servers = served(inf, **small)
    assert engine_of(servers, **config).complete("Go.").finish_reason == "length"
    servers = served(servers[1].asked // 2, **small)
    result = engine_of(servers, **config).complete("Go.")
    assert 0 < result.statistics.lost["v"] < 30
    assert (result.text.encode(), result.finish_reason) == (TEXT, "stop")


@pytest.mark.parametrize("unit", UNITS)
def test_nor_does_it_close_a_structure(unit: str) -> None:
    short, long = "one two", TEXT.decode()
    limits = GenerationConfig(response_format=Choice(options=(short, long)))
    config = {"unit": unit, "lookahead": 2, "on_missing": "continue"}
    small = {"context_window": 30}
    assert engine_of(served(inf, **small), **config).complete("Go.", limits).text == short
    result = engine_of(served(1, **small), **config).complete("Go.", limits)
    assert result.statistics.lost["v"] < len(short)
    assert (result.text, result.finish_reason) == (long, "stop")


def test_behind_reasoning_it_is_asked_again() -> None:
    """It may be there again; if not, it is lost in the answer, too."""
    limits = GenerationConfig(reasoning=20, max_tokens=60)
    for back in (True, False):
        servers = served(3)
        servers[1].last = 3
        events = []
        engine = engine_of(servers, unit="token", lookahead=3, on_missing="continue")
        for event in engine.generate("Go.", limits):
            if back and isinstance(event, Reasoned) and isinstance(event.event, Finished):
                servers[1].last = inf
            events.append(event)
        thought = [e.event for e in events if isinstance(e, Reasoned)]
        (lost,) = (e for e in thought if isinstance(e, ModelLost))
        assert lost.at > 0
        told = [e for e in events if isinstance(e, ModelLost)]
        assert [e.at for e in told] == ([] if back else [0])
        result = Result.of(events)
        assert result.statistics.lost == ({} if back else {"v": 0})
        asked = {vote.model for p in result.pieces for vote in p.votes}
        assert asked == ({"drafter", "v"} if back else set())


def test_whatever_else_goes_wrong_with_a_question_is_an_error_of_the_model() -> None:
    """A failure that is none of a server's ends the answer, and names the model."""

    class Broken(TruncatedMember):
        def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Any:
            session = super().start(prompt, cancel)
            score = session.score

            def rows(ids: Sequence[int], since: int) -> Any:
                found = score(ids, since)
                for row in found:
                    row._ask = lambda ids: 1 / 0  # type: ignore[assignment, return-value]
                return found

            session.score = rows  # type: ignore[method-assign]
            return session

    members = [ScriptedMember(n, [], follows(t, sure=0.6)) for n, t in (("a", b"ab"), ("b", b"cd"))]
    verifier: Any = Broken(members[1], 1)
    config = EnsembleConfig(unit="token", union_top_k=1, on_missing="continue")
    with pytest.raises(GenerationError, match="b failed while generating: division by zero"):
        SafeEngine(members[0], [verifier], config).complete("Go.")
