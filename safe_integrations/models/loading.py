"""Finding and loading a model: a hub id, a folder, a GGUF file, or a name of the default pair."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from safe_integrations.config import StrictModel
from safe_integrations.errors import (
    InvalidArgumentError,
    ModelLoadError,
    ModelNotFoundError,
    SafeError,
    UnsupportedModelError,
)
from safe_integrations.models.embedded import EMBEDDED, embedded_folder
from safe_integrations.models.transformers.gguf import Progress, converted_file

_HUB_TIMEOUT: Final = 5.0
_HUB_ID: Final = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


class ModelSpec(StrictModel):
    """Which model to load, and how.

    Attributes:
        source: A hub id, a folder, a `.gguf` file, or the name of an embedded model
            (`smollm2-135m`, `gemma3-270m`).
        name: How errors and statistics call it. None takes it from the source.
        dtype: Type of the weights. `auto` takes the checkpoint's own; GGUF becomes float32.
        device: Where to compute. None takes CUDA, else MPS, else the CPU.
        device_map: Layers to devices, as accelerate reads it, instead of `device`.
        revision: Branch, tag or commit of a hub model.
        gguf_file: Name of a GGUF file inside the hub repository or folder.
        trust_remote_code: Whether to run code that comes with the model.
        chat_template: A Jinja chat template instead of the model's own.
        context_window: Tokens to use at most. None takes what the model was built for.
        pack: Whether to pack weights on a CPU for small batches: faster passes, and several
            rows at the price of one (docs/performance.md).
        reuse_bytes: Memory for caches of finished prompts, in bytes: what a new prompt shares with
            them is not computed again. 0 keeps none.
    """

    source: str = Field(min_length=1)
    name: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    context_window: int | None = Field(default=None, ge=2)
    pack: bool = True
    reuse_bytes: int = Field(default=256 << 20, ge=0)  # of the default pair: 5,000 tokens each

    @model_validator(mode="after")
    def _one_placement(self) -> ModelSpec:
        if self.device is not None and self.device_map is not None:
            raise ValueError("give a device or a device_map, not both")
        return self


class LoadedModel(NamedTuple):
    """A model and its tokenizer, ready to use.

    Objects the caller already has go in as they are: neither copied nor changed.

    Attributes:
        model: A causal language model of transformers, in eval mode.
        tokenizer: Its fast tokenizer.
        name: How errors and statistics call it.
    """

    model: Any
    tokenizer: Any
    name: str

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str | None = None) -> LoadedModel:
        """Takes a model and a tokenizer that the caller has loaded.

        Raises:
            InvalidArgumentError: The model is in training mode, so dropout may be on.
        """
        if getattr(model, "training", False):
            raise InvalidArgumentError("model", type(model).__name__, "call model.eval() first")
        named = name or getattr(model, "name_or_path", "") or type(model).__name__
        return cls(model, tokenizer, Path(named).name if Path(named).exists() else named)


class ModelCard(NamedTuple):
    """What can be known of a model without its weights.

    Attributes:
        name: How errors and statistics call it.
        context_window: Tokens it can hold.
        is_chat_model: Whether it has a chat template.
    """

    name: str
    context_window: int
    is_chat_model: bool


def load_model(spec: ModelSpec, on_progress: Progress | None = None) -> LoadedModel:
    """Loads a model with its tokenizer.

    Args:
        spec: Which model, and how.
        on_progress: Told what is going on, one line at a time.

    Raises:
        ModelNotFoundError: There is nothing at `spec.source`, or the hub cannot be reached.
        ModelLoadError: There is something, but it cannot be read.
        UnsupportedModelError: It is no causal language model that transformers knows.
    """
    tell = on_progress or (lambda _: None)
    name = name_of(spec)
    where, options = locate(spec, tell)
    tell(f"{name}: loading")
    try:
        with quiet():
            return LoadedModel(*_load(where, options, spec), name)
    except SafeError:
        raise
    except Exception as error:
        raise _load_error(error, spec, name) from error


def context_window_of(model: Any, spec: ModelSpec | None = None) -> int:
    """Tokens that a model can hold, as built, or less where the spec says so."""
    config = model.config.get_text_config()
    built = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return min(built, spec.context_window) if spec and spec.context_window else int(built)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the progress bars and warnings of transformers, and restores them afterwards."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def _load(where: str, options: dict[str, Any], spec: ModelSpec) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = options | {"trust_remote_code": spec.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    if not spec.trust_remote_code:  # foreign code may want them
        # Python copies of what transformers has built the fast tokenizer from, and does not need
        # again: half a million tuples for Gemma, more memory than the tokenizer itself takes.
        for table in ("_vocab", "_merges"):
            vars(tokenizer).pop(table, None)
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.chat_template
    device_map = spec.device_map
    if device_map is None and (device := spec.device or _best_device()) != "cpu":
        device_map = {"": device}
    dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, device_map=device_map, **options
    )
    return model.eval(), tokenizer


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def name_of(spec: ModelSpec) -> str:
    """How errors and statistics call the model."""
    if spec.name is not None:
        return spec.name
    if spec.source in EMBEDDED:
        return spec.source
    file = spec.gguf_file or spec.source
    return Path(file).stem if file.endswith(".gguf") else Path(spec.source).name


def locate(spec: ModelSpec, tell: Progress) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`: a folder or hub id, and how to look for it.

    Raises:
        ModelNotFoundError: There is nothing at `spec.source`, or the hub cannot be reached.
        ModelLoadError: A GGUF file cannot be converted.
    """
    local = {"local_files_only": True}
    path = Path(spec.source).expanduser()
    if path.is_dir():
        if spec.gguf_file is not None:
            return str(converted_file(path / spec.gguf_file, tell)), local
        if not (path / "config.json").is_file():
            found = sorted(p.name for p in path.glob("*.gguf"))
            hint = f"; set gguf_file to one of {', '.join(found)}" if found else ""
            raise ModelNotFoundError(f"{spec.source}: the folder has no config.json{hint}")
        return str(path), local
    if path.is_file():
        return str(converted_file(path, tell)), local
    if spec.source in EMBEDDED:
        return str(embedded_folder(spec.source, tell)), local
    if spec.source.endswith(".gguf") or not _HUB_ID.fullmatch(spec.source):
        raise ModelNotFoundError(f"{spec.source}: there is no such file or folder")
    options = _hub_options(spec)
    if spec.gguf_file is not None:
        return str(converted_file(_download(spec, options, tell), tell)), local
    return spec.source, options


