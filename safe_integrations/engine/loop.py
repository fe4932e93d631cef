"""The loop: generate, verify, ensemble (Algorithm 1), as a generator of events.

The engine knows bytes, tokens and probabilities. It does not know torch, caches, chat templates,
LangChain or LlamaIndex.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import exp
from time import perf_counter
from typing import Final

import numpy as np

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.ensemble import merge
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
    Vote,
)
from safe_integrations.engine.judge import consensus
from safe_integrations.engine.lookahead import MAX_LOOKAHEAD, AutoLookahead, PromptLookup
from safe_integrations.engine.model import Cursor, Distribution, Member
from safe_integrations.engine.sampling import draw, speculative_draw
from safe_integrations.engine.text import TextStream
from safe_integrations.engine.tokens import END
from safe_integrations.engine.view import Participant

_DRAFT: Final = 0  # what randomness is for
_JUDGE: Final = 1


def write(
    members: Sequence[Member],
    prompts: Sequence[Sequence[int]],
    cursors: Sequence[Cursor | None],
    config: EnsembleConfig,
    options: GenerationConfig,
    cancel: Callable[[], bool] | None = None,
) -> Generator[Event, None, None]:
    """Writes one answer.

    Args:
        members: The models, drafter first.
        prompts: For each of them its prompt's token ids.
        cursors: For each of them its way through the grammar; None where any text will do.
        config: How they are merged.
        options: How this answer is made.
        cancel: Asked before every forward pass whether to stop.

    Yields:
        What happens, up to and including `Finished`.
    """
    started = perf_counter()
    with ExitStack() as stack:
        models = []
        for member, prompt, cursor in zip(members, prompts, cursors, strict=True):
            session = member.start(prompt)
            stack.callback(session.close)
            models.append(Participant(member, prompt, session, cursor, options, cancel))
        run = _Run(models, config, config.weights_for(len(models)), options)
        for event in run.events():
            if isinstance(event, TextDelta) and run.statistics.first_token_seconds is None:
                run.statistics.first_token_seconds = perf_counter() - started
            if isinstance(event, Finished):
                run.statistics.seconds = perf_counter() - started
            paused = perf_counter()
            yield event
            started += perf_counter() - paused  # the caller's time is not ours


@dataclass(frozen=True, slots=True)
class _Step:
    """One drafted token that has not been judged yet."""

    start: int
    id: int
    token: bytes
    expected: Distribution | None  # None where nothing else was allowed


@dataclass
class _Run:
    """One generation: the text so far, the draft at its end, and what was found out."""

    models: list[Participant]
    config: EnsembleConfig
    weights: Sequence[float]
    options: GenerationConfig
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        self.drafter, self.verifiers = self.models[0], self.models[1:]
        self.text = bytearray()  # what is written, and behind it the draft
        self.view = self.drafter.view  # the ids that the drafter really produced
        self.draft: list[_Step] = []
        self.unchanged = 0  # bytes of the text that are as they were when last looked at
        self.overflow = 0  # drafted tokens thrown away to fit a verifier's window
        self.pushed = 0  # bytes handed to the stream
        self.stream = TextStream(self.options.stop)
        self.budget = min(self.options.max_tokens, self.drafter.room)
        self.seed = secrets.randbits(64) if self.options.seed is None else self.options.seed
        self.auto = AutoLookahead()
        self.guesses = self.config.prompt_lookup and self.config.mode != "every-token"
        self.lookup = PromptLookup(self.drafter.prompt if self.guesses else ())

    def events(self) -> Generator[Event, None, None]:
        """The loop."""
        while True:
            self.statistics.cycles += 1
            began, read = self._model_seconds(), all(model.has_read for model in self.models)
            drafted = self._generate()
            yield drafted
            if self.config.mode == "every-token":
                verified = self._ensemble_always()
            else:
                verified = self._verify()
            if read:
                ended = self._model_seconds()
                draft, check = (b - a for a, b in zip(began, ended, strict=True))
                self.auto.learn(len(drafted.tokens), draft, len(verified.pieces), check)
            yield verified
            for piece in verified.pieces:
                if piece.ensembled:
                    yield Ensembled(verified.cycle, piece)
            reason = self._finish_reason(verified)
            delta = self._emit(last=reason is not None)
            if delta:
                yield TextDelta(delta)
            if self.stream.stopped_at is not None:
                reason = "stop"
            if reason is not None:
                yield self._finished(reason)
                return

    def _model_seconds(self) -> tuple[float, float]:
        """Time in forward passes so far: of the drafter, of the verifiers."""
        return self.drafter.seconds, sum(model.seconds for model in self.verifiers)

    # 1) Generate: the drafter writes up to `lookahead` tokens ahead of the last judged one.

    def _generate(self) -> Drafted:
        start = len(self.text)
        tokens: list[bytes] = []
        ahead = sum(step.expected is not None for step in self.draft)
        wanted = max(1, self._lookahead() - ahead)
        chooses = self.config.lookahead == "auto"
        if chooses:
            self.auto.start(self._probabilities(len(self.draft)))
        while wanted and END not in tokens and (room := self.budget - len(self.view.ids)) > 0:
            forced = self._write_forced(room)
            drafted = [] if forced else self._draft_step(min(wanted, room))
            wanted -= len(drafted)
            tokens += forced or drafted
            if chooses and drafted and not self.auto.goes_on(self._probabilities(len(drafted))):
                break
        self.statistics.drafted += len(tokens)
        return Drafted(self.statistics.cycles, start, tuple(tokens))

    def _lookahead(self) -> int:
        if self.config.mode == "every-token":
            return 1
        chosen = self.config.lookahead
        return MAX_LOOKAHEAD if chosen == "auto" else chosen

    def _probabilities(self, last: int) -> Iterator[float]:
        """What the drafter gave the last tokens of the draft, forced ones left out."""
        steps = self.draft[len(self.draft) - last :]
        return (exp(step.expected.logprob(step.id)) for step in steps if step.expected)

    def _draft_step(self, most: int) -> list[bytes]:
        """One forward pass of the drafter: a token, and as many guessed ones as prove right."""
        ids = self.view.ids
        known = len(ids)
        judged = known - len(self.draft)
        guess = self.lookup.guess(ids, judged, most - 1) if self.guesses else []
        seconds, read = self.drafter.seconds, self.drafter.has_read
        tokens: list[bytes] = []
        right = 0
        for i, expected in enumerate(self.drafter.score([*ids, *guess], known)):
            expected = self.drafter.shaped(expected, known + i)
            token_id = self._pick(expected)
            tokens.append(self._propose(token_id, expected))
            wrong = i < len(guess) and guess[i] != token_id
            right += i < len(guess) and not wrong
            if tokens[-1] == END or wrong or self._forced():
                break
        if read:
            self.lookup.learn(len(guess), right, wrong, self.drafter.seconds - seconds)
        return tokens

    def _pick(self, expected: Distribution) -> int:
        if self.options.temperature == 0:
            return expected.best
        probs = np.exp(expected.dense(), dtype=np.float64)
        return draw(probs, self._random(len(self.text), _DRAFT))

    def _random(self, offset: int, purpose: int) -> np.random.Generator:
        """Randomness that belongs to a place of the text, whenever it is asked for.

        So a seed gives one text, whatever the lookahead and whatever was drafted in vain.
        """
        return np.random.default_rng([self.seed, offset, purpose])

    def _propose(self, token_id: int, expected: Distribution | None) -> bytes:
        token = self.drafter.tokens.symbol(token_id)
        self.draft.append(_Step(len(self.text), token_id, token, expected))
        self._append(token_id, token)
        return token

    def _write_forced(self, room: int) -> list[bytes]:
        """Drafts what the response format leaves no choice about."""
        return [self._propose(i, None) for i in self._forced()[:room]]

    def _forced(self) -> list[int]:
        """The only ids that may come next, up to where a token may cross; none where any may."""
        cursor, tokens = self.drafter.cursor, self.drafter.tokens
        if cursor is None:
            return []
        if cursor.finished(self.view.ids):
            return [tokens.end_id]
        forced = cursor.forced(self.view.ids)
        if not forced:
            return []
        kept = max(0, tokens.settled(self.text + forced) - len(self.text))
        return tokens.encode(forced[:kept])

    # 2) Verify: one forward pass of every verifier; the walk stops where something is changed.

    def _verify(self) -> Verified:
        self._look()
        steps = self._judgeable()
        opinions = self._opinions(steps)
        pieces: list[Piece] = []
        for step in steps:
            pieces.append(self._judge(step, opinions.get(step.start)))
            if self._changed(pieces):
                break
        return self._commit(pieces)

    def _look(self) -> None:
        """Shows the text to the verifiers; shortens the draft where it overflows a window."""
        self.overflow = 0
        while True:
            started = perf_counter()
            for model in self.verifiers:
                model.look_at(self.text, self.unchanged, self.drafter)
            self.unchanged = len(self.text)
            self.statistics.tokenise_seconds += perf_counter() - started
            if not self.draft or all(len(m.view.ids) <= m.room for m in self.verifiers):
                return
            self._cut(self.draft.pop().start)
            self.overflow += 1

    def _judgeable(self) -> list[_Step]:
        """The drafted tokens whose surroundings will not change when more text is written."""
        if self._draft_is_final():
            return self.draft
        settled = [m.settled(self.text, self.drafter) for m in self.verifiers]
        horizon = min(settled, default=len(self.text))
        return [step for step in self.draft if step.start < horizon]

    def _opinions(self, steps: Sequence[_Step]) -> dict[int, list[tuple[int, Distribution]]]:
        """For every safe place: its index in each verifier's view, and what they expect there.

        A place is safe where the text up to it ends on a token boundary of every verifier (Eq. 1).
        """
        if not self.verifiers:
            return {}
        places: dict[int, list[int]] = {}
        for step in steps:
            if step.expected is None:
                continue
            indices = [m.view.index_at(step.start) for m in self.verifiers]
            if all(i is not None for i in indices):
                places[step.start] = indices  # type: ignore[assignment]
        opinions: dict[int, list[tuple[int, Distribution]]] = {start: [] for start in places}
        for nth, model in enumerate(self.verifiers if places else ()):
            wanted = [indices[nth] for indices in places.values()]
            rows = model.score(model.view.ids[: wanted[-1]], wanted[0])
            for start, index in zip(places, wanted, strict=True):
                opinions[start].append((index, rows[index - wanted[0]]))
        return opinions

    def _judge(self, step: _Step, opinions: list[tuple[int, Distribution]] | None) -> Piece:
        end = step.start + (0 if step.token == END else len(step.token))
        if step.expected is None:
            return Piece(step.start, end, step.token, step.token, Verdict.FORCED)
        if opinions is None:
            verdict = Verdict.UNSAFE if self.verifiers else Verdict.UNVERIFIED
            return Piece(step.start, end, step.token, step.token, verdict)
        distributions = [step.expected]
        votes = [self.drafter.vote(step.id, step.expected)]
        for model, (index, expected) in zip(self.verifiers, opinions, strict=True):
            distributions.append(model.shaped(expected, index))
            votes.append(model.vote(model.own_token(index), distributions[-1]))
        if self.options.temperature > 0:
            return self._ensemble(step, distributions, tuple(votes))
        agreed = consensus(votes, self.weights, self.config.consensus_above)
        if agreed is not None:
            return Piece(step.start, end, step.token, step.token, agreed, tuple(votes))
        return self._ensemble(step, distributions, tuple(votes))

    # 3) Ensemble: the merged distribution decides what stands at this place.

    def _ensemble(
        self, step: _Step, distributions: Sequence[Distribution], votes: tuple[Vote, ...] = ()
    ) -> Piece:
        started = perf_counter()
        tables = [model.tokens for model in self.models]
        if self.options.temperature > 0:
            config = self.config.model_copy(update={"sharpening": "none"})
            merged = merge(tables, distributions, self.weights, config)
            random = self._random(step.start, _JUDGE)
            winner = speculative_draw(merged, self.weights, step.token, random)
            kept = Verdict.ACCEPTED
        else:
            merged = merge(tables, distributions, self.weights, self.config)
            winner = merged.winner(step.token)
            kept = Verdict.CONFIRMED
        candidates = merged.candidates(winner)
        self.statistics.ensemble_seconds += perf_counter() - started
        return Piece(
            step.start,
            step.start + (0 if winner == END else len(winner)),
            winner,
            step.token,
            kept if winner == step.token else Verdict.CHANGED,
            votes,
            candidates,
        )

    def _ensemble_always(self) -> Verified:
        """The baseline: ensembles after the text as each model tokenises it, checking nothing."""
        step = self.draft[-1]  # what lies before it is forced
        if step.expected is not None:
            self._cut(step.start)
            self._look()
        if step.expected is None or self.overflow:
            return self._commit([self._judge(s, None) for s in self.draft])
        forced = [self._judge(s, None) for s in self.draft[:-1]]
        distributions = [step.expected]
        for model in self.verifiers:
            count = len(model.view.ids)
            (expected,) = model.score(model.view.ids, count)
            distributions.append(model.shaped(expected, count))
        self._append(step.id, step.token)
        return self._commit([*forced, self._ensemble(step, distributions)])

    # Bookkeeping

    def _commit(self, pieces: list[Piece]) -> Verified:
        """Takes judged tokens out of the draft; a changed one replaces all that follows it."""
        judged = len(pieces)
        dropped = self.overflow
        changed = self._changed(pieces)
        if changed:
            dropped += len(self.draft) - judged + 1
            self._cut(pieces[-1].start)
            self._write(pieces[-1].written)
            self.draft = []
            self.overflow = 0  # what did not fit is no longer what comes next
        else:
            self.draft = self.draft[judged:]
        s = self.statistics
        s.judged += judged
        s.unsafe += sum(p.verdict is Verdict.UNSAFE for p in pieces)
        s.ensembled += sum(p.ensembled for p in pieces)
        s.changed += changed
        return Verified(s.cycles, tuple(pieces), len(self.draft), dropped)

    @staticmethod
    def _changed(pieces: Sequence[Piece]) -> bool:
        return bool(pieces) and pieces[-1].verdict is Verdict.CHANGED

    def _cut(self, length: int) -> None:
        kept = self.view.index_at(length)
        assert kept is not None, "a drafted token starts on a boundary of the drafter"
        del self.text[length:], self.view.ids[kept:], self.view.ends[kept:]
        self.unchanged = min(self.unchanged, length)

    def _write(self, symbol: bytes) -> None:
        """Writes an ensemble's winner in the drafter's own tokens."""
        if symbol == END:
            return
        room = self.budget - len(self.view.ids)
        at = 0
        for token_id in self.drafter.tokens.pieces(symbol)[:room]:
            length = len(self.drafter.tokens.symbol(token_id))
            self._append(token_id, symbol[at : at + length])
            at += length

    def _append(self, token_id: int, token: bytes) -> None:
        if token == END:
            return
        self.text += token
        self.view.ids.append(token_id)
        self.view.ends.append(len(self.text))

    def _draft_is_final(self) -> bool:
        """Whether nothing can follow the draft: it ends in END, or there is no more room."""
        return self._no_room() or (bool(self.draft) and self.draft[-1].token == END)

    def _no_room(self) -> bool:
        return self.overflow > 0 or len(self.view.ids) >= self.budget

    def _finish_reason(self, verified: Verified) -> FinishReason | None:
        if verified.pieces and verified.pieces[-1].written == END:
            return "stop"
        return "length" if self._no_room() and not self.draft else None

    def _emit(self, last: bool) -> str:
        written = self.draft[0].start if self.draft else len(self.text)
        delta = self.stream.push(bytes(self.text[self.pushed : written]))
        self.pushed = written
        return delta + self.stream.finish() if last else delta

    def _finished(self, reason: FinishReason) -> Finished:
        s = self.statistics
        s.models = [model.statistics() for model in self.models]
        end = self.pushed if self.stream.stopped_at is None else self.stream.stopped_at
        s.tokens = sum(start < end for start in [0, *self.view.ends][: len(self.view.ids)])
        if reason == "stop" and self.stream.stopped_at is None:
            s.tokens += 1  # END
        return Finished(reason, self.stream.shown, s)
