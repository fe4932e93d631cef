"""Which rows a forward pass computes: order, fairness, rows, patience, errors; by held queues."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from safe_integrations.models import passes as module
from safe_integrations.models.passes import ROWS_TOGETHER, Passes
from tests.desk import PATIENCE, Ask, Desk, until


@pytest.fixture
def desk() -> Desk:
    """Empty."""
    return Desk()


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
