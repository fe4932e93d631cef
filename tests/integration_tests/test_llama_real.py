"""The default pair computed by llama.cpp, against its own greedy loop and against itself.

llama.cpp rounds as it goes, and what it rounds to depends on how many rows a pass has and in which
cells a sequence lies. How far that takes it from itself is measured here, by the library alone
(`rounding.measure`); what the package adds must stay within.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import cache

import pytest

from benchmarks.llama_loop import Loop
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Verdict
from safe_integrations.engine.tokens import END
from safe_integrations.messages import as_messages
from safe_integrations.models.folding import FoldedDistribution
from safe_integrations.models.llama_cpp.member import LlamaMember
from safe_integrations.models.load import load_member
from safe_integrations.models.passes import Part
from safe_integrations.models.spec import LoadedModel
from safe_integrations.safe_engine import SafeEngine
from tests.llama_pair import PAIR, alike, at_once, hangs, member_of, noise
from tests.oracle import Oracle
from tests.prompts import PROMPTS
from tests.rounding import Told, apart, told

SELF_PROMPTS = int(os.environ.get("SAFE_EVAL_SELF", "1"))
SELF_TOKENS = int(os.environ.get("SAFE_EVAL_SELF_TOKENS", "20"))
ORACLE_PROMPTS = int(os.environ.get("SAFE_EVAL_ORACLE", "1"))
ORACLE_TOKENS = int(os.environ.get("SAFE_EVAL_ORACLE_TOKENS", "8"))
WINDOW_PROMPTS = int(os.environ.get("SAFE_EVAL_LOOKAHEAD", "1"))
WINDOW_TOKENS = int(os.environ.get("SAFE_EVAL_LOOKAHEAD_TOKENS", "12"))
LOOKAHEADS = (3, 8, 16, "auto") if WINDOW_PROMPTS > 2 else (16,)
AGAIN_PROMPTS = int(os.environ.get("SAFE_EVAL_AGAIN", "1"))
AGAIN_TOKENS = int(os.environ.get("SAFE_EVAL_AGAIN_TOKENS", "12"))
BESIDE = int(os.environ.get("SAFE_EVAL_BESIDE", "3"))
BESIDE_TOKENS = int(os.environ.get("SAFE_EVAL_BESIDE_TOKENS", "6"))
AT_ONCE = 16
MIXED_TOKENS = 8 if WINDOW_PROMPTS <= 2 else WINDOW_TOKENS

FORMS = ("{}", "In one word: {}")
ASKED = [form.format(prompt) for form in FORMS for prompt in PROMPTS]

LONG = " ".join(f"Line {i}: the {PROMPTS[i]}" for i in range(33))
"""Longer than Gemma's sliding window of 512 tokens."""

Turn = tuple[list[int], int, Sequence[FoldedDistribution]]


@pytest.fixture(params=PAIR)
def member(request: pytest.FixtureRequest) -> LlamaMember:
    return member_of(request.param)


def close(
    name: str, rows: Sequence[FoldedDistribution], others: Sequence[FoldedDistribution]
) -> None:
    """Rows of the same tokens, whatever else is different."""
    distances = [apart(a.logits(), b.logits()) for a, b in zip(rows, others, strict=True)]
    assert max(distances) < 2 * noise(name), distances


def forget(engine: SafeEngine) -> None:
    for member in engine.members:
        member.forget()  # type: ignore[attr-defined]


def answer(engine: SafeEngine, prompt: str, tokens: int) -> list[Told]:
    return told(engine.complete(prompt, GenerationConfig(max_tokens=tokens)).pieces)


def loops(member: LlamaMember, prompt: str, tokens: int) -> list[bytes]:
    """What llama.cpp's own loop writes."""
    loop, symbols = Loop(member.context._weights), member.tokens.symbols()
    ends = {i for i, symbol in enumerate(symbols) if symbol == END}
    ids = loop.write(member.render(as_messages(prompt)), tokens, ends)
    loop.close()
    return [symbols[i] or b"" for i in ids]


@cache
def expected_of(name: str, prompt: str) -> list[bytes]:
    return loops(member_of(name), prompt, SELF_TOKENS)


