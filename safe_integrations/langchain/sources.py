"""The models of a `ChatSafe`: how they may be given, their names, what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from safe_integrations.backends.embedded import DEFAULT_DRAFTER, DEFAULT_VERIFIERS
from safe_integrations.backends.loading import LoadedModel, ModelSpec
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.loading import load_member

_ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def read_source(given: Any, argument: str) -> Any:
    """A model as it is kept: None, a name, a `ModelSpec`, or a loaded `Member`.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if given is None or isinstance(given, ModelSpec) or is_member(given):
        return given
    if isinstance(given, LoadedModel):
        return load_member(given)
    if isinstance(given, str | PathLike) and fspath(given):
        return fspath(given)
    if isinstance(given, Mapping):
        return ModelSpec(**given)
    raise InvalidArgumentError(
        argument, given, "pass a hub id, a folder, a .gguf file, a ModelSpec or a loaded model"
    )


def is_member(source: Any) -> bool:
    """Whether a model is loaded already."""
    return all(hasattr(source, name) for name in ("tokens", "render", "start"))


def with_defaults(drafter: Any, verifiers: tuple[Any, ...] | None) -> list[Any]:
    """All models, drafter first, as `load_engine` will choose them."""
    if verifiers is None:
        verifiers = DEFAULT_VERIFIERS if drafter is None else ()
    return [DEFAULT_DRAFTER if drafter is None else drafter, *verifiers]


def name_of(source: Any) -> str:
    """What a model is called, without loading it."""
    if is_member(source):
        return str(source.name)
    spec = ModelSpec(source=source) if isinstance(source, str) else source
    path = Path(spec.gguf_file or spec.source)
    return spec.name or (path.stem if path.suffix == ".gguf" else path.name)


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
