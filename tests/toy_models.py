"""Models of transformers, small enough to be made anew: random weights, a real tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from safe_integrations.bench.prompts import CONTEXT
from safe_integrations.models.spec import LoadedModel

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def toy_model(name: str, size: int, config: PretrainedConfig | None = None) -> LoadedModel:
    """A model with a vocabulary of its own.

    Args:
        name: How it is called.
        size: Tokens of its vocabulary, and the seed of its weights.
        config: What to build; None takes a small Llama.
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
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    torch.manual_seed(size)
    config = config or LlamaConfig(vocab_size=size, max_position_embeddings=8192, **SHAPE)
    return LoadedModel(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name)
