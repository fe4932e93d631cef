"""The loop, on scripts short enough to follow by hand."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig, Regex
from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Finished,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.engine.tokens import END
from safe_integrations.errors import (
    ContextWindowError,
    GenerationCancelled,
    GenerationError,
    InvalidArgumentError,
)
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

Script = Mapping[bytes, Mapping[bytes, float]]


def model(name: str, vocabulary: list[bytes], script: Script, window: int = 4096) -> ScriptedMember:
    """A model that knows what to expect after some texts, and END with 0.9 after any other."""
    other = {END: 0.9, b"?": 0.1}
    return ScriptedMember(
        name, vocabulary, lambda text: script.get(text, other), context_window=window
    )


def greeter() -> ScriptedMember:
    return model(
        "drafter",
        [b"Hi", b" the", b"re"],
        {
            b"": {b"Hi": 0.8, b"?": 0.2},
            b"Hi": {b" the": 0.9, b"!": 0.1},
            b"Hi the": {b"re": 1.0},
            b"Hi there": {b"!": 0.6, b"?": 0.3, END: 0.1},
        },
    )


def checker() -> ScriptedMember:
    return model(
        "verifier",
        [b"Hi", b" there", b" you"],
        {
            b"": {b"Hi": 0.4, b"?": 0.3, b"!": 0.3},
            b"Hi": {b" you": 0.55, b" there": 0.45},
            b"Hi there": {b"?": 0.8, b"!": 0.1, END: 0.1},
        },
    )


def bare(piece: Any) -> tuple[int, int, bytes, bytes, Verdict]:
    return piece.start, piece.end, piece.written, piece.proposed, piece.verdict


def test_golden_events() -> None:
    """Every verdict but CONFIRMED, in the order of the text, in two cycles."""
    drafter, verifier = greeter(), checker()
    config = EnsembleConfig(unit="token")
    events = list(SafeEngine(drafter, [verifier], config).generate("Greet."))
    drafted, verified, ensembled, delta, drafted_2, verified_2, finished = events

    # the drafter writes five tokens ahead; END is the fifth, so all of it can be judged
    assert drafted == Drafted(1, 0, (b"Hi", b" the", b"re", b"!", END))

    # `Hi` is the verifier's favourite; ` the` counts as the verifier's ` there`, mean 0.675;
    # `re` starts inside ` there`; `!` has a mean of 0.35, and the ensemble prefers `?` (0.55)
    assert isinstance(verified, Verified)
    assert [bare(p) for p in verified.pieces] == [
        (0, 2, b"Hi", b"Hi", Verdict.UNANIMOUS),
        (2, 6, b" the", b" the", Verdict.MAJORITY),
        (6, 8, b"re", b"re", Verdict.UNSAFE),
        (8, 9, b"?", b"!", Verdict.CHANGED),
    ]
    # `!` is replaced and END behind it thrown away
    assert (verified.cycle, verified.pending, verified.dropped) == (1, 0, 2)
    assert ensembled == Ensembled(1, verified.pieces[3])
    assert delta == TextDelta("Hi there?")

    # from the replacement on, the drafter writes again: END, and the verifier agrees
    assert drafted_2 == Drafted(2, 9, (END,))
    assert isinstance(verified_2, Verified)
    assert [bare(p) for p in verified_2.pieces] == [(9, 9, END, END, Verdict.UNANIMOUS)]
    assert isinstance(finished, Finished)
    assert (finished.finish_reason, finished.length) == ("stop", 9)

    # provenance: who proposed what, who preferred what, and what came of it
    votes = verified.pieces[3].votes
    assert [(v.model, v.tokens, v.best) for v in votes] == [
        ("drafter", (b"!",), b"!"),
        ("verifier", (b"!",), b"?"),
    ]
    assert [v.probability for v in votes] == pytest.approx([0.6, 0.1])
    assert [v.best_probability for v in votes] == pytest.approx([0.6, 0.8])
    assert [v.tokens for v in verified.pieces[1].votes] == [(b" the",), (b" there",)]
    assert verified.pieces[2].votes == ()
    winner = verified.pieces[3].candidates[0]
    assert winner.symbol == b"?" and winner.probability == pytest.approx(0.55)
    assert winner.by_model == pytest.approx((0.3, 0.8))

    # the books: Hi, the, re, ?, END
    s = finished.statistics
    assert (s.tokens, s.cycles, s.drafted, s.judged) == (5, 2, 6, 5)
    assert (s.unsafe, s.ensembled, s.changed) == (1, 1, 1)
    assert (s.ensembled_ratio, s.acceptance) == (pytest.approx(0.2), pytest.approx(0.8))
    assert [(m.name, m.prompt_tokens, m.forward_passes) for m in s.models] == [
        ("drafter", 1, 6),
        ("verifier", 1, 2),
    ]
    assert s.first_token_seconds is not None and 0 < s.first_token_seconds <= s.seconds
    assert s.overhead_seconds <= s.seconds


def test_end_of_the_lookahead_is_provisional() -> None:
    """` the` may still become ` there`: judging it as the verifier's ` `, `t`, ... would be a
    false boundary (the public code's error), so it waits for more text."""
    engine = SafeEngine(greeter(), [checker()], EnsembleConfig(unit="token", lookahead=2))
    verified = next(e for e in engine.generate("Greet.") if isinstance(e, Verified))
    assert [p.written for p in verified.pieces] == [b"Hi"]
    assert verified.pending == 1


@pytest.mark.parametrize("lookahead", [1, 2, 3, 5, 16])
def test_lookahead_changes_the_speed_not_the_text(lookahead: int) -> None:
    config = EnsembleConfig(unit="token", lookahead=lookahead)
    result = SafeEngine(greeter(), [checker()], config).complete("Greet.")
    assert (result.text, result.finish_reason) == ("Hi there?", "stop")
    assert [str(p.verdict) for p in result.pieces] == [
        "unanimous",
        "majority",
        "unsafe",
        "changed",
        "unanimous",
    ]


def abc() -> ScriptedMember:
    return model(
        "drafter",
        [],
        {
            b"": {b"a": 0.6, b"x": 0.4},
            b"a": {b"b": 1.0},
            b"ab": {b"c": 1.0},
        },
    )


def test_confirmed_token_keeps_the_rest_of_the_draft() -> None:
    """Half of all ensembles end in the drafter's own token: nothing needs to be drafted again."""
    doubter = model(
        "verifier",
        [],
        {
            b"": {b"x": 0.35, b"a": 0.34, b"y": 0.31},
            b"a": {b"b": 1.0},
            b"ab": {b"c": 1.0},
        },
    )
    result = SafeEngine(abc(), [doubter]).complete("Go.")
    assert result.text == "abc"
    assert [str(p.verdict) for p in result.pieces] == ["confirmed", *["unanimous"] * 3]
    s = result.statistics
    assert (s.cycles, s.drafted, s.ensembled, s.changed) == (1, 4, 1, 0)
    assert s.models[0].forward_passes == 4


def test_end_of_the_drafter_can_be_replaced() -> None:
    """The drafter wants to stop after `hi`; the ensemble does not."""
    drafter = model("d", [b"hi"], {b"": {b"hi": 1.0}, b"hi": {END: 0.6, b"!": 0.4}})
    verifier = model("v", [b"hi"], {b"": {b"hi": 1.0}, b"hi": {b"!": 0.9, END: 0.1}})
    result = SafeEngine(drafter, [verifier]).complete("Go.")
    assert (result.text, result.finish_reason) == ("hi!", "stop")
    assert bare(result.pieces[1]) == (2, 3, b"!", END, Verdict.CHANGED)


def test_ensemble_can_end_the_answer() -> None:
    """The drafter would go on after `hi`; END is pooled and wins, and the draft behind is gone."""
    drafter = model("d", [b"hi"], {b"": {b"hi": 1.0}, b"hi": {b"!": 0.6, END: 0.4}})
    verifier = model("v", [b"hi"], {b"": {b"hi": 1.0}, b"hi": {END: 0.9, b"!": 0.1}})
    result = SafeEngine(drafter, [verifier]).complete("Go.")
    assert (result.text, result.finish_reason) == ("hi", "stop")
    assert bare(result.pieces[-1]) == (2, 2, END, b"!", Verdict.CHANGED)
    assert result.statistics.tokens == 2


@pytest.mark.parametrize("lookahead", [1, 3, 16])
@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [(["STOP"], "one ", 8), (["P t", "OP"], "one ST", 8), (["zzz"], "one STOP two", 13)],
)
def test_stop_string_across_tokens_and_cycles(
    lookahead: int, stop: list[str], text: str, tokens: int
) -> None:
    """No part of a stop string is ever shown, wherever cycles begin."""
    engine = SafeEngine(
        ScriptedMember("d", [], follows(b"one STOP two")),
        [ScriptedMember("v", [b"ST"], follows(b"one STOP two"))],
        EnsembleConfig(lookahead=lookahead),
    )
    events = list(engine.generate("Go.", GenerationConfig(stop=tuple(stop))))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == text
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.finish_reason, finished.length) == ("stop", len(text))
    assert finished.statistics.tokens == tokens