@pytest.mark.parametrize("prompt", PROMPTS[:SELF_PROMPTS])
@pytest.mark.parametrize(
    "verdict", [Verdict.UNVERIFIED, Verdict.UNANIMOUS], ids=["alone", "verified by itself"]
)
def test_a_model_writes_what_llama_cpp_writes(
    member: LlamaMember, prompt: str, verdict: Verdict
) -> None:
    """Token for token, END included."""
    alone = verdict == Verdict.UNVERIFIED
    engine = SafeEngine(member, [] if alone else [member_of(member.name, "twin")])
    expected = [(symbol, verdict) for symbol in expected_of(member.name, prompt)]
    forget(engine)
    alike(engine, prompt, answer(engine, prompt, SELF_TOKENS), expected)


def test_behind_the_sliding_window_it_writes_what_llama_cpp_writes() -> None:
    member = member_of("gemma3-270m")
    assert len(member.render(as_messages(LONG))) > 540
    engine = SafeEngine(member)
    expected = [(symbol, Verdict.UNVERIFIED) for symbol in loops(member, LONG, 8)]
    alike(engine, LONG, answer(engine, LONG, 8), expected)


def cut_and_rewritten(member: LlamaMember, prompt: Sequence[int], seed: int) -> list[Turn]:
    """Random cuts and rewrites, as rejected drafts make them; deeper than the last pass, too."""
    text = member.tokens.encode(" ".join(PROMPTS[:4]).encode())
    dice, session, ids, turns = random.Random(seed), member.start(prompt), list[int](), []
    for _ in range(6):
        del ids[dice.randint(max(0, len(ids) - 9), len(ids)) :]
        since = len(ids) - dice.randint(0, min(2, len(ids)))
        ids += dice.choices(text, k=dice.randint(1, 6))
        turns.append((list(ids), since, session.score(ids, since)))
    session.close()
    return turns


def equal_recomputed(member: LlamaMember, prompt: Sequence[int], turns: Sequence[Turn]) -> None:
    """Alone, and of earlier turns only the prompt is taken over."""
    for written, since, rows in turns:
        fresh = member.start(prompt)
        fresh.score([], 0)
        close(member.name, rows, fresh.score(written, since))
        fresh.close()


def test_cached_equals_recomputed_after_rejections(member: LlamaMember) -> None:
    ids = member.render(as_messages("Why?"))
    turns = cut_and_rewritten(member, ids, 7)
    member.forget()
    equal_recomputed(member, ids, turns)


@pytest.mark.parametrize("prompt", PROMPTS[:ORACLE_PROMPTS])
def test_two_models_write_what_the_oracle_writes(prompt: str) -> None:
    members = [member_of(name) for name in PAIR]
    config, options = EnsembleConfig(unit="token"), GenerationConfig(max_tokens=ORACLE_TOKENS)
    engine = SafeEngine(members[0], members[1:], config)
    result = engine.complete(prompt, options)
    expected = Oracle(members, config, options).write(prompt)
    judged = [(piece.written, Verdict(piece.verdict)) for piece in expected.judged]
    alike(engine, prompt, told(result.pieces), judged)
    assert result.text == expected.text


@cache
def at_lookahead(lookahead: int | str, prompt: str) -> tuple[SafeEngine, list[Told]]:
    first, second = (member_of(name) for name in PAIR)
    engine = SafeEngine(first, [second], EnsembleConfig(lookahead=lookahead))  # type: ignore[arg-type]
    forget(engine)
    return engine, answer(engine, prompt, WINDOW_TOKENS)


@pytest.mark.parametrize("prompt", PROMPTS[:WINDOW_PROMPTS])
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_the_lookahead_hardly_changes_the_text(lookahead: int | str, prompt: str) -> None:
    """Other drafts make other batches, so a text may part where a decision is close."""
    engine, expected = at_lookahead(5, prompt)
    alike(engine, prompt, at_lookahead(lookahead, prompt)[1], expected)


