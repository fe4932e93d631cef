"""Reading a model with transformers, and making a member of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import ModelLoadError, SafeError, UnsupportedModelError
from safe_integrations.models.fork import check_process
from safe_integrations.models.locate import folder_of, locate
from safe_integrations.models.member import TableOf, forms_of
from safe_integrations.models.memory import return_free_memory
from safe_integrations.models.openmp import send_team_home
from safe_integrations.models.quiet import quiet
from safe_integrations.models.rendering import Renderer, template_of
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import LoadedModel, ModelCard, ModelSpec, Progress, name_of
from safe_integrations.models.table import build_token_table
from safe_integrations.models.transformers.gguf import is_converted
from safe_integrations.models.transformers.kv_cache import layer_windows, position_bytes
from safe_integrations.models.transformers.member import TransformersMember
from safe_integrations.models.transformers.packing import pack
from safe_integrations.models.transformers.together import probe
from safe_integrations.models.transformers.tokenizer import TransformersTokenizer, templates_of


def load(spec: ModelSpec, tell: Progress) -> TransformersMember:
    """Loads a model as a member; a `ModelError` says why it cannot be."""
    check_process(name_of(spec))
    with _collecting_nothing():
        loaded = load_model(spec, tell)
        member = member_of(loaded, spec)
        return_free_memory()  # before the weights are read: what they take is never free again
        if spec.pack:
            pack(loaded.model)
        send_team_home()
    return member


def load_model(spec: ModelSpec, tell: Progress = lambda _: None) -> LoadedModel:
    """Loads a model with its tokenizer.

    Raises:
        ModelNotFoundError: There is nothing at `spec.source`, or the hub cannot be reached.
        ModelLoadError: There is something, but it cannot be read.
        UnsupportedModelError: It is no causal language model that transformers knows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where, options = locate(spec, tell)
    tell(f"{name_of(spec)}: loading")
    with _reading(spec):
        tokenizer = _read_tokenizer(where, options, spec)
        device_map = spec.device_map
        if device_map is None and (device := spec.device or _best_device()) != "cpu":
            device_map = {"": device}
        dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
        options = {**spec.load_kwargs, **options, "dtype": dtype, "device_map": device_map}
        model = AutoModelForCausalLM.from_pretrained(where, **options)
        return LoadedModel(model.eval(), tokenizer, name_of(spec))


def member_of(loaded: LoadedModel, spec: ModelSpec | None = None) -> TransformersMember:
    """A loaded model as a member, with the spec's window and memory for caches.

    Raises:
        ModelError: The model cannot be used.
    """
    model, _, name = loaded
    check_process(name)
    spec = spec or ModelSpec(source=name)
    tokenizer = TransformersTokenizer(loaded.tokenizer, name)
    render = Renderer(tokenizer)
    table = cache(partial(tokens_of, tokenizer, model.config, model.generation_config))
    return TransformersMember(
        model,
        table(frozenset()),
        render,
        name=name,
        context_window=context_window_of(model.config, spec),
        reuse_bytes=spec.reuse_bytes,
        cache_bytes=spec.cache_bytes,
        teaches=render.teaches,
        in_form=forms_of(tokenizer, render, table),
    )


def card_of(spec: ModelSpec) -> ModelCard:
    """What can be known of a model without its weights; a `ModelError` where it cannot be read."""
    from transformers import AutoConfig

    where, options = locate(spec, lambda _: None)
    with _reading(spec):
        config = AutoConfig.from_pretrained(where, **options)
    return ModelCard(name_of(spec), context_window_of(config, spec))


def look_at(spec: ModelSpec, tell: Progress) -> tuple[str, Any, Any, Any]:
    """Reads all of a model but its weights, as loading it would.

    Returns:
        Where it is, its config, its generation config (None where it has none), its tokenizer.

    Raises:
        ModelError: The model cannot be found or read.
    """
    from transformers import AutoConfig, GenerationConfig

    check_process(name_of(spec))
    where, options = locate(spec, tell)
    tell(f"{name_of(spec)}: reading its tokenizer")
    with _reading(spec):
        config = AutoConfig.from_pretrained(where, **options)
        tokenizer = _read_tokenizer(where, options, spec)
        try:
            generation_config = GenerationConfig.from_pretrained(where, **options)
        except OSError:  # a model need not have one
            generation_config = None
    return where, config, generation_config, tokenizer


