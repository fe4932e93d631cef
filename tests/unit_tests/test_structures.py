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
from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema
from safe_integrations.engine.closing import find_way
from safe_integrations.engine.tokens import END
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure.calls import constraint_for
from safe_integrations.structure.schemas import json_rule, split
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
