"""A tokenizer as a `TokenTable`: its tokens as bytes, and an encoder on bytes.

Generated text is only text, whatever it spells: the encoder knows no special tokens. Those that
mark a tool call for the model are text as well: without them it could not write one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Final

from safe_integrations.engine.tokens import TokenTable
from safe_integrations.models.tokenizer import TextEncoder, Tokenizer, refused

_RARE: Final = frozenset(
    [*range(0x01, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2]
    + [*range(0xF5, 0x100)]
)
"""Bytes a tokenizer may lack: control characters, unassigned planes, and what UTF-8 never uses.

SmolLM2 lacks 21 of them. Such a byte is read as SUB, the control character made for that: one byte
for one byte, so every offset holds, and the shared text itself is not touched.
"""

_SUB: Final = b"\x1a"
_SILENT: Final = b"\xff"  # no UTF-8 text holds it, so a silent token never matches one
_SAMPLE: Final = "Hello world,\n  1 + 12 = 13.\tÉtude 你好 😀"


def build_token_table(
    tokenizer: Tokenizer,
    *,
    end_ids: Collection[int],
    vocab_size: int,
    spoken: Collection[str] = (),
) -> TokenTable:
    """Gives every token of a tokenizer its bytes.

    Args:
        tokenizer: The tokenizer.
        end_ids: The ids that end a text.
        vocab_size: Rows of the model's output, padding included.
        spoken: Special tokens that are text all the same (see `tags_of`); those that end a text do
            so first of all.

    Raises:
        UnsupportedTokenizerError: The tokens cannot be mapped to bytes one by one.
    """
    name = tokenizer.name
    ends = {i for i in end_ids if 0 <= i < vocab_size}
    if not ends:
        raise refused(name, "it declares no end-of-text token")
    added = tokenizer.added
    silent = {i for i, token in added.items() if token.special and token.content not in spoken}
    silent |= ends
    rows: list[bytes | None] = [None] * vocab_size
    # What the model has learned comes last: an "é" that is its letter for a byte, and was added,
    # too, is that byte.
    for pieces in (((i, token.text) for i, token in added.items()), tokenizer.learned()):
        for i, text in pieces:
            if i < vocab_size and i not in silent:
                rows[i] = text
    byte_ids = _byte_ids(rows, name)
    spoken_ids = {i for i in added.keys() - silent if i < vocab_size}
    encoder = _Encoder(tokenizer.text_encoder(spoken_ids), rows, byte_ids)
    if not encoder.is_exact(_SAMPLE):
        raise refused(name, "its tokens do not spell the text they are made from")
    return TokenTable(rows, ends, encoder)


def _byte_ids(rows: list[bytes | None], name: str) -> list[int]:
    ids = {row[0]: i for i, row in enumerate(rows) if row is not None and len(row) == 1}
    missing = {b for b in range(256) if b not in ids}
    if missing - _RARE or (missing and _SUB[0] in missing):
        raise refused(name, f"{len(missing)} of the 256 single bytes are no tokens of it")
    return [ids.get(b, ids.get(_SUB[0], -1)) for b in range(256)]


def tags_of(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[str]:
    """Special tokens of a tokenizer that some texts are written with."""
    special = (token.content for token in tokenizer.added.values() if token.special)
    return frozenset(tag for tag in special if tag and any(tag in text for text in texts))


class _Encoder:
    """Bytes to token ids, such that the tokens' bytes always join to the argument.

    The one exception is a byte that the tokenizer lacks (see `_RARE`).
    """

    def __init__(self, inner: TextEncoder, rows: list[bytes | None], byte_ids: list[int]) -> None:
        self._inner = inner
        self._rows = [_SILENT if row is None else row for row in rows]
        self._byte_ids = byte_ids

    def __call__(self, text: bytes) -> list[int]:
        try:
            return self._encode(text.decode())
        except UnicodeDecodeError:
            pass
        ids: list[int] = []
        for part in re.split("([\udc80-\udcff]+)", text.decode(errors="surrogateescape")):
            if part and "\udc80" <= part[0] <= "\udcff":
                ids += self._bytes(part.encode(errors="surrogateescape"))
            elif part:
                ids += self._encode(part)
        return ids

    def is_exact(self, text: str) -> bool:
        """Whether the inner encoder reproduces a text without repair."""
        return self._join(self._inner(text)) == text.encode()

    def _encode(self, text: str) -> list[int]:
        ids, data = self._inner(text), text.encode()
        return ids if self._join(ids) == data else self._repair(text, data, ids)

    def _repair(self, text: str, data: bytes, ids: list[int]) -> list[int]:
        """Spells the characters whose token has other bytes than they have.

        A literal `▁` comes back as a space; a literal `<0x41>` or `</s>` may come back as the
        token of that name; a character that the tokenizer lacks is dropped.
        """
        kept: list[int] = []
        at = 0
        offsets = [0, *accumulate(len(char.encode()) for char in text)]
        for i, (first, last) in zip(ids, self._inner.spans(text), strict=True):
            start, end = offsets[first], offsets[last]
            if start > at:  # characters without any token
                kept += self._spell(data[at:start])
                at = start
            row = self._rows[i]
            if data.startswith(row, at):
                kept.append(i)
                at += len(row)
            elif end > at:
                kept += self._spell(data[at:end])
                at = end
        kept += self._spell(data[at:])
        return kept if len(self._join(kept)) == len(data) else self._spell(data)

    def _spell(self, data: bytes) -> list[int]:
        """One character at a time; bytes where the character is no token."""
        ids: list[int] = []
        for char in data.decode(errors="surrogateescape"):
            alone = char.encode(errors="surrogateescape")
            own = [] if "\udc80" <= char <= "\udcff" else self._inner(char)
            ids += own if own and self._join(own) == alone else self._bytes(alone)
        return ids

    def _bytes(self, data: bytes) -> list[int]:
        return [self._byte_ids[b] for b in data]

    def _join(self, ids: list[int]) -> bytes:
        rows = self._rows
        return b"".join([rows[i] for i in ids])
