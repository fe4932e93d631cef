"""Models of transformers, small enough to be made anew: random weights, a real tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.prompts import CONTEXT
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.spec import LoadedModel
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def toy_tokenizer(
    size: int,
    template: str | dict[str, str] | None = None,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of its own.

    Args:
        size: Tokens of its vocabulary, before `special` and `added`.
        template: Its chat template, or several with names.
        special: Special tokens besides `<eos>`.
        added: Further tokens that are none.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([CONTEXT], trainer)
    inner.add_special_tokens(list(special))
    inner.add_tokens(list(added))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def renderer(tokenizer: Any, name: str = "toy") -> Renderer:
    """What renders prompts for a tokenizer of transformers."""
    return Renderer(TransformersTokenizer(tokenizer, name))


def toy_model(
    name: str,
    size: int,
    config: PretrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> LoadedModel:
    """A model with a vocabulary of its own.

    Args:
        name: How it is called.
        size: Tokens of its vocabulary, and the seed of its weights.
        config: What to build; None takes a small Llama.
        tokenizer: None takes a `toy_tokenizer`.
    """
    tokenizer = tokenizer or toy_tokenizer(size)
    torch.manual_seed(size)
    rows = max(size, len(tokenizer))
    config = config or LlamaConfig(vocab_size=rows, max_position_embeddings=8192, **SHAPE)
    return LoadedModel(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name)
