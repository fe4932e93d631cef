"""Answers wait for memory: in order, for all their models at once, and never for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from itertools import count, zip_longest
from time import monotonic, sleep
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Event, Finished, ModelStatistics, Reasoned, Statistics
from safe_integrations.engine.model import never
from safe_integrations.errors import GenerationCancelled, GenerationError, SafeTimeoutError
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.models import admission
from safe_integrations.models.admission import Memory
from safe_integrations.report.result import Result
from safe_integrations.report.verdicts import facts, model_rows
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows

TEXT = "Because air scatters blue light."
LONG = 20  # seconds; nothing that is right takes so long


class Limited(ScriptedMember):
    """A scripted model whose caches take a byte per token; its prompt is one token.

    It knows who has begun: the names of the threads, in order.
    """

    def __init__(self, limit: int | None, name: str = "m", free: int | None = None) -> None:
        super().__init__(name, [b"Because", b" air"], follows(TEXT.encode()))
        self.memory = Recorded(limit, lambda: free, lambda tokens: tokens, 1)
        self.begun: list[str] = []
        self.on_pass: Callable[[], None] = lambda: None
        inner = self.script

        def script(written: bytes) -> Any:
            self.on_pass()
            return inner(written)

        self.script = script

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        self.begun.append(threading.current_thread().name)
        return super().start(prompt, cancel)

    @property
    def open(self) -> int:
        return sum(not session.closed for session in self.sessions)


class Recorded(Memory):
    """Keeps what it was asked for."""

    def holds(self, caches: Any, models: int) -> bool:
        self.asked = [*caches]
        return super().holds(caches, models)


class Call(threading.Thread):
    """An answer that needs so many tokens, asked for in a thread."""

    def __init__(
        self, engine: SafeEngine, tokens: int, name: str = "", cancel: Callable[[], bool] = never
    ) -> None:
        super().__init__(name=name or None, daemon=True)
        self.events = engine.generate("x", needs(tokens), cancel=cancel)
        self.result: Result | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with closing(self.events):
                self.result = Result.of(self.events)
        except Exception as error:
            self.error = error

    def done(self) -> Result:
        """What came of it."""
        self.join(LONG)
        assert not self.is_alive(), "it waits for ever"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


def needs(tokens: int) -> GenerationConfig:
    """An answer that needs room for so many tokens."""
    return GenerationConfig(max_tokens=tokens - 1)


def begun(engine: SafeEngine, tokens: int, **more: Any) -> Generator[Event, None, None]:
    """An answer that has begun, and rests; cancelled where it would have to wait."""
    end = monotonic() + LONG / 4
    options = needs(tokens).model_copy(update=more)
    events = engine.generate("x", options, cancel=lambda: monotonic() > end)
    next(events)
    return events


def until(true: Callable[[], bool]) -> None:
    end = monotonic() + LONG
    while not true():
        assert monotonic() < end, "it never happens"
        sleep(0.001)


def until_waiting(count: int) -> None:
    """Waits until so many answers have found that it is not their turn."""

    def reached() -> bool:
        with admission._lock:
            return len(admission._waiting) == count

    until(reached)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those who rest are waited for, unless a test says otherwise; and nobody is left behind."""
    monkeypatch.setattr(admission, "_PATIENCE", 100 * LONG)
    yield
    until(lambda: not admission._waiting)
    assert not admission._in_flight and not admission._ended


# Order


def test_answers_that_fit_are_made_beside_each_other() -> None:
    member = Limited(10)
    engine = SafeEngine(member)
    first, second = begun(engine, 5), begun(engine, 5)
    third = Call(engine, 2)
    until_waiting(1)
    assert member.open == 2
    first.close()
    third.done()
    second.close()


