"""Which rows a forward pass computes, when and where; on queues that can be held."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from safe_integrations.errors import GenerationCancelled
from safe_integrations.models import passes as module
from safe_integrations.models.passes import ROWS_TOGETHER, Passes, Price
from tests.desk import PATIENCE, Ask, Desk, until


@pytest.fixture
def desk() -> Desk:
    """Empty."""
    return Desk()


@pytest.fixture
def glances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks more often whether to stop."""
    monkeypatch.setattr(module, "_GLANCE", 0.002)


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


@pytest.mark.parametrize("rows", [1, ROWS_TOGETHER], ids=["short", "long"])
def test_nobody_is_passed_over_for_ever(desk: Desk, rows: int) -> None:
    """Rows that fill a pass make others wait, too: those who wait long may be a crowd again."""
    busy, other, go_on, crowd = desk.model(), desk.model(), threading.Event(), 12

    def asks(name: str) -> None:
        assert go_on.wait(PATIENCE)
        for _ in range(30):
            desk.passes.run(Ask(busy, name, rows, rows))
        desk.passes.leave()

    for name in "abcdefghijkl":
        desk.start(lambda name=name: asks(name))  # type: ignore[misc]
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


@pytest.mark.parametrize(("took", "waited"), [(0.01, 0.003), (100.0, 0.05)], ids=["short", "long"])
def test_who_never_comes_back_costs_a_share_of_one_pass_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, took: float, waited: float
) -> None:
    """And never more than what the others have to do between two passes."""
    model = desk.model()
    patience = Patience(desk.passes)
    gone = threading.Thread(target=lambda: desk.passes.run(Ask(model, "gone")))
    gone.start()
    gone.join(PATIENCE)
    desk.passes._seconds = took
    for _ in range(5):
        desk.passes.run(Ask(model, "a"))
    assert patience.waits == [({gone.ident}, pytest.approx(waited))]


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


