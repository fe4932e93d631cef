"""Which rows a forward pass computes: order, fairness, errors, Ctrl-C; on models of nothing."""

from __future__ import annotations

import linecache
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from safe_integrations.models import passes as module
from safe_integrations.models.passes import ROWS_TOGETHER, Part, Passes, Price

PATIENCE = 20
"""Seconds until something hangs."""


class Fake:
    """Computes nothing, keeps what it was asked for, and does what it is told meanwhile."""

    def __init__(self, log: list[list[tuple[str, int]]], *, shares: bool = True) -> None:
        self.log = log
        self.shares = shares
        self.rows_alone = 256
        self.price = Price()
        self.within: Callable[[Sequence[Ask]], None] = lambda parts: None

    def compute(self, parts: Sequence[Any]) -> None:
        self.log.append([(part.name, part.taken) for part in parts])
        assert all(part.model is self for part in parts)
        self.within(parts)
        for part in parts:
            part.computed.append(part.taken)


class Ask(Part):
    """Rows with a name."""

    def __init__(self, model: Fake, name: str, rows: int = 1, wanted: int = 1) -> None:
        super().__init__(model, rows, wanted)
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

    def start(self, work: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def ask(self, part: Ask) -> None:
        """Has a thread of its own ask, and waits until it is in the queue."""

        def run() -> None:
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


@pytest.fixture
def desk() -> Desk:
    """Empty."""
    return Desk()


def until(true: Callable[[], bool]) -> None:
    """Waits for something."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.0005)


# Order


def test_who_is_alone_is_computed_at_once_on_his_own_thread(desk: Desk) -> None:
    model, threads = desk.model(), []
    model.within = lambda _: threads.append(threading.get_ident())
    part = Ask(model, "a", 3, 2)
    desk.passes.run(part)
    assert (part.taken, part.computed) == (3, [3])
    assert threads == [threading.get_ident()]


def test_all_who_wait_share_a_pass(desk: Desk) -> None:
    model = desk.model()
    with desk.held():
        for name in "abcd":
            desk.ask(Ask(model, name))
    assert desk.names() == ["abcd"]


def test_who_finds_no_room_is_next(desk: Desk) -> None:
    model = desk.model()
    with desk.held():
        for name in "abcde":
            desk.ask(Ask(model, name, 30, 30))
    assert desk.names() == ["ab", "cd", "e"]


def test_a_model_that_does_not_share_takes_turns(desk: Desk) -> None:
    model = desk.model(shares=False)
    with desk.held():
        for name in "abc":
            desk.ask(Ask(model, name))
    assert desk.names() == ["a", "b", "c"]


def test_the_model_that_most_wait_for_is_first(desk: Desk) -> None:
    one, other = desk.model(), desk.model()
    with desk.held():
        for name, model in zip("aABCb", (one, other, other, other, one), strict=True):
            desk.ask(Ask(model, name))
    assert desk.names() == ["ABC", "ab"]


@pytest.mark.parametrize(("crowd", "rows"), [(12, 1), (12, ROWS_TOGETHER)], ids=["short", "long"])
def test_nobody_is_passed_over_for_ever(desk: Desk, crowd: int, rows: int) -> None:
    """Rows that fill a pass make others wait, too; those who wait long must not be a crowd again."""
    busy, other, go_on = desk.model(), desk.model(), threading.Event()

    def asks(name: str) -> None:
        assert go_on.wait(PATIENCE)
        for _ in range(30):
            desk.passes.run(Ask(busy, name, rows, rows))
        desk.passes.leave()

    for nth in range(crowd):
        desk.start(lambda name=chr(97 + nth): asks(name))  # type: ignore[misc]
    with desk.held():
        go_on.set()
        until(lambda: len(desk.passes._waiting) == crowd)
        desk.ask(Ask(other, "!"))
    passes = desk.names()
    assert passes.index("!") <= module._PASSED_OVER + (crowd if rows > 1 else 0)
    if rows > 1:  # and of the crowd nobody gets two passes more than another one
        for end in range(crowd, len(passes)):
            turns = Counter(name for name in passes[:end] if name != "!")
            if len(turns) == crowd and max(turns.values()) < 28:
                assert max(turns.values()) - min(turns.values()) <= 2


# Rows


def test_a_long_prompt_is_read_in_parts_of_its_own_size_where_nobody_waits(desk: Desk) -> None:
    prompt = Ask(desk.model(), "p", 1000)
    desk.passes.run(prompt)
    assert prompt.taken == 256


@pytest.mark.parametrize("order", ["pa", "ap"])
def test_a_long_prompt_holds_others_for_one_part(desk: Desk, order: str) -> None:
    model = desk.model()
    parts = {"p": Ask(model, "p", 1000), "a": Ask(model, "a")}
    with desk.held():
        for name in order:
            desk.ask(parts[name])
    together = [("a", 1), ("p", ROWS_TOGETHER - 1)]
    assert desk.ended() == ([together] if order == "ap" else [[("p", ROWS_TOGETHER)], [("a", 1)]])


def test_a_long_prompt_does_not_keep_those_who_write_from_writing(desk: Desk) -> None:
    """They all come again and again, and of two passes at most one is without a writer."""
    model, go_on = desk.model(), threading.Event()

    def write(name: str) -> None:
        assert go_on.wait(PATIENCE)
        for _ in range(40):
            desk.passes.run(Ask(model, name))
        desk.passes.leave()

    def read() -> None:
        left = 600
        while left:
            part = Ask(model, "p", left)
            desk.passes.run(part)
            left -= part.taken
        desk.passes.leave()

    for name in "abc":
        desk.start(lambda name=name: write(name))  # type: ignore[misc]
    with desk.held():
        go_on.set()
        until(lambda: len(desk.passes._waiting) == 3)
        desk.start(read)
        until(lambda: len(desk.passes._waiting) == 4)
    passes = desk.ended()
    assert sum(taken for parts in passes for name, taken in parts if name == "p") == 600
    last = max(nth for nth, parts in enumerate(passes) if "a" in dict(parts))
    reading = [set(dict(parts)) == {"p"} for parts in passes[:last]]
    assert not any(a and b for a, b in zip(reading, reading[1:], strict=False))


@pytest.mark.parametrize(
    ("rows", "wanted", "beside", "taken"),
    [
        (100, 40, 1, 60),  # all but those that are asked about
        (100, 98, 1, 2),
        (70, 70, 0, 70),
        (200, 200, 0, 200),
        (64, 64, 1, 64),
    ],
)
def test_rows_that_are_asked_about_are_in_one_pass(
    desk: Desk, rows: int, wanted: int, beside: int, taken: int
) -> None:
    model = desk.model()
    part = Ask(model, "p", rows, wanted)
    with desk.held():
        desk.ask(part)
        for _ in range(beside):
            desk.ask(Ask(model, "a"))
    desk.ended()
    assert part.taken == taken


def test_more_rows_than_a_pass_has_room_for_are_computed_all_the_same(desk: Desk) -> None:
    """They never fit in beside others, so they are passed over, but not for ever."""
    model, go_on = desk.model(), threading.Event()

    def write() -> None:
        assert go_on.wait(PATIENCE)
        for _ in range(30):
            desk.passes.run(Ask(model, "a"))
        desk.passes.leave()

    desk.start(write)
    desk.start(write)
    large = Ask(model, "p", 100, 100)
    with desk.held():
        go_on.set()
        until(lambda: len(desk.passes._waiting) == 2)
        desk.ask(large)
    passes = desk.ended()
    assert large.computed == [100]
    assert [("p", 100)] in passes[: module._PASSED_OVER + 2]


def test_no_pass_is_larger_than_it_may_be(desk: Desk) -> None:
    model, rng = desk.model(), random.Random(3)
    with desk.held():
        for nth in range(40):
            rows = rng.randint(1, 90)
            desk.ask(Ask(model, str(nth), rows, rng.randint(1, rows)))
    for parts in desk.ended():
        assert len(parts) == 1 or sum(taken for _, taken in parts) <= ROWS_TOGETHER
        assert all(taken > 0 for _, taken in parts)


# Time


def test_seconds_of_a_pass_are_counted_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = desk.model(), iter(range(1, 10_000, 7))
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(clock)))
    parts = [Ask(model, name, rows, rows) for name, rows in (("a", 1), ("b", 5), ("c", 20))]
    for rows in range(1, 20):  # until the price of a row is known
        model.price.learn(rows, 3 + 0.01 * rows)
    with desk.held():
        for part in parts:
            desk.ask(part)
    assert desk.names() == ["abc"]
    assert sum(part.seconds for part in parts) == pytest.approx(7)
    assert parts[0].seconds < parts[1].seconds < parts[2].seconds


def test_a_pass_that_fails_tells_nothing_about_its_price(desk: Desk) -> None:
    model = desk.model()

    def fail(_: object) -> None:
        raise ValueError

    model.within = fail
    for rows in range(1, 20):
        with pytest.raises(ValueError):
            desk.passes.run(Ask(model, "a", rows, rows))
    assert model.price._sums == (0.0,) * 5


class Patience:
    """What a pass would wait for, instead of waiting: for whom, and how long."""

    def __init__(self, passes: Passes) -> None:
        self.waits: list[tuple[set[int], float]] = []
        self._passes = passes
        passes._all_are_back.wait_for = self._wait_for  # type: ignore[method-assign]

    def _wait_for(self, true: Callable[[], bool], timeout: float | None = None) -> bool:
        assert timeout is not None
        if not true():
            self.waits.append((set(self._passes._answered), timeout))
        return True


def test_who_never_comes_back_costs_a_share_of_one_pass_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clock = desk.model(), iter(range(1, 100_000, 5))  # every pass takes a multiple of it
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(clock)))
    patience = Patience(desk.passes)
    gone = threading.Thread(target=lambda: desk.passes.run(Ask(model, "gone")))
    gone.start()
    gone.join(PATIENCE)
    seconds = desk.passes._seconds
    for _ in range(5):
        desk.passes.run(Ask(model, "a"))
    assert patience.waits == [({gone.ident}, module._PATIENCE * seconds)]


def test_nobody_waits_for_who_has_left(desk: Desk) -> None:
    model = desk.model()
    patience = Patience(desk.passes)
    with desk.held():
        for name in "abc":
            desk.ask(Ask(model, name))  # they leave
    desk.ended()
    patience.waits.clear()
    desk.passes.run(Ask(model, "d"))
    assert patience.waits == []


def test_leaving_never_waits(desk: Desk) -> None:
    """The garbage collector closes sessions anywhere, also where the queue is locked."""
    with desk.passes._lock:
        desk.passes.leave()


def test_a_pass_goes_on_when_the_last_one_is_back(desk: Desk) -> None:
    """Or has left: else every pass would wait as long as it may."""
    model, parked = desk.model(), threading.Event()
    desk.passes._seconds = 1000.0
    desk.passes._answered = {1}
    desk.ask(Ask(model, "a"))
    assert desk.log == []

    def back() -> None:
        desk.passes._answered = {threading.get_ident()}
        parked.set()
        desk.passes.leave()

    desk.start(back)
    assert desk.names() == ["a"] and parked.is_set()


# Errors


@pytest.mark.parametrize("bad", ["a", "c", "ad"])
def test_an_error_is_told_to_whom_it_belongs(desk: Desk, bad: str) -> None:
    model = desk.model()

    def fail(parts: Sequence[Ask]) -> None:
        for part in parts:
            if part.name in bad:
                raise ValueError(part.name)

    model.within = fail
    parts = [Ask(model, name) for name in "abcd"]
    with desk.held():
        for part in parts:
            desk.ask(part)
    assert desk.names() == ["abcd", "a", "b", "c", "d"]
    assert {name: str(error) for name, error in desk.errors.items()} == {n: n for n in bad}
    for part in parts:
        assert part.computed == ([] if part.name in bad else [1])


def test_an_error_of_all_together_is_nobodys(desk: Desk) -> None:
    """As where memory is short: alone each of them is computed."""
    model = desk.model()

    def fail(parts: Sequence[Ask]) -> None:
        if len(parts) > 1:
            raise MemoryError

    model.within = fail
    with desk.held():
        for name in "abc":
            desk.ask(Ask(model, name))
    assert desk.names() == ["abc", "a", "b", "c"] and desk.errors == {}


# Ctrl-C


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


class Interrupting:
    """Raises KeyboardInterrupt in this thread, at the nth place in our module.

    Places are lines, and beginnings and ends of functions. Python looks for signals behind calls
    and at the beginning of functions: never at `try`, nor where a lock was just taken or released.
    """

    def __init__(self, nth: int, within: str = "") -> None:
        self.left = nth
        self._within = within

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != OURS or frame.f_code.co_name in ("wake", "learn", "row"):
            return None
        line = linecache.getline(OURS, frame.f_lineno).strip()
        if event == "exception" or (event == "line" and line.startswith(("try:", "with "))):
            return self
        if self._within and not self._inside(frame):
            return self
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self

    def _inside(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code.co_filename == OURS:
            if frame.f_code.co_name == self._within:
                return True
            frame = frame.f_back
        return False


@pytest.mark.parametrize("first", [False, True], ids=["anywhere", "again while leaving"])
def test_ctrl_c_anywhere_leaves_nobody_behind(first: bool) -> None:
    """All places one after another; also a second one, while the first is on its way out."""
    places = 0
    for nth in range(1, 1000):
        desk = Desk()
        model, interrupting = desk.model(), Interrupting(nth, "_go" if first else "")
        start = threading.Barrier(4)
        victim: list[int] = []
        outcome: list[str] = []

        def within(parts: Sequence[Ask], victim: list[int] = victim) -> None:
            if first and [threading.get_ident()] == victim:
                raise KeyboardInterrupt

        def interrupted(
            desk: Desk = desk,
            model: Fake = model,
            interrupting: Interrupting = interrupting,
            outcome: list[str] = outcome,
            start: threading.Barrier = start,
            victim: list[int] = victim,
        ) -> None:
            victim.append(threading.get_ident())
            start.wait(PATIENCE)
            sys.settrace(interrupting)
            try:
                for _ in range(3):
                    desk.passes.run(Ask(model, "m"))
                outcome.append("finished")
            except KeyboardInterrupt:
                outcome.append("interrupted")
            finally:
                sys.settrace(None)

        def going_on(
            name: str, desk: Desk = desk, model: Fake = model, start: threading.Barrier = start
        ) -> None:
            start.wait(PATIENCE)
            for _ in range(3):
                part = Ask(model, name)
                try:
                    desk.passes.run(part)
                except BaseException as error:
                    desk.errors[name] = error
                if not part.computed:
                    desk.errors[name] = AssertionError("not computed")

        model.within = within
        desk.start(interrupted)
        for name in "abc":
            desk.start(lambda name=name, go=going_on: go(name))  # type: ignore[misc]
        desk.ended()
        assert desk.errors == {} and len(outcome) == 1, nth
        desk.passes.run(Ask(model, "z"))
        if interrupting.left > 0:
            break
        places += 1
    assert places > (12 if first else 40)


# Everything at once


@pytest.mark.parametrize("seed", range(4))
def test_many_threads_that_fail_and_leave_at_random(seed: int) -> None:
    """Whoever is in order is computed, once, whole, and sees no error of others."""
    passes, log, busy = Passes(), [], threading.Lock()
    models = [Fake(log, shares=nth < 2) for nth in range(3)]
    dice = random.Random(seed)
    wrong: list[str] = []

    def within(parts: Sequence[Ask]) -> None:
        if not busy.acquire(blocking=False):
            wrong.append("two passes at the same time")
            return
        try:
            if len(parts) > 1 and sum(part.taken for part in parts) > ROWS_TOGETHER:
                wrong.append("too many rows")
            time.sleep(dice.choice([0, 0, 0.0005]))
            if dice.random() < 0.04:
                raise KeyboardInterrupt
            if any(part.name == "bad" for part in parts):
                raise ValueError("bad")
        finally:
            busy.release()

    for model in models:
        model.within = within

    def answer(rng: random.Random) -> str:
        """One answer: a prompt, and some rows; says how it ended."""
        left = rng.choice([1, 5, 70, 300])
        for _ in range(rng.randint(1, 12)):
            while left:
                name = "bad" if rng.random() < 0.03 else "good"
                wanted = min(left, rng.choice([1, 3, 20]))
                part = Ask(rng.choice(models), name, left, wanted)
                try:
                    passes.run(part)
                except ValueError:
                    return "bad" if name == "bad" else "an error of others"
                except KeyboardInterrupt:
                    return "interrupted"
                if name == "bad" or part.computed[-1:] != [part.taken]:
                    return "not computed"
                if not 0 < part.taken <= part.rows - (wanted if part.taken < left else 0):
                    return "torn"
                left -= part.taken
            left = rng.choice([1, 1, 4])
        return "whole"

    outcomes: Counter[str] = Counter()

    def thread(nth: int) -> None:
        rng = random.Random(f"{seed} {nth}")
        for _ in range(rng.randint(4, 10)):
            outcomes[answer(rng)] += 1
            if rng.random() < 0.7:
                passes.leave()

    threads = [threading.Thread(target=thread, args=(nth,), daemon=True) for nth in range(24)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
        assert not one.is_alive(), f"somebody waits for ever: {outcomes}"
    assert wrong == [] and set(outcomes) == {"whole", "bad", "interrupted"}, outcomes
    assert passes._leader is None and passes._waiting == passes._chosen == []
