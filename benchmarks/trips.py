"""Requests to servers: what they carried, how long they took, and how long they were waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from benchmarks.measure import Clock
from safe_integrations.engine.model import Member
from safe_integrations.models.served.client import Asked, Client, Reply


@dataclass(slots=True)
class Trip:
    """One request.

    Attributes:
        model: Name of the model that was asked.
        sent: Bytes of the request.
        received: Bytes of the answer; 0 where nobody wanted it any more.
        seconds: From when it was sent for until its answer had come; None where that is so.
        waited: Seconds in which nothing else was done.
    """

    model: str
    sent: int
    received: int = 0
    seconds: float | None = None
    waited: float = 0.0


@contextmanager
def noting_trips(members: Iterable[Member], clock: Clock) -> Iterator[list[Trip]]:
    """A list of all requests of some members from now on, complete at the end.

    Members that compute here are left out.
    """
    noted: list[Trip] = []
    with ExitStack() as stack:
        for member in members:
            client = getattr(member, "client", None)
            if isinstance(client, Client):
                begin = _noting(client.begin, member.name, noted, clock)
                stack.enter_context(patch.object(client, "begin", begin))
        yield noted


def _noting(
    begin: Callable[..., Asked], model: str, noted: list[Trip], clock: Clock
) -> Callable[..., Any]:
    def asked(url: str, body: str | None = None, *more: Any) -> _Noted:
        trip = Trip(model, len(body or ""))
        noted.append(trip)
        return _Noted(begin(url, body, *more), trip, clock)

    return asked


class _Noted:
    """A request that is on its way, as `Asked` is."""

    def __init__(self, asked: Asked, trip: Trip, clock: Clock) -> None:
        self._asked = asked
        self._trip = trip
        self._clock = clock
        self.done: Final = asked.done
        self.cancel: Final = asked.cancel

    def result(self) -> Reply:
        started = self._clock()
        reply = self._asked.result()
        trip = self._trip
        trip.waited, trip.seconds, trip.received = (
            self._clock() - started,
            reply.seconds,
            reply.size,
        )
        return reply
