"""A structure ends within any budget that can hold one, and what the budget wrote is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest

from safe_integrations.calls.grammar import constraint_for
from safe_integrations.config import (
    Choice,
    EnsembleConfig,
    GenerationConfig,
    Grammar,
    JsonSchema,
    Regex,
    Tool,
)
from safe_integrations.engine.closing import find_way
from safe_integrations.engine.events import Verdict, Verified
from safe_integrations.engine.tokens import END
from safe_integrations.errors import ContextWindowError, InvalidArgumentError
from safe_integrations.report.payloads import pieces_of, round_of
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure.closing import BYTES, Closing, cut_values
from safe_integrations.testing import Script, ScriptedMember

pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}},
        "at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        "more": {"type": "string"},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
PLAN = (
    '{"name": "Köln 🗼 \\"am\\" Rhein", "size": -123456, "tags": ["big", "old"],'
    ' "at": {"x": 5.25}, "more": "text"}'
)
MAIL = {"type": "object", "properties": {"to": {"type": "string", "format": "email"}}}
DELETE = Tool(
    name="delete",
    parameters={"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
)


def valid(schema: dict[str, Any]) -> Callable[[str], object]:
    return lambda text: jsonschema.validate(json.loads(text), schema)


def matches(pattern: str) -> Callable[[str], object]:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


def arguments(text: str) -> None:
    call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text)
    assert call is not None
    jsonschema.validate(json.loads(call[1])["arguments"], DELETE.parameters)


FORMATS: dict[str, tuple[dict[str, Any], str, Callable[[str], object]]] = {
    "object": ({"response_format": JsonSchema(schema=SCHEMA)}, PLAN, valid(SCHEMA)),
    "any object": (
        {"response_format": JsonSchema(schema={"type": "object"})},
        PLAN,
        valid({"type": "object"}),
    ),
    "mail": (
        {"response_format": JsonSchema(schema={**MAIL, "required": ["to"]})},
        '{"to": "me.and.you@example.org"}',
        valid(MAIL),
    ),
    "regex": (
        {"response_format": Regex(pattern="[a-z]+(-[0-9]{3})+(;(x|yy)*z)?")},
        "abcdef-123-456-789;xyyxz",
        matches("[a-z]+(-[0-9]{3})+(;(x|yy)*z)?"),
    ),
    "choice": (
        {"response_format": Choice(options=("no", "not at all", "not at home", "yes"))},
        "not at home",
        matches("no|not at all|not at home|yes"),
    ),
    "lark": (
        {"response_format": Grammar(lark='start: "(" start ")" | "[" start "]" | /[ab]+/')},
        "([([(abab)])])",
        matches(r"[(\[]*[ab]+[)\]]*"),
    ),
    "call": (
        {"tools": (DELETE,), "tool_choice": "required", "parallel_tool_calls": False},
        '<tool_call>\n{"name": "delete", "arguments": {"path": "/home/me"}}\n</tool_call>',
        arguments,
    ),
}
WORDS: dict[str, list[bytes]] = {
    "bytes": [],
    "pieces": [b'": "', b'", "', b"ize", b"12", b'{"', b'"}', b"]}", b"ho", b"-1", b"not ", b"))"],
    "long": [
        b'{"name": "K\xc3\xb6ln',
        b"23456, ",
        b'tags": [',
        b"me.and",
        b"([",
        b"-789;",
        b"yyxz",
    ],
}


def stubborn(text: bytes) -> Script:
    """A model that wants to write one text, and finds a few other bytes possible."""
    others = sorted({bytes([b]) for b in text + bytes(range(32, 127))})

    @cache
    def script(written: bytes) -> Mapping[bytes, float]:
        wanted = text[len(written) : len(written) + 1] if text.startswith(written) else others[0]
        rest = {byte: (1 + i / 100) / 1e3 for i, byte in enumerate(others)}
        return {**rest, END: 1e-4, wanted or END: 0.9}

    return script


def answer(
    options: dict[str, Any], plan: str, words: list[bytes], budget: int, **config: Any
) -> Result:
    """What a drafter writes, held up by a verifier with other tokens and a doubt."""
    members = pair(plan.encode(), tuple(words))
    engine = SafeEngine(members[0], members[1:], EnsembleConfig(**config))
    return engine.complete("x", GenerationConfig(max_tokens=budget, **options))


@cache
def pair(plan: bytes, words: tuple[bytes, ...]) -> tuple[ScriptedMember, ScriptedMember]:
    return (
        ScriptedMember("drafter", words, tokens_of(stubborn(plan), words)),
        ScriptedMember("verifier", [b", ", b"e", b"12"], stubborn(plan)),
    )


def tokens_of(script: Script, words: Sequence[bytes]) -> Script:
    """The same model with long tokens: it likes those that begin with the byte it wants."""

    @cache
    def longer(written: bytes) -> Mapping[bytes, float]:
        row = dict(script(written))
        return row | {word: row.get(word[:1], 0) * 1.1 for word in words}

    return longer


def smallest(options: dict[str, Any], plan: str, words: list[bytes]) -> int:
    """What the error says that a budget of nothing lacks."""
    with pytest.raises(InvalidArgumentError, match="max_tokens=1: .* at least") as caught:
        answer(options, plan, words, 1)
    return int(caught.value.remedy.rsplit(" ", 1)[1])


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", FORMATS)
def test_at_every_budget_it_is_valid_whatever_the_lookahead(name: str, words: str) -> None:
    """`name: str; population: int` ran into max_tokens 6 of 6 times; what was left was no JSON."""
    options, plan, check = FORMATS[name]
    least, seen = smallest(options, plan, WORDS[words]), set()
    most = len(plan.encode()) + 3
    for budget in {*range(least, least + 8), *range(least + 8, most, 9), most}:
        first = answer(options, plan, WORDS[words], budget, lookahead=1)
        other = answer(options, plan, WORDS[words], budget, lookahead=16)
        assert (other.text, other.pieces) == (first.text, first.pieces)
        always = answer(options, plan, WORDS[words], budget, mode="every-token")
        for result in (first, always):
            check(result.text)
            assert result.statistics.tokens <= budget
            closed = [p.start for p in result.pieces if p.verdict is Verdict.CLOSED]
            assert result.statistics.closed_at == (closed[0] if closed else None)
            assert result.finish_reason == ("length" if closed else "stop")
        seen.add(first.finish_reason)
    assert "length" in seen


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_drawn_tokens_close_as_well(temperature: float) -> None:
    options, plan, check = FORMATS["object"]
    for seed in range(2):
        for budget in range(smallest(options, plan, WORDS["pieces"]), len(plan), 13):
            drawn = {**options, "temperature": temperature, "seed": seed}
            results = [answer(drawn, plan, WORDS["pieces"], budget, lookahead=n) for n in (1, 16)]
            check(results[0].text)
            assert len({result.text for result in results}) == 1


def test_optional_parts_are_given_up_before_a_value_is_cut() -> None:
    """Where there is room for what is required, nothing of it is cut for an optional part."""
    options, plan, _ = FORMATS["object"]
    required = plan[: plan.index(', "at"')] + "}"
    for budget in range(len(required.encode()) + 1, len(required.encode()) + 12):
        result = answer(options, plan, [], budget)
        assert result.text == required
        assert result.statistics.cut == [""]


def test_no_value_is_made_longer_by_what_could_end_it() -> None:
    """Behind `[` a list of two may end in `2, 2]`; behind `[7` that would make it 72."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2}
    options = {"response_format": JsonSchema(schema=schema)}
    for budget in range(smallest(options, "[7, 8, 9]", [b", "]), 10):
        items = json.loads(answer(options, "[7, 8, 9, 7, 8, 9]", [b", "], budget).text)
        assert set(items) <= {7, 8, 9, 2}


