"""Members that tell only their best ids, as served models do: the same text, few questions."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from cases import World, choices, ci, configs, options, ready_for, worlds
from elsewhere import RemoteMember
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Oracle
from truncated import TruncatedMember

from safe_integrations.config import (
    Choice,
    EnsembleConfig,
    GenerationConfig,
)
from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.events import Verdict
from safe_integrations.errors import GenerationError, InvalidArgumentError
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

TINY = 1e-6
seen: Counter[str] = Counter()


def complete(members: Sequence[Any], config: EnsembleConfig, limits: GenerationConfig) -> Result:
    return SafeEngine(members[0], members[1:], config).complete("Go.", limits)


def what(result: Result) -> list[tuple[int, bytes, bytes, Verdict]]:
    return [(p.start, p.proposed, p.written, p.verdict) for p in result.pieces]


def assert_same(
    data: st.DataObject, world: World, config: EnsembleConfig, top: int, ids: int | None
) -> None:
    """All members but some truncated, or some: what whole members write."""
    limits = data.draw(options(world.plan))
    whole = world.members()
    if data.draw(st.booleans()):
        texts = data.draw(choices(world.plan.decode()))
        form = Choice(options=tuple(texts))
        limits = GenerationConfig(max_tokens=300, response_format=form)
        whole = [ready_for(member, texts) for member in whole]
    outcome = Oracle(whole, config, limits).write("Go.")
    assume(outcome.margin > TINY)
    truncated = [data.draw(st.booleans()) for _ in whole]
    pairs = zip(whole, truncated, strict=True)
    cut = [TruncatedMember(m, top, ids=ids) if t else m for m, t in pairs]
    members = [RemoteMember(m) if data.draw(st.booleans()) else m for m in cut]
    result = complete(members, config, limits)
    assert result.text == outcome.text
    assert [(p.start, p.proposed, p.written, str(p.verdict)) for p in result.pieces] == [
        (j.start, j.proposed, j.written, j.verdict) for j in outcome.judged
    ]
    asked = sum(len(m.asked + m.among) for m in cut if isinstance(m, TruncatedMember))
    merges = sum(p.ensembled for p in result.pieces)
    seen["asked"] += asked
    seen["merges"] += merges
    seen["merges without a question"] += merges > 0 and asked == 0


@settings(ci, max_examples=120)
@given(st.data())
def test_at_full_width_the_text_is_the_same(data: st.DataObject) -> None:
    world = data.draw(worlds(models=st.integers(2, 4)))
    config = data.draw(configs(len(world.vocabularies), method="unite"))
    assert_same(data, world, config, 10_000, None)


@settings(ci, max_examples=240)
@given(st.data())
def test_with_few_ids_and_questions_the_text_is_the_same(data: st.DataObject) -> None:
    """The bounds decide or the model is asked: never a guess, however few ids are told."""
    world = data.draw(worlds(models=st.integers(2, 4)))
    world = World(world.plan, world.vocabularies, world.seed, 1.0, world.end, world.windows)
    top = data.draw(st.sampled_from([1, 2, 3, 5, 10]))
    k = data.draw(st.integers(1, top))
    config = data.draw(configs(len(world.vocabularies), method="unite", union_top_k=k))
    assert_same(data, world, config, top, 300)


def test_the_cases_above_asked_and_merged_and_often_needed_no_question() -> None:
    if not seen:  # they ran in another process, or not at all
        test_with_few_ids_and_questions_the_text_is_the_same()
    assert seen["merges"] > 100
    assert seen["asked"] > 20
    assert seen["merges without a question"] > 15


# Bounds

WORLD = {b"a": 0.5, b"b": 0.2, b"c": 0.2, b"d": 0.1}


def test_bounds_hold() -> None:
    """What is not told is at most the least that is told, and at most what is left of 1."""
    asked: list[Sequence[int]] = []

    def ask(ids: Sequence[int]) -> list[float]:
        asked.append(ids)
        return [-3.0] * len(ids)

    row = TopDistribution([7, 3], [-0.1, -2.4], ask, dict)  # exp: 0.905 and 0.091, 0.004 is left
    (told, other), exact = row.bounds([3, 9])
    assert (told, exact) == (-2.4, [True, False])
    assert -5.6 < other < -5.4
    assert asked == []
    assert row.logprobs([9, 7, 9]) == [-3.0, -0.1, -3.0]
    assert row.bounds([9]) == ([-3.0], [True])
    assert asked == [[9]]


@pytest.mark.parametrize("told", [[], [-float("inf")]])
def test_a_model_that_tells_nothing_is_an_error_of_ours(told: list[float]) -> None:
    with pytest.raises(GenerationError, match="told no id"):
        TopDistribution(range(len(told)), told, lambda ids: [0.0], dict)


def test_equal_ids_are_in_order() -> None:
    """A server may list ties in any order; the engine's rule is the lowest id."""
    row = TopDistribution([5, 9, 2], [-1.0, -0.7, -0.7], lambda ids: [0.0], dict)
    assert (row.best, row.top(3)) == (2, [2, 9, 5])


