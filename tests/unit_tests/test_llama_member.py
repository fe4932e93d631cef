"""A model of llama.cpp as a member: its sequences, on tiny files with random weights."""

from __future__ import annotations

import copy
import gc
import json
import linecache
import pickle
import random
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import TokenType
from toy_models import toy_model

from safe_integrations.calls.forms import FORMS
from safe_integrations.config import EnsembleConfig, GenerationConfig, Tool
from safe_integrations.engine.model import Distribution
from safe_integrations.engine.tokens import END
from safe_integrations.errors import (
    ContextWindowError,
    GenerationCancelled,
    GenerationError,
    ModelError,
)
from safe_integrations.messages import as_messages
from safe_integrations.models import passes as queue
from safe_integrations.models.llama_cpp import context as contexts
from safe_integrations.models.llama_cpp import load
from safe_integrations.models.llama_cpp.batch import Held, Ids
from safe_integrations.models.llama_cpp.context import Context
from safe_integrations.models.llama_cpp.member import LlamaMember, LlamaSession
from safe_integrations.models.load import load_member
from safe_integrations.models.passes import Part
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine

TEXT = "The quick brown fox jumps over the lazy dog."
WINDOW = 16
LENGTH = 8192


def made(folder: Path, window: int | None) -> Path:
    tokens, merges = gguf_files.greedy(TEXT)
    return gguf_files.byte_level(
        folder / f"toy-{window}.gguf", tokens, merges, added={"<end>": TokenType.CONTROL},
        pre="gpt-2", weights=True, context_length=LENGTH, window=window, width=64, spread=0.2,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[None, WINDOW], ids=["full", "sliding"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("toy"), request.param)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("toy"), None)


def member_of(path: Path, **options: Any) -> LlamaMember:
    """A member with sequences of its own."""
    return load.load(ModelSpec(source=str(path), **options), lambda _: None)


def some_ids(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(40, 900, count)]


