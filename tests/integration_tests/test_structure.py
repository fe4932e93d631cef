"""Guaranteed structure on the two real models. `make eval` runs 200 schemas, greedy and drawn."""

from __future__ import annotations

import json
import os

import jsonschema
import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema
from safe_integrations.engine.events import Verdict
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.safe_engine import SafeEngine
from tests.schemas import schema

SCHEMAS = int(os.environ.get("SAFE_EVAL_SCHEMAS", "6"))
SHARE_FINISHED = 2 / 3
"""Of the answers; the rest are numbers or texts that small models write without end."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_finished_answers_validate(
    smollm2: TransformersMember, gemma3: TransformersMember, temperature: float
) -> None:
    """Each answer was once a test that was skipped where it did not finish: all might have been."""
    finished = 0
    for seed in range(SCHEMAS):
        options = GenerationConfig(
            max_tokens=160,
            temperature=temperature,
            seed=seed,
            response_format=JsonSchema(schema=schema(seed)),
        )
        result = SafeEngine(smollm2, [gemma3]).complete("Describe something as JSON.", options)
        if result.finish_reason == "stop":
            finished += 1
            jsonschema.validate(json.loads(result.text), schema(seed))
    assert finished >= SHARE_FINISHED * SCHEMAS


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
