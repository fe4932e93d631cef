"""The loop: 1) generate, 2) verify, 3) ensemble (Algorithm 1), as a generator of events.

The engine knows bytes, tokens and probabilities. It does not know torch, caches, chat templates,
grammars, LangChain or LlamaIndex.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from math import fsum
from time import perf_counter

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.draft import Draft
from safe_integrations.engine.drafter import Drafter
from safe_integrations.engine.events import (
    Drafted,
    Ensembled,
    Event,
    Finished,
    FinishReason,
    ModelLost,
    Statistics,
    TextDelta,
    Verdict,
    Verified,
)
from safe_integrations.engine.judge import Judge
from safe_integrations.engine.model import Cursor, Member, never
from safe_integrations.engine.rule import Rule
from safe_integrations.engine.text import TextStream
from safe_integrations.engine.token_rule import TokenRule
from safe_integrations.engine.tokens import END
from safe_integrations.engine.unit_draws import DrawnUnits
from safe_integrations.engine.unit_merges import MergedUnits
from safe_integrations.engine.units import Units
from safe_integrations.engine.view import View
from safe_integrations.errors import ServerError


def write(
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    cursors: Sequence[Cursor | None],
    config: EnsembleConfig,
    options: GenerationConfig,
    weights: Sequence[float],
    units: Units | None,
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
        units: Where units of the models' text end; None to judge by tokens.
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
        loop = _Loop(models, config, options, weights, units)
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
        units: Units | None,
    ) -> None:
        seed = secrets.randbits(64) if options.seed is None else options.seed
        self.begun = models  # also those that are lost by now
        self.models, self.verifiers, self.weights = models, models[1:], weights
        self.goes_on = config.on_missing == "continue"
        drafter = models[0]
        self.stream = TextStream(options.stop)
        self.statistics = Statistics()
        self.closed: list[tuple[int, int]] = []  # where the budget wrote
        self.rule: Rule
        if units is not None:
            self.draft = Draft(drafter, self.verifiers, options.max_tokens, units)
            made = DrawnUnits if options.temperature > 0 else MergedUnits
            self.rule = made(models, self.draft, units, config, weights, seed)
        else:
            self.draft = Draft(drafter, self.verifiers, min(options.max_tokens, drafter.room))
            judge = Judge(models, config, weights, options, seed)
            always = config.mode == "every-token"
            self.rule = TokenRule(models, self.draft, judge, options, seed, always)
        self.drafter = Drafter(drafter, self.verifiers, self.draft, self.rule, config)

    def events(self) -> Iterator[Event]:
        """Algorithm 1."""
        for verifier in self.verifiers:
            try:
                verifier.begin([], 0)  # it reads its prompt while the drafter drafts
            except ServerError as error:
                yield self._leave_out(error, 1)
        for cycle in count(1):
            costs = [self._costs()]

            # 1) Generate: the drafter writes ahead.
            start, written = len(self.draft.text), self.draft.tokens_before(self.draft.judged)
            tokens = self.drafter.run()
            costs.append(self._costs())
            yield self._counted(Drafted(cycle, start, tokens))

            # 2) Verify, and 3) ensemble where that is safe and needed.
            pending = len(self.draft.steps)
            try:
                walk = self.rule.walk(self.drafter.go_on)
            except ServerError as error:
                yield self._leave_out(error, cycle)
                yield self._counted(Verified(cycle, (), 0, pending))
                continue
            pieces, dropped = walk.pieces, walk.dropped

            # Accept what stands; roll back to the first piece that does not.
            if walk.changed:
                dropped += self.draft.replace(pieces[-1], walk.ended)
            else:
                self.draft.keep(pieces)
            self.models[0].settle(self.draft.ids_before(self.draft.judged))
            self.closed += [(p.start, p.end) for p in pieces if p.verdict is Verdict.CLOSED]
            written = self.draft.tokens_before(self.draft.judged) - written
            self._learn(costs, len(tokens), written, walk.changed)
            reason: FinishReason | None = None
            if pieces and pieces[-1].written == END:
                reason = "stop"
            elif walk.full or self.draft.spent:  # nothing can follow
                reason = "length"
                dropped += self.draft.trim()
            yield self._counted(Verified(cycle, tuple(pieces), len(self.draft.steps), dropped))
            yield from (Ensembled(cycle, piece) for piece in pieces if piece.ensembled)

            # Show the text that is final.
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

    def _leave_out(self, error: ServerError, cycle: int) -> ModelLost:
        """Goes on without the verifier whose server has failed.

        Raises:
            ServerError: It may not be left out, or it is the drafter.
        """
        lost = next((verifier for verifier in self.verifiers if verifier.failure), None)
        if not self.goes_on or lost is None:
            raise error
        kept = [n for n, model in enumerate(self.models) if model is not lost]
        weights = [self.weights[n] for n in kept]
        total = fsum(weights)
        self.weights = [w / total if total else 1 / len(kept) for w in weights]
        self.models = [self.models[n] for n in kept]
        self.verifiers = self.drafter.verifiers = self.models[1:]
        self.rule.leave_out(lost, self.weights)
        event = ModelLost(cycle, lost.name, len(self.draft.text), str(error))
        self.statistics.add(event)
        return event

    # Bookkeeping

    def _costs(self) -> tuple[float, float] | None:
        """Time in forward passes so far: of the drafter, and of all verifiers.

        None while a model has not read its prompt: that says nothing about what a token costs.
        """
        if not all(model.has_read for model in self.models):
            return None
        return self.models[0].seconds, sum(verifier.seconds for verifier in self.begun[1:])

    def _learn(
        self,
        costs: Sequence[tuple[float, float] | None],
        drafted: int,
        written: int,
        changed: bool,
    ) -> None:
        """Takes in a cycle; `costs` from before and behind drafting."""
        after, (before, behind) = self._costs(), costs
        if (auto := self.drafter.auto) and before and behind and after:
            check = after[0] - behind[0] + after[1] - behind[1]
            row = sum(verifier.row_seconds for verifier in self.verifiers)
            auto.learn(drafted, behind[0] - before[0], written, check, row, changed)

    def _counted(self, event: Event) -> Event:
        self.statistics.add(event)
        return event

    def _finished(self, reason: FinishReason) -> Finished:
        s, stopped_at = self.statistics, self.stream.stopped_at
        s.models = [model.statistics() for model in self.begun]
        s.ensemble_seconds = self.rule.merge_seconds
        s.tokenise_seconds = self.rule.tokenise_seconds
        s.tokens = self.draft.tokens_before(self.stream.read if stopped_at is None else stopped_at)
        if reason == "stop" and stopped_at is None:
            s.tokens += 1  # END
        cursor, shown = self.models[0].cursor, self.stream.shown
        closed = [span for span in self.closed if span[0] < shown or stopped_at is None]
        if cursor is not None and closed:
            reason, s.closed_at = "length", closed[0][0]
            s.cut = cursor.cut(bytes(self.draft.text[:shown]), closed)
        return Finished(reason, self.stream.shown, s)
