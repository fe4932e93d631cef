"""Caches that can be cut back: which layers they can stand for, and what cutting leaves."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    T5Config,
)

from safe_integrations.errors import UnsupportedModelError
from safe_integrations.models.transformers import kv_cache
from safe_integrations.models.transformers.kv_cache import (
    CroppableCache,
    CroppableLayer,
    layer_windows,
    rope_switch,
)

SHAPE = {
    "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
KINDS = {
    "full": ("llama", {}),
    "sliding": ("mistral", {"sliding_window": 16}),
    "both": ("gemma3_text", {"sliding_window": 16, "sliding_window_pattern": 2}),
    "chunks": (
        "llama4_text",
        {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 32},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_was_cut_back_gives_what_reading_everything_gives(kind: str) -> None:
    """A layer that forgets what left its window, or masks it wrongly, changes the logits."""
    name, options = KINDS[kind]
    config = transformers.AutoConfig.for_model(name, **(SHAPE | options))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    kv = CroppableCache(layer_windows(config, kind))
    rng = random.Random(3)
    ids: list[int] = []
    with torch.inference_mode():
        for _ in range(15):
            kept = rng.randint(max(0, len(ids) - 12), len(ids))
            del ids[kept:]
            kv.cut(kept)
            new = rng.choices(range(1, 100), k=rng.randint(1, 25))
            ids += new
            got = model(input_ids=torch.tensor([new]), past_key_values=kv).logits
            expected = model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, kept:]
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert len(ids) > 64


LONG = {"rope_type": "longrope", "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("name", "rope", "switch"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 1e4}, None),
        ("llama", DYNAMIC, None),
        ("gemma3_text", {"sliding_attention": LONG, "full_attention": DYNAMIC}, 131072),
        ("phi3", LONG | {"original_max_position_embeddings": 512}, 512),
        ("gpt2", None, None),
        ("bloom", None, None),  # says of no length that it was built for it
    ],
)
def test_where_positions_begin_to_depend_on_the_length(
    name: str, rope: dict[str, object] | None, switch: int | None
) -> None:
    config = transformers.AutoConfig.for_model(name)
    if rope is not None:
        config.rope_parameters = rope
    assert rope_switch(config) == switch


@pytest.mark.parametrize("config", [T5Config(), MambaConfig(num_hidden_layers=2)])
def test_what_cannot_be_cut_back_is_refused(config: PretrainedConfig) -> None:
    with pytest.raises(UnsupportedModelError, match="toy.* use a "):
        layer_windows(config, "toy")


def test_another_release_of_transformers_is_told_by_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not part of its interface may go: the module loads, and says what it cannot use."""
    monkeypatch.delattr("transformers.cache_utils.get_layer_types_and_kwargs")
    spec = importlib.util.spec_from_file_location("fresh_kv_cache", kv_cache.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(UnsupportedModelError, match="toy"):
        module.layer_windows(LlamaConfig(**SHAPE), "toy")


def test_a_layer_for_which_memory_is_short_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys had grown and values had not: the next pass failed, for whoever's cache it was."""
    layer, grown, calls = CroppableLayer(), kv_cache._grown, iter(range(9))
    states = torch.randn(1, 2, 300, 8)
    layer.update(states[:, :, :100], states[:, :, :100])

    def short(*given: Any) -> torch.Tensor:
        if next(calls) == 1:
            raise MemoryError
        return grown(*given)

    monkeypatch.setattr(kv_cache, "_grown", short)
    with pytest.raises(MemoryError):
        layer.update(states[:, :, 100:], states[:, :, 100:])
    assert layer.length == 100
    keys, values = layer.update(states[:, :, 100:], states[:, :, 100:])
    assert torch.equal(keys, states) and torch.equal(values, states)
