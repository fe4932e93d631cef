"""llama.cpp's own greedy decoding: a loop over its library, one sequence, one token at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.models.llama_cpp.library import Batch, Weights
from safe_integrations.models.llama_cpp.threads import threads

READ_AT_ONCE: Final = 256

Row = NDArray[np.float32]


class Loop:
    """A context of its own, with nothing but the defaults.

    Args:
        weights: The model.
        cells: Tokens that it holds.
        sequences: Sequences that it knows apart.
    """

    def __init__(self, weights: Weights, cells: int = 4096, sequences: int = 1) -> None:
        self._weights, self._llama = weights, weights.llama
        self._context = self._llama.context(weights, cells, READ_AT_ONCE, sequences)
        self._llama.llama_set_n_threads(self._context, threads(), threads())
        self._memory = self._llama.llama_get_memory(self._context)

    def close(self) -> None:
        """Frees the context."""
        self._llama.llama_free(self._context)

    def read(
        self, ids: Sequence[int], at: int, wanted: int = 1, at_once: int = READ_AT_ONCE
    ) -> list[Row]:
        """Logits behind each of the last ids, the first of which has a place."""
        rows: list[Row] = []
        for start in range(0, len(ids), at_once):
            part = ids[start : start + at_once]
            first = max(0, len(ids) - wanted - start)
            self.decode(part, at + start, first)
            rows += [self._row(i) for i in range(first, len(part))]
        return rows

    def write(
        self,
        prompt: Sequence[int],
        count: int,
        ends: Collection[int] = (),
        tell: Callable[[], None] = lambda: None,
    ) -> list[int]:
        """The favourites behind a prompt, up to one that ends; tells after each."""
        self.forget()
        ids: list[int] = []
        new = prompt
        while len(ids) < count and not (ids and ids[-1] in ends):
            (row,) = self.read(new, len(prompt) + len(ids) - len(new))
            ids.append(int(row.argmax()))
            new = ids[-1:]
            tell()
        return ids

    def forget(self, sequence: int = -1) -> None:
        """Empties the cells of a sequence, or all."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def decode(self, ids: Sequence[int], at: int, first: int, sequence: int = 0) -> None:
        """One pass, for the logits from the first wanted id on."""
        n = len(ids)
        number = ctypes.pointer(ctypes.c_int32(sequence))
        batch = Batch(
            n,
            (ctypes.c_int32 * n)(*ids),
            None,
            (ctypes.c_int32 * n)(*range(at, at + n)),
            (ctypes.c_int32 * n)(*[1] * n),
            (ctypes.POINTER(ctypes.c_int32) * n)(*[number] * n),
            (ctypes.c_int8 * n)(*[i >= first for i in range(n)]),
        )
        code = self._llama.llama_decode(self._context, batch)
        assert code == 0, code

    def _row(self, place: int) -> Row:
        row = self._llama.llama_get_logits_ith(self._context, place)
        floats = (ctypes.c_float * self._weights.size).from_address(row)
        return np.array(np.ctypeslib.as_array(floats), np.float32)
