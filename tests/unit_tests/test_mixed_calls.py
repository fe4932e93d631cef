"""64 mixed calls of both adapters at the same time, on toys: none of them notices the others."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from test_transformers_member import member_of
from toy_models import SHAPE, toy_model
from transformers import LlamaConfig

from safe_integrations.models.transformers.member import TransformersMember
from tests.loops import join_generations
from tests.mixed import LEFT, Both, Open, questions
from tests.prompts import PROMPTS

LIMIT = 300_000
TEXTS = [f"{'Once upon a time. ' * (n % 4) ** 2}{PROMPTS[n % 40]}" for n in range(73)]
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def pair(limit: int) -> list[TransformersMember]:
    """New members, with nothing in their caches."""
    models = [
        toy_model(
            name,
            size,
            LlamaConfig(
                vocab_size=size, initializer_range=0.5, max_position_embeddings=8192, **SHAPE
            ),
        )
        for name, size in (("drafter", 400), ("verifier", 450))
    ]
    return [member_of(model, part=16, reuse_bytes=limit) for model in models]


def nobody_is_left(members: Sequence[TransformersMember], limit: int, sessions: Open) -> None:
    join_generations()
    gc.collect()
    assert sessions.opened > 64 and sessions.sessions == set()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("safe-answer")]
    for member in members:
        passes = member.forward._passes
        assert passes._leader is None and passes._waiting == passes._chosen == []
        assert 0 < member.cache_bytes <= limit
        for cached in member._idle:
            assert {layer.length for layer in cached.kv._croppable} == {len(cached.ids)}


async def test_64_mixed_calls() -> None:
    """Sync and async, of both adapters; a third is left, some are wrong, some have schemas."""
    asked = questions(TEXTS, 12, random.Random(5), longest=0.5, batch_size=4)
    assert len(asked) == 64
    fates = Counter(question.fate for question in asked)
    assert fates["is left"] + fates["times out"] >= 20 and fates["is wrong"] >= 4
    alone = Both(pair(1 << 30))
    members, sessions = pair(LIMIT), Open()
    both = Both(members)
    with sessions.watched():
        outcomes = await both.ask_all(asked)
        nobody_is_left(members, LIMIT, sessions)
    texts = set()
    for question, outcome in zip(asked, outcomes, strict=True):
        if question.fate == "is wrong":
            assert isinstance(outcome, Exception), question
        elif isinstance(outcome, Exception):
            assert question.fate == "times out", (question, outcome)
            assert isinstance(outcome.__cause__ or outcome, TimeoutError)
        elif outcome != LEFT:
            assert outcome == alone.alone(question), question
            texts.update(outcome)
        else:
            assert question.fate == "is left"
    assert LEFT in outcomes and len(texts) > 20
    for question in asked[:1]:
        assert both.alone(question) == alone.alone(question)
