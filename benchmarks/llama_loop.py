"""llama.cpp's own greedy decoding: a loop over its library, one sequence, one token at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.models.llama_cpp.library import Batch, Weights

READ_AT_ONCE: Final = 256


class Loop:
    """A context of its own, with nothing but the defaults.

    Args:
        weights: The model.
        cells: Tokens that it holds.
        threads: Threads to compute with.
    """

    def __init__(self, weights: Weights, cells: int = 4096, threads: int = 1) -> None:
        self._weights, self._llama = weights, weights.llama
        self._context = self._llama.context(weights, cells, READ_AT_ONCE, 1)
        self._llama.llama_set_n_threads(self._context, threads, threads)

    def close(self) -> None:
        """Frees the context."""
        self._llama.llama_free(self._context)

    def write(
        self,
        prompt: Sequence[int],
        count: int,
        ends: Collection[int] = (),
        tell: Callable[[], None] = lambda: None,
    ) -> list[int]:
        """The favourites behind a prompt, up to one that ends; tells after each."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, 0, -1, -1)
        ids: list[int] = []
        new = prompt
        while len(ids) < count and not (ids and ids[-1] in ends):
            ids.append(int(self._read(new, len(prompt) + len(ids) - len(new)).argmax()))
            new = ids[-1:]
            tell()
        return ids

    def _read(self, ids: Sequence[int], at: int) -> NDArray[np.float32]:
        """Logits behind some ids, the first of which has a place; valid until the next reading."""
        for start in range(0, len(ids), READ_AT_ONCE):
            part = ids[start : start + READ_AT_ONCE]
            self._decode(part, at + start)
        row = self._llama.llama_get_logits_ith(self._context, len(part) - 1)
        return np.ctypeslib.as_array((ctypes.c_float * self._weights.size).from_address(row))

    def _decode(self, ids: Sequence[int], at: int) -> None:
        n = len(ids)
        zero = ctypes.pointer(ctypes.c_int32(0))
        batch = Batch(
            n,
            (ctypes.c_int32 * n)(*ids),
            None,
            (ctypes.c_int32 * n)(*range(at, at + n)),
            (ctypes.c_int32 * n)(*[1] * n),
            (ctypes.POINTER(ctypes.c_int32) * n)(*[zero] * n),
            (ctypes.c_int8 * n)(*[0] * (n - 1), 1),
        )
        code = self._llama.llama_decode(self._context, batch)
        assert code == 0, code