def test_a_pass_goes_on_when_the_last_one_is_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or has left: else every pass would wait as long as it may."""
    monkeypatch.setattr(module, "_MOST_PATIENCE", 1000.0)
    model, parked = desk.model(), threading.Event()
    desk.passes._seconds = 10_000.0
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


# Cancelling


@pytest.mark.parametrize("cancelled", ["a", "b", "c", "ab", "abc"])
@pytest.mark.usefixtures("glances")
def test_who_waits_can_be_cancelled(desk: Desk, cancelled: str) -> None:
    """At once, and the others never notice."""
    model, yes = desk.model(), threading.Event()
    with desk.held():
        for name in "abc":
            desk.ask(Ask(model, name, cancel=lambda name=name: name in cancelled and yes.is_set()))
        yes.set()
        until(lambda: set(desk.errors) == set(cancelled))
    left = [name for name in "abc" if name not in cancelled]
    assert desk.names() == (["".join(left)] if left else [])
    assert all(isinstance(error, GenerationCancelled) for error in desk.errors.values())
    assert set(desk.errors) == set(cancelled)


@pytest.mark.usefixtures("glances")
def test_who_is_cancelled_does_not_wait_for_a_pass_that_computes_for_him(desk: Desk) -> None:
    """Nor does the next pass wait for him to come back; his rows may have cost nothing."""
    model, yes = desk.model(), threading.Event()

    def within(parts: Sequence[Ask]) -> None:
        if len(parts) == 3:
            yes.set()
            until(lambda: "b" in desk.errors)

    model.within = within
    parts = {name: Ask(model, name) for name in "ac"}
    parts["b"] = Ask(model, "b", cancel=yes.is_set)
    with desk.held():
        for name in "abc":
            desk.ask(parts[name])
    assert desk.names() == ["abc"]
    assert [type(error) for error in desk.errors.values()] == [GenerationCancelled]
    assert parts["a"].computed == parts["c"].computed == [1]
    assert parts["b"].caller not in desk.passes._answered
    assert model.price._sums[0] == 0


@pytest.mark.usefixtures("glances")
def test_who_is_cancelled_when_it_is_his_turn_has_another_one_compute(desk: Desk) -> None:
    model, opened = desk.model(), desk.hold()

    def cancel() -> bool:
        if len(desk.passes._waiting) == 3:
            opened.set()
            until(lambda: desk.passes._leader is first)
            return True
        return False

    first = Ask(model, "a", cancel=cancel)
    for part in (first, Ask(model, "b"), Ask(model, "c")):
        desk.ask(part)
    assert desk.names() == ["bc"]
    assert list(desk.errors) == ["a"]


@pytest.mark.usefixtures("glances")
def test_an_error_of_who_is_asked_in_the_queue_is_his_own(desk: Desk) -> None:
    def broken() -> bool:
        raise LookupError

    model = desk.model()
    with desk.held():
        desk.ask(Ask(model, "a"))
        desk.ask(Ask(model, "b", cancel=broken))
        until(lambda: "b" in desk.errors)
    assert desk.names() == ["a"]
    assert isinstance(desk.errors["b"], LookupError)


@pytest.mark.usefixtures("glances")
def test_an_error_of_who_is_asked_by_another_is_his_own(desk: Desk) -> None:
    """The thread that computes asks for all."""
    model = desk.slow()

    def broken() -> bool:
        if threading.get_ident() != bad.caller:
            raise LookupError
        return False

    def within(parts: Sequence[Ask]) -> None:
        if [part.name for part in parts] == ["c"]:
            model.may_end.set()

    model.within = within
    bad, good = Ask(model, "b", cancel=broken), Ask(model, "c")
    with desk.held():
        desk.ask(Ask(model, "a", cancel=lambda: len(model.log) > 0))
        desk.ask(bad)
        desk.ask(good)
    assert desk.names() == ["abc", "a", "b", "c"]
    assert {name: type(error) for name, error in desk.errors.items()} == {
        "a": GenerationCancelled,
        "b": LookupError,
    }
    assert good.computed == [1]


# Long passes


def test_a_short_pass_is_computed_on_its_callers_thread(desk: Desk) -> None:
    """Also where it could be stopped: another thread costs more than it takes."""
    model, threads = desk.slow(), []
    model.may_end.set()
    model.price = Price()  # what it takes is not known: a few rows are short
    model.within = lambda _: threads.append(threading.get_ident())
    for rows in (module._FEW, 1):
        desk.passes.run(Ask(model, "a", rows, rows))
    assert model.price.of(1) is not None
    desk.passes.run(Ask(model, "a", 2, 2))
    assert threads == [threading.get_ident()] * 3


@pytest.mark.parametrize("known", [False, True])
def test_a_long_pass_is_computed_beside_its_caller(
    desk: Desk, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose team of threads goes home: two teams would be in each other's way."""
    model, threads, home = desk.slow(), list[int](), list[int]()
    monkeypatch.setattr(module, "send_team_home", lambda: home.append(threading.get_ident()))
    model.may_end.set()
    model.price = Price()
    if known:
        model.price.learn(1, module._LONG)
    model.within = lambda _: threads.append(threading.get_ident())
    part = Ask(model, "a", 1 if known else module._FEW + 1)
    desk.passes.run(part)
    assert threads != [threading.get_ident()] and part.computed == [part.rows]
    assert home == [threading.get_ident()]


def test_many_who_ask_for_a_row_each_make_a_pass_long(desk: Desk) -> None:
    model, threads = desk.slow(), []
    model.may_end.set()
    model.price = Price()
    model.price.learn(1, module._LONG / 2)
    model.within = lambda _: threads.append(threading.current_thread().name)
    with desk.held():
        for name in "abc":
            desk.ask(Ask(model, name))
    assert desk.names() == ["abc"]
    assert threads == ["forward pass"]


def test_what_cannot_be_stopped_is_computed_on_its_callers_thread(desk: Desk) -> None:
    model, threads = desk.model(), []
    model.price.learn(1, 100.0)
    model.within = lambda _: threads.append(threading.get_ident())
    desk.passes.run(Ask(model, "a", 50))
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("cancelled", ["a", "b", "c", "ab", "ac", "bc", "abc"])
@pytest.mark.parametrize("gone", ["", "b"])
@pytest.mark.usefixtures("glances")
def test_a_long_pass_is_stopped_when_nobody_wants_it(desk: Desk, cancelled: str, gone: str) -> None:
    model, yes = desk.slow(), threading.Event()
    asked: Counter[str] = Counter()

    def cancel(name: str) -> bool:
        asked[name] += yes.is_set()
        if name in gone and threading.get_ident() == parts[name].caller and model.log:
            raise KeyboardInterrupt
        return name in cancelled and yes.is_set()

    parts = {name: Ask(model, name, cancel=lambda name=name: cancel(name)) for name in "abc"}
    with desk.held():
        for part in parts.values():
            desk.ask(part)
    assert model.entered.acquire(timeout=PATIENCE)
    until(lambda: all(parts[name].gone for name in gone))
    yes.set()
    wanted = [part for name, part in parts.items() if name not in cancelled + gone]
    # who computes for somebody else has his own rows, too
    told = set(cancelled) - set(gone) - set("a" if wanted else "")
    if wanted:
        until(lambda: asked[wanted[0].name] > 3 and told <= desk.errors.keys())
        assert not model.stopped.is_set()
        model.may_end.set()
    assert desk.names() == ["abc"]
    assert model.stopped.is_set() == (not wanted)
    for part in wanted:
        assert part.computed == [1] and part.name not in desk.errors
    assert told == {n for n, e in desk.errors.items() if isinstance(e, GenerationCancelled)}
    assert desk.errors.keys() - told == set(gone)
    if not wanted:
        assert model.price._sums[0] == 0, "it tells no price"


