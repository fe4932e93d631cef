"""The benchmark of many answers at once: its numbers add up. Nothing here asserts a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_models import toy_model
from typer.testing import CliRunner

from benchmarks import many
from benchmarks.__main__ import app
from benchmarks.many import (
    BESIDE,
    TOKENS,
    Arrival,
    Load,
    Many,
    arrivals,
    as_questions,
    by_engine,
    measure_many,
    questions_for,
)
from benchmarks.measure import Run, Written
from benchmarks.prompts import QUESTIONS
from benchmarks.reference import Batches, Continuous
from benchmarks.sharing import Cost, Pass, Sharing, noting_passes
from benchmarks.toys import toy_engine
from safe_integrations.config import GenerationConfig
from safe_integrations.models.load import load_member
from safe_integrations.models.spec import LoadedModel
from safe_integrations.safe_engine import SafeEngine


def written(begun: float, count: int, per_token: float = 1.0, late: float = 0.0) -> Written:
    """An answer with a token every so many seconds, handed over some time behind the last."""
    marks = tuple((n, n * per_token) for n in range(1, count + 1))
    return Written(begun, begun + count * per_token + late, Run("safe", marks, per_token))


def test_speed_is_measured_as_long_as_the_queue_keeps_all_busy() -> None:
    """The last answers run beside fewer and fewer others: their time says nothing of a level."""
    load = Load("safe", 2, [written(0, 4), written(0, 6), written(4, 4), written(6, 50)])
    assert load.full_until == 8  # the third has ended, and nobody has come in for it
    assert load.tokens == 4 + 6 + 4 + 2
    assert load.speed == 16 / 8
    assert load.latencies == [4, 6, 4, 50]
    assert Load("safe", 1, [written(3, 4), written(7, 2)]).speed == 1


def test_only_tokens_that_were_written_count() -> None:
    early = written(0, 3, late=7)  # a batch of `generate` goes on until its longest answer ends
    load = Load("generate", 2, [early, written(0, 10)])
    assert (load.tokens, load.full_until, load.speed) == (13, 10, 1.3)


def test_passes_after_the_queue_was_empty_do_not_count() -> None:
    passes = [Pass("a", 1, 0.5, (1, 1)), Pass("a", 4, 0.5, (1, 1)), Pass("a", 9, 0.5, (1,))]
    load = Load("safe", 2, [written(0, 4), written(0, 9)], passes)
    assert load.sharing.passes == passes[:2]
    assert load.sharing.outside == 4 - 2 * 0.5
    assert (load.sharing.tokens, load.sharing.seconds) == (8, 4)


def test_costs_are_found_in_the_passes() -> None:
    cost = Cost(0.04, 0.001, 0.002, 0.003)
    shapes = [(1,), (1, 1), (5,), (3, 1, 8), (9, 9), (2,) * 16, (40, 1)]
    passes = [Pass("a", 0, cost.seconds(len(rows), sum(rows)), rows) for rows in shapes]
    slow = [Pass("a", 0, 10 * one.seconds, one.rows) for one in passes]  # outvoted
    found = Cost.of([*passes, *passes, *slow])
    for name in ("whole", "session", "row", "late"):
        assert getattr(found, name) == pytest.approx(getattr(cost, name))
    assert found.seconds(2, 20) == pytest.approx(0.04 + 0.002 + 0.04 + 4 * 0.003)


def test_no_part_of_a_pass_gives_time_back() -> None:
    passes = [Pass("a", 0, seconds, (rows,)) for rows, seconds in ((1, 2.0), (2, 1.5), (3, 1.9))]
    found = Cost.of(passes)
    assert min(found.whole, found.session, found.row, found.late) >= 0


def test_perfect_sharing_makes_one_pass_of_those_of_all_answers() -> None:
    """Two answers with four passes each, none shared: the price of the pass is paid twice."""
    costs = {"d": Cost(1, 0, 0.25, 0), "v": Cost(2, 0, 0, 0)}
    apart = [Pass("d", n, 1.25, (1,)) for n in range(8)] + [Pass("v", 9, 2, (3,))] * 2
    sharing = Sharing(2, 8, 8 * 1.25 + 2 * 2 + 3, apart)
    assert sharing.outside == 3
    assert sharing.bound(costs) == pytest.approx(8 / (4 * 1.5 + 2))
    shared = [Pass("d", n, 1.5, (1, 1)) for n in range(4)] + [Pass("v", 9, 2, (3, 3))]
    perfect = Sharing(2, 8, 4 * 1.5 + 2, shared)
    assert perfect.bound(costs) == pytest.approx(sharing.bound(costs))
    assert perfect.bound(costs) == pytest.approx(perfect.tokens / perfect.seconds)


def test_what_is_told_of_passes() -> None:
    passes = [Pass("d", 1, 0.5, (1, 3), 70), Pass("d", 2, 1.5, (2,), 90), Pass("v", 3, 1, (4,), 5)]
    told = Sharing(2, 4, 4, passes).to_dict()
    assert list(told) == ["d", "v"]
    assert told["d"] == {
        "passes": 2,
        "sessions_per_pass": 1.5,
        "rows_per_pass": 3,
        "ms_per_pass": 1000,
        "passes_per_token": 0.5,
        "sessions_per_token": 0.75,
        "rows_per_token": 1.5,
        "cache_bytes": 90,
    }


def test_ratios_are_those_of_one_way() -> None:
    many = Many("a -> b")
    for way, n, per_token in (("safe", 1, 2.0), ("safe", 4, 1.0), ("packed", 1, 1.0)):
        answers = [written(0, 10, per_token) for _ in range(n)]
        many.loads[way, n] = Load(way, n, answers)  # type: ignore[index, arg-type]
    assert many.levels == [1, 4] and many.ways == ["safe", "packed"]
    assert many.ratio("safe", 4) == 8
    many.arrivals.extend(Arrival(alone, beside, 1, 1) for alone, beside in ((2, 4), (1, 3), (1, 9)))
    slowdown = many.slowdown()
    assert slowdown is not None and (slowdown.median, slowdown.high) == (3, 9)


def test_there_are_enough_questions() -> None:
    assert len({str(question) for question in QUESTIONS}) == len(QUESTIONS) >= 32
    assert [len(questions_for(n)) for n in (1, 2, 8, 32)] == [6, 6, 24, 96]


def test_an_arrival_is_compared_with_the_same_question_alone() -> None:
    """Fifteen others are busy from the first arrival to the last, and none is left behind."""
    before = threading.active_count()
    paused: list[float] = []
    engine = toy_engine(TOKENS)
    found = arrivals(engine, pause=paused.append, beside=3)
    assert len(found) == len(paused) > 1
    assert all(a.alone >= a.first_alone > 0 and a.beside >= a.first_beside > 0 for a in found)
    assert threading.active_count() == before


def test_a_crowd_that_fails_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy_engine(TOKENS)
    whole = engine.generate

    def generate(messages: Any, *rest: Any, cancel: Any = None) -> Any:
        if cancel is not None:
            raise RuntimeError("no")
        return whole(messages, *rest)

    monkeypatch.setattr(engine, "generate", generate)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert arrivals(engine, pause=lambda _: None, beside=2)


# with models of transformers


@pytest.fixture(scope="module")
def toys() -> dict[str, LoadedModel]:
    return {"left": toy_model("left", 1500), "right": toy_model("right", 2000)}


@pytest.fixture(scope="module")
def engine(toys: dict[str, LoadedModel]) -> SafeEngine:
    drafter, verifier = map(load_member, toys.values())
    return SafeEngine(drafter, [verifier])


def test_passes_of_all_members_are_noted_and_then_no_more(engine: SafeEngine) -> None:
    with noting_passes(engine.members) as passes:
        answers = by_engine(engine, "safe")(questions_for(1, most=4), 2, 5)
    noted = len(passes)
    by_engine(engine, "safe")(questions_for(1, most=1), 1, 5)
    assert len(passes) == noted
    for nth, member in enumerate(engine.members):
        own = [one for one in passes if one.model == member.name]
        used = [a.run.statistics.models[nth] for a in answers if a.run.statistics is not None]
        assert sum(sum(one.rows) for one in own) == sum(m.forwarded_tokens for m in used)
        assert all(one.seconds > 0 and one.cache_bytes > 0 for one in own)


def test_a_pass_that_failed_is_none(engine: SafeEngine) -> None:
    class Broken:
        def compute(self, parts: object) -> None:
            raise MemoryError

    member: Any = SimpleNamespace(name="a", forward=Broken())
    with noting_passes([member]) as passes, pytest.raises(MemoryError):
        member.forward.compute([])
    assert passes == [] and not vars(member.forward)


def prompts(engine: SafeEngine, count: int) -> list[list[int]]:
    return [engine.drafter.render(question) for question in QUESTIONS[:count]]


@pytest.mark.parametrize("at_once", [1, 3])
def test_batches_of_generate_write_what_the_drafter_alone_writes(
    toys: dict[str, LoadedModel], engine: SafeEngine, at_once: int
) -> None:
    """Prompts differ in length, so padding that was read would show."""
    alone = SafeEngine(engine.drafter)
    texts = [alone.complete(q, GenerationConfig(max_tokens=6)).text for q in QUESTIONS[:5]]
    model, tokenizer = toys["left"].model, toys["left"].tokenizer
    end = engine.drafter.tokens.end_id
    said: list[list[int]] = []
    generate = model.generate

    def hear(**options: Any) -> None:
        before, rows = options["input_ids"].shape[1], generate(**options)
        said.extend(row[before:].tolist() for row in rows)

    batches = as_questions(Batches(SimpleNamespace(generate=hear), [end]), engine.drafter.render)
    runs = batches(QUESTIONS[:5], at_once, 6)
    ends = [ids.index(end) if end in ids else len(ids) for ids in said]
    written = [tokenizer.decode(ids[:end]) for ids, end in zip(said, ends, strict=True)]
    assert written == texts
    assert [a.run.tokens for a in runs] == [min(6, end + 1) for end in ends]
    assert all(a.begun + a.run.seconds <= a.ended for a in runs)
    assert len({a.ended for a in runs}) == -(-5 // at_once)


def test_an_answer_of_a_batch_ends_where_it_says_so(engine: SafeEngine) -> None:
    asked = prompts(engine, 2)

    class Says:
        """Lets the second answer end at its second token."""

        def generate(self, *, streamer: Any, **options: Any) -> None:
            assert options["eos_token_id"] == [7]
            assert options["attention_mask"].sum(1).tolist() == [len(p) for p in asked]
            for row, prompt in zip(options["input_ids"].tolist(), asked, strict=True):
                assert row[len(row) - len(prompt) :] == prompt
            streamer.put(options["input_ids"])
            for step in ([5, 5], [5, 7], [5, 0], [7, 0]):
                streamer.put(torch.tensor(step))
            streamer.end()

    runs = Batches(Says(), [7])(asked, 2, 4)
    assert [answer.run.tokens for answer in runs] == [4, 2]


def test_continuous_batching_writes_as_much(
    toys: dict[str, LoadedModel], engine: SafeEngine
) -> None:
    asked = prompts(engine, 5)
    plain = Batches(toys["left"].model, [3])(asked, 1, 6)
    runs = Continuous(toys["left"].model, [3])(asked, 2, 6)
    assert sorted(a.run.tokens for a in runs) == sorted(a.run.tokens for a in plain)
    assert all(a.begun < a.begun + a.run.seconds <= a.ended for a in runs)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens and questions: how much is measured changes nothing about what is made of it."""
    monkeypatch.setattr(many, "TOKENS", 12)
    monkeypatch.setattr(many, "_FEWEST", 2)
    monkeypatch.setattr(many, "_ROUNDS", 1)
    monkeypatch.setattr(many, "_ARRIVALS", 1)


