"""Threads that stop waiting for their pass, by Ctrl-C or an error: the others never notice."""

from __future__ import annotations

import linecache
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest

from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled
from safe_integrations.models import passes as module
from safe_integrations.models.passes import ROWS_TOGETHER, Passes
from tests.desk import PATIENCE, Ask, Desk, Fake, Slow, until


@pytest.fixture
def desk() -> Desk:
    """Empty."""
    return Desk()


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends it to this thread; a shell that runs tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None and main == threading.get_ident()
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("shared", [False, True])
def test_ctrl_c_in_the_thread_that_computes(
    desk: Desk, ctrl_c: Callable[[], None], shared: bool
) -> None:
    """Alone, while others wait; and for them, too."""
    model, opened = desk.model(), desk.hold()
    ours = Ask(model, "m")

    def others() -> None:
        until(lambda: desk.log != [] if not shared else ours in desk.passes._waiting)
        for name in "abc":
            desk.ask(Ask(model, name))
        opened.set()

    def within(parts: Sequence[Ask]) -> None:
        if ours in parts:
            assert threading.current_thread() is threading.main_thread()
            until(lambda: len(desk.passes._waiting) + len(parts) == 4)
            ctrl_c()
            until(lambda: False)

    model.within = within
    desk.start(others)
    if not shared:
        opened.set()
    with pytest.raises(KeyboardInterrupt):
        desk.passes.run(ours)
    assert desk.names() == (["mabc", "abc"] if shared else ["m", "abc"])
    assert desk.errors == {} and ours.computed == []


@pytest.mark.parametrize("shared", [False, True])
def test_ctrl_c_stops_a_long_pass(desk: Desk, ctrl_c: Callable[[], None], shared: bool) -> None:
    """For others, who were in it or wait, the next one computes."""
    model, opened = desk.slow(), desk.hold()
    ours = Ask(model, "m")

    def others() -> None:
        until(lambda: desk.log != [] if not shared else ours in desk.passes._waiting)
        for name in "abc":
            desk.ask(Ask(model, name))
        opened.set()

    def within(parts: Sequence[Ask]) -> None:
        if ours in parts:
            until(lambda: len(desk.passes._waiting) + len(parts) == 4)
            ctrl_c()
        else:
            model.may_end.set()

    model.within = within
    desk.start(others)
    if not shared:
        opened.set()
    with pytest.raises(KeyboardInterrupt):
        desk.passes.run(ours)
    assert desk.names() == (["mabc", "abc"] if shared else ["m", "abc"])
    assert desk.errors == {} and ours.computed == []
    assert model.most_at_once == 1


@pytest.mark.parametrize("computing", [False, True])
def test_ctrl_c_in_a_thread_that_waits(
    desk: Desk, ctrl_c: Callable[[], None], computing: bool
) -> None:
    """In the queue, or while another thread computes for it."""
    model, opened = desk.model(), desk.hold()
    ours = Ask(model, "m")

    def within(parts: Sequence[Ask]) -> None:
        if computing:
            assert ours in parts
            ctrl_c()
            until(lambda: ours.gone)

    def send() -> None:
        until(lambda: ours in desk.passes._waiting)
        desk.ask(Ask(model, "b"))
        if not computing:
            ctrl_c()
            until(lambda: ours not in desk.passes._waiting)
        opened.set()

    model.within = within
    desk.ask(Ask(model, "a"))
    desk.start(send)
    with pytest.raises(KeyboardInterrupt):
        desk.passes.run(ours)
    assert desk.names() == (["amb"] if computing else ["ab"])
    assert desk.errors == {}


def test_who_was_interrupted_in_a_pass_that_is_interrupted_is_not_computed_again(
    desk: Desk,
) -> None:
    """Nobody would wake up to lead: all the others would wait for ever."""
    model, ours = desk.model(), []

    def fail(parts: Sequence[Ask]) -> None:
        if not ours:
            ours.extend(parts)
            parts[1].gone = True  # as its thread does, where Ctrl-C reaches it
            raise KeyboardInterrupt

    model.within = fail
    with desk.held():
        for name in "abcd":
            desk.ask(Ask(model, name))
    # the thread of `b` would have gone; here it still waits, so it has to be told
    until(lambda: len(desk.log) == 2)
    ours[1].done = True
    ours[1].woken.release()
    assert desk.names() == ["abcd", "cd"]
    assert isinstance(desk.errors["a"], KeyboardInterrupt)


