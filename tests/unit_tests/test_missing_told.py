"""A model that is lost is told of by everything that tells of an answer."""

from __future__ import annotations

import importlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest
from elsewhere import RemoteMember
from failing import Server, engine_of, served
from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from typer.testing import CliRunner

from safe_integrations import langchain, llama_index
from safe_integrations.cli.app import app
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Event,
    Finished,
    ModelLost,
    Piece,
    Reasoned,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.langchain import ChatSafe, SafeTraceHandler
from safe_integrations.llama_index import SafeEvent, SafeLLM, SafeModelLost
from safe_integrations.report import payloads, tracing
from safe_integrations.report.result import Result, read_result
from safe_integrations.report.verdicts import present
from safe_integrations.safe_engine import SafeEngine

DOCS = Path(__file__).parents[2] / "docs"
PIECE = Piece(0, 1, b"a", b"a", Verdict.CONFIRMED)
LOST = ModelLost(2, "org/<v>", 7, "v: the connection\x1b was closed")
EVENTS: Sequence[Event] = (
    Drafted(1, 0, (b"a",)),
    LOST,
    Verified(1, (PIECE,), 0, 0),
    Ensembled(1, PIECE),
    TextDelta("a"),
    Finished("stop", 1, Statistics()),
    Reasoned(LOST),
)
UNTOLD = {Drafted, TextDelta}
"""Of these, frameworks are told by the text and the rounds alone."""


# All events


def test_every_event_is_told_or_is_in_the_text() -> None:
    """An event that was added and that no framework is told of would not be missed otherwise."""
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert {type(event) for event in EVENTS if payloads.reported(event) is None} == UNTOLD
    for event in EVENTS:
        if type(event) not in {*UNTOLD, Finished, Reasoned}:
            found = payloads.reported(Reasoned(event))
            assert found is not None and found[1]["reasoning"] is True


