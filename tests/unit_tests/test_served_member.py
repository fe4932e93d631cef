"""A model on a server as a member: rows, drafts, questions, sessions, and what they cost."""

from __future__ import annotations

import _thread
import pickle
import threading
from collections.abc import Iterator, Sequence
from math import exp, inf, log
from typing import Any, get_args

import pytest
from faulty_server import (
    FaultyServer,
    Kind,
    Model,
    answers_after,
    at_random,
    is_silent,
    scripted,
    served,
    serving,
    until,
)

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.tokens import TokenTable
from safe_integrations.errors import GenerationCancelled, ModelError, ServerError
from safe_integrations.models.served import client as client_module
from safe_integrations.models.served.client import CONNECTIONS
from safe_integrations.models.served.dialect import Row
from safe_integrations.models.served.member import ServedMember, TopFold
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

pytestmark = pytest.mark.timeout(120)

KINDS: tuple[Kind, ...] = get_args(Kind)
TEXT = b"one two three four"


def member_named(name: str = "served", text: bytes = TEXT, **given: Any) -> ScriptedMember:
    return ScriptedMember(name, [b"one", b"two", b" t"], follows(text, sure=0.8), **given)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def server(kind: Kind) -> Iterator[FaultyServer]:
    with serving(kind, scripted(member_named())) as server:
        yield server


# Rows and drafts


def test_rows_are_those_of_the_model(server: FaultyServer) -> None:
    whole, member = member_named(), served(server, member_named())
    ids = whole.tokens.encode(b"one tw")
    rows = member.start([0]).score(ids, 2)
    assert len(server.asked) == 1, "several rows in one request"
    expected = whole.start([0]).score(ids, 2)
    assert len(rows) == len(ids) - 1
    for row, other in zip(rows, expected, strict=True):
        assert row.best == other.best
        assert row.top(2) == other.top(2)
        assert row.logprobs(row.top(2)) == other.logprobs(row.top(2))


def test_what_is_not_told_is_asked_for(server: FaultyServer, kind: Kind) -> None:
    whole, member = member_named(), served(server, member_named(), 1)
    (row,) = member.start([0]).score([], 0)
    likely, other = whole.tokens.id_of(b"o"), whole.tokens.id_of(b"?")
    assert likely is not None and other is not None
    assert row.top(3) == [likely]
    assert row.bounds([other])[1] == [False]
    assert row.logprobs([likely]) == [pytest.approx(log(0.8))]
    assert len(server.asked) == 1, "what was told is not asked for"
    assert row.logprobs([other, likely]) == [pytest.approx(log(0.2)), pytest.approx(log(0.8))]
    assert len(server.asked) == 2
    row.logprobs([other])
    assert len(server.asked) == 2, "what was asked for is known"


def test_a_vllm_is_asked_for_128_ids_at_a_time() -> None:
    with serving("vllm", at_random(400, name="served")) as server:
        member = served(server, member_named(), 2, tokens=letters(400))
        (row,) = member.start([0]).score([], 0)
        wanted = [i for i in range(8, 400) if i not in row.top(9)][:300]
        values = row.logprobs(wanted)
        sizes = [len(seen.body["logprob_token_ids"]) for seen in server.asked[1:]]
        assert sizes == [128, 128, 44]
        expected = server.models[0].row([0])
        silent = sum(exp(expected[i]) for i in (0, 2) if i in best_two(expected))
        assert values == pytest.approx([expected[i] - log(1 - silent) for i in wanted])


def test_a_draft_is_what_the_model_writes_alone(server: FaultyServer) -> None:
    whole, member = member_named(), served(server, member_named())
    behind = whole.tokens.encode(b"one ")
    ids, rows = member.start([0]).draft(behind, 4).result()
    assert b"".join(map(whole.tokens.symbol, ids)) == b"two "
    assert [row.best for row in rows] == list(ids)
    assert len(server.asked) == 1


def test_a_draft_ends_where_the_text_does(server: FaultyServer) -> None:
    tokens = member_named().tokens
    session = served(server, member_named()).start([0])
    ids, rows = session.draft(tokens.encode(TEXT[:-2]), 9).result()
    assert [tokens.symbol(i) for i in ids[:2]] == [b"u", b"r"]
    assert list(ids[2:]) == [tokens.end_id]
    assert len(rows) == 3
    assert rows[-1].best == tokens.end_id


@pytest.mark.parametrize("room", [1, 2, 3, 9])
def test_near_the_window_less_is_drafted(kind: Kind, room: int) -> None:
    """A server refuses what may not fit, whether or not it would have been written."""
    tokens = member_named().tokens
    window = 1 + len(tokens.encode(TEXT[:8])) + room
    member = member_named(context_window=window)
    with serving(kind, scripted(member)) as server:
        ids, _ = served(server, member).start([0]).draft(tokens.encode(TEXT[:8]), 5).result()
        assert len(ids) == min(room, 5)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("served_drafter", [True, False])
