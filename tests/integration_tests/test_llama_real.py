"""The default pair computed by llama.cpp, against its own greedy loop and against itself.

llama.cpp rounds as it goes, and what it rounds to depends on how many rows a pass has and in which
cells a sequence lies. How far that takes it from itself is measured here, by the library alone
(`rounding.measure`); what the package adds must stay within.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import pytest

from benchmarks.llama_loop import Loop
from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.tokens import END, common_prefix
from safe_integrations.errors import GenerationCancelled
from safe_integrations.messages import as_messages
from safe_integrations.models.folding import FoldedDistribution
from safe_integrations.models.llama_cpp.member import LlamaMember
from safe_integrations.models.load import load_member
from safe_integrations.models.passes import Part
from safe_integrations.models.spec import LoadedModel, ModelSpec
from safe_integrations.safe_engine import SafeEngine
from tests.oracle import Oracle
from tests.prompts import PROMPTS
from tests.rounding import Noise, apart, lead, measure, parting

SELF_PROMPTS = int(os.environ.get("SAFE_EVAL_SELF", "2"))
SELF_TOKENS = int(os.environ.get("SAFE_EVAL_SELF_TOKENS", "24"))
ORACLE_PROMPTS = int(os.environ.get("SAFE_EVAL_ORACLE", "1"))
ORACLE_TOKENS = int(os.environ.get("SAFE_EVAL_ORACLE_TOKENS", "12"))
WINDOW_PROMPTS = int(os.environ.get("SAFE_EVAL_LOOKAHEAD", "1"))
WINDOW_TOKENS = int(os.environ.get("SAFE_EVAL_LOOKAHEAD_TOKENS", "24"))
LOOKAHEADS = (3, 8, 16, "auto") if WINDOW_PROMPTS > 2 else (16,)
BESIDE = int(os.environ.get("SAFE_EVAL_BESIDE", "4"))
BESIDE_TOKENS = int(os.environ.get("SAFE_EVAL_BESIDE_TOKENS", "8"))
AT_ONCE = 16
MIXED_TOKENS = 12 if WINDOW_PROMPTS <= 2 else WINDOW_TOKENS

PAIR = ("smollm2-135m", "gemma3-270m")
FORMS = ("{}", "In one word: {}")
ASKED = [form.format(prompt) for form in FORMS for prompt in PROMPTS]

LONG = " ".join(f"Line {i}: the {PROMPTS[i % 40]}" for i in range(40))
"""More than 600 tokens for either model: longer than Gemma's sliding window of 512."""

T = TypeVar("T")


def member_of(name: str, called: str | None = None) -> LlamaMember:
    """A member; under another name, it has cells of its own."""
    member = load_member(ModelSpec(source=name, name=called, backend="llama.cpp"))
    assert isinstance(member, LlamaMember)
    return member


@pytest.fixture(params=PAIR)
def member(request: pytest.FixtureRequest) -> LlamaMember:
    return member_of(request.param)


@pytest.fixture
def loop(member: LlamaMember) -> Iterator[Loop]:
    made = Loop(member.context._weights)
    yield made
    made.close()


@cache
def noise(name: str) -> Noise:
    member = member_of(name)
    behind = member.tokens.encode(" ".join(PROMPTS[1:5]).encode())[:48]
    ids = member.render(as_messages(PROMPTS[0])) + behind
    found = measure(member.context._weights, ids, len(behind))
    print(name, found)
    return found


def close(
    name: str, rows: Sequence[FoldedDistribution], others: Sequence[FoldedDistribution]
) -> None:
    """Rows of the same tokens, whatever else is different."""
    distances = [apart(a.logits(), b.logits()) for a, b in zip(rows, others, strict=True)]
    assert max(distances) < 2 * noise(name).logits, distances


def close_call(gap: float, names: Sequence[str]) -> None:
    """Skips a test whose answers part at a decision that rounding can turn."""
    assert gap < max(noise(name).share for name in names), gap
    pytest.skip(f"they part at a gap of {gap:.3f}")


def forget(engine: SafeEngine) -> None:
    for member in engine.members:
        member.forget()  # type: ignore[attr-defined]


def pieces(engine: SafeEngine, prompt: str, tokens: int) -> Sequence[Piece]:
    return engine.complete(prompt, GenerationConfig(max_tokens=tokens)).pieces


