"""What a model is called by: the public way to say which model to load, and how."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, PlainSerializer, SecretStr, field_validator, model_validator

from safe_integrations.config import StrictModel
from safe_integrations.errors import InvalidArgumentError

Progress = Callable[[str], None]
"""Told what is going on, one line at a time."""

_FIELDS: Final = ("dtype", "device_map", "revision", "trust_remote_code", "gguf_file")
_ELSEWHERE: Final = {
    **{field: f"set ModelSpec's {field}" for field in _FIELDS},
    "torch_dtype": "set ModelSpec's dtype",
    "local_files_only": "leave it out: loading decides it",
    "output_loading_info": "leave it out: the model alone is wanted",
    "subfolder": "name the folder as the source",
    "token": "log in with `hf auth login`: what a model is loaded with is shown in traces",
}
"""Arguments of `from_pretrained` that `load_kwargs` does not take, and what to do instead."""

_OF_SERVERS: Final = (
    "model",
    "tokenizer",
    "api_key",
    "top_logprobs",
    "request_timeout",
    "max_retries",
)
_URL: Final = re.compile("https?://", re.IGNORECASE)
_SALT: Final = secrets.token_bytes(16)


def _data(value: Any) -> Any:
    """A value as JSON data; a ValueError where nothing tells it apart from others of its class."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_data(item) for item in value]
    if isinstance(value, PurePath) or type(value).__module__ == "torch":
        return str(value)
    if callable(to_dict := getattr(value, "to_dict", None)):
        return _data(to_dict())
    kind = type(value).__name__
    raise ValueError(f"{kind} cannot be told apart from another: pass data, or what has a to_dict")


_Data = Annotated[Any, PlainSerializer(_data)]


