"""Merging by hand: small distributions whose outcome can be computed on paper."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.ensemble import Merge, merge
from safe_integrations.engine.events import Vote
from safe_integrations.engine.judge import consensus
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.testing import ScriptedMember

Row = Mapping[bytes, float]


def merged(
    *models: tuple[Sequence[bytes], Row], weights: Sequence[float] | None = None, **config: object
) -> Merge:
    """Merges what models expect next; each is its multi-byte tokens and its probabilities."""
    members = [ScriptedMember("m", vocabulary, lambda _, r=row: r) for vocabulary, row in models]
    rows = [m.start([0]).score([], 0)[0] for m in members]
    shares = weights or [1 / len(models)] * len(models)
    by_tokens = EnsembleConfig(unit="token", **config)  # type: ignore[arg-type]
    return merge([m.tokens for m in members], rows, shares, by_tokens)


def values(m: Merge) -> dict[bytes, float]:
    return {s: float(p) for s, p in zip(m.symbols, m.merged, strict=True) if p > 0}


def close(expected: dict[bytes, float]) -> object:
    return pytest.approx(expected, abs=1e-6)


AB = ([], {b"a": 0.6, b"b": 0.3, END: 0.1})


def test_mean_of_two_models() -> None:
    """(0.6 + 0.1) / 2, (0.3 + 0.8) / 2, (0.1 + 0.1) / 2: b wins with more than one half."""
    m = merged(AB, ([], {b"a": 0.1, b"b": 0.8, END: 0.1}))
    assert values(m) == close({b"a": 0.35, b"b": 0.55, END: 0.1})
    assert m.winner(b"a") == b"b"


def test_weights_count() -> None:
    """0.8 * 0.6 + 0.2 * 0.1 = 0.50 and 0.8 * 0.3 + 0.2 * 0.8 = 0.40: now a wins."""
    m = merged(AB, ([], {b"a": 0.1, b"b": 0.8, END: 0.1}), weights=[0.8, 0.2])
    assert values(m) == close({b"a": 0.5, b"b": 0.4, END: 0.1})
    assert m.winner(b"b") == b"a"


def test_top_k_bounds_what_each_model_brings() -> None:
    """k = 1: the union is {a, b}; shares are 0.6/0.9 and 0.1/0.9 for a. END is left out."""
    m = merged(AB, ([], {b"a": 0.1, b"b": 0.8, END: 0.1}), union_top_k=1)
    assert values(m) == close({b"a": 7 / 18, b"b": 11 / 18})


def test_symbol_that_is_not_one_token_gets_the_score_of_its_first_piece() -> None:
    """UniTE: the second model writes `ab` as a, b, so `ab` scores like a, 0.7; shares of 1.7."""
    m = merged(([b"ab"], {b"ab": 0.6, b"a": 0.4}), ([], {b"a": 0.7, b"b": 0.3}), sharpening="none")
    assert values(m) == close(
        {b"ab": (0.6 + 0.7 / 1.7) / 2, b"a": (0.4 + 0.7 / 1.7) / 2, b"b": 0.3 / 1.7 / 2}
    )


def test_gac_gives_nothing_to_a_symbol_that_is_not_one_token() -> None:
    """GaC maps whole vocabularies: `ab` is no token of the second model, so it has 0 there."""
    m = merged(([b"ab"], {b"ab": 0.6, b"a": 0.4}), ([], {b"a": 0.7, b"b": 0.3}), method="gac")
    assert values(m) == close({b"ab": 0.3, b"a": 0.55, b"b": 0.15})


def test_gac_ignores_silent_ids() -> None:
    """Padding rows have no bytes; their mass (it should be none) must reach no symbol."""
    table = TokenTable([b"a", None, b"</s>"], {2}, lambda text: [0])
    row = DenseDistribution(np.log(np.array([0.5, 0.2, 0.3], np.float32)))
    m = merge([table], [row], [1.0], EnsembleConfig(unit="token", method="gac", sharpening="none"))
    assert values(m) == close({b"a": 0.5, END: 0.3})


@pytest.mark.parametrize("method", ["unite", "gac"])
def test_end_is_one_symbol_for_all_models(method: str) -> None:
    """Two models whose end tokens are called differently must be able to end together."""
    first = TokenTable([b"a", b"<|im_end|>", b"<eos>"], {1, 2}, lambda text: [0])
    second = TokenTable([b"</s>", b"b", b"a"], {0}, lambda text: [1])
    rows = [
        DenseDistribution(np.log(np.array(p, np.float32) + 1e-30))
        for p in ([0.6, 0.4, 0.0], [0.7, 0.2, 0.1])
    ]
    m = merge([first, second], rows, [0.5, 0.5], EnsembleConfig(unit="token", method=method))  # type: ignore[arg-type]
    assert list(m.symbols).count(END) == 1
    assert values(m)[END] == pytest.approx(0.55, abs=0.08 if method == "unite" else 1e-6)
    assert m.winner(b"a") == END


def test_prefix_collects_its_continuations_once_each() -> None:
    """a gets ab and abc from the plain mean, 0.2 + 0.15 + 0.13. Taking the sharpened ab (0.28)
    as well would count abc twice and give 0.61."""
    row = {b"a": 0.2, b"ab": 0.15, b"abc": 0.13, b"x": 0.3, b"y": 0.22}
    m = merged(([b"ab", b"abc"], row))
    assert values(m) == close({b"a": 0.48, b"ab": 0.28, b"abc": 0.13, b"x": 0.3, b"y": 0.22})
    assert m.winner(b"x") == b"a"


def test_prefix_needs_more_than_lambda() -> None:
    """a is at 0.08, not above 0.1: with its continuation it would have 0.38 and overtake x."""
    row = {b"a": 0.08, b"ab": 0.3, b"x": 0.36, b"y": 0.26}
    assert merged(([b"ab"], row)).winner(b"x") == b"x"
    assert merged(([b"ab"], row), prefix_threshold=0.05).winner(b"x") == b"a"


def test_only_tokens_of_the_drafter_collect() -> None:
    """`ab` is a token of the verifier alone: the drafter could not write it, so it collects
    nothing, though its continuation `abc` has mass."""
    verifier = {b"ab": 0.4, b"abc": 0.3, b"x": 0.3}
    m = merged(([], {b"x": 0.4, b"y": 0.6}), ([b"ab", b"abc"], verifier), method="gac")
    assert values(m)[b"ab"] == pytest.approx(0.2)


def test_end_neither_collects_nor_is_collected() -> None:
    """END is spelt with bytes inside the code, but it is no continuation of anything."""
    row = {b"\xff": 0.3, END: 0.32, b"x": 0.38}
    assert values(merged(([], row))) == close({b"\xff": 0.3, END: 0.32, b"x": 0.38})


def test_continuations_of_a_byte_without_successor() -> None:
    """0xFF has no next byte to bound its continuations by."""
    row = {b"\xff": 0.2, b"\xff\xff": 0.3, b"x": 0.4, b"y": 0.1}
    m = merged(([b"\xff\xff"], row))
    assert values(m)[b"x"] == pytest.approx(0.4)
    assert m.winner(b"y") in {b"x", b"\xff"}


def test_geometric_mean_prefers_what_nobody_rejects() -> None:
    """sqrt(0.4 * 0.1), sqrt(0.35 * 0.4), sqrt(0.25 * 0.5) = 0.2, 0.374, 0.354, over their sum."""
    rows = [{b"a": 0.4, b"b": 0.35, b"c": 0.25}, {b"a": 0.1, b"b": 0.4, b"c": 0.5}]
    m = merged(([], rows[0]), ([], rows[1]), sharpening="geometric")
    total = 0.04**0.5 + 0.14**0.5 + 0.125**0.5
    assert values(m) == close(
        {b"a": 0.04**0.5 / total, b"b": 0.14**0.5 / total, b"c": 0.125**0.5 / total}
    )
    assert m.winner(b"a") == b"b"


def test_geometric_mean_of_strangers_falls_back_to_the_mean() -> None:
    """Every symbol has probability 0 in one model: all products are 0, which decides nothing."""
    rows = [{b"a": 0.6, b"b": 0.4}, {b"c": 0.7, b"d": 0.3}]
    m = merged(([], rows[0]), ([], rows[1]), sharpening="geometric", method="gac")
    assert m.winner(b"a") == b"c"
    assert values(m)[b"c"] == pytest.approx(0.35)


def test_model_without_weight_has_no_veto_in_the_geometric_mean() -> None:
    """0 ** 0 is 1: a model of weight 0 must not zero what it does not know."""
    rows = [{b"a": 0.4, b"b": 0.35, b"c": 0.25}, {b"z": 1.0}]
    m = merged(
        ([], rows[0]), ([], rows[1]), sharpening="geometric", method="gac", weights=[1.0, 0.0]
    )
    assert m.winner(b"b") == b"a"


@pytest.mark.parametrize("sharpening", ["prefix", "geometric"])
def test_clear_winner_is_not_sharpened(sharpening: str) -> None:
    """A maximum of one half is not too smooth: the mean stands."""
    row = {b"a": 0.3, b"ab": 0.2, b"x": 0.5}
    m = merged(([b"ab"], row), sharpening=sharpening)
    assert values(m) == close({b"a": 0.3, b"ab": 0.2, b"x": 0.5})


def test_ties_go_to_the_proposal_else_to_the_smallest_bytes() -> None:
    """A tie proves nothing against the drafter; without it the order must still be fixed."""
    m = merged(([], {b"a": 0.25, b"b": 0.25, b"c": 0.25, b"d": 0.25}))
    assert [m.winner(p) for p in (b"c", b"b", b"unheard of")] == [b"c", b"b", b"a"]


def test_candidates_are_the_winner_and_the_next_best() -> None:
    m = merged(AB, ([], {b"a": 0.1, b"b": 0.8, END: 0.1}))
    best, second, third = m.candidates(b"b")
    assert (best.symbol, second.symbol, third.symbol) == (b"b", b"a", END)
    assert best.by_model == pytest.approx((0.3, 0.8))
    assert best.probability == pytest.approx(0.55)


def test_what_was_written_is_among_the_candidates_however_unlikely() -> None:
    """A drawn token may be of any rank; a list of the best five would leave it out."""
    row = {bytes([b]): p for b, p in zip(b"abcdefg", (30, 20, 15, 13, 12, 6, 4), strict=True)}
    m = merged(([], {s: p / 100 for s, p in row.items()}), sharpening="none")
    assert [c.symbol for c in m.candidates(b"g")] == [b"g", b"a", b"b", b"c", b"d"]
    assert [c.symbol for c in m.candidates(b"b")] == [b"b", b"a", b"c", b"d", b"e"]


def test_joint_vocabularies_go_with_their_models() -> None:
    """A cache of them would keep the tokens of models that were unloaded."""
    members = [ScriptedMember("m", [b"ab"], lambda _: {b"a": 1.0}) for _ in range(2)]
    rows = [m.start([0]).score([], 0)[0] for m in members]
    config = EnsembleConfig(unit="token", method="gac")
    merge([m.tokens for m in members], rows, [0.5, 0.5], config)
    gone = [weakref.ref(m.tokens) for m in members]
    del members, rows
    gc.collect()
    assert [table() for table in gone] == [None, None]


probabilities = st.lists(st.integers(1, 1000), min_size=5, max_size=5)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(probabilities, min_size=2, max_size=4), st.lists(st.integers(1, 9), min_size=4))
def test_consensus_proves_that_merging_would_change_nothing(
    rows: list[list[int]], shares: list[int]
) -> None:
    """Appendix C: arithmetic mean, greedy drafter, one-to-one tokens."""
    symbols = [b"a", b"b", b"c", b"d", b"e"]
    models = [dict(zip(symbols, (n / sum(r) for n in r), strict=True)) for r in rows]
    weights = [s / sum(shares[: len(rows)]) for s in shares[: len(rows)]]
    best = [max(symbols, key=lambda s, m=m: m[s]) for m in models]
    drafted = best[0]
    votes = [Vote("m", (drafted,), m[drafted], b, m[b]) for m, b in zip(models, best, strict=True)]
    m = merged(*(([], x) for x in models), weights=weights, method="gac", sharpening="none")
    if consensus(votes, weights, 0.5) is not None:
        assert m.winner(drafted) == drafted
    else:
        assert any(b != drafted for b in best), "only a different favourite breaks consensus"