@pytest.mark.parametrize("prompt", PROMPTS[:AGAIN_PROMPTS])
def test_the_same_prompt_again_hardly_changes_the_text(prompt: str) -> None:
    """By `auto`, drafts are as long as the time suggests that passes take."""
    drafter, verifier = (member_of(name) for name in PAIR)
    engine = SafeEngine(drafter, [verifier], EnsembleConfig(lookahead="auto"))
    first, *others = (answer(engine, prompt, AGAIN_TOKENS) for _ in range(3))
    for other in others:
        alike(engine, prompt, other, first)


@cache
def pure(smollm2: LoadedModel, gemma3: LoadedModel, prompt: str) -> tuple[SafeEngine, list[Told]]:
    engine = SafeEngine(load_member(smollm2), [load_member(gemma3)])
    return engine, answer(engine, prompt, MIXED_TOKENS)


@pytest.mark.parametrize("prompt", PROMPTS[1 : 1 + WINDOW_PROMPTS])
@pytest.mark.parametrize("drafter", ["llama.cpp", "transformers"])
def test_a_mixed_ensemble(
    drafter: str, prompt: str, smollm2_model: LoadedModel, gemma3_model: LoadedModel
) -> None:
    """Both backends hold the same weights; one rounds, the other does not."""
    if drafter == "llama.cpp":
        mixed = SafeEngine(member_of("smollm2-135m"), [load_member(gemma3_model)])
    else:
        mixed = SafeEngine(load_member(smollm2_model), [member_of("gemma3-270m")])
    engine, expected = pure(smollm2_model, gemma3_model, prompt)
    result = mixed.complete(prompt, GenerationConfig(max_tokens=MIXED_TOKENS))
    assert all(model.forward_passes for model in result.statistics.models)
    alike(engine, prompt, told(result.pieces), expected)


@pytest.mark.parametrize("first", range(0, BESIDE, AT_ONCE))
def test_answers_beside_others_are_what_they_are_alone(first: int) -> None:
    one, other = (member_of(name) for name in PAIR)
    engine = SafeEngine(one, [other])
    asked = ASKED[first : min(first + AT_ONCE, BESIDE)]
    alone = [answer(engine, prompt, BESIDE_TOKENS) for prompt in asked]
    forget(engine)
    beside = at_once(lambda n: answer(engine, asked[n], BESIDE_TOKENS), len(asked))
    parted = [pair for pair in zip(asked, beside, alone, strict=True) if pair[1] != pair[2]]
    print(f"{len(parted)} of {len(asked)} part")
    assert all(hangs(engine, *pair) for pair in parted)


def test_many_at_once_share_passes_and_keep_apart(
    member: LlamaMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each expects is what it expects alone, whoever else is in the batch."""
    prompts = [member.render(as_messages(prompt)) for prompt in PROMPTS[:4]]
    shared: list[int] = []
    compute = member.context.compute

    def counted(tasks: Sequence[Part]) -> None:
        shared.append(len(tasks))
        compute(tasks)

    monkeypatch.setattr(member.context, "compute", counted)
    answers = at_once(lambda n: cut_and_rewritten(member, prompts[n], n), len(prompts))
    assert sum(shared) > len(shared), "passes were shared"
    member.forget()
    for prompt, turns in zip(prompts, answers, strict=True):
        equal_recomputed(member, prompt, turns)


def test_a_second_question_over_the_same_context_computes_only_what_is_new() -> None:
    engine = SafeEngine(member_of("smollm2-135m"), [member_of("gemma3-270m")])
    options, context = GenerationConfig(max_tokens=2), " ".join(PROMPTS[:6])
    engine.complete(f"{context}\nWhich of these is about poems?", options)
    second = engine.complete(f"{context}\nWhich of these is about fruits?", options)
    for model in second.statistics.models:
        assert model.reused_tokens > 0.8 * model.prompt_tokens


@pytest.mark.parametrize("method", ["unite", "gac"])
def test_everything_that_needs_whole_rows_works(method: str) -> None:
    config = EnsembleConfig(unit="token", method=method)
    engine = SafeEngine(member_of("smollm2-135m"), [member_of("gemma3-270m")], config)
    options = GenerationConfig(
        max_tokens=6, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=3
    )
    assert engine.complete(PROMPTS[1], options).statistics.tokens == 6
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": schema}
    strict = GenerationConfig(max_tokens=20, response_format=form)
    assert '"n"' in engine.complete("How many legs has a cat?", strict).text
