"""200 schemas: accepted, enforced as a whole or not, and never left by what a grammar allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

import jsonschema
import pytest
from cases import chance

from benchmarks.walks import Walks
from safe_integrations.calls.grammar import constraint_for
from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema
from safe_integrations.engine.closing import find_way
from safe_integrations.engine.tokens import END
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure import schemas
from safe_integrations.structure.closing import BYTES
from safe_integrations.structure.constraint import Constraint
from safe_integrations.structure.schemas import json_rule, split, violation
from safe_integrations.testing import Script, ScriptedMember
from tests.structures import SCHEMAS

pytest.importorskip("llguidance")


def test_there_are_200() -> None:
    assert len(SCHEMAS) == 200


@pytest.mark.parametrize("name", SCHEMAS)
def test_accepted_by_default_and_refused_only_where_something_is_left_to_check(name: str) -> None:
    schema, is_enforced = SCHEMAS[name]
    assert json_rule(schema, "schema", strict=False).startswith("%json ")
    if is_enforced:
        assert json_rule(schema, "schema", strict=True)
        return
    with pytest.raises(InvalidArgumentError, match="can only be checked on the finished answer"):
        json_rule(schema, "schema", strict=True)


def validator(schema: Any) -> Any:
    kind = jsonschema.Draft202012Validator
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_instances_are_valid(name: str) -> None:
    """By the schema as it was given where all of it is enforced, else by what is enforced."""
    schema, is_enforced = SCHEMAS[name]
    found = split(schema, "schema")
    walks = Walks(f"%json {found.enforced}")
    rule = validator(schema if is_enforced else json.loads(found.enforced))
    for steps in (0, 5, 20, 60):
        text = walks.instance(steps, Random(f"{name} {steps}"))
        assert text is not None
        rule.validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.filterwarnings("ignore::safe_integrations.errors.UnenforcedSchemaWarning")
def test_at_any_budget_and_in_any_window_it_is_valid(name: str) -> None:
    """Whatever models babble, and whatever the lookahead."""
    schema, is_enforced = SCHEMAS[name]
    random = Random(name)
    options = GenerationConfig(
        response_format=JsonSchema(schema=schema),
        temperature=random.choice([0, 1.5]),
        seed=random.randrange(2**32),
    )
    constraint = constraint_for(options)
    assert constraint is not None
    way = find_way(constraint.cursor(DRAFTER.tokens), DRAFTER.tokens, b"")
    assert way is not None
    tight = random.random() < 0.5
    VERIFIER.context_window = 1 + len(way.text) + random.randrange(12) if tight else 4096
    budget = len(way.ids) + random.randrange(12)
    config = EnsembleConfig(mode=random.choice(["safe", "every-token"]), lookahead=16)
    results = [
        SafeEngine(DRAFTER, [VERIFIER], made).complete(
            "x", options.model_copy(update={"max_tokens": budget})
        )
        for made in (config, config.model_copy(update={"lookahead": 1}))
    ]
    assert results[0].pieces == results[1].pieces
    assert results[0].statistics.tokens <= budget
    assert (results[0].finish_reason == "length") == bool(results[0].statistics.closed)
    enforced = json.loads(split(schema, "schema").enforced)
    validator(schema if is_enforced else enforced).validate(json.loads(results[0].text))


def babbling(seed: int, words: list[bytes]) -> Script:
    """A model that has an opinion on every token, and none that lasts."""
    letters = [bytes([b]) for b in range(32, 127)] + [b"\xc3", b"\xa9"]

    @cache
    def script(text: bytes) -> Mapping[bytes, float]:
        return {t: chance(seed, text, t) ** 4 for t in [*letters, *words, END]}

    return script


WORDS = [b'": "', b'", "', b'"}', b"]}", b"12", b'a"', b'{"v": ', b"null", b"\xc3\xa9"]
DRAFTER = ScriptedMember("drafter", WORDS, babbling(1, WORDS))
VERIFIER = ScriptedMember("verifier", WORDS[5:], babbling(2, WORDS[5:]))


@pytest.mark.parametrize("name", [name for name, (_, whole) in SCHEMAS.items() if not whole])
def test_what_is_enforced_is_no_narrower_than_the_schema(name: str) -> None:
    """What is taken out of a schema must leave everything allowed that it allows."""
    schema, _ = SCHEMAS[name]
    made = json.loads(split(schema, "schema").enforced, object_hook=without_our_bounds)
    given, enforced = validator(schema), validator(made)
    walks = Walks(f"%json {json.dumps({**schema, 'x-guidance': LENIENT})}")
    instances = [walks.instance(steps, Random(f"{name} {steps}")) for steps in range(0, 60, 3)]
    valid = [json.loads(t) for t in instances if t is not None and given.is_valid(json.loads(t))]
    assert valid or name.startswith("holds")
    assert all(enforced.is_valid(value) for value in valid)


def without_our_bounds(part: dict[str, Any]) -> dict[str, Any]:
    """Numbers are held to what fits 64 bits: that is meant to be narrower."""
    ours = (2**63 - 1024, 1024 - 2**63, 10**17, -(10**17), 1e-10)
    return {key: value for key, value in part.items() if value not in ours}


LENIENT = {"lenient": True, "coerce_one_of": True}


def takes(schema: Any, value: str) -> bool:
    """Whether a grammar allows a text as a whole answer."""
    found = split(schema, "schema")
    assert not found.checked
    cursor = Constraint(f"start: %json {found.enforced}", "schema", schema).cursor(BYTES)
    return cursor.complete(list(value.encode()))


NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
STEP = {"multipleOf": 3}


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        ({**NUMBER, "minimum": 0.5}, ["0.5", "1", "12.25"], ["0.4", "-1", "9" * 18]),
        ({**NUMBER, "maximum": -0.5}, ["-0.5", "-7"], ["0", "-0.4", "-" + "9" * 18]),
        ({**NUMBER, "maximum": 1e20}, ["3.5"], ["9" * 18, "0." + "3" * 11]),
        ({**INTEGER, "maximum": -3}, ["-3", "-44"], ["-2", "-" + "9" * 20]),
        ({**INTEGER, "minimum": -(2**63), "maximum": 2**64}, ["5", "-5"], ["9" * 20]),
        ({"allOf": [NUMBER, STEP]}, ["9", "-3"], ["1.1047205888", "22222222222222221.1047205888"]),
        ({**NUMBER, "minimum": 1 / 3, "maximum": 1 / 3}, [str(1 / 3)], ["0.3"]),
        ({**NUMBER, "exclusiveMinimum": 0, "maximum": 0.5}, ["0.01", "0.5"], ["0", "0.0"]),
        ({**NUMBER, "exclusiveMaximum": 0, "minimum": -0.5}, ["-0.01"], ["0", "-0", "-0.6"]),
        (
            {**NUMBER, "exclusiveMinimum": 0, "maximum": 0.5, "multipleOf": 0.01},
            ["0.01", "0.5"],
            ["0", "0.005"],
        ),
        ({"anyOf": [{**INTEGER, "minimum": n} for n in range(6)]}, ["0", "7"], ["-1", "9" * 20]),
        ({"type": "array", "prefixItems": [INTEGER] * 6}, ["[1, 2]"], ["[" + "9" * 20 + "]"]),
        ({"type": "string", "pattern": r"^[^\s-]+$"}, ['"ab"'], ['"a b"', '"-"', r'"\b"']),
        ({"type": "string", "pattern": r"^[^-a]+$"}, ['"b"'], ['"a"', '"-"']),
        ({"type": "string", "pattern": r"^[[a-z]*]$"}, ['"[[ab]"', '"a]"'], ['"a"']),
        ({"type": "string", "pattern": r'^[^"]+$'}, ['"a"'], [r'"\""', r'"a\"b"']),
        ({"type": "string", "pattern": r"^[^/\\]+$"}, ['"a b"'], [r'"\\"', '"/"', r'"a\\n"']),
        (
            {"patternProperties": {r"^[^\\]$": True}, "additionalProperties": False},
            ['{"a": 1}'],
            [r'{"\\": 1}'],
        ),
    ],
    ids=str,
)
def test_what_is_written_and_what_is_not(schema: Any, taken: list[str], refused: list[str]) -> None:
    """Bounds where a schema has none, or wider ones; and what the library would let through."""
    assert [takes(schema, value) for value in taken] == [True] * len(taken)
    assert [takes(schema, value) for value in refused] == [False] * len(refused)


def test_decimals_are_checked_as_decimals() -> None:
    """By floats, 618234.2 is no multiple of 0.01."""
    schema = {"not": {"const": 1}, "multipleOf": 0.01}
    assert violation(schema, 618234.2) is None
    assert "12.125 is not a multiple of 0.01" in str(violation(schema, 12.125))
    assert violation(schema, float("inf")) is not None


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every grammar that the library is asked about."""
    asked: list[str] = []
    ask = schemas.refusal
    monkeypatch.setattr(schemas, "refusal", lambda lark: asked.append(lark) or ask(lark))
    return asked


