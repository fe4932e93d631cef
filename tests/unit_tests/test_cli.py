"""The command line, with scripted models and the real engine."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from safe_integrations.calls.forms import FORMS
from safe_integrations.cli import doctor
from safe_integrations.cli import options as cli_options
from safe_integrations.cli.app import app
from safe_integrations.cli.config_options import field_help
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError, ModelNotFoundError
from safe_integrations.evaluate.fit import SAMPLES
from safe_integrations.models import inspection
from safe_integrations.models.embedded import DEFAULT_DRAFTER, DEFAULT_VERIFIERS
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import ModelSpec
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

TEXT = "Paris 🗼, 你好.\n\nNon, e\u0301."
OTHER = "Paris 🗼, 您好.\n\nOui, e\u0301."


class Loader:
    """Stands in for `load_engine`; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, EnsembleConfig | None]] = []
        self.verifiers = [("verifier", OTHER, 0.95)]
        self.sessions_of: Callable[[], list[Any]] = list

    def __call__(
        self,
        drafter: Any = None,
        verifiers: Any = None,
        config: EnsembleConfig | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> SafeEngine:
        self.calls.append((drafter, verifiers, config))
        if on_progress is not None:
            on_progress("loading the drafter")
        members = [
            ScriptedMember(name, [b"Paris", b" ", b"\xf0\x9f"], follows(text.encode(), sure=sure))
            for name, text, sure in [("drafter", TEXT, 0.6), *self.verifiers]
        ]
        self.sessions_of = lambda: [s for m in members for s in m.sessions]
        return SafeEngine(members[0], members[1:], config)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Scripted models in place of real ones."""
    loading = importlib.import_module("safe_integrations.safe_engine")
    fake = Loader()
    monkeypatch.setattr(loading, "load_engine", fake)
    return fake


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal without surprises from the machine's own settings."""
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, stdin: str | bytes | None = None) -> Any:
    """Calls the command line as a user would."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def written() -> str:
    """What the two scripted models write together."""
    return Loader()().complete("hi").text


# generate


def test_stdout_is_the_answer_and_nothing_else(loader: Loader) -> None:
    result = run("generate", "hi")
    assert result.exit_code == 0
    assert result.stdout == written() + "\n"
    assert "Ensembled at" in result.stderr and "outside the models" in result.stderr


def test_the_summary_tells_the_numbers(loader: Loader) -> None:
    expected = Loader()().complete("hi").statistics
    told = run("generate", "hi").stderr
    assert f"{expected.tokens} tokens, {expected.ensembled_ratio:.1%} ensembled" in told
    assert f"{expected.acceptance:.1%} accepted, {expected.cycles} cycles" in told
    for model in expected.models:
        (row,) = (line for line in told.splitlines() if f"  {model.name}  " in line)
        assert row.split()[2:5] == [
            str(model.prompt_tokens), str(model.forward_passes), str(model.forwarded_tokens)
        ]  # fmt: skip


def test_quiet_leaves_stderr_empty(loader: Loader) -> None:
    assert run("generate", "hi", "--quiet").stderr == ""


def test_no_color_on_a_terminal_equals_the_text(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in run("generate", "hi").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("generate", "hi").stdout == written() + "\n"


def test_json_is_one_document_of_the_whole_result(loader: Loader) -> None:
    result = run("generate", "hi", "--json")
    document = json.loads(result.stdout)
    expected = Loader()().complete("hi").to_dict()
    assert document["text"] == expected["text"]
    assert document["pieces"] == expected["pieces"]
    assert document["statistics"].keys() == expected["statistics"].keys()
    assert document["finish_reason"] == "stop"


def test_a_dash_reads_stdin(loader: Loader) -> None:
    assert run("generate", "-", stdin="你好\n").stdout == written() + "\n"


def test_stdin_becomes_the_message_without_its_last_newline() -> None:
    assert run("generate", "-", stdin="").exit_code == 2


def test_stdin_that_is_not_text_is_refused(loader: Loader) -> None:
    result = run("generate", "-", stdin=b"\xff\xfe")
    assert result.exit_code == 2 and "UTF-8" in result.stderr


def test_the_system_message_comes_first() -> None:
    assert [m.role for m in cli_options.messages_of("hi", "be brief")] == ["system", "user"]


def test_options_reach_the_engine(loader: Loader) -> None:
    options = {
        "--lookahead": "3",
        "--unit": "token",
        "--method": "gac",
        "--weights": "0.75,0.25",
        "--mode": "every-token",
    }
    given = (x for pair in options.items() for x in pair)
    result = run("generate", "hi", *given, "--no-prompt-lookup")
    assert result.exit_code == 0
    assert loader.calls[0][2] == EnsembleConfig(
        lookahead=3,
        unit="token",
        method="gac",
        weights=(0.75, 0.25),
        mode="every-token",
        prompt_lookup=False,
    )


def test_options_of_a_server_stand_behind_a_question_mark() -> None:
    url = "http://h:1/v1?model=a/b+c%20d&tokenizer=../C++/x y&top_logprobs=5&request_timeout=2.5"
    (spec,) = cli_options.specs_of(url, None, "float32", "cpu")
    assert spec == ModelSpec(
        source="http://h:1/v1",
        model="a/b+c d",
        tokenizer="../C++/x y",
        top_logprobs=5,
        request_timeout=2.5,
    )


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("source=other", "source='other': say it once"),
        ("model=a&model=b", "model='b': say it once"),
        ("model", "model=''"),
        ("modle=a", "modle='a': there is no such option"),
        ("api%5Fkey=sesame", "api_key='...': set SAFE_INTEGRATIONS_API_KEY"),
    ],
)
def test_options_of_a_server_that_are_none(query: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(problem)) as caught:
        cli_options.specs_of(f"http://h:1/v1?{query}", None, None, None)
    assert "sesame" not in str(caught.value)


def test_without_options_the_models_own_defaults_hold(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[GenerationConfig] = []
    generate = SafeEngine.generate

    def spy(self: SafeEngine, messages: object, options: Any = None, **rest: Any) -> Any:
        seen.append(options)
        return generate(self, messages, options, **rest)

    monkeypatch.setattr(SafeEngine, "generate", spy)
    run("generate", "hi")
    assert loader.calls[0][2] == EnsembleConfig()
    assert seen == [GenerationConfig()]


def test_stop_strings_are_never_shown(loader: Loader) -> None:
    result = run("generate", "hi", "--stop", "好", "--stop", "zzz")
    assert result.stdout == written().partition("好")[0] + "\n"


def test_max_tokens_cuts(loader: Loader) -> None:
    assert run("generate", "hi", "--max-tokens", "1").stdout == "P\n"


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_help_lists_every_field(command: str) -> None:
    told = run(command, "--help").stdout
    fields = [*EnsembleConfig.model_fields, *GenerationConfig.model_fields]
    left_out = {*cli_options.WITHOUT, *(["mode"] if command == "compare" else [])}
    missing = [f for f in fields if f not in left_out and f"--{f.replace('_', '-')}" not in told]
    assert missing == []
    for option in ("--json-schema", "--regex", "--drafter", "--verifier", "--dtype", "--device"):
        assert option in told


def test_every_field_is_explained() -> None:
    for model in (EnsembleConfig, GenerationConfig):
        assert field_help(model).keys() == model.model_fields.keys()


# Errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", ""],
        ["generate", "hi", "--lookahead", "0"],
        ["generate", "hi", "--lookahead", "many"],
        ["generate", "hi", "--max-tokens", "-1"],
        ["generate", "hi", "--weights", "0.5,0.6"],
        ["generate", "hi", "--weights", "a,b"],
        ["generate", "hi", "--weights", "1"],
        ["generate", "hi", "--top-p", "0"],
        ["generate", "hi", "--stop", ""],
        ["generate", "hi", "--temperature", "nan"],
        ["generate", "hi", "--template-args", "[1]"],
        ["generate", "hi", "--template-args", "{"],
        ["generate", "hi", "--json-schema", "/nowhere/schema.json"],
        ["generate", "hi", "--no-such-option"],
        ["generate", "lone surrogate \udc80"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2_and_says_why_on_stderr(
    loader: Loader, arguments: list[str]
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == "" and result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_other_errors_of_the_package_exit_with_1(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **rest: Any) -> None:
        raise ModelNotFoundError("no model at nobody/nothing")

    monkeypatch.setattr("safe_integrations.safe_engine.load_engine", missing)
    for flags in ([], ["--json"]):
        result = run("generate", "hi", "--drafter", "nobody/nothing", *flags)
        assert result.exit_code == 1
        assert result.stdout == "" and result.stderr.endswith("error: no model at nobody/nothing\n")


def test_control_c_is_a_clean_stop(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, ids: Any, since: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safe_integrations.testing.ScriptedSession.score", interrupted)
    result = run("generate", "hi")
    assert result.exit_code == 130
    assert result.stderr.endswith("stopped\n") and "Traceback" not in result.stderr
    assert all(session.closed for session in loader.sessions_of())


# Models


def test_named_models_reach_the_loader(loader: Loader) -> None:
    run(
        *("generate", "hi", "--drafter", "org/a", "--verifier", "org/b:b.gguf"),
        *("--verifier", "c.gguf", "--dtype", "bfloat16", "--device", "cpu"),
    )
    here = {"dtype": "bfloat16", "device": "cpu"}
    drafter, verifiers, _ = loader.calls[0]
    assert drafter == ModelSpec(source="org/a", **here)
    assert verifiers == [
        ModelSpec(source="org/b", gguf_file="b.gguf", **here),
        ModelSpec(source="c.gguf", **here),
    ]


def test_a_drafter_named_alone_writes_alone(loader: Loader) -> None:
    run("generate", "hi", "--drafter", "org/a")
    assert loader.calls[0][:2] == (ModelSpec(source="org/a"), [])


def test_what_is_not_named_is_the_embedded_pair(loader: Loader) -> None:
    run("generate", "hi", "--verifier", "org/b")
    run("generate", "hi", "--dtype", "float32")
    run("generate", "hi")
    default = [ModelSpec(source=name) for name in (DEFAULT_DRAFTER, *DEFAULT_VERIFIERS)]
    assert [[drafter, *verifiers] for drafter, verifiers, _ in loader.calls] == [
        [default[0], ModelSpec(source="org/b")],
        [spec.model_copy(update={"dtype": "float32"}) for spec in default],
        default,
    ]


# compare


def test_compare_shows_three_answers_and_their_costs(loader: Loader) -> None:
    result = run("compare", "hi", "--max-tokens", "5")
    assert result.exit_code == 0
    for words in (
        "drafter alone",
        "every token ensembled",
        "SAFE",
        "forward passes",
        "ms per token",
    ):
        assert words in result.stdout
    assert result.stdout.splitlines()[0].count("╭") == 3
    assert "had read the prompt" in result.stderr


def test_compare_stacks_its_panels_where_the_terminal_is_narrow(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("compare", "hi").stdout.splitlines()
    assert lines[0].count("╭") == 1 and max(map(cell_len, lines)) <= 80


def test_compare_as_json(loader: Loader) -> None:
    document = json.loads(run("compare", "hi", "--json").stdout)
    runs = document["runs"]
    assert list(runs) == ["drafter-only", "every-token", "safe"]
    assert runs["drafter-only"]["text"] == TEXT and runs["safe"]["text"] == written()
    assert runs["drafter-only"]["slowdown"] == 1.0
    assert [len(r["statistics"]["models"]) for r in runs.values()] == [1, 2, 2]
    assert len(loader.calls) == 1, "the models are loaded once"


def test_compare_needs_somebody_to_compare_with(loader: Loader) -> None:
    loader.verifiers = []
    result = run("compare", "hi")
    assert result.exit_code == 2 and "--verifier" in result.stderr


# doctor


@pytest.fixture
def scripted_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter with words, a verifier with bytes, and a model that is not there."""

    def inspect(spec: ModelSpec, tell: Callable[[str], None]) -> ModelReport:
        if spec.source == "missing":
            return ModelReport("missing", problem="no such model")
        words = ["The", " quick", "人工"] if spec.source == "a" else []
        member = ScriptedMember(spec.source, [w.encode() for w in words], follows(b""))
        return ModelReport(
            spec.source, None, "/models", "float32", 4_000_000, 1_000, 512, member.tokens,
            FORMS["glm"] if spec.source == "a" else None,
            "its attention has sinks" if spec.source == "a" else None,
        )  # fmt: skip

    monkeypatch.setattr(inspection, "inspect_model", inspect)