@pytest.mark.usefixtures("glances")
def test_a_stop_that_comes_late_hits_nobody(desk: Desk) -> None:
    """The pass ends while its callers are asked."""
    model = desk.slow()

    def cancel() -> bool:
        if model.log:
            model.may_end.set()
            until(lambda: part.computed != [])
        return part.computed != []

    part, other = Ask(model, "a", cancel=cancel), Ask(model, "b")
    with desk.held():
        desk.ask(part)
    desk.ended()
    assert model.stopped.is_set(), "it has come"
    desk.passes.run(other)
    assert desk.errors == {} and other.computed == [1]


@pytest.mark.parametrize("bad", ["a", "c", "ad"])
def test_an_error_in_a_long_pass_is_told_to_whom_it_belongs(desk: Desk, bad: str) -> None:
    model = desk.slow()
    model.may_end.set()

    def fail(parts: Sequence[Ask]) -> None:
        for part in parts:
            if part.name in bad:
                raise ValueError(part.name)

    model.within = fail
    with desk.held():
        for name in "abcd":
            desk.ask(Ask(model, name))
    assert desk.names() == ["abcd", "a", "b", "c", "d"]
    assert {name: str(error) for name, error in desk.errors.items()} == {n: n for n in bad}


def test_where_no_thread_can_be_started_it_is_an_error(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if thread.name == "forward pass":
            raise RuntimeError("can't start new thread")
        start(thread)

    model = desk.slow()
    with desk.held():
        desk.ask(Ask(model, "a"))
        desk.ask(Ask(model, "b"))
        monkeypatch.setattr(threading.Thread, "start", fails)
    assert desk.names() == []
    assert all(isinstance(desk.errors[name], RuntimeError) for name in "ab")


# What a pass takes


def test_the_price_of_a_pass_is_on_the_line_through_what_was_measured() -> None:
    price = Price()
    assert price.of(1) is None
    for rows in range(1, 20):
        price.learn(rows, 3 + 0.1 * rows)
    assert price.row == pytest.approx(0.1)
    for rows in (20, 100):
        assert price.of(rows) == pytest.approx(3 + 0.1 * rows)
    price.learn(5, 10**6)
    assert (price.of(5) or 0) > 1000, "the last one weighs more than each of the others"


@pytest.mark.parametrize("measured", [1, 100])
def test_many_rows_are_not_taken_for_a_few(measured: int) -> None:
    """Where all passes had one row, a prompt of 256 would pass for short, and nobody stopped it."""
    price = Price()
    for _ in range(measured):
        price.learn(1, 0.1)
    assert price.of(256) == pytest.approx(25.6)
    assert price.of(1) == pytest.approx(0.1)


def test_a_few_rows_are_not_taken_for_next_to_nothing() -> None:
    """Most of a pass is reading the weights."""
    price = Price()
    price.learn(10, 1.0)
    assert price.of(1) == pytest.approx(1.0)


# Devices


def test_each_device_has_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves one to others sends his threads home."""
    home: list[int] = []
    monkeypatch.setattr(module, "send_team_home", lambda: home.append(threading.get_ident()))
    module.passes_on("a fresh device").leave()
    assert home == [threading.get_ident()]
    one = module.passes_on("one device")
    assert module.passes_on("one device") is one
    assert module.passes_on("another") is not one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_passes_of_its_parent(desk: Desk) -> None:
    desk.passes = module.passes_on("a device that is held")
    with desk.held(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads are not forked along: that is the point
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            part = Ask(desk.model(), "a")
            module.passes_on("a device that is held").run(part)
            os._exit(0 if part.computed == [1] else 1)
        _, status = os.waitpid(child, 0)
    desk.ended()
    assert os.waitstatus_to_exitcode(status) == 0