def test_a_schema_is_not_repaired_for_ever(compiled: list[str]) -> None:
    """One keyword after the other was looked for: 33 s for one real schema."""
    word = {"type": "string", "pattern": "^(?!no)[a-z]+$"}
    schema = {"type": "object", "properties": {f"word {n}": word for n in range(1000)}}
    found = split(schema, "schema")
    assert len(compiled) < 150
    assert {keyword for _, keyword in found.checked} == {"pattern"}
    assert len(found.checked) == 1000


def test_what_is_too_large_keeps_what_lies_above(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def small(lark: str) -> str | None:
        sizes.append(len(lark))
        return "schema too large" if len(lark) > 5000 else None

    monkeypatch.setattr(schemas, "refusal", small)
    schema: dict[str, Any] = {"type": "string"}
    for n in range(4):
        schema = {"type": "object", "properties": {f"{n} {m}": schema for m in range(5)}}
    schema["required"] = ["3 0"]
    found = split(schema, "schema")
    assert len(sizes) < 20 and 2000 < sizes[-1] <= 5000
    enforced = json.loads(found.enforced)
    assert enforced["required"] == ["3 0"] and enforced["properties"]["3 4"]["type"] == "object"


def test_a_refusal_is_remembered(compiled: list[str]) -> None:
    schema = {"type": "object", "properties": {"once": {"type": "strange"}}}
    asked = []
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="#/properties/once: Invalid type: strange"):
            split(schema, "schema")
        asked.append(len(compiled))
    assert 0 < asked[0] == asked[1]
