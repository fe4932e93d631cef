"""Payloads are what docs/events.md says, and hold enough to put an answer together again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import World, configs, engine_of, options, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import (
    Candidate,
    Ensembled,
    Event,
    Finished,
    ModelStatistics,
    Piece,
    Statistics,
    Verdict,
    Verified,
    Vote,
)
from safe_integrations.engine.tokens import END
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.report import payloads
from safe_integrations.report.result import Result, read_result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import Script, ScriptedMember, follows

DOCS = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
TEXT = "Paris 🗼, 你好.\n<end>"
OTHER = "Paris 🗼, 您好.\n<end>"
REFUSED = InvalidArgumentError("rounds", None, "cannot be read")


def events(mode: Any = "safe", stop: str | None = None) -> list[Event]:
    drafter = ScriptedMember("drafter", [b"Par", b"is"], follows(TEXT.encode(), sure=0.6))
    verifier = ScriptedMember("verifier", [b"Pari"], follows(OTHER.encode(), sure=0.7))
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(mode=mode))
    return list(engine.generate("hi", GenerationConfig(stop=stop)))


def section(heading: str) -> set[str]:
    """The fields that the tables below a heading name."""
    body = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", body, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def keys(data: Any, prefix: str = "") -> Iterator[str]:
    """`a`, `b[].c`: every field of a payload."""
    for name, value in data.items():
        yield prefix + name
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from keys(value[0], f"{prefix}{name}[].")


def test_every_field_is_documented_and_the_other_way_round() -> None:
    happened = events()
    verified = [e for e in happened if isinstance(e, Verified)]
    ensembled = next(e for e in happened if isinstance(e, Ensembled))
    finished = next(e for e in happened if isinstance(e, Finished))
    start = payloads.generation_start(["a"], "safe", "text")
    assert set(keys(start)) == section("`safe_generation_start`")

    documented = section("`safe_verification`") - set(Verdict)
    got = set()
    for event in verified:
        for key in keys(payloads.verification(event)):
            got.add(key.rsplit("[].", 1)[-1])
        for piece in payloads.verification(event)["pieces"]:
            got |= piece.keys()
    assert got == documented
    assert set(Verdict) <= section("`safe_verification`")

    known = documented | section("`safe_ensemble`") - {"pieces", "pending", "dropped"}
    vote = {"model", "tokens", "probability", "best", "best_probability"}
    wanted = known - {"pieces", "pending", "dropped"} - vote
    data = payloads.ensemble(ensembled)
    assert {key for key in keys(data) if not key.startswith("votes[]")} == wanted
    assert set(keys(payloads.generation_end(finished))) == section("`safe_generation_end`")

    result = Result.of(happened).to_dict()
    assert result.keys() == {"text", "finish_reason", "statistics", "pieces", "reasoning"}
    assert all(f"`{name}`" in DOCS for name in result)
    rest = {"version", "finish_reason", "length"}
    assert set(keys(result["statistics"])) == section("`safe_generation_end`") - rest
    rounds = f"`[{', '.join(field.name for field in fields(Piece))}]`"
    assert rounds in DOCS, "rounds write the fields of a piece in order"


# There and back


def carried(happened: list[Event]) -> tuple[Any, Any]:
    """The rounds and the end of an answer, as a message carries them."""
    finished = next(e for e in happened if isinstance(e, Finished))
    models = [model.name for model in finished.statistics.models]
    rounds = [payloads.round_of(e, models) for e in happened if isinstance(e, Verified)]
    end = payloads.generation_end(finished)
    rounds, end = json.loads(json.dumps([rounds, end], allow_nan=False))
    return rounds, end


def in_messages(result: Result) -> Result:
    """What of a result a message can tell: six digits; opinions only where models were merged."""
    pieces = [
        p if p.ensembled or p.replaces else replace(p, votes=(), candidates=())
        for p in result.pieces
    ]
    rounded = [payloads.load(Piece, payloads.dump(piece)) for piece in pieces]
    for piece, exact in zip(rounded, pieces, strict=True):
        assert [v.tokens for v in piece.votes] == [v.tokens for v in exact.votes]
        assert [c.symbol for c in piece.candidates] == [c.symbol for c in exact.candidates]
        assert [c.tokens for c in piece.candidates] == [c.tokens for c in exact.candidates]
        for vote, whole in zip(piece.votes, exact.votes, strict=True):
            assert vote.probability == pytest.approx(whole.probability, abs=1e-6)
    statistics = payloads.load(Statistics, payloads.dump(result.statistics))
    return replace(result, pieces=tuple(rounded), statistics=statistics)


@pytest.mark.parametrize("mode", ["safe", "every-token", "drafter-only"])
@pytest.mark.parametrize("stop", [None, "好", "zzz"])
def test_an_answer_can_be_put_together_again(mode: Any, stop: str | None) -> None:
    happened = events(mode, stop)
    result = Result.of(happened)
    read = read_result(*carried(happened), REFUSED)
    assert read == in_messages(result)
    assert read._repr_html_()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data(), worlds())
def test_any_answer_can_be_put_together_again(data: Any, world: World) -> None:
    """Tokens of half a character, texts cut by a stop string, ends, nothing at all."""
    unit = data.draw(st.sampled_from(["text", "token"]))
    config = data.draw(configs(len(world.vocabularies), unit=unit))
    asked = data.draw(options(world.plan))
    if data.draw(st.booleans()):
        asked = asked.model_copy(update={"temperature": 1.0, "seed": 1})
    happened = list(engine_of(world.members(), config).generate("Go.", asked))
    assert read_result(*carried(happened), REFUSED) == in_messages(Result.of(happened))


def test_all_statistics_survive() -> None:
    """Seconds of tokenising and of ensembling were written and not read."""
    model = ModelStatistics("a", 1, 2, 3, 4, 0.5, 5, 6)
    times = (0.25, 0.125, 0.0625, 0.75)
    statistics = Statistics(*range(1, 8), *times, [model], 8, 9, ["/a"], 10, 0.5, {"a": 3})
    assert all(asdict(statistics).values()), "a field that has its default proves nothing"
    _, end = carried([Finished("stop", 0, statistics)])
    assert read_result([], end, REFUSED).statistics == statistics


def test_what_a_later_version_adds_is_passed_over() -> None:
    """Readers of today must read what is written tomorrow (docs/events.md); ours raised."""
    happened = events()
    rounds, end = carried(happened)
    expected = read_result(rounds, end, REFUSED)
    end["new"] = {"x": 1}
    for model in end["models"]:
        model["new"] = "x"
    grown = 0
    for entry in (entry for entries in rounds for entry in entries):
        if not isinstance(entry[0], str):
            entry += [None] * (len(fields(Piece)) - len(entry))
            votes, candidates = entry[5] or [], entry[6] or []
            for vote in votes:
                vote += [None] * (len(fields(Vote)) - len(vote))
            for candidate in candidates:
                candidate += [[]] * (len(fields(Candidate)) - len(candidate))
            for row in (entry, *votes, *candidates):
                row.append({"new": 1})
                grown += 1
    assert grown > 5
    assert read_result(rounds, end, REFUSED) == expected

    piece = next(p for p in expected.pieces if p.ensembled)
    data = payloads.dump(piece)
    for level in (data, *data["votes"], *data["candidates"]):
        level["new"] = 1
    assert payloads.load(Piece, data) == piece


TRICKY = [
    b"<end>",
    b"\\xf0",
    b"\\x5c",
    b"\\",
    b"x",
    b"f0",
    b"\xf0",
    b"\x9f",
    b"<end",
    END[:1],
    "é".encode(),
]
NAMES = ("a", "org/b", "c")


@st.composite
def token_lists(draw: st.DrawFn, whole: bytes) -> tuple[bytes, ...]:
    """Tokens of a piece: the end, bytes cut anywhere, or what a tokenizer makes that lacks some."""
    if whole == END or draw(st.integers(0, 4)) == 0:
        return (draw(st.sampled_from([whole, b"<end>", b"\xf0", b"?"])),)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return tuple(whole[a:b] for a, b in pairwise([0, *cuts, len(whole)]))


@st.composite
def judged(draw: st.DrawFn) -> tuple[Piece, ...]:
    """Pieces of any kind, one behind the other: units and tokens, merged and drawn."""
    symbols = st.sampled_from([*TRICKY[:5], b" cat", "中文 ".encode(), END])
    odds = st.sampled_from([0.0, 0.25, 1e-6, 1.0])
    pieces: list[Piece] = []
    at = 0
    for _ in range(draw(st.integers(0, 8))):
        verdict, proposed = draw(st.sampled_from(Verdict)), draw(symbols)
        written = draw(symbols) if verdict in (Verdict.CHANGED, Verdict.CLOSED) else proposed
        piece = Piece(at, at + (0 if written == END else len(written)), written, proposed, verdict)
        at = piece.end
        if draw(st.booleans()):
            piece = replace(piece, drawn=draw(st.sampled_from(NAMES)))
        if (piece.ensembled or piece.replaces) and draw(st.booleans()):
            votes = [
                Vote(name, draw(token_lists(proposed)), draw(odds), draw(symbols), draw(odds))
                for name in NAMES
            ]
            if piece.drawn and draw(st.booleans()):  # its vote alone
                votes = [vote for vote in votes if vote.model == piece.drawn]
            tokens = st.just(()) | st.tuples(*[token_lists(written) | st.just(())] * 3)
            candidates = [
                Candidate(written, draw(odds), (draw(odds), 0.0, 0.5), draw(tokens))
                for _ in range(draw(st.integers(0, 2)))
            ]
            piece = replace(piece, votes=tuple(votes), candidates=tuple(candidates))
        pieces.append(piece)
    return tuple(pieces)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(judged(), st.integers(0, 8))
def test_any_pieces_are_read_as_they_were_written(pieces: tuple[Piece, ...], cut: int) -> None:
    """Tokens are told by where they cut a piece, models by number: nothing may be lost by it."""
    rounds = [payloads.round_of(Verified(1, p, 0, 0), NAMES) for p in (pieces[:cut], pieces[cut:])]
    assert tuple(payloads.pieces_of(json.loads(json.dumps(rounds)), NAMES)) == pieces
    for piece in pieces:
        assert payloads.load(Piece, json.loads(json.dumps(payloads.dump(piece)))) == piece


def test_the_example_of_the_documentation_is_read_and_written() -> None:
    """Units: a vote of two tokens, candidates of different lengths, and who was drawn."""
    example = json.loads(DOCS.split("## On the message")[1].split("```json")[1].split("```")[0])
    drawn = json.loads(re.findall(r'`(\["accepted".*\])`', DOCS)[0])
    votes = (
        Vote("a", (b" blue", b"ish"), 0.22, b" blueish", 0.24),
        Vote("b", (b" blueish",), 0.1, b" orange", 0.81),
    )
    candidates = (
        Candidate(b" orange", 0.45, (0.1, 0.8), ((b" or", b"ange"), (b" orange",))),
        Candidate(b" blueish", 0.16, (0.22, 0.1), ((b" blue", b"ish"), (b" blueish",))),
    )
    accepted, changed = Verdict.ACCEPTED, Verdict.CHANGED
    pieces = (
        Piece(0, 3, b"The", b"The", Verdict.UNANIMOUS),
        Piece(3, 7, b" sky", b" sky", Verdict.UNANIMOUS),
        Piece(7, 14, b" orange", b" blueish", changed, votes, candidates),
        Piece(14, 18, b" and", b" and", accepted, drawn="a"),
        Piece(18, 21, b" so", b" so", accepted, drawn="a"),
        Piece(21, 24, b" on", b" on", accepted, drawn="b"),
    )
    assert tuple(payloads.pieces_of([example, [drawn]], ["a", "b"])) == pieces
    assert payloads.round_of(Verified(1, pieces, 0, 0), ["a", "b"]) == [*example, drawn]


def test_messages_of_version_1_are_read() -> None:
    """They lie in checkpoints and caches; their votes held one token, as a symbol."""
    rounds = [
        [
            ["unanimous", "The", " sky"],
            [
                *(7, 10, " is", " was", "changed"),
                [[" wa", 0.52, " was", 0.52], ["<end>", 0.81, " is", 0.81]],
                [[" is", 0.6, [0.4, 0.8]], [" was", 0.3, [0.5, 0.1]]],
            ],
        ]
    ]
    votes = (
        Vote("a", (b" wa",), 0.52, b" was", 0.52),
        Vote("b", (END,), 0.81, b" is", 0.81),
    )
    candidates = (Candidate(b" is", 0.6, (0.4, 0.8)), Candidate(b" was", 0.3, (0.5, 0.1)))
    *_, piece = payloads.pieces_of(rounds, ["a", "b"])
    assert piece == Piece(7, 10, b" is", b" was", Verdict.CHANGED, votes, candidates)


def test_what_an_earlier_version_did_not_write_has_its_default() -> None:
    assert payloads.load(Statistics, {"tokens": 3, "models": []}) == Statistics(tokens=3)


@pytest.mark.parametrize(
    "broken",
    [
        lambda rounds, end: (None, end),
        lambda rounds, end: (rounds, None),
        lambda rounds, end: (rounds, {}),
        lambda rounds, end: (3, end),
        lambda rounds, end: ([{"cycle": 1, "pieces": []}], end),
        lambda rounds, end: ([[["no verdict", "a"]]], end),
        lambda rounds, end: ([[[]]], end),
        lambda rounds, end: ([[[0, 1, "a"]]], end),
        lambda rounds, end: (rounds, {**end, "models": [{}]}),
        lambda rounds, end: (rounds, {**end, "length": "x"}),
    ],
)
def test_what_is_no_answer_is_refused_with_the_given_remedy(broken: Any) -> None:
    """Users met a KeyError where they had passed another model's message."""
    with pytest.raises(InvalidArgumentError, match="cannot be read") as caught:
        read_result(*broken(*carried(events())), REFUSED)
    assert caught.value is REFUSED


