"""Every verdict is told by everything that tells of an answer."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
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
from safe_integrations.report.verdicts import LOOKS, loudest

DOCS = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
REFUSED = InvalidArgumentError("rounds", None, "cannot be read")


def answer(verdict: Verdict) -> list[Event]:
    """The events of an answer whose second token has a verdict."""
    votes = (Vote("one", (b"X",), 0.25, b"Y", 0.5), Vote("two", (b"Y",), 0.75, b"Y", 0.75))
    candidates = (Candidate(b"Y", 0.625, (0.5, 0.75)), Candidate(b"X", 0.125, (0.25, 0.0)))
    piece = Piece(2, 3, b"Y", b"X" if verdict is Verdict.CHANGED else b"Y", verdict)
    if piece.ensembled:
        piece = Piece(2, 3, piece.written, piece.proposed, verdict, votes, candidates)
    pieces = (Piece(0, 2, b"Ja", b"Ja", Verdict.UNANIMOUS), piece)
    statistics = Statistics(tokens=2, models=[ModelStatistics(name, 1) for name in ("one", "two")])
    events: list[Event] = [Drafted(1, 0, (b"Ja", b"X")), Verified(1, pieces, 0, 0)]
    events += [Ensembled(1, p) for p in pieces if p.ensembled]
    for event in events:
        statistics.add(event)
    return [*events, TextDelta("JaY"), Finished("stop", 3, statistics)]


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


@pytest.mark.parametrize("verdict", Verdict)
def test_in_a_notebook(verdict: Verdict) -> None:
    """`Result._repr_html_` raised KeyError for sampled answers and for structured ones."""
    html = Result.of(answer(verdict))._repr_html_()
    assert f'<{LOOKS[verdict].tag} class="safe-p safe-{verdict}"' in html
    assert f"<b>{LOOKS[verdict].words}" in html
    assert not LOOKS[verdict].css or f".safe-{verdict}.safe-p{{{LOOKS[verdict].css}}}" in html


@pytest.mark.parametrize("verdict", Verdict)
def test_on_a_terminal(verdict: Verdict) -> None:
    events = answer(verdict)
    look = LOOKS[verdict]
    painter = Painter()
    for event in events:
        if isinstance(event, Verified):
            painter.add(event.pieces)
    result = Result.of(events)
    for text in (painter.paint("JaY"), painted(result)):
        assert text.plain == "JaY"
        coloured = {text.plain[s.start : s.end]: s.style for s in text.spans if s.style}
        assert coloured == ({"Y": look.style} if look.style else {})
    assert not look.label or f" {look.label} " in key().plain
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    told = legend(result.statistics, console)
    assert [s.style for s in told.spans if s.style] == ([look.style] if look.label else [])


@pytest.mark.parametrize("verdict", Verdict)
def test_by_langchains_handler(verdict: Verdict) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    handler = SafeTraceHandler(console)
    run_id = uuid4()
    for event in answer(verdict):
        if isinstance(event, Verified):
            handler.on_custom_event(
                payloads.VERIFICATION, payloads.verification(event), run_id=run_id
            )
        elif isinstance(event, Ensembled):
            handler.on_custom_event(payloads.ENSEMBLE, payloads.ensemble(event), run_id=run_id)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in lines]
    assert plain[0] == "1 JaY"
    assert bool(LOOKS[verdict].style) == ("mY" in lines[0])
    assert plain[1:] == {
        Verdict.CONFIRMED: ["↳ “Y” confirmed  62% (one 50%, two 75%)  before “X” 12%"],
        Verdict.CHANGED: ["↳ “X” → “Y”  62% (one 50%, two 75%)  before “X” 12%"],
    }.get(verdict, [])


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.enable(provider)
    yield exporter
    tracing.disable()


@pytest.mark.parametrize("verdict", Verdict)
def test_in_a_span(verdict: Verdict, exporter: InMemorySpanExporter) -> None:
    events = (event for event in answer(verdict))
    list(tracing.generation_span("both", GenerationConfig()).follow(events))
    (span,) = exporter.get_finished_spans()
    told = [dict(event.attributes or {}) for event in span.events]
    assert told[0]["safe.verdicts"] == ("unanimous", str(verdict))
    assert [e["safe.verdict"] for e in told[1:]] == [str(verdict)] * (verdict in ENSEMBLED)
    attributes = dict(span.attributes or {})
    assert attributes["safe.unsafe"] == (verdict is Verdict.UNSAFE)
    assert attributes["safe.ensembled"] == (verdict in ENSEMBLED)


@pytest.mark.parametrize("verdict", Verdict)
def test_there_and_back_in_payloads_and_messages(verdict: Verdict) -> None:
    events = answer(verdict)
    result = Result.of(events)
    for piece in result.pieces:
        data = json.loads(json.dumps(payloads.dump(piece)))
        assert payloads.load(Piece, data) == piece
    rounds = [payloads.round_of(e, ["one", "two"]) for e in events if isinstance(e, Verified)]
    (end,) = (payloads.generation_end(e) for e in events if isinstance(e, Finished))
    assert read_result(*json.loads(json.dumps([rounds, end])), REFUSED) == result
    assert type(json.loads(json.dumps(rounds))[0][0][0]) is str
