"""Many questions on the command line, with scripted models and the real engine."""

from __future__ import annotations

import copy
import importlib
import json
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from safe_integrations.cli import render
from safe_integrations.cli.app import app
from safe_integrations.cli.many import in_threads
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.tokens import END
from safe_integrations.messages import Message
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

Hook = Callable[[str, bytes], None]
JSON = '{"name": "Paris", "age": 12}'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Answering(ScriptedMember):
    """Answers what it is asked; its prompt is what was said last, and whether there is a system."""

    def __init__(self, name: str, sure: float, world: World) -> None:
        super().__init__(name, [b"answer", b" to "], follows(b""), context_window=world.window)
        self.sure, self.world = sure, world

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        template_args: Mapping[str, Any] | None = None,
    ) -> list[int]:
        said = " / ".join(message.content for message in messages)
        return self.tokens.encode(said.encode())

    def start(
        self, prompt: Sequence[int], cancel: Callable[[], bool] = lambda: False
    ) -> ScriptedSession:
        asked = b"".join(self.tokens.symbol(i) for i in prompt).decode()
        member = copy.copy(self)
        member.script = self.world.script(asked, self.sure)
        self.sessions.append(ScriptedSession(member))
        return self.sessions[-1]


class World:
    """Stands in for `load_engine`; sees every forward pass, and counts those who are at work."""

    def __init__(self) -> None:
        self.window = 300
        self.loaded: list[SafeEngine] = []
        self.asked: list[str] = []
        self.hook: Hook = lambda asked, written: None
        self.sessions: list[ScriptedSession] = []

    def __call__(
        self,
        drafter: Any = None,
        verifiers: Any = None,
        config: Any = None,
        on_progress: Any = None,
    ) -> SafeEngine:
        members = [Answering("drafter", 0.6, self), Answering("verifier", 0.7, self)]
        for member in members:
            member.sessions = self.sessions
        self.loaded.append(SafeEngine(members[0], members[1:], config))
        return self.loaded[-1]

    def script(self, asked: str, sure: float) -> Callable[[bytes], Mapping[bytes, float]]:
        inner = follows((JSON if "json" in asked else f"answer to {asked}").encode(), sure=sure)
        self.asked.append(asked)

        def script(written: bytes) -> Mapping[bytes, float]:
            self.hook(asked, written)
            if asked == "bad":
                raise ZeroDivisionError("a model fails")
            if asked == "endless":
                return {b"x": sure, b"y": 1 - sure}
            if "drawn" in asked:
                length = len(written)
                letters = {bytes([97 + (length * 7 + i) % 26]): sure / 5 for i in range(5)}
                return {END: 1.0} if length > 30 else {**letters, b"!": 1 - sure}
            return inner(written)

        return script


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Scripted models in place of real ones."""
    loading = importlib.import_module("safe_integrations.safe_engine")
    made = World()
    monkeypatch.setattr(loading, "load_engine", made)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A file of three questions."""
    return written(tmp_path, "one\n\ntwo\nthree\n")


def written(folder: Path, text: str | bytes) -> Path:
    """A file of questions."""
    file = folder / "questions.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def run(*arguments: object, stdin: str | None = None) -> Any:
    """Calls the command line as a user would."""
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def lines(text: str | Path) -> list[dict[str, Any]]:
    """JSON lines, in the order of the questions."""
    text = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    assert text.endswith("\n")
    return sorted(map(json.loads, text[:-1].split("\n")), key=lambda answer: answer["line"])


# Answers


@pytest.mark.parametrize("jobs", [1, 2, 16])
def test_every_question_has_its_answer(world: World, questions: Path, jobs: int) -> None:
    result = run("--file", questions, "--jobs", jobs)
    assert result.exit_code == 0
    answers = lines(result.stdout)
    assert [list(answer) for answer in answers] == 3 * [
        ["line", "question", "text", "finish_reason", "tokens", "seconds"]
    ]
    assert [(a["line"], a["question"], a["text"]) for a in answers] == [
        (1, "one", "answer to one"),
        (3, "two", "answer to two"),
        (4, "three", "answer to three"),
    ]
    alone = World()().complete("one")
    assert (answers[0]["finish_reason"], answers[0]["tokens"]) == ("stop", alone.statistics.tokens)
    assert "3 answered, 0 failed" in result.stderr
    assert len(world.loaded) == 1
    assert world.sessions and all(session.closed for session in world.sessions)


