"""One thread computes for all: who asks at the same time shares a forward pass.

Which sessions share a pass is not planned, and nobody waits for others to come: while one pass
runs, sessions queue, and the next pass takes all that wait. One alone has every pass to itself.

It is one thread, because OpenMP keeps a team of threads for each thread that has work for it, and
teams that wait for work by spinning take the cores from the one that has some. And because whoever
waits for it is free to look whether to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from safe_integrations.errors import GenerationCancelled

_ASK: Final = 0.05
"""Seconds between two questions whether to stop, while one waits for a pass."""

_IDLE: Final = 2.0
"""Seconds after which a thread without work ends."""


class Task:
    """What one caller wants computed, and waits for.

    Attributes:
        result: What came out, once it is done.
        error: Why nothing did.
        cancelled: Whether nobody wants it any more.
    """

    def __init__(self, computer: Computer, weight: int) -> None:
        self.computer: Final = computer
        self.weight: Final = weight
        self.result: Any = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.done: Final = threading.Lock()
        self.done.acquire()


class Errand(Task):
    """A task that shares no pass: a function to be called while no pass runs."""

    def __init__(self, computer: Computer, function: Callable[[], Any]) -> None:
        super().__init__(computer, 0)
        self.function: Final = function


class Computer(Protocol):
    """What computes the tasks that are given to it.

    Attributes:
        room: Most that the weights of several tasks may sum to that share a pass.
    """

    room: int

    def compute(self, tasks: Sequence[Any]) -> None:
        """One pass for all tasks; leaves each its result.

        Raises:
            Exception: No task has a result.
        """
        ...

    def stop(self, yes: bool) -> None:
        """Makes the pass that runs end early, or lets passes run."""
        ...


class Passes:
    """A queue of tasks, and the thread that does them."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: list[Task] = []
        self._running: list[Task] = []
        self._thread: threading.Thread | None = None

    def do(self, task: Task, cancel: Callable[[], bool]) -> Any:
        """Has a task done, and waits for it.

        Args:
            task: The task.
            cancel: Asked again and again meanwhile whether to stop.

        Raises:
            GenerationCancelled: It said yes; nobody computes the task any more.
            Exception: What the task failed with.
        """
        with self._changed:
            self._waiting.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="llama.cpp", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            while not task.done.acquire(timeout=_ASK):
                if cancel():
                    raise GenerationCancelled("the generation was cancelled")
        except BaseException:
            self._give_up(task)
            raise
        if task.error is not None:
            raise task.error
        return task.result

    def call(self, computer: Computer, function: Callable[[], Any]) -> Any:
        """Calls a function while no pass of a computer runs."""
        return self.do(Errand(computer, function), lambda: False)

    def _give_up(self, task: Task) -> None:
        """Takes a task back. When it returns, nobody computes it."""
        with self._changed:
            task.cancelled = True
            if task in self._waiting:
                self._waiting.remove(task)
                return
            if self._running and all(other.cancelled for other in self._running):
                task.computer.stop(True)
        with task.done:
            pass

    def _work(self) -> None:
        while tasks := self._next():
            try:
                _compute(tasks)
            finally:
                with self._changed:
                    self._running = []
                    tasks[0].computer.stop(False)
                for task in tasks:
                    task.done.release()
                del tasks, task  # what they hold need not wait for the next ones

    def _next(self) -> list[Task]:
        """The first task that waits, and all that fit beside it; none where none comes."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, _IDLE):
                self._thread = None
                return []
            first = self._waiting[0]
            weight, tasks = first.weight, [first]
            for task in self._waiting[1:] if not isinstance(first, Errand) else ():
                fits = weight + task.weight <= first.computer.room
                if task.computer is first.computer and fits and not isinstance(task, Errand):
                    weight += task.weight
                    tasks.append(task)
            self._waiting = [task for task in self._waiting if task not in tasks]
            self._running = tasks
            return list(tasks)


def _compute(tasks: list[Task]) -> None:
    """Does tasks; where they fail together, each fails or succeeds by itself."""
    first = tasks[0]
    try:
        if isinstance(first, Errand):
            first.result = first.function()
        else:
            first.computer.compute(tasks)
    except BaseException as error:
        if len(tasks) == 1:
            first.error = error
        else:
            for task in tasks:
                _compute([task])
