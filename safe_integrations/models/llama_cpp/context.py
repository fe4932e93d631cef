"""Where llama.cpp keeps what it has read: cells that many sequences of tokens share.

One context serves all sessions of a model, so that their rows fit into one batch. Each session has
a sequence. Those of finished sessions stay, for prompts that begin as they do; they take memory and
next to no time, for a row looks past cells that are not its own. Only the thread of `passes`
touches a context.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int8, c_int32
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.tokens import common_prefix
from safe_integrations.errors import GenerationError, ModelLoadError
from safe_integrations.models.llama_cpp.library import LENGTH, Batch, Weights
from safe_integrations.models.llama_cpp.passes import Passes, Task
from safe_integrations.models.passes import Price

Row = NDArray[np.float32]

PART: Final = 256
"""Tokens to compute at once. Between two parts of a long prompt, others get their turn."""

_CELLS: Final = 1024  # at first; doubled when they are full
_SEQUENCES: Final = 16  # so, too
_MOST_SEQUENCES: Final = 256  # llama.cpp's own limit
_FULL: Final = 1
_STOPPED: Final = 2

PASSES: Final = Passes()
"""All models of a process take turns: side by side they would only take each other's cores."""


class Held:
    """A sequence: its number, and the ids whose states are in its cells."""

    def __init__(self, number: int, ids: list[int]) -> None:
        self.number: Final = number
        self.ids = ids


class Part(Task):
    """New tokens behind the first `kept` of a sequence, the last `rows` with what follows them.

    The result is an `Answer`.
    """

    def __init__(
        self, context: Context, held: Held, kept: int, ids: Sequence[int], rows: int
    ) -> None:
        super().__init__(context, len(ids))
        self.held: Final = held
        self.kept: Final = kept
        self.ids: Final = ids
        self.rows: Final = rows


class Answer(NamedTuple):
    """Logits of a part, shape `[tokens.size]` each, and the seconds that it took of its pass."""

    rows: list[Row]
    seconds: float