def test_an_answer_may_fill_the_window(kind: Kind, extra: int, served_drafter: bool) -> None:
    """To the last token, and the row behind it: is it the end?"""
    window = 1 + len(TEXT) + extra  # it writes byte by byte
    member = member_named(context_window=window)
    local = member_named("local", context_window=window)
    limits = GenerationConfig(max_tokens=100)
    with serving(kind, scripted(member)) as server:
        remote = served(server, member)
        pair: list[Any] = [remote, local] if served_drafter else [local, remote]
        result = SafeEngine(pair[0], pair[1:]).complete("Go.", limits)
    alone = SafeEngine(local, [member]).complete("Go.", limits)
    assert result.text == alone.text
    assert result.text.encode() == TEXT[: len(TEXT) + extra]
    assert result.finish_reason == alone.finish_reason


# Ids that are no tokens of their own


def letters(size: int) -> TokenTable:
    """Ids 1 and 3 stand for `a`, 5 and 7 for the end, 0 and 2 for nothing."""
    symbols: list[bytes | None] = [str(i).encode() for i in range(size)]
    symbols[0] = symbols[2] = None
    symbols[1] = symbols[3] = b"a"
    return TokenTable(symbols, {5, 7}, lambda text: [])


def test_aliases_are_added_and_silent_ids_taken_off() -> None:
    fold = TopFold(letters(10))
    told = {1: 0.1, 3: 0.2, 5: 0.05, 7: 0.15, 2: 0.2, 12: 0.2, 4: 0.1}
    known, gone = fold(Row([*told], [log(p) for p in told.values()]))
    assert gone == pytest.approx(0.4)
    expected = {1: 0.3 / 0.6, 5: 0.2 / 0.6, 4: 0.1 / 0.6}
    assert {i: exp(v) for i, v in known.items()} == pytest.approx(expected)


def test_what_silent_ids_have_may_be_known_from_a_longer_row() -> None:
    fold = TopFold(letters(10))
    known, gone = fold(Row([4, 2], [log(0.1), log(0.2)]), 0.5)
    assert gone == 0.5
    assert exp(known[4]) == pytest.approx(0.2)


def test_a_row_of_nothing_but_infinity_and_silence_stays_finite() -> None:
    fold = TopFold(letters(10))
    known, gone = fold(Row([1, 3, 2], [-inf, -inf, 0.0]))
    assert (known[1], gone) == (-inf, 1.0)


def test_who_asks_for_an_id_asks_for_its_aliases() -> None:
    fold = TopFold(letters(10))
    assert sorted(fold.spelled([1, 4, 5])) == [1, 3, 4, 5, 7]