def test_everything_is_measured_at_every_level(engine: SafeEngine, few: None) -> None:
    order: list[tuple[str, int]] = []

    def other(questions: Sequence[Any], at_once: int, count: int) -> list[Written]:
        order.append(("packed", at_once))
        return [written(0, count) for _ in questions]

    def broken(*_: Any) -> list[Written]:
        raise RuntimeError("no such device")

    others: dict[Any, Any] = {"packed": other, "continuous": broken}
    measured = measure_many(engine, others, (1, 2), pause=lambda _: None)
    assert measured.failed == {"continuous": "RuntimeError: no such device"}
    assert set(measured.loads) == {
        (w, n) for w in ("safe", "drafter-only", "packed") for n in (1, 2)
    }
    assert order[1:] == [("packed", 1), ("packed", 2)]  # behind the warming up
    document = json.loads(json.dumps(measured.to_dict()))
    assert [level["at_once"] for level in document["levels"]] == [1, 2]
    for level in document["levels"]:
        assert set(level["ways"]) == {"safe", "drafter-only", "packed"}
        assert "bound" not in level["ways"]["packed"]
        safe, drafter = level["ways"]["safe"], level["ways"]["drafter-only"]
        assert safe["reached"] * safe["bound"] == pytest.approx(safe["tokens_per_second"])
        assert list(safe["passes"]) == ["left", "right"] and list(drafter["passes"]) == ["left"]
        assert all(m["sessions_per_pass"] <= level["at_once"] for m in safe["passes"].values())
    assert document["levels"][0]["ways"]["safe"]["ratio"] == 1
    assert document["interactive"]["beside"] == BESIDE


def test_the_command_shows_and_draws_what_it_measured(
    toys: dict[str, LoadedModel], tmp_path: Path, few: None
) -> None:
    for name, model in toys.items():
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    file = tmp_path / "many.json"
    pair = ["--drafter", str(tmp_path / "left"), "--verifier", str(tmp_path / "right")]
    levels = ["--at-once", "1", "--at-once", "2"]
    result = CliRunner().invoke(
        app, ["--many", *pair, *levels, "--json", str(file)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    for told in ("left -> right", "generate()", "continuous", "bound", "rows in a pass", "beside"):
        assert told in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    document = json.loads(file.read_text())
    assert document["failed"] == {} and document["machine"]["threads"]
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    plot(document, tmp_path / "many.png")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
