"""Every verdict is told by everything that tells of an answer."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.events import (
    ENSEMBLED,
    Candidate,
    Drafted,
    Ensembled,
    Event,
    Finished,
    ModelStatistics,
    Piece,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
    Vote,
)
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.langchain import SafeTraceHandler
from safe_integrations.report import payloads, tracing
from safe_integrations.report.characters import Characters
from safe_integrations.report.result import Result, read_result
from safe_integrations.report.terminal import Painter, key, legend, painted
from safe_integrations.report.verdicts import LOOKS, loudest, words

DOCS = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
REFUSED = InvalidArgumentError("rounds", None, "cannot be read")


RULES = ("token", "text", "drawn")
"""How a piece is decided: `EnsembleConfig.unit`, or by drawing a model for a unit."""


def answer(verdict: Verdict, rule: str) -> list[Event]:
    """The events of an answer whose second piece has a verdict."""
    one, two = ((b"X",), (b"Y",)) if rule == "token" else ((b"X", b"X"), (b"XX",))
    was, now = (b"X", b"Y") if rule == "token" else (b"XX", b"YY")
    votes = (Vote("one", one, 0.25, now, 0.5), Vote("org/two", two, 0.75, now, 0.75))
    candidates = (Candidate(now, 0.625, (0.5, 0.75)), Candidate(was, 0.125, (0.25, 0.0)))
    if rule != "token":
        tokens = {b"YY": ((b"YY",), (b"Y", b"Y")), b"XX": (one, two)}
        candidates = tuple(replace(c, tokens=tokens[c.symbol]) for c in candidates)
    end = 2 + len(now)
    piece = Piece(2, end, now, was if verdict is Verdict.CHANGED else now, verdict)
    if rule == "drawn" and verdict in (Verdict.ACCEPTED, Verdict.CHANGED):
        piece = replace(piece, drawn="org/two")
    elif piece.ensembled:
        piece = replace(piece, votes=votes, candidates=candidates)
    pieces = (Piece(0, 2, b"Ja", b"Ja", Verdict.UNANIMOUS), piece)
    statistics = Statistics(
        tokens=2, models=[ModelStatistics(name, 1) for name in ("one", "org/two")]
    )
    events: list[Event] = [Drafted(1, 0, (b"Ja", b"X")), Verified(1, pieces, 0, 0)]
    events += [Ensembled(1, p) for p in pieces if p.ensembled]
    for event in events:
        statistics.add(event)
    return [*events, TextDelta(f"Ja{now.decode()}"), Finished("stop", end, statistics)]


def decided(test: Any) -> Any:
    """Runs a test for every verdict, by every rule."""
    return pytest.mark.parametrize("verdict", Verdict)(pytest.mark.parametrize("rule", RULES)(test))


def test_the_table_has_every_verdict() -> None:
    """A verdict that was added to the enum and not to the table broke the notebook's view."""
    assert LOOKS.keys() == set(Verdict)
    assert all(look.words for look in LOOKS.values())


def test_what_was_ensembled_is_louder_than_what_was_not_and_has_a_colour() -> None:
    """Where tokens share a character, a change must not hide behind a neighbour."""
    ranked = sorted(Verdict, key=list(LOOKS).index)
    assert ranked[-2:] == [Verdict.CONFIRMED, Verdict.CHANGED]
    for quiet, loud in zip(ranked, ranked[1:], strict=False):
        pieces = tuple(Piece(0, 1, b"a", b"a", v) for v in (loud, quiet))
        assert loudest([quiet, loud]) == Characters("a", pieces).verdict == loud
    for verdict in ENSEMBLED:
        look = LOOKS[verdict]
        assert look.label and look.style and look.css and look.tag != "span"


def test_a_colour_belongs_to_one_verdict() -> None:
    """Two of the same look could not be told apart, and none without a name for the legend."""
    for field in ("style", "css", "label"):
        used = [getattr(look, field) for look in LOOKS.values() if getattr(look, field)]
        assert len(used) == len(set(used)) == sum(bool(look.label) for look in LOOKS.values())


def test_the_documentation_says_what_the_drawings_say() -> None:
    table = DOCS.split("| Verdict | Meaning |")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M))
    assert rows == {str(verdict): look.words for verdict, look in LOOKS.items()}


