"""1) Generate (section 3.1): how far to draft, what to guess, and which token comes next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.distribution import logprobs_of
from safe_integrations.engine.draft import Draft
from safe_integrations.engine.lookahead import MAX_LOOKAHEAD, AutoLookahead, PromptLookup
from safe_integrations.engine.rule import Rule
from safe_integrations.engine.tokens import END
from safe_integrations.engine.view import View


class Drafter:
    """Writes ahead of the last judged token.

    Args:
        view: The model that drafts.
        verifiers: The others.
        draft: What it writes to.
        rule: Which token comes next, and what is judged as one.
        config: How far it drafts, and whether it guesses.

    Attributes:
        verifiers: The others, as long as they are there.
        auto: What decides how far to draft; None where the lookahead is fixed.
    """

    def __init__(
        self,
        view: View,
        verifiers: Sequence[View],
        draft: Draft,
        rule: Rule,
        config: EnsembleConfig,
    ) -> None:
        self._view = view
        self.verifiers = verifiers
        self._draft = draft
        self._rule = rule
        one = config.mode == "every-token"
        self.auto = AutoLookahead() if config.lookahead == "auto" and not one else None
        self._most = 1 if one else MAX_LOOKAHEAD if self.auto else int(config.lookahead)
        guesses = config.prompt_lookup and not one and not view.limits.remote
        self._lookup = PromptLookup(view.prompt) if guesses else None

    @property
    def _at_once(self) -> int:
        """Tokens that a model elsewhere is asked for in one request."""
        return self.auto.at_once if self.auto else self._most

    def run(self) -> tuple[bytes, ...]:
        """Drafts tokens, at least one where there is room; returns them as bytes or END.

        What the grammar leaves no choice about is written wherever it comes up, and does not count.
        """
        draft = self._draft
        tokens: list[bytes] = []
        ahead = sum(step.expected is not None for step in draft.steps)
        wanted = max(1, self._most - ahead)
        if self.auto:
            self.auto.start(self._probabilities(len(draft.steps)))
        while wanted and END not in tokens and (room := draft.room) > 0:
            forced = self._write_forced(room)
            drafted = [] if forced else self._step(min(wanted, room))
            wanted -= len(drafted)
            tokens += forced or drafted
            if self.auto and drafted:
                elsewhere = self._view.limits.remote
                if elsewhere and not self._view.knows(draft.ids):
                    break  # it writes on while these are checked
                if not self.auto.goes_on(self._probabilities(len(drafted)), elsewhere):
                    break
        return tuple(tokens)

    def go_on(self) -> None:
        """Drafts on behind the draft while verifiers elsewhere are waited for.

        Nothing is written: where the draft stands, what comes next is known already. A model
        elsewhere is asked for what is behind all that it has told.
        """
        view, draft = self._view, self._draft
        over = bool(draft.steps) and draft.steps[-1].token == END
        if over or draft.room <= 0 or self._forced():
            return
        ids, elsewhere = list(draft.ids), view.limits.remote
        for room in range(draft.room, max(0, draft.room - self._most), -1):
            # under a grammar, the best of what is told may be a question of its own
            if elsewhere and (view.cursor is not None or not view.knows(ids)):
                view.begin_drafting(ids, min(self._at_once, room))
                break
            if not elsewhere and not any(verifier.waits for verifier in self.verifiers):
                break
            (expected,) = view.expected(ids, len(ids))
            if expected.best == view.tokens.end_id:
                break
            ids.append(expected.best)

    def _write_forced(self, room: int) -> list[bytes]:
        tokens: list[bytes] = []
        for token_id in self._forced()[:room]:
            tokens.append(self._draft.append(token_id, None))
            other = self._draft.steps[-1].id != token_id  # another way to write it takes less room
            if self._rule.grown() or other:
                break
        return tokens

    def _step(self, most: int) -> list[bytes]:
        """One forward pass: a token, and as many guessed ones as prove right."""
        draft, view = self._draft, self._view
        known = len(draft.ids)
        judged = known - len(draft.steps)
        guess = self._lookup.guess(draft.ids, judged, most - 1) if self._lookup else []
        seconds, passes, read = view.seconds, view.passes, view.has_read
        ids = [*draft.ids, *guess]
        view.draft(ids, min(self._at_once, most))
        view.read(ids, known)
        tokens: list[bytes] = []
        right, wrong = 0, False
        for i in range(len(guess) + 1):
            (expected,) = view.expected(ids[: known + i], known + i)
            tokens.append(draft.append(self._rule.pick(expected), expected))
            wrong = i < len(guess) and guess[i] != draft.steps[-1].id
            right += i < len(guess) and not wrong
            rewritten = self._rule.grown()
            if tokens[-1] == END or wrong or rewritten or self._forced():
                break
        if read and self._lookup and view.passes > passes:
            seconds = view.seconds - seconds
            self._lookup.learn(len(guess), right, wrong, seconds, view.row_seconds)
        return tokens

    def _forced(self) -> list[int]:
        """The only ids that may come next, up to where a token may cross; none where any may."""
        cursor, tokens, draft = self._view.cursor, self._view.tokens, self._draft
        if cursor is None:
            return []
        if cursor.finished(draft.ids):
            return [tokens.end_id]
        forced = cursor.forced(draft.ids)
        if not forced:
            return []
        kept = max(0, tokens.settled(draft.text + forced) - len(draft.text))
        return tokens.encode(forced[:kept])

    def _probabilities(self, last: int) -> Iterator[float]:
        """What the drafter gave the last tokens of the draft, forced ones left out."""
        steps = self._draft.steps[max(0, len(self._draft.steps) - last) :]
        return (exp(logprobs_of(s.expected, [s.id], "most")[0]) for s in steps if s.expected)