def test_the_rest_wait_in_order() -> None:
    """A small answer that would fit now could keep a large one waiting for ever."""
    member = Limited(10)
    engine = SafeEngine(member)
    holder = begun(engine, 6)
    calls = []
    for name, tokens in (("a", 7), ("b", 7), ("small", 4)):
        calls.append(Call(engine, tokens, name))
        until_waiting(len(calls))
    assert len(member.begun) == 1
    holder.close()
    for call in calls:
        call.done()
    assert member.begun[1:] == ["a", "b", "small"]


def test_nobody_waits_for_a_model_that_he_does_not_use() -> None:
    """But for those who came before him and want one of his."""
    a, b, c = (Limited(10, name) for name in "abc")
    holder = begun(SafeEngine(a), 10)
    both = Call(SafeEngine(a, [b]), 10)
    until_waiting(1)
    begun(SafeEngine(c), 10).close()
    behind = Call(SafeEngine(b), 10)
    until_waiting(2)
    assert not b.sessions
    holder.close()
    both.done()
    behind.done()


def test_engines_that_use_models_in_other_roles_do_not_block_each_other() -> None:
    """Each would hold what the other one needs if models were reserved one after the other."""
    a, b = Limited(10, "a"), Limited(10, "b")
    engines = [SafeEngine(a, [b]), SafeEngine(b, [a])]
    most: list[int] = []
    for member in (a, b):
        member.on_pass = lambda: most.append(max(a.open, b.open))
    calls = [Call(engines[n % 2], 6) for n in range(24)]
    for call in calls:
        call.done()
    assert max(most) == 1 and len(a.sessions) == len(b.sessions) == 24


def test_a_waiting_answer_holds_none_of_its_models() -> None:
    """What it cannot use yet is there for those who came before it."""
    a, b = Limited(10, "a"), Limited(10, "b")
    on_a, on_b = begun(SafeEngine(a), 10), begun(SafeEngine(b), 4)
    both = Call(SafeEngine(a, [b]), 6)
    until_waiting(1)
    on_b.close()
    assert all(b.memory not in answer.caches for answer in admission._in_flight)
    on_a.close()
    both.done()


# What is reserved


def test_the_whole_answer_is_reserved_for_every_model() -> None:
    a, b = Limited(1000, "a"), Limited(1000, "b")
    b.context_window = 20
    begun(SafeEngine(a, [b]), 30).close()
    assert (a.memory.asked, b.memory.asked) == ([30], [20])


def test_a_model_that_is_there_twice_holds_two_caches() -> None:
    member = Limited(None, free=20)
    twice = SafeEngine(member, [member])
    holder = begun(twice, 5)
    assert member.memory.asked == [5, 5]
    alone = Call(SafeEngine(member), 2)
    until_waiting(1)
    holder.close()
    alone.done()


@pytest.mark.parametrize("asked", [7, True])
def test_reasoning_is_part_of_it(asked: int | bool) -> None:
    member = Limited(1000)
    reasoning = member.reason([None])  # type: ignore[list-item]
    events = list(SafeEngine(member).generate("x", GenerationConfig(max_tokens=5, reasoning=asked)))
    budget = 1024 if asked is True else asked
    fixed = len(reasoning.prompt) + len(reasoning.closing)
    assert member.memory.asked == [fixed + budget + 5]
    assert isinstance(events[0], Reasoned) and isinstance(events[-1], Finished)


def test_an_answer_behind_reasoning_keeps_its_room() -> None:
    """Between the two texts no session is open, and another answer could take the memory."""
    member = Limited(60)
    engine = SafeEngine(member)
    events = engine.generate("x", GenerationConfig(max_tokens=5, reasoning=3))
    while not isinstance(event := next(events), Reasoned) or not isinstance(event.event, Finished):
        pass
    other = Call(engine, 50)
    until_waiting(1)
    assert isinstance([*events][-1], Finished)
    other.done()