def writes_what_the_loop_writes(
    engine: SafeEngine, member: LlamaMember, loop: Loop, prompt: str, tokens: int
) -> None:
    symbols = member.tokens.symbols()
    ends = {i for i, symbol in enumerate(symbols) if symbol == END}
    ids = loop.write(member.render(as_messages(prompt)), tokens, ends)
    forget(engine)
    written = [piece.written for piece in pieces(engine, prompt, tokens)]
    expected = [symbols[i] for i in ids]
    if written != expected:
        same = common_prefix(written, expected)
        close_call(lead(member, prompt, ids[:same], same), [member.name])


@pytest.mark.parametrize("prompt", PROMPTS[:SELF_PROMPTS])
@pytest.mark.parametrize("verified", [False, True], ids=["alone", "verified by itself"])
def test_a_model_writes_what_llama_cpp_writes(
    member: LlamaMember, loop: Loop, prompt: str, verified: bool
) -> None:
    """Token for token, END included."""
    engine = SafeEngine(member, [member_of(member.name, "twin")] if verified else [])
    writes_what_the_loop_writes(engine, member, loop, prompt, SELF_TOKENS)


def test_behind_the_sliding_window_it_writes_what_llama_cpp_writes() -> None:
    member = member_of("gemma3-270m")
    loop = Loop(member.context._weights)
    assert len(member.render(as_messages(LONG))) > 600
    engine = SafeEngine(member, [member_of(member.name, "twin")])
    writes_what_the_loop_writes(engine, member, loop, LONG, 8)
    loop.close()


@pytest.mark.parametrize(
    ("name", "prompt"),
    [*((name, "Why?") for name in PAIR), ("gemma3-270m", LONG)],
    ids=[*PAIR, "behind the window"],
)
def test_cached_equals_recomputed_after_rejections(name: str, prompt: str) -> None:
    """Random cuts and rewrites, as rejected drafts make them; deeper than the last pass, too."""
    member = member_of(name)
    ids, dice = member.render(as_messages(prompt)), random.Random(7)
    text = member.tokens.encode(" ".join(PROMPTS[:4]).encode())
    session, answer, turns = member.start(ids), list[int](), []
    for _ in range(8):
        del answer[dice.randint(max(0, len(answer) - 9), len(answer)) :]
        since = len(answer) - dice.randint(0, min(2, len(answer)))
        answer += dice.choices(text, k=dice.randint(1, 6))
        turns.append((list(answer), since, session.score(answer, since)))
    session.close()
    member.forget()
    for written, since, cached in turns:  # of earlier turns, only the prompt is taken over
        fresh = member.start(ids)
        fresh.score([], 0)
        close(member.name, cached, fresh.score(written, since))
        fresh.close()


@pytest.mark.parametrize("prompt", PROMPTS[:ORACLE_PROMPTS])
def test_two_models_write_what_the_oracle_writes(prompt: str) -> None:
    """Identical text and verdicts, wherever no decision hangs on rounding."""
    members = [member_of(name) for name in PAIR]
    config, options = EnsembleConfig(unit="token"), GenerationConfig(max_tokens=ORACLE_TOKENS)
    engine = SafeEngine(members[0], members[1:], config)
    result = engine.complete(prompt, options)
    expected = Oracle(members, config, options).write(prompt)
    theirs = [
        Piece(j.start, j.start + len(j.written), j.written, j.proposed, Verdict(j.verdict))
        for j in expected.judged
    ]
    gap = parting(engine, prompt, result.pieces, theirs)
    if gap is not None:
        close_call(gap, PAIR)
    assert result.text == expected.text


@cache
def at_lookahead(lookahead: int | str, prompt: str) -> tuple[SafeEngine, Sequence[Piece]]:
    first, second = (member_of(name) for name in PAIR)
    engine = SafeEngine(first, [second], EnsembleConfig(lookahead=lookahead))  # type: ignore[arg-type]
    forget(engine)
    return engine, pieces(engine, prompt, WINDOW_TOKENS)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("prompt", PROMPTS[:WINDOW_PROMPTS])
