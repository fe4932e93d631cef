"""Which rows a forward pass computes: those of all sessions of a model that wait for one.

The price of a pass is that of reading the weights, and for a few more rows it is hardly higher. So
sessions share passes, by group commit: while one pass runs, others queue, and the next takes all
that wait for its model. Whichever thread is first in the queue computes for all: there are no
threads but the callers', and a caller who is alone computes as if there was no queue.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from time import perf_counter
from typing import Final, Protocol

from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.openmp import send_team_home

ROWS_ALONE: Final = 256
"""Rows of a long prompt to compute at a time for a session that nobody waits beside.

What a pass needs beside weights and caches grows with its length, attention masks with the square.
Models with sliding windows even get faster: most of a long prompt's mask is outside of the window.
Between two parts a prefill can be cancelled, and other sessions get their turn.
"""

ROWS_TOGETHER: Final = 64
"""Rows of a pass on a CPU that several sessions share: they all wait for it."""

_PATIENCE: Final = 0.3
"""How long a pass waits for those whom the last one has answered, as a share of its time.

They have a millisecond or so to do before they ask again, one after the other. A pass that did not
wait would find the first of them, and leave the others to the next.
"""

_MOST_PATIENCE: Final = 0.05
"""The same in seconds, at most: what is done between two passes is no more for a large model."""

_PASSED_OVER: Final = 4
"""Passes after which who waits for another model is next, however few wait with him."""

_GLANCE: Final = 0.05
"""Seconds between two looks at whether to stop, for whoever waits."""

_LONG: Final = 0.2
"""Seconds from which on a pass is worth being stopped before it ends."""

_MEMORY: Final = 0.98
_FEW: Final = 8


class Price:
    """What a pass of a model takes: a line over its rows, through what was measured lately."""

    def __init__(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * 5

    def learn(self, rows: int, seconds: float) -> None:
        """Takes in one pass."""
        values = (1, rows, seconds, rows * rows, rows * seconds)
        pairs = zip(self._sums, values, strict=True)
        self._sums = tuple(_MEMORY * old + new for old, new in pairs)

    @property
    def row(self) -> float:
        """Seconds that one more row takes; 0 while little is known."""
        count, rows, seconds, squares, products = self._sums
        spread = squares * count - rows * rows
        if count < _FEW or spread < count:
            return 0.0
        return max(0.0, (products * count - rows * seconds) / spread)

    def of(self, rows: int) -> float | None:
        """Seconds that so many rows take, at most; None while nothing is known."""
        count, sum_of_rows, seconds, *_ = self._sums
        if not count:
            return None
        row = self.row or seconds / sum_of_rows
        return (seconds + row * max(0.0, rows * count - sum_of_rows)) / count


class Model(Protocol):
    """What computes passes."""

    @property
    def price(self) -> Price:
        """What its passes take."""
        ...

    @property
    def shares(self) -> bool:
        """Whether one pass can compute rows of several sessions."""
        ...

    @property
    def rows_alone(self) -> int:
        """Most rows of a pass for one session."""
        ...

    @property
    def rows_together(self) -> int:
        """Most rows of a pass for several."""
        ...

    @property
    def stop(self) -> Callable[[], None] | None:
        """Has the pass that is being computed end early; None where nothing can end it."""
        ...

    def compute(self, parts: Sequence[Part]) -> None:
        """One pass over the first `taken` rows of each part; it may be asked for them again.

        Raises:
            GenerationCancelled: It was stopped.
        """
        ...


class Part:
    """Rows that one session wants to have computed.

    Args:
        model: Who computes.
        rows: How many rows there are.
        wanted: How many of the last ones must be in one pass: the caller asks for their results.
        cancel: Asked again and again, while they wait and while they are computed, whether nobody
            wants them any more.

    Attributes:
        taken: How many of them the pass has taken, from the first on. The rest is to be asked for
            again.
        seconds: Wall time of the pass. Of one that was shared, what these rows cost, and an equal
            part of the rest.
    """

    def __init__(
        self, model: Model, rows: int, wanted: int, cancel: Callable[[], bool] = never
    ) -> None:
        self.model = model
        self.rows = rows
        self.wanted = wanted
        self.cancel = cancel
        self.taken = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self.done = False
        self.gone = False  # nobody waits for it any more
        self.passed_over = 0
        self.caller = threading.get_ident()
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        """Wakes its caller up, if he sleeps, or is about to. The caller holds the queue's lock."""
        if self.woken.locked():
            self.woken.release()

    def fit(self, room: int) -> int:
        """How many of its rows a pass can take that has room for so many."""
        return self.rows if self.rows <= room else max(0, min(room, self.rows - self.wanted))


