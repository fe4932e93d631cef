"""A member that tells only the best ids of another one's rows: any model as a served one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.model import Distribution, Limits, Member, Session, Work, never


class TruncatedMember:
    """A member that tells only the best ids of another one's rows, as served models do.

    Args:
        member: The model itself; its rows must be `Dense`.
        top: How many ids of a row it tells.
        ids: How many ids one question may ask for; None for any number.

    Attributes:
        asked: How many ids it was asked for again, one entry per question.
        among: Of how many ids it was asked for the best, one entry per question.
    """

    def __init__(self, member: Member, top: int, *, ids: int | None = None) -> None:
        self.name = member.name
        self.tokens = member.tokens
        self.context_window = member.context_window
        self.render = member.render
        self.limits = Limits(top=top, ids=ids)
        self.asked: list[int] = []
        self.among: list[int] = []
        self._member = member

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> TruncatedSession:
        """Opens a session."""
        return TruncatedSession(self, self._member.start(prompt, cancel))

    def truncated(self, row: Distribution) -> TopDistribution:
        """What it tells of a row."""

        def ask(token_ids: Sequence[int]) -> list[float]:
            assert len(set(token_ids)) == len(token_ids) > 0
            most = self.limits.ids or len(token_ids)
            parts = [token_ids[at : at + most] for at in range(0, len(token_ids), most)]
            self.asked += map(len, parts)
            return [value for part in parts for value in row.logprobs(part)]

        def among(token_ids: Sequence[int]) -> dict[int, float]:
            assert len(set(token_ids)) == len(token_ids) > 0
            self.among.append(len(token_ids))
            flags = np.zeros(self.tokens.size, np.float32)
            flags[token_ids] = 1
            best = row.best_among(flags)
            return {} if best is None else {best: row.logprobs([best])[0]}

        assert self.limits.top is not None
        best = row.top(self.limits.top)
        return TopDistribution(best, row.logprobs(best), ask, among)


class TruncatedSession:
    """A truncated member at work: another session, of whose rows only the top is told."""

    def __init__(self, member: TruncatedMember, session: Session) -> None:
        self._member = member
        self._session = session

    @property
    def work(self) -> Work:
        """What the session behind it has computed."""
        return self._session.work

    def score(self, ids: Sequence[int], since: int) -> Sequence[TopDistribution]:
        """The best ids after each prefix; any other id is a question of its own."""
        return [self._member.truncated(row) for row in self._session.score(ids, since)]

    def close(self) -> None:
        """Closes the session behind it."""
        self._session.close()
