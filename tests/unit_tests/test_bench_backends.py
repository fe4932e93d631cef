"""The benchmark of both backends: its numbers add up. Nothing here asserts a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import TokenType
from toy_models import toy_model
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import backends as b
from benchmarks import starts
from benchmarks.by_rows import ROWS, Noting, RowCost, pass_seconds
from benchmarks.llama_loop import Loop
from benchmarks.prompts import PROMPTS
from benchmarks.sharing import Pass
from benchmarks.starts import Start
from benchmarks.toys import toy_engine
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Verified
from safe_integrations.engine.model import Work
from safe_integrations.models.llama_cpp.library import is_installed, open_model
from safe_integrations.models.load import load_member
from safe_integrations.models.spec import ModelSpec
from safe_integrations.safe_engine import SafeEngine

DTYPES = ("float32", "bfloat16")

needs_library = pytest.mark.skipif(not is_installed(), reason="needs xllamacpp")


# passes by rows


class Reader:
    """A session that remembers what it has read last, and takes a second for a token and two."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.work = Work()
        self.prompt = list(prompt)
        self.known: list[int] = []
        self.sizes: list[int] = []
        self.closed = False

    def score(self, ids: Sequence[int], since: int) -> list[Any]:
        wanted = self.prompt + list(ids)
        same = len(os.path.commonprefix([self.known, wanted]))
        self.sizes.append(len(wanted) - same)
        self.known = wanted
        self.work.passes += 1
        self.work.tokens += self.sizes[-1]
        self.work.seconds += 2 + self.sizes[-1]
        return []

    def close(self) -> None:
        self.closed = True


class Read:
    """A member of such sessions."""

    name = "a"

    def __init__(self, session: type[Reader] = Reader) -> None:
        self.tokens = toy_engine(1).drafter.tokens
        self.kind = session

    def start(self, prompt: Sequence[int]) -> Reader:
        self.session = self.kind(prompt)
        return self.session


def test_every_size_of_pass_is_measured_as_often_and_reads_its_tokens_anew() -> None:
    member: Any = Read()
    samples = pass_seconds(member, [1, 2, 3], times=4)
    assert samples == {rows: 4 * [2.0 + rows] for rows in ROWS}
    prompt, *sizes = member.session.sizes
    assert prompt == 3 and sorted(sizes) == sorted(ROWS * 4)
    assert (
        sizes[: len(ROWS)] != sizes[len(ROWS) : 2 * len(ROWS)]
    )  # in no order that a machine's moods could follow
    assert member.session.closed


def test_a_pass_of_another_size_is_not_taken_for_one_that_was_asked_for() -> None:
    class Splits(Reader):
        def score(self, ids: Sequence[int], since: int) -> list[Any]:
            super().score(ids, since)
            self.work.passes += len(ids) > 8
            return []

    member: Any = Read(Splits)
    with pytest.raises(RuntimeError, match="rows in a pass"):
        pass_seconds(member, [1])
    assert member.session.closed


def test_between_sizes_is_interpolated_and_behind_them_goes_on() -> None:
    cost = RowCost("a", {1: 2.0, 3: 3.0, 5: 7.0})
    assert [cost.seconds(n) for n in (1, 2, 3, 4, 5, 7)] == [2, 2.5, 3, 5, 7, 11]
    assert cost.units == {1: 1, 3: 1.5, 5: 3.5}


# passes of an answer


def test_noted_passes_are_those_that_were_computed() -> None:
    """Of members whose calls have a form, too; whatever else they are asked, they answer."""
    made, passes = load_member(toy_model("left", 1500)), list[Pass]()
    engine = SafeEngine(Noting(made, passes))
    plain = SafeEngine(made).complete("Go.", GenerationConfig(max_tokens=9))
    made.forget()  # type: ignore[attr-defined]
    result = engine.complete("Go.", GenerationConfig(max_tokens=9))
    assert isinstance(engine.drafter, Noting) and engine.agreement == SafeEngine(made).agreement
    assert result.text == plain.text
    (used,) = result.statistics.models
    assert sum(one.rows[0] for one in passes) == used.forwarded_tokens
    assert sum(one.seconds for one in passes) == pytest.approx(used.seconds)
    assert {one.model for one in passes} == {"left"}
    kept: Any = engine.drafter
    assert kept.cache_bytes == made.cache_bytes > 0  # type: ignore[attr-defined]


def test_what_is_known_is_no_pass() -> None:
    session: Any = Noting(toy_engine(5).drafter, passes := list[Pass]()).start([0])
    session._session.score = lambda ids, since: []
    session.score([], 0)
    assert passes == []