OURS = module.__file__
BELOW = {OURS, threading.__file__}


class Interrupting:
    """Raises KeyboardInterrupt in this thread, at the nth place in our module or called by it.

    Places are lines, and beginnings and ends of functions. Python looks for signals behind calls
    and at the beginning of functions: never at `try` or `except`, nor where a lock was just taken
    or released.

    Attributes:
        armed: Whether places are counted.
    """

    def __init__(self, nth: int, armed: bool) -> None:
        self.left = nth
        self.armed = armed

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        file = frame.f_code.co_filename
        if file not in BELOW or frame.f_code.co_name in ("wake", "learn", "row", "of"):
            return None
        if file != OURS and not _called_by_us(frame):
            return None
        line = linecache.getline(file, frame.f_lineno).strip()
        never = event == "line" and line.startswith(("try:", "with ", "except "))
        if never or event == "exception" or frame.f_code.co_name == "<genexpr>":
            return self
        self.left -= self.armed
        if self.left == 0 and self.armed:
            self.armed = False
            raise KeyboardInterrupt
        return self


def _called_by_us(frame: FrameType) -> bool:
    """Whether a function of `threading` starts a pass in another thread, or waits for it."""
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename in BELOW:
        if caller.f_code.co_name in ("_compute_until_stopped", "_end"):
            return frame.f_code.co_name in ("start", "join")
        caller = caller.f_back
    return False


class Scene:
    """Four threads that ask for some passes each; Ctrl-C reaches one of them somewhere.

    Args:
        nth: At which place.
        leaving: Whether it reaches it in a pass first, and then at a place on the way out.
        slow: Whether passes are computed in other threads.
    """

    def __init__(self, nth: int, leaving: bool, slow: bool) -> None:
        self.desk = Desk()
        self.model = self.desk.slow() if slow else self.desk.model()
        self.model.within = self._within
        self.interrupting = Interrupting(nth, armed=not leaving)
        self._leaving = leaving
        self._turns = 2 if slow else 3
        self._victim = 0
        self._start = threading.Barrier(4)
        self._begun = threading.Event()  # others come while the first long pass is computed
        self.desk.start(self._interrupted)
        for name in "abc":
            self._goes_on(name)

    @property
    def interrupted(self) -> bool:
        """Whether it came so far; nothing breaks off in who never computes."""
        return self.interrupting.left <= 0

    def reached(self) -> bool:
        """Whether there was such a place, or it is worth another try; all others are served."""
        self.desk.ended()
        assert self.desk.errors == {}
        self.desk.passes.run(Ask(self.model, "z"))
        assert not isinstance(self.model, Slow) or self.model.most_at_once == 1
        return self.interrupted or not self.interrupting.armed

    def _within(self, parts: Sequence[Ask]) -> None:
        if isinstance(self.model, Slow):
            self._begun.set()
            if parts[0].name == "m":
                time.sleep(0.003)
            self.model.may_end.set()
        elif self._leaving and threading.get_ident() == self._victim:
            self._first()

    def _first(self) -> None:
        self.interrupting.armed = True
        raise KeyboardInterrupt

    def _cancel(self) -> bool:
        if self._leaving and self.model.log and threading.get_ident() == self._victim:
            self._first()
        return False

    def _interrupted(self) -> None:
        self._victim = threading.get_ident()
        self._start.wait(PATIENCE)
        sys.settrace(self.interrupting)
        try:
            for _ in range(self._turns):
                self.desk.passes.run(Ask(self.model, "m", cancel=self._cancel))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
            self._begun.set()

    def _goes_on(self, name: str) -> None:
        def run() -> None:
            self._start.wait(PATIENCE)
            if isinstance(self.model, Slow):
                self._begun.wait(PATIENCE)
            for _ in range(self._turns):
                part = Ask(self.model, name)
                try:
                    self.desk.passes.run(part)
                    assert part.computed
                except BaseException as error:
                    self.desk.errors[name] = error

        self.desk.start(run)


