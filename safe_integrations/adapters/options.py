"""What an adapter is made with: its models, and the options of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, Literal, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, field_validator

from safe_integrations.adapters.request import Seconds
from safe_integrations.config import EnsembleConfig, JudgedBy, Method, Mode, Real, Sharpening, Whole
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.models import load as loading
from safe_integrations.models.spec import LoadedModel, ModelSpec, is_url, name_of, told_apart
from safe_integrations.safe_engine import SafeEngine, load_engine

_ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class EnsembleOptions(BaseModel):
    """The models of an ensemble, and everything that can be said about its answers.

    Models are named, not passed: they are loaded by the first call, once per process. Fields that
    are not described here are those of `EnsembleConfig` and `GenerationConfig`; None takes their
    default. Every one of these can be given per call, too, and so can `timeout`.

    Attributes:
        drafter: The model that writes: a hub id, a folder, a GGUF file, a `ModelSpec`, or a loaded
            `Member`. None takes the embedded pair.
        verifiers: The models that check it, given the same way. None takes the default verifier
            for the default drafter, and none at all for one that is named: it then writes alone.
        stop: Texts that end an answer. A call's own `stop` takes their place.
        timeout: Seconds that an answer may take, once the models are loaded.
        attach_rounds: Whether answers carry what happened in each round, besides the statistics.
            `result_of` needs it; it makes them, and whatever keeps them, many times as large.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # a key may stand in it

    drafter: Any = None
    verifiers: tuple[Any, ...] | None = None

    mode: Mode | None = None
    unit: JudgedBy | None = None
    lookahead: int | Literal["auto"] | None = None
    prompt_lookup: bool | None = None
    method: Method | None = None
    union_top_k: Whole | None = None
    sharpening: Sharpening | None = None
    sharpen_below: Real | None = None
    prefix_threshold: Real | None = None
    consensus_above: Real | None = None
    weights: tuple[float, ...] | None = None
    tool_form: str | None = None
    on_missing: Literal["error", "continue"] | None = None

    max_tokens: Whole | None = None
    stop: tuple[str, ...] | None = None
    temperature: Real | None = None
    top_p: Real | None = None
    top_k: Whole | None = None
    min_p: Real | None = None
    repetition_penalty: Real | None = None
    seed: Whole | None = None
    reasoning: Whole | bool | None = Field(default=None, union_mode="left_to_right")
    on_length: Literal["error", "close"] | None = None
    strict: bool | None = None
    template_args: dict[str, Any] | None = None
    timeout: Seconds | None = None
    attach_rounds: bool = False

    @field_validator("drafter", mode="before")
    @classmethod
    def _one_model(cls, given: Any) -> Any:
        return None if given is None else _read_source(given, "drafter")

    @field_validator("verifiers", mode="before")
    @classmethod
    def _several_models(cls, given: Any) -> Any:
        if given is None:
            return None
        if isinstance(given, str | Mapping | LoadedModel) or not isinstance(given, Sequence):
            given = [given]
        return tuple(_read_source(item, f"verifiers[{i}]") for i, item in enumerate(given))

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @property
    def sources(self) -> list[Any]:
        """All models, drafter first, as `load_engine` picks them."""
        return loading.with_defaults(self.drafter, self.verifiers)

    @property
    def model_name(self) -> str:
        """Name of the ensemble: its models', drafter first. Nothing is read or loaded for it."""
        named = (s.name if is_member(s) else name_of(_spec(s)) for s in self.sources)
        return "+".join(told_apart(named))

    def _read_window(self) -> int:
        """The smallest window of the models. Reads what is known of them, but no weights."""
        return min(loading.peek(source).context_window for source in self.sources)

    def _load_engine(self, config: EnsembleConfig | None = None) -> SafeEngine:
        """The engine, on models that are loaded once per process."""
        return load_engine(self.drafter, self.verifiers, config)

    def __getstate__(self) -> dict[Any, Any]:
        """Refuses to pickle weights."""
        for member in self._members():
            raise InvalidArgumentError(
                "drafter or verifiers",
                member,
                "a loaded model cannot be pickled: name it, and each process will load it",
            )
        return super().__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the models."""
        shared = {id(member): member for member in self._members()}
        return super().__deepcopy__({**(memo or {}), **shared})

    def _members(self) -> list[Any]:
        return [source for source in self.sources if is_member(source)]


def is_served(source: Any) -> bool:
    """Whether a server computes a model that is not loaded yet."""
    return not is_member(source) and is_url(_spec(source).source)


def is_member(source: Any) -> bool:
    """Whether a model is loaded already."""
    return all(hasattr(source, name) for name in ("tokens", "render", "start"))


def identity_of(source: Any) -> dict[str, Any]:
    """What tells a model apart from all others. A loaded one equals nothing but itself."""
    if not is_member(source):
        return dict(_spec(source).model_dump())
    try:
        loaded = _ids.setdefault(source, str(uuid4()))
    except TypeError:  # it cannot be weakly referenced: never the same again
        loaded = str(uuid4())
    return {"name": source.name, "loaded": loaded}


def plain_source(source: Any) -> Any:
    """A model as data: its name, or what it is loaded from."""
    if isinstance(source, ModelSpec):
        return source.model_dump(exclude_defaults=True)
    return source if source is None or isinstance(source, str) else source.name


def _spec(source: str | ModelSpec) -> ModelSpec:
    return ModelSpec(source=source) if isinstance(source, str) else source


def _read_source(given: Any, argument: str) -> Any:
    """A model as it is kept: a name, a `ModelSpec`, or a loaded `Member`."""
    if isinstance(given, ModelSpec) or is_member(given):
        return given
    if isinstance(given, LoadedModel):
        return loading.load_member(given)  # made a member once, not by every call
    if isinstance(given, str | PathLike) and fspath(given):
        return fspath(given)
    if isinstance(given, Mapping):
        return ModelSpec(**given)
    shown = type(given) if isinstance(given, Sequence) and not isinstance(given, str) else given
    remedy = "pass a hub id, folder, .gguf file, URL, ModelSpec or loaded model"
    raise InvalidArgumentError(argument, shown, remedy)