def test_passes_up_to_the_first_text_are_left_out() -> None:
    """They read the prompts, which is not what the bound is about."""
    specs: Any = toy_engine(40).members
    config = EnsembleConfig(lookahead=3)
    answer = b.by_engine(specs, config, 40)
    assert answer.tokens == 40 and answer.statistics is not None
    passes = list[Pass]()
    drafter, verifier = (Noting(member, passes) for member in specs)
    engine = SafeEngine(drafter, [verifier], config)
    events = engine.generate(b._QUESTION, GenerationConfig(max_tokens=40))
    next(event for event in events if isinstance(event, Verified) and event.pieces)
    first = len(passes)
    list(events)
    assert 0 < first < len(passes)
    assert [(p.model, p.rows) for p in answer.passes] == [(p.model, p.rows) for p in passes[first:]]
    short = b.by_engine(specs, config, 1)
    assert short.behind == 0 and short.passes == ()


def answer(
    seconds: float, passes: Sequence[Pass] = (), first: tuple[int, float] = (2, 5.0), count: int = 8
) -> b.Answer:
    """Two tokens as the first text, after five seconds; then as many as is said, equally fast."""
    marks = (first, (first[0] + count, first[1] + seconds))
    return b.Answer("safe", marks, first[1], None, passes)


COSTS = {"d": RowCost("d", {1: 1.0, 3: 2.0}), "v": RowCost("v", {1: 2.0, 3: 4.0})}


def drafts(*rows: int, times: float = 1.0) -> list[Pass]:
    return [Pass("d", 0, times * COSTS["d"].seconds(n), (n,)) for n in rows]


def checks(*rows: int, times: float = 1.0) -> list[Pass]:
    return [Pass("v", 0, times * COSTS["v"].seconds(n), (n,)) for n in rows]


def test_the_bound_is_what_the_passes_allow() -> None:
    """Eight tokens in four passes of 1.5 s and two of 4 s: 14 s, where the loop takes 8."""
    length, slow = b.Length("d -> v"), drafts(2, 2, 2, 2, times=2) + checks(3, 3)
    length.rounds.append(
        {"loop": answer(8), "safe": answer(20, drafts(2, 2, 2, 2) + checks(3, 3))},
    )
    length.rounds.append({"loop": answer(16), "safe": answer(32, slow)})  # a slow minute
    assert length.bound("safe", COSTS, "d") == b.Spread(8 / 14, 8 / 14, 8 / 14)
    reached = length.reached("safe", COSTS, "d")
    assert reached is not None
    # 8/20 and 16/32 of the loop beside it
    assert (reached.low, reached.high) == (pytest.approx(0.7), pytest.approx(0.875))
    assert length.outside("safe") == b.Spread(1000 * (6 + 12) / 16, 750, 1500)
    drafter, verifier = length.needed("safe", COSTS).values()
    assert (drafter.passes, drafter.rows) == (8 / 16, 2)
    assert drafter.times == pytest.approx(1.5)
    assert (verifier.passes, verifier.rows, verifier.times) == (4 / 16, 3, 1)


def test_what_has_no_passes_behind_its_first_text_has_no_bound() -> None:
    whole = b.Answer("safe", ((8, 5.0),), 5.0, None, ())
    length = b.Length("d -> v", [{"loop": answer(8), "safe": whole}])
    for way in ("loop", "safe", "nobody"):
        assert length.bound(way, COSTS, "d") is None
        assert length.reached(way, COSTS, "d") is None
        assert length.needed(way, COSTS) == {}
    assert length.outside("safe") is None


def test_all_ways_take_turns_in_orders_that_differ() -> None:
    log: list[tuple[str, int]] = []

    def writer(way: str) -> Callable[[int], b.Answer]:
        def write(count: int) -> b.Answer:
            log.append((way, count))
            return answer(float(len(log)))

        return write

    ways = {way: writer(way) for way in b.TITLES}
    lengths = [b.Length("p", length=n) for n in (6, 20)]
    saved = [[len(n.rounds) for n in lengths] for _ in b.measure_speeds(ways, lengths, 3)]
    assert saved == [[1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3]]  # nothing waits to be saved
    warm, *rounds = (log[i : i + len(ways)] for i in range(0, len(log), len(ways)))
    assert [way for way, _ in warm] == list(ways)
    assert [{count for _, count in turn} for turn in rounds] == [{6}, {20}] * 3
    orders = [tuple(way for way, _ in turn) for turn in rounds]
    assert all(sorted(order) == sorted(ways) for order in orders)
    assert len(set(orders)) == len(orders)
    assert all(list(runs) == list(ways) for length in lengths for runs in length.rounds)


