"""A transformers model as a member of the ensemble."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from safe_integrations.calls.form import Form
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.model import Work, never
from safe_integrations.engine.tokens import TokenTable, common_prefix
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.admission import Memory
from safe_integrations.models.fork import check_process
from safe_integrations.models.member import BaseMember
from safe_integrations.models.memory import available_on
from safe_integrations.models.rendering import Render
from safe_integrations.models.transformers.forward import Forward
from safe_integrations.models.transformers.kv_cache import (
    CroppableCache,
    layer_windows,
    position_bytes,
    positions,
    rope_switch,
)
from safe_integrations.models.transformers.logits import Fold


class TransformersMember(BaseMember[Fold]):
    """One causal language model with its tokenizer.

    Caches of finished generations are kept, newest first, and a new prompt takes over the one that
    it shares the longest beginning with. Sessions of several threads share forward passes
    (`models/passes.py`), or take turns where the model does not let them.

    Args:
        model: A causal language model of transformers, in eval mode.
        tokens: Its tokens as bytes.
        render: Turns messages into prompt ids.
        name: How errors and statistics call it.
        context_window: Tokens it can hold; see `load.context_window_of`.
        reuse_bytes: Memory for caches of finished prompts, in bytes; 0 keeps none.
        cache_bytes: Memory for caches of answers in flight, in bytes; see `ModelSpec`.
        teaches: The form of a call that its chat template teaches; None where it is none we know.
        in_form: `tokens` and `render` where calls have a form. None where none changes them.

    Raises:
        UnsupportedModelError: The model's cache cannot be cut back.
    """

    def __init__(
        self,
        model: Any,
        tokens: TokenTable,
        render: Render,
        *,
        name: str,
        context_window: int,
        reuse_bytes: int,
        cache_bytes: int | None = None,
        teaches: Form | None = None,
        in_form: Callable[[Form], tuple[TokenTable, Render]] | None = None,
    ) -> None:
        super().__init__(
            tokens,
            render,
            Fold,
            name=name,
            context_window=context_window,
            teaches=teaches,
            in_form=in_form,
        )
        self._model = model
        self._windows = layer_windows(model.config, name)
        self._rope_switch = rope_switch(model.config)
        self.forward: Final = Forward(model, self._windows, name)
        self.memory: Final = Memory(
            cache_bytes,
            lambda: available_on(weights.device for weights in model.parameters()),
            positions,
            position_bytes(model.config, len(self._windows), model.dtype.itemsize),
        )
        self._reuse_bytes = reuse_bytes
        self._lock = threading.Lock()
        self._idle: list[_Cached] = []
        self._returned: deque[_Cached] = deque()

    def start(
        self, prompt: Sequence[int], cancel: Callable[[], bool] = never
    ) -> TransformersSession:
        """Opens a session on a prompt, on the best cache that is idle.

        `cancel` is asked before every forward pass, and between the parts of a long prompt; where
        it says yes, `score` raises `GenerationCancelled`.
        """
        check_process(self.name)
        wanted = list(prompt)
        stretched = self.stretches(len(wanted))
        with self._lock:
            self._sort_in()
            shared, cached = max(
                ((common_prefix(c.ids, wanted), c) for c in self._idle if c.stretched == stretched),
                key=lambda pair: pair[0],
                default=(0, None),
            )
            if cached is None or shared == 0:
                cached = _Cached(CroppableCache(self._windows), [], stretched)
            elif 2 * shared < len(cached.ids):  # most of it would be lost: leave it to others
                cached = _Cached(cached.kv.copy(shared), cached.ids[:shared], stretched)
            else:
                self._idle.remove(cached)
        return TransformersSession(self, wanted, cached, cancel)

    def give_back(self, cached: _Cached) -> None:
        """Takes in the cache of a finished session; forgets the oldest where memory is short.

        It never waits: the garbage collector may close a session that nobody holds any more in the
        middle of a forward pass, on the thread that computes it.
        """
        self._returned.append(cached)
        if self._lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self._lock.release()

    def _sort_in(self) -> None:
        """Takes in what was given back. The caller holds the lock."""
        while self._returned:
            self._idle.insert(0, self._returned.popleft())
        while self._idle and self._idle_bytes() > self._reuse_bytes:
            self._idle.pop()

    def forget(self) -> None:
        """Drops the caches of finished prompts, as `benchmarks` needs; sessions keep theirs."""
        with self._lock:
            self._returned.clear()
            self._idle.clear()

    @property
    def cache_bytes(self) -> int:
        """Memory that caches of finished prompts take, in bytes."""
        with self._lock:
            self._sort_in()
            return self._idle_bytes()

    def _idle_bytes(self) -> int:
        return sum(cached.kv.nbytes for cached in self._idle)

    def stretches(self, length: int) -> bool:
        """Whether the model rotates positions its other way for so many tokens (LongRoPE)."""
        return self._rope_switch is not None and length > self._rope_switch


class TransformersSession:
    """A model at work on one prompt. It forwards only tokens that its cache does not hold."""

    def __init__(
        self,
        member: TransformersMember,
        prompt: list[int],
        cached: _Cached,
        cancel: Callable[[], bool],
    ) -> None:
        self.work = Work()
        self._member = member
        self._prompt = prompt
        self._cached: _Cached | None = cached
        self._cancel = cancel
        self._rows: list[DenseDistribution] = []  # after the last tokens of the cache, in order

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        """What the model expects after `ids[:since]`, ..., after `ids`; see `Session`.

        Raises:
            GenerationCancelled: What was read until then is kept, for this session and for others.
        """
        cached = self._cached
        assert cached is not None, "the session is closed"
        wanted = self._prompt + list(ids)
        first = len(self._prompt) + since - 1  # the token whose row answers first
        kept = common_prefix(cached.ids, wanted)
        if first < len(cached.ids) - len(self._rows):  # its row is gone: forward it once more
            kept = min(kept, first)
        if self._member.stretches(len(wanted)) != cached.stretched:  # no key is right any more
            kept = 0
            cached.stretched = not cached.stretched
        if self.work.tokens == 0:
            self.work.reused = min(kept, len(self._prompt))
        self._cut(kept)
        if kept < len(wanted):
            if kept <= first:
                self._rows = []
            self._rows += self._read(wanted[kept:], len(wanted) - max(first, kept))
        self._rows = self._rows[first - (len(cached.ids) - len(self._rows)) :]
        return tuple(self._rows)

    def _read(self, new: list[int], rows: int) -> Sequence[DenseDistribution]:
        """Forwards what the cache does not hold; what is expected at the last `rows` positions."""
        cached = self._cached
        assert cached is not None
        while True:
            if self._cancel():
                raise GenerationCancelled
            self._cached = None  # lost if the forward pass fails half-way
            computed = self._member.forward(new, cached.kv, rows, self._member.fold, self._cancel)
            taken = computed.taken
            cached.ids += new[:taken]
            self._cached = cached
            if not taken:
                raise GenerationCancelled
            if self.work.tokens == 0:
                self._member.memory.position_bytes = cached.kv.position_bytes
            self.work.tokens += taken
            self.work.seconds += computed.seconds
            self.work.row_seconds = self._member.forward.price.row
            if taken == len(new):
                self.work.passes += 1
                return computed.rows
            new = new[taken:]

    def close(self) -> None:
        """Gives the cache back for other prompts to start from."""
        cached, self._cached, self._rows = self._cached, None, []
        self._member.forward.leave()
        if cached is not None and cached.ids:
            self._member.give_back(cached)

    def _cut(self, length: int) -> None:
        assert self._cached is not None
        cut_off = len(self._cached.ids) - length
        if cut_off > 0:
            del self._cached.ids[length:]
            del self._rows[max(0, len(self._rows) - cut_off) :]
            self._cached.kv.cut(length)


class _Cached:
    """A KV cache and the ids whose states it holds."""

    def __init__(self, kv: CroppableCache, ids: list[int], stretched: bool) -> None:
        self.kv = kv
        self.ids = ids
        self.stretched = stretched
