"""A vocabulary of llama.cpp: text to ids by the library, and where in the text each id stands.

The library tells ids only. Where they stand follows from what it does with a text: it cuts it at
tokens that were added, the longest ones first, and makes the rest of it token by token.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Final

import numpy as np

from safe_integrations.models.llama_cpp.library import Weights
from safe_integrations.models.llama_cpp.metadata import token_types
from safe_integrations.models.tokenizer import SPACE, Span, byte_level, refused, sentencepiece

UNKNOWN, NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 4, 8, 16, 32
"""What a token is for, as the library has it."""

_FILE_CONTROL: Final = (2, 3)  # unknown and control, as files have it
_RSTRIP: Final = 256
"""Blanks behind such a token are left out: Phi-3's were trained so."""

ADDED: Final = CONTROL | USER_DEFINED | UNKNOWN
"""Tokens that the library finds in a text before any other."""

_SENTENCEPIECE: Final = 1
_BPE: Final = 2
_OTHERS: Final = {3: "WordPiece", 4: "Unigram", 5: "RWKV's", 6: "PLaMo's"}
_LEARNED: Final = NORMAL | BYTE
_BLANKS: Final = " \t\n\v\f\r"  # what C calls so

Part = tuple[int | None, int, int]
"""An added token, or None for other text; where it begins and ends."""


class Vocabulary:
    """What a file and the library tell of its tokens.

    Args:
        weights: The file, as the library has read it.
        name: How errors call the model.

    Attributes:
        kinds: What each token is for, flags of the library, which sets right what files are known
            to have wrong, and more.
        pieces: What each token stands for that the model has learned; None for others.
        names: How added tokens and bytes are spelled.
        added: Tokens that are found in a text before any other, or that the file has for control.
        for_control: Those of them that the file has for control.
        byte_level: Whether pieces are spelled in the letters of byte-level BPE.
        spaced: Whether the library puts a space in front of text, and behind every added token.

    Raises:
        UnsupportedTokenizerError: It is of a kind that cannot be mapped to bytes.
    """

    def __init__(self, weights: Weights, name: str) -> None:
        self._weights = weights
        llama, vocab = weights.llama, weights.vocab
        model = llama.llama_vocab_type(vocab)
        if model not in (_SENTENCEPIECE, _BPE):
            what = _OTHERS.get(model, "none that is known")
            neither = "neither byte-level BPE nor SentencePiece with byte fallback"
            raise refused(name, f"it is {neither}, but {what}")
        ids = range(llama.llama_vocab_n_tokens(vocab))
        kind_of, name_of = llama.llama_vocab_get_attr, llama.llama_vocab_get_text
        self.kinds: Final = array("H", (kind_of(vocab, i) for i in ids))
        types = token_types(weights.path)
        told = np.isin(types, _FILE_CONTROL) if types is not None else np.zeros(len(ids), bool)
        kinds = np.frombuffer(self.kinds, np.uint16)
        self.for_control = frozenset(np.flatnonzero(told).tolist())
        self.added: list[int] = np.flatnonzero(told | (kinds & ADDED > 0)).tolist()
        bytes_too = np.flatnonzero(kinds & BYTE).tolist()
        self.names = {i: self.name_of(i) for i in (*self.added, *bytes_too)}
        blank = [self.name_of(i) for i in self.encode(" ")[:1]]
        self.byte_level = model == _BPE and SPACE not in "".join(blank)
        bytes_of = byte_level if self.byte_level else sentencepiece
        self.pieces = [
            bytes_of(name_of(vocab, i).decode(errors="replace")) if kind & _LEARNED else None
            for i, kind in enumerate(self.kinds)
        ]
        line = self.encode("\n")[:1]
        self.spaced = bool(line) and (self.pieces[line[0]] or b"")[:1] == b" "

    def name_of(self, i: int) -> str:
        """How the file spells a token."""
        name: bytes = self._weights.llama.llama_vocab_get_text(self._weights.vocab, i)
        return name.decode(errors="replace")

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """The library's ids of a text.

        Args:
            text: The text.
            control: Whether what spells a control token is one.
        """
        return self._weights.tokenize(text.encode(), special=control)

    def unspaced(self, text: str) -> list[int]:
        """The ids of a text without added tokens, and without a space in front of it."""
        if not self.spaced:
            return self.encode(text)
        lead, count = self._lead
        return self.encode(lead + text)[count:]

    def parts(self, text: str) -> list[Part]:
        """Cuts a text at the added tokens in it, as the library does."""
        parts: list[Part] = [(None, 0, len(text))] if text else []
        for i in self._longest_first:
            if self.names[i] in text:
                cut = (self._cut(text, part, i) for part in parts)
                parts = list(chain.from_iterable(cut))
        return parts

    def spans(self, text: str, ids: Sequence[int]) -> list[Span]:
        """Which characters of a text its ids stand for.

        Bytes that are no token may be left out by the library.
        """
        char_of = [n for n, char in enumerate(text) for _ in char.encode()] + [len(text)]
        data, spans, at = text.encode(), list[Span](), 0
        for i in ids:
            if self.byte_level:
                written = self._written(i)
                at = max(data.find(written, at), at)
                width = len(written)
            else:
                width = self._width(i, text, char_of[at])
            first, at = char_of[at], min(at + width, len(data))
            spans.append((first, char_of[at - 1] + 1 if at else 0))
        return spans

    def _cut(self, text: str, part: Part, i: int) -> list[Part]:
        token, first, last = part
        if token is not None:
            return [part]
        cut: list[Part] = []
        name, kind = self.names[i], self.kinds[i]
        while (at := text.find(name, first, last)) >= 0:
            right = at + len(name)
            cut += [(None, first, at)] * (at > first) + [(i, at, right)]
            while kind & _RSTRIP and right < last and text[right] in _BLANKS:
                right += 1
            first = right
        return cut + [(None, first, last)] * (first < last)

    def _written(self, i: int) -> bytes:
        """What a token is made of: its letters where it was added."""
        return self.names[i].encode() if self.kinds[i] & ADDED else self.pieces[i] or b""

    def _width(self, i: int, text: str, first: int) -> int:
        """Bytes of a text that a token of SentencePiece is made of: its name's, or one."""
        if self.kinds[i] & BYTE and not text.startswith(self.names[i], first):
            return 1
        letters = len(self.names[i] if i in self.names else (self.pieces[i] or b"").decode())
        return len(text[first : first + letters].encode())

    @cached_property
    def _longest_first(self) -> list[int]:
        added = [i for i in self.added if self.kinds[i] & ADDED]
        return sorted(added, key=lambda i: len(self.names[i].encode()), reverse=True)

    @cached_property
    def _lead(self) -> tuple[str, int]:
        """A letter that no token joins to another, and how many ids it makes in front of a text."""
        known = b" ".join(filter(None, self.pieces))
        letter = next(c for c in map(chr, range(0xE000, 0xF900)) if c.encode() not in known)
        return letter, len(self.encode(letter))