def same(rows: Sequence[Distribution], others: Sequence[Distribution]) -> None:
    """Up to what llama.cpp rounds: states have 16 bits, and batches of other sizes others."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_allclose(np.exp(row.dense()), np.exp(other.dense()), atol=8e-6)  # type: ignore[attr-defined]


def yes_after(count: int) -> Callable[[], bool]:
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def asked(context: Context, held: Held, kept: int, ids: Sequence[int]) -> Ids:
    """A part that a pass is to take whole."""
    part = Ids(context, held, kept, ids, 1)
    part.taken = len(ids)
    return part


def written(member: LlamaMember, prompt: Sequence[int], count: int) -> list[int]:
    """What a session makes of asking for the favourite again and again."""
    session, ids = member.start(prompt), []
    while len(ids) < count:
        ids.append(session.score(ids, len(ids))[0].best)
    session.close()
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_would_be_computed_again(path: Path, seed: int) -> None:
    """Cut back, taken over, copied: no row may tell from where its beginning came."""
    used, fresh = member_of(path), member_of(path, reuse_bytes=0)
    dice = random.Random(seed)
    shared = some_ids(200, seed)
    prompts = [shared[: dice.randint(20, 200)] for _ in range(3)]
    prompts.append(shared[:15] + some_ids(60, seed + 1))
    reused = 0
    for turn in range(8):
        prompt = dice.choice(prompts)
        session, ids = used.start(prompt), list[int]()
        for step in range(5):
            kept = ids[: dice.randint(0, len(ids))]
            ids = kept + some_ids(dice.randint(0, 40), 100 * seed + 10 * turn + step)
            since = dice.randint(max(0, len(ids) - 12), len(ids))
            new = fresh.start(prompt)
            same(session.score(ids, since), new.score(ids, since))
            new.close()
        reused += session.work.reused
        session.close()
    assert reused > 0


def test_a_row_is_not_computed_twice(toy: Path) -> None:
    session = member_of(toy).start(some_ids(10))
    draft = some_ids(6, 1)
    session.score(draft, 0)
    assert (session.work.passes, session.work.tokens) == (1, 16)
    same(session.score(draft[:4], 2), session.score(draft[:4], 2))
    assert (session.work.passes, session.work.tokens) == (1, 16)
    session.score([*draft[:4], 77], 4)
    assert (session.work.passes, session.work.tokens) == (2, 17)


def test_rows_outlive_the_passes_behind_them(toy: Path) -> None:
    """llama.cpp writes the rows of each pass over those of the one before."""
    member = member_of(toy)
    session, prompt = member.start(some_ids(10)), some_ids(10)
    (row,) = session.score([], 0)
    session.score(some_ids(5, 3), 0)
    same([row], member.start(prompt).score([], 0))


def test_a_new_prompt_takes_over_what_it_shares(toy: Path) -> None:
    member, ids = member_of(toy), some_ids(60)
    for rows in range(1, 20):
        member.context.price.learn(rows, 0.001 * rows)
    first = member.start(ids[:40])
    first.score([], 0)
    first.close()
    second = member.start(ids)
    second.score([], 0)
    assert (second.work.reused, second.work.tokens, first.work.reused) == (40, 20, 0)
    assert second.work.seconds > 0
    assert second.work.row_seconds == member.context.price.row > 0


def test_the_same_prompt_again_is_not_computed(toy: Path) -> None:
    """In a batch of another size it would be rounded otherwise, and the text might differ."""
    member, ids = member_of(toy), some_ids(30)
    first = member.start(ids)
    rows = first.score(some_ids(3, 1), 0)
    first.close()
    again = member.start(ids)
    (row,) = again.score([], 0)
    assert (again.work.passes, again.work.reused) == (0, 30)
    np.testing.assert_array_equal(row.dense(), rows[0].dense())
    same(again.score(some_ids(3, 1), 0), rows)
    again.close()
    longer = member.start([*ids, 5])
    longer.score([], 0)
    assert longer.work.reused == 30
    longer.close()
    shorter = member.start(ids[:20])  # its end is another one
    same(shorter.score([], 0), member_of(toy).start(ids[:20]).score([], 0))
    assert shorter.work.reused == 19
    shorter.score([7], 0)
    shorter.close()
    cut = member.start(ids)
    same(cut.score([], 0), rows[:1])
    assert cut.work.reused == 20
    cut.close()
    as_long = [*ids[:20], *some_ids(10, 2)]  # a prompt that ends where another one ended
    same(member.start(as_long).score([], 0), member_of(toy).start(as_long).score([], 0))


def test_a_prompt_that_shares_little_leaves_the_rest_to_others(toy: Path) -> None:
    member, long = member_of(toy), some_ids(100)
    for prompt, reused in ((long, 0), ([*long[:20], 5], 20), ([*long, 5], 100)):
        session = member.start(prompt)
        session.score([], 0)
        session.close()
        assert session.work.reused == reused


def test_what_is_copied_does_not_make_room_for_its_copy(path: Path) -> None:
    """Though it is the oldest."""
    member, long = member_of(path), some_ids(100)
    written(member, long, 1)
    for seed in range(1, 99):
        if member.context._free:
            written(member, some_ids(10, seed), 1)
    session = member.start([*long[:20], 5])
    rows = session.score([], 0)
    assert session.work.reused == 20
    same(rows, member_of(path).start([*long[:20], 5]).score([], 0))


def test_memory_for_finished_prompts_has_a_limit(toy: Path) -> None:
    a_token, a_row = member_of(toy).context.cell_bytes, 4 * member_of(toy).tokens.size
    member = member_of(toy, reuse_bytes=100 * a_token + 2 * a_row)
    for seed in range(3):
        session = member.start(some_ids(40, seed))
        session.score([], 0)
        session.close()
    assert member.cache_bytes == 80 * a_token + 2 * a_row
    oldest, newest = member.start(some_ids(40, 0)), member.start(some_ids(40, 2))
    newest.score([], 0)
    oldest.score([], 0)
    assert (oldest.work.reused, newest.work.reused) == (0, 40)
    newest.close()
    member.forget()
    assert member.cache_bytes == 0


def test_nothing_is_kept_where_nothing_may_be(toy: Path) -> None:
    member = member_of(toy, reuse_bytes=0)
    written(member, some_ids(10), 3)
    assert member.cache_bytes == 0


def test_cells_and_sequences_grow_as_needed(path: Path) -> None:
    """Sixty sessions at work, together three times what there is room for at first."""
    member, fresh = member_of(path), member_of(path, reuse_bytes=0)
    sessions = [(member.start(ids := some_ids(50, seed)), ids) for seed in range(60)]
    for session, _ in sessions:
        session.score([], 0)
    for n, (session, ids) in enumerate(sessions):
        draft = some_ids(3, 1000 + n)
        new = fresh.start(ids)
        same(session.score(draft, 2), new.score(draft, 2))
        new.close()
        assert session.work.tokens == 53, "nothing was read twice"
    for session, _ in sessions:
        session.close()


@pytest.mark.parametrize("copied", [False, True], ids=["its own", "copied"])
def test_what_has_left_the_window_can_come_back(path: Path, copied: bool) -> None:
    """llama.cpp would take the cells of tokens that no new one sees, for those of others."""
    member, ids = member_of(path), some_ids(400, 1)
    written(member, some_ids(200, 2), 1)  # in front, and gone before the others come
    if copied:
        written(member, [*ids, *some_ids(450, 4)], 1)
    session = member.start(ids)
    session.score([], 0)
    assert session.work.reused == 399 * copied
    member.forget()
    others = member.start(some_ids(500, 3))
    others.score([], 0)  # more than there is room for in front
    session.close()
    again = member.start([*ids[:250], 44])
    rows = again.score([], 0)
    assert again.work.reused == 250
    same(rows, member_of(path).start([*ids[:250], 44]).score([], 0))


def test_a_prompt_longer_than_all_cells(path: Path) -> None:
    member = member_of(path)
    ids = some_ids(3000)
    session = member.start(ids)
    rows = session.score([], 0)
    parts = member_of(path).start(ids[:1100])
    parts.score([], 0)
    same(rows, parts.score(ids[1100:], 1900))


def test_many_at_once_write_what_each_writes_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_of(path)
    prompts = [some_ids(10 + seed, seed) for seed in range(12)]
    alone = [written(member_of(path), prompt, 20) for prompt in prompts]
    member.forget()
    shared: list[int] = []
    compute = member.context.compute
    together = threading.Barrier(len(prompts))

    def counted(parts: Sequence[Part]) -> None:
        shared.append(sum(part.taken == part.rows for part in parts))
        compute(parts)

    def one(prompt: list[int]) -> list[int]:
        together.wait()
        return written(member, prompt, 20)

    monkeypatch.setattr(member.context, "compute", counted)
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(one, prompts)) == alone
    assert sum(shared) == 12 * 20
    assert len(shared) < 12 * 20, "passes were shared"


def test_a_long_prompt_can_be_cancelled_between_its_parts(toy: Path) -> None:
    """What was read until then is kept, for this session and for others."""
    member, ids = member_of(toy), some_ids(1000)
    session = member.start(ids, yes_after(2))
    with pytest.raises(GenerationCancelled):
        session.score([], 0)
    assert 0 < session.work.tokens < 1000
    read = session.work.tokens
    session.close()
    again = member.start(ids)
    rows = again.score([], 0)
    assert again.work.reused == read
    same(rows, member_of(toy).start(ids).score([], 0))


def test_a_pass_that_is_stopped_leaves_no_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp asks a function in C whether to stop, in the middle of a pass."""
    member, ids = member_of(path), some_ids(60)
    session = member.start(ids[:40])
    session.score([], 0)
    held, context = session._held, member.context
    assert held is not None
    fill = context._batch.fill

    def stopped(parts: Sequence[Ids]) -> Any:
        context.stop()
        return fill(parts)

    monkeypatch.setattr(context._batch, "fill", stopped)
    part = asked(context, held, 30, ids[30:])
    with pytest.raises(GenerationCancelled):
        context.compute([part])
    assert (part.result, held.ids) == ([], ids[:30])
    monkeypatch.undo()
    same(session.score(ids[40:], 20), member_of(path).start(ids).score([], 0))


