"""Which answers are in flight: those whose KV caches have room; the others wait in order.

An answer reserves memory for all its models at once, before it computes anything. So engines that
use the same models in other roles never wait for one another in a circle, and none runs out of
memory half-way. It waits behind those that came before it and want one of its models, no others.

A reservation is given back by whoever lets go of an answer, which may be the garbage collector, at
any time and in any thread. So giving back waits for nothing: what ended is put in a queue, and
counted out by the next who looks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from math import inf
from time import monotonic
from typing import Final

from safe_integrations.engine.events import Event, Finished
from safe_integrations.errors import GenerationCancelled

_GLANCE: Final = 0.05
"""Seconds between two looks at whether to stop waiting."""

_PATIENCE: Final = 1.0
"""Seconds that an answer may rest in its caller's hands before it counts as left there.

A caller may be waiting himself: for the answer that waits for his first one to end.
"""


class Memory:
    """Memory for the KV caches of one model's answers in flight.

    Args:
        limit: In bytes. None takes half of what is free when it is first needed, or as many parts
            of that as the answer that needs it has models.
        free: Bytes that can still be taken where the model computes; None where nobody knows, and
            then there is no limit.
        positions: For how many positions a cache of so many tokens has room.
        position_bytes: Memory of one position.

    Attributes:
        position_bytes: To be set anew where a cache shows that it is another number.
    """

    def __init__(
        self,
        limit: int | None,
        free: Callable[[], int | None],
        positions: Callable[[int], int],
        position_bytes: int,
    ) -> None:
        self.position_bytes = position_bytes
        self._limit: float | None = limit
        self._free = free
        self._positions = positions

    def holds(self, caches: Collection[int], models: int) -> bool:
        """Whether caches of so many tokens each have room; an answer of so many models asks."""
        if self._limit is None:
            free = self._free()
            self._limit = inf if free is None else free / 2 / models
        return sum(map(self._positions, caches)) * self.position_bytes <= self._limit


def in_turn(
    caches: Sequence[tuple[Memory, int]],
    events: Generator[Event, None, None],
    cancel: Callable[[], bool],
) -> Generator[Event, None, None]:
    """Hands an answer's events on, once there is room for its caches.

    Where all who have the room have left their answers alone for a second, it is not waited for any
    longer: they may go on only when this answer is there.

    Args:
        caches: What the answer needs: for each model with limited memory, the most tokens that its
            cache will hold.
        events: The answer. It computes nothing before its first event is asked for.
        cancel: Asked while waiting whether to stop.

    Returns:
        The same events. `Statistics` tell how long they were waited for.

    Raises:
        GenerationCancelled: `cancel` has said yes.
    """
    return _follow(_Answer(caches), events, cancel) if caches else events


def _follow(
    answer: _Answer, events: Generator[Event, None, None], cancel: Callable[[], bool]
) -> Generator[Event, None, None]:
    try:
        with closing(events):
            waited = answer.wait(cancel)
            for event in events:
                if isinstance(event, Finished):
                    event.statistics.add_wait(waited)
                answer.resting_since = monotonic()
                yield event
                answer.resting_since = inf
    finally:
        answer.end()


class _Answer:
    """One answer, in the queue or in flight."""

    def __init__(self, caches: Sequence[tuple[Memory, int]]) -> None:
        self.caches: dict[Memory, list[int]] = {}  # a model may be there twice
        for memory, tokens in caches:
            self.caches.setdefault(memory, []).append(tokens)
        self.resting_since = inf
        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self, cancel: Callable[[], bool]) -> float:
        """Returns when it is this answer's turn, and how many seconds that took."""
        begun = monotonic()
        with _lock:
            _waiting.append(self)
            if self._begins():
                return 0.0
        while True:
            if cancel():
                raise GenerationCancelled
            self._woken.acquire(timeout=_GLANCE)
            with _lock:
                if self._begins():
                    return monotonic() - begun

    def _begins(self) -> bool:
        """Whether it is its turn; then it is in flight. The caller holds the lock."""
        _count_out()
        for earlier in _waiting[: _waiting.index(self)]:
            if not self.caches.keys().isdisjoint(earlier.caches):
                return False
        if not all(self._fits(memory, own) for memory, own in self.caches.items()):
            return False
        _waiting.remove(self)
        _in_flight.append(self)
        _wake_all()  # those behind it
        return True

    def _fits(self, memory: Memory, own: Sequence[int]) -> bool:
        others = [answer for answer in _in_flight if memory in answer.caches]
        held = [tokens for answer in others for tokens in answer.caches[memory]]
        if memory.holds([*held, *own], len(self.caches)):
            return True
        left = monotonic() - _PATIENCE
        return all(answer.resting_since < left for answer in others)  # or there are none

    def end(self) -> None:
        """Gives its place back, wherever that is. It never waits."""
        _ended.append(self)
        if _lock.acquire(blocking=False):
            try:
                _count_out()
            finally:
                _lock.release()
        _wake_all()

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is awake already
            self._woken.release()


_lock: Final = threading.Lock()
_waiting: Final[list[_Answer]] = []
_in_flight: Final[list[_Answer]] = []
_ended: Final[deque[_Answer]] = deque()


def _count_out() -> None:
    """Takes those that have ended from where they were. The caller holds the lock."""
    while _ended:
        answer = _ended.popleft()
        for place in (_waiting, _in_flight):
            if answer in place:
                place.remove(answer)


def _wake_all() -> None:
    for answer in tuple(_waiting):
        answer.wake()
