"""What a GGUF file tells of itself, read without the library: values in front of its weights.

A vocabulary takes half a second to read; what a model is, and how many tokens it can hold, stands
in front of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safe_integrations.errors import ModelLoadError

Value = int | float | bool | str | NDArray[np.generic]

_NUMBERS: Final = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""By the format's number of a type, how `struct` calls it."""

_TEXT: Final = 8
_LIST: Final = 9


def values(path: Path) -> Iterator[tuple[str, Value]]:
    """The values of a file, in the order they stand in it, lists of texts left out.

    Raises:
        ModelLoadError: It cannot be read, is no GGUF file, or is not whole.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise ModelLoadError(f"{path} is not a GGUF file: it starts with {magic!r}")
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                yield from _Reader(data).values()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except (struct.error, KeyError, ValueError, OverflowError) as error:
        raise ModelLoadError(
            f"{path} is truncated or damaged: what it tells of itself cannot be read; download "
            "it again"
        ) from error


def context_length(path: Path) -> int | None:
    """Tokens that the model of a file was built for; None where it does not say.

    Raises:
        ModelLoadError: It is no GGUF file, or it is not whole.
    """
    told = (value for key, value in values(path) if key.endswith(".context_length"))
    length = next(told, None)
    return length if isinstance(length, int) else None


def token_types(path: Path) -> NDArray[np.int32] | None:
    """What a file says that each token is for; None where it does not.

    Raises:
        ModelLoadError: It is no GGUF file, or it is not whole.
    """
    told = (value for key, value in values(path) if key == "tokenizer.ggml.token_type")
    types = next(told, None)
    return types.astype(np.int32) if isinstance(types, np.ndarray) else None


class _Reader:
    def __init__(self, data: mmap) -> None:
        self._data = data
        self._at = 4

    def values(self) -> Iterator[tuple[str, Value]]:
        version = self._number("I")
        if not 2 <= version <= 3:
            raise KeyError(version)
        self._number("Q")  # tensors
        for _ in range(int(self._number("Q"))):
            key, kind = self._text(), int(self._number("I"))
            if kind == _TEXT:
                yield key, self._text()
            elif kind != _LIST:
                yield key, self._number(_NUMBERS[kind])
            elif (numbers := self._list()) is not None:
                yield key, numbers

    def _number(self, form: str) -> int | float | bool:
        form = f"<{form}"
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return number  # type: ignore[no-any-return]

    def _text(self) -> str:
        start = self._at + 8
        self._at = start + int(self._number("Q"))
        if self._at > len(self._data):
            raise struct.error
        return self._data[start : self._at].decode()

    def _list(self) -> NDArray[np.generic] | None:
        """The numbers of a list; None where it is one of texts, which is skipped."""
        kind, count = int(self._number("I")), int(self._number("Q"))
        if kind != _TEXT:
            numbers = np.frombuffer(self._data, f"<{_NUMBERS[kind]}", count, self._at).copy()
            self._at += numbers.nbytes
            return numbers
        data, at, length = self._data, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + length(data, at)[0]
        self._at = at
        return None