@pytest.mark.parametrize(("most", "text"), [(1, "x"), (2, "xy"), (3, "xyz"), (4, "xyz!")])
def test_winner_of_several_drafter_tokens_never_overshoots(most: int, text: str) -> None:
    """`xyz` is one token of the verifier and three of the drafter, which pays for them."""
    drafter = model("d", [], {b"": {b"a": 0.4, b"x": 0.35, b"b": 0.25}, b"xyz": {b"!": 1.0}})
    verifier = model("v", [b"xyz"], {b"": {b"xyz": 0.9, b"q": 0.1}, b"xyz": {b"!": 1.0}})
    result = SafeEngine(drafter, [verifier]).complete("Go.", GenerationConfig(max_tokens=most))
    assert (result.text, result.finish_reason) == (text, "length")
    assert result.statistics.tokens == most
    assert result.pieces[0].verdict is Verdict.CHANGED


@pytest.mark.parametrize("verifiers", [0, 1])
@pytest.mark.parametrize(("most", "reason"), [(3, "length"), (4, "stop"), (9, "stop")])
def test_finish_reason(verifiers: int, most: int, reason: str) -> None:
    """`abc` is three tokens; END is the fourth and needs room too."""
    members = [abc() for _ in range(1 + verifiers)]
    engine = SafeEngine(members[0], members[1:])
    result = engine.complete("Go.", GenerationConfig(max_tokens=most))
    assert (result.text, result.finish_reason) == ("abc", reason)
    assert result.statistics.tokens == min(most, 4)