class ModelSpec(StrictModel):
    """Which model to load, and how.

    Attributes:
        source: A hub id, a folder, a `.gguf` file, the name of an embedded model
            (`smollm2-135m`, `gemma3-270m`), or the URL of a server that computes
            (`http://localhost:8000/v1`, docs/serving.md).
        name: How errors and statistics call it. None takes it from the source.
        backend: What computes it. `auto` takes llama.cpp for GGUF files where its library is
            installed and nothing is asked for that it does not know, else transformers.
        gpu_layers: Layers that a GPU holds, where llama.cpp computes and its library knows the
            GPU; -1 for all.
        dtype: Type of the weights in transformers. `auto` takes the checkpoint's own; GGUF becomes
            float32.
        device: Where transformers computes. None takes CUDA, else MPS, else the CPU. `cpu` keeps
            llama.cpp off the GPU, too.
        device_map: Layers to devices, as accelerate reads it, instead of `device`.
        revision: Branch, tag or commit of a hub model.
        gguf_file: Name of a GGUF file inside the hub repository or folder.
        trust_remote_code: Whether to run code that comes with the model.
        chat_template: A Jinja chat template instead of the model's own, or the name of one of its
            own where it has several.
        context_window: Tokens to use at most. None takes what the model was built for.
        pack: Whether to pack weights on a CPU for small batches: faster passes, and several
            rows at the price of one (docs/performance.md). Quantised models never are.
        reuse_bytes: Memory for caches of finished prompts, in bytes: what a new prompt shares with
            them is not computed again. 0 keeps none.
        cache_bytes: Memory for caches of answers in flight, in bytes. What does not fit waits, in
            order; an answer that needs more has it to itself, so 0 lets in one at a time. None
            takes half of what is free on the model's device when it is first needed, shared
            equally by the models of an ensemble.
        load_kwargs: Whatever else `from_pretrained` of transformers takes (`quantization_config`,
            `attn_implementation`, `max_memory`, ...): JSON data, paths, types of torch,
            and objects with a `to_dict`.
        model: How a server calls the model. None takes the only one that it serves.
        tokenizer: Where the tokenizer and the chat template of a served model are: a hub id, a
            folder, a `.gguf` file or an embedded name. None takes what the server says that it has
            loaded, where that can be read here.
        api_key: What a server must be shown. None takes SAFE_INTEGRATIONS_API_KEY from the
            environment. It is never written anywhere: a spec that is pickled or dumped is without.
        top_logprobs: Ids per row that a server tells. None takes 64, or what it tells at most.
        request_timeout: Seconds that one request to a server may take.
        max_retries: How often a request is sent again that found a server away or busy.
    """

    source: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    backend: Literal["auto", "llama.cpp", "transformers"] = "auto"
    gpu_layers: int = Field(default=-1, ge=-1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    device_map: str | dict[str, _Data] | None = None
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    context_window: int | None = Field(default=None, ge=2)
    pack: bool = True
    reuse_bytes: int = Field(default=256 << 20, ge=0)  # of the default pair: 5,000 tokens each
    cache_bytes: int | None = Field(default=None, ge=0)
    load_kwargs: dict[str, _Data] = Field(default_factory=dict)
    model: str | None = Field(default=None, min_length=1)
    tokenizer: str | None = Field(default=None, min_length=1)
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    top_logprobs: int | None = Field(default=None, ge=1)
    request_timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_retries: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _server_knows_all(self) -> ModelSpec:
        if not is_url(self.source):
            for name in _OF_SERVERS:
                if (given := getattr(self, name)) != type(self).model_fields[name].default:
                    shown = "..." if name == "api_key" else given
                    remedy = "it belongs to a server: set source to its URL, or leave it out"
                    raise InvalidArgumentError(name, shown, remedy)
            return self
        if (url := _too_much(self.source)) is not None:
            remedy = "write http://host:port/v1 alone; a key goes into api_key, names into model"
            raise InvalidArgumentError("source", url, remedy)
        if self.tokenizer is not None and is_url(self.tokenizer):
            remedy = "name a hub id, a folder or a file: it is read here, not by the server"
            raise InvalidArgumentError("tokenizer", self.tokenizer, remedy)
        computed = ("device", "gpu_layers", "revision", "gguf_file", "reuse_bytes", "cache_bytes")
        for name in ("backend", *_COMPUTED_BY_TRANSFORMERS, *computed):
            if (given := getattr(self, name)) != getattr(_DEFAULTS, name):
                remedy = f"leave it out: {self.source} computes, and decides that"
                raise InvalidArgumentError(name, given, remedy)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """What is pickled: all but the key, which the other process takes from its environment."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}

    @model_validator(mode="after")
    def _one_placement(self) -> ModelSpec:
        if self.device is not None and self.device_map is not None:
            raise ValueError("give a device or a device_map, not both")
        return self

    @model_validator(mode="after")
    def _backend_knows_all(self) -> ModelSpec:
        if self.backend == "llama.cpp" and (unknown := self.of_transformers()):
            remedy = f"it does not know {', '.join(unknown)}: leave that out"
            raise InvalidArgumentError("backend", self.backend, remedy)
        return self

    def of_transformers(self) -> list[str]:
        """What is asked for that only transformers knows."""
        names = _COMPUTED_BY_TRANSFORMERS
        asked = [name for name in names if getattr(self, name) != getattr(_DEFAULTS, name)]
        return asked + ["device"] * (self.device not in (None, "cpu"))

    @field_validator("api_key", mode="before")
    @classmethod
    def _key_is_text(cls, given: Any) -> Any:
        if given is None or isinstance(given, str | SecretStr):
            return given
        raise InvalidArgumentError("api_key", "...", "pass a str or a SecretStr")

    @field_validator("load_kwargs")
    @classmethod
    def _nothing_twice(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key in given:
            if key in _ELSEWHERE:
                raise ValueError(f"it does not take {key}: {_ELSEWHERE[key]}")
        _data(given)
        return given


_COMPUTED_BY_TRANSFORMERS: Final = (
    "dtype",
    "device_map",
    "trust_remote_code",
    "pack",
    "load_kwargs",
)
_DEFAULTS: Final = ModelSpec.model_construct(source="")


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
        path = getattr(model, "name_or_path", "") or ""
        known = _last_part(path) if path and on_disk(path) else path
        return cls(model, tokenizer, name or known or type(model).__name__)


class ModelCard(NamedTuple):
    """What can be known of a model without its weights: its name, and the tokens it can hold."""

    name: str
    context_window: int


def name_of(spec: ModelSpec) -> str:
    """How errors and statistics call the model; never empty."""
    if spec.name is not None:
        return spec.name
    if is_url(spec.source):
        return _last_part(spec.model) if spec.model else urlsplit(spec.source).netloc
    name = _last_part(spec.gguf_file or spec.source)
    return name.removesuffix(".gguf") or name


def told_apart(names: Iterable[str]) -> list[str]:
    """Names that differ, as votes and statistics need them: the second `m` is `m#2`."""
    apart: list[str] = []
    for name in names:
        number, other = 1, name
        while other in apart:
            number += 1
            other = f"{name}#{number}"
        apart.append(other)
    return apart


def key_of(spec: ModelSpec) -> str:
    """What tells a model apart from all others: two spellings of one folder are one model."""
    path = on_disk(spec.source)
    source = str(path.resolve()) if path else spec.source
    resolved = spec.model_copy(update={"source": source, "name": name_of(spec)})
    secret = spec.api_key.get_secret_value().encode() if spec.api_key else b""
    key = blake2b(secret, key=_SALT).hexdigest()
    return json.dumps([resolved.model_dump(mode="json"), key], sort_keys=True)


def is_url(source: str) -> bool:
    """Whether a source names a server, not files."""
    return _URL.match(source) is not None


def _too_much(url: str) -> str | None:
    """What may be shown of a URL that is more or less than an address: no key; None if it is."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # no such host or port
        return "http..."
    more = parts.username or parts.password or parts.query or parts.fragment
    if host and port != 0 and not more and not re.search(r"[\x00-\x20\x7f]", url):
        return None
    return f"{parts.scheme}://{ascii(host)[1:-1] if host else 'host:8000'}..."


def on_disk(source: str) -> Path | None:
    """The file or folder that a source names; None where there is none."""
    path = Path(source).expanduser()
    try:
        return path if path.exists() else None
    except OSError:  # no file could be called that
        return None


def _last_part(source: str) -> str:
    path = os.path.abspath(os.path.expanduser(source))  # "." and ".." have names, too
    return os.path.basename(path) or path
