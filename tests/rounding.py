"""What is rounding and what is not: of a row, and of the decision that two answers part at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama_loop import Loop
from safe_integrations.config import GenerationConfig, Tool
from safe_integrations.engine.distribution import DenseDistribution
from safe_integrations.engine.events import Piece, Verdict, Verified
from safe_integrations.engine.model import Dense, Member, Session, Work, never
from safe_integrations.messages import Message
from safe_integrations.models.llama_cpp.library import Weights
from safe_integrations.safe_engine import SafeEngine

Floats = NDArray[np.floating]
Told = tuple[bytes, Verdict]

FEW = 3
TRIES = 40
LONGEST = 64


def apart(row: Floats, other: Floats) -> float:
    """How far two rows of logits are apart, each less its mean, as a share of their length.

    Rounding disturbs all logits alike, however sure the model is. So this is about the same for all
    rows and texts, which differences of probabilities are not.
    """
    finite = np.isfinite(row)
    assert (finite == np.isfinite(other)).all()
    a, b = (x[finite] - x[finite].mean() for x in (row, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure(weights: Weights, prompt: Sequence[int], ids: Sequence[int]) -> float:
    """The most that reading the same ids otherwise moves a row behind them, by the library alone.

    All at once; in small portions, which other kernels compute; and so, with cells in another
    order, in which attention sums.
    """
    loop = Loop(weights, sequences=2)
    count = len(ids)
    once = loop.read([*prompt, *ids], 0, count)
    loop.forget()
    loop.read(prompt, 0)
    few = loop.read(ids, len(prompt), count, FEW)
    loop.forget()
    loop.decode(ids, 0, count, sequence=1)
    loop.read(prompt, 0)
    loop.forget(1)  # what follows comes in front
    moved = loop.read(ids, len(prompt), count, FEW)
    loop.close()
    return max(apart(*pair) for way in (few, moved) for pair in zip(once, way, strict=True))


class Disturbed:
    """A member that has begun its answer, and rounds otherwise whenever it is asked.

    Args:
        member: The member.
        begun: What is written.
        noise: How far its rows are moved, as `apart` measures it.
        seed: Where to.
    """

    def __init__(self, member: Member, begun: bytes, noise: float, seed: int) -> None:
        self.name, self.tokens, self.limits = member.name, member.tokens, member.limits
        self.context_window, self.reason = member.context_window, member.reason
        self._member, self._begun, self._noise = member, begun, noise
        self._dice = np.random.default_rng(seed)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_args: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[int]:
        prompt = self._member.render(messages, tools, template_args)
        return [*prompt, *self.tokens.encode(self._begun)]

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Session:
        return _DisturbedSession(self._member.start(prompt, cancel), self._moved)

    def _moved(self, row: Floats) -> Floats:
        spread = row[np.isfinite(row)].std()
        noise = self._dice.standard_normal(len(row), np.float32)
        return row + np.float32(self._noise * spread) * noise


class _DisturbedSession:
    def __init__(self, session: Session, moved: Callable[[Floats], Floats]) -> None:
        self._session, self._moved = session, moved
        self.close = session.close

    @property
    def work(self) -> Work:
        return self._session.work

    def score(self, ids: Sequence[int], since: int) -> Sequence[DenseDistribution]:
        rows = cast(Sequence[Dense], self._session.score(ids, since))
        return [DenseDistribution(self._moved(row.logits()), None) for row in rows]  # type: ignore[arg-type]


def told(pieces: Sequence[Piece]) -> list[Told]:
    return [(piece.written, piece.verdict) for piece in pieces]


def hangs_on_rounding(
    engine: SafeEngine,
    prompt: str,
    one: Sequence[Told],
    other: Sequence[Told],
    noises: Sequence[float],
) -> bool:
    """Whether the first decision in which two answers differ is one that rounding can turn.

    It is made again, behind what they share, by fresh sessions whose rows are moved as far as
    rounding moves them: both outcomes must come up.
    """
    pairs = zip(one, other, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    if same is None:  # one stops where the other does not
        return False
    begun = b"".join(written for written, _ in one[:same])
    for member in engine.members:
        member.forget()  # type: ignore[attr-defined]
    first, *rest = (
        Disturbed(member, begun, noise, seed)
        for seed, (member, noise) in enumerate(zip(engine.members, noises, strict=True))
    )
    again = SafeEngine(first, rest, engine.config)
    missing = {one[same], other[same]}
    for _ in range(TRIES):
        missing.discard(next_piece(again, prompt))
        if not missing:
            return True
    return False


def next_piece(engine: SafeEngine, prompt: str) -> Told:
    with closing(engine.generate(prompt, GenerationConfig(max_tokens=LONGEST))) as events:
        judged = (event.pieces for event in events if isinstance(event, Verified))
        return told(next(pieces for pieces in judged if pieces))[0]
