"""Constraints: what may follow, in bytes, whatever the tokens and the order of questions."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from safe_integrations.calls.grammar import constraint_for
from safe_integrations.config import (
    Choice,
    GenerationConfig,
    Grammar,
    JsonSchema,
    Regex,
    ResponseFormat,
)
from safe_integrations.engine.tokens import END, TokenTable
from safe_integrations.errors import InvalidArgumentError, MissingDependencyError, SafeError
from safe_integrations.structure.constraint import Constraint, Cursor
from safe_integrations.testing import ScriptedMember, follows

pytest.importorskip("llguidance")

SCHEMAS = Path(__file__).parent / "schemas"
SUPPORTED: dict[str, Any] = json.loads((SCHEMAS / "supported.json").read_text("utf-8"))
REFUSED: list[Any] = json.loads((SCHEMAS / "refused.json").read_text("utf-8"))


def table(*vocabulary: bytes, complete: bool = True) -> TokenTable:
    return ScriptedMember("toy", vocabulary, follows(b""), complete=complete).tokens


BYTES = table()
PIECES = table(b"ab", b"aba", b"\xc3\xa9", b"\xa9a", b"a\xf0\x9f", b"\x98\x80", b"\n\n", b"b\xc3")
JSON_PIECES = table(b'{"', b'": "', b'", "', b'"}', b": ", b"}}", b"]}", b", ", b"12", b'\\"')


def constraint(response_format: ResponseFormat) -> Constraint:
    made = constraint_for(GenerationConfig(response_format=response_format))
    assert made is not None
    return made


def cursor(response_format: ResponseFormat, tokens: TokenTable = BYTES) -> Cursor:
    return constraint(response_format).cursor(tokens)


def flags(cursor: Cursor, ids: Sequence[int]) -> NDArray[np.bool_]:
    """What may follow, where not everything may."""
    allowed = cursor.allowed(ids)
    assert allowed is not None
    return allowed


def symbols(cursor: Cursor, ids: Sequence[int], tokens: TokenTable = BYTES) -> set[bytes]:
    return {tokens.symbol(int(i)) for i in np.flatnonzero(flags(cursor, ids))}


def accepts(response_format: ResponseFormat, text: str, tokens: TokenTable = BYTES) -> bool:
    """Whether a text is a whole answer, and every token of it was allowed in its place."""
    walk, ids = cursor(response_format, tokens), tokens.encode(text.encode())
    allowed = all(flags(walk, ids[:n])[ids[n]] for n in range(len(ids)))
    assert walk.complete(ids) == (allowed and flags(walk, ids)[tokens.end_id])
    return walk.complete(ids)


# Against brute force: grammars of finitely many sentences


def expected_symbols(language: Collection[bytes], text: bytes, tokens: TokenTable) -> set[bytes]:
    followers = {
        symbol
        for symbol in tokens.symbols()
        if symbol not in (None, END) and any(s.startswith(text + symbol) for s in language)
    }
    return followers | ({END} if text in language else set())  # type: ignore[return-value]


def expected_forced(language: Collection[bytes], text: bytes) -> bytes:
    rest = [s[len(text) :] for s in language if s.startswith(text)]
    if not rest:
        return b""
    low, high = min(rest), max(rest)
    shared = next((n for n in range(len(low)) if low[n] != high[n]), len(low))
    while shared and shared < len(high) and high[shared] & 0xC0 == 0x80:
        shared -= 1  # not half a character
    return low[:shared]


def as_choice(language: Sequence[str]) -> ResponseFormat:
    return Choice(options=tuple(language))


def as_regex(language: Sequence[str]) -> ResponseFormat:
    return Regex(pattern="|".join(map(re.escape, language)))


def as_grammar(language: Sequence[str]) -> ResponseFormat:
    options = " | ".join(f"x{i}" for i in range(len(language)))
    rules = "".join(f"x{i}: {json.dumps(text)}\n" for i, text in enumerate(language))
    return Grammar(lark=f"start: {options}\n{rules}")


LANGUAGES = st.lists(st.text("abé😀\n/", max_size=5), min_size=1, max_size=5, unique=True)


@settings(deadline=None)
@given(
    LANGUAGES,
    st.sampled_from([as_choice, as_regex, as_grammar]),
    st.sampled_from([BYTES, PIECES]),
    st.randoms(use_true_random=False),
)
@example(["", "a"], as_choice, BYTES, Random(0))
@example(["é", "è"], as_regex, PIECES, Random(0))
def test_brute_force(language: list[str], form: Any, tokens: TokenTable, random: Random) -> None:
    """Every question, at random places of random sentences, in any order: forth and back."""
    sentences = {text.encode() for text in language}
    walk = cursor(form(language), tokens)
    for _ in range(8):
        ids = random_tokens(random, random.choice(sorted(sentences)), tokens)
        ids = ids[: random.randint(0, len(ids))]
        text = b"".join(map(tokens.symbol, ids))
        assert symbols(walk, ids, tokens) == expected_symbols(sentences, text, tokens)
        assert walk.forced(ids) == expected_forced(sentences, text)
        assert symbols(walk, ids, tokens) == expected_symbols(sentences, text, tokens)
        assert walk.complete(ids) == (text in sentences)
        longer = any(s != text and s.startswith(text) for s in sentences)
        assert walk.finished(ids) == (text in sentences and not longer)


def random_tokens(random: Random, text: bytes, tokens: TokenTable) -> list[int]:
    """A text in tokens, mostly not as the tokenizer would cut it."""
    ids: list[int] = []
    while text:
        fitting = [s for n in range(1, 5) if tokens.id_of(s := text[:n]) is not None]
        symbol = random.choice(fitting)
        ids.append(tokens.id_of(symbol))  # type: ignore[arg-type]
        text = text[len(symbol) :]
    return ids


@settings(deadline=None)
@given(st.lists(st.sampled_from(range(PIECES.size)), max_size=4), st.text("abé", max_size=4))
def test_ids_that_leave_the_grammar(ids: list[int], text: str) -> None:
    """Nothing may follow them, and the cursor still knows its way afterwards."""
    walk = cursor(Choice(options=(text, "abab")), PIECES)
    start = symbols(walk, [], PIECES)
    ids = [i for i in ids if PIECES.symbols()[i] is not None]
    written = b"".join(map(PIECES.symbol, ids))
    if not any(s.startswith(written) for s in (text.encode(), b"abab")):
        assert not flags(walk, ids).any()
        assert walk.forced(ids) == b""
        assert not walk.complete(ids)
        assert not walk.finished(ids)
    assert symbols(walk, [], PIECES) == start


def test_nothing_follows_end() -> None:
    walk = cursor(Choice(options=("a", "ab")))
    a, b = BYTES.encode(b"ab")
    assert not flags(walk, [a, BYTES.end_id]).any()
    assert not flags(walk, [a, BYTES.end_id, b]).any()
    assert symbols(walk, [a]) == {b"b", END}


# Tokens


def test_any_tokenisation_is_allowed() -> None:
    """The library would otherwise allow only its own way to write a forced text."""
    tokens = table(b"hel", b"lo", b"hello", b"hello world")
    walk = cursor(Choice(options=("hello world",)), tokens)
    assert symbols(walk, [], tokens) == {b"h", b"hel", b"hello", b"hello world"}
    assert walk.forced([]) == b"hello world"
    assert symbols(walk, [], tokens) == {b"h", b"hel", b"hello", b"hello world"}


def test_aliases_and_silent_ids_are_never_allowed() -> None:
    symbols: list[bytes | None] = [b"a", b"a", None, b"b", b"", b"", b"\xff"]
    tokens = TokenTable(symbols, {4, 5}, lambda text: [0 if c == 97 else 3 for c in text])
    walk = cursor(Regex(pattern="(?s:.)*"), tokens)
    assert np.flatnonzero(flags(walk, [])).tolist() == [0, 3, 4]
    assert np.flatnonzero(flags(walk, [1, 0])).tolist() == [0, 3, 4]


def test_where_any_text_may_follow_there_is_no_mask() -> None:
    """Nothing is reshaped there, and what no UTF-8 text holds is written as without a grammar."""
    walk = cursor(Regex(pattern="(?s:.)*"), PIECES)
    é, stray, blank = PIECES.encode("é".encode()), PIECES.encode(b"\xa9"), PIECES.encode(b" ")
    assert walk.allowed([]) is None
    assert walk.allowed(é) is None
    assert walk.allowed([*é, *stray, *stray]) is None
    assert walk.complete([*stray, *blank])
    assert not walk.finished([])
    assert walk.forced(stray) == b""
    half = PIECES.encode(b"\xc3")  # a character that has to be finished, so END is forbidden
    assert symbols(walk, half, PIECES) >= {b"\xa9", b"\xa9a"}
    assert END not in symbols(walk, half, PIECES)
    assert not flags(walk, [*half, *blank]).any()


def test_there_is_a_mask_where_the_answer_may_not_end() -> None:
    walk = cursor(Regex(pattern="(?s:.)*!(?s:.)*"), PIECES)
    assert not flags(walk, [])[PIECES.end_id]
    assert walk.allowed(PIECES.encode(b"a!a")) is None


def test_the_way_leads_back_over_what_is_no_text() -> None:
    """A stray byte stands for one token in the library too, or going back would go astray."""
    walk = cursor(Regex(pattern="(?s:.)*"), PIECES)
    stray, half = PIECES.encode(b"\xa9"), PIECES.encode(b"\xc3")
    for ids in ([*stray, *half], stray, half, [*half, *stray], [*stray, *stray, *half], []):
        unfinished = ids[-1:] == half
        assert (walk.allowed(ids) is None) is not unfinished
        assert walk.complete(ids) is not unfinished


def test_tables_that_lack_bytes() -> None:
    tokens = table(b"a", b"bc", complete=False)
    walk = cursor(Choice(options=("abc", "ad")), tokens)
    assert symbols(walk, [], tokens) == {b"a"}
    assert symbols(walk, [0], tokens) == {b"bc"}
    assert not flags(cursor(Choice(options=("x",)), tokens), []).any()


def test_one_constraint_serves_several_models() -> None:
    shared = constraint(Choice(options=("aba", "abé")))
    for tokens in (BYTES, PIECES):
        walk = shared.cursor(tokens)
        ids = tokens.encode("abé".encode())
        assert walk.forced([]) == b"ab"
        assert walk.finished(ids)


def test_the_mask_cannot_be_spoilt() -> None:
    mask = flags(cursor(Choice(options=("a",))), [])
    assert mask.shape == (BYTES.size,)
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True


# Formats


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("[a-c]{2,3}", ["ab", "ccc"], ["a", "abcd", "ad"]),
        (r"\d+/\d+", ["1/22"], ["1", "/"]),
        ("^x$", ["x"], ["", "xx"]),
        ("(?i)yes|no", ["YES", "nO"], ["maybe"]),
        ("[^a]", ["é", "😀", "\n"], ["a", ""]),
        ("", [""], ["a"]),
        ("a\nb|\\\\", ["a\nb", "\\"], ["ab"]),
    ],
)
def test_regex(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(accepts(Regex(pattern=pattern), text) for text in yes)
    assert not any(accepts(Regex(pattern=pattern), text) for text in no)


def test_choice_takes_any_text() -> None:
    options = (
        "",
        " yes",
        'quote " back \\ slash /',
        "tab\tline\n\x00\x7f",
        "é名😀",
        "<think>",
        "a|b",
    )
    choice = Choice(options=options)
    assert all(accepts(choice, option) for option in options)
    assert not accepts(choice, "a")


def test_lark_grammar_with_recursion() -> None:
    balanced = Grammar(lark='start: group+\ngroup: "(" group* ")"')
    assert accepts(balanced, "(()())()", table(b"()", b"))", b")("))
    assert not accepts(balanced, "(()")


@pytest.mark.parametrize(
    ("response_format", "says"),
    [
        (Regex(pattern="(a"), "unclosed group"),
        (Regex(pattern="a(?=b)"), "look-around"),
        (Grammar(lark="start: nothing"), "nothing"),
        (Grammar(lark='begin: "a"'), "start"),
        (Grammar(lark="start: <think>"), "special tokens"),
        (Grammar(lark="start: <[7]>"), "special tokens"),
        (Grammar(lark='start: x\nx[stop="a"]: /.*/'), "'stop'"),
        (Grammar(lark="start: x\nx[capture, max_tokens=3]: /.*/"), "'max_tokens'"),
    ],
)
def test_grammars_that_are_refused(response_format: ResponseFormat, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        constraint(response_format)
    assert caught.value.argument == "response_format"
    assert says in str(caught.value)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a bare ImportError: the command line, which shows a SafeError, showed a traceback."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(SafeError, match=r'pip install "safe-integrations\[structured\]"') as caught:
        constraint(Choice(options=("a",)))
    assert isinstance(caught.value, MissingDependencyError)
    assert isinstance(caught.value, ImportError)  # callers may know it by this name
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# JSON schemas


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("name", SUPPORTED)
def test_schema_accepts_what_is_valid_and_nothing_else(name: str) -> None:
    case = SUPPORTED[name]
    response_format = JsonSchema(schema=case["schema"])
    for tokens in (BYTES, JSON_PIECES):
        for value in case["valid"]:
            assert accepts(response_format, as_json(value), tokens), value
        for value in case["invalid"]:
            assert not accepts(response_format, as_json(value), tokens), value


@pytest.mark.parametrize("name", SUPPORTED)
def test_whatever_a_model_prefers_it_validates(name: str) -> None:
    schema = SUPPORTED[name]["schema"]
    shared = constraint(JsonSchema(schema=schema))
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for seed in range(6):
        tokens = (BYTES, JSON_PIECES)[seed % 2]
        text = random_answer(shared.cursor(tokens), tokens, Random(f"{name} {seed}"))
        checker.validate(json.loads(text))


def random_answer(walk: Cursor, tokens: TokenTable, random: Random, hurry: int = 60) -> str:
    """An answer of random allowed tokens, which ends soon after `hurry` tokens."""
    closing = [tokens.end_id, *(tokens.id_of(c.encode()) for c in '"}]')]
    helpful = [tokens.id_of(c.encode()) for c in "0e.@"]
    ids: list[int] = []
    while not walk.finished(ids):
        allowed = np.flatnonzero(flags(walk, ids)).tolist()
        if len(ids) > hurry and random.random() < 0.8:
            quick = [i for i in closing if i in allowed][:1]
            allowed = random.choice([quick, [i for i in helpful if i in allowed]]) or allowed
        chosen = random.choice(allowed)
        if chosen == tokens.end_id:
            break
        ids.append(chosen)
        assert len(ids) < 2000
    assert walk.complete(ids)
    return b"".join(map(tokens.symbol, ids)).decode()


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["at"] + " " + case["says"])
def test_schemas_that_are_refused_by_name(case: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        constraint(JsonSchema(schema=case["schema"], strict=None if case["always"] else True))
    assert caught.value.argument == "response_format"
    assert f"cannot be guaranteed at {case['at']}: " in str(caught.value)
    assert case["says"] in caught.value.remedy


def test_schemas_that_are_not_json() -> None:
    for schema in ({"const": float("nan")}, {"enum": [{1, 2}]}):
        with pytest.raises(InvalidArgumentError, match="plain JSON data"):
            constraint(JsonSchema(schema=schema))


def test_the_schema_is_left_as_it_was() -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/ä"}}, "$defs": {"ä": {"type": "null"}}}
    before = json.dumps(schema)
    constraint(JsonSchema(schema=schema))
    assert json.dumps(schema) == before


def test_white_space_is_never_a_choice() -> None:
    schema = {"type": "object", "properties": {"a": {"const": [1, {"b": 2}]}}, "required": ["a"]}
    walk = cursor(JsonSchema(schema={**schema, "additionalProperties": False}))
    assert walk.forced([]) == b'{"a": [1, {"b": 2}]}'


def test_a_key_cannot_be_spelled_with_escapes() -> None:
    r"""Else `{"\u0061": "x"}` would say "a" without keeping to the rules for "a"."""
    schema = SUPPORTED["rest is typed"]["schema"]
    assert not accepts(JsonSchema(schema=schema), r'{"\u0061": "x"}')
