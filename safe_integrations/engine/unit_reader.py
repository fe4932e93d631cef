"""One model, as it reads, judges and proposes units (issue 16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from safe_integrations.engine.distribution import Told, logprobs_of, mass_of
from safe_integrations.engine.events import Vote
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
from safe_integrations.engine.units import Unit, Units
from safe_integrations.engine.view import View


class UnitReader:
    """One model, as it reads units: each in its own tokens behind those of the units before.

    Args:
        nth: Which model, 0 for the drafter.
        view: The model.
        units: Where units end.
        ids: Its token ids of the units that are written.

    Attributes:
        ids: The same, as they grow.
    """

    def __init__(self, nth: int, view: View, units: Units, ids: Sequence[int] = ()) -> None:
        self.nth, self.view = nth, view
        self.ids = list(ids)
        self._units = units

    def spelling(self, text: bytes) -> tuple[int, ...]:
        """Its tokens of a unit."""
        return self._units.tokens(self.nth, text)

    def rows(self, tail: Sequence[int], since: int = 0) -> list[Distribution]:
        """What it expects behind the units written and `tail[:since]`, ..., and all of `tail`."""
        return self.view.expected([*self.ids, *tail], len(self.ids) + since)

    def knows(self, tail: Sequence[int]) -> bool:
        """Whether `rows` has what it expects behind `tail` without a forward pass."""
        return self.view.knows([*self.ids, *tail])

    def favourite(self, row: Distribution, held: int | None) -> int:
        """Its favourite; among what begins a unit if the text is held at such a last byte."""
        if held is not None and self.joins(held, row.best):
            best = row.best_among(self._units.enders(self.nth, held))
            return row.best if best is None else best
        return row.best

    def joins(self, last: int, token_id: int) -> bool:
        """Whether a token does not begin a new unit behind such a last byte."""
        return self._units.joins(last, self.view.tokens.symbol(token_id))

    def ends(self, row: Distribution, unit: Unit, told: Told = "exact") -> float:
        """How likely the unit ends here, by what is expected behind it; 1 where it was cut."""
        if not self._needs_end(unit):
            return 1.0
        return mass_of(row, self._units.enders(self.nth, unit.text[-1]), told)

    def chance(self, unit: Unit, told: Told = "exact") -> float:
        """The probability of a unit: of its tokens, and that it ends behind them."""
        ids, rows = self._read(unit)
        return _product(rows, ids, told) * self.ends(rows[-1], unit, told)

    def vote(self, unit: Unit, held: int | None, told: Told = "exact") -> Vote:
        """What it thinks of a unit (`chance`), and what it wants in its place."""
        ids, rows = self._read(unit)
        symbol = self.view.tokens.symbol
        wanted: list[int] = []
        for nth, row in enumerate(rows):
            best = self.favourite(row, held if nth == 0 else None)
            own = ids[nth] if nth < len(ids) else None
            if own is None and not self.joins(unit.text[-1], best):
                break
            wanted.append(best)
            if best != own:
                break
        text = b"".join(map(symbol, wanted))
        if len(wanted) > 1 and text.endswith(END):
            text = text.removesuffix(END)
        tokens = tuple(map(symbol, ids))
        chance = self.chance(unit, told)
        return Vote(self.view.name, tokens, chance, text, _product(rows, wanted, told))

    def agreement(self, unit: Unit) -> Vote:
        """Its vote on a unit that all want, without a forward pass: how sure it is of its tokens.

        Of text that the grammar forced the drafter may not have told what it expects: certain.
        """
        ids = self.spelling(unit.text)
        known = [nth for nth in range(len(ids)) if self.knows(ids[:nth])]
        rows = [self.rows(ids[:nth], nth)[0] for nth in known]
        chance = _product(rows, [ids[nth] for nth in known], "most")
        tokens = tuple(map(self.view.tokens.symbol, ids))
        return Vote(self.view.name, tokens, chance, unit.text, chance)

    def wants(self, unit: Unit, held: int | None) -> bool:
        """Check (a) for one model: whether its own proposal is this unit."""
        ids, rows = self._read(unit)
        for nth, token_id in enumerate(ids):
            if self.favourite(rows[nth], held if nth == 0 else None) != token_id:
                return False
        behind = rows[-1].best
        return not self._needs_end(unit) or not self.joins(unit.text[-1], behind)

    def _read(self, unit: Unit) -> tuple[tuple[int, ...], list[Distribution]]:
        """Its tokens of a unit, and what it expects in front of each; and behind, if it ends."""
        ids = self.spelling(unit.text)
        return ids, self.rows(ids if self._needs_end(unit) else ids[:-1])

    def _needs_end(self, unit: Unit) -> bool:
        return unit.ended and unit.text != END and not self._units.single

    def proposal(self, start: int, held: int | None, ask: bool = True) -> Unit | bytes | None:
        """What it would write: its favourites, until they make a whole unit.

        None where its window does not hold them. Unless it may be asked, the text of those that it
        has told, where they do not make one.
        """
        tail: list[int] = []
        text = b""
        while len(self.ids) + len(tail) <= self.view.room:
            if not ask and not self.knows(tail):
                return text
            (row,) = self.rows(tail, len(tail))
            best = self.favourite(row, held if not tail else None)
            symbol = self.view.tokens.symbol(best)
            if symbol != END:
                tail.append(best)
                text += symbol
            unit = self._units.next(text, 0, final=symbol == END)
            if unit is not None:
                return replace(unit, start=start)
        return None

    def at_most(self, text: bytes, judged: Unit, chance: float, ended: bool) -> float:
        """A bound: the most that a unit other than a judged one can have that begins with a text.

        The first token of such a unit begins with the text, or the text begins with it. Units that
        end are events that exclude each other, so they share what these tokens have.

        Args:
            text: The text.
            judged: The unit that is judged.
            chance: What it has.
            ended: Whether the other one is known to end.
        """
        (row,) = self.rows(())
        tokens = self.view.tokens
        ids = [tokens.end_id] if text == END else tokens.compatible(text).tolist()
        shares = np.exp(logprobs_of(row, ids, "most"))
        most = float(shares.max(initial=0.0))
        first = self.spelling(judged.text)[0]
        if ended and judged.ended and first in ids:
            most = min(most, max(0.0, float(shares.sum()) - chance))
        return most * (1 + 1e-6)  # numbers are rounded


def _product(rows: Sequence[Distribution], ids: Sequence[int], told: Told) -> float:
    """The probability of some ids, one after another."""
    pairs = zip(rows, ids, strict=False)
    return math.exp(sum(logprobs_of(row, [token_id], told)[0] for row, token_id in pairs))
