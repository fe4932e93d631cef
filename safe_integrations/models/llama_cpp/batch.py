"""What a pass of llama.cpp is asked to compute."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int8, c_int32
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.model import never
from safe_integrations.models.llama_cpp.library import Batch
from safe_integrations.models.passes import ROWS_ALONE, Model, Part

Row = NDArray[np.float32]


class Held:
    """A sequence.

    Attributes:
        number: Its number.
        ids: The ids whose states are in its cells.
        end: Where the last prompt ended, and the row behind it. Who asks the same again gets the
            same: in a batch of another size it would be rounded otherwise.
    """

    def __init__(self, number: int, ids: list[int]) -> None:
        self.number: Final = number
        self.ids = ids
        self.end: tuple[int, Row] | None = None

    def row_behind(self, length: int) -> Row | None:
        """The row behind so many ids, a copy; None where it is not kept."""
        end, row = self.end or (-1, None)
        return row.copy() if row is not None and end == length else None


class Ids(Part):
    """New ids behind the first `kept` of a sequence.

    Attributes:
        result: Logits behind the last `wanted` ones, shape `[tokens.size]` each; none where the
            last id was not taken.
    """

    def __init__(
        self,
        context: Model,
        held: Held,
        kept: int,
        ids: Sequence[int],
        wanted: int,
        cancel: Callable[[], bool] = never,
    ) -> None:
        super().__init__(context, len(ids), wanted, cancel)
        self.held: Final = held
        self.kept: Final = kept
        self.ids: Final = ids
        self.result: list[Row] = []

    @property
    def answered(self) -> int:
        """Of how many of the ids that are taken, the last ones, logits are wanted."""
        return self.wanted if self.taken == self.rows else 0


class Arrays:
    """The memory that batches are written to."""

    def __init__(self) -> None:
        self._token, self._pos, self._sequence = np.zeros((3, ROWS_ALONE), np.int32)
        self._one = np.ones(ROWS_ALONE, np.int32)
        self._wanted = np.zeros(ROWS_ALONE, np.int8)
        first = self._sequence.ctypes.data
        pointers = (ctypes.cast(first + 4 * i, POINTER(c_int32)) for i in range(ROWS_ALONE))
        self._sequences = (POINTER(c_int32) * ROWS_ALONE)(*pointers)

    def fill(self, parts: Sequence[Ids]) -> Batch:
        """The batch of some parts, one behind the other."""
        at = 0
        for part in parts:
            end = at + part.taken
            self._token[at:end] = part.ids[: part.taken]
            self._pos[at:end] = np.arange(part.kept, part.kept + part.taken)
            self._sequence[at:end] = part.held.number
            self._wanted[at:end] = 0
            self._wanted[end - part.answered : end] = 1
            at = end
        numbers = [
            array.ctypes.data_as(POINTER(c_int32)) for array in (self._token, self._pos, self._one)
        ]
        token, pos, one = numbers
        wanted = self._wanted.ctypes.data_as(POINTER(c_int8))
        return Batch(at, token, None, pos, one, self._sequences, wanted)
