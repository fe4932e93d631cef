"""Drafting ahead and guessing: they save passes and never change what is written."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig, Regex
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.lookahead import MAX_LOOKAHEAD, AutoLookahead, PromptLookup
from safe_integrations.messages import Message
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

COPIED = b"the quick brown fox jumps over the lazy dog and runs"
SPEEDS = [
    EnsembleConfig(lookahead=n, prompt_lookup=lookup)
    for n in (1, 2, 5, 16, "auto")
    for lookup in (True, False)
]


class Reader(ScriptedMember):
    """A scripted member that sees the prompt's bytes as its tokens."""

    def render(self, messages: Sequence[Message], *_: object) -> list[int]:
        return self.tokens.encode(messages[0].content.encode())


def answer(config: EnsembleConfig, options: GenerationConfig, prompt: str = "x") -> Result:
    drafter = Reader("a", [b" fox", b"the "], follows(COPIED, sure=0.7))
    verifier = ScriptedMember("b", [b"qu", b"own"], follows(COPIED.replace(b"lazy", b"late")))
    return SafeEngine(drafter, [verifier], config).complete(prompt, options)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_speed_settings_do_not_change_the_text(temperature: float) -> None:
    """A draw that depends on how much was drafted in vain would change it with a temperature."""
    for seed in range(3 if temperature else 1):
        options = GenerationConfig(max_tokens=40, temperature=temperature, seed=seed)
        prompt = f"Copy: {COPIED.decode()} and {COPIED.decode()}"
        results = [answer(config, options, prompt) for config in SPEEDS]
        assert len({(r.text, r.finish_reason, r.pieces) for r in results}) == 1


class Moody(Reader):
    """One whose passes take any time between nothing and a second."""

    def start(self, prompt: Sequence[int], cancel: object = None) -> ScriptedSession:
        return MoodySession(self, Random(sum(prompt)))


class MoodySession(ScriptedSession):
    def __init__(self, member: ScriptedMember, random: Random) -> None:
        super().__init__(member)
        self._random = random

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        self.work.seconds += self._random.random() ** 4
        return super().score(ids, since)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_time_decides_what_is_computed_and_not_what_is_written(temperature: float) -> None:
    def result(config: EnsembleConfig, kind: type[Reader], seed: int) -> Result:
        drafter = kind("a", [b" fox", b"the "], follows(COPIED, sure=0.7))
        verifier = kind("b", [b"qu", b"own"], follows(COPIED.replace(b"lazy", b"late")))
        options = GenerationConfig(max_tokens=40, temperature=temperature, seed=seed)
        return SafeEngine(drafter, [verifier], config).complete(
            f"{COPIED.decode()} {seed}", options
        )

    drafted = set()
    for seed in range(8):
        plain = result(EnsembleConfig(lookahead=1, prompt_lookup=False), Reader, seed)
        timed = result(EnsembleConfig(lookahead="auto"), Moody, seed)
        assert (timed.text, timed.pieces) == (plain.text, plain.pieces)
        drafted.add(timed.statistics.drafted / timed.statistics.cycles)
    assert len(drafted) > 4, "time decided nothing"


def test_a_copied_answer_takes_fewer_drafter_passes() -> None:
    options = GenerationConfig(max_tokens=60)
    prompt = f"Copy: {COPIED.decode()}"
    with_lookup = answer(EnsembleConfig(lookahead=8), options, prompt).statistics
    alone = EnsembleConfig(lookahead=8, prompt_lookup=False)
    without = answer(alone, options, prompt).statistics
    assert with_lookup.models[0].forward_passes < 0.6 * without.models[0].forward_passes


def test_an_answer_that_repeats_itself_takes_fewer_drafter_passes() -> None:
    """Nothing of it stands in the prompt."""
    verse = b"row, row, row your boat, gently down the stream; "

    def passes(lookup: bool) -> int:
        drafter = Reader("a", [], follows(4 * verse))
        config = EnsembleConfig(lookahead=8, prompt_lookup=lookup)
        result = SafeEngine(drafter, [], config).complete("?", GenerationConfig(max_tokens=196))
        assert result.text == 4 * verse.decode()
        return result.statistics.models[0].forward_passes

    assert passes(lookup=True) < 0.4 * passes(lookup=False)


