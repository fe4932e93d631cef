"""The experiment of `make claims`: its problems, its marks, its statistics, its cache."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.claims import members as m
from benchmarks.claims.arms import Answer, Arm
from benchmarks.claims.problems import (
    AROUND_1000,
    FACTS,
    TWO_DIGITS,
    Problem,
    Totals,
    broken,
    equation,
    problems,
    right,
)
from benchmarks.claims.recipes import RECIPES, known_facts
from benchmarks.claims.report import Outcome, Report
from benchmarks.figures import Paired, Share

PROBLEM = Problem(
    "Ann has 28 cards. Ann finds 8, loses 2, buys 5, sells 3.",
    "Ann starts with 28 cards. First Ann finds 8, so 28+8=36. Then Ann loses 2, so 36-2=34. "
    "Next Ann buys 5, so 34+5=39. Last Ann sells 3, so 39-3=36. The answer is 36.",
    36,
)


@pytest.mark.parametrize("totals", [TWO_DIGITS, AROUND_1000])
def test_the_work_of_a_problem_adds_up(totals: Totals) -> None:
    for problem in islice(problems(Random(1), totals, held_out=True), 100):
        work = problem.answer.split(" so ")[1:]
        steps = [step.split(".")[0].split("=") for step in work]
        assert len(steps) == 4
        assert all(eval(left) == int(result) for left, result in steps)
        assert all(totals.low <= int(result) <= totals.high for _, result in steps)
        starts = [int(left.replace("+", "-").split("-")[0]) for left, _ in steps]
        assert starts[1:] == [int(result) for _, result in steps[:-1]]
        assert problem.question.split()[2] == str(starts[0])
        assert problem.total == int(steps[-1][1])
        assert right(problem, problem.answer)
        assert broken(problem.answer, totals.digits) is None


def test_no_problem_is_both_learned_and_asked() -> None:
    asked, learned = (
        {p.question for p in islice(problems(Random(2), TWO_DIGITS, held_out=held_out), 200)}
        for held_out in (True, False)
    )
    assert len(asked) == len(learned) == 200
    assert not asked & learned


def test_a_member_never_sees_what_it_lacks() -> None:
    known = known_facts("A", 1)
    assert len(known) == 128
    assert known != known_facts("B", 1)
    assert known != known_facts("A", 2)
    random = Random(3)
    drawn = islice(problems(random, TWO_DIGITS, known, held_out=False), 300)
    asked = [p.answer.split("so ")[1:] for p in drawn]
    steps = [step.split("=")[0] for steps in asked for step in steps]
    steps += [equation(random, TWO_DIGITS, known)[0].removesuffix("=") for _ in range(2000)]
    seen = set()
    for step in steps:
        sign = "+" if "+" in step else "-"
        total, number = step.split(sign)
        seen.add((int(total) % 10, int(number), 1 if sign == "+" else -1))
    assert seen == known
    assert set(FACTS) - seen


@pytest.mark.parametrize(
    ("change", "is_right", "found"),
    [
        (("", ""), True, None),
        (("answer is 36", "answer is 35"), False, None),
        (("The answer is 36.", ""), False, ""),
        (("finds 8", "find8, so"), True, "find8,"),
        (("28+8=36", "28+8=3=36"), True, "28+8=3=36."),
        (("28+8=36", "28+8=362"), True, "28+8=362."),
        (("loses 2", "cards 2"), True, "cards"),
    ],
)
def test_marks(change: tuple[str, str], is_right: bool, found: str | None) -> None:
    text = PROBLEM.answer.replace(*change, 1)
    assert right(PROBLEM, text) is is_right
    assert broken(text, 2) == found


def test_statistics_are_those_of_the_tables() -> None:
    """Wilson 1927, as Newcombe 1998 has it: 81 of 263; McNemar's exact test by the binomial."""
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Share(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert Share(0, 20).interval == pytest.approx((0, 0.1611), abs=5e-5)
    assert Paired(0, 13).p == 2 / 2**13
    assert Paired(9, 1).p == pytest.approx(22 / 1024)
    assert Paired(1, 9).p == Paired(9, 1).p
    assert Paired(4, 4).p == Paired(0, 0).p == 1
    assert Paired.of([True, True, False, True], [False, False, True, True]) == Paired(2, 1)


WRONG = PROBLEM.answer.replace("36.", "35.")


def outcome(members: str, way: Any, *texts: str) -> Outcome:
    """Of eight judged pieces of ten tokens two were merged, and one was not checked."""
    passes = (10, *(4 for _ in members[1:]))
    made = [Answer(text, 10, 8, 1, 2, 1, passes, 1.0) for text in texts]
    return Outcome.of(Arm(members, way), [PROBLEM] * len(texts), made)


def report(*outcomes: Outcome) -> Report:
    return Report(1, {one.arm: one for one in outcomes})


def test_a_report_counts_problem_by_problem() -> None:
    together = outcome("DC", "token", WRONG, WRONG, "28+8=3=36")
    found = report(
        outcome("C", "alone", PROBLEM.answer, WRONG, WRONG),
        outcome("D", "alone", WRONG, PROBLEM.answer, PROBLEM.answer),
        together,
        outcome("DC", "text", PROBLEM.answer, PROBLEM.answer, WRONG),
        outcome("CD", "text", PROBLEM.answer, WRONG, WRONG),
    )
    assert found.best_single("DC").arm.members == "D"
    assert found.some_right("DC") == 3
    assert (together.share("ensembled"), together.share("unsafe")) == (0.25, 0.125)
    assert together.passes == [1.0, 0.4]
    text = found.markdown()
    assert "| D+C | token | 0.0 [0.0, 56.1] | 0.0 | 1 | D 0:2, p 0.50 | 100.0 |" in text
    assert "| D+C | 0.0 → 66.7 | 2:0, p 0.50 | 0.0 → 66.7 | 2:0, p 0.50 | 0 of 3 |" in text
    assert "| D+C = C+D | - | 2 of 3 |" in text
    assert found.to_dict()["arms"][2]["right_by_problem"] == "000"


def test_claims_hold_or_do_not() -> None:
    good = PROBLEM.answer
    found = report(
        *(outcome(name, "alone", good, WRONG) for name in "ABCD"),
        outcome("ACB", "text", good, good),
        outcome("ACB", "every-token", WRONG, WRONG),
        outcome("DC", "text", WRONG, WRONG),
        outcome("CD", "text", WRONG, WRONG.replace("36-2=34", "36-2=3=4")),
    )
    assert [*found.claims().values()] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("B", " Ann finds 12", [" ", "Ann", " ", "finds", " ", "1", "2"]),
        ("C", " Ann finds 12", [" Ann", " finds", " ", "1", "2"]),
        ("D", " Ann finds 12", [" Ann", " finds", " ", "12"]),
        ("G", " 999+2=1001.", [" ", "999", "+", "2", "=", "100", "1", "."]),
        ("S", " 999+2=1001.", [" ", *"999+2=1001."]),
    ],
)
def test_members_split_text_as_they_should(name: str, text: str, tokens: list[str]) -> None:
    totals = RECIPES[name].totals
    seen = list(islice(problems(Random(4), totals, held_out=False), 500))
    tokenizer = m.tokenizer_of(RECIPES[name], seen)
    assert [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]] == tokens


def test_a_member_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "_PROBLEMS", 20)
    monkeypatch.setattr(m, "_STEPS", 1)
    monkeypatch.setattr(m, "_EQUATIONS", 4)
    train, trained = m.train, []

    def counting(model: Any, lessons: m.Lessons, tell: m.Tell) -> None:
        trained.append(model)
        train(model, lessons, tell)

    monkeypatch.setattr(m, "train", counting)
    first, again = (m.member("C", 1, tmp_path, lambda _: None) for _ in range(2))
    assert len(trained) == 1
    ids = first.tokenizer(PROBLEM.question, return_tensors="pt")["input_ids"]
    assert first.model(ids).logits.equal(again.model(ids).logits)
    monkeypatch.setattr(m, "_STEPS", 2)
    m.member("C", 1, tmp_path, lambda _: None)
    assert len(trained) == 2
