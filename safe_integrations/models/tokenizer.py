"""A tokenizer, as far as the package uses it: what a backend brings along for tables and prompts.

Two kinds of vocabularies can be mapped to bytes one token at a time: byte-level BPE (every token is
spelled in GPT-2's alphabet of 256 letters) and SentencePiece with byte fallback (`▁` is a space,
`<0xNN>` a byte).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from safe_integrations.errors import UnsupportedTokenizerError

SPACE: Final = "\u2581"
"""How SentencePiece writes a space."""

Span = tuple[int, int]
"""Where in a text something begins and ends, in characters."""

_VISIBLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN: Final = tuple(b for b in range(256) if b not in _VISIBLE)
_BYTE_OF: Final = {chr(b): b for b in _VISIBLE} | {chr(256 + i): b for i, b in enumerate(_HIDDEN)}


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is found in a text before any other: for control, or added to what was learned.

    Attributes:
        content: How prompts spell it.
        text: What it stands for where it is text.
        special: Whether it is for control, and no text.
    """

    content: str
    text: bytes
    special: bool


class TextEncoder(Protocol):
    """The tokenizer proper, less all that changes text or adds to it."""

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def spans(self, text: str) -> list[Span]:
        """Which characters each of these ids stands for."""
        ...


class Tokenizer(Protocol):
    """A model's tokenizer.

    Attributes:
        name: How errors call the model.
        added: Tokens for control, and others that were added to those it has learned.
        control: Tokens besides the special ones that are for control; None where it does not say.
        bos: The id that it puts in front of every text; None where there is none.
        templates: Its chat templates by name; the one for every use is `default`.
        variables: Special tokens, by the names that chat templates have for them.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def added(self) -> Mapping[int, Added]: ...  # noqa: D102
    @property
    def control(self) -> Collection[str] | None: ...  # noqa: D102
    @property
    def bos(self) -> int | None: ...  # noqa: D102
    @property
    def templates(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def variables(self) -> Mapping[str, str]: ...  # noqa: D102

    def learned(self) -> Iterable[tuple[int, bytes]]:
        """The tokens of its model as bytes; control tokens may be among them."""
        ...

    def text_encoder(self, spoken: Collection[int]) -> TextEncoder:
        """An encoder of text. Of the added tokens it knows these, and no other.

        Raises:
            UnsupportedTokenizerError: Text cannot be told from what is done to it.
        """
        ...

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt; what spells a control token is one."""
        ...

    def locate(self, text: str, *, behind: bool) -> list[tuple[int, int, int]]:
        """The same of a part of a prompt, with the characters that each id stands for.

        Args:
            text: The part.
            behind: Whether other text stands before it: at the beginning some add a space.
        """
        ...


def byte_level(piece: str) -> bytes:
    """What a piece of byte-level BPE stands for."""
    try:
        return bytes([_BYTE_OF[letter] for letter in piece])
    except KeyError:  # not in the alphabet: spelled as it is
        return piece.encode()


def sentencepiece(piece: str) -> bytes:
    """What a piece of SentencePiece stands for."""
    if len(piece) == 6 and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def refused(name: str, reason: str) -> UnsupportedTokenizerError:
    """The error for a tokenizer that cannot be used."""
    return UnsupportedTokenizerError(
        f"{name}: the tokenizer cannot be mapped to bytes: {reason}. Use a model with a byte-level "
        "BPE tokenizer (GPT-2, Llama 3, Qwen, ...) or SentencePiece with byte fallback (Gemma, ...)"
    )
