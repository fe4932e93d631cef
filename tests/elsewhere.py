"""A member that computes elsewhere: any model as one behind a server that answers when it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from safe_integrations.engine.model import Distribution, Member, Session, Work, never

ANSWER = 10
"""Bytes of an answer, as its sessions count them."""


class RemoteMember:
    """A member whose sessions compute in threads of their own.

    Attributes:
        requests: What was asked for, in order: `score` or `draft`, and behind how many ids.
        dropped: How many answers nobody waited for.
    """

    def __init__(self, member: Member) -> None:
        self.name = member.name
        self.tokens = member.tokens
        self.context_window = member.context_window
        self.render = member.render
        self.reason = getattr(member, "reason", None)
        self.limits = replace(member.limits, remote=True)
        self.requests: list[tuple[str, int]] = []
        self.dropped = 0
        self.member: Any = member

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> _Session:
        """Opens a session."""
        return _Session(self, self.member.start(prompt, cancel))


class _Pending:
    def __init__(self, member: RemoteMember, future: Future[Any]) -> None:
        self._member, self._future = member, future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result(timeout=60)

    def cancel(self) -> None:
        self._member.dropped += 1
        self._future.cancel()


class _Session:
    def __init__(self, member: RemoteMember, session: Session) -> None:
        self._member, self._session = member, session
        self._pool = ThreadPoolExecutor(1)

    @property
    def work(self) -> Work:
        return self._session.work

    def score(self, ids: Sequence[int], since: int) -> Sequence[Distribution]:
        rows: Sequence[Distribution] = self.begin(ids, since).result()
        return rows

    def begin(self, ids: Sequence[int], since: int) -> _Pending:
        self._member.requests.append(("score", len(ids)))
        return self._ask(self._session.score, list(ids), since)

    def draft(self, ids: Sequence[int], count: int) -> _Pending:
        self._member.requests.append(("draft", len(ids)))
        return self._ask(self._write_on, list(ids), count)

    def _write_on(self, ids: list[int], count: int) -> tuple[list[int], list[Distribution]]:
        drafted: list[int] = []
        rows: list[Distribution] = []
        while len(drafted) < count and self._member.tokens.end_id not in drafted:
            rows += self._session.score([*ids, *drafted], len(ids) + len(drafted))
            drafted.append(rows[-1].best)
        return drafted, rows

    def _ask(self, answer: Callable[..., Any], *args: Any) -> _Pending:
        self.work.requests += 1
        self.work.received += ANSWER
        return _Pending(self._member, self._pool.submit(answer, *args))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._session.close()
