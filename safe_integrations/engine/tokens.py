"""Bytes are the coordinate that all tokenizers share.

Two models can be compared only at places where the text ends for both of them. `TokenTable` gives
every token of a model its bytes; `hard_boundary` finds the places that no token of a model can
straddle, whatever text follows. Those places make two things exact and cheap:

* tokenising incrementally: left of a hard boundary nothing changes any more (`segments`);
* judging a draft: what lies left of one will look the same when more text has been written, so a
  verdict does not depend on where the lookahead happened to end (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

END: Final = b"\xff<end>"
"""The end of the text, as a symbol. It starts with a byte that no UTF-8 text holds."""

MAX_UNSETTLED: Final = 48
"""Bytes of right context after which a token counts as settled even without a hard boundary.

Text without spaces (Chinese, long identifiers) may have no hard boundary for a while. Merges act
locally, so a token with this much text behind it has never been seen to change.
"""

Encode = Callable[[bytes], list[int]]


class TokenTable:
    """One tokenizer, seen as a set of byte strings and the END symbol.

    Several ids may stand for the same bytes (a byte-fallback token beside the plain character) or
    for END (a model may declare several end ids). One id is the *canonical* one; the others are
    its aliases, and a backend adds their probability to it. So every id that has probability
    stands for a different symbol.

    Args:
        token_bytes: For each id its bytes, or None for a token that never appears in text
            (special tokens, padding rows).
        end_ids: The ids that end a text. Must not be empty.
        encode: The tokenizer proper. `b"".join` of the tokens it returns must be its argument.
            It never returns a special token. Bytes that the tokenizer cannot write at all (a few
            control characters, for some) are replaced one for one, so lengths always agree.

    Attributes:
        size: Number of ids.
        end_id: The canonical end id.
        aliases: Pairs `(alias id, canonical id)`.
        silent: Ids without bytes: they never take part.
    """

    def __init__(
        self, token_bytes: Sequence[bytes | None], end_ids: Collection[int], encode: Encode
    ) -> None:
        self.size = len(token_bytes)
        self.end_id = min(end_ids)
        self._encode = encode
        self._pieces: dict[bytes, list[int]] = {}
        self._symbols: list[bytes | None] = [symbol or None for symbol in token_bytes]
        for i in end_ids:
            self._symbols[i] = END
        self._ids, self.aliases = self._canonical_ids()
        self.silent = [i for i, symbol in enumerate(self._symbols) if symbol is None]
        self._joins = _joinable_pairs(t for t in self._ids if t is not END)

    def symbol(self, token_id: int) -> bytes:
        """The bytes of a token, or END.

        Raises:
            ValueError: The id is silent: it stands for no text.
        """
        symbol = self._symbols[token_id]
        if symbol is None:
            raise ValueError(f"token {token_id} has no bytes")
        return symbol

    def id_of(self, symbol: bytes) -> int | None:
        """The canonical id of a symbol, or None where it is not one token here."""
        return self._ids.get(symbol)

    def symbols(self) -> Sequence[bytes | None]:
        """The symbol of every id; None for silent ids."""
        return self._symbols

    @cached_property
    def joins(self) -> NDArray[np.bool_]:
        """For every pair of bytes whether some token holds them side by side, `[256, 256]`."""
        return np.frombuffer(self._joins, np.uint8).reshape(256, 256).astype(bool)

    @cached_property
    def canonical(self) -> NDArray[np.bool_]:
        """Which ids have a probability: no silent ones, and none that stand for another."""
        flags = np.ones(self.size, np.bool_)
        flags[[*self.silent, *(alias for alias, _ in self.aliases)]] = False
        return flags

    @cached_property
    def first_bytes(self) -> NDArray[np.uint8]:
        """The first byte of every id's symbol, shape `[size]`; 0 for silent ids."""
        return (self._beginnings >> np.uint64(56)).astype(np.uint8)

    def compatible(self, text: bytes) -> NDArray[np.intp]:
        """The ids of all tokens that begin with a text, or that the text begins with."""
        order, known = self._by_beginning
        first = int.from_bytes(text[:8].ljust(8, b"\0"), "big")
        last = int.from_bytes(text[:8].ljust(8, b"\xff"), "big")
        start = known.searchsorted(np.uint64(first))
        span = slice(start, known.searchsorted(np.uint64(last), "right"))
        longer = order[span]
        if len(text) > 8 or not text[0]:
            symbols = [(i, self._symbols[i]) for i in longer.tolist()]
            longer = np.array([i for i, s in symbols if s and s.startswith(text)], np.intp)
        inside = (self._ids.get(text[:n]) for n in range(1, len(text)))
        return np.append(longer, [i for i in inside if i is not None]).astype(np.intp)

    @cached_property
    def _beginnings(self) -> NDArray[np.uint64]:
        """The first eight bytes of every id's symbol as a number, shape `[size]`."""
        cut = ((symbol or b"")[:8].ljust(8, b"\0") for symbol in self._symbols)
        return np.frombuffer(b"".join(cut), ">u8").astype(np.uint64)

    @cached_property
    def _by_beginning(self) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
        """The ids in the order of their beginnings, and these."""
        order = np.argsort(self._beginnings, kind="stable")
        return order, self._beginnings[order]

    def encode(self, text: bytes) -> list[int]:
        """Tokenises a text from its beginning, without special tokens."""
        return self._encode(text)

    def pieces(self, symbol: bytes) -> list[int]:
        """The ids that write one symbol; a single id where it is a token of this table."""
        known = self._ids.get(symbol)
        if known is not None:
            return [known]
        if symbol not in self._pieces:
            self._pieces[symbol] = self._encode(symbol)
        return self._pieces[symbol]

    def first_piece(self, symbol: bytes) -> int:
        """The id that scores a symbol: its own, or its first piece (UniTE, section 3.3)."""
        return self.pieces(symbol)[0]

    def hard_boundary(self, text: bytes | bytearray, limit: int, reach: int) -> int | None:
        """The last place up to `limit` that no token can straddle.

        Args:
            text: The whole text.
            limit: Largest offset to consider, in bytes; the byte at the offset must exist.
            reach: How many bytes to look back.

        Returns:
            The offset, or None where there is none within reach. Offset 0 is a hard boundary.
        """
        joins = self._joins
        lowest = max(0, limit - reach)
        for at in range(min(limit, len(text) - 1), lowest - 1, -1):
            if at <= 0:
                return 0
            inside_character = text[at] & 0xC0 == 0x80
            if not inside_character and not joins[text[at - 1] << 8 | text[at]]:
                return at
        return None

    def settled(self, text: bytes | bytearray) -> int:
        """How much of a text is tokenised for good, whatever is appended to it, in bytes."""
        at = self.hard_boundary(text, len(text) - 1, MAX_UNSETTLED)
        return at if at is not None else len(text) - MAX_UNSETTLED

    def same_tokens(self, other: TokenTable) -> bool:
        """Whether both tables give every id the same symbol, so ids can be shared.

        Silent rows at the end do not count: sizes of one family differ in their padding.
        """
        if self is other or self.end_id != other.end_id:
            return self is other
        size = min(self.size, other.size)
        rest = self._symbols[size:] or other._symbols[size:]
        return self._symbols[:size] == other._symbols[:size] and not any(rest)

    def _canonical_ids(self) -> tuple[dict[bytes, int], list[tuple[int, int]]]:
        canonical: dict[bytes, int] = {}
        doubles: dict[bytes, list[int]] = {}
        for i, symbol in enumerate(self._symbols):
            if symbol is None:
                continue
            if symbol in canonical:
                doubles.setdefault(symbol, [canonical[symbol]]).append(i)
            else:
                canonical[symbol] = i
        aliases: list[tuple[int, int]] = []
        for symbol, ids in doubles.items():
            if symbol is not END:  # the id that the tokenizer itself would write
                written = self._encode(symbol)
                if len(written) == 1 and written[0] in ids:
                    canonical[symbol] = written[0]
            aliases += [(i, canonical[symbol]) for i in ids if i != canonical[symbol]]
        return canonical, aliases


def _joinable_pairs(tokens: Iterable[bytes]) -> bytes:
    """For every pair of bytes, 1 where some token holds them side by side (index `a << 8 | b`)."""
    kept = [t for t in tokens if len(t) > 1]
    joins = np.zeros(1 << 16, np.uint8)
    if kept:
        text = np.frombuffer(b"".join(kept), np.uint8).astype(np.int32)
        inside = np.ones(len(text), bool)
        inside[np.cumsum([len(t) for t in kept]) - 1] = False  # a token's last byte joins nothing
        joins[(text[:-1] << 8 | text[1:])[inside[:-1]]] = 1
    return joins.tobytes()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest beginning that two lists of ids share.

    By bisection: slices are compared faster than items.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
