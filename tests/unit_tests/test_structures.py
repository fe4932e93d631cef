"""200 schemas: accepted, enforced as a whole or not, and never left by what a grammar allows."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import pytest

from benchmarks.walks import Walks
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.structure.schemas import json_rule, split
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