def test_the_lookahead_hardly_changes_the_text(lookahead: int | str, prompt: str) -> None:
    """Other drafts make other batches, so a text may part where a decision is close."""
    engine, expected = at_lookahead(5, prompt)
    gap = parting(engine, prompt, at_lookahead(lookahead, prompt)[1], expected)
    if gap is not None:
        close_call(gap, PAIR)


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
    pure = SafeEngine(load_member(smollm2_model), [load_member(gemma3_model)])
    options = GenerationConfig(max_tokens=MIXED_TOKENS)
    result = mixed.complete(prompt, options)
    assert all(model.forward_passes for model in result.statistics.models)
    gap = parting(pure, prompt, result.pieces, pure.complete(prompt, options).pieces)
    if gap is not None:
        close_call(gap, PAIR)


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    """Everything at the same time, to the thread."""
    together = threading.Barrier(count)

    def one(nth: int) -> T:
        together.wait()
        return work(nth)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("first", range(0, BESIDE, AT_ONCE))
def test_answers_beside_others_are_what_they_are_alone(first: int) -> None:
    one, other = (member_of(name) for name in PAIR)
    engine = SafeEngine(one, [other])
    asked = ASKED[first : min(first + AT_ONCE, BESIDE)]
    alone = [pieces(engine, prompt, BESIDE_TOKENS) for prompt in asked]
    forget(engine)
    beside = at_once(lambda n: pieces(engine, asked[n], BESIDE_TOKENS), len(asked))
    found = (parting(engine, *answers) for answers in zip(asked, beside, alone, strict=True))
    gaps = [gap for gap in found if gap is not None]
    print(f"{len(gaps)} of {len(asked)} part, at gaps of {[f'{gap:.3f}' for gap in gaps]}")
    assert max(gaps, default=0) < max(noise(name).share for name in PAIR)


def test_many_at_once_share_passes_and_keep_apart(
    member: LlamaMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each expects is what it expects alone, whoever else is in the batch."""
    prompts = [member.render(as_messages(prompt)) for prompt in PROMPTS[:6]]
    answers = [member.tokens.encode(prompt.encode())[:8] for prompt in PROMPTS[6:12]]

    def rows(n: int) -> list[FoldedDistribution]:
        session, found = member.start(prompts[n]), list[FoldedDistribution]()
        for since in range(0, 8, 2):
            found += session.score(answers[n][: since + 2], since)[:2]
        session.close()
        return found

    alone = [rows(n) for n in range(6)]
    member.forget()
    shared: list[int] = []
    compute = member.context.compute

    def counted(tasks: Sequence[Part]) -> None:
        shared.append(len(tasks))
        compute(tasks)

    monkeypatch.setattr(member.context, "compute", counted)
    for ours, theirs in zip(at_once(rows, 6), alone, strict=True):
        close(member.name, ours, theirs)
    assert sum(shared) > len(shared), "passes were shared"


def test_a_pass_over_a_long_prompt_is_cancelled() -> None:
    """In the middle of it; what is read afterwards is right."""
    member = member_of("smollm2-135m")
    ids = member.render(as_messages(LONG))[:400]
    member.forget()
    asked = iter(range(3))
    session = member.start(ids, lambda: next(asked, None) is None)
    with pytest.raises(GenerationCancelled):
        session.score([], 0)
    read = session.work.tokens
    assert read < len(ids)
    session.close()
    again = member.start(ids)
    rows = again.score([], 0)
    assert again.work.reused == read
    again.close()
    member.forget()
    fresh = member.start(ids)
    close(member.name, rows, fresh.score([], 0))
    fresh.close()


def test_a_second_question_over_the_same_context_computes_only_what_is_new() -> None:
    engine = SafeEngine(member_of("smollm2-135m"), [member_of("gemma3-270m")])
    options, context = GenerationConfig(max_tokens=6), " ".join(PROMPTS[:12])
    engine.complete(f"{context}\nWhich of these is about tea?", options)
    second = engine.complete(f"{context}\nWhich of these is about cats?", options)
    for model in second.statistics.models:
        assert model.reused_tokens > 0.8 * model.prompt_tokens


@pytest.mark.parametrize("method", ["unite", "gac"])
def test_everything_that_needs_whole_rows_works(method: str) -> None:
    config = EnsembleConfig(unit="token", method=method)
    engine = SafeEngine(member_of("smollm2-135m"), [member_of("gemma3-270m")], config)
    options = GenerationConfig(
        max_tokens=12, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=3
    )
    assert engine.complete(PROMPTS[1], options).statistics.tokens == 12
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "schema": schema}
    strict = GenerationConfig(max_tokens=20, response_format=form)
    assert '"n"' in engine.complete("How many legs has a cat?", strict).text
