"""What an adapter is made with: its models, and the options of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any, Literal, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

from pydantic import BaseModel, field_validator

from safe_integrations.config import EnsembleConfig, Method, Mode, Sharpening
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.models import load as loading
from safe_integrations.models.spec import LoadedModel, ModelCard, ModelSpec
from safe_integrations.models.spec import name_of as name_of_spec
from safe_integrations.safe_engine import SafeEngine, load_engine

_ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class EnsembleOptions(BaseModel):
    """The models of an ensemble, and everything that can be said about its answers.

    Models are named, not passed: they are loaded by the first call, once per process. Everything
    that is None takes the default of `EnsembleConfig` or `GenerationConfig`, which also say what
    the options mean. Every option but the models can be given per call, too.

    Attributes:
        drafter: The model that writes: a hub id, a folder, a GGUF file, a `ModelSpec`, or a loaded
            `Member`. None takes the embedded pair.
        verifiers: The models that check it, given the same way. None takes the default verifier
            for the default drafter, and none at all for one that is named: it then writes alone.
        mode: How the models work together.
        lookahead: Tokens the drafter writes ahead, or `auto`.
        prompt_lookup: Whether the drafter tries what followed the same words before.
        method: How distributions are merged.
        union_top_k: Tokens each model brings to a merge.
        sharpening: What to do with a merged distribution that is too smooth.
        sharpen_below: When it is too smooth.
        prefix_threshold: When a token collects the mass of its continuations.
        consensus_above: When models agree.
        weights: One per model, drafter first.
        max_tokens: Most tokens of an answer, in the drafter's tokens.
        stop: Texts that end an answer. A call's own `stop` takes their place.
        temperature: 0 is greedy.
        top_p: Nucleus sampling.
        top_k: Draw from the k best tokens.
        min_p: Draw from tokens that are not much worse than the best.
        repetition_penalty: Makes repetition less likely.
        seed: Makes drawing repeatable.
        strict: What to do with what a grammar cannot enforce of a schema (`config.JsonSchema`),
            where the schema does not say it itself.
        template_args: Further arguments of the chat templates (`enable_thinking`, ...).
        timeout: Seconds that an answer may take, once the models are loaded.
    """

    drafter: Any = None
    verifiers: tuple[Any, ...] | None = None

    mode: Mode | None = None
    lookahead: int | Literal["auto"] | None = None
    prompt_lookup: bool | None = None
    method: Method | None = None
    union_top_k: int | None = None
    sharpening: Sharpening | None = None
    sharpen_below: float | None = None
    prefix_threshold: float | None = None
    consensus_above: float | None = None
    weights: tuple[float, ...] | None = None

    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    strict: bool | None = None
    template_args: dict[str, Any] | None = None
    timeout: float | None = None

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


def is_member(source: Any) -> bool:
    """Whether a model is loaded already."""
    return all(hasattr(source, name) for name in ("tokens", "render", "start"))


def name_of(source: Any) -> str:
    """What a model is called, without loading it."""
    if is_member(source):
        return str(source.name)
    return name_of_spec(ModelSpec(source=source) if isinstance(source, str) else source)


def identity_of(source: Any) -> dict[str, Any]:
    """What tells a model apart from all others. A loaded one equals nothing but itself."""
    if not is_member(source):
        spec = ModelSpec(source=source) if isinstance(source, str) else source
        return dict(spec.model_dump())
    try:
        loaded = _ids.setdefault(source, str(uuid4()))
    except TypeError:  # it cannot be weakly referenced: never the same again
        loaded = str(uuid4())
    return {"name": source.name, "loaded": loaded}


def card_of(source: Any) -> ModelCard:
    """What can be known of a model without loading its weights."""
    return loading.peek(source)


def plain_source(source: Any) -> Any:
    """A model as data: its name, or what it is loaded from."""
    if isinstance(source, ModelSpec):
        return source.model_dump(exclude_defaults=True)
    return source if source is None or isinstance(source, str) else source.name


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
    raise InvalidArgumentError(
        argument, given, "pass a hub id, a folder, a .gguf file, a ModelSpec or a loaded model"
    )
