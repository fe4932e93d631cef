"""The accuracy evaluation: its problems are sound, its scores and proofs right. No real model."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import running
from benchmarks.accuracy.extraction import FAMILIES, extraction
from benchmarks.accuracy.gsm8k import WordProblem, last_number, word_problems
from benchmarks.accuracy.orders import Compared, first_difference, place
from benchmarks.accuracy.orders import markdown as markdown_of_orders
from benchmarks.accuracy.report import is_valid, markdown, scored, summary
from benchmarks.figures import Paired, Share, agree
from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import Candidate, Finished, Piece, Statistics, Verdict
from safe_integrations.engine.tokens import END
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report.result import Result
from safe_integrations.testing import ScriptedMember, follows

PROBLEMS = [extraction(number) for number in range(100)]
MONTHS = "January February March April May June July August September October November December"


# problems


def test_extractions_are_the_same_everywhere() -> None:
    """Answers of earlier runs are used again: other texts would make them wrong."""
    assert extraction(3).text == "In 2017, 888 people lived in São Paulo."
    assert extraction(16).record == {
        "speaker": "Nguyễn Thị Hoa",
        "city": "Leeds",
        "date": "14 May 2003",
    }


def test_every_record_is_told_by_its_text_and_allowed_by_its_schema() -> None:
    told = [(p.text, p.record, p.schema) for p in PROBLEMS[:42]]
    told += [(text, record, p.schema) for p in PROBLEMS[:42] for text, record in p.examples]
    for text, record, schema in told:
        assert is_valid(json.dumps(record), schema)
        for name, value in record.items():
            if isinstance(value, int):
                forms = {str(value), f"{value:,}", f"{value:,}".replace(",", " ")}
            elif name == "date":
                day, month, year = value.split()
                assert month in MONTHS
                forms = {value, f"{month} {day}, {year}"}
            elif name == "currency":
                forms = {{"EUR": "euros", "USD": "dollars", "GBP": "pounds", "JPY": "yen"}[value]}
            else:
                forms = {value}
            assert any(form in text for form in forms), (name, text)
    assert all(all(p.score(json.dumps(p.record)).values()) for p in PROBLEMS)


def test_worked_examples_do_not_hold_the_answer() -> None:
    """Copying an example must never be right, numbers of two digits and years aside."""
    for problem in PROBLEMS:
        for text, record in problem.examples:
            assert text != problem.text
            shared = {n for n, value in record.items() if problem.record[n] == value}
            assert all(isinstance(record[name], int) for name in shared)


def test_families_and_wordings_take_turns_and_hold_what_is_hard() -> None:
    assert [p.family for p in PROBLEMS[: len(FAMILIES)]] == list(FAMILIES)
    texts = [problem.text for problem in PROBLEMS]
    assert len(set(texts)) == len(texts) and 5 <= len(FAMILIES) <= 8
    assert all(3 <= len(p.record) <= 4 and len(p.examples) == 2 for p in PROBLEMS)
    assert sum(not text.isascii() for text in texts) > 40
    assert sum("," in word.strip(",.") for text in texts for word in text.split()) > 30


def test_a_field_is_right_as_it_stands_capitals_aside() -> None:
    problem = next(p for p in PROBLEMS if p.family == "order")
    right = dict(problem.record)
    assert all(problem.score(json.dumps({**right, "city": right["city"].upper()})).values())
    for name, wrong in [("price", str(right["price"])), ("city", "Rome"), ("city", 3)]:
        expected = {field: field != name for field in right}
        assert problem.score(json.dumps({**right, name: wrong})) == expected
    for broken in ('{"city": "Ro', "[]", "", "null"):
        assert not any(problem.score(broken).values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 7 = 12. The answer is 12.", "12"),
        ("It costs $1,234.50, all in all.", "1234.50"),
        ("70,000", "70000"),
        ("minus -3 it is", "-3"),
        ("first 3, then 4,", "4"),
        ("10.00", "10"),
    ],
)
def test_the_last_number_counts(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_a_text_without_numbers_is_wrong() -> None:
    assert last_number("none.") is None
    assert not WordProblem("w", "How many?", Decimal(0)).score("none.")


def test_word_problems_are_read(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"question": "Q?", "answer": "1 + 1,199\n#### 1,200"}) + "\n")
    (problem,) = word_problems(file)
    assert problem.score("so 1200.0") and not problem.score("1,200 or 7")
    assert [m.content for m in problem.messages()][-1] == "Q?"
    for bad in ("{}", "[]", "3", '{"question": "Q?", "answer": "#### none"}', "nonsense"):
        file.write_text(bad)
        with pytest.raises(InvalidArgumentError, match="--gsm8k"):
            word_problems(file)
    with pytest.raises(InvalidArgumentError, match="--gsm8k"):
        word_problems(tmp_path / "missing")


# figures


def test_intervals_are_wilsons() -> None:
    assert Share(50, 100).interval == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert Share(0, 20).interval == pytest.approx((0, 0.1611), abs=1e-4)
    assert Share(20, 20).interval == pytest.approx((0.8389, 1), abs=1e-4)
    assert Share(0, 0).interval == (0, 1)
    assert str(Share(1, 3)) == "33.3 [6.1, 79.2]"


def test_the_paired_test_is_exact() -> None:
    assert Paired(8, 2).p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert Paired(2, 8).p == Paired(8, 2).p
    assert Paired(0, 0).p == Paired(3, 3).p == 1
    assert Paired.of([1, 1, 0, 2], [0, 1, 1, 1]) == Paired(2, 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("ab", True), ("ab", True), True),
        (("ab", True), ("abc", True), False),  # an end is part of an answer
        (("ab", True), ("abc", False), False),
        (("abc", True), ("ab", False), True),
        (("abc", False), ("ab", False), True),
        (("abc", False), ("ax", False), False),
        (("", False), ("ax", True), True),
    ],
)
def test_answers_agree_up_to_the_shorter_budget(one: Any, other: Any, same: bool) -> None:
    assert agree(*one, *other) is agree(*other, *one) is same


# runs

TEXT = b"Once upon a time."


def members() -> list[Any]:
    tokens = [bytes([byte]) for byte in sorted({*TEXT, *b'{}":,0123456789'})]
    return [ScriptedMember(name, tokens, follows(TEXT)) for name in ("left", "right")]


def asking(count: int) -> list[Any]:
    problem = [WordProblem(f"w{n}", f"Question {n}?", Decimal(n)) for n in range(count)]
    return [(each, GenerationConfig(max_tokens=40)) for each in problem]


def test_arms_are_what_they_are_called() -> None:
    told = {
        name: ([member.name for member in engine.members], engine.config.unit)
        for name, engine in ((name, make(members())) for name, make in running.ARMS.items())
        if len(engine.members) > 1
    }
    ways = {"": ["left", "right"], "-swapped": ["right", "left"]}
    assert told == {
        unit + way: (names, unit) for unit in ("text", "token") for way, names in ways.items()
    }
    for name, model in (("drafter", "left"), ("verifier", "right")):
        assert [member.name for member in running.ARMS[name](members()).members] == [model]
    assert {str(arm) for arm in command.Arm} == {*running.ARMS}


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    file, loads = tmp_path / "a" / "answers.jsonl", []

    def loading() -> list[Any]:
        loads.append(1)
        return members()

    arms = ["drafter", "token", "text-swapped"]
    assert running.answer_all(asking(2), arms, loading, file, seconds=0) == 6 and not loads
    assert running.answer_all(asking(2), arms, loading, file) == 0
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    file.write_text("".join(lines[:4]) + lines[4][:30])  # as a crash leaves it
    assert running.answer_all(asking(2), arms, loading, file) == 0
    assert running.answer_all(asking(2), arms, loading, file) == 0
    answers = running.read(file)
    assert len(loads) == 2 and len(answers) == 6
    assert len({(a.problem, a.arm) for a in answers}) == 6
    assert {(a.text, a.ended, len(a.passes)) for a in answers if a.arm == "token"} == {
        (TEXT.decode(), True, 2)
    }


def test_an_answer_to_something_else_is_not_used_again(tmp_path: Path) -> None:
    problem, options = asking(1)[0]
    other = WordProblem(problem.name, "Another question?", problem.right)
    longer = options.model_copy(update={"max_tokens": 41})
    assert len({running.asked(*a) for a in [(problem, options), (other, options)]}) == 2
    assert running.asked(problem, options) != running.asked(problem, longer)
    assert running.asked(problem, GenerationConfig(max_tokens=40)) == running.asked(*asking(1)[0])


def answer(arm: str, name: str, text: str, **more: Any) -> running.Answer:
    given = {
        "problem": name, "asked": "", "arm": arm, "text": text, "ended": True, "closed_at": None,
        "tokens": 10, "seconds": 2.0, "judged": 8, "ensembled": 2, "changed": 1, "passes": (4, 3),
    }  # fmt: skip
    return running.Answer(**{**given, **more})


def test_the_report_counts_wins_losses_and_equal_texts() -> None:
    problems = [WordProblem(f"w{n}", "?", Decimal(n)) for n in range(4)]
    told = {
        "token": ["0", "1", "9", "9"],
        "text": ["0", "9", "2", "3"],
        "text-swapped": ["0", "9", "2", "4"],
    }
    arms = {
        arm: {p.name: scored(p, answer(arm, p.name, t)) for p, t in zip(problems, ts, strict=True)}
        for arm, ts in told.items()
    }
    del arms["token"]["w3"]
    found = summary(arms)
    assert found["arms"]["text"]["right"]["right"] == 3
    assert found["arms"]["text"]["tokens_per_second"] == 5
    assert found["arms"]["text"]["passes_per_token"] == [0.4, 0.3]
    assert found["arms"]["text"]["ensembled"] == 0.25
    paired = found["paired"]["text : token"]
    assert (paired["n"], paired["won"], paired["lost"]) == (3, ["w2"], ["w1"])
    assert paired["same_text"] == 1 and paired["right"]["p"] == 1
    assert found["orders"]["text = text-swapped"]["right"] == 3
    page = markdown({"gsm8k": found})
    assert "| text | 4 | 75.0 [30.1, 95.4] |" in page
    assert "| text : token | 3 | 1:1, p 1 |" in page
    assert "text = text-swapped: 3 of 4" in page
    json.dumps(found)


def test_only_what_the_budget_did_not_write_is_compared() -> None:
    one = answer("text", "w", '{"a": "été"}', closed_at=9)
    assert one.free == ('{"a": "é', False)
    assert answer("text", "w", "ab").free == ("ab", True)


def test_validity_is_told_by_the_schema() -> None:
    schema = PROBLEMS[0].schema
    assert is_valid(json.dumps(PROBLEMS[0].record), schema)
    for broken in ("{}", '{"customer": "A', json.dumps({**PROBLEMS[0].record, "x": 1})):
        assert not is_valid(broken, schema)


# orders


def result(text: str, pieces: list[Piece], reason: Any = "length") -> Result:
    end = Finished(reason, len(text.encode()), Statistics())
    return Result(text, end.finish_reason, end.statistics, tuple(pieces))


def merged(start: int, text: bytes, *scores: float) -> Piece:
    candidates = tuple(Candidate(b"c%d" % n, s, (s, s)) for n, s in enumerate(scores))
    end = start if text == END else start + len(text)
    return Piece(start, end, text, text, Verdict.CHANGED, (), candidates)


def test_a_difference_is_told_with_its_margin() -> None:
    one = result("é go on", [merged(0, "é".encode(), 1.0), merged(2, b" go", 0.5, 0.25)])
    other = result("é stay", [merged(0, "é".encode(), 1.0), merged(2, b" stay", 0.5, 0.375)])
    found = Compared.of("Well?", 5, one, other)
    assert not found.same and found.margin == 0.125
    assert [p["written"] for p in found.places] == [" go", " stay"]
    assert "0 of 1" in markdown_of_orders([found]) and "0.12" in markdown_of_orders([found])
    same = Compared.of("Well?", 5, one, result("é go", []))
    assert same.same and same.places == () and "1 of 1" in markdown_of_orders([same])


def test_an_end_is_a_difference_too() -> None:
    ended = result("ab", [merged(0, b"ab", 1.0), merged(2, END, 0.5, 0.4)], "stop")
    longer = result("ab c", [merged(0, b"ab", 1.0), merged(2, b" c", 0.5, 0.4)])
    found = Compared.of("Well?", 5, ended, longer)
    assert [p["start"] for p in found.places] == [2, 2] and not found.same
    assert place([], 3) == {} and first_difference(b"abc", b"abd") == 2


# the command


def test_the_command_runs_reports_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(members() * 2)
    monkeypatch.setattr(command, "load_member", lambda spec, tell: next(found))
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps({"question": "Q?", "answer": "#### 3"}) + "\n")
    monkeypatch.setattr(command, "_EXTRACTIONS", 0)
    monkeypatch.setattr(command, "PROMPTS", ("Go.", "Run."))
    asked = ["--gsm8k", str(file), "--folder", str(tmp_path / "f"), "--quiet"]
    ran = CliRunner().invoke(command.app, asked)
    assert ran.exit_code == 0, ran.output
    assert "| text | 1 | 0.0 [0.0, 79.3]" in ran.stdout
    assert json.loads((tmp_path / "f" / "report.json").read_text())["tasks"]["gsm8k"]["arms"]
    assert (tmp_path / "f" / "report.md").read_text() in ran.stdout
    ran = CliRunner().invoke(command.app, [*asked[2:], "--orders"])
    assert ran.exit_code == 0 and "2 of 2 texts are the same" in ran.stdout


def test_enough_is_extracted() -> None:
    assert command._EXTRACTIONS >= 100
    for one, two in pairwise(PROBLEMS):
        assert one.name != two.name
    options = command.options_for(PROBLEMS[0])
    assert options.temperature == 0 and options.response_format is not None
