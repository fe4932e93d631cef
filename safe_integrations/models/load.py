"""From names to members: each model is loaded once per process and shared."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from safe_integrations.calls.plain import (
    render_tools_plainly,
    template_supports_tools,
    tool_signature,
)
from safe_integrations.config import Tool
from safe_integrations.engine.model import Member
from safe_integrations.messages import Message
from safe_integrations.models.embedded import DEFAULT_DRAFTER, DEFAULT_VERIFIERS
from safe_integrations.models.loading import (
    LoadedModel,
    ModelCard,
    ModelSpec,
    context_window_of,
    load_model,
)

if TYPE_CHECKING:
    from safe_integrations.models.transformers.member import Render, TransformersMember

ModelSource = str | ModelSpec | LoadedModel | Member
"""A hub id, folder, GGUF file or embedded name; the same with options; or a loaded model."""

Progress = Callable[[str], None]


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
        return _member(source, ModelSpec(source=source.name))
    if isinstance(source, str):
        source = ModelSpec(source=source)
    if not isinstance(source, ModelSpec):
        return source
    with _guard:
        slot = _slots.setdefault(source.model_dump_json(), _Slot())
    with slot.lock:
        if slot.member is None:
            with _collecting_nothing():
                slot.member = _loaded_member(source, on_progress)
        return slot.member


def peek(source: ModelSource) -> ModelCard:
    """What can be known of a model without loading its weights.

    Raises:
        ModelError: The model cannot be found or read.
    """
    if isinstance(source, str):
        source = ModelSpec(source=source)
    if not isinstance(source, ModelSpec):
        member = load_member(source)
        return ModelCard(member.name, member.context_window, True)
    from safe_integrations.models.inspection import card_of

    return card_of(source)


def unload_models() -> None:
    """Forgets the models that this process shares; engines that use them keep them alive."""
    with _guard:
        _slots.clear()


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    member: Member | None = None


_guard: Final = threading.Lock()
_slots: Final[dict[str, _Slot]] = {}


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """Keeps the garbage collector from going through millions of lasting objects again and again.

    Loading the default pair takes a quarter less time this way.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _loaded_member(spec: ModelSpec, on_progress: Progress | None) -> TransformersMember:
    from safe_integrations.models.transformers.packing import pack

    loaded = load_model(spec, on_progress)
    member = _member(loaded, spec)
    _return_free_memory()  # before the weights are read: what they take is never free again
    if spec.pack:
        pack(loaded.model)
    return member


def _return_free_memory() -> None:
    """Has glibc return what it holds free to the system: building tokenizers leaves plenty.

    Other C libraries cannot be told to.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _member(loaded: LoadedModel, spec: ModelSpec) -> TransformersMember:
    from safe_integrations.models.tokenizer import build_token_table, end_ids_of
    from safe_integrations.models.transformers.member import TransformersMember

    model, tokenizer, name = loaded
    config = model.config.get_text_config()
    tokens = build_token_table(
        tokenizer,
        end_ids=end_ids_of(tokenizer, model.generation_config, model.config),
        vocab_size=config.vocab_size,
        name=name,
    )
    window = context_window_of(model, spec)
    return TransformersMember(
        model,
        tokens,
        _renderer(tokenizer),
        name=name,
        context_window=window,
        reuse_bytes=spec.reuse_bytes,
    )


def _renderer(tokenizer: Any) -> Render:
    from safe_integrations.models.rendering import render

    knows_tools = template_supports_tools(tokenizer.chat_template)

    def rendered(
        messages: Sequence[Message], tools: Sequence[Tool], template_args: Mapping[str, Any]
    ) -> list[int]:
        if not knows_tools:
            messages = render_tools_plainly(messages, tools)
        elif tools:
            template_args = {**template_args, "tools": [tool_signature(tool) for tool in tools]}
        return render(tokenizer, messages, template_args=template_args)

    return rendered