def test_every_event_that_is_told_has_a_name_in_the_documentation_and_in_llama_index() -> None:
    table = (DOCS / "events.md").read_text().split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(safe_\w+)` .*`(Safe\w+)` \|$", table, re.M))
    told = {found[0] for event in EVENTS if (found := payloads.reported(event))}
    assert told < rows.keys() and len(rows) == len(told) + 1  # the first is no event of the engine
    assert set(rows.values()) == {kind.__name__ for kind in SafeEvent.__subclasses__()}
    assert set(rows.values()) <= set(llama_index.__all__)


def test_its_payload_is_documented() -> None:
    _, _, section = (DOCS / "events.md").read_text().partition("\n## `safe_model_lost`\n")
    section = section.split("\n## ")[0]
    assert payloads.model_lost(LOST).keys() == set(re.findall(r"^\| `(\w+)`", section, re.M))
    data = json.loads(json.dumps(payloads.model_lost(LOST)))
    assert payloads.load(ModelLost, data) == LOST


# Answers in which one of two verifiers is lost


@pytest.fixture
def servers() -> list[Server]:
    """The first of the verifiers is lost in the middle."""
    whole = served(float("inf"), float("inf"))
    engine_of(whole, unit="token", lookahead=3).complete("Go.")
    return served(whole[1].asked // 2, float("inf"))


def members(servers: Sequence[Server]) -> dict[str, Any]:
    drafter, *verifiers = map(RemoteMember, servers)  # type: ignore[arg-type]
    return {
        "drafter": drafter,
        "verifiers": verifiers,
        "unit": "token",
        "lookahead": 3,
        "on_missing": "continue",
    }


def events_of(servers: Sequence[Server]) -> list[Event]:
    config = {"unit": "token", "lookahead": 3, "on_missing": "continue"}
    return list(engine_of(servers, **config).generate("Go."))


def test_in_a_message_and_back(servers: list[Server]) -> None:
    """Behind the loss, votes and numbers are those of the others."""
    events = events_of(servers)
    result = Result.of(events)
    assert 0 < result.statistics.lost["v"] < len(result.text)
    names = [model.name for model in result.statistics.models]
    assert names == ["drafter", "v", "v#2"]
    rounds = [payloads.round_of(e, names) for e in events if isinstance(e, Verified)]
    (end,) = (payloads.generation_end(e) for e in events if isinstance(e, Finished))
    read = read_result(*json.loads(json.dumps([rounds, end])), ValueError())  # type: ignore[arg-type]
    assert read.statistics.lost == result.statistics.lost
    for piece, before in zip(read.pieces, result.pieces, strict=True):
        assert piece.verdict is before.verdict
        if before.ensembled:
            assert [v.model for v in piece.votes] == [v.model for v in before.votes]


def test_in_a_notebook(servers: list[Server]) -> None:
    """A table has a column for each model that gave it a number, and no other."""
    result = Result.of(events_of(servers))
    at = result.statistics.lost["v"]
    merged = [piece for piece in result.pieces if piece.candidates]
    widths = {len(p.candidates[0].by_model) for p in merged}
    assert widths == {3, 2}
    for piece in merged:
        assert len(present(result.statistics, piece.start)) == len(piece.candidates[0].by_model)
    html = result._repr_html_()
    for table in re.findall(r'<table class="safe-candidates">(.*?)</table>', html):
        head, *rows = re.findall(r"<tr>(.*?)</tr>", table)
        assert {head.count("<th>")} == {row.count("<td>") for row in rows}
        assert ("<th>v</th>" in head) == (head.count("<th>") == 5)
    assert f", without v from byte {at} on</div>" in html
    result.statistics.lost["org/<b>"] = 3
    assert "without &lt;b&gt; from byte 3 on" in result._repr_html_()


class Heard(BaseCallbackHandler):
    """Custom events."""

    def __init__(self) -> None:
        self.custom: list[tuple[str, Any]] = []

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.custom.append((name, data))


def test_in_langchain(servers: list[Server]) -> None:
    heard, console = Heard(), Console(file=io.StringIO(), width=160)
    model = ChatSafe(**members(servers), attach_rounds=True)
    message = model.invoke("Go.", {"callbacks": [heard, SafeTraceHandler(console)]})
    (data,) = (data for name, data in heard.custom if name == "safe_model_lost")
    assert (data["model"], data["version"]) == ("v", 2)
    lost = message.response_metadata["safe"][0]["lost"]
    assert lost == {"v": data["at"]}
    assert langchain.result_of(message).statistics.lost == lost
    names = [name for name, _ in heard.custom]
    assert names[names.index("safe_model_lost") + 1] == "safe_verification"
    lines = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✗ goes on without v: v: the connection was closed (status 502)" in lines
    assert f"without v from byte {data['at']} on" in lines.splitlines()[-1]


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    console = Console(file=io.StringIO(), width=160)
    handler = SafeTraceHandler(console)
    handler.on_custom_event(payloads.MODEL_LOST, payloads.model_lost(LOST), run_id=uuid4())
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert "goes on without <v>: v: the connection␛ was closed" in line


class Listener(BaseEventHandler):
    """Events of ours."""

    heard: list[Any] = []

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, SafeEvent):
            self.heard.append(event)


def test_in_llama_index(servers: list[Server]) -> None:
    listener, root = Listener(), get_dispatcher()
    root.add_event_handler(listener)
    try:
        response = SafeLLM(**members(servers), attach_rounds=True).complete("Go.")
    finally:
        root.event_handlers.remove(listener)
    (event,) = (e for e in listener.heard if isinstance(e, SafeModelLost))
    assert event.payload["model"] == "v"
    assert response.raw["safe"]["lost"] == {"v": event.payload["at"]}
    assert llama_index.result_of(response).statistics.lost == {"v": event.payload["at"]}


def test_in_a_span_however_many_events_there_are(servers: list[Server]) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider, max_events=0)
    try:
        span = tracing.generation_span("all", GenerationConfig())
        events = [Reasoned(LOST), *events_of(servers)]
        list(span.follow(event for event in events))
    finally:
        tracing.disable()
    (made,) = exporter.get_finished_spans()
    thought, told = (dict(event.attributes or {}) for event in made.events)
    assert {event.name for event in made.events} == {"safe.model_lost"}
    assert thought["safe.reasoning"] is True and thought["safe.at"] == 7
    assert (told["safe.model"], "safe.reasoning" in told) == ("v", False)
    assert "the connection was closed" in str(told["safe.reason"])
    attributes = dict(made.attributes or {})
    assert attributes["safe.lost"] == ("v",)
    assert attributes["safe.lost_at"] == (told["safe.at"],)
    documented = (DOCS / "tracing.md").read_text()
    for name in ("safe.lost", "safe.lost_at", "safe.model_lost"):
        assert f"`{name}`" in documented


@pytest.fixture
def loaded(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    """The command line loads these."""

    def load(drafter: Any, verifiers: Any, config: EnsembleConfig, **rest: Any) -> SafeEngine:
        return engine_of(servers, **config.model_dump(exclude_unset=True))

    loading = importlib.import_module("safe_integrations.safe_engine")
    monkeypatch.setattr(loading, "load_engine", load)
    monkeypatch.setenv("COLUMNS", "200")
    return servers


FLAGS = ("--unit", "token", "--lookahead", "3")
CONTINUE = ("--on-missing", "continue")


def test_on_the_command_line(loaded: list[Server], tmp_path: Path) -> None:
    asked = loaded[1].last
    told = CliRunner().invoke(app, ["generate", "Go.", *FLAGS, *CONTINUE])
    assert told.exit_code == 0
    assert "goes on without v: v: the connection was closed" in told.stderr
    assert "without v from byte" in told.stderr and "goes on" not in told.stdout
    for server in loaded:
        server.asked = 0
    quiet = CliRunner().invoke(app, ["generate", "Go.", *FLAGS, *CONTINUE, "--quiet"])
    assert (quiet.stdout, quiet.stderr) == (told.stdout, "")

    questions = tmp_path / "questions.txt"
    questions.write_text("Go.\n")
    loaded[1].asked, loaded[1].last = 0, asked
    many = CliRunner().invoke(app, ["generate", "--file", str(questions), *FLAGS, *CONTINUE])
    assert json.loads(many.stdout)["lost"].keys() == {"v"}
    loaded[1].last = float("inf")
    whole = CliRunner().invoke(app, ["generate", "--file", str(questions), *FLAGS, *CONTINUE])
    assert "lost" not in json.loads(whole.stdout)


def test_without_the_option_the_command_fails(loaded: list[Server]) -> None:
    told = CliRunner().invoke(app, ["generate", "Go.", *FLAGS])
    assert told.exit_code == 1
    assert "v: the connection was closed (status 502)" in told.stderr