def test_a_file_gets_what_stdout_would(world: World, questions: Path, tmp_path: Path) -> None:
    result = run("--file", questions, "--output", tmp_path / "a.jsonl", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert [a["text"] for a in lines(tmp_path / "a.jsonl")] == [
        f"answer to {n}" for n in ("one", "two", "three")
    ]


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_are_written_at_the_same_time(world: World, tmp_path: Path, jobs: int) -> None:
    """Each waits for the others to begin; with fewer threads than that nobody would go on."""
    file = written(tmp_path, "".join(f"question {n}\n" for n in range(6)))
    together = threading.Barrier(jobs, timeout=20)
    busy, most, lock = 0, 0, threading.Lock()
    generate = SafeEngine.generate

    def counted(self: SafeEngine, messages: Any, *rest: Any, **more: Any) -> Any:
        def events() -> Any:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            try:
                together.wait()
                yield from generate(self, messages, *rest, **more)
            finally:
                with lock:
                    busy -= 1

        return events()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafeEngine, "generate", counted)
        result = run("--file", file, "--jobs", jobs)
    assert result.exit_code == 0 and len(lines(result.stdout)) == 6
    assert most == jobs


def test_an_answer_is_written_as_soon_as_it_is_complete(
    world: World, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.jsonl"
    seen: list[str] = []

    def look(asked: str, written: bytes) -> None:
        if asked == "three" and not written:
            seen.extend(answer["question"] for answer in lines(output))

    world.hook = look
    assert run("--file", questions, "--output", output, "--jobs", 1).exit_code == 0
    assert set(seen) == {"one", "two"}


def test_with_a_seed_an_answer_is_that_of_the_question_alone(world: World, tmp_path: Path) -> None:
    asked = [f"drawn {n}" for n in range(6)]
    drawing = ("--temperature", "1.2", "--seed", "11")
    result = run("--file", written(tmp_path, "\n".join(asked)), *drawing, "--jobs", 4)
    options = GenerationConfig(temperature=1.2, seed=11)
    alone = [World()().complete(question, options).text for question in asked]
    assert [answer["text"] for answer in lines(result.stdout)] == alone
    other = World()().complete(asked[0], options.model_copy(update={"seed": 12})).text
    assert other != alone[0], "the models draw"


def test_options_hold_for_every_question(world: World, questions: Path) -> None:
    answers = lines(run("--file", questions, "--max-tokens", "2", "--lookahead", "3").stdout)
    assert {a["finish_reason"] for a in answers} == {"length"}
    assert [a["tokens"] for a in answers] == [2, 2, 2]
    assert world.loaded[0].config == EnsembleConfig(lookahead=3)


def test_json_tells_everything_of_every_answer(world: World, questions: Path) -> None:
    (answer, *_) = lines(run("--file", questions, "--json").stdout)
    alone = World()().complete("one").to_dict()
    assert answer["pieces"] == alone["pieces"] and answer["text"] == alone["text"]
    assert answer["statistics"].keys() == alone["statistics"].keys()
    assert answer["tokens"] == alone["statistics"]["tokens"]


def test_reasoning_stays_apart(world: World, questions: Path) -> None:
    answers = lines(run("--file", questions, "--reasoning", 3, "--max-tokens", 40).stdout)
    assert all(answer["reasoning"] for answer in answers)
    assert [answer["line"] for answer in answers] == [1, 3, 4]


def test_an_answer_that_was_cut_is_reported_as_one_alone_is(world: World, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    file, schema = written(tmp_path, "json please\n"), tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    asked = ("--json-schema", schema, "--max-tokens", 28)
    alone = run("json please", *asked)
    result = run("--file", file, *asked)
    (answer,) = lines(result.stdout)
    assert (alone.exit_code, result.exit_code) == (1, 1)
    assert answer["text"] == alone.stdout.strip() and answer["finish_reason"] == "length"
    assert answer["error"]["type"] == "IncompleteAnswerError"
    assert f"error: {answer['error']['message']}" in alone.stderr
    (allowed,) = lines(run("--file", file, *asked, "--on-length", "close").stdout)
    assert "error" not in allowed and allowed["cut"] == answer["cut"] != []
    (whole,) = lines(run("--file", file, "--json-schema", schema).stdout)
    assert json.loads(whole["text"]) == json.loads(JSON) and "cut" not in whole
    stopped = ("--json-schema", schema, "--stop", "Par")
    (cut,) = lines(run("--file", file, *stopped).stdout)
    assert cut["error"]["type"] == "IncompleteAnswerError"
    assert run("json please", *stopped).exit_code == 1


# Questions


def test_lines_may_be_objects(world: World, tmp_path: Path) -> None:
    objects: list[Any] = [
        {"id": "a", "prompt": "two\nlines"},
        {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi"}]},
    ]
    text = "".join(json.dumps(thing) + "\r\n" for thing in objects)
    answers = lines(run("--file", written(tmp_path, text), "--system", "brief").stdout)
    assert [answer["question"] for answer in answers] == objects
    assert [answer["text"].removeprefix("answer to ") for answer in answers] == [
        "brief / two\nlines",
        "own / hi",
        "brief / hi",
    ]


def test_text_is_taken_as_it_is(world: World, tmp_path: Path) -> None:
    asked = ["\u2028你好 ", '"quoted"', "-", "[1]", "\x85\x7f"]
    text = "\ufeff" + "\n".join(asked)
    result = run("--file", written(tmp_path, text))
    assert [answer["question"] for answer in lines(result.stdout)] == asked
    assert [answer["text"] for answer in lines(result.stdout)] == [f"answer to {a}" for a in asked]
    assert len(result.stdout.splitlines()) == 5 and "\x7f" not in result.stdout


def test_a_dash_reads_stdin(world: World) -> None:
    answers = lines(run("--file", "-", stdin="one\ntwo").stdout)
    assert [answer["text"] for answer in answers] == ["answer to one", "answer to two"]


BAD: dict[str, str] = {
    "bad": "GenerationError",
    "long " * 80: "ContextWindowError",
    "{broken": "InvalidArgumentError",
    '{"text": "hi"}': "InvalidArgumentError",
    '{"prompt": ""}': "InvalidArgumentError",
    '{"prompt": 1}': "InvalidArgumentError",
    '{"prompt": "a", "messages": []}': "InvalidArgumentError",
    '{"messages": []}': "InvalidArgumentError",
    '{"messages": 1}': "InvalidArgumentError",
    '{"messages": [{"role": "nobody", "content": "x"}]}': "InvalidArgumentError",
    '{"prompt": "\\ud800"}': "InvalidArgumentError",
    '{"prompt": "a", "id": NaN}': "InvalidArgumentError",
    '{"a":' * 100_000: "InvalidArgumentError",
}


def test_a_bad_question_stops_no_other(world: World, tmp_path: Path) -> None:
    file = written(tmp_path, "\n".join(["one", *BAD, "two"]))
    result = run("--file", file, "--jobs", 3)
    first, *failed, last = lines(result.stdout)
    assert [answer["error"]["type"] for answer in failed] == list(BAD.values())
    assert all(answer["error"]["message"] for answer in failed)
    assert {(a["text"], a["finish_reason"], a["tokens"]) for a in failed} == {(None, None, None)}
    assert [first["text"], last["text"]] == ["answer to one", "answer to two"]
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert f"error: {len(BAD)} of {len(BAD) + 2} questions failed" in result.stderr
    assert all(session.closed for session in world.sessions)


def test_what_is_wrong_with_the_options_is_told_once(world: World, questions: Path) -> None:
    result = run("--file", questions, "--system", "long " * 80)
    assert result.exit_code == 1 and result.stdout == ""
    assert "context window" in result.stderr and world.asked == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--file", "{folder}/none.txt"], "No such file"),
        (["--file", "{folder}"], "Is a directory"),
        (["--file", "{folder}/latin.txt"], "not UTF-8: invalid continuation byte in line 2"),
        (["--file", "{folder}/blank.txt"], "no question"),
        (["--file", "{folder}/questions.txt", "--jobs", "0"], "--jobs"),
        (["--file", "{folder}/questions.txt", "--jobs", "some"], "--jobs"),
        (["--file", "{folder}/questions.txt", "hi"], "not both"),
        (["--file", "{folder}/questions.txt", "--output", "{folder}"], "Is a directory"),
        (["--file", "{folder}/questions.txt", "--output", "{folder}/no/a"], "No such file"),
        (["--file", "{folder}/questions.txt", "--output", "{folder}/questions.txt"], "no answer"),
        (["hi", "--jobs", "2"], "--file"),
        (["hi", "--output", "{folder}/a.jsonl"], "--file"),
        ([], "--file"),
    ],
    ids=str,
)
def test_bad_usage_loads_nothing(
    world: World, questions: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("ä\nqué\n".encode()[:-3] + b"\xe9 hi\n")
    (tmp_path / "blank.txt").write_text("\n \r\n\t\n")
    result = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == 2 and told in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert world.loaded == [] and questions.read_text() == "one\n\ntwo\nthree\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk here")
def test_a_full_disk_stops_everything(world: World, questions: Path) -> None:
    result = run("--file", questions, "--output", "/dev/full", "--jobs", 1)
    assert result.exit_code == 2 and "error: --output='/dev/full'" in result.stderr
    assert set(world.asked) == {"one"}


# Going on


def test_what_is_answered_is_not_asked_again(world: World, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    run("--file", written(tmp_path, "one\ntwo\n"), "--output", output)
    before = output.read_bytes()
    world.asked.clear()
    result = run("--file", written(tmp_path, "one\ntwo\n\nthree\n"), "--output", output)
    assert result.exit_code == 0 and "2 of 3 are answered" in result.stderr
    assert set(world.asked) == {"three"}
    assert output.read_bytes().startswith(before) and len(lines(output)) == 3
    again = run("--file", tmp_path / "questions.txt", "--output", output)
    assert again.exit_code == 0 and "3 of 3 are answered" in again.stderr
    assert len(world.loaded) == 2 and len(lines(output)) == 3


def test_errors_are_tried_again(world: World, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    run("--file", written(tmp_path, 'one\nbad\n{"prompt":\ntwo\n'), "--output", output)
    assert ["error" in answer for answer in lines(output)] == [False, True, True, False]
    output.chmod(0o640)
    world.asked.clear()
    file = written(tmp_path, 'one\nbad\n{"prompt": "three"}\ntwo\n')
    assert run("--file", file, "--output", output).exit_code == 1
    assert set(world.asked) == {"bad", "three"}
    assert ["error" in answer for answer in lines(output)] == [False, True, False, False]
    assert output.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "questions.txt"]


@pytest.mark.parametrize("left", [1, 5, 30, -2, -1])
def test_an_answer_that_was_half_written_is_written_again(
    world: World, questions: Path, tmp_path: Path, left: int
) -> None:
    output = tmp_path / "a.jsonl"
    run("--file", questions, "--output", output, "--jobs", 1)
    one, two, three = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(one + two + three[:left])
    world.asked.clear()
    assert run("--file", questions, "--output", output).exit_code == 0
    assert set(world.asked) == {"three"}
    assert [a["text"].split()[-1] for a in lines(output)] == ["one", "two", "three"]


def test_the_order_of_keys_and_the_last_newline_do_not_matter(world: World, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    file = written(tmp_path, '{"prompt": "one", "id": 1}\ntwo\n')
    run("--file", file, "--output", output)
    answers = lines(output)
    output.write_text("\n".join(json.dumps(a, sort_keys=True) for a in answers))
    written(tmp_path, '{"id": 1, "prompt": "one"}\ntwo\nthree\n')
    world.asked.clear()
    assert run("--file", file, "--output", output).exit_code == 0
    assert set(world.asked) == {"three"} and len(lines(output)) == 3


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("one\ntwo\nthree\n", "line 2 answers another question than line 3 asks"),
        ("one\n", "answers another question"),
        ("one\n\ntwo\nthree and more\n", "answers another question than line 4 asks"),
    ],
)
def test_answers_to_other_questions_are_left_alone(
    world: World, questions: Path, tmp_path: Path, other: str, told: str
) -> None:
    output = tmp_path / "a.jsonl"
    run("--file", questions, "--output", output, "--jobs", 1)
    before = output.read_bytes()
    result = run("--file", written(tmp_path, other), "--output", output)
    assert result.exit_code == 2 and told in result.stderr and "another file" in result.stderr
    assert output.read_bytes() == before and len(world.loaded) == 1


@pytest.mark.parametrize("content", [b"notes", b"{}\n", b'{"line": 1}\n', b"\xff\xfe\n", b"[1]\n"])
def test_a_file_of_something_else_is_left_alone(
    world: World, questions: Path, tmp_path: Path, content: bytes
) -> None:
    output = tmp_path / "notes"
    output.write_bytes(content)
    result = run("--file", questions, "--output", output)
    assert result.exit_code == 2 and "line 1 is no answer" in result.stderr
    assert output.read_bytes() == content


# Stopping


def test_control_c_keeps_what_is_finished(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that would never end is cancelled, and what waits is not begun."""
    output = tmp_path / "a.jsonl"
    file = written(tmp_path, "one\nendless\nthree\nendless\nendless\nfive\n")
    # a shell that starts the tests in the background has told them to ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    sent = [0.0]

    def interrupt(asked: str, written: bytes) -> None:
        done = output.exists() and output.read_bytes().count(b"\n") == 2
        # again where Python has dropped it: it does where a callback of the garbage collector runs
        if asked == "endless" and done and time.monotonic() - sent[0] > 0.2:
            sent[0] = time.monotonic()
            signal.pthread_kill(main, signal.SIGINT)

    world.hook, world.window = interrupt, 10**6  # it never ends
    arguments = ("--file", file, "--output", output, "--jobs", 2, "--max-tokens", 10**6)
    try:
        result = run(*arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "2 answered" in result.stderr and result.stderr.endswith("stopped\n")
    assert "Traceback" not in result.stderr
    assert [answer["question"] for answer in lines(output)] == ["one", "three"]
    assert "five" not in world.asked
    assert all(session.closed for session in world.sessions)
    assert not [t for t in threading.enumerate() if t.name.startswith("safe-answer")]


def test_threads_end_with_the_first_error() -> None:
    begun: list[int] = []

    def work(item: int, stopped: Callable[[], bool]) -> None:
        begun.append(item)
        if item == 1:
            raise OSError("full")
        while not stopped():
            time.sleep(0.001)

    with pytest.raises(OSError, match="full"):
        in_threads(work, range(100), 3)
    assert sorted(begun) in ([0, 1], [0, 1, 2])


# Progress


def test_no_bar_where_stderr_is_no_terminal(world: World, questions: Path, tmp_path: Path) -> None:
    told = run("--file", questions, "--output", tmp_path / "a.jsonl").stderr
    assert "\x1b" not in told and "━" not in told and "3/3" not in told


@pytest.mark.parametrize("quiet", [False, True])
def test_the_bar_is_on_stderr_and_leaves_stdout_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    terminal = StringIO()
    console = Console(file=terminal, force_terminal=True, stderr=True)
    monkeypatch.setattr(render, "err", lambda: console)
    result = run("--file", written(tmp_path, "one\nbad\ntwo\n"), *(["--quiet"] if quiet else []))
    assert len(lines(result.stdout)) == 3
    shown = terminal.getvalue()
    assert ("3/3 answers" in shown, "1 failed" in shown) == (not quiet, not quiet)
