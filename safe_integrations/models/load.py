"""From names to members: each model is loaded once per process and shared."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from typing import Final, Protocol

from safe_integrations.engine.model import Member
from safe_integrations.models.embedded import DEFAULT_DRAFTER, DEFAULT_VERIFIERS
from safe_integrations.models.local import is_for_llama_cpp
from safe_integrations.models.report import ModelReport
from safe_integrations.models.spec import (
    LoadedModel,
    ModelCard,
    ModelSpec,
    Progress,
    is_url,
    key_of,
    name_of,
)

ModelSource = str | ModelSpec | LoadedModel | Member
"""A hub id, folder, GGUF file, embedded name or URL; the same with options; or a loaded model."""


class _Backend(Protocol):
    """What the module `load` in a backend's folder offers."""

    def load(self, spec: ModelSpec, tell: Progress) -> Member: ...
    def card_of(self, spec: ModelSpec) -> ModelCard: ...
    def report_of(self, spec: ModelSpec, tell: Progress) -> ModelReport: ...


def backend_of(spec: ModelSpec) -> _Backend:
    """Which backend computes a model."""
    if is_url(spec.source):
        from safe_integrations.models.served import load as served

        return served
    if is_for_llama_cpp(spec):
        from safe_integrations.models.llama_cpp import load as llama_cpp

        return llama_cpp
    from safe_integrations.models.transformers import load as transformers

    return transformers


def with_defaults(
    drafter: ModelSource | None, verifiers: Sequence[ModelSource] | None
) -> list[ModelSource]:
    """All models, drafter first. The default drafter brings its verifier along."""
    if verifiers is None:
        verifiers = DEFAULT_VERIFIERS if drafter is None else ()
    return [DEFAULT_DRAFTER if drafter is None else drafter, *verifiers]


def load_member(source: ModelSource, on_progress: Progress | None = None) -> Member:
    """Loads one model, or takes it from those that this process has loaded.

    Raises:
        ModelError: The model cannot be found, read or used.
    """
    if isinstance(source, LoadedModel):
        from safe_integrations.models.transformers.load import member_of

        return member_of(source)
    if isinstance(source, str):
        source = ModelSpec(source=source)
    if not isinstance(source, ModelSpec):
        return source
    with _guard:
        slot = _slots.setdefault(key_of(source), _Slot())
    with slot.lock:
        if slot.member is None:
            slot.member = backend_of(source).load(source, on_progress or (lambda _: None))
        return slot.member


def load_members(
    sources: Sequence[ModelSource], on_progress: Progress | None = None
) -> list[Member]:
    """Loads some models, those of llama.cpp side by side: it reads them without the interpreter.

    Nobody waits for the others where one fails, or Ctrl-C is pressed: fetching them takes long.

    Args:
        sources: The models.
        on_progress: Told what is going on by one thread at a time.

    Raises:
        ModelError: One of them cannot be found, read or used.
    """
    one_at_a_time = threading.Lock()

    def tell(line: str) -> None:
        if on_progress is not None:
            with one_at_a_time:
                on_progress(line)

    specs = [ModelSpec(source=s) if isinstance(s, str) else s for s in sources]
    beside = {
        n: _start_loading(spec, tell)
        for n, spec in enumerate(specs)
        if isinstance(spec, ModelSpec) and is_for_llama_cpp(spec)
    }
    others = {n: load_member(spec, tell) for n, spec in enumerate(specs) if n not in beside}
    for loaded in as_completed(beside.values()):
        loaded.result()  # whichever fails first
    return [others[n] if n in others else beside[n].result() for n in range(len(specs))]


def _start_loading(spec: ModelSpec, tell: Progress) -> Future[Member]:
    loaded: Future[Member] = Future()

    def load() -> None:
        try:
            loaded.set_result(load_member(spec, tell))
        except BaseException as error:
            loaded.set_exception(error)

    threading.Thread(target=load, name=f"loading {name_of(spec)}", daemon=True).start()
    return loaded


def peek(source: ModelSource) -> ModelCard:
    """What can be known of a model without loading its weights; read once per process.

    Raises:
        ModelError: The model cannot be found or read.
    """
    if isinstance(source, str):
        source = ModelSpec(source=source)
    if not isinstance(source, ModelSpec):
        member = load_member(source)
        return ModelCard(member.name, member.context_window)
    key = key_of(source)
    if key not in _cards:
        _cards[key] = backend_of(source).card_of(source)
    return _cards[key]


def unload_models() -> None:
    """Forgets the models that this process shares; engines that use them keep them alive."""
    with _guard:
        _slots.clear()
        _cards.clear()


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    member: Member | None = None


_guard = threading.Lock()
_slots: Final[dict[str, _Slot]] = {}
_cards: Final[dict[str, ModelCard]] = {}


def _start_afresh() -> None:
    """A forked process shares no models with its parent, nor locks that nobody there will open."""
    global _guard
    _guard = threading.Lock()
    _slots.clear()


if hasattr(os, "register_at_fork"):  # not everywhere can a process be forked
    os.register_at_fork(after_in_child=_start_afresh)
