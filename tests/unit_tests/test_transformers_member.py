"""A transformers model as a member: its caches, on toys with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from toy_models import SHAPE, toy_model
from transformers import Phi3Config

from safe_integrations.models.load import load_member
from safe_integrations.models.loading import LoadedModel
from safe_integrations.models.transformers.member import TransformersMember

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
    used, fresh = load_member(stretching), load_member(stretching)
    assert isinstance(used, TransformersMember) and isinstance(fresh, TransformersMember)
    long, short = list(range(20, 90)), list(range(20, 50))
    for prompt in (short, long, short):
        expected = ours(fresh, prompt, 6)
        fresh.forget()
        assert ours(used, prompt, 6) == expected


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
