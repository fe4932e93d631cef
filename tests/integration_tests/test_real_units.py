"""Judged by units on the real pair: against the oracle, and whoever drafts."""

from __future__ import annotations

import os

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.units import CONTEXT, Units
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.safe_engine import SafeEngine
from tests.oracle_units import UnitOracle
from tests.prompts import PROMPTS

ORACLE_PROMPTS = int(os.environ.get("SAFE_EVAL_UNITS_ORACLE", "1"))
ORACLE_TOKENS = int(os.environ.get("SAFE_EVAL_UNITS_ORACLE_TOKENS", "6"))
ORDER_PROMPTS = int(os.environ.get("SAFE_EVAL_ORDERS", "1"))
ORDER_TOKENS = int(os.environ.get("SAFE_EVAL_ORDERS_TOKENS", "16"))

NOISE = 1e-4
"""What batching differently may do to a float32 probability; closer decisions may flip."""

TEXTS = {
    "English": "The quick brown fox, in 1998, jumped over 3,500 lazy dogs; nobody followed.",
    "code": "def add(a: int, b: int) -> int:\n    return a + b  # calculateTotalRevenueForYear\n",
    "JSON": '{"name": "Paris", "population": 2102650, "landmarks": ["Louvre", "Orsay"]}',
    "Chinese": "北京是中华人民共和国的首都，也是全国政治、文化和国际交往中心。",
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย",
    "emoji": "I love it 😀😃😄👨‍👩‍👧‍👦 so much! 🚀🚀",
    "base64": "VGhpcyBpcyBhIGJhc2U2NCBlbmNvZGVkIHN0cmluZyB0aGF0IGlzIHJhdGhlciBsb25nLg==",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_units_are_short_and_in_the_tokens_of_the_whole(
    smollm2: TransformersMember, gemma3: TransformersMember, text: str
) -> None:
    """Chinese would be one unit up to the next hard place, and unlike anything models write."""
    data, tables = text.encode(), [smollm2.tokens, gemma3.tokens]
    units = Units(tables)
    written = b""
    ids: list[list[int]] = [[], []]
    lengths = []
    while written != data:
        unit = units.next(data, len(written), final=True)
        assert unit is not None and 0 < len(unit.text) <= CONTEXT
        unit.text.decode()  # no character is cut
        written += unit.text
        for nth in range(2):
            ids[nth] += units.tokens(nth, unit.text)
        lengths.append(min(len(units.tokens(nth, unit.text)) for nth in range(2)))
    assert ids == [table.encode(data) for table in tables]
    assert sum(lengths) / len(lengths) < 3


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS[:ORACLE_PROMPTS])
def test_two_models_write_what_the_oracle_of_units_writes(
    smollm2: TransformersMember, gemma3: TransformersMember, prompt: str, swapped: bool
) -> None:
    members = [gemma3, smollm2] if swapped else [smollm2, gemma3]
    config, options = EnsembleConfig(), GenerationConfig(max_tokens=ORACLE_TOKENS)
    result = SafeEngine(members[0], members[1:], config).complete(prompt, options)
    expected = UnitOracle(members, config, options).write(prompt)
    ours = [(p.start, p.proposed, p.written, p.verdict) for p in result.pieces]
    theirs = [(j.start, j.proposed, j.written, j.verdict) for j in expected.judged]
    if ours != theirs and expected.margin < NOISE:
        pytest.skip(f"they differ, and a decision hangs on {expected.margin:.1e}")
    assert ours == theirs
    assert (result.text, result.finish_reason) == (expected.text, expected.finish_reason)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("prompt", PROMPTS[-ORDER_PROMPTS:])
def test_the_text_does_not_depend_on_who_drafts(
    smollm2: TransformersMember, gemma3: TransformersMember, prompt: str, temperature: float
) -> None:
    """Up to where the budget, which counts the drafter's tokens, cut the shorter one."""
    options = GenerationConfig(max_tokens=ORDER_TOKENS, temperature=temperature, seed=5)
    one = SafeEngine(smollm2, [gemma3]).complete(prompt, options).text
    other = SafeEngine(gemma3, [smollm2]).complete(prompt, options).text
    assert one.startswith(other) or other.startswith(one)