def test_ratios_and_bounds_are_told_as_data() -> None:
    measured = b.Backends("d -> v", "d")
    for samples in ({1: [1.0, 0.5], 3: [2.0]}, {1: [9.0], 3: [2.0]}):
        measured.add("d", samples)
        measured.add("v", {rows: [2 * s for s in seconds] for rows, seconds in samples.items()})
    assert measured.costs == COSTS
    runs = {way: answer(8) for way in b.TITLES} | {b.LLAMA: answer(4, drafts(1, 1), count=2)}
    measured.lengths = [b.Length("d -> v", [runs], length=10), b.Length("d -> v", length=99)]
    document = json.loads(json.dumps(measured.to_dict()))
    assert document["passes"]["v"]["units"] == {"1": 1, "3": 2}
    assert document["passes"]["v"]["seconds"]["1"] == {"median": 2, "low": 1, "high": 18}
    (told,) = document["lengths"]  # what was not measured yet is not there
    assert told["writing_ratios"]["llama.cpp/float32"]["median"] == 0.5
    assert told["bounds"]["llama.cpp"]["median"] == 1 and told["bounds"]["loop"] is None
    assert told["reached"]["llama.cpp"]["median"] == 0.5
    assert told["needed"]["llama.cpp"] == {"d": {"passes": 1, "rows": 1, "times": 1}}
    assert {run["way"] for run in told["repetitions"][0]} == set(b.TITLES)
    assert document["starts"] is None


# processes


def test_a_process_of_its_own_is_one() -> None:
    with b.own_process() as process:
        first, again = (process.submit(os.getpid).result() for _ in range(2))
    assert first == again != os.getpid()


def test_a_first_start_finds_an_empty_cache_and_the_next_one_what_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caches: list[tuple[str, str | None, bool]] = []

    def start(specs: Any, cache: str | None = None) -> Start:
        caches.append((specs[0].source, cache, bool(cache and os.listdir(cache))))
        if cache is not None:
            Path(cache, "file").touch()
        return Start(1.0, 900, 40, 60, [])

    monkeypatch.setattr(starts, "start", start)
    specs = {"llama.cpp": [ModelSpec(source="a")], "transformers": [ModelSpec(source="b")]}
    found = starts.measure_starts(specs, {"a": 100, "v": 300}, 2)
    assert [(source, left) for source, _, left in caches] == [
        ("a", False), ("a", True), ("b", False),
    ] * 2  # fmt: skip
    first, again, users, other = (cache for _, cache, _ in caches[:4])
    assert first == again != other and users is None
    assert {kind: len(all_) for kind, all_ in found.kinds.items()} == {
        "first": 2, "again": 2, "transformers": 2,
    }  # fmt: skip
    assert found.over("first", "rest", 10) == b.Spread(46, 46, 46)
    assert found.to_dict()["kinds"]["again"]["beyond_files_and_caches"]["median"] == 460