def folder_of(where: str, revision: str | None = None) -> Path | None:
    """The folder with a model's files: a folder itself, or what the hub's local cache has."""
    from huggingface_hub import try_to_load_from_cache

    if Path(where).is_dir():
        return Path(where)
    cached = try_to_load_from_cache(where, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _hub_options(spec: ModelSpec) -> dict[str, Any]:
    """Asks the hub once, without retries, so that later calls need not find out that it is away."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    file = spec.gguf_file or "config.json"
    options: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
    try:
        url = hf_hub_url(spec.source, file, revision=spec.revision)
        get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)
        return options
    except EntryNotFoundError as error:
        raise ModelNotFoundError(f"{spec.source}: the hub's repository has no {file}") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise ModelNotFoundError(
                f"{spec.source}: no such folder, embedded model ({', '.join(EMBEDDED)}) or hub "
                "model that you may read; check the name, or log in with `hf auth login`"
            ) from error
        reason: Exception = error
    except Exception as error:  # offline mode, no route, a proxy, a timeout, ...
        reason = error
    if isinstance(try_to_load_from_cache(spec.source, file, revision=spec.revision), str):
        return options | {"local_files_only": True}
    raise ModelNotFoundError(
        f"{spec.source}: no such folder or embedded model ({', '.join(EMBEDDED)}), not in the "
        f"hub's local cache, and the hub cannot be asked ({type(reason).__name__}); check the name "
        "and the connection"
    ) from reason


def _download(spec: ModelSpec, options: dict[str, Any], tell: Progress) -> Path:
    from huggingface_hub import hf_hub_download

    assert spec.gguf_file is not None
    tell(f"{spec.source}: fetching {spec.gguf_file}")
    try:
        with quiet():
            return Path(hf_hub_download(spec.source, spec.gguf_file, **options))
    except Exception as error:
        raise ModelLoadError(
            f"{spec.source}: {spec.gguf_file} cannot be fetched: {error}"
        ) from error


def _load_error(error: Exception, spec: ModelSpec, name: str) -> SafeError:
    text = str(error).strip() or type(error).__name__
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