def best_two(row: Sequence[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda i: -row[i])[:2]


def of_table(server: FaultyServer, probabilities: dict[int, float], top: int) -> ServedMember:
    def row(ids: Sequence[int]) -> list[float]:
        return [log(probabilities[i]) if i in probabilities else -inf for i in range(12)]

    server.models[:] = [Model(row, name="served", ends=frozenset({5, 7}))]
    return served(server, member_named(), top, tokens=letters(10))


PLACE = {0: 0.3, 1: 0.1, 3: 0.22, 4: 0.12, 5: 0.03, 6: 0.08, 7: 0.05, 11: 0.1}


def test_a_row_is_over_canonical_ids(server: FaultyServer) -> None:
    (row,) = of_table(server, PLACE, 10).start([0]).score([], 0)
    assert row.top(9) == [1, 4, 5, 6]
    values = [exp(value) for value in row.logprobs([1, 4, 5, 6])]
    assert values == pytest.approx([p / 0.6 for p in (0.32, 0.12, 0.08, 0.08)])


def test_an_alias_that_was_not_told_is_asked_for(server: FaultyServer) -> None:
    """END has two ids, and neither is among the first four."""
    (row,) = of_table(server, PLACE, 4).start([0]).score([], 0)
    assert row.top(9) == [1, 4]
    (told,) = row.logprobs([5])
    # of the silent ids the row told 0, and of 11 nothing is known
    assert exp(told) == pytest.approx(0.08 / 0.7)


def test_the_best_of_some_ids_may_be_one_by_another_name(server: FaultyServer) -> None:
    """Many models end a turn with an id that is not their first end."""
    place = {0: 0.3, 4: 0.3, 8: 0.2, 9: 0.05, 6: 0.04, 5: 0.001, 7: 0.06, 1: 0.02, 3: 0.029}
    (row,) = of_table(server, place, 3).start([0]).score([], 0)
    found = row.best_of([1, 5, 6])
    assert next(iter(found)) == 5
    assert exp(found[5]) == pytest.approx(0.061 / 0.7)
    assert exp(row.logprobs([1])[0]) == pytest.approx(0.049 / 0.7)


def test_a_row_without_text_is_an_error_that_says_so(server: FaultyServer) -> None:
    session = of_table(server, PLACE, 1).start([0])
    with pytest.raises(ServerError, match="served: .*tells no token that is text"):
        session.score([], 0)


# Sessions


def test_a_session_counts_what_it_asks_for(server: FaultyServer) -> None:
    session = served(server, member_named()).start([0, 0, 0])
    session.score([], 0)
    work = session.work
    assert (work.passes, work.requests, work.tokens, work.reused) == (1, 1, 3, 0)
    session.draft([], 2).result()
    assert (work.passes, work.requests) == (3, 2)
    assert work.received > 100
    assert work.seconds > 0


def test_closing_a_session_cancels_what_is_open(server: FaultyServer) -> None:
    server.always(is_silent)
    session = served(server, member_named()).start([0])
    asked = [session.begin([], 0), session.draft([], 3), session.draft([1], 3)]
    assert until(lambda: len(server.asked) == 3)
    session.close()
    assert until(lambda: all(seen.left for seen in server.asked), 1.0)
    for one in asked:
        with pytest.raises(GenerationCancelled):
            one.result()
    assert until(lambda: server.open == 0)
    session.close()


def test_a_session_that_is_told_to_stop_stops(server: FaultyServer) -> None:
    server.always(is_silent)
    stop = threading.Event()
    session = served(server, member_named()).start([0], stop.is_set)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(GenerationCancelled):
        session.score([], 0)
    assert until(lambda: server.open == 0, 1.0)


def test_a_thousand_sessions_at_once(server: FaultyServer) -> None:
    """All are answered, over no more connections than there may be."""
    server.always(answers_after(0.2))
    member = served(server, member_named())
    sessions = [member.start([0]) for _ in range(1000)]
    asked = [session.begin([], 0) for session in sessions]
    assert until(lambda: server.open == CONNECTIONS, 30)
    best = member.tokens.id_of(b"o")
    assert [rows[0].best for rows in (one.result() for one in asked)] == [best] * 1000
    assert server.most_open == CONNECTIONS
    assert server.accepted <= CONNECTIONS * 1.1, "and again over the same"


def test_connections_that_are_too_many_are_closed(
    kind: Kind, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always(answers_after(0.2))
    member = served(server, member_named())
    session = member.start([0])
    for one in [session.begin([], 0) for _ in range(20)]:
        one.result()
    assert server.open > 10
    monkeypatch.setattr(client_module, "_IDLE_SECONDS", 0.0)
    session.score([], 0)
    assert until(lambda: server.open <= 1)
    session.score([], 0)


def test_a_served_member_is_not_pickled(server: FaultyServer) -> None:
    with pytest.raises(ModelError, match="cannot be pickled"):
        pickle.dumps(served(server, member_named()))


# Answers


@pytest.mark.parametrize("unit", ["text", "token"])
def test_an_answer_that_all_are_sure_of_takes_few_requests(kind: Kind, unit: Any) -> None:
    text = b"one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    members = [member_named(name, text) for name in ("drafter", "verifier")]
    with serving(kind, scripted(members[0])) as one, serving(kind, scripted(members[1])) as two:
        pair = [served(server, m) for server, m in zip((one, two), members, strict=True)]
        config = EnsembleConfig(unit=unit, lookahead=8)
        result = SafeEngine(pair[0], pair[1:], config).complete("Go.")
        assert result.text.encode() == text
        tokens = len(members[0].tokens.encode(text))
        assert len(one.asked) <= tokens / 8 + 3
        assert len(two.asked) <= tokens / 8 + 3


@pytest.mark.parametrize("who", ["drafter", "verifier"])
def test_a_server_that_is_killed_ends_the_answer(
    kind: Kind, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)
    members = [member_named(name, TEXT * 3) for name in ("drafter", "verifier")]
    with serving(kind, scripted(members[0])) as one, serving(kind, scripted(members[1])) as two:
        servers = (one, two)
        pair = [served(server, m) for server, m in zip(servers, members, strict=True)]
        events = SafeEngine(pair[0], pair[1:], EnsembleConfig(lookahead=2)).generate("Go.")
        next(events)
        next(events)
        killed = servers[who == "verifier"]
        killed.leave()
        with pytest.raises(
            ServerError, match=f"^{who}: {killed.url[:-3]}.* cannot be reached.*start"
        ):
            list(events)
        killed.start()
        result = SafeEngine(pair[0], pair[1:]).complete("Go.")
        assert result.text.encode() == TEXT * 3, "once it is back, all is as before"


def test_ctrl_c_ends_an_answer_and_all_that_it_asked_for(server: FaultyServer) -> None:
    members: list[Any] = [member_named("local"), served(server, member_named())]
    server.play(None)
    server.always(is_silent)
    threading.Timer(0.3, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        SafeEngine(members[0], members[1:]).complete("Go.")
    assert len(server.asked) > 1
    assert until(lambda: server.open <= 1, 1.0), "one may be free"


@pytest.mark.parametrize("drafts", [True, False])
def test_an_answer_that_is_cancelled_closes_what_it_asked_for(
    server: FaultyServer, drafts: bool
) -> None:
    server.play(None)
    server.always(is_silent)
    stop = threading.Event()
    local, remote = member_named("local"), served(server, member_named())
    pair: list[Any] = [remote, local] if drafts else [local, remote]
    events = SafeEngine(pair[0], pair[1:]).generate("Go.", cancel=stop.is_set)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(GenerationCancelled):
        list(events)
    assert len(server.asked) > 1
    assert until(lambda: server.open <= 1, 1.0)