def test_a_pass_that_ctrl_c_broke_off_leaves_no_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it computed is in the cells, and nobody has heard of it."""
    member, ids = member_of(path), some_ids(60)
    session = member.start(ids[:40])
    session.score([], 0)
    held, context = session._held, member.context
    assert held is not None

    def interrupted(parts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "_take_in", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.compute([asked(context, held, 40, some_ids(20, 9))])
    monkeypatch.undo()
    same(session.score(ids[40:], 20), member_of(path).start(ids).score([], 0))


def test_what_somebody_has_left_is_not_written_to_by_who_was_there_before(path: Path) -> None:
    """A thread that Ctrl-C took out of the queue gives its sequence back before the pass begins."""
    member, ids = member_of(path), some_ids(60)
    session = member.start(ids[:40])
    session.score([], 0)
    held, context = session._held, member.context
    assert held is not None
    late = asked(context, held, 30, some_ids(20, 9))
    late.gone = True
    context.compute([late, asked(context, held, 40, ids[40:50])])
    assert (late.result, held.ids) == ([], ids[:50])
    same(session.score(ids[40:], 20), member_of(path).start(ids).score([], 0))


def test_who_leaves_when_a_pass_begins_is_in_it_or_forgotten(toy: Path) -> None:
    """Never both: others would read what the pass writes to a sequence that is theirs by now."""
    member = member_of(toy, reuse_bytes=0)
    session = member.start(some_ids(40))
    session.score([], 0)
    held, context = session._held, member.context
    assert held is not None
    part, sort_in = asked(context, held, 40, some_ids(5, 1)), context._sort_in

    def leaves() -> None:
        part.gone = True
        context.give_back(held)
        context._sort_in = sort_in  # type: ignore[method-assign]
        sort_in()

    context._sort_in = leaves  # type: ignore[method-assign]
    context.compute([part])
    assert (part.result, held.ids) == ([], [])
    assert written(member, some_ids(30, 2), 2) == written(member_of(toy), some_ids(30, 2), 2)


def test_a_stop_that_comes_late_hits_no_pass(toy: Path) -> None:
    member, ids = member_of(toy), some_ids(20)
    member.context.stop()
    same(member.start(ids).score([], 0), member_of(toy).start(ids).score([], 0))


class Interrupting:
    """Raises KeyboardInterrupt at the nth line of a context's module."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != contexts.__file__ or frame.f_code.co_name == "_release":
            return None
        line = linecache.getline(contexts.__file__, frame.f_lineno).strip()
        if event == "line" and not line.startswith(("with ", "return")):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("cut", [20, 45, 50], ids=["copied", "cut back", "longer"])