class Passes:
    """The passes of one device, one at a time.

    Args:
        step_aside: Called by a thread before it leaves the device to another one.
    """

    def __init__(self, step_aside: Callable[[], None] = lambda: None) -> None:
        self._step_aside = step_aside
        self._lock = threading.Lock()
        self._all_are_back = threading.Condition(self._lock)
        self._waiting: list[Part] = []
        self._chosen: list[Part] = []  # for the pass that is being computed
        self._leader: Part | None = None  # whose thread computes
        self._answered: set[int] = set()  # threads that will ask again, most likely
        self._last_leader = 0
        self._seconds = 0.0  # of the last pass

    def run(self, part: Part) -> None:
        """Has a part computed, in a pass of its own or with others; returns when it is.

        Raises:
            GenerationCancelled: `cancel` said so; the part may still be computed meanwhile.
            Exception: What the model raises for this part alone. Others never see it.
        """
        try:
            with self._lock:
                self._waiting.append(part)
                self._is_back(part.caller)
                if self._leader is None:
                    self._leader = part
            while not part.done:
                if self._leader is not part:
                    self._step_aside()
                    while not part.woken.acquire(timeout=_GLANCE):
                        if part.cancel():
                            raise GenerationCancelled
                if self._leader is part:
                    self._compute(part)
                    self._hand_over(part)
        finally:  # Ctrl-C comes here, too, out of any line above
            try:
                self._go(part)
            except KeyboardInterrupt:  # others would wait for ever for who left in the middle
                self._go(part)
                raise
        if part.error is not None:
            raise part.error

    def leave(self) -> None:
        """Told by a thread that will not ask again, so that no pass waits for it.

        It never waits itself: the garbage collector may close a session at any time.
        """
        self._step_aside()
        if self._lock.acquire(blocking=False):
            try:
                self._is_back(threading.get_ident())
            finally:
                self._lock.release()

    def _is_back(self, caller: int) -> None:
        """The caller holds the lock."""
        self._answered.discard(caller)
        if not self._answered:
            self._all_are_back.notify()

    def _compute(self, ours: Part) -> None:
        """A pass, by the thread that leads."""
        with self._lock:
            patience = min(_PATIENCE * self._seconds, _MOST_PATIENCE)
            self._all_are_back.wait_for(lambda: not self._answered, patience)
            self._answered.clear()
            self._choose()
        started = perf_counter()
        try:
            self._try(self._chosen)
        except Exception:
            for part in self._chosen:  # whose fault it is shows alone
                self._try([part])
        self._seconds = perf_counter() - started
        if self._waiting or self._last_leader != ours.caller:
            self._step_aside()
        self._last_leader = ours.caller

    def _try(self, parts: Sequence[Part]) -> None:
        model, started = parts[0].model, perf_counter()
        try:
            if model.stop is None or _is_short(parts):
                model.compute(parts)
            else:
                _compute_until_stopped(parts, model.stop)
        except GenerationCancelled:
            for part in parts:
                part.error = GenerationCancelled()
        except Exception as error:
            if len(parts) > 1:
                raise
            parts[0].error = error
        seconds, rows = perf_counter() - started, sum(part.taken for part in parts)
        if parts[0].error is None and all(p.taken <= p.wanted and not p.gone for p in parts):
            # most of a prompt's rows are cheaper; those of who is gone may not have been computed
            model.price.learn(rows, seconds)
        row = min(model.price.row, seconds / rows)
        for part in parts:
            part.seconds = row * part.taken + (seconds - row * rows) / len(parts)
            part.done = True

    def _choose(self) -> None:
        """Takes those out of the queue that the next pass computes: for the model that most want.

        The caller holds the lock.
        """
        asked = Counter(id(part.model) for part in self._waiting)
        first, *others = sorted(
            self._waiting,
            key=lambda p: (
                (-p.passed_over, 0) if p.passed_over >= _PASSED_OVER else (0, -asked[id(p.model)])
            ),
        )
        others = [p for p in others if p.model is first.model and first.model.shares]
        model = first.model
        first.taken = first.fit(model.rows_together if others else model.rows_alone) or first.rows
        parts, room = [first], model.rows_together - first.taken
        for part in others:
            part.taken = part.fit(room)
            if part.taken > 0:
                parts.append(part)
                room -= part.taken
        for part in self._waiting:
            part.passed_over += part not in parts
        self._chosen, self._waiting = parts, [p for p in self._waiting if p not in parts]

    def _hand_over(self, part: Part) -> None:
        """Ends a pass and has another thread lead, if this one does.

        May be done again where Ctrl-C broke in: waking somebody once more does no harm.
        """
        with self._lock:
            if self._leader is part:
                for chosen in self._chosen:
                    if chosen.done and not chosen.gone:
                        self._answered.add(chosen.caller)
                        chosen.wake()
                left = [p for p in self._chosen if not (p.done or p.gone)]  # they go first again
                self._chosen, self._waiting = [], left + self._waiting
                self._leader = self._waiting[0] if self._waiting else None
            if self._leader is not None:
                self._leader.wake()

    def _go(self, part: Part) -> None:
        """Leaves nothing behind of a part: its caller does not wait any more."""
        part.gone = True
        with self._lock:
            if part in self._waiting:
                self._waiting.remove(part)
        self._hand_over(part)


