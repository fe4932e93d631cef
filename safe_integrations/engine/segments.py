"""How one model sees the shared text: its token ids, and where each of them ends."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from safe_integrations.engine.tokens import TokenTable

_REACH: Final = 512
"""Bytes to look back for a hard boundary before a token boundary has to do."""


class Segmentation:
    """The canonical tokenisation of a growing, and sometimes shrinking, text.

    `update` costs time in proportion to what changed: it tokenises again only from the last hard
    boundary before the change (see `tokens`), which gives what tokenising everything would give.

    Attributes:
        ids: Token ids, in order.
        ends: End offset of each token, in bytes.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self._tokens = tokens
        self.ids: list[int] = []
        self.ends: list[int] = []

    def update(self, text: bytes | bytearray, unchanged: int) -> None:
        """Makes this the tokenisation of `text`, of which `unchanged` bytes are as they were."""
        start = self._restart(text, min(unchanged, len(text)))
        kept = bisect_left(self.ends, start + 1)
        del self.ids[kept:], self.ends[kept:]
        at = start
        for token_id in self._tokens.encode(bytes(text[start:])):
            at += len(self._tokens.symbol(token_id))
            self.ids.append(token_id)
            self.ends.append(at)

    def index_at(self, offset: int) -> int | None:
        """How many tokens lie before an offset, or None where it is inside a token (Eq. 1)."""
        if offset == 0:
            return 0
        i = bisect_left(self.ends, offset)
        return i + 1 if i < len(self.ends) and self.ends[i] == offset else None

    def _restart(self, text: bytes | bytearray, unchanged: int) -> int:
        """Where to tokenise from: a place that was and still is a boundary."""
        hard = self._tokens.hard_boundary(text, unchanged - 1, _REACH)
        if hard is not None:
            return hard
        i = bisect_left(self.ends, unchanged - _REACH)
        while i and text[self.ends[i - 1]] & 0xC0 == 0x80:  # never inside a character
            i -= 1
        return self.ends[i - 1] if i else 0
