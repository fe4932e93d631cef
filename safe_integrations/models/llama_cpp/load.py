"""Reading a GGUF file with llama.cpp, and making a member of it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

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
from safe_integrations.models.llama_cpp.metadata import context_length, values
from safe_integrations.models.llama_cpp.threads import threads
from safe_integrations.models.llama_cpp.tokenizer import LlamaTokenizer
from safe_integrations.models.locate import gguf_of, is_gguf, parts_of
from safe_integrations.models.member import TableOf, forms_of
from safe_integrations.models.memory import return_free_memory
from safe_integrations.models.rendering import Renderer
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import ModelCard, ModelSpec, Progress, name_of

_STATE: Final = 2
"""Bytes of a number in the cache."""

_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip
"""How most weights of a file are stored, by the format's number."""


def load(spec: ModelSpec, tell: Progress) -> LlamaMember:
    """Loads a GGUF file as a member; a `ModelError` says why it cannot be."""
    name = name_of(spec)
    check_process(name)
    path = _path_of(spec, tell)
    tell(f"{name}: loading")
    weights = open_model(path, 0 if spec.device == "cpu" else spec.gpu_layers)
    _check_kind(weights, name)
    window = _window(weights.llama.llama_model_n_ctx_train(weights.pointer), spec)
    with ThreadPoolExecutor(1) as beside:  # the vocabulary takes as long, in the interpreter
        context = beside.submit(_context, weights, window, spec)
        tokenizer = LlamaTokenizer(weights, name, spec.chat_template)
        render = Renderer(tokenizer)
        table = cache(tokenizer.tokens)
        own = table(frozenset())
        member = LlamaMember(
            context.result(),
            own,
            render,
            name=name,
            context_window=window,
            cache_bytes=spec.cache_bytes,
            teaches=render.teaches,
            in_form=forms_of(tokenizer, render, table),
        )
    return_free_memory()
    return member


def _context(weights: Weights, window: int, spec: ModelSpec) -> Context:
    try:
        return Context(weights, window, spec.reuse_bytes, threads())
    except GenerationError as error:
        raise ModelLoadError(f"{name_of(spec)}: {error}") from error


def card_of(spec: ModelSpec) -> ModelCard:
    """What can be known of a model without its weights; a `ModelError` where it cannot be read."""
    path = _path_of(spec, lambda _: None)
    return ModelCard(name_of(spec), _window(context_length(path), spec))


def tokenizer_of(spec: ModelSpec, tell: Progress) -> tuple[LlamaTokenizer, TableOf]:
    """The tokenizer of a file, without its weights, and its tokens as bytes."""
    path = _path_of(spec, tell)
    tokenizer = LlamaTokenizer(open_vocabulary(path), name_of(spec), spec.chat_template)
    return tokenizer, cache(tokenizer.tokens)


def report_of(spec: ModelSpec, tell: Progress) -> ModelReport:
    """What can be known of a model without its weights; a `ModelError` where it cannot be used."""
    path = _path_of(spec, tell)
    tell(f"{name_of(spec)}: reading its tokenizer")
    told = dict(values(path))
    architecture = told.get("general.architecture")

    def number(key: str) -> int:
        return int(told.get(f"{architecture}.{key}", 0))

    def heads(kind: str) -> int:
        """Of all layers; a file tells one number for each, or a list."""
        each = told.get(f"{architecture}.attention.{kind}", 0)
        return int(np.resize(each, number("block_count")).sum())

    width = number("embedding_length") * number("block_count") // max(heads("head_count"), 1)
    widths = (number(f"attention.{part}_length") or width for part in ("key", "value"))
    cached = heads("head_count_kv") or heads("head_count")
    weights = open_vocabulary(path)
    _check_kind(weights, name_of(spec))
    tokenizer = LlamaTokenizer(weights, name_of(spec), spec.chat_template)
    return ModelReport(
        name=spec.source,
        where=str(path),
        dtype=_TYPES.get(int(told.get("general.file_type", -1)), "GGUF"),
        weight_bytes=sum(Path(part).stat().st_size for part in parts_of(str(path))),
        kv_bytes=1000 * cached * sum(widths) * _STATE or None,
        context_window=_window(context_length(path), spec),
        tokens=tokenizer.tokens(),
        teaches=Renderer(tokenizer).teaches,
    )


def _path_of(spec: ModelSpec, tell: Progress) -> Path:
    if not is_gguf(spec):
        remedy = f"{spec.source} is no GGUF file: name one, or leave backend to 'auto'"
        raise InvalidArgumentError("backend", spec.backend, remedy)
    return gguf_of(spec, tell)


def _window(built: int | None, spec: ModelSpec) -> int:
    """Tokens that a model can hold, as built, or less where the spec says so."""
    return min(built or sys.maxsize, spec.context_window or sys.maxsize)


def _check_kind(weights: Weights, name: str) -> None:
    """Refuses models that do not write from left to right, or cannot take anything back."""
    llama, model = weights.llama, weights.pointer
    decodes = llama.llama_model_has_decoder(model) and not llama.llama_model_has_encoder(model)
    if not decodes or weights.value(f"{weights.architecture}.attention.causal") == "false":
        raise UnsupportedModelError(f"{name} is no decoder-only model; use one")
    if llama.llama_model_is_diffusion(model):
        raise UnsupportedModelError(f"{name} does not write from left to right; use one that does")
    if llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model):
        raise UnsupportedModelError(
            f"{name} has layers whose state cannot be cut back after a rejected draft "
            f"({weights.architecture}); use a model with full or sliding-window attention only"
        )
