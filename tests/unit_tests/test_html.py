"""The notebook view: safe to embed, complete, and readable where half characters meet."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from safe_integrations.engine.events import (
    Candidate,
    ModelStatistics,
    Piece,
    Statistics,
    Verdict,
    Vote,
)
from safe_integrations.engine.tokens import END
from safe_integrations.report.characters import CharacterReader, characters
from safe_integrations.report.result import Result

VOTES = (
    Vote("org/drafter", (b" cat",), 0.25, b" <dog>", 0.5),
    Vote("org/verifier", (b" c",), 0.125, b"\xf0\x9f", 0.75),
)
CANDIDATES = (
    Candidate(b" <dog>", 0.625, (0.5, 0.75)),
    Candidate(b" cat", 0.25, (0.25, 0.25)),
    Candidate(END, 0.125, (0.25, 0.0)),
)


def pieces_of(*tokens: tuple[bytes, Verdict]) -> tuple[Piece, ...]:
    """Pieces that follow each other; ensembled ones have candidates."""
    pieces: list[Piece] = []
    at = 0
    for token, verdict in tokens:
        end = at + (0 if token == END else len(token))
        piece = Piece(at, end, token, token, verdict)
        if piece.ensembled:
            piece = Piece(at, end, token, b" cat", verdict, VOTES, CANDIDATES)
        pieces.append(piece)
        at = end
    return tuple(pieces)


def result_of(pieces: tuple[Piece, ...], text: str | None = None) -> Result:
    """A finished answer of two models."""
    written = b"".join(p.written for p in pieces if p.written != END)
    models = [ModelStatistics("org/drafter", 3, 1, 5, 7, 0.5), ModelStatistics("org/verifier", 4)]
    return Result(
        written.decode() if text is None else text,
        "stop",
        Statistics(tokens=len(pieces), judged=len(pieces), seconds=1.0, models=models),
        pieces,
    )


def html_of(result: Result) -> str:
    """What a notebook asks for."""
    return result._repr_html_()


class _Reader(HTMLParser):
    """Collects the visible text of the answer, the tooltips, tags and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[tuple[str, str]] = []
        self.answer = ""
        self.tips: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.open.append((tag, dict(attrs).get("class") or ""))
        if "safe-tip" in self.open[-1][1]:
            assert ("hidden", None) in attrs
            self.tips.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [name for _, name in self.open]
        if any("safe-tip" in name for name in inside):
            self.tips[-1] += data
        elif "safe-text" in inside:
            self.answer += data


