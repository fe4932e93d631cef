"""Guaranteed structure on the two real models. `make eval` runs 100 schemas at three budgets."""

from __future__ import annotations

import json
import os
from collections import Counter
from random import Random

import jsonschema
import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema
from safe_integrations.engine.events import Verdict
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.structure.schemas import split
from tests.schemas import schema
from tests.structures import SCHEMAS

COUNT = int(os.environ.get("SAFE_EVAL_SCHEMAS", "3"))
BUDGETS = (64, 128, 200) if "SAFE_EVAL_SCHEMAS" in os.environ else (24,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore::safe_integrations.errors.UnenforcedSchemaWarning")
def test_every_answer_validates(
    smollm2: TransformersMember, gemma3: TransformersMember, temperature: float
) -> None:
    """At every budget that can hold an answer: by the schema, or by what is enforced of it."""
    kind, seen, failed = jsonschema.Draft202012Validator, Counter[str](), []
    for name in Random(1).sample(list(SCHEMAS), COUNT):
        wanted, is_enforced = SCHEMAS[name]
        rule = wanted if is_enforced else json.loads(split(wanted, "schema").enforced)
        for budget in BUDGETS:
            options = GenerationConfig(
                max_tokens=budget,
                temperature=temperature,
                seed=budget,
                response_format=JsonSchema(schema=wanted),
            )
            try:
                result = SafeEngine(smollm2, [gemma3]).complete("Describe something.", options)
                value = json.loads(result.text)
                kind(rule, format_checker=kind.FORMAT_CHECKER).validate(value)
                assert result.statistics.tokens <= budget
                seen["closed" if result.statistics.closed else "whole"] += 1
            except InvalidArgumentError:
                seen["too small"] += 1
            except (ValueError, AssertionError, jsonschema.ValidationError) as error:
                failed.append((name, budget, str(error)))
    print(temperature, dict(seen))
    assert failed == []
    assert seen["whole"] and (seen["closed"] or COUNT < 20)


def test_under_a_constraint_a_model_verified_by_itself_writes_what_it_writes_alone(
    smollm2: TransformersMember,
) -> None:
    options = GenerationConfig(max_tokens=60, response_format=JsonSchema(schema=schema(4)))
    alone = SafeEngine(smollm2).complete("Describe something as JSON.", options)
    together = SafeEngine(smollm2, [smollm2]).complete("Describe something as JSON.", options)
    assert together.text == alone.text
    assert [p.written for p in together.pieces] == [p.written for p in alone.pieces]
    assert any(p.verdict is Verdict.FORCED for p in alone.pieces)


@pytest.mark.parametrize("lookahead", [1, 16])
def test_under_a_constraint_the_lookahead_does_not_change_the_text(
    smollm2: TransformersMember, gemma3: TransformersMember, lookahead: int
) -> None:
    options = GenerationConfig(max_tokens=40, response_format=JsonSchema(schema=schema(4)))
    config = EnsembleConfig(lookahead=lookahead)
    changed = SafeEngine(smollm2, [gemma3], config).complete("Describe it as JSON.", options)
    usual = SafeEngine(smollm2, [gemma3]).complete("Describe it as JSON.", options)
    assert changed.text == usual.text
