"""The text, and at its end the draft: drafted tokens that wait for a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safe_integrations.engine.closing import Ways, Window
from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
from safe_integrations.engine.units import Unit, Units
from safe_integrations.engine.view import View


@dataclass(frozen=True, slots=True)
class Step:
    """One drafted token that has not been judged yet.

    Attributes:
        start: Where it begins, in bytes.
        id: Its id.
        token: Its bytes, or END.
        expected: What the drafter expected there; None where nothing else was allowed.
        instead_of: What the drafter wanted, where it was written to end within the budget.
    """

    start: int
    id: int
    token: bytes
    expected: Distribution | None
    instead_of: bytes | None = None


class Draft:
    """The text of one answer, in the tokens that the drafter really produced.

    Args:
        drafter: The model that writes; its view grows and shrinks with the text.
        verifiers: The others, whose windows must hold the text as well.
        budget: Most tokens of the answer, in the drafter's tokens.
        units: Where units end. None where tokens are judged.

    Attributes:
        text: What is written, and behind it the draft.
        steps: The draft: tokens that have not been judged yet.
        budget: Most tokens of the answer, in the drafter's tokens.
        units: The units of the draft that are known to be whole.
        decided: The last place where a unit ends, and whether it is sure that no token of any model
            reaches across it.
    """

    def __init__(
        self, drafter: View, verifiers: Sequence[View], budget: int, units: Units | None = None
    ) -> None:
        self.text = bytearray()
        self.steps: list[Step] = []
        self.units: list[Unit] = []
        self.decided = (0, False)
        self._view = drafter.segments
        self._tokens = drafter.tokens
        # behind a unit that fills the window one more token tells whether it has ended
        self._window = drafter.room if units is None else drafter.room + 1
        self.budget = budget
        self._units = units
        most = min(budget, drafter.room)
        self._ways = Ways(drafter.cursor, drafter.tokens, most, self._windows_of(verifiers))
        self._unchanged = 0

    @property
    def ids(self) -> list[int]:
        """The drafter's ids of the text, the draft included."""
        return self._view.ids

    @property
    def room(self) -> int:
        """Tokens that may still be drafted.

        A unit is drafted to its end, beyond the budget if need be: only a whole one can be judged.
        """
        left = self.budget - len(self._view.ids)
        if self._units is not None:
            left = 0 if self._count(self.decided[0]) >= self.budget else max(left, 1)
        return min(left, self._window - len(self._view.ids))

    @property
    def spent(self) -> bool:
        """Whether what is judged uses up the budget."""
        return self._count(self.judged) >= self.budget

    @property
    def judged(self) -> int:
        """How much of the text is final, in bytes."""
        return self.steps[0].start if self.steps else len(self.text)

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow: the draft ends in END, or there is no more room."""
        return self.room <= 0 or (bool(self.steps) and self.steps[-1].token == END)

    def append(self, token_id: int, expected: Distribution | None) -> bytes:
        """Drafts one token, or what must be written in its place to end within the budget.

        Returns:
            The bytes of what was written, or END.
        """
        instead_of = None
        text = bytes(self.text)
        if token_id != self._tokens.end_id and not self._ways.fit(text, self.ids, [token_id]):
            wanted = self._tokens.symbol(token_id)
            token_id, closed = self._ways.first(text, self.ids)
            instead_of, expected = wanted if closed else None, None
        token = self._tokens.symbol(token_id)
        self.steps.append(Step(len(self.text), token_id, token, expected, instead_of))
        self.write(token_id, token)
        return token

    def within_budget(self, piece: Piece) -> Piece:
        """The verdict, or what must be written instead to end within the budget."""
        if piece.verdict is not Verdict.CHANGED or piece.written == END:
            return piece
        if self.fits(piece.start, piece.written):
            return piece
        text, ids = self._before(piece.start)
        token = self._tokens.symbol(self._ways.first(text, ids)[0])
        end = piece.start + (0 if token == END else len(token))
        return replace(piece, end=end, written=token, verdict=Verdict.CLOSED, candidates=())

    def pop(self) -> Step:
        """Takes the last drafted token back."""
        step = self.steps.pop()
        self.cut(step.start)
        return step

    def differs(self, pieces: Sequence[Piece]) -> bool:
        """Whether the last verdict writes something else than stands in the draft."""
        if not pieces:
            return False
        piece = pieces[-1]
        if piece.verdict is Verdict.CHANGED:
            return True
        if piece.written == END:
            return all(step.token != END for step in self.steps)
        stands = self.text[piece.start : piece.end] == piece.written
        return not (stands and self._view.index_at(piece.end) is not None)

    def keep(self, pieces: Sequence[Piece]) -> None:
        """What is judged stands."""
        end = pieces[-1].end if pieces else 0
        over = bool(pieces) and pieces[-1].written == END
        self.steps = [s for s in self.steps if s.start >= end and not (over and s.token == END)]
        self.units = self.units[len(pieces) :] if self._units else []

    def replace(self, piece: Piece, ended: bool = False) -> int:
        """Rollback: what was judged was rejected; what an ensemble chose stands in its place.

        Everything drafted behind it is dropped. The winner is written in the drafter's own tokens,
        as far as there is room.

        Args:
            piece: The verdict.
            ended: Whether it is sure that no token of any model reaches across its end.

        Returns:
            How many tokens were dropped, the rejected ones included.
        """
        dropped = sum(step.start >= piece.start for step in self.steps)
        room = self._window if self._units else self.budget
        self.steps, self.units = [], []
        self.cut(piece.start)
        if piece.written != END:
            at = 0
            for token_id in self.spelling(piece.written)[: room - len(self.ids)]:
                length = len(self._tokens.symbol(token_id))
                self.write(token_id, piece.written[at : at + length])
                at += length
        self.decided = (len(self.text), ended)
        return dropped

    def spelling(self, text: bytes) -> Sequence[int]:
        """The drafter's tokens of what is written at once."""
        return self._units.tokens(0, text) if self._units else self._tokens.pieces(text)

    def respell(
        self, start: int, text: bytes, expected: Sequence[Distribution | None] | None = None
    ) -> int:
        """Drafts a text at once, in the tokens that it has by itself, in place of what is there.

        Args:
            start: Where to, in bytes.
            text: The text.
            expected: What the drafter expects in front of each of its tokens.

        Returns:
            How many drafted tokens were dropped.
        """
        kept = [step for step in self.steps if step.start < start]
        dropped = len(self.steps) - len(kept)
        self.steps = kept
        self.cut(start)
        for nth, token_id in enumerate(self.spelling(text)):
            token = self._tokens.symbol(token_id)
            row = expected[nth] if expected else None
            self.steps.append(Step(len(self.text), token_id, token, row))
            self.write(token_id, token)
        return dropped

    def fits(self, start: int, text: bytes) -> bool:
        """Whether a text in the tokens that it has by itself leaves room for a way to the end."""
        return self._ways.fit(*self._before(start), self.spelling(text))

    def restart(
        self, verifiers: Sequence[View], units: Units | None = None, ended: bool = False
    ) -> None:
        """Drops all that is not judged: others will judge what comes next.

        Args:
            verifiers: These, whose windows must hold the text.
            units: Where units end. None where tokens are judged.
            ended: Whether it is sure that no token of any model reaches across the end of the text.
        """
        self.cut(self.judged)
        self.steps, self.units = [], []
        self.decided = (len(self.text), ended)
        self._units = units
        self._ways.windows = self._windows_of(verifiers)

    def trim(self) -> int:
        """Drops what lies beyond the budget, and the draft; returns how many of its tokens."""
        dropped = len(self.steps)
        ends = self._view.ends[: min(self.budget, self._count(self.judged))]
        self.steps, self.units = [], []
        self.cut(ends[-1] if ends else 0)
        return dropped

    def show(self, verifiers: Sequence[View], drafter: View) -> None:
        """Has every verifier tokenise the text, from where it has changed since the last time."""
        for model in verifiers:
            model.look_at(self.text, self._unchanged, drafter)
        self._unchanged = len(self.text)

    def tokens_before(self, length: int) -> int:
        """How many of the drafter's tokens begin within the first bytes of the text."""
        starts = [0, *self._view.ends][: len(self._view.ids)]
        return sum(start < length for start in starts)

    def write(self, token_id: int, token: bytes) -> None:
        """Writes one of the drafter's tokens at the end of the text; END is no text."""
        if token != END:
            self.text += token
            self._view.ids.append(token_id)
            self._view.ends.append(len(self.text))

    def cut(self, length: int) -> None:
        """Cuts the text back to one of the drafter's boundaries."""
        kept = self._count(length)
        self._ways.cut(kept)
        del self.text[length:], self._view.ids[kept:], self._view.ends[kept:]
        self._unchanged = min(self._unchanged, length)

    def ids_before(self, length: int) -> list[int]:
        """The drafter's ids of the first bytes of the text."""
        return self.ids[: self._count(length)]

    def _windows_of(self, verifiers: Sequence[View]) -> list[Window]:
        return [Window(model.tokens, model.room, self._tokens) for model in verifiers]

    def _before(self, length: int) -> tuple[bytes, list[int]]:
        return bytes(self.text[:length]), self.ids_before(length)

    def _count(self, length: int) -> int:
        """How many of the drafter's tokens write the first bytes of the text."""
        count = self._view.index_at(length)
        assert count is not None, "a drafted token starts on a boundary of the drafter"
        return count
