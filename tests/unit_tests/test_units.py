"""Judging by units, place by place: what is asked, what is written, what is not computed twice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Ensembled, Verdict, Verified
from safe_integrations.engine.noise import Noise, hashes_of
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.engine.units import Unit, Units
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember

Plan = Mapping[bytes, Mapping[bytes, float]]


def model(name: str, vocabulary: list[bytes], plan: Plan, window: int = 99) -> ScriptedMember:
    """What it expects after each text; END everywhere else."""
    script = lambda text: plan.get(text, {END: 1.0})  # noqa: E731
    return ScriptedMember(name, vocabulary, script, context_window=window)


def whole_numbers() -> ScriptedMember:
    """Wants `72.` in one token, and is less sure of it than the other of its first digit."""
    return model(
        "whole",
        [b"72", b"64", b"65"],
        {b"": {b"72": 0.7, b"64": 0.3}, b"72": {b".": 1.0}, b"64": {b".": 0.9, b"5": 0.1}},
    )


def digits() -> ScriptedMember:
    return model(
        "digits",
        [],
        {
            b"": {b"6": 0.9, b"7": 0.1},
            b"6": {b"4": 0.5, b"5": 0.4, b".": 0.1},
            b"7": {b"2": 1.0},
            **{n: {b".": 1.0} for n in (b"72", b"64", b"65")},
        },
    )


def result_of(*members: ScriptedMember, config: Any = None, **options: Any) -> Result:
    return SafeEngine(members[0], members[1:], config).complete("Go.", GenerationConfig(**options))


def test_a_number_is_compared_with_a_number_not_with_its_first_digit() -> None:
    """By tokens `6` (0.9 + 0.3) beats `72`; by units 72 has 0.4 and 64 has 0.36."""
    by_tokens = result_of(whole_numbers(), digits(), config=EnsembleConfig(unit="token"))
    assert by_tokens.text.startswith("6")
    for members in ([whole_numbers(), digits()], [digits(), whole_numbers()]):
        result = result_of(*members)
        assert (result.text, result.finish_reason) == ("72.", "stop")
        first = result.pieces[0]
        assert (first.start, first.end, first.written) == (0, 2, b"72")
        order = [m.name for m in members]
        chances = dict(zip(order, first.candidates[0].by_model, strict=True))
        assert chances == pytest.approx({"whole": 0.7, "digits": 0.1})
        spelled = dict(zip(order, first.candidates[0].tokens, strict=True))
        assert spelled == {"whole": (b"72",), "digits": (b"7", b"2")}
        assert first.candidates[0].probability == pytest.approx(0.4)
        assert [v.model for v in first.votes] == order


def test_what_a_model_wants_instead_is_told() -> None:
    piece = result_of(digits(), whole_numbers()).pieces[0]
    assert (piece.proposed, piece.written, piece.verdict) == (b"64", b"72", Verdict.CHANGED)
    digit, whole = piece.votes
    assert (digit.tokens, digit.best) == ((b"6", b"4"), b"64")
    assert digit.probability == pytest.approx(0.45)
    assert (whole.tokens, whole.best) == ((b"64",), b"72")
    assert whole.probability == pytest.approx(0.3)
    assert whole.best_probability == pytest.approx(0.7)


def test_behind_a_unit_that_is_written_the_next_one_begins() -> None:
    """The drafter would go on from `7` to `77`; that the number ends there has been decided."""
    plan = {b"": {b"9": 0.6, b"7": 0.4}, b"7": {b"7": 0.8, b".": 0.2}, b"7.": {END: 1.0}}
    drafter = model("d", [b"77"], {**plan, b"9": {b".": 1.0}})
    verifier = model("v", [], {b"": {b"7": 0.9, b"9": 0.1}, b"7": {b".": 1.0}})
    assert result_of(drafter, verifier).text == "7."


def test_tokens_that_nobody_else_would_take_for_the_text_are_replaced() -> None:
    """The drafter writes `ab` in two tokens. What it expects behind `ab` in one token differs."""

    class ByTokens(ScriptedMember):
        def start(self, *args: Any) -> Any:
            session = super().start(*args)
            row = session._row
            tokens = self.tokens

            def score(ids: Any, since: int) -> list[Any]:
                session.work.passes += 1
                self.script = lambda text: self.mind([tokens.symbol(i) for i in ids[: len(text)]])
                rows = []
                for count in range(since, len(ids) + 1):
                    written = [tokens.symbol(i) for i in ids[:count]]
                    self.script = lambda _, w=written: self.mind(w)
                    rows.append(row(b""))
                return rows

            session.score = score
            return session

        def mind(self, written: list[bytes]) -> Mapping[bytes, float]:
            if written == []:
                return {b"a": 0.7, b"ab": 0.3}
            if written == [b"a"]:
                return {b"b": 1.0}
            if written == [b"a", b"b"]:
                return {b"!": 1.0}
            return {b".": 1.0} if written == [b"ab"] else {END: 1.0}

    drafter = ByTokens("d", [b"ab"], lambda _: {END: 1.0})
    plan = {b"": {b"ab": 1.0}, b"ab": {b"?": 0.5, b".": 0.3, b"!": 0.2}}
    verifier = model("v", [b"ab", b"xy"], plan)
    for lookahead in (1, 2, 8):
        result = result_of(drafter, verifier, config=EnsembleConfig(lookahead=lookahead))
        assert result.text == "ab."


def test_a_winner_is_not_computed_twice() -> None:
    """The other model begins `72`; the drafter goes on behind it, and the next check is its last.

    Passes of the drafter: 6, 4, `.`, then `.` behind 72, and END; the row behind 72 that the
    merge needs is the one that it went on from.
    """
    for lookahead in (2, 3):
        engine = SafeEngine(digits(), [whole_numbers()], EnsembleConfig(lookahead=lookahead))
        changed, after = 0, 0
        for event in engine.generate("Go."):
            if isinstance(event, Ensembled):
                changed += 1
                after = engine.verifiers[0].sessions[0].work.passes
        assert changed == 1
        assert after == 2  # of the draft, and of what the drafter wrote on; none for 72 alone


def test_no_piece_is_without_a_verdict_of_the_models() -> None:
    result = result_of(digits(), whole_numbers())
    assert {p.verdict for p in result.pieces} <= {
        Verdict.UNANIMOUS, Verdict.MAJORITY, Verdict.CONFIRMED, Verdict.CHANGED,
    }  # fmt: skip
    assert result.statistics.unsafe == 0


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_budget_ends_inside_a_unit(temperature: float) -> None:
    """It is judged whole; what is shown is a beginning of the answer without a limit."""
    whole = result_of(digits(), whole_numbers(), temperature=temperature, seed=1)
    for most in range(1, 4):
        part = result_of(
            digits(), whole_numbers(), temperature=temperature, seed=1, max_tokens=most
        )
        assert part.text == whole.text[:most]
        assert part.finish_reason == "length"
        assert part.statistics.tokens == most
    assert result_of(digits(), whole_numbers(), temperature=temperature, seed=1, max_tokens=4).text


def test_models_of_one_tokenizer_are_judged_token_by_token() -> None:
    """Their units would be words otherwise."""
    plan = {b"": {b"ab": 1.0}, b"ab": {b"c": 0.6, b"d": 0.4}, b"abc": {END: 1.0}}
    other = {b"": {b"ab": 1.0}, b"ab": {b"c": 0.3, b"d": 0.7}, b"abd": {END: 1.0}}
    result = result_of(
        model("d", [b"ab", b"bc", b"bd"], plan), model("v", [b"ab", b"bc", b"bd"], other)
    )
    assert [p.written for p in result.pieces] == [b"ab", b"d", END]
    assert [c.symbol for c in result.pieces[1].candidates] == [b"d", b"c"]


@pytest.mark.parametrize("name", ["method", "sharpening", "sharpen_below", "prefix_threshold"])
def test_options_of_the_other_rule_are_refused_by_name(name: str) -> None:
    """Passed over in silence they would seem to work."""
    value: Any = {"method": "gac", "sharpening": "none"}.get(name, 0.25)
    with pytest.raises(InvalidArgumentError, match=f"{name}=.*unit='token'"):
        EnsembleConfig(**{name: value})
    assert EnsembleConfig(unit="token", **{name: value})
    assert EnsembleConfig(mode="every-token", **{name: value})


# Where units end


def table(*tokens: bytes) -> TokenTable:
    symbols = list(dict.fromkeys([*tokens, *(bytes([b]) for b in range(256))]))
    made: TokenTable

    def encode(text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            length = next(n for n in range(9, 0, -1) if text[at : at + n] in known)
            ids.append(known[text[at : at + length]])
            at += length
        return ids

    known = {symbol: i for i, symbol in enumerate(symbols)}
    made = TokenTable([*symbols, b""], {len(symbols)}, encode)
    return made


def test_a_unit_ends_where_no_token_of_any_model_reaches_across() -> None:
    units = Units([table(b"ab", b" c"), table(b"bc")])
    assert units.next(b"abc", 0, final=False) is None  # more may come
    assert units.next(b"abc", 0, final=True) == Unit(0, b"abc")
    assert units.next(b"abc c", 0, final=False) == Unit(0, b"abc")
    assert units.next(b"abc c.", 3, final=False) == Unit(3, b" c")
    assert units.next(b"abc", 3, final=True) == Unit(3, END)


def test_long_runs_are_cut_where_all_models_have_a_boundary() -> None:
    """What follows decides where that is; until it is known the unit is not."""
    pairs = [bytes([a, b]) for a in b"xyz" for b in b"xyz"]
    units = Units([table(*pairs, b"xyx"), table(*pairs, b"xyxy")])
    run = b"zzxyxy" * 12
    assert units.next(run[:48], 0, final=False) is None
    unit = units.next(run[:49], 0, final=False)
    assert unit == Unit(0, b"zz", ended=False)
    for known in range(49, len(run)):
        assert units.next(run[:known], 0, final=False) == unit
    assert units.next(run[:20], 0, final=True) == Unit(0, run[:20])


def test_half_characters_are_never_cut() -> None:
    text = "的文字很長而且沒有任何空格可以讓它停下來的地方在這裡".encode()
    pieces = [text[i : i + 2] for i in range(len(text) - 1)]
    units = Units([table(*pieces), table(*(text[i : i + 3] for i in range(0, len(text), 3)))])
    at = 0
    while at < len(text):
        unit = units.next(text, at, final=True)
        assert unit is not None
        unit.text.decode()
        at = unit.end


def test_tokens_that_can_begin_like_a_text() -> None:
    rng = random.Random(1)
    tokens = {bytes(rng.choices(b"ab \xe4c", k=rng.randint(1, 9))) for _ in range(800)}
    tried = table(*sorted(tokens))
    for _ in range(300):
        text = bytes(rng.choices(b"ab \xe4c", k=rng.randint(1, 9)))
        expected = {
            i
            for i, s in enumerate(tried.symbols())
            if s and s != END and (s.startswith(text) or text.startswith(s))
        }
        assert set(tried.compatible(text).tolist()) == expected


# Noise


def test_a_draw_is_the_largest_of_all_with_noise() -> None:
    """Most noise is never computed; which of it must be is told by its first word."""
    noise, tried = Noise(5), table(*(f"{a}{b}".encode() for a in range(30) for b in range(30)))
    symbols = [s or b"" for s in tried.symbols()]
    rng = np.random.default_rng(3)
    for at in range(6):
        logits = rng.normal(size=tried.size) * rng.choice([0.1, 4, 9])
        logits[tried.end_id] = -np.inf
        noisy = logits + [noise.gumbel("in", at, s) for s in symbols]
        assert noise.draw("in", at, tried, None, logits) == noisy.argmax()
        few = np.sort(rng.choice(tried.size, 20, replace=False))
        few = few[few != tried.end_id]
        assert noise.draw("in", at, tried, few, logits[few]) == few[noisy[few].argmax()]


def test_draws_follow_the_distribution() -> None:
    tried = TokenTable([b"a", b"b", b"c", b"d", b""], {4}, list)
    shares = np.array([0.5, 0.3, 0.15, 0.05 - 1e-6, 1e-6])
    draws = [Noise(1).draw("z", at, tried, None, np.log(shares)) for at in range(4000)]
    counts = np.bincount(draws, minlength=5)[:4]
    expected = shares[:4] * 4000
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, p = 0.001


def test_noise_knows_symbols_not_ids() -> None:
    one, other = table(b"ab", b"cd"), table(b"zz", b"cd", b"ab")
    ids = [t.id_of(b"ab") for t in (one, other)]
    assert ids[0] != ids[1]
    assert (hashes_of(one)[:, ids[0]] == hashes_of(other)[:, ids[1]]).all()
    assert Noise(1).gumbel("a", 3, b"ab") == Noise(1).gumbel("a", 3, b"ab")
    others = [("b", 3, b"ab", 1), ("a", 4, b"ab", 1), ("a", 3, b"ac", 1), ("a", 3, b"ab", 2)]
    values = {Noise(seed).gumbel(*rest) for *rest, seed in others}
    assert len({Noise(1).gumbel("a", 3, b"ab"), *values}) == 5


def test_verified_tells_all_that_happens_to_drafted_tokens() -> None:
    engine = SafeEngine(digits(), [whole_numbers()], EnsembleConfig(lookahead=3))
    events = [e for e in engine.generate("Go.") if isinstance(e, Verified)]
    assert events[0].dropped >= 2 and events[-1].pending == 0