def test_a_guess_that_forced_text_cuts_short_was_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the digits are drafted, and all but the first are guessed."""
    pytest.importorskip("llguidance")
    learned: list[tuple[int, bool]] = []
    learn = PromptLookup.learn

    def spy(
        self: PromptLookup, guessed: int, right: int, wrong: bool, seconds: float, row: float
    ) -> None:
        learned.append((right, wrong))
        learn(self, guessed, right, wrong, seconds)

    monkeypatch.setattr(PromptLookup, "learn", spy)
    text = 4 * "1 yes "
    options = GenerationConfig(max_tokens=40, response_format=Regex(pattern="([1-4] yes ){4}"))
    engine = SafeEngine(Reader("a", [], follows(text.encode())), [], EnsembleConfig(lookahead=8))
    assert engine.complete(f"Copy: {text}", options).text == text
    # the first digit is not guessed: no step was measured yet
    assert learned[1:4] == [(1, False)] * 3
    assert not any(wrong for _, wrong in learned)


def measured(prompt: Sequence[int]) -> PromptLookup:
    """One that knows what a step takes: 1 s."""
    lookup = PromptLookup(prompt)
    lookup.learn(guessed=0, right=0, wrong=False, seconds=1.0)
    return lookup


def test_a_guess_is_what_followed_the_last_ids() -> None:
    lookup = measured([1, 2, 3, 4, 5, 6, 1, 2])
    assert lookup.guess([3], 0, 2) == [4, 5]
    assert lookup.guess([9, 1, 2, 3], 0, 9) == [4, 5, 6, 1, 2]
    assert lookup.guess([2, 3, 4], 0, 0) == []
    assert lookup.guess([9], 0, 4) == []
    assert measured([]).guess([], 0, 4) == []


def test_a_longer_match_goes_before_a_later_one() -> None:
    lookup = measured([1, 2, 3, 4, 9, 2, 3, 5, 9, 3, 6])
    assert lookup.guess([1, 2, 3], 0, 1) == [4]
    assert lookup.guess([7, 2, 3], 0, 1) == [5]
    assert lookup.guess([7, 8, 3], 0, 1) == [6]


def test_only_what_will_stay_of_the_answer_is_looked_up() -> None:
    """A rejected draft must not be found again."""
    lookup = measured([0])
    assert lookup.guess([1, 2, 3, 1], 0, 9) == []
    assert lookup.guess([1, 5, 6, 1], 3, 9) == [5, 6]
    assert lookup.guess([1, 5, 6, 1, 7, 1], 6, 9) == [7, 1]


def guessed(lookup: PromptLookup) -> int:
    return len(lookup.guess([0], 0, 99))


def test_guesses_are_as_long_as_they_pay() -> None:
    """By hand: a step takes 1 s, a further token 0.1 s."""
    lookup = PromptLookup(range(100))
    assert guessed(lookup) == 0  # a plain step first, to compare with
    lookup.learn(guessed=0, right=0, wrong=False, seconds=1.0)
    assert guessed(lookup) == MAX_LOOKAHEAD - 1  # a long one, to see what a token costs
    lookup.learn(guessed=4, right=4, wrong=False, seconds=1.4)
    # on while ((4 + 1) / (4 + 2))^n >= 0.1
    assert guessed(lookup) == 12
    lookup.learn(guessed=1, right=0, wrong=True, seconds=1.1)
    # right: 4 * 0.9, tried: one more; on while ((3.6 + 1) / (4.6 + 2))^n >= 0.1
    assert guessed(lookup) == 6
    for _ in range(9):
        lookup.learn(guessed=1, right=0, wrong=True, seconds=1.1)
    # right: 3.6 * 0.9^9 = 1.39, tried: 7.91; 2.39 / 9.91 = 0.24, and 0.24^2 < 0.1
    assert guessed(lookup) == 1


def test_a_first_guess_costs_a_step_more_at_most() -> None:
    """Where it is known from other answers what a further token takes."""
    for row, count in ((0.01, MAX_LOOKAHEAD - 1), (0.3, 3), (0.6, 1), (5.0, 1)):
        lookup = PromptLookup(range(100))
        lookup.learn(guessed=0, right=0, wrong=False, seconds=1.0, row=row)
        assert guessed(lookup) == count


def test_guesses_that_do_not_pay_are_tried_again_after_a_while() -> None:
    lookup = measured(range(100))
    assert guessed(lookup)
    lookup.learn(guessed=1, right=0, wrong=True, seconds=3.0)  # a further token costs two steps
    pause = 0
    while not guessed(lookup):
        lookup.learn(guessed=0, right=0, wrong=False, seconds=1.0)
        pause += 1
    assert 20 < pause < 80


def drafts(
    step: float,
    check: float,
    judged: int,
    probability: float,
    row: float = 0,
    known: bool = False,
) -> int:
    """How far it drafts tokens of one probability, having seen cycles of five drafted tokens."""
    auto = AutoLookahead()
    for _ in range(60):
        auto.learn(5, 5 * step, judged, check, row)
    auto.start(())
    return next(n for n in range(1, 99) if not auto.goes_on([probability], known))


def test_auto_drafts_on_while_another_token_is_worth_its_time() -> None:
    """By hand, with tokens kept in 0.4 + 0.6 p of all cases."""
    # a token costs (5 + 5) / 5 = 2 steps: on while 0.7^n > 1/2
    assert drafts(step=1, check=5, judged=5, probability=0.5) == 2
    # (5 + 35) / 5 = 8 steps: on while 0.7^n > 1/8
    assert drafts(step=1, check=35, judged=5, probability=0.5) == 6
    assert drafts(step=1, check=5, judged=5, probability=1.0) == MAX_LOOKAHEAD
    assert drafts(step=1, check=5, judged=5, probability=0.0) == 1


def test_auto_drafts_less_far_where_it_costs_to_check_one_more() -> None:
    """As it does where answers share passes. By hand: on while 0.7^n times 8 steps > 1 + row."""
    assert drafts(step=1, check=35, judged=5, probability=0.5, row=1) == 4
    assert drafts(step=1, check=35, judged=5, probability=0.5, row=4) == 2


def test_what_a_model_elsewhere_has_told_costs_its_check_only() -> None:
    """By hand: on while 0.7^n times 2 steps > row."""
    assert drafts(step=1, check=5, judged=5, probability=0.5, row=0.5, known=True) == 4
    assert drafts(step=0, check=10, judged=5, probability=0.5, row=0.5) == 4


def test_auto_asks_a_model_elsewhere_for_a_third_of_what_stands_in_a_row() -> None:
    auto = AutoLookahead()
    assert auto.at_once == 3
    found = []
    for judged, changed in ((6, True), (9, False)):
        for _ in range(60):
            auto.learn(5, 5.0, judged, 5.0, 0.0, changed)
        found.append(auto.at_once)
    assert found == [2, 8]
    for _ in range(30):
        auto.learn(5, 5.0, 12, 5.0, 0.0, True)
    assert auto.at_once == 4


@pytest.mark.parametrize("timed", [True, False], ids=["nothing measured", "no time told"])
def test_auto_begins_with_five(timed: bool) -> None:
    auto = AutoLookahead()
    if not timed:
        auto.learn(9, 0.0, 9, 0.0, 0.0)
    auto.start(())
    assert [auto.goes_on([0.1]) for _ in range(5)] == [True] * 4 + [False]


def test_what_waits_for_a_verdict_counts() -> None:
    """By hand: a token costs 2 steps, so on while the chance that all are kept is above 1/2."""
    auto = AutoLookahead()
    auto.learn(5, 5, 5, 5, 0)
    auto.start([0.5])  # 0.7
    assert not auto.goes_on([0.5])  # 0.49
    auto.start([])
    assert auto.goes_on([0.5])


def test_a_new_draft_begins_anew() -> None:
    auto = AutoLookahead()
    auto.learn(5, 5, 5, 5, 0)
    auto.start(())
    assert not auto.goes_on([0.5, 0.5])
    auto.start(())
    assert auto.goes_on([0.5])


def test_a_guess_is_as_long_as_what_was_measured_of_such_guesses_pays() -> None:
    """By hand: one further token costs 0.9 steps, but four cost 1.6, so one alone never pays."""
    lookup = PromptLookup(range(100))
    lookup.learn(guessed=0, right=0, wrong=False, seconds=1.0)
    assert guessed(lookup)
    lookup.learn(guessed=4, right=4, wrong=False, seconds=2.6)
    lookup.learn(guessed=1, right=1, wrong=False, seconds=1.9)
    # rate: (4 * 0.9 + 1 + 1) / (4 * 0.9 + 1 + 2) = 0.848; from 3 on while 0.848^n >= 0.4
    assert guessed(lookup) == 5
    lookup.learn(guessed=1, right=0, wrong=True, seconds=1.9)
    # rate: (4.6 * 0.9 + 1) / (4.6 * 0.9 + 3) = 0.72; to 3: 1.6 > 1.2, and 0.72^4 < 0.4
    assert guessed(lookup) == 3
