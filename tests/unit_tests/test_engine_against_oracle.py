"""The engine writes what Algorithm 1 says, read naively (`tests/oracle.py`), on random worlds."""

from __future__ import annotations

from collections import Counter

import pytest
from cases import World, choices, ci, configs, engine_of, options, ready_for, worlds
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import Judged, Oracle, Outcome

from safe_integrations.config import Choice, EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import (
    Drafted,
    Event,
    Finished,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.engine.tokens import END
from safe_integrations.errors import ContextWindowError, InvalidArgumentError
from safe_integrations.report.result import Result
from safe_integrations.testing import ScriptedMember

TINY = 1e-6
seen: Counter[str] = Counter()


def run(
    members: list[ScriptedMember], config: EnsembleConfig, options: GenerationConfig
) -> tuple[Result, str]:
    """One answer of the engine; what must hold for every answer is checked on the way."""
    events = list(engine_of(members, config).generate("Go.", options))
    deltas = [e.text for e in events if isinstance(e, TextDelta)]
    assert all(deltas), "a delta is not empty"
    assert "".join(deltas).encode().decode() == "".join(deltas), "a delta is valid text"
    assert isinstance(events[-1], Finished) and sum(isinstance(e, Finished) for e in events) == 1
    for member in members:
        assert all(session.closed for session in member.sessions)
        member.sessions.clear()
    accounts_balance(events)
    return Result.of(events), "".join(deltas)


def accounts_balance(events: list[Event]) -> None:
    """Every drafted token is judged and kept, dropped, or still pending; statistics agree."""
    folded, draft = Statistics(), list[bytes]()
    for event in events:
        folded.add(event)
        if isinstance(event, Drafted):
            draft += event.tokens
        elif isinstance(event, Verified):
            judged = len(event.pieces)
            stand = [p.written == t for p, t in zip(event.pieces, draft, strict=False)]
            assert False not in stand[:-1], "nothing is judged behind a rejected token"
            rejected = stand.count(False)
            assert len(draft) == judged - rejected + event.dropped + event.pending
            assert rejected <= min(1, event.dropped)
            kept_or_closed = {p.verdict for p in event.pieces if not p.replaces}
            assert Verdict.CHANGED not in kept_or_closed
            assert {p.verdict for p in event.pieces if p.replaces} <= {
                Verdict.CHANGED,
                Verdict.CLOSED,
            }
            draft = draft[judged : judged + event.pending]
    told = events[-1]
    assert isinstance(told, Finished)
    assert counts(told.statistics) == counts(folded)


def counts(statistics: Statistics) -> list[int]:
    """What a fold over events tells of the whole."""
    names = ("cycles", "drafted", "judged", "unsafe", "ensembled", "changed", "closed")
    return [getattr(statistics, name) for name in names]


def pieces_of(result: Result) -> list[Judged]:
    return [Judged(p.start, p.proposed, p.written, str(p.verdict)) for p in result.pieces]


def expected(
    members: list[ScriptedMember], config: EnsembleConfig, options: GenerationConfig
) -> Outcome:
    outcome = Oracle(members, config, options).write("Go.")
    assume(outcome.margin > TINY)
    for member in members:
        member.sessions.clear()
    return outcome


def assert_same(outcome: Outcome, result: Result, text: str) -> None:
    assert pieces_of(result) == outcome.judged
    assert (result.text, text) == (outcome.text, outcome.text)
    assert result.finish_reason == outcome.finish_reason
    assert result.statistics.tokens == outcome.tokens
    seen.update(j.verdict for j in outcome.judged)
    seen[outcome.finish_reason] += 1


def check(
    world: World,
    config: EnsembleConfig,
    options: GenerationConfig,
    other: int,
    members: list[ScriptedMember] | None = None,
) -> None:
    """The engine against the oracle, and against itself with another lookahead."""
    members = members or world.members()
    outcome = expected(members, config, options)
    for lookahead in {config.lookahead, other}:
        varied = config.model_copy(update={"lookahead": lookahead})
        assert_same(outcome, *run(members, varied, options))


@settings(ci, max_examples=550)
@given(st.data())
def test_engine_writes_what_the_oracle_writes(data: st.DataObject) -> None:
    """Any number of models, any merge, END and stop strings anywhere, any lookahead."""
    world = data.draw(worlds())
    config = data.draw(configs(len(world.vocabularies)))
    check(world, config, data.draw(options(world.plan)), data.draw(st.integers(1, 16)))


@settings(ci, max_examples=200)
@given(st.data())
def test_nearly_every_token_is_disputed(data: st.DataObject) -> None:
    """Models that are never sure: rejections in a row, also of the token that was just written."""
    world = data.draw(worlds(models=st.integers(2, 3)))
    world = World(world.plan, world.vocabularies, world.seed, 1.0, 0.3, world.windows)
    config = data.draw(configs(len(world.vocabularies), consensus_above=0.9))
    check(world, config, data.draw(options(world.plan)), data.draw(st.integers(1, 16)))


@settings(ci, max_examples=200)
@given(st.data())
def test_text_without_any_hard_boundary(data: st.DataObject) -> None:
    """Every pair of bytes is inside some token: only the distance settles a token."""
    world = data.draw(worlds(models=st.integers(2, 3), length=(12, 60), hard=False))
    config = data.draw(configs(len(world.vocabularies)))
    check(world, config, data.draw(options(world.plan, 70)), data.draw(st.integers(1, 16)))


@settings(ci, max_examples=120)
@given(st.data())
def test_ensembling_every_token_writes_what_the_oracle_writes(data: st.DataObject) -> None:
    """The baseline checks nothing and merges everywhere."""
    world = data.draw(worlds())
    config = data.draw(configs(len(world.vocabularies), mode="every-token"))
    check(world, config, data.draw(options(world.plan)), 1)


@settings(ci, max_examples=100)
@given(st.data())
def test_drafter_alone_writes_what_the_oracle_writes(data: st.DataObject) -> None:
    """The other baseline never asks a verifier."""
    world = data.draw(worlds())
    config = data.draw(configs(len(world.vocabularies), mode="drafter-only"))
    check(world, config, data.draw(options(world.plan)), data.draw(st.integers(1, 16)))


@settings(ci, max_examples=150)
@given(st.data())
def test_under_a_constraint_it_writes_what_the_oracle_writes(data: st.DataObject) -> None:
    """Only some texts are allowed: masks, forced text and forced ends, whatever the lookahead."""
    world = data.draw(worlds())
    texts = data.draw(choices(world.plan.decode()))
    limits = data.draw(options(world.plan)).model_copy(
        update={"response_format": Choice(options=tuple(texts))}
    )
    config = data.draw(configs(len(world.vocabularies)))
    members = [ready_for(m, texts) for m in world.members()]
    _, smallest = smallest_of(members, config, limits)
    limits = limits.model_copy(update={"max_tokens": smallest + limits.max_tokens - 1})
    check(world, config, limits, data.draw(st.integers(1, 16)), members)


@settings(ci, max_examples=150)
@given(st.data())
def test_at_every_budget_it_closes_as_the_oracle_does(data: st.DataObject) -> None:
    """A choice is written to its end however little room there is, in any mode."""
    world = data.draw(worlds(length=(6, 16)))
    texts = data.draw(choices(world.plan.decode()))
    form = GenerationConfig(response_format=Choice(options=tuple(texts)))
    mode = data.draw(st.sampled_from(["safe", "safe", "every-token", "drafter-only"]))
    config = data.draw(configs(len(world.vocabularies), mode=mode))
    members = [ready_for(m, texts) for m in world.members()]
    _, smallest = smallest_of(members, config, form)
    with pytest.raises(InvalidArgumentError, match=f"needs at least {smallest}"):
        engine_of(members, config).generate("Go.", form.model_copy(update={"max_tokens": 0}))
    for budget in range(smallest, smallest + 6):
        limits = form.model_copy(update={"max_tokens": budget})
        closes(members, config, limits, texts, data.draw(st.integers(1, 16)))


@settings(ci, max_examples=60)
@given(st.data())
def test_in_every_window_it_closes_as_the_oracle_does(data: st.DataObject) -> None:
    """A verifier's window that fills up is a budget as well."""
    world = data.draw(worlds(models=st.integers(2, 3), length=(6, 16)))
    texts = data.draw(choices(world.plan.decode()))
    limits = GenerationConfig(response_format=Choice(options=tuple(texts)))
    mode = data.draw(st.sampled_from(["safe", "safe", "every-token"]))
    config = data.draw(configs(len(world.vocabularies), mode=mode))
    members = [ready_for(m, texts) for m in world.members()]
    way, smallest = smallest_of(members, config, limits)
    narrow = members[data.draw(st.integers(1, len(members) - 1))]
    needed = smallest - 1 if narrow.tokens.same_tokens(members[0].tokens) else len(way)
    narrow.context_window = needed  # the prompt is one token
    with pytest.raises(ContextWindowError, match=narrow.name):
        engine_of(members, config).generate("Go.", limits)
    for room in range(needed, needed + 6):
        narrow.context_window = 1 + room
        closes(members, config, limits, texts, data.draw(st.integers(1, 16)))


def closes(
    members: list[ScriptedMember],
    config: EnsembleConfig,
    limits: GenerationConfig,
    texts: list[str],
    other: int,
) -> None:
    """A whole choice is written, as the oracle does; it tells what the budget wrote of it."""
    outcome = expected(members, config, limits)
    for lookahead in {config.lookahead, other}:
        result, text = run(members, config.model_copy(update={"lookahead": lookahead}), limits)
        assert_same(outcome, result, text)
        assert result.text in texts and result.statistics.tokens <= limits.max_tokens
        closed = [piece.start for piece in result.pieces if piece.verdict is Verdict.CLOSED]
        assert result.statistics.closed_at == (closed[0] if closed else None)
        assert (result.finish_reason == "length") == bool(closed)


def smallest_of(
    members: list[ScriptedMember], config: EnsembleConfig, options: GenerationConfig
) -> tuple[bytes, int]:
    return Oracle(members, config, options).smallest()


@settings(ci, max_examples=200)
@given(st.data())
def test_small_windows_end_the_answer_at_the_same_place(data: st.DataObject) -> None:
    """A change near the end of a window may make room again: the answer goes on, as it would have
    with a shorter lookahead."""
    small = st.integers(2, 12)
    world = data.draw(worlds(models=st.integers(2, 3), windows=small))
    bytewise = (world.vocabularies[0], *((),) * (len(world.vocabularies) - 1))
    world = World(world.plan, bytewise, world.seed, world.unrest, world.end, world.windows)
    config = data.draw(configs(len(world.vocabularies)))
    check(world, config, data.draw(options(world.plan)), data.draw(st.integers(1, 16)))


@settings(ci, max_examples=100)
@given(st.data())
def test_self_ensemble_writes_what_the_model_writes_alone(data: st.DataObject) -> None:
    """A model that verifies itself agrees with itself everywhere, whatever the lookahead."""
    world = data.draw(worlds(models=st.just(1)))
    (alone,) = world.members()
    twins = [ScriptedMember(f"twin-{i}", world.vocabularies[0], alone.script) for i in range(3)]
    config = data.draw(configs(3, weights=None))
    limits = data.draw(options(world.plan))
    one, _ = run([alone], EnsembleConfig(), limits)
    three, _ = run(twins, config, limits)
    assert (three.text, three.finish_reason) == (one.text, one.finish_reason)
    assert {p.verdict for p in three.pieces} <= {Verdict.UNANIMOUS}
    assert [p.written for p in three.pieces] == [p.written for p in one.pieces]


@settings(ci, max_examples=100)
@given(st.data())
def test_zero_verifiers_write_the_greedy_answer(data: st.DataObject) -> None:
    """Without a verifier the engine is the model's own greedy decoding."""
    world = data.draw(worlds(models=st.just(1)))
    (member,) = world.members()
    config = data.draw(configs(1))
    longest = data.draw(st.integers(1, 24))
    text, reason = b"", "length"
    for _ in range(longest):
        expected = member.script(text)
        best = max(expected, key=lambda s: (expected[s], s))
        if best == END:
            reason = "stop"
            break
        text += best
    result, _ = run([member], config, GenerationConfig(max_tokens=longest))
    assert result.finish_reason == reason
    assert b"".join(p.written for p in result.pieces if p.written != END) == text


def test_random_worlds_were_not_tame() -> None:
    """All verdicts and both finish reasons came up often; else the worlds above prove little."""
    if seen:  # the tests above ran in this process
        wanted = (
            "forced",
            "unsafe",
            "unanimous",
            "majority",
            "confirmed",
            "changed",
            "closed",
            "stop",
            "length",
        )
        assert {name: seen[name] for name in wanted if seen[name] < 200} == {}
