"""A transformers model as a member: its caches, on toys with random weights."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import SHAPE, toy_model
from transformers import LlamaConfig, Phi3Config

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import ContextWindowError, GenerationCancelled
from safe_integrations.models import passes
from safe_integrations.models.load import load_member, unload_models
from safe_integrations.models.spec import LoadedModel, ModelSpec
from safe_integrations.models.transformers import load
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.safe_engine import SafeEngine
from tests.desk import Desk

SIZE = 400
SWITCH = 48
"""Tokens from which on the toy rotates positions another way."""


@pytest.fixture(scope="module")
def stretching() -> LoadedModel:
    """A model with LongRoPE, whose two ways to rotate are far apart."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 5.0, 7.0, 9.0],
        "original_max_position_embeddings": SWITCH,
    }
    config = Phi3Config(
        vocab_size=SIZE, max_position_embeddings=256, original_max_position_embeddings=SWITCH,
        rope_parameters=rope, initializer_range=0.7, **SHAPE,
    )  # fmt: skip
    return toy_model("stretching", SIZE, config)


def alone(model: LoadedModel, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers writes."""
    batch = torch.tensor([list(prompt)])
    written = model.model.generate(
        batch, attention_mask=torch.ones_like(batch), max_new_tokens=count, do_sample=False
    )
    return [int(i) for i in written[0, len(prompt) :]]


def member_of(
    model: LoadedModel, *, window: int = 8192, reuse_bytes: int = 1 << 30, part: int | None = None
) -> TransformersMember:
    """A member with caches of its own; it reads prompts in parts of so many tokens."""
    loaded = load_member(model)
    assert isinstance(loaded, TransformersMember)
    member = TransformersMember(
        model.model, loaded.tokens, loaded.render,
        name=model.name, context_window=window, reuse_bytes=reuse_bytes,
    )  # fmt: skip
    member.forward.rows_alone = part or member.forward.rows_alone
    return member


def same(a: TransformersMember, b: TransformersMember, prompt: Sequence[int]) -> None:
    """Both expect the same after a prompt, whatever they have read before."""
    (x,), (y,) = (member.start(prompt).score([], 0) for member in (a, b))
    np.testing.assert_allclose(np.exp(x.dense()), np.exp(y.dense()), atol=1e-5)


def yes_after(count: int) -> Callable[[], bool]:
    """Somebody who wants to go on so many times, and then no more."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def ours(member: TransformersMember, prompt: Sequence[int], count: int) -> list[int]:
    """What a session makes of asking for the favourite again and again."""
    session, ids = member.start(prompt), []
    while len(ids) < count:
        ids.append(session.score(ids, len(ids))[0].best)
    session.close()
    return ids


def test_longrope_forgets_its_cache_where_generate_does(stretching: LoadedModel) -> None:
    member = load_member(stretching)
    assert isinstance(member, TransformersMember)
    prompt = list(range(20, 50))
    expected = alone(stretching, prompt, 40)
    assert len(set(expected)) > 5, "a text that a wrong rotation would not change shows nothing"
    assert ours(member, prompt, 40) == expected


def test_longrope_caches_serve_prompts_on_their_own_side_of_the_switch(
    stretching: LoadedModel,
) -> None:
    """A cache of a long prompt is of no use for a short one with the same beginning."""
    used = member_of(stretching)
    long, short = list(range(20, 90)), list(range(20, 50))
    for prompt in (short, long, short):
        assert ours(used, prompt, 6) == ours(member_of(stretching), prompt, 6)


def test_a_session_can_be_closed_in_the_middle_of_a_forward_pass() -> None:
    """The garbage collector does that, on the thread that computes; waiting would be for ever."""
    member = load_member(toy_model("toy", SIZE))
    assert isinstance(member, TransformersMember)
    session = member.start([1, 2, 3])
    session.score([], 0)
    with member._lock:
        session.close()
    assert member.cache_bytes > 0
    again = member.start([1, 2, 3, 4])
    again.score([], 0)
    assert again.work.reused == 3


@pytest.mark.parametrize("first", [range(20, 90), range(20, 50)], ids=["long", "short"])
@pytest.mark.parametrize("drafted", [0, 40])
def test_what_is_reused_is_what_is_not_computed_again(
    stretching: LoadedModel, first: Sequence[int], drafted: int
) -> None:
    """Keys that LongRoPE cannot use, of a prompt beyond the switch or a draft, are no savings."""
    member = member_of(stretching)
    ours(member, first, 2)
    prompt, draft = list(range(20, 45)), list(range(100, 100 + drafted))
    session = member.start(prompt)
    (row,) = session.score(draft, drafted)
    work = session.work
    assert work.tokens == len(prompt) + drafted - work.reused
    assert (work.reused > 0) == (len(first) < SWITCH and drafted == 0)
    (fresh,) = member_of(stretching).start(prompt).score(draft, drafted)
    np.testing.assert_allclose(np.exp(row.dense()), np.exp(fresh.dense()), atol=1e-5)


def test_dynamic_positions_end_where_they_begin_to_move() -> None:
    """Behind it every new token rotates all others another way: no row would be what it was."""
    config = LlamaConfig(
        vocab_size=SIZE, max_position_embeddings=SWITCH, initializer_range=0.7,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, **SHAPE,
    )  # fmt: skip
    model = toy_model("dynamic", SIZE, config)
    spec = ModelSpec(source="dynamic", context_window=4 * SWITCH)
    member, prompt = load.member_of(model, spec), list(range(20, 50))
    assert member.context_window == SWITCH
    with pytest.raises(ContextWindowError):
        SafeEngine(member).generate("long " * SWITCH)
    rng, answer, session = random.Random(5), [7], member.start(prompt)
    for _ in range(10):
        del answer[rng.randint(0, len(answer)) :]
        answer += rng.choices(range(1, SIZE), k=rng.randint(1, SWITCH - len(prompt) - len(answer)))
        (row,) = session.score(answer, len(answer))
        (fresh,) = member_of(model).start(prompt).score(answer, len(answer))
        np.testing.assert_allclose(np.exp(row.dense()), np.exp(fresh.dense()), atol=1e-5)


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_a_prefill_is_cancelled_between_two_parts(parts: int) -> None:
    """Else a long prompt holds a caller who has gone for minutes; what was read is of use."""
    model = toy_model("toy", SIZE)
    member, prompt = member_of(model, part=16), [n % SIZE for n in range(7, 77)]
    go_on = yes_after(parts)
    session = member.start(prompt, lambda: go_on())
    with pytest.raises(GenerationCancelled):
        session.score([], 0)
    assert (session.work.passes, session.work.tokens) == (0, 16 * parts)

    go_on = yes_after(99)
    (row,) = session.score([], 0)
    assert (session.work.reused, session.work.tokens) == (0, len(prompt))
    (fresh,) = member_of(model).start(prompt).score([], 0)
    np.testing.assert_allclose(np.exp(row.dense()), np.exp(fresh.dense()), atol=1e-5)


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_a_cancelled_prefill_leaves_a_cache_that_others_can_use(parts: int) -> None:
    model = toy_model("toy", SIZE)
    member, prompt = member_of(model, part=16), [n % SIZE for n in range(7, 77)]
    cancelled = member.start(prompt, yes_after(parts))
    with pytest.raises(GenerationCancelled):
        cancelled.score([], 0)
    cancelled.close()
    assert (member.cache_bytes > 0) == (parts > 0)
    again = member.start(prompt)
    again.score([], 0)
    assert (again.work.reused, again.work.tokens) == (16 * parts, len(prompt) - 16 * parts)
    same(member, member_of(model), prompt)


def test_who_is_cancelled_in_the_queue_keeps_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this session and for others: no pass has touched its cache."""
    monkeypatch.setattr(passes, "_GLANCE", 0.001)
    desk, prompt = Desk(), list(range(3, 60))
    member = member_of(toy_model("a", SIZE), part=16)
    member.forward._passes = desk.passes
    session = member.start(prompt, lambda: bool(desk.passes._waiting))
    session.score([], 0)
    with desk.held(), pytest.raises(GenerationCancelled):
        session.score([5, 6], 2)
    session.score([5], 1)
    session.close()
    again = member.start([*prompt, 5, 7])
    again.score([], 0)
    assert again.work.reused == len(prompt) + 1


def test_rows_of_before_a_cancelled_pass_are_not_taken_for_later_ones() -> None:
    """A verifier reads a long guess, is stopped in it, and is asked about a shorter one."""
    model = toy_model("toy", SIZE)
    go_on = yes_after(99)
    session = member_of(model, part=16).start(range(20, 30), lambda: go_on())
    session.score([], 0)
    ids, go_on = list(range(100, 170)), yes_after(1)
    with pytest.raises(GenerationCancelled):
        session.score(ids, len(ids))
    go_on = yes_after(99)
    (row,) = session.score(ids[:16], 16)
    (fresh,) = member_of(model).start(range(20, 30)).score(ids[:16], 16)
    np.testing.assert_allclose(np.exp(row.dense()), np.exp(fresh.dense()), atol=1e-5)


def test_a_session_that_never_read_leaves_nothing() -> None:
    """A cache of no tokens takes no memory, so no limit would ever drop it."""
    member = member_of(toy_model("toy", SIZE))
    for _ in range(3):
        member.start([1, 2, 3]).close()
    member.cache_bytes  # noqa: B018 - it takes in what was given back
    assert member._idle == []


@pytest.mark.parametrize("method", ["unite", "gac"])
def test_a_model_that_nobody_needs_any_more_is_freed(tmp_path: Path, method: str) -> None:
    """Memory of a long-lived service: unloading must not leave the weights to some table."""
    sources = []
    for size in (SIZE, SIZE + 50):
        model, tokenizer, name = toy_model("saved", size)
        model.save_pretrained(tmp_path / str(size))
        tokenizer.save_pretrained(tmp_path / str(size))
        sources.append(ModelSpec(source=str(tmp_path / str(size)), device="cpu"))
    del model, tokenizer
    engine = SafeEngine(
        load_member(sources[0]),
        [load_member(sources[1])],
        EnsembleConfig(unit="token", method=method),
    )
    engine.complete("a question", GenerationConfig(max_tokens=8, temperature=0.8, seed=1))
    left = [weakref.ref(member) for member in engine.members]
    left += [weakref.ref(member._model) for member in engine.members]
    unload_models()
    gc.collect()
    assert all(ref() is not None for ref in left), "an engine keeps its models"
    del engine
    gc.collect()
    assert [ref() for ref in left] == [None] * 4


WAYS = ["whole", "left", "cancelled", "reading"]
QUESTIONS = [f"{'Once upon a time. ' * n}Question {i}?" for n in (1, 4, 9) for i in range(3)]
SHORT = GenerationConfig(max_tokens=12)


def engine_of(members: Sequence[TransformersMember], rng: random.Random) -> SafeEngine:
    config = EnsembleConfig(
        unit="token", method=rng.choice(["unite", "gac"]), lookahead=rng.choice([2, 5])
    )
    return SafeEngine(members[0], members[1:], config)


def call(members: Sequence[TransformersMember], way: str, rng: random.Random) -> None:
    """One caller, who waits for the answer or gives up on it in one of three ways."""
    question = rng.choice(QUESTIONS)
    if way == "reading":
        member = rng.choice(members)
        prompt = member.tokens.encode(question.encode())
        session = member.start(prompt, yes_after(rng.randint(0, len(prompt) // 16)))
        with suppress(GenerationCancelled):
            session.score([], 0)
        return session.close()
    cancel = yes_after(rng.randint(0, 12) if way == "cancelled" else 10**6)
    events = engine_of(members, rng).generate(question, SHORT, cancel=cancel)
    last = rng.randint(0, 12) if way == "left" else 10**6
    with suppress(GenerationCancelled):
        for count, _ in enumerate(events):
            if count == last:
                events.close()


def test_many_callers_who_come_and_go_leave_the_caches_in_order() -> None:
    """64 calls on 8 threads: some give up in the middle of a prompt, some of an answer.

    A cache that holds more or less than it says answers the next caller with another text.
    """
    models = [
        toy_model(name, size, LlamaConfig(vocab_size=size, initializer_range=0.5, **SHAPE))
        for name, size in (("drafter", SIZE), ("verifier", SIZE + 50))
    ]
    limit = 300_000
    members = [member_of(model, part=16, reuse_bytes=limit) for model in models]
    outcomes: list[str] = []

    def caller(seed: int) -> None:
        rng = random.Random(seed)
        for way in rng.sample(WAYS * 2, k=8):
            try:
                call(members, way, rng)
                outcomes.append(way)
            except Exception as error:
                outcomes.append(repr(error))

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == dict.fromkeys(WAYS, 16)
    for member in members:
        assert 0 < member.cache_bytes <= limit
        for cached in member._idle:
            assert {layer.length for layer in cached.kv._croppable} == {len(cached.ids)}
    texts = set()
    for seed, question in enumerate(QUESTIONS):
        used = engine_of(members, random.Random(seed)).complete(question, SHORT)
        fresh = engine_of([member_of(model) for model in models], random.Random(seed))
        assert used.text == fresh.complete(question, SHORT).text
        texts.add(used.text)
    assert len(texts) > 5, "texts that a wrong cache would not change show nothing"