class Context:
    """The cells of a model's sequences.

    Args:
        weights: The model.
        window: Tokens of the longest sequence that there will be.
        reuse_bytes: Memory for finished sequences.
        threads: Threads to compute with.

    Raises:
        ModelLoadError: The library does not compute as it should.
        GenerationError: There is no memory.
    """

    room: int = 63
    """Tokens of several sessions to compute at once: few, so that no step waits for a prompt, and
    fewer than 64, from which on llama.cpp computes attention another way, and rounds differently.
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
        self._batch = _Arrays()
        self.price: Final = Price()
        # llama.cpp asks a function whether to stop, hundreds of times in a pass; one in Python
        # would wait for the interpreter each time. To this one, a text says yes by having a length.
        self._wish = ctypes.create_string_buffer(2)
        self._sequences = _SEQUENCES
        self._free = list(range(0, _SEQUENCES, 2 if self._slides else 1))
        self._cells, self._most = _sizes(weights, window)
        self._open()
        self.cell_bytes: int = PASSES.call(self, self._check)

    def _open(self) -> None:
        llama = self._llama
        self._pointer = llama.context(self._weights, self._cells, PART, self._sequences)
        self._memory: int = llama.llama_get_memory(self._pointer)
        # the weights have to outlive it
        self._close = weakref.finalize(self, _release, self._weights, self._pointer)
        self._close.atexit = False
        llama.llama_set_n_threads(self._pointer, self._threads, self._threads)
        llama.llama_set_abort_callback(self._pointer, LENGTH, self._wish)
        if llama.llama_n_ctx_seq(self._pointer) < self._cells:
            raise ModelLoadError(
                f"{llama.path}: its sequences cannot share cells; install another version"
            )

    def stop(self, yes: bool) -> None:
        """Makes the pass that runs end early, or lets passes run."""
        self._wish.value = b"x" if yes else b""

    # sequences

    def take(self, wanted: list[int]) -> Held:
        """A sequence for a prompt, with what one of those that are idle has in common with it."""
        self._sort_in()
        shared, best = max(
            ((common_prefix(held.ids, wanted), held) for held in self._idle),
            key=lambda pair: pair[0],
            default=(0, None),
        )
        if best is None or shared == 0:
            return Held(self._number(), [])
        if 2 * shared >= len(best.ids):
            self._idle.remove(best)
            return best
        # most of it would be lost: leave it to others
        copy = Held(self._number(keep=best), [])
        self._llama.llama_memory_seq_cp(self._memory, best.number, copy.number, 0, shared)
        copy.ids = best.ids[:shared]
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
        self._sort_in()
        while self._drop():
            pass

    def idle_bytes(self) -> int:
        """Memory that the sequences of finished sessions take."""
        self._sort_in()
        return self._sum_of_idle()

    def _sum_of_idle(self) -> int:
        return sum(len(held.ids) for held in self._idle) * self.cell_bytes

    def _sort_in(self) -> None:
        """Takes in what was given back; forgets the oldest where memory is short."""
        while self._returned:
            held = self._returned.popleft()
            self._idle.insert(0 if held.ids else len(self._idle), held)
        while self._idle and (not self._idle[-1].ids or self._sum_of_idle() > self._reuse_bytes):
            self._drop()

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
        if not self._free and 2 * len(self._idle) >= self._sequences:
            self._drop(keep)
        if not self._free and self._sequences < _MOST_SEQUENCES:
            more = range(self._sequences, 2 * self._sequences, 2 if self._slides else 1)
            self._grow(self._cells, 2 * self._sequences)
            self._free += more
        if not self._free and not self._drop(keep):
            raise GenerationError(
                f"{self._weights.path}: llama.cpp has no more sequences: so many answers cannot "
                "be written at once"
            )
        return self._free.pop()

    def _cut(self, held: Held, length: int) -> None:
        """Forgets what a sequence holds behind so many tokens."""
        numbers = (held.number, held.number + 1) if self._slides else (held.number,)
        removed = [
            self._llama.llama_memory_seq_rm(self._memory, number, length or -1, -1)
            for number in numbers
        ]
        if not all(removed):
            raise GenerationError(f"{self._weights.path}: its cache cannot be cut back")
        del held.ids[length:]

    def _shield(self, held: Held, since: int) -> None:
        """Keeps what has left a sliding window: a draft that is cut back may need it again.

        llama.cpp takes such a cell for another token, but not one that a second sequence has, too.
        """
        if self._slides:
            number = held.number
            self._llama.llama_memory_seq_cp(self._memory, number, number + 1, since, -1)
            if self._llama.llama_memory_seq_pos_min(self._memory, number) > 0:
                raise GenerationError(f"{self._weights.path}: it has forgotten tokens it may need")

    def _grow(self, cells: int, sequences: int) -> None:
        """Moves everything to a larger context."""
        if cells > self._most:
            raise GenerationError(
                f"{self._weights.path}: {self._most} tokens are the most that it can hold, for all "
                "answers together; answer less at once, or set a larger context_window"
            )
        llama, old, close = self._llama, self._pointer, self._close
        state = np.empty(llama.llama_state_get_size(old), np.uint8)
        written = llama.llama_state_get_data(old, state.ctypes.data, len(state))
        self._cells, self._sequences = cells, sequences
        self._open()
        if llama.llama_state_set_data(self._pointer, state.ctypes.data, written) != written:
            raise GenerationError(f"{self._weights.path}: its cache cannot be moved")
        close()

    # passes

    def compute(self, tasks: Sequence[Part]) -> None:
        """One pass for all parts. Where it fails or is stopped, nothing of them is kept."""
        self._sort_in()
        for task in tasks:
            if len(task.held.ids) > task.kept:
                self._cut(task.held, task.kept)
        batch = self._batch.fill(tasks)
        started = perf_counter()
        while (code := self._llama.llama_decode(self._pointer, batch)) == _FULL:
            if not self._drop():
                self._grow(
                    min(2 * self._cells, max(self._cells + PART, self._most)), self._sequences
                )
        if code == 0:
            at = 0
            for task in tasks:
                at += len(task.ids)
                task.result = [self._logits(i) for i in range(at - task.rows, at)]
                self._shield(task.held, task.kept)
            self._divide(tasks, perf_counter() - started)
            return
        for task in tasks:
            self._cut(task.held, task.kept)
        if code != _STOPPED:
            raise GenerationError(f"{self._weights.path}: llama.cpp failed with code {code}")

    def _divide(self, tasks: Sequence[Part], seconds: float) -> None:
        """Gives each its part of the time: what its rows cost, and a share of the rest."""
        rows = sum(len(task.ids) for task in tasks)
        if all(len(task.ids) == task.rows for task in tasks):  # most of a prompt's are cheaper
            self.price.learn(rows, seconds)
        row = min(self.price.row, seconds / rows)
        rest = (seconds - row * rows) / len(tasks)
        for task in tasks:
            task.held.ids += task.ids
            task.result = Answer(task.result, row * len(task.ids) + rest)

    def _logits(self, place: int) -> Row:
        """A row of the pass, copied: the next one overwrites it."""
        address = self._llama.llama_get_logits_ith(self._pointer, place)
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
        three = size(self._pointer, one.number)
        self._ask((one, 1, [c]), (other, 0, [a]))
        cell_bytes = three - size(self._pointer, one.number)
        again = self._ask((other, 1, [b]), (one, 1, [b, c]))
        expected = [first[1], first[1], first[2]]
        spread = max(float(np.ptp(row)) for row in first)
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

    def _ask(self, *parts: tuple[Held, int, list[int]]) -> list[Row]:
        tasks = [Part(self, held, kept, ids, len(ids)) for held, kept, ids in parts]
        self.compute(tasks)
        return [row for task in tasks for row in task.result.rows]


_TOLERANCE: Final = 0.05
"""Of the difference between the largest logit and the smallest: what rounding may change."""


class _Arrays:
    """The memory that batches are written to."""

    def __init__(self) -> None:
        self._token, self._pos, self._sequence = np.zeros((3, PART), np.int32)
        self._one = np.ones(PART, np.int32)
        self._wanted = np.zeros(PART, np.int8)
        first = self._sequence.ctypes.data
        pointers = (ctypes.cast(first + 4 * i, POINTER(c_int32)) for i in range(PART))
        self._sequences = (POINTER(c_int32) * PART)(*pointers)

    def fill(self, tasks: Sequence[Part]) -> Batch:
        """The batch of some parts, one behind the other."""
        at = 0
        for task in tasks:
            end = at + len(task.ids)
            self._token[at:end] = task.ids
            self._pos[at:end] = np.arange(task.kept, task.kept + len(task.ids))
            self._sequence[at:end] = task.held.number
            self._wanted[at:end] = 0
            self._wanted[end - task.rows : end] = 1
            at = end
        numbers = [
            array.ctypes.data_as(POINTER(c_int32)) for array in (self._token, self._pos, self._one)
        ]
        token, pos, one = numbers
        wanted = self._wanted.ctypes.data_as(POINTER(c_int8))
        return Batch(at, token, None, pos, one, self._sequences, wanted)


def _sizes(weights: Weights, window: int) -> tuple[int, int]:
    """Cells to begin with, and the most that there may be.

    Where a model rotates positions another way for long texts (LongRoPE), llama.cpp decides by the
    number of cells. It must not change under the feet of what has been read, so the window decides.
    """
    kind = weights.value(f"{weights.architecture}.rope.scaling.type")
    built = weights.value(f"{weights.architecture}.rope.scaling.original_context_length")
    if built is None or kind not in (None, "longrope"):
        return _CELLS, 1 << 31
    short = int(built) // PART * PART
    return (_CELLS, short) if window <= short else (short + PART, 1 << 31)


def _release(weights: Weights, pointer: int) -> None:
    weights.llama.llama_free(pointer)