def test_ctrl_c_anywhere_in_a_context_leaves_no_trace(path: Path, cut: int) -> None:
    """At all lines, one after another: where a sequence is taken, and where a pass is computed."""
    member, ids, draft = member_of(path), some_ids(50), some_ids(6, 9)
    fresh, prompt = member_of(path).start([*ids[:cut], *some_ids(5, cut)]), some_ids(5, cut)
    expected = [*fresh.score(draft[:3], 3), *fresh.score([*draft[:2], 7], 2)]
    nth = 1
    while True:
        written(member, ids, 1)
        session, interrupting = member.start([*ids[:cut], *prompt]), Interrupting(nth)
        if nth % 2:
            session.score(draft, 0)
        sys.settrace(interrupting)
        with suppress(KeyboardInterrupt):
            session.score(draft[:3], 3)
            session.score([*draft[:2], 7], 2)
        sys.settrace(None)
        if nth % 3 == 0:  # another one takes the sequence over
            session.close()
            session = member.start([*ids[:cut], *prompt])
        rows = [*session.score(draft[:3], 3), *session.score([*draft[:2], 7], 2)]
        session.close()
        same(rows, expected)
        if interrupting.left > 0:
            break
        nth += 1
    assert nth > 40


def test_rows_of_before_ctrl_c_are_not_taken_for_others(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequence is gone, and reading it again is cancelled between two parts."""
    member, prompt, draft = member_of(toy, reuse_bytes=0), some_ids(250), some_ids(5, 1)
    go_on = yes_after(99)
    session = member.start(prompt, lambda: go_on())
    monkeypatch.setattr(queue, "_is_short", lambda parts: True)
    session.score(draft, 0)

    def interrupted(part: Part) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(member.context.passes, "run", interrupted)
        session.score([*draft, 77], 2)
    go_on = yes_after(1)
    with pytest.raises(GenerationCancelled):
        session.score([*draft, 77], 2)
    go_on = yes_after(99)
    same(session.score(draft, 0), member_of(toy).start(prompt).score(draft, 0))


def test_all_models_of_a_device_share_its_passes(toy: Path) -> None:
    """Also those of torch: two passes at once would stall one another."""
    for member in (member_of(toy), member_of(toy)):
        assert member.context.passes is queue.passes_on("cpu")


def test_a_sequence_is_had_while_others_compute_all_the_time(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of their passes, not when they are through."""
    member, ends, passes = member_of(toy), threading.Event(), list[int]()
    decode = member.context._decode

    def slowly(batch: Any) -> int:
        passes.append(0)
        time.sleep(0.002)
        return decode(batch)

    def write(seed: int) -> None:
        session = member.start(some_ids(10, seed))
        while not ends.is_set():
            session.score(some_ids(3, len(passes)), 0)
        session.close()

    monkeypatch.setattr(member.context, "_decode", slowly)
    with ThreadPoolExecutor(2) as pool:
        try:
            writing = [pool.submit(write, seed) for seed in range(2)]
            while len(passes) < 5:
                time.sleep(0.001)
            for seed in range(10):
                before = len(passes)
                member.context.give_back(member.context.take(some_ids(5, seed)))
                assert len(passes) - before < 20
        finally:
            ends.set()
    for each in writing:
        each.result()


class Crowd:
    """Threads whose sessions begin alike, are cut back, cancelled, interrupted and closed.

    Attributes:
        rows: What they were told: prompt, new ids, since where, and rows.
        ended: How often their sessions ended in some way.
    """

    def __init__(self, member: LlamaMember, seed: int) -> None:
        self.rows: list[tuple[list[int], list[int], int, Sequence[Distribution]]] = []
        self.ended: Counter[str] = Counter()
        self._member = member
        self._seed = seed
        self._dice = random.Random(seed)
        shared = some_ids(200, seed)
        self._prompts = [shared[:n] for n in (1, 30, 90, 200)]
        self._prompts += [[*shared[:60], *some_ids(40, n)] for n in range(3)]

    def breaks_off(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Ctrl-C in front of something, or behind it."""

        def called(*args: Any) -> Any:
            if self._dice.random() < 0.01:
                raise KeyboardInterrupt
            result = function(*args)
            if self._dice.random() < 0.01:
                raise KeyboardInterrupt
            return result

        return called

    def come(self, nth: int) -> None:
        """One thread."""
        dice = random.Random(f"{self._seed} {nth}")
        for _ in range(4):
            prompt, many = dice.choice(self._prompts), dice.random() < 0.3
            prompt = [*prompt, *some_ids(300 if many else dice.randint(0, 9), nth)]
            weary = dice.random() < 0.3
            session = self._member.start(
                prompt, (lambda: dice.random() < 0.1) if weary else lambda: False
            )
            self.ended[self._write(session, prompt, dice)] += 1
            if dice.random() < 0.8:
                session.close()
            else:  # by whoever collects it
                threading.Timer(0.001, session.close).start()

    def _write(self, session: LlamaSession, prompt: list[int], dice: random.Random) -> str:
        ids: list[int] = []
        for _ in range(dice.randint(1, 6)):
            ids = ids[: dice.randint(0, len(ids))]
            ids += some_ids(dice.randint(0, 8), dice.randint(0, 10**6))
            since = dice.randint(max(0, len(ids) - 5), len(ids))
            try:
                self.rows.append((prompt, ids, since, session.score(ids, since)))
            except (GenerationCancelled, KeyboardInterrupt) as error:
                if dice.random() < 0.5:
                    return type(error).__name__
        return "whole"


@pytest.mark.parametrize("reuse_bytes", [0, 10**5, 10**9], ids=["nothing", "a little", "all"])
def test_many_threads_that_share_leave_and_break_off_at_random(
    path: Path, reuse_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is what it would have been alone, and no sequence is lost."""
    member = member_of(path, reuse_bytes=reuse_bytes)
    context, crowd = member.context, Crowd(member, reuse_bytes)
    monkeypatch.setattr(queue, "_GLANCE", 0.001)
    monkeypatch.setattr(queue, "_is_short", lambda parts: len(crowd.rows) % 2 == 0)
    for name in ("_decode", "_take_in", "_logits"):
        monkeypatch.setattr(context, name, crowd.breaks_off(getattr(context, name)))
    threads = [threading.Thread(target=crowd.come, args=(nth,), daemon=True) for nth in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        time.sleep(0.001)
    monkeypatch.undo()
    assert set(crowd.ended) == {"whole", "GenerationCancelled", "KeyboardInterrupt"}
    assert member.cache_bytes <= reuse_bytes
    numbers = [*context._free, *(held.number for held in context._idle)]
    assert sorted(numbers) == list(range(0, context._now.sequences, context._step))
    fresh = member_of(path, reuse_bytes=10**9)
    for prompt, ids, since, rows in crowd.rows[:: len(crowd.rows) // 30 + 1]:
        session = fresh.start([*prompt, *ids[:since]])
        same(rows, session.score(ids[since:], 0))
        session.close()
        fresh.forget()


def test_a_long_pass_ends_early_where_nobody_wants_it_any_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs: another thread computes it, and the caller's asks."""
    member, ids = member_of(path), some_ids(200)
    fill, entered, asked_for = member.context._batch.fill, threading.Event(), threading.Event()

    def waits(parts: Sequence[Ids]) -> Any:
        entered.set()
        assert asked_for.wait(20)
        return fill(parts)

    def cancel() -> bool:
        if entered.is_set():
            threading.Timer(0.1, asked_for.set).start()
        return entered.is_set()

    monkeypatch.setattr(member.context._batch, "fill", waits)
    session = member.start(ids, cancel)
    with pytest.raises(GenerationCancelled):
        session.score([], 0)
    assert session.work.tokens == 0
    monkeypatch.undo()
    session.close()
    same(member.start(ids).score([], 0), member_of(path).start(ids).score([], 0))


def test_an_unknown_token_is_an_error_of_its_session_alone(toy: Path) -> None:
    member, ids = member_of(toy), some_ids(10)
    good, bad = member.start(ids), member.start(ids)
    expected = good.score([], 0)[0].best
    held = member.context.take(ids)
    parts = [asked(member.context, good._held or held, 10, [50])]
    parts.append(asked(member.context, held, 0, [50, 10**6]))
    with pytest.raises(GenerationError, match="llama.cpp failed with code -1"):
        member.context.compute(parts)
    with pytest.raises(GenerationError):
        bad.score([10**6], 1)
    assert good.score([], 0)[0].best == expected
    same(good.score([50], 1), member_of(toy).start([*ids, 50]).score([], 0))


def test_a_session_can_be_closed_while_a_pass_runs(toy: Path) -> None:
    """The garbage collector does that, on any thread; waiting would be for ever."""
    member = member_of(toy)
    session = member.start([41, 42, 43])
    session.score([], 0)
    with member.context._lock:
        session.close()
    assert member.cache_bytes > 0
    again = member.start([41, 42, 43, 44])
    again.score([], 0)
    assert again.work.reused == 3


def test_a_session_that_has_read_nothing_can_be_closed(toy: Path) -> None:
    member = member_of(toy)
    member.start([41, 42]).close()
    session = member.start([41, 42], lambda: True)
    with suppress(GenerationCancelled):
        session.score([], 0)
    session.close()
    assert member.cache_bytes == 0
    assert len(member.context._free) == contexts._SEQUENCES


def test_a_model_that_nobody_holds_is_freed(toy: Path) -> None:
    member = member_of(toy)
    written(member, some_ids(5), 2)
    context, llama = weakref.ref(member.context), member.context._llama
    weights = weakref.ref(member.context._weights)
    del member
    gc.collect()
    assert context() is None
    assert weights() is None
    assert llama is not None


def test_a_loaded_model_is_neither_pickled_nor_copied(toy: Path) -> None:
    member = member_of(toy)
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(ModelError, match="name it, and each process will load it"):
            attempt(member)


def test_a_member_that_writes_another_form_is_the_same_model(toy: Path) -> None:
    member = member_of(toy)
    other = member.writing(FORMS["glm"])
    assert other is not member
    assert (other.context, other.name) == (member.context, member.name)
    prompt = some_ids(20)
    written(member, prompt, 2)
    session = other.start(prompt)
    session.score([], 0)
    assert session.work.reused == 20


def test_long_rotations_are_chosen_once(toy: Path) -> None:
    """llama.cpp chooses by the number of cells, which must not change what has been read."""
    values = {"phi3.rope.scaling.original_context_length": "4096"}
    weights: Any = SimpleNamespace(architecture="phi3", value=values.get)
    assert contexts._sizes(weights, 4096) == (1024, 4096)
    assert contexts._sizes(weights, 4097)[0] > 4096
    values["phi3.rope.scaling.type"] = "yarn"
    assert contexts._sizes(weights, 131072)[0] == 1024


def test_cells_that_may_not_grow_are_an_error(toy: Path) -> None:
    member = member_of(toy)
    member.context._most = 1024
    sessions = [member.start(some_ids(500, seed)) for seed in range(3)]
    for session in sessions[:2]:
        session.score([], 0)
    with pytest.raises(GenerationError, match="1024 tokens are the most"):
        sessions[2].score([], 0)
    sessions[0].close()
    sessions[2].score([], 0)


def engine_of(*members: Any, **options: Any) -> SafeEngine:
    drafter, *verifiers = (load_member(member) for member in members)
    return SafeEngine(drafter, verifiers, EnsembleConfig(**options))


def test_a_prompt_that_does_not_fit_is_told(toy: Path) -> None:
    engine = engine_of(ModelSpec(source=str(toy), context_window=16))
    with pytest.raises(ContextWindowError, match="whose context window is 16"):
        engine.complete("x" * 40)


@pytest.mark.parametrize("lookahead", [1, 4])
def test_an_ensemble_with_itself_writes_what_it_writes_alone(toy: Path, lookahead: int) -> None:
    one, two = (ModelSpec(source=str(toy), name=name) for name in ("one", "two"))
    engine = engine_of(one, two, lookahead=lookahead)
    member = load_member(one)
    assert isinstance(member, LlamaMember)
    options = GenerationConfig(max_tokens=40)
    for question in ("What jumps over the dog?", "The quick"):
        prompt = engine.drafter.render(as_messages(question))
        ids = written(member_of(toy), prompt, 40)
        symbols = [member.tokens.symbol(i) for i in ids]
        text = b"".join(takewhile(lambda symbol: symbol != END, symbols))
        assert engine.complete(question, options).text == text.decode(errors="replace")


def test_a_mixed_ensemble(toy: Path) -> None:
    """One member computed by llama.cpp, one by transformers."""
    other = toy_model("other", 400)
    for pair in ((ModelSpec(source=str(toy)), other), (other, ModelSpec(source=str(toy)))):
        engine = engine_of(*pair)
        result = engine.complete("The lazy dog", GenerationConfig(max_tokens=12))
        assert len(result.statistics.models) == 2
        assert all(model.forward_passes for model in result.statistics.models)


@pytest.mark.parametrize("unit", ["text", "token"])
def test_every_option_of_an_answer_is_kept_to(unit: Any, toy: Path, tmp_path: Path) -> None:
    """Drawing, weights, structure and forced tools, with two vocabularies."""
    tokens, merges = gguf_files.greedy('{"name": "Oslo"} A lazy ox')
    other = gguf_files.byte_level(
        tmp_path / "other.gguf", tokens, merges, added={"<end>": TokenType.CONTROL}, pre="gpt-2",
        weights=True, context_length=LENGTH, width=64, spread=0.2,
    )  # fmt: skip
    one, two = member_of(toy), member_of(other)

    def answer(config: EnsembleConfig, **options: Any) -> Result:
        options = {"max_tokens": 100} | options
        return SafeEngine(one, [two], config).complete("The fox", GenerationConfig(**options))

    even = EnsembleConfig(unit=unit)
    draw = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3}
    assert answer(even, **draw).text != answer(even, **draw | {"seed": 4}).text
    favourites = [answer(EnsembleConfig(unit=unit, weights=w)).text for w in ((1, 0), (0, 1))]
    assert favourites[0] != favourites[1]
    city = {"type": "string", "maxLength": 9}
    schema = {
        "type": "object", "properties": {"city": city}, "required": ["city"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "schema": schema}
    assert list(json.loads(answer(even, response_format=form).text)) == ["city"]
    weather = Tool(name="weather", parameters=schema)
    called = answer(even, tools=[weather], tool_choice="required").text
    assert called.startswith("<tool_call>") and '"weather"' in called and '"city"' in called
