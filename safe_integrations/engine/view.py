"""One model at work on one answer: its session, its token ids of the text, its votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import cast

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import Told, TopDistribution, logprobs_of
from safe_integrations.engine.events import ModelStatistics, Vote
from safe_integrations.engine.model import Cursor, Dense, Distribution, Member, never
from safe_integrations.engine.partial import shape_told
from safe_integrations.engine.sampling import shape, shapes
from safe_integrations.engine.segments import Segmentation
from safe_integrations.errors import GenerationCancelled, GenerationError, SafeError


@dataclass(slots=True)
class _Row:
    """What a model expects at one place, and how that takes part."""

    raw: Distribution
    shaped: Distribution | None = None


class View:
    """A member at work on one prompt, with its own view of the shared text.

    `cancel` is asked before every forward pass whether to stop.

    Attributes:
        name: Name of the model.
        tokens: Its tokens as bytes.
        prompt: Token ids of its prompt.
        room: Tokens that its context window leaves for the answer.
        limits: What the member cannot do.
        segments: Its token ids of the text.
        cursor: Its way through the grammar; None where any text will do.
    """

    def __init__(
        self,
        member: Member,
        prompt: Sequence[int],
        cursor: Cursor | None,
        options: GenerationConfig,
        cancel: Callable[[], bool] = never,
    ) -> None:
        self.name = member.name
        self.tokens = member.tokens
        self.prompt = prompt
        self.room = member.context_window - len(prompt)
        self.limits = member.limits
        self.segments = Segmentation(member.tokens)
        self.cursor = cursor
        self._session = member.start(prompt, cancel)
        self._settled: list[int] = []
        self._told: dict[tuple[int, ...], _Row] = {}
        self._options = options
        self._reshapes = shapes(options)
        self._cancel = cancel

    def close(self) -> None:
        """Gives its session back."""
        self._session.close()

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        """What it expects after `ids[:since]`, ..., after `ids`, in one forward pass.

        Raises:
            GenerationCancelled: The caller asked to stop.
            GenerationError: The model failed.
        """
        if self._cancel():
            raise GenerationCancelled
        try:
            return self._session.score(ids, since)
        except SafeError:
            raise
        except Exception as error:
            raise GenerationError(f"{self.name} failed while generating: {error}") from error

    def expected(self, ids: Sequence[int], since: int) -> list[Distribution]:
        """The same, as it takes part (`shaped`). What it has told before is not computed again."""
        self.read(ids, since)
        settled = len(self._settled)
        rows = []
        for count in range(since, len(ids) + 1):
            row = self._told[tuple(ids[settled:count])]
            if row.shaped is None:
                row.shaped = self.shaped(row.raw, ids[:count])
            rows.append(row.shaped)
        return rows

    def read(self, ids: Sequence[int], since: int) -> None:
        """Makes sure that `expected` will need no forward pass, by one if it must be."""
        settled = len(self._settled)
        keys = [tuple(ids[settled:count]) for count in range(since, len(ids) + 1)]
        missing = [n for n, key in enumerate(keys) if key not in self._told]
        if missing:
            first, last = since + missing[0], since + missing[-1]
            for key, raw in zip(keys[missing[0] :], self.score(ids[:last], first), strict=False):
                self._told.setdefault(key, _Row(raw))

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether it has told already what it expects behind some ids."""
        return tuple(ids[len(self._settled) :]) in self._told

    def settle(self, ids: Sequence[int]) -> None:
        """Takes in which ids will stay; forgets what it told behind others."""
        new = tuple(ids[len(self._settled) :])
        kept = {key[len(new) :]: r for key, r in self._told.items() if key[: len(new)] == new}
        self._told = kept
        self._settled = list(ids)

    @property
    def has_read(self) -> bool:
        """Whether it has read its prompt; that pass says nothing about what a token costs."""
        return self._session.work.passes > 0

    @property
    def passes(self) -> int:
        """Its forward passes so far."""
        return self._session.work.passes

    @property
    def seconds(self) -> float:
        """Wall time that it has spent in forward passes so far."""
        return self._session.work.seconds

    @property
    def row_seconds(self) -> float:
        """What one more token in a pass would take (`Work.row_seconds`)."""
        return self._session.work.row_seconds

    def shaped(self, expected: Distribution, ids: Sequence[int]) -> Distribution:
        """How what it expects after some tokens takes part: constrained, and as options say."""
        allowed = None if self.cursor is None else self.cursor.allowed(ids)
        if allowed is None and not self._reshapes:
            return expected
        if isinstance(expected, TopDistribution):
            size, limit = self.tokens.size, self.limits.ids
            return shape_told(expected, allowed, self._options, size, limit)
        return shape(cast("Dense", expected), ids, allowed, self._options)

    def look_at(self, text: bytearray, unchanged: int, drafter: View) -> None:
        """Takes in the text as it is now. Models with the same tokens share the drafter's ids."""
        if self._shares_ids_with(drafter):
            self.segments = drafter.segments
        else:
            self.segments.update(text, unchanged)

    def settled(self, text: bytearray, drafter: View) -> int:
        """How much of its view stays as it is whatever is written next, in bytes."""
        return len(text) if self._shares_ids_with(drafter) else self.tokens.settled(text)

    def own_token(self, index: int) -> int:
        """Its token at a place of its view; END at the end of the text."""
        ids = self.segments.ids
        return ids[index] if index < len(ids) else self.tokens.end_id

    def _shares_ids_with(self, drafter: View) -> bool:
        return self.segments is drafter.segments or self.tokens.same_tokens(drafter.tokens)

    def vote(self, own_id: int, expected: Distribution, told: Told = "exact") -> Vote:
        """What it thinks of its own token at a place."""
        own, top = logprobs_of(expected, [own_id, expected.best], told)
        symbol = self.tokens.symbol
        return Vote(self.name, (symbol(own_id),), exp(own), symbol(expected.best), exp(top))

    def statistics(self) -> ModelStatistics:
        """What it has computed so far."""
        work = self._session.work
        return ModelStatistics(
            self.name, len(self.prompt), work.reused, work.passes, work.tokens, work.seconds
        )