@pytest.mark.parametrize("slow", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("leaving", [False, True], ids=["once", "again while leaving"])
def test_ctrl_c_anywhere_leaves_nobody_behind(
    leaving: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At all places, one after another."""
    monkeypatch.setattr(module, "_GLANCE", 0.001)
    nth = 1
    while (scene := Scene(nth, leaving, slow)).reached():
        nth += scene.interrupted
    assert nth > (12 if leaving else 40)


class Crowd:
    """Threads whose answers fail, are cancelled, are interrupted and leave at random."""

    def __init__(self, seed: int) -> None:
        self.passes = Passes()
        self.outcomes: Counter[str] = Counter()
        self._seed = seed
        self._dice = random.Random(seed)
        self._busy = threading.Lock()
        self._models = [Fake([], shares=nth < 2) for nth in range(3)]
        slow = Slow([])
        slow.may_end.set()
        self._models.append(slow)
        for model in self._models:
            model.within = self._within

    def _within(self, parts: Sequence[Ask]) -> None:
        if not self._busy.acquire(blocking=False):
            self.outcomes["two passes at the same time"] += 1
            return
        try:
            if len(parts) > 1 and sum(part.taken for part in parts) > ROWS_TOGETHER:
                self.outcomes["too many rows"] += 1
            time.sleep(self._dice.choice([0, 0, 0.0005]))
            if self._dice.random() < 0.04:
                raise KeyboardInterrupt
            if any(part.name == "bad" for part in parts):
                raise ValueError("bad")
        finally:
            self._busy.release()

    def come(self, nth: int) -> None:
        """One thread."""
        rng = random.Random(f"{self._seed} {nth}")
        for _ in range(rng.randint(4, 10)):
            self.outcomes[self._answer(rng)] += 1
            if rng.random() < 0.7:
                self.passes.leave()

    def _answer(self, rng: random.Random) -> str:
        """A prompt, and some more rows; says how it ended."""
        for left in [rng.choice([1, 5, 70, 300]), *rng.choices([1, 1, 4], k=rng.randint(0, 12))]:
            while left:
                cancelled = rng.random() < 0.1
                part = Ask(
                    rng.choice(self._models),
                    "bad" if rng.random() < 0.03 else "good",
                    left,
                    min(left, rng.choice([1, 3, 20])),
                    (lambda: rng.random() < 0.5) if cancelled else never,
                )
                if ended := self._ask(part):
                    return ended
                left -= part.taken
        return "whole"

    def _ask(self, part: Ask) -> str | None:
        """How the answer ends with these rows; None where it goes on."""
        try:
            self.passes.run(part)
        except ValueError:
            return "bad" if part.name == "bad" else "an error of others"
        except KeyboardInterrupt:
            return "interrupted"
        except GenerationCancelled:
            return "cancelled" if part.cancel is not never else "never asked to"
        if part.name == "bad" or part.computed != [part.taken]:
            return "not computed, or twice"
        whole = part.taken == part.rows
        return None if whole or 0 < part.taken <= part.rows - part.wanted else "torn"


@pytest.mark.parametrize("seed", range(4))
def test_many_threads_that_fail_and_leave_at_random(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is in order is computed, once, whole, and sees no error of others."""
    monkeypatch.setattr(module, "_GLANCE", 0.0003)
    crowd = Crowd(seed)
    threads = [threading.Thread(target=crowd.come, args=(nth,), daemon=True) for nth in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"somebody waits for ever: {crowd.outcomes}"
    assert set(crowd.outcomes) == {"whole", "bad", "interrupted", "cancelled"}, crowd.outcomes
    assert crowd.passes._leader is None
    assert crowd.passes._waiting == crowd.passes._chosen == []