@given(st.lists(st.sampled_from(TRICKY) | st.binary(max_size=3), max_size=5).map(b"".join))
@settings(deadline=None, derandomize=True, database=None)
def test_no_two_symbols_are_shown_alike(symbol: bytes) -> None:
    """A token that spells `<end>`, or a backslash escape, was read as something else."""
    shown = payloads.show(symbol)
    assert payloads.symbol_of(json.loads(json.dumps(shown))) == symbol
    if b"\\" not in symbol and symbol not in (END, b"<end>"):
        assert shown == symbol.decode(errors="backslashreplace")


def test_the_end_is_shown_as_such() -> None:
    assert payloads.show(END) == "<end>"
    assert payloads.show(b"<end>") != "<end>"


# Size


def spread(best: bytes) -> Script:
    """A model that is sure of nothing: 200 symbols, one of them a little better."""
    others = {bytes([b]): 0.0035 for b in range(1, 201)}
    return lambda text: others | {best: 1 - 0.0035 * 199}


def test_payloads_stay_small() -> None:
    """A wide union of candidates must not end up in every tracer."""
    config = EnsembleConfig(unit="token", union_top_k=200, sharpening="none")
    members = [ScriptedMember(name, [], spread(name.encode())) for name in ("a", "b")]
    engine = SafeEngine(members[0], members[1:], config)
    happened = list(engine.generate("hi", GenerationConfig(max_tokens=8)))
    ensembled = [e for e in happened if isinstance(e, Ensembled)]
    assert len(ensembled) == 8
    for event in ensembled:
        written, *others = event.piece.candidates
        assert 1 + len(others) == 5 and "at most 5 together" in DOCS
        assert written.symbol == event.piece.written
        assert [c.probability for c in others] == sorted(c.probability for c in others)[::-1]
        assert len(json.dumps(payloads.ensemble(event))) < 1000
    rounds, _ = carried(happened)
    assert len(json.dumps(rounds)) < 8 * 320


def test_a_message_holds_little_besides_its_text() -> None:
    """Rounds took 360 bytes a token of every checkpoint and trace."""
    text = b"The capital of France is Paris. " * 20
    words = [b"The", b" capital", b" of", b" France", b" is", b" Paris", b". "]
    members = [ScriptedMember(name, words, follows(text, sure=0.9)) for name in ("a", "b")]
    engine = SafeEngine(members[0], members[1:])
    happened = list(engine.generate("hi", GenerationConfig(max_tokens=120)))
    result = Result.of(happened)
    assert result.statistics.ensembled == 0
    rounds, _ = carried(happened)
    assert len(json.dumps(rounds)) < len(result.text) + 10 * result.statistics.tokens