@pytest.mark.parametrize("limit", [0, 5])
def test_an_answer_that_is_larger_than_the_limit_is_made_alone(limit: int) -> None:
    member = Limited(limit)
    engine = SafeEngine(member)
    small = begun(engine, 2)
    large = Call(engine, 30)
    until_waiting(1)
    small.close()
    large.done()
    holder = begun(engine, 30)
    behind = Call(engine, 2)
    until_waiting(1)
    holder.close()
    behind.done()


def test_by_default_models_share_half_of_what_is_free() -> None:
    a, b = Limited(None, "a", free=40), Limited(None, "b", free=80)
    holder = begun(SafeEngine(a, [b]), 8)
    a.memory._free = b.memory._free = lambda: 1000  # it is not asked again
    begun(SafeEngine(a), 2).close()
    begun(SafeEngine(b), 12).close()
    calls = [Call(SafeEngine(a), 3), Call(SafeEngine(b), 13)]  # of 10 and 20
    until_waiting(2)
    holder.close()
    for call in calls:
        call.done()


def test_without_a_number_there_is_no_limit() -> None:
    member = Limited(None)
    holders = [begun(SafeEngine(member), 4000) for _ in range(5)]
    assert member.open == 5
    for holder in holders:
        holder.close()


# Giving up


def test_waiting_can_be_cancelled() -> None:
    member = Limited(10)
    engine, stop = SafeEngine(member), threading.Event()
    holder = begun(engine, 6)
    cancelled = Call(engine, 6, cancel=stop.is_set)
    until_waiting(1)
    behind = Call(engine, 4)
    until_waiting(2)
    stop.set()
    with pytest.raises(GenerationCancelled):
        cancelled.done()
    behind.done()  # nobody is in front of it any more
    assert len(member.sessions) == 2
    holder.close()


def test_a_timeout_counts_waiting() -> None:
    member = Limited(10)
    holder = begun(SafeEngine(member), 10)
    with pytest.raises(SafeTimeoutError):
        ChatSafe(drafter=member, timeout=0.1).invoke("x")
    assert len(member.sessions) == 1
    holder.close()