def tokenizer_of(spec: ModelSpec, tell: Progress) -> tuple[TransformersTokenizer, TableOf]:
    """The tokenizer of a model, without its weights, and its tokens as bytes."""
    _, config, generation_config, inner = look_at(spec, tell)
    tokenizer = TransformersTokenizer(inner, name_of(spec))
    return tokenizer, cache(partial(tokens_of, tokenizer, config, generation_config))


def report_of(spec: ModelSpec, tell: Progress) -> ModelReport:
    """What can be known of a model without its weights; a `ModelError` where it cannot be used."""
    where, config, generation_config, inner = look_at(spec, tell)
    layers = len(layer_windows(config, spec.source))
    tokenizer = TransformersTokenizer(inner, spec.source)
    tokens = tokens_of(tokenizer, config, generation_config)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = stored if spec.dtype == "auto" else spec.dtype
    on_disk = _weights_on_disk(folder_of(where, spec.revision, spec.load_kwargs.get("cache_dir")))
    return ModelReport(
        name=spec.source,
        where=where,
        dtype=dtype,
        weight_bytes=on_disk and on_disk * _width(dtype) // _width(stored),
        kv_bytes=1000 * position_bytes(config, layers, _width(dtype)) or None,
        context_window=context_window_of(config, spec),
        tokens=tokens,
        teaches=Renderer(tokenizer).teaches,
        takes_turns=takes_turns(config, spec),
    )


def takes_turns(config: Any, spec: ModelSpec) -> str | None:
    """Why answers cannot share forward passes of a model; None where they can.

    Tried without weights; what only numbers show is tried when two answers first ask at once.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _reading(spec), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
        return probe(model.eval(), layer_windows(config, name_of(spec)))


def _read_tokenizer(where: str, options: dict[str, Any], spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # For some architectures transformers' classes split text as they please, not as the file says.
    reader = PreTrainedTokenizerFast if is_converted(where) else AutoTokenizer
    tokenizer = reader.from_pretrained(where, **options)
    if not spec.trust_remote_code:  # foreign code may want them
        # Python copies of what transformers has built the fast tokenizer from, and does not need
        # again: half a million tuples for Gemma, more memory than the tokenizer itself takes.
        for table in ("_vocab", "_merges"):
            vars(tokenizer).pop(table, None)
    if spec.chat_template is not None:
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
        tokenizer.chat_template = named.get(spec.chat_template, spec.chat_template)
    template_of(templates_of(tokenizer), name_of(spec))  # refuses what could not be rendered
    return tokenizer


def tokens_of(
    tokenizer: TransformersTokenizer,
    config: Any,
    generation_config: Any,
    spoken: frozenset[str] = frozenset(),
) -> TokenTable:
    """The tokens of a model as bytes; see `build_token_table`."""
    return build_token_table(
        tokenizer,
        end_ids=tokenizer.end_ids(generation_config, config),
        vocab_size=config.get_text_config(decoder=True).vocab_size,
        spoken=spoken,
    )


@contextmanager
def _reading(spec: ModelSpec) -> Iterator[None]:
    """Silences transformers, and says what its errors mean."""
    try:
        with quiet():
            yield
    except SafeError:
        raise
    except Exception as error:
        raise _meaning(error, spec) from error


def context_window_of(config: Any, spec: ModelSpec) -> int:
    """Tokens that a model can hold, as built, or less where the spec says so.

    Never more, not with dynamic NTK positions either: what comes behind would change them all.
    """
    built = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    return min(int(built), spec.context_window or sys.maxsize)


def _meaning(error: Exception, spec: ModelSpec) -> SafeError:
    name, text = name_of(spec), str(error).strip() or type(error).__name__
    if isinstance(error, ValueError) and (
        "Unrecognized configuration class" in text or "does not recognize this architecture" in text
    ):
        first = text.splitlines()[0]
        return UnsupportedModelError(f"{name}: not a causal language model that we know: {first}")
    if "trust_remote_code" in text:
        return UnsupportedModelError(
            f"{name}: it comes with its own code; set trust_remote_code=True if you trust it"
        )
    return ModelLoadError(f"{name}: {spec.source} was found but cannot be loaded: {text}")


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Spares the garbage collector millions of lasting objects: a quarter of the loading time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
