"""The benchmark: its numbers add up, whatever the machine. Nothing here asserts a time."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import toy_model
from typer.testing import CliRunner

from benchmarks.toys import engine_cost, toy_engine
from safe_integrations.bench import benchmark as b
from safe_integrations.bench.measure import (
    Run,
    first_token_seconds,
    ratio,
    run_alone,
    run_engine,
    writing_ratio,
)
from safe_integrations.bench.overhead import KINDS, LENGTH, Overhead
from safe_integrations.bench.prompts import AGAIN, CONTEXT, PROMPTS
from safe_integrations.bench.reference import transformers_generate
from safe_integrations.cli.app import app
from safe_integrations.config import GenerationConfig, JsonSchema
from safe_integrations.messages import Message
from safe_integrations.models.load import load_member
from safe_integrations.models.loading import LoadedModel
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

TEXT = b"Once upon a time there was a lamp."


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each run garbage is collected: half a second in a process with all of torch."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class Clock:
    """A second for every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Recorder(ScriptedMember):
    """Remembers what it was asked and when it was told to forget."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__(name, [b"Once", b" upon"], follows(TEXT))
        self.log = log
        self.asked: list[list[Message]] = []

    def render(self, messages: Any, *rest: Any) -> list[int]:
        self.asked.append(list(messages))
        return [0] * len(messages)

    def start(self, prompt: Sequence[int], cancel: object = None) -> ScriptedSession:
        self.log.append(f"{self.name} starts")
        return super().start(prompt)

    def forget(self) -> None:
        self.log.append(f"{self.name} forgets")


def contest(log: list[str]) -> b.Contest:
    def alone(prompt: Sequence[int], count: int, tell: Callable[[], None]) -> None:
        log.append(f"alone writes {count}")
        for _ in range(count):
            tell()

    return b.Contest(SafeEngine(Recorder("d", log), [Recorder("v", log)]), alone)


def tokens(count: int) -> GenerationConfig:
    return GenerationConfig(max_tokens=count)


def steady(way: Any, count: int, per_token: float, prompt: float = 0.0) -> Run:
    marks = tuple((n, prompt + n * per_token) for n in range(1, count + 1))
    return Run(way, marks, prompt + per_token)


def test_a_ratio_compares_equally_long_answers() -> None:
    """An answer that ends early must not be charged with the prompt of a long one."""
    short, long = steady("safe", 10, 0.2, prompt=5), steady("generate", 1000, 0.1, prompt=5)
    assert ratio(short, long) == pytest.approx((5 + 10 * 0.1) / (5 + 10 * 0.2))
    assert ratio(long, short) == pytest.approx(1 / ratio(short, long))


def test_a_run_between_marks_takes_as_long_as_the_next_mark() -> None:
    run = Run("safe", ((3, 1.0), (9, 2.0)), 1.0)
    assert [run.seconds_for(n) for n in (1, 3, 4, 9)] == [1.0, 1.0, 2.0, 2.0]
    assert (run.tokens, run.seconds, run.speed) == (9, 2.0, 4.5)


def test_the_writing_speed_leaves_the_prompt_out() -> None:
    run = Run("safe", ((3, 10.0), (5, 11.0), (9, 12.0)), 10.0)
    assert run.writing_speed == 3
    assert Run("safe", ((3, 1.5),), 1.5).writing_speed == 2  # nothing behind the first text
    slow, fast = steady("safe", 10, 0.2, prompt=5), steady("generate", 1000, 0.1, prompt=1)
    assert writing_ratio(slow, fast) == pytest.approx(0.5)


def test_ratios_are_formed_within_a_repetition() -> None:
    """Medians of each way divided by each other would mix slow minutes with fast ones."""
    cell = b.Cell("p")
    for slow in (1.0, 10.0, 2.0):
        safe, alone = steady("safe", 4, 2 * slow), steady("generate", 4, slow)
        cell.rounds.append({"safe": safe, "generate": alone})
    assert cell.ratio("safe", "generate") == b.Spread(0.5, 0.5, 0.5)
    assert cell.over("safe", lambda run: run.seconds) == b.Spread(16, 8, 80)
    assert cell.ratio("safe", "every-token") is None


def test_another_program_is_timed_by_its_own_tokens() -> None:
    run = run_alone(contest([]).alone, [1], 5, Clock())
    assert run.marks == tuple((n, float(n)) for n in range(1, 6))
    assert run.first_token_seconds == 1


@pytest.mark.parametrize("way", ["safe", "every-token", "drafter-only"])
def test_the_parts_of_a_run_add_up(way: Any) -> None:
    run = run_engine(toy_engine(60, Clock()), way, PROMPTS["chat"], tokens(60), Clock())
    assert run.statistics is not None
    assert run.tokens == run.statistics.tokens == 60
    assert sum(run.parts) == pytest.approx(run.seconds)
    assert [mark for mark in run.marks if mark[0] > 60] == []
    assert 0 < run.first_token_seconds < run.seconds
    used = [model.seconds > 0 for model in run.statistics.models]
    assert used == ([True] if way == "drafter-only" else [True, True])


def test_every_run_of_the_engine_begins_with_unread_prompts() -> None:
    log: list[str] = []
    run_engine(contest(log).engine, "safe", PROMPTS["chat"], tokens(5), Clock())
    assert log == ["d forgets", "v forgets", "d starts", "v starts"]


def test_everything_is_measured_in_turns_and_every_prompt_is_used() -> None:
    log: list[str] = []
    asked = contest(log)
    settings = b.Settings((5, 9), 3, ways=(*b.WAYS, "drafter-only"))
    report = b.benchmark([asked], settings, clock=Clock())
    assert [(c.prompt, c.length) for c in report.cells] == [
        (prompt, length) for prompt in PROMPTS for length in (5, 9)
    ]
    for cell in report.cells:
        assert len(cell.rounds) == 3 and all(set(r) == set(settings.ways) for r in cell.rounds)
        assert len({next(iter(r)) for r in cell.rounds}) == 3  # nobody is always first
    assert isinstance(asked.engine.drafter, Recorder)
    assert all(p in asked.engine.drafter.asked for p in (*PROMPTS.values(), AGAIN))
    assert len(report.first_tokens) == 3
    # the drafter alone forwards every token once: the last token of the prompt gives the first
    assert report.cells[0].forwarded("drafter-only") == [1.0]


def test_the_second_question_comes_on_top_of_what_the_first_left() -> None:
    log: list[str] = []
    b.benchmark([contest(log)], b.Settings((2,), 1), clock=Clock())
    starts_after_last_forgetting = "|".join(log).split("forgets")[-3]
    assert starts_after_last_forgetting.count("d starts") == 2


def test_the_first_token_stops_the_work() -> None:
    engine = contest([]).engine
    assert first_token_seconds(engine, PROMPTS["chat"], Clock()) > 0
    assert isinstance(engine.drafter, Recorder) and engine.drafter.sessions[0].closed


def test_the_context_is_as_long_as_said_and_shared_by_both_questions() -> None:
    assert 1000 < len(CONTEXT.split()) < 1250
    for conversation in (PROMPTS["rag"], AGAIN):
        assert CONTEXT in str(conversation[0].content)
    assert PROMPTS["rag"] != AGAIN


@pytest.mark.parametrize("length", [1, 50, 300])
def test_toys_write_as_much_as_is_asked_for(length: int) -> None:
    cost = engine_cost(length)
    assert cost.tokens == length


def test_toys_agree_confirm_and_change() -> None:
    """An engine that never ensembles would look cheap."""
    statistics = toy_engine(300).complete("Go.", GenerationConfig(max_tokens=300)).statistics
    assert 0 < statistics.changed < statistics.ensembled < statistics.judged / 4


# with models of transformers


@pytest.fixture(scope="module")
def toys() -> dict[str, LoadedModel]:
    return {"left": toy_model("left", 1500), "right": toy_model("right", 2000)}


def test_generate_writes_exactly_as_much_as_is_asked_for(toys: dict[str, LoadedModel]) -> None:
    model = toys["left"]
    member = load_member(model)
    alone = transformers_generate(model.model, model.tokenizer)
    run = run_alone(alone, member.render(PROMPTS["chat"]), 7)
    assert run.tokens == 7 and run.to_dict()["statistics"] is None


def test_a_member_forgets_what_it_read(toys: dict[str, LoadedModel]) -> None:
    member = load_member(toys["left"])
    engine = SafeEngine(member)
    for _ in range(2):
        run = run_engine(engine, "safe", PROMPTS["chat"], tokens(3))
        assert run.statistics is not None and run.statistics.models[0].reused_tokens == 0


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def saved_toys(toys: dict[str, LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    for name, model in toys.items():
        model.model.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    return folder


def pair_in(folder: Path) -> list[str]:
    return ["--drafter", str(folder / "left"), "--verifier", str(folder / "right")]


def test_the_command_reports_every_row_and_writes_json(
    toys: dict[str, LoadedModel], saved_toys: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "bench.json"
    result = invoke(
        *pair_in(saved_toys), "--tokens", "4", "--tokens", "4", "--repetitions", "1", "--alone",
        "--json", str(file), "--dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for pair in ("left -> right", "right -> left"):
        lines = [line for line in result.stdout.splitlines() if pair in line]
        assert len(lines) == 2  # its own table, and a line of the first tokens
    for name in ("drafter in this engine", "SAFE / every token", "outside", "resident"):
        assert name in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80

    document = json.loads(file.read_text())
    assert set(document) == {
        "version", "machine", "memory", "settings", "cells", "first_token_seconds",
    }  # fmt: skip
    assert set(document["memory"]) == {"libraries", "resident", "peak", "caches", "weights"}
    assert document["memory"]["weights"] == sum(
        model.model.get_memory_footprint() for model in toys.values()
    )
    assert document["memory"]["caches"] > 0
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert document["machine"]["dtype"] == "float32"
    assert len(document["cells"]) == 2 * 2
    for cell in document["cells"]:
        assert len(cell["repetitions"]) == 1
        for runs in cell["repetitions"]:
            assert {run["way"] for run in runs} == {*b.WAYS, "drafter-only"}
            (whole,) = (run["tokens"] for run in runs if run["way"] == "generate")
            assert whole == cell["length"]
        for ratios in (cell["ratios"], cell["writing_ratios"]):
            assert set(ratios["safe/generate"]) == {"median", "low", "high"}


def test_overhead_compares_kinds_of_answers_in_one_run(saved_toys: Path, tmp_path: Path) -> None:
    """Only greedy answers were ever timed, and the others cost twenty times as much."""
    file = tmp_path / "overhead.json"
    result = invoke("--overhead", *pair_in(saved_toys), "--repetitions", "2", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    document = json.loads(file.read_text())
    assert document["pair"] == "left -> right" and document["machine"]["threads"]
    assert list(document["kinds"]) == ["greedy", "sampled", "tools", "schema"]
    for kind, measured in document["kinds"].items():
        assert re.search(rf"^{kind} +\d", result.stdout, re.MULTILINE)
        assert len(measured["runs"]) == 2
        for run in measured["runs"]:
            outside = sum(run["parts"][part] for part in ("ensemble", "tokenise", "rest"))
            assert outside + run["parts"]["draft"] + run["parts"]["verify"] == pytest.approx(
                run["seconds"], abs=1e-5
            )
    assert document["kinds"]["greedy"]["ratio"] == {"median": 1, "low": 1, "high": 1}


def test_an_overhead_is_a_ratio_within_its_repetition() -> None:
    rounds = [
        {"greedy": steady("safe", 10, slow), "sampled": steady("safe", 20, 3 * slow)}
        for slow in (1.0, 10.0)
    ]
    measured = Overhead("a -> b", rounds)
    assert measured.against_greedy("sampled") == b.Spread(3, 3, 3)
    assert measured.per_token("sampled") == b.Spread(16_500, 3_000, 30_000)


def test_each_kind_of_answer_is_what_it_is_called() -> None:
    options = {kind: asked for kind, (_, asked) in KINDS.items()}
    assert options["greedy"] == tokens(LENGTH)
    assert options["sampled"].temperature == 0.8 and options["sampled"].seed is not None
    assert options["tools"].tools and options["tools"].tool_choice == "auto"
    assert isinstance(options["schema"].response_format, JsonSchema)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--drafter", "left"], "--verifier"),
        (["--overhead", "--drafter", "left"], "--verifier"),
        (["--tokens", "0"], "tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], told: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2 and told in result.stderr


def test_the_plot_is_drawn_of_the_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    settings = b.Settings((5, 9), 2)
    report = b.benchmark([contest([])], settings, clock=Clock())
    document = json.loads(json.dumps(report.to_dict()))
    plot(document, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
