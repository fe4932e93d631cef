"""A member that tells only the best ids of another one's rows: any model as a served one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.model import Distribution, Limits, Member, Session, Work, never


class TruncatedMember:
    """A member that tells only the best ids of another one's rows, as served models do.

    Args:
        member: The model itself; its rows must be `Dense`.
        top: How many ids of a row it tells.

    Attributes:
        asked: How many ids it was asked for again, one entry per question.
    """

    def __init__(self, member: Member, top: int) -> None:
        self.name = member.name
        self.tokens = member.tokens
        self.context_window = member.context_window
        self.render = member.render
        self.limits = Limits(top=top)
        self.asked: list[int] = []
        self._member = member

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> TruncatedSession:
        """Opens a session."""
        return TruncatedSession(self, self._member.start(prompt, cancel))


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
        return [self._truncated(row) for row in self._session.score(ids, since)]

    def close(self) -> None:
        """Closes the session behind it."""
        self._session.close()

    def _truncated(self, row: Distribution) -> TopDistribution:
        def ask(token_ids: Sequence[int]) -> list[float]:
            self._member.asked.append(len(token_ids))
            return row.logprobs(token_ids)

        assert self._member.limits.top is not None
        best = row.top(self._member.limits.top)
        return TopDistribution(best, row.logprobs(best), ask)
