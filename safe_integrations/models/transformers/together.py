"""One forward pass with rows of several sessions, each on a KV cache of its own.

Linear layers, norms and rotary embeddings work row by row: whose rows they are, and how many, is
nothing to them. Only attention looks at others. So all rows go in as one sequence without padding,
each with its own position; transformers' interface for attention functions hands over the queries,
keys and values of every layer, and here they go to the caches, and attend, session by session.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    PretrainedConfig,
    PreTrainedModel,
)

from safe_integrations.models.transformers.kv_cache import CroppableCache, rope_kinds

_NAME: Final = "safe_together"
"""What transformers calls the attention and mask functions by."""

_HARMLESS: Final = {
    "is_causal", "position_ids", "cache_position", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "num_items_in_batch", "logits_to_keep",
}  # fmt: skip
"""Arguments of attention functions that change nothing in attention itself."""


class CannotShare(Exception):
    """A model needs something in attention that sessions cannot share; the text says what."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one session brings to a pass.

    Attributes:
        ids: Its new token ids.
        kv: Its cache, with everything in front of them.
        wanted: Of how many last positions it wants the logits.
    """

    ids: Sequence[int]
    kv: CroppableCache
    wanted: int


def forward(model: Any, sessions: Sequence[Rows]) -> list[torch.Tensor]:
    """One forward pass for several sessions; their caches grow by their new ids.

    Returns:
        For each session the logits of its last positions, shape `[wanted, vocabulary]`.

    Raises:
        CannotShare: The caches hold some of the new ids now, in some layers.
    """
    counts = [len(session.ids) for session in sessions]
    begins = [session.kv.get_seq_length() for session in sessions]
    device = model.device
    ids = [token_id for session in sessions for token_id in session.ids]
    positions = [at + n for at, count in zip(begins, counts, strict=True) for n in range(count)]
    wanted: list[int] = []
    end = 0
    for session, count in zip(sessions, counts, strict=True):
        end += count
        wanted += range(end - session.wanted, end)
    joint = _Pass(counts, begins, [session.kv for session in sessions])
    with _attending(model):
        token = _pass.set(joint)
        try:
            logits = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                past_key_values=_Joined(joint),
                use_cache=True,
                logits_to_keep=torch.tensor(wanted, device=device),
            ).logits[0]
        finally:
            _pass.reset(token)
    if joint.attended != len(joint.caches[0].layers):
        raise CannotShare(f"{joint.attended} of its layers attend as transformers lets them")
    return list(logits.split([session.wanted for session in sessions]))


def why_not(config: PretrainedConfig) -> str | None:
    """What in a model's config keeps sessions from sharing a pass; None where nothing does."""
    kinds = {kind.get("rope_type") for kind in rope_kinds(config)}
    moving = [kind for kind in ("longrope", "dynamic") if kind in kinds]
    return f"positions are rotated by the longest text ({', '.join(moving)})" if moving else None


@torch.inference_mode()
def probe(model: Any, windows: Sequence[int | None]) -> str | None:
    """Tries whether sessions can share a pass of a model.

    Two short texts go through it together and alone. On the device `meta`, where numbers are not
    computed, only what attention is asked for is looked at.

    Returns:
        Why they cannot; None where they can.
    """
    if refused := why_not(model.config):
        return refused
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    texts = ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3])
    caches = [CroppableCache(windows) for _ in texts]
    try:
        for at in (slice(0, 3), slice(3, None)):  # onto empty caches, then onto others
            parts = [Rows(text[at], kv, 1) for text, kv in zip(texts, caches, strict=True)]
            together = torch.stack([rows[0] for rows in forward(model, parts)])
    except CannotShare as refusal:
        return str(refusal)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if model.device.type == "meta":
        return None
    alone = torch.stack(
        [model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1] for text in texts]
    )
    scale = alone.float().abs().max()
    off = float((together.float() - alone.float()).abs().max() / scale)
    return None if off < _TOLERANCE[alone.dtype] else f"numbers differ by {off:.1%} of the largest"


_TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far logits may be off, as a share of the largest, by the type of the weights."""


@dataclass(slots=True)
class _Pass:
    """Who takes part in the pass of this thread.

    Attributes:
        counts: New rows of each session.
        begins: Positions that its cache holds in front of them.
        caches: The caches.
        masks: Which keys a session's rows may see: by session and window.
        attended: Layers that have attended.
    """

    counts: list[int]
    begins: list[int]
    caches: list[CroppableCache]
    masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)
    attended: int = 0

    def mask(self, session: int, window: int | None, keys: int, device: Any) -> torch.Tensor | None:
        """Shape `[rows, keys]`, True where a row may look; None where all may look everywhere."""
        count, begin = self.counts[session], self.begins[session]
        if count == 1:
            return None
        if (session, window) not in self.masks:
            rows = torch.arange(begin, begin + count, device=device)[:, None]
            seen = torch.arange(begin + count - keys, begin + count, device=device)
            mask = seen <= rows
            if window is not None:
                mask &= seen > rows - window
            self.masks[session, window] = mask
        return self.masks[session, window]


_pass: ContextVar[_Pass] = ContextVar("pass")


class _Joined(Cache):
    """Stands for the caches of all sessions: keys and values get there when they attend."""

    def __init__(self, joint: _Pass) -> None:
        super().__init__(layers=list(joint.caches[0].layers))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves everything to the attention function."""
        return key_states, value_states


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention of each session's rows to its own past; shapes `[1, heads, rows, head_dim]`."""
    joint = _pass.get(None)
    if joint is None:  # another thread's call: the model may have an owner who uses it, too
        given = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        own = AttentionInterface().get_interface(
            _owners_choice(module.config),
            getattr(sys.modules[type(module).__module__], "eager_attention_forward", None),
        )
        attended: tuple[torch.Tensor, Any] = own(
            module, query, key, value, attention_mask, **given, **others
        )
        return attended
    asked = {name for name, given in others.items() if given is not None and given is not False}
    if refused := asked - _HARMLESS:
        raise CannotShare(f"its attention takes {', '.join(sorted(refused))}")
    if attention_mask is not None:
        raise CannotShare("it makes attention masks of its own")
    if dropout:
        raise CannotShare("it drops out")
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    outputs = []
    split = (torch.split(states, joint.counts, 2) for states in (query, key, value))
    for session, (kv, q, k, v) in enumerate(zip(joint.caches, *split, strict=True)):
        layer = kv.layers[module.layer_idx]
        if layer.window != sliding_window:
            raise CannotShare(f"its windows are {sliding_window}, and not {layer.window}")
        keys, values = layer.update(k, v)
        count = q.shape[2]
        if count == 1:  # heads that share keys are rows of one
            packed = q.view(1, keys.shape[1], groups, -1)
            out = scaled_dot_product_attention(packed, keys, values, scale=scaling)
            outputs.append(out.reshape(1, 1, heads, -1))
        else:
            mask = joint.mask(session, layer.window, keys.shape[2], q.device)
            out = scaled_dot_product_attention(
                q.view(keys.shape[1], groups, count, -1),
                keys.transpose(0, 1).expand(-1, groups, -1, -1),
                values.transpose(0, 1).expand(-1, groups, -1, -1),
                attn_mask=mask,
                scale=scaling,
            )
            outputs.append(out.reshape(1, heads, count, -1).transpose(1, 2))
    joint.attended += 1
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], None


def _mask(*args: Any, config: Any, **options: Any) -> Any:
    """No mask: sessions mask for themselves. But for what other threads call meanwhile."""
    if _pass.get(None) is not None:
        return None
    return AttentionMaskInterface()[_owners_choice(config)](*args, config=config, **options)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)

_choices: Final[dict[int, str]] = {}


def _owners_choice(config: Any) -> str:
    """By what a model attends where sessions do not share a pass."""
    name: str = config._attn_implementation
    return _choices[id(config)] if name == _NAME else name


@contextmanager
def _attending(model: Any) -> Iterator[None]:
    """Has a model attend by `_attend`; what it did before is restored."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, _owners_choice(config)) for config in configs.values()]
    _choices.update((id(config), name) for config, name in before)
    try:
        for config in configs.values():
            config._attn_implementation_internal = _NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
