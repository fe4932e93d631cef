"""The loop: 1) generate, 2) verify, 3) ensemble (Algorithm 1), as a generator of events.

The engine knows bytes, tokens and probabilities. It does not know torch, caches, chat templates,
grammars, LangChain or LlamaIndex.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from time import perf_counter

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.baseline import ensemble_always
from safe_integrations.engine.draft import Draft, Step
from safe_integrations.engine.drafter import Drafter
from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Event,
    Finished,
    FinishReason,
    Piece,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.engine.judge import Judge, Opinion
from safe_integrations.engine.model import Cursor, Member, never
from safe_integrations.engine.text import TextStream
from safe_integrations.engine.tokens import END
from safe_integrations.engine.view import View


def write(
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    cursors: Sequence[Cursor | None],
    config: EnsembleConfig,
    options: GenerationConfig,
    weights: Sequence[float],
    cancel: Callable[[], bool] = never,
) -> Generator[Event, None, None]:
    """Writes one answer.

    Args:
        members: The models, drafter first.
        prompts: For each of them its prompt's token ids.
        cursors: For each of them its way through the grammar; None where any text will do.
        config: How they are merged.
        options: How this answer is made.
        weights: One per model, summing to 1.
        cancel: Asked before every forward pass whether to stop.

    Yields:
        What happens, up to and including `Finished`.
    """
    started = perf_counter()
    with ExitStack() as stack:
        models = []
        for member, prompt, cursor in zip(members, prompts, cursors, strict=True):
            models.append(View(member, prompt, cursor, options, cancel))
            stack.callback(models[-1].close)
        waiting = sum(model.limits.remote for model in models[1:])
        pool = stack.enter_context(ThreadPoolExecutor(waiting)) if waiting > 1 else None
        loop = _Loop(models, config, options, weights, pool)
        statistics = loop.statistics
        for event in loop.events():
            if isinstance(event, TextDelta) and statistics.first_token_seconds is None:
                statistics.first_token_seconds = perf_counter() - started
            if isinstance(event, Finished):
                statistics.seconds = perf_counter() - started
            paused = perf_counter()
            yield event
            started += perf_counter() - paused  # the caller's time is not ours


class _Loop:
    """One answer in the making."""

    def __init__(
        self,
        models: Sequence[View],
        config: EnsembleConfig,
        options: GenerationConfig,
        weights: Sequence[float],
        pool: ThreadPoolExecutor | None,
    ) -> None:
        seed = secrets.randbits(64) if options.seed is None else options.seed
        self.models, self.verifiers = models, models[1:]
        self.draft = Draft(models[0], models[1:], min(options.max_tokens, models[0].room))
        self.drafter = Drafter(models[0], self.draft, config, options, seed)
        self.judge = Judge(models, config, weights, options, seed)
        self.stream = TextStream(options.stop)
        self.statistics = Statistics()
        self.closed: list[tuple[int, int]] = []  # where the budget wrote
        self.walk = self._verify
        if config.mode == "every-token":
            self.walk = partial(ensemble_always, self.draft, self.verifiers, self.judge, self._look)
        self.pool = pool

    def events(self) -> Iterator[Event]:
        """Algorithm 1."""
        for cycle in count(1):
            before = self._costs()

            # 1) Generate: the drafter writes ahead.
            start = len(self.draft.text)
            tokens = self.drafter.run()
            yield self._counted(Drafted(cycle, start, tokens))

            # 2) Verify, and 3) ensemble where that is safe and needed (`Judge.judge`).
            pieces, overflow = self.walk()

            # Accept what stands; roll back to the first token that does not.
            changed = self.draft.differs(pieces)
            dropped = overflow
            if changed:
                dropped += self.draft.replace(pieces[-1])
            else:
                self.draft.keep(len(pieces))
            self.closed += [(p.start, p.end) for p in pieces if p.verdict is Verdict.CLOSED]
            self._learn(before, len(tokens), len(pieces))
            yield self._counted(Verified(cycle, tuple(pieces), len(self.draft.steps), dropped))
            yield from (Ensembled(cycle, piece) for piece in pieces if piece.ensembled)

            # Show the text that is final; end where nothing can follow.
            # After a change, what did not fit a window is no longer what comes next.
            reason = self._end(pieces, full=overflow > 0 and not changed)
            delta = self.stream.push(bytes(self.draft.text[self.stream.read : self.draft.judged]))
            if self.stream.stopped_at is not None:
                reason = "stop"
            elif reason:
                delta += self.stream.finish()
            if delta:
                yield TextDelta(delta)
            if reason:
                yield self._finished(reason)
                return

    # 2) Verify: one forward pass of every verifier; the walk stops where something is changed.

    def _verify(self) -> tuple[list[Piece], int]:
        """The verdicts on the draft, in order, and how many tokens did not fit a window."""
        overflow = self._look()
        steps = self.draft.steps
        if not overflow and not self.draft.is_final:
            horizon = self._settled()  # behind it a verifier may yet tokenise otherwise: wait
            steps = [step for step in steps if step.start < horizon]
        opinions = self._opinions(steps)
        pieces: list[Piece] = []
        for step in steps:
            piece = self.judge.judge(step, opinions.get(step.start))
            pieces.append(self.draft.within_budget(step, piece))
            if self.draft.differs(pieces):
                break
        return pieces, overflow

    def _look(self) -> int:
        """Has the verifiers tokenise the text; shortens the draft where it overflows a window.

        Returns:
            How many drafted tokens were thrown away.
        """
        started = perf_counter()
        overflow = 0
        while True:
            self.draft.show(self.verifiers, self.models[0])
            fits = all(len(model.segments.ids) <= model.room for model in self.verifiers)
            if fits or not self.draft.steps:
                self.statistics.tokenise_seconds += perf_counter() - started
                return overflow
            self.draft.pop()
            overflow += 1

    def _settled(self) -> int:
        """Up to where no verifier's tokens can change any more, whatever is written next."""
        text = self.draft.text
        ends = (model.settled(text, self.models[0]) for model in self.verifiers)
        return min(ends, default=len(text))

    def _opinions(self, steps: Sequence[Step]) -> dict[int, list[Opinion]]:
        """What the verifiers expect at every safe place among those of some drafted tokens.

        A place is safe where the text up to it ends on a token boundary of every verifier (Eq. 1).
        Verifiers that wait for something else than this machine are asked at the same time.
        """
        places: dict[int, list[int]] = {}
        for step in steps if self.verifiers else ():
            indices = [model.segments.index_at(step.start) for model in self.verifiers]
            if step.expected is not None and None not in indices:
                places[step.start] = [i for i in indices if i is not None]
        if not places:
            return {}
        asked = [[*column] for column in zip(*places.values(), strict=True)]
        rows = [
            self.pool.submit(_rows, model, indices).result
            if self.pool and model.limits.remote
            else partial(_rows, model, indices)
            for model, indices in zip(self.verifiers, asked, strict=True)
        ]
        found = zip(*(get() for get in rows), strict=True)
        return {start: [*opinions] for start, opinions in zip(places, found, strict=True)}

    # Bookkeeping

    def _end(self, pieces: Sequence[Piece], full: bool) -> FinishReason | None:
        """Why the answer ends here; None where it goes on.

        Args:
            pieces: What was judged last.
            full: Whether what comes next does not fit the window of some verifier.
        """
        if pieces and pieces[-1].written == END:
            return "stop"
        return "length" if (full or self.draft.room <= 0) and not self.draft.steps else None

    def _costs(self) -> tuple[float, float] | None:
        """Time in forward passes so far: of the drafter, and until all verifiers had answered.

        None while a model has not read its prompt: that says nothing about what a token costs.
        """
        if not all(model.has_read for model in self.models):
            return None
        here = sum(m.seconds for m in self.verifiers if not (self.pool and m.limits.remote))
        there = (m.seconds for m in self.verifiers if self.pool and m.limits.remote)
        return self.models[0].seconds, here + max(there, default=0.0)

    def _learn(self, before: tuple[float, float] | None, drafted: int, judged: int) -> None:
        after = self._costs()
        if before and after:
            self.drafter.learn(drafted, after[0] - before[0], judged, after[1] - before[1])

    def _counted(self, event: Event) -> Event:
        self.statistics.add(event)
        return event

    def _finished(self, reason: FinishReason) -> Finished:
        s, stopped_at = self.statistics, self.stream.stopped_at
        s.models = [model.statistics() for model in self.models]
        s.ensemble_seconds = self.judge.seconds
        s.tokens = self.draft.tokens_before(self.stream.read if stopped_at is None else stopped_at)
        if reason == "stop" and stopped_at is None:
            s.tokens += 1  # END
        cursor, shown = self.models[0].cursor, self.stream.shown
        closed = [span for span in self.closed if span[0] < shown or stopped_at is None]
        if cursor is not None and closed:
            reason, s.closed_at = "length", closed[0][0]
            s.cut = cursor.cut(bytes(self.draft.text[:shown]), closed)
        return Finished(reason, self.stream.shown, s)


def _rows(model: View, indices: Sequence[int]) -> list[Opinion]:
    """What a verifier expects at some places of its view, in one forward pass."""
    first, last = indices[0], indices[-1]
    rows = model.score(model.segments.ids[:last], first)
    return [(index, rows[index - first]) for index in indices]
