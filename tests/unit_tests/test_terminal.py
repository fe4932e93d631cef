"""Answers on a terminal: the text as it is, coloured where it was ensembled."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Candidate, Piece, TextDelta, Verdict, Verified, Vote
from safe_integrations.report.characters import characters
from safe_integrations.report.result import Result
from safe_integrations.report.terminal import (
    Painter,
    ensemble_line,
    key,
    legend,
    model_table,
    painted,
    round_line,
)
from safe_integrations.report.verdicts import LOOKS
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

TEXT = "Paris 🗼, 你好.\n\nNon, e\u0301."
OTHER = "Paris 🗼, 您好.\n\nOui, e\u0301."


def engine(**config: Any) -> SafeEngine:
    """Two models that disagree a little; tokens end inside characters."""

    def wavering(text: bytes) -> Mapping[bytes, float]:
        following = next(iter(follows(OTHER.encode())(text)))
        other = 0.35 if len(text) % 5 == 1 else 0.05
        return {following: 1 - 2 * other, b"x": other, b"y": other}

    vocabulary = [b"Paris", b" ", b"\xf0\x9f"]
    drafter = ScriptedMember("drafter", vocabulary, follows(TEXT.encode(), sure=0.6))
    verifier = ScriptedMember("verifier", vocabulary, wavering)
    return SafeEngine(drafter, [verifier], EnsembleConfig(**config))


def styles(text: Text) -> list[str]:
    """The style of every character."""
    found = [""] * len(text.plain)
    for span in text.spans:
        found[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return found


@pytest.mark.parametrize("stop", ["e\u0301", "zzz", "好"])
def test_painted_deltas_are_the_painted_answer(stop: str) -> None:
    """Text arrives later than the verdicts on it, and a stop string holds it back longer still."""
    painter, shown, looks = Painter(), "", []
    events = list(engine().generate("hi", GenerationConfig(stop=stop)))
    for event in events:
        if isinstance(event, Verified):
            painter.add(event.pieces)
        if isinstance(event, TextDelta):
            text = painter.paint(event.text)
            assert text.plain == event.text
            shown += text.plain
            looks += styles(text)
    result = Result.of(events)
    expected = [
        LOOKS[part.verdict].style
        for part in characters(result.pieces, result.text)
        for _ in part.text
    ]
    assert shown == result.text == painted(result).plain
    assert looks == expected == styles(painted(result))
    assert {LOOKS[Verdict.CONFIRMED].style, LOOKS[Verdict.CHANGED].style, ""} <= set(looks)


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    """Also the controls above ASCII: \\x9b begins a sequence as ESC [ does."""
    assert Painter().paint("a\x1b[2J\tb\n\x9b2J\x7f").plain == "a␛[2J\tb\n�2J␡"


@pytest.mark.parametrize(
    ("mode", "words"),
    [("safe", "Ensembled at"), ("drafter-only", "wrote this alone")],
)
@pytest.mark.parametrize("colours", [False, True])
def test_the_legend_says_it_in_words(mode: str, words: str, colours: bool) -> None:
    result = engine(mode=mode).complete("hi")
    console = Console(file=io.StringIO(), force_terminal=colours, color_system="truecolor")
    line = legend(result.statistics, console)
    assert words in line.plain
    assert any(styles(line)) == (colours and mode == "safe")


def test_the_key_names_every_colour() -> None:
    assert {style for style in styles(key()) if style} == {
        look.style for look in LOOKS.values() if look.style
    }


def test_a_table_tells_the_numbers_of_every_model() -> None:
    statistics = engine().complete("hi").statistics
    console = Console(file=io.StringIO(), width=100)
    console.print(model_table(statistics))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for role, line, model in zip(
        ("drafter", "verifier"), lines[1:], statistics.models, strict=False
    ):
        assert line.split()[:5] == [
            *(role, model.name, str(model.prompt_tokens)),
            *(str(model.forward_passes), str(model.forwarded_tokens)),
        ]
    assert lines[3].split()[:3] == ["outside", "the", "models"] and "total" in lines[4]


def test_an_ensemble_names_draft_winner_and_runners_up() -> None:
    votes = (Vote("org/a", (b"x",), 0.5, b"x", 0.5), Vote("b", (b"y",), 0.5, b"y", 0.5))
    shares = ((b"y\n", 0.5, 0.4), (b"x", 0.25, 0.2), (b"\xf0", 0.125, 0.1), (b"z", 0.1, 0.1))
    candidates = tuple(Candidate(symbol, p, (p, q)) for symbol, p, q in shares)
    piece = Piece(0, 2, b"y\n", b"x", Verdict.CHANGED, votes, candidates)
    told = ensemble_line(piece).plain
    assert told == "↳ “x” → “y⏎”  50% (a 50%, b 40%)  before “x” 25%, “\\xf0” 12%"
    drawn = replace(piece, votes=(), candidates=(), drawn="org/b")
    assert ensemble_line(drawn).plain == "↳ “x” → “y⏎”  drawn: b"
    alone = Piece(0, 2, b"y\n", b"y\n", Verdict.CONFIRMED, (), candidates[:1])
    assert ensemble_line(alone).plain == "↳ “y⏎” confirmed  50% (50%, 40%)"


def test_a_round_is_one_line() -> None:
    piece = Piece(0, 2, b"a\n", b"a\n", Verdict.UNSAFE)
    assert round_line([piece], 3).plain == "a⏎  3 drafted dropped"
    assert round_line([], 0).plain == "waiting for more text"