@decided
def test_in_a_notebook(verdict: Verdict, rule: str) -> None:
    """`Result._repr_html_` raised KeyError for sampled answers and for structured ones."""
    result = Result.of(answer(verdict, rule))
    html = result._repr_html_()
    assert f'<{LOOKS[verdict].tag} class="safe-p safe-{verdict}"' in html
    title = html.rpartition('role="tooltip" hidden><b>')[2].partition("</b>")[0]
    assert title.startswith(words(result.pieces[1]))
    assert title.endswith("(drawn: two)") == (result.pieces[1].drawn is not None)
    assert not LOOKS[verdict].css or f".safe-{verdict}.safe-p{{{LOOKS[verdict].css}}}" in html


def test_an_accepted_token_was_not_drawn_by_another_model() -> None:
    """By the rule for tokens the drafter draws, and speculative sampling accepts."""
    piece = Piece(0, 1, b"a", b"a", Verdict.ACCEPTED)
    assert "speculative sampling" in words(piece)
    assert words(replace(piece, drawn="m")) == LOOKS[Verdict.ACCEPTED].words


@decided
def test_on_a_terminal(verdict: Verdict, rule: str) -> None:
    events = answer(verdict, rule)
    look = LOOKS[verdict]
    painter = Painter()
    for event in events:
        if isinstance(event, Verified):
            painter.add(event.pieces)
    result = Result.of(events)
    new = result.text.removeprefix("Ja")
    for text in (painter.paint(result.text), painted(result)):
        assert text.plain == result.text
        coloured = {text.plain[s.start : s.end]: s.style for s in text.spans if s.style}
        assert coloured == ({new: look.style} if look.style else {})
    assert not look.label or f" {look.label} " in key().plain
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    told = legend(result.statistics, console)
    assert [s.style for s in told.spans if s.style] == ([look.style] if look.label else [])


@decided
def test_by_langchains_handler(verdict: Verdict, rule: str) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    handler = SafeTraceHandler(console)
    run_id = uuid4()
    for event in answer(verdict, rule):
        if isinstance(event, Verified):
            handler.on_custom_event(
                payloads.VERIFICATION, payloads.verification(event), run_id=run_id
            )
        elif isinstance(event, Ensembled):
            handler.on_custom_event(payloads.ENSEMBLE, payloads.ensemble(event), run_id=run_id)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in lines]
    was, now = ("X", "Y") if rule == "token" else ("XX", "YY")
    assert plain[0] == f"1 Ja{now}"
    assert bool(LOOKS[verdict].style) == (f"m{now}" in lines[0])
    merged = f"62% (one 50%, two 75%)  before “{was}” 12%"
    told = {
        Verdict.CONFIRMED: f"↳ “{now}” confirmed  {merged}",
        Verdict.CHANGED: f"↳ “{was}” → “{now}”  {'drawn: two' if rule == 'drawn' else merged}",
    }
    assert plain[1:] == [told[v] for v in told if v is verdict]


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider)
    yield exporter
    tracing.disable()


@decided
def test_in_a_span(verdict: Verdict, rule: str, exporter: InMemorySpanExporter) -> None:
    events = (event for event in answer(verdict, rule))
    list(tracing.generation_span("both", GenerationConfig()).follow(events))
    (span,) = exporter.get_finished_spans()
    told = [dict(event.attributes or {}) for event in span.events]
    assert told[0]["safe.verdicts"] == ("unanimous", str(verdict))
    assert [e["safe.verdict"] for e in told[1:]] == [str(verdict)] * (verdict in ENSEMBLED)
    drawn = [e["safe.drawn"] for e in told[1:] if "safe.drawn" in e]
    assert drawn == ["org/two"] * (rule == "drawn" and verdict is Verdict.CHANGED)
    attributes = dict(span.attributes or {})
    assert attributes["safe.unsafe"] == (verdict is Verdict.UNSAFE)
    assert attributes["safe.ensembled"] == (verdict in ENSEMBLED)


@decided
def test_there_and_back_in_payloads_and_messages(verdict: Verdict, rule: str) -> None:
    events = answer(verdict, rule)
    result = Result.of(events)
    for piece in result.pieces:
        data = json.loads(json.dumps(payloads.dump(piece)))
        assert payloads.load(Piece, data) == piece
    rounds = [payloads.round_of(e, ["one", "org/two"]) for e in events if isinstance(e, Verified)]
    (end,) = (payloads.generation_end(e) for e in events if isinstance(e, Finished))
    assert read_result(*json.loads(json.dumps([rounds, end])), REFUSED) == result
    assert type(json.loads(json.dumps(rounds))[0][0][0]) is str
