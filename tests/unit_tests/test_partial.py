"""What few told ids are shaped to is what the whole row is: by bounds or by questions, no guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truncated import TruncatedMember

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import DenseDistribution, SparseDistribution
from safe_integrations.engine.distribution import TopDistribution as Top
from safe_integrations.engine.model import Limits
from safe_integrations.engine.partial import AllowedDistribution, shape_told
from safe_integrations.engine.sampling import Shaped, shape
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.engine.view import View
from safe_integrations.errors import GenerationError
from safe_integrations.testing import ScriptedMember, follows

SIZE = 120
CLOSE = 3e-5
BELOW = 1e-6
GREEDY = GenerationConfig()
seen: Counter[str] = Counter()


class Case:
    """A random row, random allowed ids, and what a member tells of the row."""

    def __init__(self, seed: int, spread: float, share: float, top: int, ids: int | None) -> None:
        rng = np.random.default_rng(seed)
        logits = (spread * rng.normal(size=SIZE)).astype(np.float32)
        logits[rng.random(SIZE) < rng.choice([0, 0.3])] = -np.inf
        logits[rng.integers(SIZE)] = 0
        self.row = DenseDistribution(logits - DenseDistribution(logits, None).total)
        self.allowed = rng.random(SIZE) < share
        self.flags = (rng.random(SIZE) < rng.choice([0.03, 0.5])).astype(np.float32)
        script = ScriptedMember("m", [bytes([i]) for i in range(SIZE - 2)], follows(b""))
        script.tokens.size = SIZE
        self.member = TruncatedMember(script, top, ids=ids)

    def dense(self, options: GenerationConfig = GREEDY) -> Shaped | None:
        try:
            return shape(self.row, [], self.allowed, options)
        except GenerationError:
            return None

    def told(self, options: GenerationConfig = GREEDY) -> SparseDistribution | Top | None:
        row, ids = self.member.truncated(self.row), self.member.limits.ids
        try:
            return shape_told(row, self.allowed, options, SIZE, ids)
        except GenerationError:
            return None

    @property
    def questions(self) -> int:
        return len(self.member.asked) + len(self.member.among)


cases = st.builds(
    Case,
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.5, 3.0, 10.0]),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    top=st.sampled_from([1, 2, 5, 20, 64, 1000]),
    ids=st.sampled_from([None, 1, 3, 20, 128]),
)
many = settings(max_examples=600, deadline=None, derandomize=True, database=None)


@many
@given(cases)
def test_the_best_is_the_best_and_bounds_hold(case: Case) -> None:
    dense, told = case.dense(), case.told()
    assert (dense is None) == (told is None)
    if dense is None or told is None:
        return
    assert told.best == dense.best
    told_some = any(case.allowed[i] for i in case.row.top(case.member.limits.top or 0))
    assert case.questions == 0 if told_some else case.questions == 1
    everything = range(SIZE)
    values = np.exp(dense.logprobs(everything))
    if isinstance(told, AllowedDistribution):
        seen["open"] += 1
        questions = case.questions
        least, most = (np.exp(told.logprobs(everything, how)) for how in ("least", "most"))
        assert (least <= values + BELOW).all() and (values <= most + BELOW).all()
        scores, exact = told.bounds(everything)
        relative = np.exp(np.array(scores) - scores[told.best])
        assert (values / values[dense.best] <= relative + BELOW).all()
        np.testing.assert_allclose(
            relative[exact], (values / values[dense.best])[exact], atol=BELOW
        )
        row = case.member.truncated(case.row)
        ceiling = np.exp(row.ceiling - case.row.logprobs([told.best])[0])
        assert (relative[~np.array(exact)] <= ceiling + BELOW).all()
        low, high = told.mass(case.flags, "least"), told.mass(case.flags, "most")
        assert low - BELOW <= dense.mass(case.flags) <= high + BELOW
        assert low - BELOW <= told.mass(case.flags) <= high + BELOW
        assert not case.questions > questions + 1
    else:
        seen["exact"] += 1
        np.testing.assert_allclose(np.exp(told.logprobs(everything)), values, atol=BELOW)


@many
@given(cases)
def test_what_is_asked_for_is_exact_where_one_question_tells_it(case: Case) -> None:
    dense, told = case.dense(), case.told()
    if dense is None or told is None:
        return
    limit = case.member.limits.ids
    if limit is None or case.allowed.sum() <= limit:
        values, mass = np.exp(told.logprobs(range(SIZE))), told.mass(case.flags)
        np.testing.assert_allclose(values, np.exp(dense.logprobs(range(SIZE))), atol=CLOSE)
        assert mass == pytest.approx(dense.mass(case.flags), abs=CLOSE)
        assert case.questions <= 2
        seen["asked"] += case.questions
    order = [i for i in dense.top(10) if np.exp(dense.logprobs([i])[0]) > CLOSE]
    assert told.top(10)[: len(order)] == order
    assert told.best_among(case.flags) == dense.best_among(case.flags)
    assert told.best == dense.best


@many
@given(
    case=cases,
    everything=st.booleans(),
    temperature=st.sampled_from([1e-3, 0.5, 1.0, 2.0]),
    top_k=st.integers(1, 64),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
)
def test_drawing_is_from_what_the_whole_row_is_drawn_from(
    case: Case, everything: bool, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    top_k = min(top_k, case.member.limits.top or 0)
    options = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if everything:
        dense = shape(case.row, [], None, options)
        row, ids = case.member.truncated(case.row), case.member.limits.ids
        told = shape_told(row, None, options, SIZE, ids)
        assert case.questions == 0
    else:
        found, kept = case.dense(options), case.told(options)
        assert (found is None) == (kept is None)
        if found is None or kept is None:
            return
        dense, told = found, kept  # type: ignore[assignment]
    assert isinstance(told, SparseDistribution)
    seen["drawn, asked"] += case.questions > 0
    np.testing.assert_allclose(np.exp(told.dense()), np.exp(dense.dense()), atol=CLOSE)


def test_a_row_that_tells_enough_is_not_asked_for_the_rest() -> None:
    """Of 100 ids that are not told, all have a hundred-thousandth together at most."""
    row = DenseDistribution(np.log(np.append([0.9, 0.1 - 1e-7], [1e-9] * 100)))
    asked: list[int] = []
    told = Top(
        [0, 1], row.logprobs([0, 1]), lambda ids: [asked.append(len(ids)) or -20.7] * len(ids), dict
    )
    shaped = shape_told(told, np.ones(102, bool), GREEDY, 102, None)
    assert np.exp(shaped.logprobs([0, 1])) == pytest.approx([0.9, 0.1], abs=1e-5)
    assert shaped.top(10) == [0, 1] and asked == []
    assert shaped.mass(np.array([1, *[0.0] * 101], np.float32)) == pytest.approx(0.9, abs=1e-5)
    assert shaped.logprobs([5]) == pytest.approx([-20.7], abs=1e-5) and asked == [1]


def test_too_many_unknown_ids_count_by_their_number() -> None:
    """A tenth is left for 90 ids, 45 of which are allowed: they count as a twentieth."""
    row = Top([*range(10)], np.log([0.09] * 10).tolist(), lambda ids: [-9.0] * len(ids), dict)
    allowed = np.arange(100) % 2 == 0
    shaped = shape_told(row, allowed, GREEDY, 100, 8)
    assert np.exp(shaped.logprobs([0])) == pytest.approx(0.09 / 0.5, abs=1e-5)
    assert isinstance(shaped, AllowedDistribution)
    assert np.exp(shaped.logprobs([0], "most")) == pytest.approx(0.09 / 0.45, abs=1e-5)
    assert np.exp(shaped.logprobs([0], "least")) == pytest.approx(0.09 / 0.55, abs=1e-5)
    half = (np.arange(100) % 4 == 0).astype(np.float32)
    assert shaped.mass(half) == pytest.approx((0.27 + 0.05 * 22 / 45) / 0.5, abs=1e-5)


def test_a_server_that_does_not_keep_to_the_ids_is_an_error() -> None:
    row = Top([1], [-0.5], lambda ids: [-9.0] * len(ids), lambda ids: {1: -0.5})
    with pytest.raises(GenerationError, match="best of 5 ids and told others; its server must"):
        shape_told(row, np.arange(100) > 94, GREEDY, 100, 3)


def test_the_cases_above_were_not_tame() -> None:
    if not seen:  # they ran in another process, or not at all
        pytest.skip("the tests above did not run in this process")
    assert seen["open"] > 100 and seen["exact"] > 100
    assert seen["asked"] > 50 and seen["drawn, asked"] > 50


def test_silent_ids_and_aliases_among_the_best_do_not_make_top_k_fewer() -> None:
    """A server tells 4 ids, of which one is silent and one is another's name."""
    logprobs = np.log([0.3, 0.2, 0.15, 0.1, 0.09, 0.08, 0.05, 0.03])
    asked: list[Sequence[int]] = []

    def ask(ids: Sequence[int]) -> list[float]:
        asked.append(ids)
        return [float(logprobs[i]) for i in ids]

    def among(ids: Sequence[int]) -> dict[int, float]:
        best = max(ids, key=lambda i: logprobs[i])
        return dict(zip([best], ask([best]), strict=True))

    symbols = [None, b"a", b"b", b"a", b"c", b"d", b"e", b""]
    member = ScriptedMember("m", [b"a", b"b", b"c", b"d", b"e"], follows(b""))
    member.tokens = TokenTable(symbols, {7}, lambda text: [1] if text == b"a" else [2])
    member.limits = Limits(top=4, ids=128)
    options = GenerationConfig(temperature=1.0, top_k=4)
    view = View(member, [0], None, options)
    row = Top([1, 2], [float(logprobs[1]), float(logprobs[2])], ask, among)
    shaped = view.shaped(row, [])
    assert isinstance(shaped, SparseDistribution)
    assert shaped.ids.tolist() == [1, 2, 4, 5]
    assert asked, "two more had to be asked for"
