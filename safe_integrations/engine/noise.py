"""Noise that belongs to a place of the text and to a symbol, so that drawing repeats itself.

The Gumbel trick: the symbol with the largest log-probability plus Gumbel noise is a draw. Here the
noise is a function of the seed, the place and the bytes of the symbol, so models that expect the
same draw the same, whatever ids they have for it, and whoever asks when gets the same draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from math import exp, inf
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from safe_integrations.engine.tokens import TokenTable

Hashes = NDArray[np.uint32]
"""Two words per symbol, shape `[2, symbols]`."""

_NEAR: Final = 7.0
"""How far below the best a token may be whose noise is computed at once."""

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_STIR: Final = ((16, 0x7FEB352D), (15, 0x846CA68B))  # lowbias32, https://nullprogram.com/blog/2018

_hashes: Final[WeakKeyDictionary[TokenTable, Hashes]] = WeakKeyDictionary()


class Noise:
    """Gumbel noise by stream, place and symbol.

    Args:
        seed: Another seed is other noise.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._keys = lru_cache(1 << 10)(self._key)

    def gumbel(self, stream: str, at: int, symbol: bytes) -> float:
        """The noise of one symbol.

        Args:
            stream: What it is for: streams are independent of each other.
            at: A place of the text, in bytes.
            symbol: Its bytes.
        """
        return float(self._gumbel(self._keys(stream, at), _hash_one(symbol))[0])

    def draw(
        self,
        stream: str,
        at: int,
        table: TokenTable,
        ids: NDArray[np.intp] | None,
        logits: NDArray[np.floating],
    ) -> int:
        """Draws a token: the same wherever it is asked for.

        Most tokens are so improbable that only exceptional noise could make them win, and the first
        word of the noise tells which have it. So the outcome is that of computing all.

        Args:
            stream: What the noise is for.
            at: The place, in bytes.
            table: The tokens.
            ids: The tokens that may be drawn; None for all.
            logits: Their logarithms up to a constant, shape `[ids]`; -inf for what may not be.

        Returns:
            Its id.
        """
        key, hashes = self._keys(stream, at), hashes_of(table)
        if ids is not None:
            return int(ids[(logits + self._gumbel(key, hashes[:, ids])).argmax()])
        floor = logits.max() - _NEAR
        near = np.flatnonzero(logits > floor)
        noisy = logits[near] + self._gumbel(key, hashes[:, near])
        best = int(noisy.argmax())
        needed = float(noisy[best]) - floor
        most = -np.expm1(-exp(min(-needed, 700.0))) * 2.0**32  # of the first word
        far = np.flatnonzero(_word(key[:3], hashes) <= most)
        far = far[(logits[far] <= floor) & (logits[far] > -inf)]
        if far.size:
            other = logits[far] + self._gumbel(key, hashes[:, far])
            if other.max() > noisy[best]:
                return int(far[other.argmax()])
        return int(near[best])

    def _key(self, stream: str, at: int) -> NDArray[np.uint32]:
        digest = blake2b(f"{self._seed}/{stream}/{at}".encode(), digest_size=24).digest()
        key = np.frombuffer(digest, np.uint32).copy()
        key[[0, 1, 3, 4]] |= 1  # odd
        return key

    @staticmethod
    def _gumbel(key: NDArray[np.uint32], hashes: Hashes) -> NDArray[np.float64]:
        words = _word(key[:3], hashes), _word(key[3:], hashes)
        uniform = (words[0] * 2.0**32 + words[1] + 0.5) * 2.0**-64
        noise: NDArray[np.float64] = -np.log(-np.log1p(-np.minimum(uniform, 1 - 2.0**-53)))
        return noise


def _word(key: NDArray[np.uint32], hashes: Hashes) -> NDArray[np.uint32]:
    """32 random bits per symbol: no two symbols share them at every place."""
    x: NDArray[np.uint32] = hashes[0] * key[0]
    x += hashes[1] * key[1]
    x += key[2]
    for shift, factor in _STIR:
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x


def hashes_of(table: TokenTable) -> Hashes:
    """The hashes of all tokens of a table, made once."""
    if table not in _hashes:
        _hashes[table] = hash_symbols([symbol or b"" for symbol in table.symbols()])
    return _hashes[table]


@lru_cache(1 << 8)
def _hash_one(symbol: bytes) -> Hashes:
    return hash_symbols([symbol])


def hash_symbols(symbols: Sequence[bytes]) -> Hashes:
    """64 bits of hash per symbol, in two words."""
    lengths = np.array([len(symbol) + 1 for symbol in symbols])  # and a byte that ends it
    starts = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(symbol + b"\0" for symbol in symbols), np.uint8)
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    powers = np.multiply.accumulate(np.full(int(lengths.max()) + 1, _MULTIPLIER, np.uint64))
    x = np.add.reduceat((data.astype(np.uint64) + np.uint64(1)) * powers[place], starts)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return np.stack([x.astype(np.uint32), (x >> np.uint64(32)).astype(np.uint32)])
