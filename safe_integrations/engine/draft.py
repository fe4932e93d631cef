"""The text, and at its end the draft: drafted tokens that wait for a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from safe_integrations.engine.closing import Ways, Window
from safe_integrations.engine.events import Piece, Verdict
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
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

    Attributes:
        text: What is written, and behind it the draft.
        steps: The draft: tokens that have not been judged yet.
    """

    def __init__(self, drafter: View, verifiers: Sequence[View], budget: int) -> None:
        self.text = bytearray()
        self.steps: list[Step] = []
        self._view = drafter.segments
        self._tokens = drafter.tokens
        self._budget = budget
        windows = [Window(model.tokens, model.room, drafter.tokens) for model in verifiers]
        self._ways = Ways(drafter.cursor, drafter.tokens, budget, windows)
        self._unchanged = 0

    @property
    def ids(self) -> list[int]:
        """The drafter's ids of the text, the draft included."""
        return self._view.ids

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self._budget - len(self._view.ids)

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

    def within_budget(self, step: Step, piece: Piece) -> Piece:
        """The verdict on a step, or what must be written instead to end within the budget."""
        if piece.written in (step.token, END):
            return piece
        text, ids = bytes(self.text[: piece.start]), self.ids[: self._count(piece.start)]
        if self._ways.fit(text, ids, self._tokens.pieces(piece.written)):
            return piece
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
        return bool(pieces) and pieces[-1].written != self.steps[len(pieces) - 1].token

    def keep(self, count: int) -> None:
        """The first tokens of the draft are judged, and stand."""
        del self.steps[:count]

    def replace(self, piece: Piece) -> int:
        """Rollback: a judged token was rejected; what an ensemble chose stands in its place.

        Everything drafted behind it is dropped. The winner is written in the drafter's own tokens,
        as far as there is room.

        Returns:
            How many tokens were dropped, the rejected one included.
        """
        dropped = sum(step.start >= piece.start for step in self.steps)
        self.steps = []
        self.cut(piece.start)
        if piece.written != END:
            at = 0
            for token_id in self._tokens.pieces(piece.written)[: self.room]:
                length = len(self._tokens.symbol(token_id))
                self.write(token_id, piece.written[at : at + length])
                at += length
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

    def _count(self, length: int) -> int:
        """How many of the drafter's tokens write the first bytes of the text."""
        count = self._view.index_at(length)
        assert count is not None, "a drafted token starts on a boundary of the drafter"
        return count
