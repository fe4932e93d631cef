"""Where llama.cpp keeps what it has read: cells that many sequences of tokens share.

One context serves all sessions of a model, so that their rows fit into one batch. Each session has
a sequence. Those of finished sessions stay, for prompts that begin as they do; they take memory and
next to no time, for a row looks past cells that are not its own.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from ctypes import c_float
from typing import Any, Final

import numpy as np

from safe_integrations.engine.tokens import common_prefix
from safe_integrations.errors import (
    GenerationCancelled,
    GenerationError,
    ModelLoadError,
    UnsupportedModelError,
)
from safe_integrations.models.llama_cpp.batch import Arrays, Held, Ids, Row
from safe_integrations.models.llama_cpp.library import LENGTH, Batch, Weights
from safe_integrations.models.passes import ROWS_ALONE, Part, Price, passes_on

_CELLS: Final = 1024  # at first; doubled when they are full
_SEQUENCES: Final = 16  # so, too
_MOST_SEQUENCES: Final = 256  # llama.cpp's own limit
_FULL: Final = 1
_STOPPED: Final = 2


class Context:
    """The cells of a model's sequences; a `passes.Model`.

    Args:
        weights: The model.
        window: Tokens of the longest sequence that there will be.
        reuse_bytes: Memory for finished sequences.
        threads: Threads to compute with.

    Raises:
        ModelLoadError: The library does not compute as it should.
        UnsupportedModelError: The model makes no language.
        GenerationError: There is no memory.
    """

    shares: Final = True
    rows_alone: Final = ROWS_ALONE
    rows_together: Final = 63
    """Fewer than 64: from there on llama.cpp computes attention another way, and rounds otherwise.
    """

    def __init__(self, weights: Weights, window: int, reuse_bytes: int, threads: int) -> None:
        self._weights = weights
        self._llama = weights.llama
        self._reuse_bytes = reuse_bytes
        self._threads = threads
        self._row: Any = c_float * weights.size
        self._slides = self._llama.llama_model_n_swa(weights.pointer) > 0
        self._idle: list[Held] = []
        self._returned: deque[Held] = deque()
        self._begun: list[Ids] = []  # what the pass computes that was not heard of
        self._batch = Arrays()
        self._lock = threading.Lock()  # one thread at a time
        self.price: Final = Price()
        self.passes: Final = passes_on("cpu")  # with layers on a GPU it computes there, too
        # llama.cpp asks a function whether to stop, hundreds of times in a pass; one in Python
        # would wait for the interpreter each time. To this one, a text says yes by having a length.
        self._wish = ctypes.create_string_buffer(2)
        cells, self._most = _sizes(weights, window)
        self._free = list(range(0, _SEQUENCES, self._step))
        self._now = self._open(cells, _SEQUENCES)
        self.cell_bytes: int = self._check()

    @property
    def _step(self) -> int:
        """How many numbers a sequence has: a second one for what has left a sliding window."""
        return 2 if self._slides else 1

    def _open(self, cells: int, sequences: int) -> _Opened:
        llama = self._llama
        opened = _Opened(self._weights, cells, sequences)
        llama.llama_set_n_threads(opened.pointer, self._threads, self._threads)
        llama.llama_set_abort_callback(opened.pointer, LENGTH, self._wish)
        if llama.llama_n_ctx_seq(opened.pointer) < cells:
            raise ModelLoadError(
                f"{llama.path}: its sequences cannot share cells; install another version"
            )
        return opened

    def stop(self) -> None:
        """Makes the pass that is being computed end early."""
        self._wish.value = b"x"

    # sequences

    def take(self, prompt: list[int]) -> Held:
        """A sequence for a prompt, with what one of those that are idle has in common with it.

        Nothing is left of what stood behind it: an answer that was the same would be checked in
        other batches than the first time, and rounded otherwise.
        """
        with self._lock:
            self._sort_in()
            shared, best = max(
                ((common_prefix(held.ids, prompt), held) for held in self._idle),
                key=lambda pair: pair[0],
                default=(0, None),
            )
            if best is None or shared == 0:
                return Held(self._number(), [])
            if 2 * shared >= len(best.ids):
                self._idle.remove(best)
                self._cut(best, shared)
                return best
            # most of it would be lost: leave it to others
            copy = Held(self._number(keep=best), best.ids[:shared])
            copy.end = best.end if best.end and best.end[0] <= shared else None
            self._copy(best.number, copy.number, 0, shared)
            self._shield(copy, 0)
            return copy

    def give_back(self, held: Held) -> None:
        """Takes in the sequence of a finished session.

        It never waits: the garbage collector may close a session that nobody holds any more on any
        thread, and at any time.
        """
        self._returned.append(held)

    def forget(self) -> None:
        """Drops the sequences of finished sessions."""
        with self._lock:
            self._sort_in()
            while self._drop():
                pass

    def idle_bytes(self) -> int:
        """Memory that the sequences of finished sessions take."""
        with self._lock:
            self._sort_in()
            return self._sum_of_idle()

    # under the lock

    def _sum_of_idle(self) -> int:
        rows = sum(held.end[1].nbytes for held in self._idle if held.end)
        return rows + sum(len(held.ids) for held in self._idle) * self.cell_bytes

    def _sort_in(self) -> None:
        """Takes in what was given back; forgets the oldest where memory is short."""
        self._undo()
        while self._returned:
            held = self._returned.popleft()
            self._idle.insert(0 if held.ids else len(self._idle), held)
        while self._idle and (not self._idle[-1].ids or self._sum_of_idle() > self._reuse_bytes):
            self._drop()

    def _undo(self) -> None:
        """Forgets what a pass has written that failed or broke off.

        Before anything else is computed: in a sliding window, what it has written may make
        llama.cpp forget what is before.
        """
        for part in self._begun:
            self._cut(part.held, part.kept)
        self._begun = []

    def _drop(self, keep: Held | None = None) -> bool:
        """Forgets the oldest idle sequence, but not `keep`; False where there is none."""
        held = next((held for held in reversed(self._idle) if held is not keep), None)
        if held is None:
            return False
        self._idle.remove(held)
        self._cut(held, 0)
        self._free.append(held.number)
        return True

    def _number(self, keep: Held | None = None) -> int:
        """The number of a new sequence. Where most are idle, the oldest of these makes room."""
        count = self._now.sequences
        if not self._free and 2 * len(self._idle) >= count:
            self._drop(keep)
        if not self._free and count < _MOST_SEQUENCES:
            self._grow(self._now.cells, 2 * count)
            self._free += range(count, 2 * count, self._step)
        if not self._free and not self._drop(keep):
            raise GenerationError(
                f"{self._weights.path}: llama.cpp has no more sequences: so many answers cannot "
                "be written at once"
            )
        return self._free.pop()

    def _cut(self, held: Held, length: int) -> None:
        """Forgets what a sequence holds behind so many tokens."""
        removed = [
            self._llama.llama_memory_seq_rm(self._now.memory, number, length or -1, -1)
            for number in range(held.number, held.number + self._step)
        ]
        if not all(removed):
            raise GenerationError(f"{self._weights.path}: its cache cannot be cut back")
        del held.ids[length:]
        held.end = held.end if held.end and held.end[0] <= length else None

    def _shield(self, held: Held, since: int) -> None:
        """Keeps what has left a sliding window: a draft that is cut back may need it again.

        llama.cpp takes such a cell for another token, but not one that a second sequence has, too.
        """
        if self._slides:
            self._copy(held.number, held.number + 1, since, -1)
            if self._llama.llama_memory_seq_pos_min(self._now.memory, held.number) > 0:
                raise GenerationError(f"{self._weights.path}: it has forgotten tokens it may need")

    def _copy(self, one: int, other: int, since: int, end: int) -> None:
        self._llama.llama_memory_seq_cp(self._now.memory, one, other, since, end)

    def _grow(self, cells: int, sequences: int) -> None:
        """Moves everything to a larger context."""
        if cells > self._most:
            raise GenerationError(
                f"{self._weights.path}: {self._most} tokens are the most that it can hold, for all "
                "answers together; answer less at once, or set a larger context_window"
            )
        llama, old, new = self._llama, self._now, self._open(cells, sequences)
        state = np.empty(llama.llama_state_get_size(old.pointer), np.uint8)
        written = llama.llama_state_get_data(old.pointer, state.ctypes.data, len(state))
        if llama.llama_state_set_data(new.pointer, state.ctypes.data, written) != written:
            raise GenerationError(f"{self._weights.path}: its cache cannot be moved")
        self._now = new

    # passes

    def compute(self, parts: Sequence[Part]) -> None:
        """One pass (`passes.Model.compute`). Where it fails or is stopped, nothing is kept."""
        with self._lock:
            self._wish.value = b""
            self._sort_in()
            # Who is gone has given the sequence back, and others may have taken it. Whoever goes
            # from here on gives it back behind the pass.
            asked = [part for part in parts if isinstance(part, Ids) and not part.gone]
            self._begun = asked
            for part in asked:
                if len(part.held.ids) > part.kept:
                    self._cut(part.held, part.kept)
            code = self._decode(self._batch.fill(asked)) if asked else 0
            if code:
                self._undo()
            else:
                self._take_in(asked)
                self._begun = []
        if code == _STOPPED:
            raise GenerationCancelled
        if code:
            raise GenerationError(f"{self._weights.path}: llama.cpp failed with code {code}")

    def _decode(self, batch: Batch) -> int:
        while (code := self._llama.llama_decode(self._now.pointer, batch)) == _FULL:
            if not self._drop():
                now = self._now
                most = max(now.cells + ROWS_ALONE, self._most)
                self._grow(min(2 * now.cells, most), now.sequences)
        return int(code)

    def _take_in(self, parts: Sequence[Ids]) -> None:
        end = 0
        for part in parts:
            end += part.taken
            part.result = [self._logits(i) for i in range(end - part.answered, end)]
            self._shield(part.held, part.kept)
            part.held.ids += part.ids[: part.taken]

    def _logits(self, place: int) -> Row:
        """A row of the pass, copied: the next one overwrites it."""
        address = self._llama.llama_get_logits_ith(self._now.pointer, place)
        if not address:
            raise GenerationError(f"{self._weights.path}: llama.cpp has no row {place}")
        return np.frombuffer(self._row.from_address(address), np.float32).copy()

    def _check(self) -> int:
        """Whether it computes as it should: rows, cut back, rows again, beside another sequence.

        Returns:
            Bytes that a token takes.
        """
        size = self._llama.llama_state_seq_get_size
        one, other = Held(self._number(), []), Held(self._number(), [])
        a, b, c = (self._weights.size * i // 7 for i in (2, 3, 5))
        first = self._ask((one, 0, [a, b, c]))
        three = size(self._now.pointer, one.number)
        self._ask((one, 1, [c]), (other, 0, [a]))
        cell_bytes = three - size(self._now.pointer, one.number)
        again = self._ask((other, 1, [b]), (one, 1, [b, c]))
        expected = [first[1], first[1], first[2]]
        spread = max(float(np.ptp(row)) for row in first)
        if spread == 0:  # as embedding models do, which have no rows
            raise UnsupportedModelError(
                f"{self._weights.path} expects every token alike: it is no language model; use one"
            )
        if not np.isfinite(spread) or any(
            float(abs(x - y).max()) > _TOLERANCE * spread
            for x, y in zip(again, expected, strict=True)
        ):
            raise ModelLoadError(
                f"{self._weights.path}: {self._llama.path} computes something else when it reads "
                "tokens again: install another version, or set backend='transformers'"
            )
        for held in (one, other):
            self._cut(held, 0)
            self._free.append(held.number)
        return max(int(cell_bytes), 1)

    def _ask(self, *asked: tuple[Held, int, list[int]]) -> list[Row]:
        parts = [Ids(self, held, kept, ids, len(ids)) for held, kept, ids in asked]
        for part in parts:
            part.taken = part.rows
        self.compute(parts)
        return [row for part in parts for row in part.result]


_TOLERANCE: Final = 0.05
"""Of the difference between the largest logit and the smallest: what rounding may change."""


class _Opened:
    """A context of the library; freed when nobody holds it any more, and before its weights."""

    def __init__(self, weights: Weights, cells: int, sequences: int) -> None:
        self.cells: Final = cells
        self.sequences: Final = sequences
        self.pointer: Final = weights.llama.context(weights, cells, ROWS_ALONE, sequences)
        self.memory: Final[int] = weights.llama.llama_get_memory(self.pointer)
        weakref.finalize(self, _release, weights, self.pointer).atexit = False


def _release(weights: Weights, pointer: int) -> None:
    weights.llama.llama_free(pointer)


def _sizes(weights: Weights, window: int) -> tuple[int, int]:
    """Cells to begin with, and the most that there may be.

    Where a model rotates positions another way for long texts (LongRoPE), llama.cpp decides by the
    number of cells. It must not change under the feet of what has been read, so the window decides.
    """
    kind = weights.value(f"{weights.architecture}.rope.scaling.type")
    built = weights.value(f"{weights.architecture}.rope.scaling.original_context_length")
    if built is None or kind not in (None, "longrope"):
        return _CELLS, 1 << 31
    short = int(built) // ROWS_ALONE * ROWS_ALONE
    return (_CELLS, short) if window <= short else (short + ROWS_ALONE, 1 << 31)
