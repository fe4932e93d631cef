"""2) Verify by units: what merging them and drawing them have in common (issue 16)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.draft import Draft, Step
from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.rule import Walk
from safe_integrations.engine.tokens import END
from safe_integrations.engine.unit_reader import UnitReader
from safe_integrations.engine.units import Unit, Units
from safe_integrations.engine.view import View
from safe_integrations.errors import ServerError


@dataclass(frozen=True, slots=True)
class _Begun:
    """A unit that another model has begun otherwise than the draft.

    Attributes:
        drafted: What was drafted in its place.
        end: How far the other model has begun it, in bytes.
    """

    drafted: Unit
    end: int


Judged = tuple[Piece, Unit] | bytes | None
"""The verdict on a unit, and what is to be written. Or how another model has begun the unit. Or
None: what may stand there fits no window."""


class UnitRule:
    """What merging and drawing by units have in common.

    Args:
        models: The models, drafter first.
        draft: What is judged.
        units: Where units end.
        config: How models are merged.
        weights: One per model, summing to 1.
        seed: Where randomness comes from.

    Attributes:
        merge_seconds: Wall time of merging, outside of forward passes.
        tokenise_seconds: Wall time of tokenising the text for the verifiers.
    """

    def __init__(
        self,
        models: Sequence[View],
        draft: Draft,
        units: Units,
        config: EnsembleConfig,
        weights: Sequence[float],
        seed: int,
    ) -> None:
        self.merge_seconds = self.tokenise_seconds = 0.0
        self.draft, self.config, self.seed = draft, config, seed
        self.held: int | None = None  # last byte of a unit that has ended where the walk is
        self._begun: _Begun | None = None
        self._take([UnitReader(n, view, units) for n, view in enumerate(models)], units, weights)

    def _take(self, readers: list[UnitReader], units: Units, weights: Sequence[float]) -> None:
        self.readers, self.units, self.weights = readers, units, weights
        self.drafter, self.others = readers[0], readers[1:]
        self._partial = any(reader.view.limits.top is not None for reader in readers)

    # What the drafter asks

    def pick(self, expected: Distribution) -> int:
        """The drafter's next token."""
        raise NotImplementedError

    def grown(self) -> bool:
        """Finds the units of the draft that are whole, and has them written in their own tokens.

        A drafter may write a unit in tokens that nobody else would take for it. What it expects
        behind them must not depend on that: behind a unit all models read the same text.
        """
        draft = self.draft
        while (unit := self._next(draft.decided[0])) is not None:
            draft.units.append(unit)
            draft.decided = (unit.end, unit.ended)
            if unit.text == END:
                return False
            steps = self._steps(unit)
            ids = self.units.tokens(0, unit.text)
            if [step.id for step in steps] != [*ids] and self._respell(unit, steps, ids):
                return True
        return False

    def _next(self, start: int) -> Unit | None:
        """The next unit of the draft, if it is whole."""
        draft = self.draft
        if draft.units and draft.units[-1].text == END:
            return None
        if self.units.single:
            step = next((s for s in draft.steps if s.start >= start), None)
            return None if step is None else Unit(start, step.token)
        return self.units.next(draft.text, start, self._over())

    def _over(self) -> bool:
        return bool(self.draft.steps) and self.draft.steps[-1].token == END

    def _respell(self, unit: Unit, steps: Sequence[Step], ids: Sequence[int]) -> bool:
        symbol = self.drafter.view.tokens.symbol
        exact = b"".join(map(symbol, ids)) == unit.text
        closed = any(step.instead_of is not None for step in steps)
        if not exact or closed or not self.draft.fits(unit.start, unit.text):
            return False
        rows: Sequence[Distribution | None] = [None] * len(ids)
        if any(step.expected is not None for step in steps):
            before = self.draft.ids_before(unit.start)
            rows = self.drafter.view.expected([*before, *ids], len(before))[:-1]
        self.draft.respell(unit.start, unit.text, rows)
        return True

    # What the loop asks

    def leave_out(self, lost: View, weights: Sequence[float]) -> None:
        """Goes on without a verifier, behind what is judged; drops the draft.

        A unit then ends where no token of the models that are left reaches across.
        """
        kept = [reader for reader in self.readers if reader.view is not lost]
        units = Units([reader.view.tokens for reader in kept])
        readers = [UnitReader(nth, old.view, units, old.ids) for nth, old in enumerate(kept)]
        self._take(readers, units, weights)
        self._begun = None
        self.draft.restart([r.view for r in self.others], units, self.held is not None)

    def walk(self, meanwhile: Callable[[], None]) -> Walk:
        """Judges the units of the draft that are whole."""
        counts, held = [len(reader.ids) for reader in self.readers], self.held
        try:
            return self._walk(meanwhile)
        except ServerError:
            for reader, count in zip(self.readers, counts, strict=True):
                del reader.ids[count:]
            self.held = held
            raise

    def _walk(self, meanwhile: Callable[[], None]) -> Walk:
        units, full = self._fitting()
        for reader in self.others:  # the drafter's view is settled with the draft
            reader.view.settle(reader.ids)
        self._verify(units, meanwhile)
        pieces: list[Piece] = []
        ended = self.held is not None
        for unit in units:
            if self._spent():
                break
            judged = self._verdict(unit)
            if isinstance(judged, bytes):
                return self._begin(pieces, unit, judged, ended)
            if judged is None:
                return Walk(pieces, full=True, ended=ended)
            piece, written = judged
            pieces.append(piece)
            ended = self._write(written)
            begun, self._begun = self._begun, None
            # behind a unit that ends inside of what another model began stands nothing of the draft
            if written != unit or (begun is not None and unit.end < begun.end):
                return Walk(pieces, changed=True, ended=ended)
        stuck = not self.draft.units and self.draft.room <= 0
        return Walk(pieces, full=not self._spent() and (full or stuck))

    def _verdict(self, unit: Unit) -> Judged:
        """The verdict on a unit, within the budget."""
        if (verdict := self._unasked(unit)) is not None:
            return self._kept(unit, verdict), unit
        judged = self._judge(unit)
        if judged is None or isinstance(judged, bytes):
            return judged
        piece, written = judged
        within = self.draft.within_budget(piece)
        return within, written if within is piece else Unit(piece.start, within.written, False)

    def _begin(self, pieces: list[Piece], unit: Unit, beginning: bytes, ended: bool) -> Walk:
        """The walk ends in front of a unit that another model has begun otherwise.

        The drafter goes on behind that beginning: the next forward pass of the other model tells
        the rest, without one for it alone.
        """
        self.draft.units = self.draft.units[: len(pieces)]
        self.draft.decided = (unit.start, ended)
        dropped = self.draft.respell(unit.start, beginning)
        self._begun = _Begun(unit, unit.start + len(beginning))
        return Walk(pieces, dropped=dropped, ended=ended)

    def _drafted(self, unit: Unit) -> Unit:
        """What was drafted in the place of a unit at first."""
        begun = self._begun
        return unit if begun is None or begun.drafted.start != unit.start else begun.drafted

    def _judge(self, unit: Unit) -> Judged:
        """The verdict on a unit that somebody is asked about."""
        raise NotImplementedError

    def _asked(self, units: Sequence[Unit]) -> Iterator[tuple[UnitReader, int, int]]:
        """Which verifiers are asked about which units: the first, and behind the last."""
        raise NotImplementedError

    def _verify(self, units: Sequence[Unit], meanwhile: Callable[[], None]) -> None:
        """One forward pass of each verifier that is asked: what it expects inside of all units."""
        started, jobs = perf_counter(), []
        for reader, first, behind in self._asked(units):
            counts = [len(reader.ids)]
            ids = [*reader.ids]
            for unit in units[:behind]:
                ids += reader.spelling(unit.text)
                counts.append(len(ids))
            if units[behind - 1].text == END or self.units.single:
                ids.pop()  # nobody reads END, nor asks what comes behind a single token
            jobs.append((reader.view, ids, counts[first]))
        self.tokenise_seconds += perf_counter() - started
        for view, ids, since in jobs:
            view.begin_reading(ids, since)
        meanwhile()
        for view, ids, since in jobs:
            view.read(ids, since)

    def _fitting(self) -> tuple[list[Unit], bool]:
        """The whole units of the draft that fit all windows, and whether the first does not."""
        units = self.draft.units
        counts = [len(reader.ids) for reader in self.readers]
        for nth, unit in enumerate(units):
            if unit.text == END:
                break
            counts = [
                c + len(r.spelling(unit.text)) for c, r in zip(counts, self.readers, strict=True)
            ]
            if any(c > r.view.room for c, r in zip(counts, self.readers, strict=True)):
                return units[:nth], nth == 0
        return units, False

    def _fits(self, text: bytes) -> bool:
        return text == END or all(
            len(r.ids) + len(r.spelling(text)) <= r.view.room for r in self.readers
        )

    def _spent(self) -> bool:
        return len(self.drafter.ids) >= self.draft.budget

    def _write(self, unit: Unit) -> bool:
        """All models read on behind a unit; returns whether it has ended for sure."""
        if unit.text == END:
            return True
        for reader in self.readers:
            own = reader is self.drafter and unit in self.draft.units
            ids = [s.id for s in self._steps(unit)] if own else reader.spelling(unit.text)
            reader.ids += ids
        ended = unit.ended and not self.units.single
        self.held = unit.text[-1] if ended else None
        return ended

    def _steps(self, unit: Unit) -> list[Step]:
        """The drafted tokens of a unit."""
        if unit.text == END:
            return self.draft.steps[-1:]
        return [s for s in self.draft.steps if unit.start <= s.start < unit.end]

    def _unasked(self, unit: Unit) -> Verdict | None:
        """The verdict on a unit that nobody is asked about; None where somebody is."""
        if self._drafted(unit) is not unit:
            return None
        steps = self._steps(unit)
        if any(step.instead_of is not None for step in steps):
            return Verdict.CLOSED
        if all(step.expected is None for step in steps):
            return Verdict.FORCED
        return None if self.others else Verdict.UNVERIFIED

    def _kept(self, unit: Unit, verdict: Verdict) -> Piece:
        wanted = b"".join(step.instead_of or step.token for step in self._steps(unit))
        if wanted != END:
            wanted = wanted.removesuffix(END)
        return Piece(unit.start, unit.end, unit.text, wanted, verdict)
