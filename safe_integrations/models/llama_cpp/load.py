"""Reading a GGUF file with llama.cpp, and making a member of it."""

from __future__ import annotations

import sys
from functools import cache

from safe_integrations.calls.form import Form
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import (
    GenerationError,
    InvalidArgumentError,
    ModelLoadError,
    UnsupportedModelError,
)
from safe_integrations.models.fork import check_process
from safe_integrations.models.llama_cpp.context import Context
from safe_integrations.models.llama_cpp.library import Weights, open_model, open_vocabulary
from safe_integrations.models.llama_cpp.member import LlamaMember
from safe_integrations.models.llama_cpp.threads import threads
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.locate import gguf_of, is_gguf
from safe_integrations.models.rendering import Render, Renderer
from safe_integrations.models.spec import ModelCard, ModelSpec, Progress, name_of
from safe_integrations.models.table import tags_of


def load(spec: ModelSpec, tell: Progress) -> LlamaMember:
    """Loads a GGUF file as a member; a `ModelError` says why it cannot be."""
    name = name_of(spec)
    check_process(name)
    if not is_gguf(spec):
        raise InvalidArgumentError(
            "backend",
            spec.backend,
            f"{spec.source} is no GGUF file: name one, or leave backend to 'auto'",
        )
    path = gguf_of(spec, tell)
    tell(f"{name}: loading")
    weights = open_model(path, 0 if spec.device == "cpu" else spec.gpu_layers)
    _check_kind(weights, name)
    tokenizer = LlamaTokenizer(weights, name, spec.chat_template)
    render = Renderer(tokenizer)
    table = cache(tokenizer.tokens)
    window = _window(weights.llama.llama_model_n_ctx_train(weights.pointer), spec)

    def in_form(form: Form) -> tuple[TokenTable, Render]:
        texts = (*form.texts, *render.tags_of_thinking)
        return table(tags_of(tokenizer, texts)), render.writing(form)

    try:
        context = Context(weights, window, spec.reuse_bytes, threads())
    except GenerationError as error:
        raise ModelLoadError(f"{name}: {error}") from error
    return LlamaMember(
        context,
        table(frozenset()),
        render,
        name=name,
        context_window=window,
        teaches=render.teaches,
        in_form=in_form,
    )


def card_of(spec: ModelSpec) -> ModelCard:
    """What can be known of a model without its weights; a `ModelError` where it cannot be read."""
    weights = open_vocabulary(gguf_of(spec, lambda _: None))
    built = weights.value(f"{weights.architecture}.context_length")
    return ModelCard(name_of(spec), _window(int(built or 0), spec))


def _window(built: int, spec: ModelSpec) -> int:
    """Tokens that a model can hold, as built, or less where the spec says so."""
    return min(built or sys.maxsize, spec.context_window or sys.maxsize)


def _check_kind(weights: Weights, name: str) -> None:
    """Refuses models that do not write from left to right, or cannot take anything back."""
    llama, model = weights.llama, weights.pointer
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        raise UnsupportedModelError(f"{name} is no decoder-only model; use one")
    if llama.llama_model_is_diffusion(model):
        raise UnsupportedModelError(f"{name} does not write from left to right; use one that does")
    if llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model):
        raise UnsupportedModelError(
            f"{name} has layers whose state cannot be cut back after a rejected draft "
            f"({weights.architecture}); use a model with full or sliding-window attention only"
        )
