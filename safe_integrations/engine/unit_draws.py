"""2) Verify by units at `temperature` > 0: exact sampling whatever the tokenizers (issue 16).

Where a unit begins, one model is drawn by the weights, and it writes the unit, in its own tokens
and by its own probabilities. So the next unit follows the weighted mean of the models'
distributions over units. All noise belongs to a place and to a symbol (`noise`): the text is a
function of the seed, the weights and the models alone. A draft is a guess at it: the drafter writes
every unit as if it had been drawn, and who really was drawn tells by its own rows whether it would
write the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from safe_integrations.engine.distribution import SparseDistribution
from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.model import Dense, Distribution
from safe_integrations.engine.noise import Noise
from safe_integrations.engine.tokens import END
from safe_integrations.engine.unit_reader import UnitReader
from safe_integrations.engine.unit_rule import Judged, UnitRule
from safe_integrations.engine.units import MAX_UNIT, Unit, whole_characters


class DrawnUnits(UnitRule):
    """Draws units."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._noise = Noise(self.seed)

    def pick(self, expected: Distribution) -> int:
        """What the drafter draws, if it is the one to write this unit."""
        text, (begin, ended) = self.draft.text, self.draft.decided
        unit = bytes(text[begin:])
        if unit:
            going_on = self._goes_on(self.drafter, expected, len(text), unit)
            if going_on is not None:
                return going_on
        held = text[-1] if text and not self.units.single and (unit or ended) else None
        return self._begins(self.drafter, expected, len(text), held)

    def _next(self, start: int) -> Unit | None:
        if self.units.single:
            return super()._next(start)
        draft = self.draft
        if draft.units and draft.units[-1].text == END:
            return None
        if start == len(draft.text):
            return Unit(start, END) if self._over() else None
        for step in draft.steps:
            inside = step.start > start
            if inside and not self.units.joins(draft.text[step.start - 1], step.token):
                return Unit(start, bytes(draft.text[start : step.start]))
            end = step.start + len(step.token)
            if step.token != END and _is_cut(bytes(draft.text[start:end])):
                return Unit(start, bytes(draft.text[start:end]), ended=False)
        return None

    def _asked(self, units: Sequence[Unit]) -> Iterator[tuple[UnitReader, int, int]]:
        drawn = [None if self._unasked(unit) else self._drawn(unit.start) for unit in units]
        for reader in self.others:
            asked = [n for n, one in enumerate(drawn) if one is reader]
            if asked:
                yield reader, asked[0], asked[-1] + 1

    def _drawn(self, at: int) -> UnitReader:
        """Who writes the unit that begins at a place."""

        def luck(reader: UnitReader) -> float:
            weight = self.weights[reader.nth]
            noise = self._noise.gumbel("who", at, reader.view.name.encode())
            return math.log(weight) + noise if weight > 0 else -math.inf

        return max(self.readers, key=luck)

    def _judge(self, unit: Unit) -> Judged:
        """What the drawn model writes."""
        reader, drafted = self._drawn(unit.start), self._drafted(unit)
        written: Unit | bytes | None = unit
        if reader is not self.drafter:
            ask = drafted is not unit or reader.view.cursor is not None
            written = self._write_by(reader, unit.start, ask)
        if isinstance(written, bytes):
            return written
        if written is None or not self._fits(written.text):
            return None
        piece = Piece(
            written.start,
            written.end,
            written.text,
            drafted.text,
            Verdict.ACCEPTED if written.text == drafted.text else Verdict.CHANGED,
            votes=(reader.vote(unit, self.held),),
            drawn=reader.view.name,
        )
        return piece, written

    def _write_by(self, reader: UnitReader, start: int, ask: bool) -> Unit | bytes | None:
        """The unit that a model draws; None where its window does not hold it.

        Unless it may be asked, how it begins, where what it has told does not make a unit.
        """
        tail: list[int] = []
        text = b""
        symbol = reader.view.tokens.symbol
        while len(reader.ids) + len(tail) <= reader.view.room:
            if not ask and not reader.knows(tail):
                return text
            (row,) = reader.rows(tail, len(tail))
            if not tail:
                token_id = self._begins(reader, row, start, self.held)
                if symbol(token_id) == END or self.units.single:
                    return Unit(start, symbol(token_id))
            else:
                found = self._goes_on(reader, row, start + len(text), text)
                if found is None:
                    return Unit(start, text)
                token_id = found
            tail.append(token_id)
            text += symbol(token_id)
            if _is_cut(text):
                return Unit(start, text, ended=False)
        return None

    def _begins(self, reader: UnitReader, row: Distribution, at: int, held: int | None) -> int:
        """The first token of a unit: of those that may begin one, if any does."""
        flags = None if held is None else self.units.enders(reader.nth, held)
        return self._draw("start", reader, row, at, flags)

    def _goes_on(self, reader: UnitReader, row: Distribution, at: int, text: bytes) -> int | None:
        """The next token of a unit; None where it ends."""
        if self.units.single:
            return None
        token_id = self._draw("in", reader, row, at, None)
        return token_id if reader.joins(text[-1], token_id) else None

    def _draw(
        self,
        stream: str,
        reader: UnitReader,
        row: Distribution,
        at: int,
        flags: np.ndarray[Any, Any] | None,
    ) -> int:
        ids = row.ids if isinstance(row, SparseDistribution) else None
        logits = row.own if isinstance(row, SparseDistribution) else cast("Dense", row).logits()
        if flags is not None:
            among = np.where(flags if ids is None else flags[ids], logits, -np.inf)
            logits = among if among.max() > -np.inf else logits
        return self._noise.draw(stream, at, reader.view.tokens, ids, logits)


def _is_cut(text: bytes) -> bool:
    return len(text) >= MAX_UNIT and whole_characters(text) == len(text)