# Context windows


def writer(name: str, window: int) -> ScriptedMember:
    return ScriptedMember(name, [], follows(b"0123456789"), context_window=window)


@pytest.mark.parametrize("windows", [(3, 99), (99, 3), (2, 99)])
def test_prompt_that_fills_a_window_is_refused_before_any_work(windows: tuple[int, int]) -> None:
    """Three messages are three tokens: no room for an answer in a window of three."""
    members = [writer(f"model of {w}", w) for w in windows]
    messages = [{"role": "user", "content": "."}] * 3
    with pytest.raises(ContextWindowError, match=f"model of {min(windows)}") as caught:
        SafeEngine(members[0], members[1:]).generate(messages)
    assert caught.value.prompt_tokens == 3
    assert [m.sessions for m in members] == [[], []]


@pytest.mark.parametrize("lookahead", [1, 4, 16])
@pytest.mark.parametrize("windows", [(6, 99), (99, 6), (6, 6)])
def test_full_window_ends_the_answer(windows: tuple[int, int], lookahead: int) -> None:
    """One token of prompt leaves room for five in a window of six; no model sees a seventh."""
    # the verifier's script is less sure, so that the two do not share their tokens' table
    drafter = writer("d", windows[0])
    verifier = ScriptedMember("v", [b"zz"], follows(b"0123456789"), context_window=windows[1])
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(lookahead=lookahead))
    result = engine.complete("Go.")
    assert (result.text, result.finish_reason) == ("01234", "length")