def _is_short(parts: Sequence[Part]) -> bool:
    rows = sum(part.taken for part in parts)
    expected = parts[0].model.price.of(rows)
    return rows <= _FEW if expected is None else expected < _LONG


def _compute_until_stopped(parts: Sequence[Part], stop: Callable[[], None]) -> None:
    """A pass in another thread, which leaves this one to look whether it is still wanted.

    Ctrl-C stops it, too: a thread that is in a library would not hear of it before the end.
    """
    computed: Future[None] = Future()

    def compute() -> None:
        if computed.set_running_or_notify_cancel():
            try:
                parts[0].model.compute(parts)
            except BaseException as error:
                computed.set_exception(error)
            else:
                computed.set_result(None)

    worker = threading.Thread(target=compute, name="forward pass", daemon=True)
    send_team_home()
    try:
        worker.start()
        while worker.is_alive():
            worker.join(_GLANCE)
            if all(part.gone or part.cancel() for part in parts):
                stop()
    except BaseException:
        try:
            _end(computed, stop)
        except BaseException:  # others would compute at the same time
            _end(computed, stop)
        raise
    computed.result()


def _end(computed: Future[None], stop: Callable[[], None]) -> None:
    """Returns when nobody computes any more; a thread that was to begin never does."""
    while not (computed.cancel() or computed.done()):
        stop()
        wait([computed], _GLANCE)


_devices: Final[dict[str, Passes]] = {}


def passes_on(device: str) -> Passes:
    """The passes of a device: what several models compute there would stall one another."""
    return _devices.setdefault(device, Passes(send_team_home))


if hasattr(os, "register_at_fork"):  # nobody in a forked process will end the passes of its parent
    os.register_at_fork(after_in_child=_devices.clear)