# Refused by name, before any work


@pytest.mark.parametrize(
    ("argument", "remedy", "config", "limits"),
    [
        ("method", "use 'unite'", {"unit": "token", "method": "gac"}, {}),
        ("temperature", "set top_k to at most 20", {}, {"temperature": 0.5}),
        ("temperature", "set top_k to at most 20", {}, {"temperature": 0.5, "top_k": 21}),
        ("repetition_penalty", "leave it out", {}, {"repetition_penalty": 1.2}),
        ("union_top_k", "lower it", {"union_top_k": 21}, {}),
    ],
)
def test_options_that_need_whole_distributions_are_refused(
    argument: str, remedy: str, config: dict[str, Any], limits: dict[str, Any]
) -> None:
    whole = [ScriptedMember(name, [], follows(b"abc")) for name in ("drafter", "verifier")]
    members = [whole[0], TruncatedMember(whole[1], 20)]
    engine = SafeEngine(members[0], members[1:], EnsembleConfig(**config))
    with pytest.raises(InvalidArgumentError, match=f"^{argument}=.*{remedy}: verifier"):
        engine.generate("Go.", GenerationConfig(**limits))
    assert not any(m.sessions for m in whole)


# Several that wait for something else than this machine


class Meeting(ScriptedMember):
    """Answers only when all that meet have been asked."""

    def __init__(self, name: str, barrier: threading.Barrier) -> None:
        super().__init__(name, [], follows(b"abc", sure=0.4))
        self.barrier = barrier

    def start(self, prompt: Sequence[int], cancel: object = None) -> ScriptedSession:
        session = super().start(prompt)
        score = session.score

        def meet(ids: Sequence[int], since: int) -> Any:
            self.barrier.wait(timeout=20)
            session.work.seconds += 1
            return score(ids, since)

        session.score = meet  # type: ignore[method-assign]
        return session


def test_remote_verifiers_are_asked_at_the_same_time() -> None:
    """One after the other, each of them would wait for the others for ever."""
    barrier = threading.Barrier(2)
    drafter = ScriptedMember("drafter", [], follows(b"abc", sure=0.4))
    verifiers = [RemoteMember(TruncatedMember(Meeting(f"v{i}", barrier), 300)) for i in range(2)]
    local = ScriptedMember("local", [], follows(b"abc", sure=0.4))
    limits = GenerationConfig(max_tokens=6)
    result = SafeEngine(drafter, [verifiers[0], local, verifiers[1]]).complete("Go.", limits)
    alone = SafeEngine(drafter, [local, local, local]).complete("Go.", limits)
    assert result.text == alone.text != ""
    assert what(result) == what(alone)


def test_an_error_of_a_remote_verifier_ends_the_answer() -> None:
    broken = count()

    def script(text: bytes) -> dict[bytes, float]:
        if next(broken) > 0:
            raise ConnectionError("gone")
        return {b"a": 1.0}

    members = [ScriptedMember("ok", [], follows(b"aaaa")), ScriptedMember("bad", [], script)]
    verifiers = [RemoteMember(TruncatedMember(m, 300)) for m in members]
    events = SafeEngine(ScriptedMember("d", [], follows(b"aaaa")), verifiers).generate("Go.")
    with pytest.raises(RuntimeError, match="bad failed while generating: gone"):
        list(events)
    assert all(s.closed for m in members for s in m.sessions)