def test_what_a_budget_wrote_before_a_stop_string_is_told() -> None:
    """A string that was cut short, and behind it the `}` that the caller wanted to stop at."""
    options, plan, _ = FORMATS["call"]
    result = answer({**options, "stop": ("}",)}, plan, [], len(plan) - 4)
    assert result.text.endswith('"path": "/ho"')
    assert (result.finish_reason, result.statistics.closed_at) == (
        "length",
        len(result.text) - 1,
    )
    assert answer({**options, "stop": ("}",)}, plan, [], len(plan) + 1).finish_reason == "stop"


def test_a_window_that_cannot_hold_a_smallest_answer_is_an_error() -> None:
    options, plan, _ = FORMATS["object"]
    small = ScriptedMember("small", [], stubborn(plan.encode()), context_window=30)
    large = ScriptedMember("large", [b", "], stubborn(plan.encode()))
    for members in ((small, large), (large, small)):
        with pytest.raises(ContextWindowError, match="small"):
            SafeEngine(members[0], members[1:]).complete("x", GenerationConfig(**options))


def test_where_no_way_is_known_the_text_may_break_off() -> None:
    """A text that wants a word somewhere: nobody finds it byte by byte."""
    options = {"response_format": Regex(pattern="[a-z ]*material[a-z]{20,}")}
    result = answer(options, "some material" + 20 * "of", [], 24)
    assert (result.text, result.finish_reason) == ("some materialofofofofofo", "length")
    assert result.statistics.closed_at is None


