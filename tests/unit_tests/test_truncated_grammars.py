"""Members that tell only their best ids, held by grammars or drawn from: the same answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from math import exp
from typing import Any

import pytest
from cases import chance
from truncated import TruncatedMember

from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema, Regex, Tool
from safe_integrations.engine.tokens import END
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember

LETTERS = [bytes([b]) for b in range(32, 127)] + [b"\n"]
PARTS = (
    (b'{"', b'": ', b'", "', b"re", b"gr", b"een", b"blue", b"tool", b"_call", b' "', b'"}'),
    (b'{"n', b'": "', b'",', b"red", b"green", b"bl", b"ue", b"<tool_", b"name", b"}\n", b"12"),
    (b'{"', b'"name"', b": ", b"gree", b"n", b"arg", b"uments", b"call>", b'"}', b"10", b"2 "),
)
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blue", "grey"]},
        "name": {"type": "string", "maxLength": 12},
        "n": {"type": "integer", "minimum": 0, "maximum": 300},
    },
    "required": ["color", "name", "n"],
    "additionalProperties": False,
}
PICK = Tool(name="pick", parameters=SCHEMA)
GREET = Tool(name="greet")
PLANS = {
    "auto": (b'Hm. <tool_call>\n{"name": "pick", "arguments": {"', 1e8),
    "free": (b"The blue tool is green, and the name of the other one is 12.", 1e3),
}
"""What models have in mind, and how much more probable that makes it."""
FORMS: Mapping[str, dict[str, Any]] = {
    "regex": {"response_format": Regex(pattern="[a-f]{2,6}( [0-9]{1,4})*")},
    "JSON": {"response_format": JsonSchema(schema=SCHEMA)},
    "forced": {"tools": (PICK, GREET), "tool_choice": "required"},
    "named": {"tools": (PICK, GREET), "tool_choice": "pick"},
    "auto": {"tools": (PICK, GREET)},
    "free": {},
}
seen: Counter[str] = Counter()


def members(plan: bytes, sure: float) -> list[ScriptedMember]:
    """Models that all have something to say to everything, most of it hardly probable."""
    made = []
    for nth, parts in enumerate(PARTS):
        vocabulary = [*LETTERS, *parts]
        mind = minds(nth, tuple(vocabulary), plan, sure)
        made.append(ScriptedMember(f"model-{nth}", vocabulary, mind, complete=False))
    return made


@lru_cache(maxsize=64)
def minds(nth: int, vocabulary: tuple[bytes, ...], plan: bytes, sure: float) -> Any:
    @cache
    def mind(text: bytes) -> Mapping[bytes, float]:
        weights = {}
        for symbol in (*vocabulary, END):
            common, own = (chance(5 + n, text, b"|", symbol) for n in (0, 77 * (nth + 1)))
            weights[symbol] = exp(6 * common + 5 * own) * len(symbol)
            if symbol.startswith(b'"') or symbol == END:
                weights[symbol] *= 20
            if plan[len(text) :].startswith(symbol) and plan.startswith(text):
                weights[symbol] *= sure
        return {symbol: weight / sum(weights.values()) for symbol, weight in weights.items()}

    return mind


def complete(models: Sequence[Any], config: EnsembleConfig, options: GenerationConfig) -> Result:
    return SafeEngine(models[0], models[1:], config).complete("Go.", options)


def cases(form: str, draws: bool, top_k: int = 20) -> tuple[list[ScriptedMember], GenerationConfig]:
    how = {"temperature": 0.8, "top_k": top_k, "top_p": 0.95, "seed": 3} if draws else {}
    plan = PLANS.get(form, (b"", 1.0))
    return members(*plan), GenerationConfig(max_tokens=90, **how, **FORMS[form])


def what(result: Result) -> list[tuple[int, bytes, bytes, str]]:
    return [(p.start, p.proposed, p.written, str(p.verdict)) for p in result.pieces]


def numbers(result: Result) -> list[float]:
    """All probabilities that an answer shows."""
    found = []
    for piece in result.pieces:
        for vote in piece.votes:
            found += [vote.probability, vote.best_probability]
        for candidate in piece.candidates:
            found += [candidate.probability, *candidate.by_model]
    return found


def is_whole(form: str, text: str) -> bool:
    """Whether an answer is what it had to be."""
    if form == "regex":
        return re.fullmatch("[a-f]{2,6}( [0-9]{1,4})*", text) is not None
    if form == "JSON":
        return set(json.loads(text)) == set(SCHEMA["properties"])
    calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.S)
    called = [json.loads(call) for call in calls]
    assert all(call["name"] in ("pick", "greet") for call in called)
    return bool(called) or form == "free"


everything = pytest.mark.parametrize("form", FORMS)
units = pytest.mark.parametrize("unit", ["text", "token"])
draws = pytest.mark.parametrize("draws", [False, True])


@everything
@units
@draws
def test_at_full_width_everything_is_the_same(form: str, unit: str, draws: bool) -> None:
    models, options = cases(form, draws)
    config = EnsembleConfig(unit=unit)
    whole = complete(models, config, options)
    told = complete([TruncatedMember(m, 10_000) for m in models], config, options)
    assert told.text == whole.text and is_whole(form, told.text)
    assert what(told) == what(whole)
    for one, other in zip(told.pieces, whole.pieces, strict=True):
        assert [c.symbol for c in one.candidates] == [c.symbol for c in other.candidates]
    assert numbers(told) == pytest.approx(numbers(whole), abs=1e-5)
    seen.update(what[3] for what in what(whole))


@everything
@units
@draws
def test_from_half_of_the_ids_and_questions_the_text_is_the_same(
    form: str, unit: str, draws: bool
) -> None:
    models, options = cases(form, draws)
    config = EnsembleConfig(unit=unit)
    whole = complete(models, config, options)
    few = [TruncatedMember(m, 64, ids=128) for m in models]
    told = complete(few, config, options)
    assert told.text == whole.text and is_whole(form, told.text)
    assert what(told) == what(whole)
    asked = sum(len(m.asked) for m in few)
    seen["asked"] += asked
    seen["among"] += sum(len(m.among) for m in few)
    seen["rows"] += len(told.pieces)


@everything
@units
@draws
def test_from_a_few_ids_and_small_questions_the_form_is_kept(
    form: str, unit: str, draws: bool
) -> None:
    """And whatever the lookahead, the text is the same."""
    models, options = cases(form, draws, top_k=8)
    texts = set()
    for lookahead in (1, 3, 16):
        config = EnsembleConfig(unit=unit, lookahead=lookahead, union_top_k=8)
        few = [TruncatedMember(m, 8, ids=12) for m in models]
        texts.add(complete(few, config, options).text)
        seen["among"] += sum(len(m.among) for m in few)
    (text,) = texts
    assert is_whole(form, text)


def test_the_cases_above_asked_and_did_all_that_there_is() -> None:
    if not seen:  # they ran in another process, or not at all
        pytest.skip("the tests above did not run in this process")
    print(seen)
    assert seen["asked"] > 20 and seen["among"] > 5
    assert all(seen[v] for v in ("unanimous", "majority", "changed", "accepted", "forced"))
