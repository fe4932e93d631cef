"""One model at work on one answer: its session, its token ids of the text, its votes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from typing import cast

from safe_integrations.config import GenerationConfig
from safe_integrations.engine.distribution import Told, TopDistribution, logprobs_of
from safe_integrations.engine.events import ModelStatistics, Vote
from safe_integrations.engine.model import (
    Cursor,
    Dense,
    Distribution,
    Member,
    Pending,
    RemoteSession,
    never,
)
from safe_integrations.engine.partial import shape_told
from safe_integrations.engine.sampling import shape, shapes
from safe_integrations.engine.segments import Segmentation
from safe_integrations.errors import GenerationCancelled, GenerationError, SafeError, ServerError


@dataclass(slots=True)
class _Row:
    """What a model expects at one place, and how that takes part."""

    raw: Distribution
    shaped: Distribution | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Rows that are being computed elsewhere: what `score` returns, asked for."""

    ids: list[int]
    since: int
    rows: Pending[Sequence[Distribution]]


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a model elsewhere writes on behind some ids."""

    ids: list[int]
    drafted: Pending[tuple[Sequence[int], Sequence[Distribution]]]


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
        failure: What its server has failed with; None where it has not.
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
        self.failure: ServerError | None = None
        self._session = member.start(prompt, cancel)
        self._remote = cast("RemoteSession", self._session) if self.limits.remote else None
        self._asked: _Asked | None = None
        self._ahead: _Ahead | None = None
        self._settled: list[int] = []
        self._told: dict[tuple[int, ...], _Row] = {}
        self._options = options
        self._reshapes = shapes(options)
        self._cancel = cancel

    def close(self) -> None:
        """Gives its session back."""
        self._drop()
        if self._asked:
            self._asked.rows.cancel()
        self._session.close()

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        """What it expects after `ids[:since]`, ..., after `ids`, in one forward pass.

        Raises:
            GenerationCancelled: The caller asked to stop.
            GenerationError: The model failed.
        """
        asked = self._asked
        if asked is None or (asked.ids, asked.since) != ([*ids], since):
            self._take_in()
            with self._working():
                return self._watched(self._session.score(ids, since))
        self._asked = None
        with self._working():
            return self._watched(asked.rows.result())

    def begin(self, ids: Sequence[int], since: int) -> None:
        """Has a model elsewhere start on what `score` will be asked for; others do nothing."""
        self._take_in()
        if self._remote is not None:
            with self._working():
                self._asked = _Asked([*ids], since, self._remote.begin(ids, since))

    def begin_reading(self, ids: Sequence[int], since: int) -> None:
        """The same for `read`."""
        self._take_in()
        if self._remote is not None and (missing := self._missing(ids, since)):
            self.begin(*missing)

    def begin_drafting(self, ids: Sequence[int], count: int) -> None:
        """Has a model elsewhere write on behind some ids; what it was writing is dropped."""
        if self._remote is None or self.knows(ids) or (self._ahead and self._ahead.ids == [*ids]):
            return
        self._drop()
        with self._working():
            self._ahead = _Ahead([*ids], self._remote.draft(ids, count))

    def draft(self, ids: Sequence[int], count: int) -> None:
        """Makes sure that `expected` knows what a model elsewhere would write on by itself."""
        self.begin_drafting(ids, count)
        if self._ahead and self._ahead.ids == [*ids]:
            ahead, self._ahead = self._ahead, None
            with self._working():
                drafted, rows = ahead.drafted.result()
            self._learn([*ids, *drafted[: len(rows) - 1]], len(ids), self._watched(rows))

    @property
    def waits(self) -> bool:
        """Whether what it was asked for is not there yet."""
        return self._asked is not None and not self._asked.rows.done()

    @contextmanager
    def _working(self) -> Generator[None, None, None]:
        """Has every failure of the model be one of ours."""
        if self._cancel():
            raise GenerationCancelled
        try:
            yield
        except ServerError as error:
            self.failure = error
            raise
        except SafeError:
            raise
        except Exception as error:
            raise GenerationError(f"{self.name} failed while generating: {error}") from error

    def _watched(self, rows: Sequence[Distribution]) -> Sequence[Distribution]:
        """The same rows; what they ask the model later is its work, too."""
        return [
            row.within(self._working()) if isinstance(row, TopDistribution) else row for row in rows
        ]

    def _take_in(self) -> None:
        """Waits for what it was asked for last."""
        asked, self._asked = self._asked, None
        if asked is not None:
            with self._working():
                rows = asked.rows.result()
            self._learn(asked.ids, asked.since, self._watched(rows))

    def _drop(self) -> None:
        """What it was writing on is wanted no more."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.drafted.cancel()

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
        if missing := self._missing(ids, since):
            self._learn(*missing, self.score(*missing))

    def _missing(self, ids: Sequence[int], since: int) -> tuple[Sequence[int], int] | None:
        """Ids and the first place of what it has not told yet; None where it has told all."""
        settled = len(self._settled)
        places = range(since, len(ids) + 1)
        missing = [n for n in places if tuple(ids[settled:n]) not in self._told]
        return (ids[: missing[-1]], missing[0]) if missing else None

    def _learn(self, ids: Sequence[int], since: int, rows: Sequence[Distribution]) -> None:
        """Takes in what it has told."""
        settled = len(self._settled)
        if [*ids[:settled]] == self._settled and since >= settled:
            for count, raw in enumerate(rows, since):
                self._told.setdefault(tuple(ids[settled:count]), _Row(raw))

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
            if allowed is None and len(expected.told) < self._options.top_k:
                allowed = self.tokens.canonical  # of its best, some were aliases or silent
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
            self.name,
            len(self.prompt),
            reused_tokens=work.reused,
            forward_passes=work.passes,
            forwarded_tokens=work.tokens,
            seconds=work.seconds,
            requests=work.requests,
            received_bytes=work.received,
        )