async def test_a_stream_can_be_left_while_it_waits() -> None:
    member = Limited(10)
    holder = begun(SafeEngine(member), 10)
    async with aclosing(ChatSafe(drafter=member).astream("x")) as chunks:
        task = asyncio.ensure_future(anext(chunks))
        await asyncio.to_thread(until_waiting, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(until_waiting, 0)
    assert len(member.sessions) == 1
    holder.close()


@pytest.mark.parametrize("how", ["read", "closed", "dropped", "error"])
def test_whoever_ends_gives_back(how: str) -> None:
    member = Limited(10)
    engine = SafeEngine(member)
    holder = begun(engine, 10)
    waiting = Call(engine, 10)
    until_waiting(1)
    if how == "read":
        list(holder)
    elif how == "closed":
        holder.close()
    elif how == "error":
        member.on_pass = lambda: 1 / 0  # type: ignore[assignment, return-value]
        with pytest.raises(GenerationError):
            list(holder)
        with pytest.raises(GenerationError):
            waiting.done()
        member.on_pass = lambda: None
        Call(engine, 10).done()
        return
    del holder
    waiting.done()


def test_caches_are_let_go_before_others_may_have_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = Limited(10)
    holder = begun(SafeEngine(member), 10)
    held: list[int] = []
    monkeypatch.setattr(member.sessions[0], "close", lambda: held.append(len(admission._in_flight)))
    holder.close()
    assert held == [1]


def test_an_answer_that_nobody_reads_reserves_nothing() -> None:
    member = Limited(10)
    engine = SafeEngine(member)
    unread = engine.generate("x", needs(10))
    begun(engine, 10).close()
    unread.close()
    del unread
    begun(engine, 10).close()


def test_the_garbage_collector_never_waits() -> None:
    """It may close an answer in the very thread that is looking whose turn it is."""
    engine = SafeEngine(Limited(10))
    circle: list[Any] = [begun(engine, 10)]
    circle.append(circle)

    def collect() -> None:
        with admission._lock:
            circle.clear()
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive(), "a finaliser waits for the lock that its own thread holds"
    Call(engine, 10).done()


def test_who_cannot_tell_what_is_free_is_not_left_in_the_queue() -> None:
    member = Limited(None)

    def broken() -> int:
        raise OSError("the driver does not answer")

    member.memory._free = broken
    with pytest.raises(OSError, match="driver"):
        begun(SafeEngine(member), 10)
    assert not admission._waiting


# Those who rest


def test_two_answers_can_be_read_in_turns_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first goes on only when the second has begun."""
    monkeypatch.setattr(admission, "_PATIENCE", 0.05)
    engine = SafeEngine(Limited(10), (), EnsembleConfig(lookahead=2))
    end = monotonic() + LONG
    answers = [engine.generate("x", needs(9), cancel=lambda: monotonic() > end) for _ in range(3)]
    *_, last = zip_longest(*answers)
    assert any(isinstance(event, Finished) for event in last)


def test_who_computes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, and although another one rests."""
    monkeypatch.setattr(admission, "_PATIENCE", 0.05)
    member = Limited(70)
    engine, go_on, computes = SafeEngine(member), threading.Event(), threading.Event()
    resting = begun(engine, 30)
    passes = count()

    def slow() -> None:
        if next(passes) == 20:  # it has told of some events by then
            computes.set()
            assert go_on.wait(LONG)

    member.on_pass = slow
    computing = Call(engine, 30)
    assert computes.wait(LONG)
    waiting = Call(engine, 30)
    until_waiting(1)
    sleep(0.3)  # several times as long as one who rests is waited for
    assert len(member.sessions) == 2
    go_on.set()
    computing.done()
    waiting.done()
    resting.close()


# What is told


def told(waited: float) -> Statistics:
    made = Statistics(seconds=3.0, first_token_seconds=1.0, models=[ModelStatistics("m", 1)])
    made.models[0].seconds = 2.0
    made.add_wait(waited)
    return made


def test_waiting_is_part_of_the_whole_and_no_overhead() -> None:
    statistics = told(4.0)
    assert (statistics.waited_seconds, statistics.seconds) == (4.0, 7.0)
    assert (statistics.first_token_seconds, statistics.overhead_seconds) == (5.0, 1.0)


def test_waiting_is_shown_where_there_was_any() -> None:
    assert "7.00 s (4.00 s of it waiting for memory)" in facts(told(4.0), "stop")
    assert "waiting" not in facts(told(0.0), "stop")
    rows = {row[1]: row[-1] for row in model_rows(told(4.0))}
    assert (rows["waiting for memory"], rows["outside the models"], rows["total"]) == (
        "4.00", "1.00", "7.00",
    )  # fmt: skip
    assert "waiting for memory" not in {row[1] for row in model_rows(told(0.0))}


def test_statistics_tell_who_has_waited() -> None:
    member = Limited(10)
    engine = SafeEngine(member)
    holder = begun(engine, 10)
    call = Call(engine, 10)
    until_waiting(1)
    holder.close()
    statistics = call.done().statistics
    assert 0 < statistics.waited_seconds <= statistics.seconds
    assert engine.complete("x", needs(10)).statistics.waited_seconds == 0


@pytest.mark.parametrize("adapter", ["langchain", "llama_index"])
def test_both_adapters_tell_it(adapter: str) -> None:
    member = Limited(10)
    holder = begun(SafeEngine(member), 10)
    found: list[Any] = []

    def ask() -> None:
        if adapter == "langchain":
            message = ChatSafe(drafter=member, max_tokens=9).invoke("x")
            found.extend(message.response_metadata["safe"])
        else:
            response = SafeLLM(drafter=member, max_tokens=9).chat([ChatMessage("x")])
            found.append(response.raw["safe"])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    until_waiting(1)
    holder.close()
    thread.join(LONG)
    (statistics,) = found
    assert 0 < statistics["waited_seconds"] <= statistics["seconds"]
