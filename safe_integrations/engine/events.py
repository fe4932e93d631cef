"""What happens while an answer is made. Byte spans and plain numbers, never tensors.

Within a cycle the order is `Drafted`, `Verified`, `Ensembled` (none, one or several), `TextDelta`;
the last event of all is `Finished`. Everything else in the package folds over these events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from safe_integrations.engine.trace import Piece, Statistics

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Drafted:
    """The drafter wrote ahead.

    Attributes:
        cycle: Number of the cycle, from 1.
        start: Where the new tokens begin, in bytes.
        tokens: The new tokens, as bytes or END.
    """

    cycle: int
    start: int
    tokens: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """The verifiers checked the draft.

    Attributes:
        cycle: Number of the cycle, from 1.
        pieces: One per judged token, in order; an ensembled one can only be followed by others
            where it was confirmed.
        pending: Drafted tokens that wait for more text before they can be judged.
        dropped: Drafted tokens that were thrown away.
    """

    cycle: int
    pieces: tuple[Piece, ...]
    pending: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Ensembled:
    """The models' distributions were merged at one place.

    Attributes:
        cycle: Number of the cycle, from 1.
        piece: What was written, by whose votes, out of which candidates.
    """

    cycle: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text: whole characters, never part of a stop string.

    Attributes:
        text: Not empty. All deltas together are the answer.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Attributes:
        finish_reason: `stop` at END or a stop string, `length` at max_tokens or a full window.
        length: Bytes of the answer: offsets of pieces beyond it were cut off by a stop string.
        statistics: How it was made.
    """

    finish_reason: FinishReason
    length: int
    statistics: Statistics


Event = Drafted | Verified | Ensembled | TextDelta | Finished