def test_once_a_way_is_known_it_is_kept_to() -> None:
    options = {"response_format": Regex(pattern="[a-z ]*material[a-z]{20,}")}
    result = answer(options, "some material" + 20 * "of", [], 37)
    assert result.text == "some material" + 11 * "of" + "o"
    assert (result.finish_reason, result.statistics.closed_at) == ("length", len(result.text))


def test_where_no_way_is_known_it_goes_only_with_much_room() -> None:
    """Then the models may well find one."""
    options, plan = {"response_format": Regex(pattern="2|y[a-z ]*material")}, "y material"
    assert answer(options, plan, [], 64).text == "2"
    assert answer(options, plan, [], 65).text == plan


def test_calls_that_may_be_made_are_not_closed() -> None:
    """Under `auto` a text may end anywhere, and a call that does not fit is no call."""
    text = "I think that I should call: " + FORMATS["call"][1]
    result = answer({"tools": (DELETE,)}, text, [], 50)
    assert (result.text, result.finish_reason) == (text[:50], "length")


@pytest.mark.parametrize(
    ("schema", "digits"),
    [
        ({"type": "integer"}, "9" * 40),
        ({"type": "integer", "minimum": 3}, "9" * 40),
        ({"type": ["integer", "null"]}, "-" + "8" * 40),
        ({"type": "number"}, "0." + "3" * 40),
        ({"type": "number", "minimum": 0, "maximum": 1}, "0." + "3" * 40),
        ({"type": "number"}, "7" * 40),
    ],
)
def test_numbers_end(schema: dict[str, Any], digits: str) -> None:
    """Zeros without end."""
    result = answer({"response_format": JsonSchema(schema=schema)}, digits, [], 100)
    assert result.finish_reason == "stop" and len(result.text) < 30
    value = json.loads(result.text)
    jsonschema.validate(value, schema)
    assert abs(value) < 2**63


@pytest.mark.parametrize(
    ("text", "spans", "cut"),
    [
        ('{"a": "b!"}', [(8, 11)], ["/a"]),
        ('{"a": 12}', [(8, 9)], ["/a"]),
        ('{"a": true, "b": 2}', [(17, 18)], ["/b"]),
        ('{"a": [1, "x"]}', [(13, 14)], ["/a"]),
        ('{"a": [1, "x"], "b": {"c/d": [{"~": ""}]}}', [(37, 38)], ["/b/c~1d/0/~0"]),
        ('{"ä": "ö", "é": ""}', [(19, 21)], ["/é"]),
        ('{"a": "x"}', [(8, 9), (9, 10)], ["/a"]),
        ("12", [(2, 2)], [""]),
        (
            '<tool_call>\n{"name": "f", "arguments": {"p": "/h"}}\n</tool_call>',
            [(48, 51)],
            ["/arguments/p"],
        ),
        ("not at all", [(3, 5)], []),
    ],
)
def test_what_was_cut_is_named(text: str, spans: list[tuple[int, int]], cut: list[str]) -> None:
    assert cut_values(text.encode(), spans) == cut


