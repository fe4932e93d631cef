"""Looking at a model without loading its weights: its tokenizer and its config tell enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import ModelLoadError, SafeError
from safe_integrations.models import loading
from safe_integrations.models.loading import ModelSpec
from safe_integrations.models.tokenizer import build_token_table, end_ids_of


@dataclass(frozen=True)
class ModelReport:
    """One model, as far as it can be known without loading it.

    Attributes:
        name: What it was asked for by.
        role: `drafter` or `verifier`.
        problem: Why it cannot be used; None where it can.
        where: Folder or hub id that it would be loaded from.
        dtype: Type that its weights will have.
        weight_bytes: Memory for its weights; None where they are not on this machine yet.
        kv_bytes: Memory for the cache of 1,000 tokens.
        context_window: Tokens it can hold.
        tokens: Its tokens as bytes.
    """

    name: str
    role: str
    problem: str | None = None
    where: str | None = None
    dtype: str | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    context_window: int | None = None
    tokens: TokenTable | None = None


def inspect_model(spec: ModelSpec, role: str, tell: Callable[[str], None]) -> ModelReport:
    """Looks at one model: where it is, whether it can be used, how much memory it will need.

    A GGUF file is converted, as loading it would do, because its tokenizer cannot be read quickly.
    """
    try:
        return _inspect(spec, role, tell)
    except SafeError as error:
        return ModelReport(spec.source, role, problem=str(error))


@lru_cache(maxsize=32)
def _card(spec_json: str) -> loading.ModelCard:
    spec = ModelSpec.model_validate_json(spec_json)
    config, _, tokenizer = _read(*loading.locate(spec, lambda _: None), spec)
    window = loading.context_window_of(_Configured(config), spec)
    template = spec.chat_template or tokenizer.chat_template
    return loading.ModelCard(loading.name_of(spec), window, template is not None)


def card_of(spec: ModelSpec) -> loading.ModelCard:
    """What can be known of a model without its weights; read once per process.

    Raises:
        ModelError: The model cannot be found or read.
    """
    return _card(spec.model_dump_json())


def _inspect(spec: ModelSpec, role: str, tell: Callable[[str], None]) -> ModelReport:
    from safe_integrations.models.transformers.kv_cache import layer_windows

    where, options = loading.locate(spec, tell)
    tell(f"{spec.source}: reading its tokenizer")
    config, generation, tokenizer = _read(where, options, spec)
    layers = len(layer_windows(config, spec.source))
    text_config = config.get_text_config(decoder=True)
    tokens = build_token_table(
        tokenizer,
        end_ids=end_ids_of(tokenizer, generation, config),
        vocab_size=text_config.vocab_size,
        name=spec.source,
    )
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = stored if spec.dtype == "auto" else spec.dtype
    on_disk = _weights_on_disk(loading.folder_of(where, spec.revision))
    heads = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return ModelReport(
        name=spec.source,
        role=role,
        where=where,
        dtype=dtype,
        weight_bytes=on_disk and on_disk * _width(dtype) // _width(stored),
        kv_bytes=1000 * 2 * layers * kv_heads * head_dim * _width(dtype),
        context_window=loading.context_window_of(_Configured(config), spec),
        tokens=tokens,
    )


@dataclass(frozen=True)
class _Configured:
    """Stands in for a model where only its config is asked for."""

    config: Any


def _read(where: str, options: dict[str, Any], spec: ModelSpec) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        with loading.quiet():
            config = AutoConfig.from_pretrained(where, **options)
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            try:
                generation = GenerationConfig.from_pretrained(where, **options)
            except OSError:  # a model need not have one
                generation = None
    except Exception as error:
        raise ModelLoadError(f"{spec.source} cannot be read: {error}") from error
    return config, generation, tokenizer


def _weights_on_disk(folder: Path | None) -> int | None:
    if folder is None:
        return None
    for pattern in ("*.safetensors", "*.bin"):
        if sizes := [path.stat().st_size for path in folder.glob(pattern)]:
            return sum(sizes)
    return None


def _width(dtype: str) -> int:
    """Bytes of one number."""
    return {"float64": 8, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}.get(dtype, 2)
