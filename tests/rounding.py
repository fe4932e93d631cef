"""How much of a difference is rounding: of a row, and of a decision that two answers part at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from os.path import commonprefix
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama_loop import Loop
from safe_integrations.engine.events import Piece
from safe_integrations.engine.model import Dense, Member
from safe_integrations.engine.tokens import END
from safe_integrations.messages import as_messages
from safe_integrations.models.llama_cpp.library import Weights
from safe_integrations.safe_engine import SafeEngine

Floats = NDArray[np.floating]

FILLING = 48
FEW, SOME = 3, 12
TINY = 1e-30


@dataclass(frozen=True)
class Noise:
    """What llama.cpp's rounding does, at worst.

    Attributes:
        logits: To a row, as `apart` measures it.
        share: To the probability of one of a row's two favourites, as a share of it.
    """

    logits: float
    share: float


def apart(row: Floats, other: Floats) -> float:
    """How far two rows of logits are apart, each less its mean, as a share of their length.

    Rounding disturbs all logits alike, however sure the model is. So this is about the same for all
    rows and texts, which differences of probabilities are not.
    """
    finite = np.isfinite(row)
    assert (finite == np.isfinite(other)).all()
    a, b = (x[finite] - x[finite].mean() for x in (row, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def probabilities(row: Floats) -> Floats:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def measure(weights: Weights, ids: Sequence[int], wanted: int) -> Noise:
    """What reading the same ids otherwise does to the last rows, by the library alone.

    One at a time; in small and large portions, which other kernels compute; and into cells in
    another order, in which attention sums.
    """
    loop = Loop(weights, sequences=2)
    ways = []
    for portion in (FEW, SOME, len(ids)):
        loop.forget()
        ways.append(loop.read(ids, 0, wanted, portion))
    loop.forget()
    loop.decode(ids[:FILLING], 0, FILLING, sequence=1)
    loop.read(ids[:-wanted], 0)
    loop.forget(1)  # what follows comes in front
    ways.append(loop.read(ids[-wanted:], len(ids) - wanted, wanted, FEW))
    loop.close()
    pairs = [pair for way in ways[1:] for pair in zip(ways[0], way, strict=True)]
    return Noise(
        max(apart(*pair) for pair in pairs),
        max(changed(*pair) for pair in pairs),
    )


def changed(row: Floats, other: Floats) -> float:
    """How much more or less likely one of a row's two favourites is in another row."""
    a, b = probabilities(row), probabilities(other)
    return max(share(float(a[i]), float(b[i])) for i in np.argsort(a)[-2:])


def share(one: float, other: float) -> float:
    """The gap between two probabilities, as a share of the larger one.

    Those of units are products: small ones that are far apart have a small difference.
    """
    return abs(one - other) / max(one, other, TINY)


def doubt(piece: Piece, weights: Sequence[float], above: float) -> float:
    """By how little a piece was decided: among candidates, or against the threshold."""
    gaps = []
    if len(piece.candidates) > 1:
        gaps.append(share(*sorted(c.probability for c in piece.candidates)[-2:]))
    if len(piece.votes) == len(weights):
        mean = sum(w * vote.probability for w, vote in zip(weights, piece.votes, strict=True))
        gaps.append(share(mean, above))
    return min(gaps, default=1.0)


def parting(
    engine: SafeEngine, prompt: str, one: Sequence[Piece], other: Sequence[Piece]
) -> float | None:
    """How close the first decision was in which two answers differ; None where none does."""
    same = 0
    while same < min(len(one), len(other)) and told(one[same]) == told(other[same]):
        same += 1
    if same == len(one) == len(other):
        return None
    begun = text(one[:same])
    shared = commonprefix([text(one), text(other)])
    gaps = [
        doubt(piece, engine.weights, engine.config.consensus_above)
        for piece in chain(one[same : same + 1], other[same : same + 1])
    ]
    for member in engine.members:
        gaps.append(least_lead(member, prompt, begun, max(begun, shared, key=len)))
    return min(gaps)


def told(piece: Piece) -> tuple[int, bytes]:
    return piece.start, piece.written


def text(pieces: Sequence[Piece]) -> bytes:
    return b"".join(piece.written for piece in pieces if piece.written != END)


def least_lead(member: Member, prompt: str, begun: bytes, shared: bytes) -> float:
    """The least that a model's favourite is ahead by, from where one text ends to another's end."""
    ids = member.tokens.encode(shared) if shared else []
    since, read = 0, 0
    while since < len(ids) and read < len(begun):
        read += len(member.tokens.symbol(ids[since]))
        since += 1
    return lead(member, prompt, ids, since)


def lead(member: Member, prompt: str, ids: Sequence[int], since: int) -> float:
    """The least `share` that a model's favourite is ahead by, behind `ids[:since]`, ..., `ids`."""
    session = member.start(member.render(as_messages(prompt)))
    leads = []
    for row in session.score(ids, since):
        second, first = np.exp(np.sort(cast(Dense, row).dense())[-2:])
        leads.append(share(float(first), float(second)))
    session.close()
    return min(leads)