def read(html: str) -> _Reader:
    """Parses; every tag must be closed in order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


V = Verdict
ANSWERS = {
    "plain": pieces_of((b"A", V.UNANIMOUS), (b" cat", V.CHANGED), (b".", V.CONFIRMED)),
    "markup": pieces_of((b"<b>&amp;", V.CHANGED), (b'"</div><script>', V.UNSAFE)),
    "emoji": pieces_of((b" \xf0", V.CHANGED), (b"\x9f\x98", V.UNANIMOUS), (b"\x80!", V.UNSAFE)),
    "chinese": pieces_of(
        ("你好".encode(), V.MAJORITY), (b"\xe4\xbd", V.UNSAFE), (b"\xa0", V.CONFIRMED)
    ),
    "combining": pieces_of((b"e", V.UNANIMOUS), ("\u0301".encode(), V.CHANGED)),
    "newlines": pieces_of((b"a\n\n", V.CONFIRMED), (b"\n", V.CHANGED), (b"  b", V.UNVERIFIED)),
    "end": pieces_of((b"Yes", V.UNANIMOUS), (END, V.CHANGED)),
    "empty": (),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_character_is_shown_exactly_once(name: str) -> None:
    result = result_of(ANSWERS[name])
    assert read(html_of(result)).answer == result.text


@pytest.mark.parametrize("name", ANSWERS)
def test_characters_join_to_the_text_and_name_every_piece(name: str) -> None:
    pieces = ANSWERS[name]
    found = list(characters(pieces, result_of(pieces).text))
    assert "".join(part.text for part in found) == result_of(pieces).text
    assert {id(p) for part in found for p in part.pieces} == {id(p) for p in pieces}


def test_a_shared_character_names_all_its_pieces_and_the_loudest_verdict() -> None:
    found = list(characters(ANSWERS["emoji"], " 😀!"))
    assert [(s.text, len(s.pieces), s.verdict) for s in found] == [
        (" ", 1, V.CHANGED),
        ("😀!", 3, V.CHANGED),
    ]


def test_characters_come_as_soon_as_they_are_whole() -> None:
    reader = CharacterReader()
    first, second, third = ANSWERS["emoji"]
    assert reader.push(first).text == " "  # type: ignore[union-attr]
    assert reader.push(second) is None
    assert reader.push(third).text == "😀!"  # type: ignore[union-attr]


def test_nothing_of_the_answer_becomes_markup() -> None:
    reader = read(html_of(result_of(ANSWERS["markup"])))
    assert reader.tags <= {
        *("div", "style", "span", "mark", "u", "b", "i", "code"),
        *("table", "tr", "th", "td"),
    }
    assert not {name for name, _ in reader.attributes} & {"src", "href", "onclick", "onerror"}


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = html_of(result_of(ANSWERS["plain"]))
    assert "url(" not in html and "http" not in html and "@import" not in html


def test_every_style_rule_is_scoped() -> None:
    style = re.search("<style>(.*?)</style>", html_of(result_of(())), re.DOTALL)
    assert style is not None
    selectors = [rule.rpartition("}")[2].strip() for rule in style[1].split("{")[:-1]]
    assert all(s.startswith(".safe-answer") for s in selectors if s)


def test_a_tooltip_tells_votes_and_candidates() -> None:
    changed = pieces_of((b" <dog>", V.CHANGED))
    (tip,) = read(html_of(result_of(changed))).tips
    for told in (
        *("changed", "␣cat", "␣<dog>", "drafter", "verifier", "25.0%", "50.0%", "12.5%", "75.0%"),
        *("62.5%", "end", "\\xf0\\x9f"),
    ):
        assert told in tip


def test_a_tooltip_tells_each_models_own_tokens_of_a_unit() -> None:
    """A unit may be several tokens, and each model has its own: they must be told apart."""
    votes = (
        Vote("org/drafter", (b" ca", b"ts"), 0.25, b" cap", 0.5),
        Vote("org/verifier", (b" cats",), 0.125, b" dogs", 0.75),
        Vote("third", (END,), 0.5, END, 0.5),
    )
    candidates = (
        Candidate(b" dogs", 0.5, (0.375, 0.75), ((b" dog", b"s"), (b" dogs",))),
        Candidate(b" caps", 0.25, (0.5, 0.0), ((b" cap", b"s"), (b" caps",))),
    )
    piece = Piece(0, 5, b" dogs", b" cats", V.CHANGED, votes, candidates, drawn="org/<b>")
    html = html_of(result_of((piece,)))
    (tip,) = read(html).tips
    assert "(renormalised)" not in tip and "(drawn: <b>)" in tip
    for cells in (
        ["drafter", "<code>␣ca</code><code>ts</code>", "25.0%", "<code>␣cap</code>", "50.0%"],
        ["verifier", "<code>␣cats</code>", "12.5%", "<code>␣dogs</code>", "75.0%"],
        ["third", "<i>end</i>", "50.0%", "<i>end</i>", "50.0%"],
        ["<code>␣dogs</code>", "50.0%", "<code>␣dog</code><code>s</code> 37.5%", "75.0%"],
        ["<code>␣caps</code>", "25.0%", "<code>␣cap</code><code>s</code> 50.0%", "0.0%"],
    ):
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in html
    assert ".safe-answer code+code{margin-left:" in html


def test_ensembled_pieces_can_be_reached_with_the_keyboard() -> None:
    html = html_of(result_of(ANSWERS["plain"]))
    assert html.count('tabindex="0"') == 2


def test_every_candidate_that_an_answer_holds_is_shown() -> None:
    """A limit of the drawing's own hid some and counted those that the engine had left out."""
    several = tuple(Candidate(b"c%d" % i, 0.01, (0.01, 0.01)) for i in range(8))
    piece = Piece(0, 2, b"c0", b"x", V.CHANGED, VOTES, several)
    (tip,) = read(html_of(result_of((piece,)))).tips
    assert [f"c{i}" in tip for i in range(8)] == [True] * 8


def test_text_cut_by_a_stop_string_stays_cut() -> None:
    pieces = pieces_of((b"one ", V.UNANIMOUS), (b"two STOP three", V.CONFIRMED))
    assert read(html_of(result_of(pieces, "one two "))).answer == "one two "


def test_control_characters_are_made_visible() -> None:
    pieces = pieces_of((b"a\x00\x1b[31m\r", V.UNANIMOUS))
    assert read(html_of(result_of(pieces))).answer == "a␀␛[31m␍"


def test_the_numbers_of_every_model_are_told() -> None:
    told = unescape(html_of(result_of(ANSWERS["plain"])))
    row = "<td>org/drafter</td><td>3 (1 reused)</td><td>5</td><td>7</td><td>0.50</td>"
    assert row in told and "<td>org/verifier</td><td>4</td>" in told