def test_change_at_a_full_window_makes_room_again() -> None:
    """Found by the oracle: the draft overflowed, its first token was replaced, and the answer
    ended there, one place short, although nothing overflowed any more."""
    ahead = {b"a": {b"b": 1.0}, b"ab": {b"d": 1.0}, b"x": {b"c": 1.0}}
    drafter = model("d", [], {b"": {b"a": 0.6, b"x": 0.4}, **ahead})
    script = {b"": {b"x": 0.9, b"a": 0.1}, b"x": {b"c": 1.0}}
    for lookahead in (1, 2, 8):
        verifier = model("v", [b"zz"], script, window=3)
        engine = SafeEngine(drafter, [verifier], EnsembleConfig(lookahead=lookahead))
        result = engine.complete("Go.", GenerationConfig(max_tokens=9))
        assert (lookahead, result.text) == (lookahead, "xc")


def test_what_overflows_a_window_counts_as_dropped() -> None:
    """Drafted tokens must add up: kept, dropped or pending."""
    verifier = ScriptedMember("v", [b"zz"], follows(b"0123456789"), context_window=3)
    events = list(SafeEngine(writer("d", 99), [verifier]).generate("Go."))
    verified = [e for e in events if isinstance(e, Verified)]
    drafted = sum(len(e.tokens) for e in events if isinstance(e, Drafted))
    assert drafted == sum(len(e.pieces) + e.dropped for e in verified)


# Stopping early, and failing


def test_closing_the_generator_stops_the_work_and_gives_the_sessions_back() -> None:
    """A caller who leaves a `for` loop must not leave a model computing, or its cache taken."""
    members = [writer("d", 99), ScriptedMember("v", [b"zz"], follows(b"0123456789"))]
    events = SafeEngine(members[0], members[1:]).generate("Go.")
    assert isinstance(next(events), Drafted)
    passes = [m.sessions[0].work.passes for m in members]
    events.close()
    assert all(m.sessions[0].closed for m in members)
    assert [m.sessions[0].work.passes for m in members] == passes
    assert next(events, None) is None


def test_nothing_is_started_before_the_first_event_is_asked_for() -> None:
    member = writer("d", 99)
    SafeEngine(member).generate("Go.").close()
    assert member.sessions == []


def test_cancelling_stops_within_one_forward_pass() -> None:
    """Set from another thread; here between two events, so no pass at all may follow."""
    member, cancel = writer("d", 99), threading.Event()
    events = SafeEngine(member, config=EnsembleConfig(lookahead=1)).generate(
        "Go.", cancel=cancel.is_set
    )
    next(events)
    cancel.set()
    with pytest.raises(GenerationCancelled):
        list(events)
    assert member.sessions[0].work.passes == 1
    assert member.sessions[0].closed


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_failing_model_is_named_and_all_sessions_are_given_back(failing: int) -> None:
    """`CUDA out of memory` alone does not say whose."""
    members = [ScriptedMember(f"m{i}", [b"0" * (i + 2)], follows(b"0123")) for i in range(3)]

    def explode(text: bytes) -> Mapping[bytes, float]:
        raise MemoryError("out of memory")

    members[failing].script = explode
    with pytest.raises(GenerationError, match=f"m{failing} failed.*out of memory") as caught:
        SafeEngine(members[0], members[1:]).complete("Go.")
    assert isinstance(caught.value.__cause__, MemoryError)
    assert all(m.sessions[0].closed for m in members)


def test_model_that_cannot_start_leaves_no_session_open() -> None:
    class Broken(ScriptedMember):
        def start(self, prompt: Any, cancel: object = None) -> ScriptedSession:
            raise RuntimeError("no memory for a cache")

    drafter = writer("d", 99)
    with pytest.raises(RuntimeError, match="no memory for a cache"):
        SafeEngine(drafter, [Broken("v", [], follows(b"0"))]).complete("Go.")
    assert drafter.sessions[0].closed


# Baselines


