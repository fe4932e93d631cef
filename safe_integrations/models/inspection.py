"""Looking at a model without loading its weights: its tokenizer and its config tell enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_integrations.calls.agreement import Agreement, agree
from safe_integrations.calls.form import Form
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import SafeError
from safe_integrations.models.locate import folder_of
from safe_integrations.models.spec import ModelSpec, Progress, told_apart


@dataclass(frozen=True)
class ModelReport:
    """One model, as far as it can be known without loading it.

    Attributes:
        name: What it was asked for by.
        problem: Why it cannot be used; None where it can.
        where: Folder or hub id that it would be loaded from.
        dtype: Type that its weights will have.
        weight_bytes: Memory for its weights; None where they are not on this machine yet.
        kv_bytes: Memory for the cache of 1,000 tokens.
        context_window: Tokens it can hold.
        tokens: Its tokens as bytes.
        teaches: The form of a tool call that its chat template teaches; None where it is none we
            know.
    """

    name: str
    problem: str | None = None
    where: str | None = None
    dtype: str | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    context_window: int | None = None
    tokens: TokenTable | None = None
    teaches: Form | None = None


def form_of_calls(reports: Sequence[ModelReport]) -> Agreement:
    """How tools would be called by these models together, and why."""
    names = told_apart(report.name for report in reports)
    usable = zip(names, reports, strict=True)
    return agree({name: report.teaches for name, report in usable if report.problem is None})


def inspect_model(spec: ModelSpec, tell: Progress) -> ModelReport:
    """Looks at one model: where it is, whether it can be used, how much memory it will need.

    A GGUF file is converted, as loading it would do, because its tokenizer cannot be read quickly.
    """
    try:
        return _inspect(spec, tell)
    except SafeError as error:
        return ModelReport(spec.source, problem=str(error))


def _inspect(spec: ModelSpec, tell: Progress) -> ModelReport:
    from safe_integrations.models.rendering import Renderer
    from safe_integrations.models.transformers import load
    from safe_integrations.models.transformers.kv_cache import layer_windows
    from safe_integrations.models.transformers.tokenizer import TransformersTokenizer

    where, config, generation_config, inner = load.look_at(spec, tell)
    layers = len(layer_windows(config, spec.source))
    tokenizer = TransformersTokenizer(inner, spec.source)
    tokens = load.tokens_of(tokenizer, config, generation_config)
    text_config = config.get_text_config(decoder=True)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = stored if spec.dtype == "auto" else spec.dtype
    on_disk = _weights_on_disk(folder_of(where, spec.revision, spec.load_kwargs.get("cache_dir")))
    heads = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return ModelReport(
        name=spec.source,
        where=where,
        dtype=dtype,
        weight_bytes=on_disk and on_disk * _width(dtype) // _width(stored),
        kv_bytes=1000 * 2 * layers * kv_heads * head_dim * _width(dtype),
        context_window=load.context_window_of(config, spec),
        tokens=tokens,
        teaches=Renderer(tokenizer).teaches,
    )


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