# with files for llama.cpp


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two toys with vocabularies of their own."""
    folder = tmp_path_factory.mktemp("toys")
    texts = {"left": "The quick brown fox jumps.", "right": "Pack my box with five dozen jugs."}
    return [
        gguf_files.byte_level(
            folder / f"{name}.gguf", *gguf_files.greedy(text),
            added={"<end>": TokenType.CONTROL}, pre="gpt-2", weights=True, context_length=4096,
            width=64, spread=0.2,
        )
        for name, text in texts.items()
    ]  # fmt: skip


@pytest.fixture
def loop(pair: list[Path]) -> Iterator[Loop]:
    made = Loop(open_model(pair[0]))
    yield made
    made.close()


@needs_library
def test_the_loop_writes_the_favourites(pair: list[Path], loop: Loop) -> None:
    """A prompt of several parts, and a second one behind it."""
    member: Any = load_member(ModelSpec(source=str(pair[0]), backend="llama.cpp"))
    for prompt in ([7] * 300 + [60, 61], [60, 61, 62]):
        told: list[None] = []
        ids = loop.write(prompt, 9, (), lambda told=told: told.append(None))  # type: ignore[misc]
        session = member.start(prompt)
        rows = session.score(ids, 0)
        session.close()
        assert len(ids) == len(told) == 9
        for chosen, row in zip(ids, rows, strict=False):
            expected = row.dense()
            assert expected[chosen] > np.max(expected) - 0.01
        assert loop.write(prompt, 9, ids[3:4]) == ids[: ids.index(ids[3]) + 1]


@needs_library
def test_the_loop_writes_behind_the_same_prompt_and_is_timed_token_by_token(
    pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(source=str(pair[0]), backend="llama.cpp")
    timed = b.by_loop(spec, 7)
    assert [n for n, _ in timed.marks] == list(range(1, 8)) and timed.passes == ()
    asked: list[Any] = []

    def write(ids: Any, count: int, ends: Any, tell: Callable[[], None]) -> None:
        asked.append((ids, count, ends))
        tell()

    monkeypatch.setattr(b, "_loop", lambda _: SimpleNamespace(write=write))
    b.by_loop(spec, 7)
    assert asked == [(load_member(spec).render(PROMPTS["chat"]), 7, ())]


@needs_library
def test_a_new_process_tells_what_it_took(pair: list[Path], tmp_path: Path) -> None:
    models = [ModelSpec(source=str(path), backend="llama.cpp") for path in pair]
    found = starts.start(models, str(tmp_path))
    assert 0 < found.tokens <= starts.ANSWER and found.resident > found.caches > 0
    assert found.loaded == [] and found.seconds > 0
    with pytest.raises(RuntimeError, match="ended"):
        starts.start([ModelSpec(source=str(tmp_path / "none.gguf"), backend="llama.cpp")])


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes would import torch four times; who writes where is the same."""
    monkeypatch.setattr(b, "own_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setenv("SAFE_INTEGRATIONS_CACHE", str(tmp_path / "cache"))


def invoke(pair: list[Path], *arguments: str) -> Any:
    models = ["--drafter", str(pair[0]), "--verifier", str(pair[1])]
    return CliRunner().invoke(command.app, [*models, *arguments], env={"COLUMNS": "200"})


@needs_library
def test_the_command_measures_every_way_on_its_backends(
    pair: list[Path], tmp_path: Path, in_threads: None
) -> None:
    file = tmp_path / "new" / "backends.json"
    rounds = ["--tokens", "6", "--tokens", "20", "--repetitions", "1"]
    result = invoke(pair, "--backends", *rounds, "--json", str(file))
    assert result.exit_code == 0, result.output
    for told in (
        *b.TITLES.values(),
        "left -> right",
        "bound",
        "reached",
        "ms of one",
        "first text",
        "loaded",
    ):
        assert told in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80

    document = json.loads(file.read_text())
    names = {d: [f"{n} ({d})" for n in ("left", "right")] for d in ("llama.cpp", *DTYPES)}
    assert list(document["passes"]) == [name for pair in names.values() for name in pair]
    expected = {
        "loop": [],
        "alone": names["llama.cpp"][:1],
        **names,
        "drafts": [names["llama.cpp"][0], names["float32"][1]],
        "verifies": [names["float32"][0], names["llama.cpp"][1]],
    }
    assert [length["length"] for length in document["lengths"]] == [6, 20]
    for length in document["lengths"]:
        used = {
            run["way"]: [model["name"] for model in (run["statistics"] or {}).get("models", [])]
            for run in length["repetitions"][0]
        }
        assert [
            model["reused_tokens"]
            for run in length["repetitions"][0]
            for model in (run["statistics"] or {}).get("models", [])
        ] == [0] * 11  # no model has read the prompt
        assert used == expected
    for passes in document["passes"].values():  # at first, and behind every round
        assert passes["times"] == 3 * 4
    kinds = document["starts"]["kinds"]
    assert [start["loaded"] for kind in kinds.values() for start in kind["starts"]] == [
        [], [], ["torch", "transformers"],
    ]  # fmt: skip
    assert document["starts"]["files"] == {path.stem: path.stat().st_size for path in pair}
    assert document["machine"]["xllamacpp"] and document["threads"] > 0


@needs_library
def test_what_was_measured_before_it_broke_off_is_kept(
    pair: list[Path], tmp_path: Path, in_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backends.json"
    left: list[dict[str, Any]] = []

    def broken(*_: object) -> None:
        left.append(json.loads(file.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(b, "by_loop", broken)
    invoke(pair, "--backends", "--json", str(file))
    assert len(left[0]["passes"]) == 6 and left[0]["lengths"] == []


def test_a_model_that_is_no_file_for_both_is_refused(tmp_path: Path) -> None:
    result = invoke([tmp_path, tmp_path], "--backends")
    assert result.exit_code == 1 and "GGUF" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--many"], ["--overhead"]])
def test_what_is_measured_beside_generate_is_computed_by_transformers(
    pair: list[Path], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(specs: Sequence[ModelSpec], *_: object) -> None:
        asked.extend(spec.backend for spec in specs)
        raise KeyboardInterrupt

    monkeypatch.setattr(command.o, "load", load)
    assert invoke(pair, *arguments).exit_code == 130
    assert asked == ["transformers", "transformers"]