def test_every_token_ensembles_every_token() -> None:
    """The paper's other baseline: one token per cycle, all models asked each time, no checks."""
    engine = SafeEngine(greeter(), [checker()], EnsembleConfig(mode="every-token"))
    result = engine.complete("Greet.")
    s = result.statistics
    assert s.ensembled == s.judged == s.cycles == len(result.pieces)
    assert {p.verdict for p in result.pieces} <= {Verdict.CONFIRMED, Verdict.CHANGED}
    assert [m.forward_passes for m in s.models] == [s.cycles, s.cycles]
    # ` there` has 0.46, ` the` 0.24: too smooth, so ` the` collects its continuation
    best, second = result.pieces[1].candidates[:2]
    assert (best.symbol, best.probability) == (b" the", pytest.approx(0.698684))
    assert (second.symbol, second.probability) == (b" there", pytest.approx(0.461842))
    assert result.text == "Hi there?"


def test_drafter_alone_never_asks_a_verifier() -> None:
    drafter, verifier = greeter(), checker()
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(mode="drafter-only"))
    result = engine.complete("Greet.")
    assert result.text == "Hi there!"
    assert {p.verdict for p in result.pieces} == {Verdict.UNVERIFIED}
    assert verifier.sessions == []
    assert [m.name for m in result.statistics.models] == ["drafter"]


def test_models_with_the_same_tokens_share_the_drafters_ids() -> None:
    """The drafter may write `a`, `b` where the tokenizer would write `ab`. A twin that tokenised
    by itself would find its boundary missing and never be asked about `b`."""
    script = {b"": {b"a": 1.0}, b"a": {b"b": 1.0}}
    drafter, twin = model("d", [b"ab"], script), model("v", [b"ab"], script)
    result = SafeEngine(drafter, [twin]).complete("Go.")
    assert [str(p.verdict) for p in result.pieces] == ["unanimous"] * 3


def test_half_a_character_waits_for_its_other_half() -> None:
    """A delta is text: the first two bytes of `中` are not."""
    data = "中!".encode()
    engine = SafeEngine(ScriptedMember("d", [], follows(data)), config=EnsembleConfig(lookahead=1))
    events = engine.generate("Go.")
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["中", "!"]


def test_one_engine_serves_several_generations_at_once() -> None:
    """State belongs to a generation, not to the engine."""
    engine = SafeEngine(greeter(), [checker()])
    runs = [engine.generate("Greet."), engine.generate("Greet.")]
    texts = ["", ""]
    for pair in zip(*runs, strict=True):
        for i, event in enumerate(pair):
            texts[i] += event.text if isinstance(event, TextDelta) else ""
    assert texts == ["Hi there?", "Hi there?"]


class Mute(ScriptedMember):
    """A chat template that writes nothing."""

    def render(self, *_: Any) -> list[int]:
        return []


@pytest.mark.parametrize("mute", [0, 1], ids=["drafter", "verifier"])
def test_a_prompt_without_any_token_is_refused(mute: int) -> None:
    """There is nothing to go on from: drafting would never end."""
    members = [
        (Mute if nth == mute else ScriptedMember)(f"m{nth}", [], follows(b"abc")) for nth in (0, 1)
    ]
    with pytest.raises(InvalidArgumentError, match=f"messages=.*m{mute}.*chat template"):
        SafeEngine(members[0], members[1:]).generate("")


def test_the_baseline_tells_only_what_is_left_of_forced_text() -> None:
    """Forced text that does not fit a verifier's window is cut, and must not be reported.

    It is cut only where no way to the end is known.
    """
    pytest.importorskip("llguidance")
    text = b"abcdefghij"
    options = GenerationConfig(
        max_tokens=30, response_format=Regex(pattern="abcdefghi[a-z]*material")
    )
    drafter = ScriptedMember("a", [], follows(text))
    verifier = ScriptedMember("b", [], follows(text), context_window=1 + 4)
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(mode="every-token"))
    result = engine.complete("x", options)
    assert (result.text, result.finish_reason) == ("abcd", "length")
    assert b"".join(piece.written for piece in result.pieces) == b"abcd"
    assert result.statistics.judged == len(result.pieces) == result.statistics.tokens == 4
