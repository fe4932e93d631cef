"""A KV cache that can be cut back to any length, sliding-window layers included.

transformers' own sliding-window layers forget what has left the window, so they cannot go back by
more than they were told to remember. These layers keep everything (a few kilobytes per token) and
show the model only its window. They also write in place, instead of copying the cache every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import Cache, CacheLayerMixin, DynamicCache, PretrainedConfig

from safe_integrations.errors import UnsupportedModelError

_CROPPABLE: Final = {"DynamicLayer", "DynamicSlidingWindowLayer"}
"""transformers' own layers that a `CroppableLayer` can stand for."""

_SPARE: Final = 128
"""Positions to have in reserve when a layer grows, beside an eighth of its length."""


class CroppableLayer(CacheLayerMixin):
    """Keys and values of one layer, shape `[1, heads, positions, head_dim]`.

    Of these a query sees the last `sliding_window`, itself included; None for all.
    """

    is_croppable = True

    def __init__(self, sliding_window: int | None = None) -> None:
        super().__init__()
        self.window = sliding_window
        self.is_sliding = sliding_window is not None
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes dtype, device and sizes from the first states."""
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends states; returns what the new queries may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            keys, values = (_grown(s, self.length, end) for s in (self.keys, self.values))
            self.keys, self.values = keys, values  # both or none, where memory is short
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        first = self._first_visible()
        self.length = end
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what `update` will return for so many queries."""
        first = self._first_visible()
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.length

    def get_max_length(self) -> int:
        """Positions visible at most; -1 for no limit."""
        return -1 if self.window is None else self.window

    def _first_visible(self) -> int:
        return 0 if self.window is None else max(self.length - self.window + 1, 0)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return sum(t.nbytes for t in (self.keys, self.values) if t is not None)


class CroppableCache(Cache):
    """One `CroppableLayer` for each of a model's layers; windows are those of `layer_windows`."""

    def __init__(self, windows: Sequence[int | None]) -> None:
        self._croppable = [CroppableLayer(window) for window in windows]
        super().__init__(layers=list(self._croppable))

    def copy(self, length: int) -> CroppableCache:
        """Another cache that holds the first `length` positions, at most those that this holds."""
        copy = CroppableCache([layer.window for layer in self._croppable])
        for old, new in zip(self._croppable, copy._croppable, strict=True):
            if old.keys is not None and old.values is not None:
                new.keys = _grown(old.keys, length, length)
                new.values = _grown(old.values, length, length)
                new.length, new.is_initialized = length, True
        return copy

    def cut(self, length: int) -> None:
        """Forgets everything behind the first `length` positions."""
        for layer in self._croppable:
            layer.length = min(layer.length, length)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return sum(layer.nbytes for layer in self._croppable)

    @property
    def position_bytes(self) -> int:
        """What one position takes of it; the cache must not be empty."""
        used = (layer for layer in self._croppable if layer.keys is not None)
        return sum(layer.nbytes // layer.keys.shape[2] for layer in used)


def layer_windows(config: PretrainedConfig, name: str) -> list[int | None]:
    """The sliding window of each layer of a model, None for full attention.

    Raises:
        UnsupportedModelError: Some layer keeps a state that cannot be cut back to an earlier token.
    """
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; use a decoder-only model")
    try:
        layers = DynamicCache(config=config).layers
        refused = sorted({type(layer).__name__ for layer in layers} - _CROPPABLE)
        if not refused:
            return [layer.sliding_window if layer.is_sliding else None for layer in layers]
    except Exception as error:
        refused = [f"{type(error).__name__}: {error}"]
    raise UnsupportedModelError(
        f"{name} has layers whose cache cannot be cut back after a rejected draft "
        f"({', '.join(refused)}); use a model with full or sliding-window attention only"
    )


def position_bytes(config: PretrainedConfig, layers: int, width: int) -> int:
    """Memory of one position as the config tells it; 0 where it does not.

    A cache that holds something knows better: heads of odd models differ from layer to layer.

    Args:
        config: The model's.
        layers: How many of them have a cache.
        width: Bytes of one number.
    """
    built = config.get_text_config(decoder=True)
    try:
        heads = built.num_attention_heads
        kv_heads = getattr(built, "num_key_value_heads", None) or heads
        head_dim = getattr(built, "head_dim", None) or built.hidden_size // heads
        return int(2 * layers * kv_heads * head_dim * width)
    except (AttributeError, TypeError):
        return 0


def rope_switch(config: PretrainedConfig) -> int | None:
    """Tokens from which on a model rotates all positions another way (LongRoPE), or None.

    Keys from before the switch are of no use behind it, nor the other way round.
    """
    name, built = "original_max_position_embeddings", config.get_text_config(decoder=True)
    lengths = (
        kind.get(name) or getattr(built, name, None) or built.max_position_embeddings
        for kind in rope_kinds(config)
        if kind.get("rope_type") == "longrope"
    )
    return min(lengths, default=None)


def rope_kinds(config: PretrainedConfig) -> list[dict[str, Any]]:
    """How a model rotates positions; its layers may differ."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]


def positions(length: int) -> int:
    """How many positions a cache has room for when it grows to a length."""
    return length + length // 8 + _SPARE


def _grown(states: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    grown = states.new_empty((*states.shape[:2], positions(needed), states.shape[3]))
    grown[:, :, :used] = states[:, :, :used]
    return grown