def test_the_way_out_is_one_for_all_tokens() -> None:
    """Optional parts are passed over; what is forced is counted in the drafter's own tokens."""
    constraint = constraint_for(GenerationConfig(**FORMATS["object"][0]))
    assert constraint is not None
    tokens = ScriptedMember("x", [b'{"name": "', b'", "size": '], stubborn(b"")).tokens
    cursor = constraint.cursor(tokens)
    assert cursor.closing(b"") == b'{"name": "", "size": 2, "tags": []}'
    assert cursor.closing(b'{"name": "x", "size": 71') == b', "tags": []}'
    assert cursor.closing(b'{"name": 1') is None
    way = find_way(cursor, tokens, b"")
    assert way is not None and len(way.ids) == 2 + len('2, "tags": []}') + 1


ENDS: dict[str, tuple[dict[str, Any], bytes | None]] = {
    "a word somewhere": ({"type": "string", "pattern": "material"}, b'"2material"'),
    "a word at the end": ({"type": "string", "pattern": r"\.png$"}, b'"2.png"'),
    "one of two words": ({"type": "string", "pattern": "^(http)|(https)://(.*)$"}, None),
    "digits somewhere": ({"type": "string", "pattern": r"\d{4}-\d{2}-\d{2}T.\d{6}"}, None),
    "no anchors": ({"type": "string", "pattern": "[a-f0-9]{24}"}, None),
    "runs of a kind": (
        {"type": "string", "pattern": r"^(https?:\/\/)?([\da-z\.-]+)\.([a-z\.]{2,6})\/?$"},
        None,
    ),
    "optional first": (
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "z": {"const": 1}},
            "required": ["z"],
        },
        b'{"z": 1}',
    ),
    "an optional child": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "child": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                        "name": {"type": "string"},
                    },
                    "required": ["name"],
                }
            },
        },
        b'{"name": ""}',
    ),
    "a name that leads in circles": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "cases": {
                            "type": "array",
                            "items": {
                                "anyOf": [
                                    {
                                        "type": "object",
                                        "properties": {"cases": {"$ref": "#/$defs/node"}},
                                        "required": ["cases"],
                                        "additionalProperties": False,
                                    },
                                    {
                                        "type": "object",
                                        "properties": {"at": {"type": "string"}},
                                        "required": ["at"],
                                        "additionalProperties": False,
                                    },
                                ]
                            },
                            "minItems": 1,
                        }
                    },
                    "required": ["cases"],
                }
            },
        },
        None,
    ),
    "brackets in a string": ({"type": "string", "pattern": r"^[.{}\]-]+$"}, None),
    "a long one": (
        {
            "type": "object",
            "properties": {f"property {n}": {"type": "string"} for n in range(200)},
            "required": [f"property {n}" for n in range(200)],
        },
        None,
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_ways_out_are_found(name: str) -> None:
    """Of real schemas, 13 in 1,000 could not be closed from the start."""
    schema, wanted = ENDS[name]
    constraint = constraint_for(GenerationConfig(response_format=JsonSchema(schema=schema)))
    assert constraint is not None
    cursor = constraint.cursor(BYTES)
    found = cursor.closing(b"")
    assert found is not None and (wanted is None or found == wanted)
    jsonschema.validate(json.loads(found), schema)
    for cut in range(1, len(found), len(found) // 5 or 1):
        rest = cursor.closing(found[:cut])
        assert rest is not None
        jsonschema.validate(json.loads(found[:cut] + rest), schema)


def test_a_search_that_fails_does_not_begin_at_another_place() -> None:
    """The parser gives up where nothing can follow; the next search began at the beginning."""
    closed: dict[str, Any] = {"a": False, "b": False, "c": False}
    names = {"patternProperties": {"^[a-d]$": True}, "additionalProperties": False}
    schema = {"type": "object", "properties": closed, "required": ["d"], **names}
    constraint = constraint_for(GenerationConfig(response_format=JsonSchema(schema=schema)))
    assert constraint is not None
    cursor = constraint.cursor(BYTES)
    assert cursor.closing(b'{"d": 4, ') is None
    assert cursor.closing(b'{"d": 4') == b"}"


def test_a_way_is_looked_for_only_where_the_answer_has_left_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at every token of every string, and not for what is required anyway."""
    searches: list[bytes] = []
    search = Closing._search

    def counted(self: Closing, text: bytes, patience: int) -> bytes | None:
        searches.append(text)
        return search(self, text, patience)

    monkeypatch.setattr(Closing, "_search", counted)
    words = [b'": ', b'", "size', b'", "size": ', b'{"', b'"x": 5', b'"]', b"123", b", ", b'"}']
    text = PLAN.replace("Köln 🗼", "Koeln").replace("-1", "1").encode()
    for tokens in ([], words):
        searches.clear()
        assert written(text, tokens, SCHEMA) == text.decode()
        assert len(searches) <= 9, "the beginning, escapes, items, and optional parts"
    searches.clear()
    kinds = {key: kind for key, kind in SCHEMA["properties"].items() if key != "tags"}
    required = {**SCHEMA, "properties": kinds, "required": [*kinds]}
    text = text.replace(b' "tags": ["big", "old"],', b"").replace(rb"\"", b"'")
    assert written(text, words, required) == text.decode()
    assert len(searches) <= 2, "the beginning, and behind a number"


def written(text: bytes, words: list[bytes], schema: dict[str, Any]) -> str:
    """What a model writes that has a text in mind, in the longest of its words."""

    def script(before: bytes) -> Mapping[bytes, float]:
        rest = text[len(before) :]
        fitting = (word for word in [*words, rest[:1]] if word and rest.startswith(word))
        return {max(fitting, key=len, default=END): 1}

    drafter = ScriptedMember("drafter", words, script)
    options = GenerationConfig(response_format=JsonSchema(schema=schema), max_tokens=200)
    return SafeEngine(drafter).complete("x", options).text


def test_a_search_that_the_library_gives_up_is_begun_again_at_its_place() -> None:
    """Else the next one would start at the beginning of the grammar."""

    class Lost(Closing):
        asked = 0

        def _lost(self) -> bool:
            self.asked += 1
            if self.asked == 2:  # behind the first search
                self._matcher, self._text = self._start.deep_copy(), b""
                return True
            return super()._lost()

    constraint = constraint_for(GenerationConfig(**FORMATS["object"][0]))
    assert constraint is not None
    closing = Lost(constraint._matcher(BYTES))
    assert closing.way(b'{"name": "x') == b'", "size": 2, "tags": []}'
    assert closing.asked > 2


def test_what_a_drafter_wanted_is_kept_in_rounds() -> None:
    options, plan, _ = FORMATS["object"]
    members = pair(plan.encode(), ())
    events = [
        *SafeEngine(members[0], members[1:]).generate(
            "x", GenerationConfig(max_tokens=50, **options)
        )
    ]
    pieces = [piece for e in events if isinstance(e, Verified) for piece in e.pieces]
    closed = [(p.proposed, p.written) for p in pieces if p.verdict is Verdict.CLOSED]
    assert any(proposed != written for proposed, written in closed), "it wanted something else"
    names = [member.name for member in members]
    rounds = [round_of(event, names) for event in events if isinstance(event, Verified)]
    again = [*pieces_of(rounds, names)]
    assert [(p.proposed, p.written, p.verdict) for p in again] == [
        (p.proposed, p.written, p.verdict) for p in pieces
    ]