def test_doctor_as_json(scripted_reports: None) -> None:
    result = run("doctor", "--drafter", "a", "--verifier", "b", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["packages"]["torch"] and set(doctor.EXTRAS) == report["extras"].keys()
    assert [m["role"] for m in report["models"]] == ["drafter", "verifier"]
    assert report["models"][1] == {
        "name": "b", "role": "verifier", "problem": None, "where": "/models", "dtype": "float32",
        "tokens": 257, "context_window": 512, "weight_bytes": 4_000_000, "kv_bytes": 1_000,
        "teaches": None, "takes_turns": None,
    }  # fmt: skip
    assert report["models"][0]["takes_turns"] == "its attention has sinks"
    assert report["models"][0]["teaches"] == "glm"
    assert report["tool_form"] == {"form": "hermes", "why": "a teaches glm, b teaches none"}
    assert report["memory"]["weight_bytes"] == 8_000_000 and report["memory"]["kv_bytes"] == 2_000
    (pair,) = report["pairs"]
    assert pair["samples"].keys() == {*SAMPLES, "all"}
    assert all(s["share"] == 1 for s in pair["samples"].values()), "bytes have every boundary"


def test_doctor_for_people(scripted_reports: None) -> None:
    result = run("doctor", "--drafter", "a", "--verifier", "b")
    assert result.exit_code == 0
    form = "form hermes: a teaches glm, b teaches none"
    for words in ("torch", "float32", "Places where b can check a", "Chinese", "8.0 MB", form):
        assert words in result.stdout
    assert "take turns at a: its attention has sinks" in result.stdout
    assert "share forward passes" not in result.stdout
    assert "share forward passes" in run("doctor", "--drafter", "b").stdout


def test_doctor_exits_with_1_where_a_model_cannot_be_used(scripted_reports: None) -> None:
    result = run("doctor", "--drafter", "a", "--verifier", "missing")
    assert result.exit_code == 1
    assert "missing cannot be used: no such model" in result.stdout


def test_doctor_tells_a_folder_that_holds_no_model(tmp_path: Any) -> None:
    pytest.importorskip("torch")
    result = run("doctor", "--drafter", str(tmp_path))
    assert result.exit_code == 1 and "config.json" in result.stdout


# Start


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys; from safe_integrations.cli.app import app; "
        "print(*({'torch', 'transformers', 'llguidance'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == ""


def test_version() -> None:
    from safe_integrations import __version__

    assert run("--version").stdout.strip() == __version__
