"""A queue of forward passes whose device can be held, and models that compute nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models.passes import ROWS_TOGETHER, Part, Passes, Price

PATIENCE = 20
"""Seconds until something hangs."""


def until(true: Callable[[], bool]) -> None:
    """Waits for something."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.0005)


class Fake:
    """Computes nothing, keeps what it was asked for, and does what it is told meanwhile."""

    def __init__(self, log: list[list[tuple[str, int]]], *, shares: bool = True) -> None:
        self.log = log
        self.shares = shares
        self.rows_alone = 256
        self.rows_together = ROWS_TOGETHER
        self.price = Price()
        self.stop: Callable[[], None] | None = None
        self.within: Callable[[Sequence[Ask]], None] = lambda parts: None

    def compute(self, parts: Sequence[Any]) -> None:
        self.log.append([(part.name, part.taken) for part in parts])
        assert all(part.model is self for part in parts)
        self.within(parts)
        for part in parts:
            part.computed.append(part.taken)


class _Long(Price):
    def of(self, rows: int) -> float:
        return 1.0


class Slow(Fake):
    """Its passes take until they may end, or are stopped."""

    def __init__(self, log: list[list[tuple[str, int]]]) -> None:
        super().__init__(log)
        self.price = _Long()
        self.entered = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.stopped = threading.Event()
        self.stop = self.stopped.set
        self.at_once = self.most_at_once = 0

    def compute(self, parts: Sequence[Any]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.stopped.clear()
            self.log.append([(part.name, part.taken) for part in parts])
            self.entered.release()
            self.within(parts)
            until(lambda: self.stopped.is_set() or self.may_end.is_set())
            if self.stopped.is_set():
                raise GenerationCancelled
            for part in parts:
                part.computed.append(part.taken)
        finally:
            self.at_once -= 1


class Ask(Part):
    """Rows with a name."""

    def __init__(
        self,
        model: Fake,
        name: str,
        rows: int = 1,
        wanted: int = 1,
        cancel: Callable[[], bool] = never,
    ) -> None:
        super().__init__(model, rows, wanted, cancel)
        self.name = name
        self.computed: list[int] = []


class Desk:
    """A queue whose device can be held, so that it is known who waits, and in which order."""

    def __init__(self) -> None:
        self.passes = Passes()
        self.log: list[list[tuple[str, int]]] = []
        self.threads: list[threading.Thread] = []
        self.errors: dict[str, BaseException] = {}

    def model(self, *, shares: bool = True) -> Fake:
        return Fake(self.log, shares=shares)

    def slow(self) -> Slow:
        return Slow(self.log)

    def start(self, work: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def ask(self, part: Ask) -> None:
        """Has a thread of its own ask, and waits until it is in the queue."""

        def run() -> None:
            part.caller = threading.get_ident()
            try:
                self.passes.run(part)
            except BaseException as error:
                self.errors[part.name] = error
            self.passes.leave()

        count = len(self.passes._waiting)
        self.start(run)
        until(lambda: len(self.passes._waiting) > count or part.done)

    def hold(self) -> threading.Event:
        """Holds the device until the event is set."""
        model, entered, opened = Fake([]), threading.Event(), threading.Event()

        def within(_: object) -> None:
            entered.set()
            assert opened.wait(PATIENCE)

        def run() -> None:
            self.passes.run(Ask(model, "holds"))
            self.passes.leave()

        model.within = within
        self.start(run)
        assert entered.wait(PATIENCE)
        return opened

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is computed meanwhile, besides what holds the device."""
        opened = self.hold()
        try:
            yield
        finally:
            opened.set()

    def ended(self) -> list[list[tuple[str, int]]]:
        """All passes, once all have left."""
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "somebody waits for ever"
        assert self.passes._leader is None
        assert self.passes._waiting == self.passes._chosen == []
        return self.log

    def names(self) -> list[str]:
        return ["".join(name for name, _ in parts) for parts in self.ended()]
