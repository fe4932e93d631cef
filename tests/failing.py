"""A server that is gone after some questions: what `on_missing` is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from elsewhere import RemoteMember

from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.distribution import TopDistribution
from safe_integrations.engine.model import Distribution, Session, Work, never
from safe_integrations.errors import ServerError
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

TEXT = b"one two three four five six seven eight nine ten"
PROBLEM = ("the connection was closed", "start it again", 502)
"""What its error says."""


@dataclass
class Server:
    """What computes a member, as long as it is there.

    Attributes:
        member: The member.
        last: Questions that it answers; all others fail.
        asked: Questions so far.
    """

    member: Any
    last: float = inf
    asked: int = 0
    sessions: list[_Session] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.member, name)

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> _Session:
        self.sessions.append(_Session(self, self.member.start(prompt, cancel)))
        return self.sessions[-1]

    def ask(self) -> None:
        self.asked += 1
        if self.asked > self.last:
            raise ServerError(self.member.name, *PROBLEM)


class _Session:
    def __init__(self, server: Server, session: Session) -> None:
        self._server, self._session, self.closed = server, session, 0

    @property
    def work(self) -> Work:
        return self._session.work

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        self._server.ask()
        rows = self._session.score(ids, since)
        for row in rows:
            if isinstance(row, TopDistribution):
                row._ask = self._counted(row._ask)
        return rows

    def _counted(self, question: Any) -> Any:
        def ask(ids: Sequence[int]) -> Any:
            self._server.ask()
            return question(ids)

        return ask

    def close(self) -> None:
        self.closed += 1
        self._session.close()


class Refuses(RemoteMember):
    """Its server fails at once, not when the answer is waited for."""

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> Any:
        session = super().start(prompt, cancel)
        begin = session.begin

        def begin_or_refuse(ids: Sequence[int], since: int) -> Any:
            if self.member.asked >= self.member.last:
                self.member.ask()
            return begin(ids, since)

        session.begin = begin_or_refuse  # type: ignore[method-assign]
        return session


def served(*last: float, sure: float = 0.6, name: str = "v", **window: Any) -> list[Server]:
    """A drafter that is always there, and verifiers that answer so many questions."""
    words = [word + b" " for word in TEXT.split()]
    drafter = ScriptedMember("drafter", words[::2], follows(TEXT, sure=sure))
    verifiers = [ScriptedMember(name, words[1::2], follows(TEXT), **window) for _ in last]
    return [Server(drafter), *map(Server, verifiers, last)]


def engine_of(servers: Sequence[Server], kind: Any = RemoteMember, **config: Any) -> SafeEngine:
    members: list[Any] = [kind(server) for server in servers]
    return SafeEngine(members[0], members[1:], EnsembleConfig(**config))
