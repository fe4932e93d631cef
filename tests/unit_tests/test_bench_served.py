"""The benchmark of served members: its numbers add up. Nothing here asserts a time."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from elsewhere import RemoteMember

from benchmarks import served as b
from benchmarks.__main__ import _urls
from benchmarks.delays import delayed
from benchmarks.tables_served import tables
from benchmarks.trips import Trip, noting_trips
from benchmarks.turns import Answers, Turns
from safe_integrations.config import EnsembleConfig
from safe_integrations.engine.events import ModelStatistics, Statistics
from safe_integrations.errors import InvalidArgumentError
from safe_integrations.models.served.client import Client, Reply
from safe_integrations.models.spec import ModelSpec
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

# requests


class Asked:
    """A request that is answered; `result` takes 2 seconds of the clock."""

    def __init__(self, ticks: Iterator[int]) -> None:
        self.ticks = ticks
        self.cancelled = False

    def done(self) -> bool:
        return True

    def cancel(self) -> None:
        self.cancelled = True

    def result(self) -> Reply:
        next(self.ticks)
        return Reply({"a": 1}, 8, 5.0)


def test_requests_are_noted_as_they_were_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    asked: list[Asked] = []

    def begin(*_: Any) -> Asked:
        asked.append(Asked(ticks))
        return asked[-1]

    client = Client("a", "http://localhost:1/v1", None, 1, 0)
    monkeypatch.setattr(client, "begin", begin)
    members: Sequence[Any] = [SimpleNamespace(name="a", client=client), SimpleNamespace(name="b")]
    with noting_trips(members, lambda: next(ticks)) as trips:
        wanted, dropped = client.begin("u", "12345"), client.begin("u", "123")
        assert trips == [Trip("a", 5), Trip("a", 3)]
        assert wanted.done() and wanted.result() == Reply({"a": 1}, 8, 5.0)
        dropped.cancel()
    assert trips == [Trip("a", 5, 8, 5.0, 2), Trip("a", 3)]
    assert [one.cancelled for one in asked] == [False, True]
    assert client.begin is begin


def answers(**more: Any) -> Answers:
    models = [
        ModelStatistics("a", 1, seconds=1.0, requests=4, received_bytes=100),
        ModelStatistics("b", 1, seconds=0.5, requests=2, received_bytes=60),
    ]
    statistics = [Statistics(tokens=10, cycles=5, seconds=2.0, models=models)]
    return Answers(10, 4.0, 0.2, statistics, **more)


def test_numbers_per_token() -> None:
    trips = [
        Trip("a", 50, 25, 1.0, 0.5),
        Trip("a", 50, 25, 3.0, 3.0),
        Trip("a", 50, 25, 2.0, 0.5),
        Trip("a", 50),
        Trip("b", 20, 30, 0.25, 0.25),
    ]
    told = answers(trips=trips)
    assert (told.speed, told.checked, told.sent) == (2.5, 2, 22)
    assert told.outside == pytest.approx(50) and told.computed == pytest.approx(20)
    assert told.per_token("requests") == 0.6 and told.per_token("received_bytes") == 16
    assert told.waited_trips == pytest.approx((4 / 2 + 1) / 10)
    assert told.trip("a") == 2000 and told.trip("c") is None


def test_ratios_are_made_within_each_repetition() -> None:
    turns = Turns([{"x": Answers(4, 2), "y": Answers(4, 4)}, {"x": Answers(9, 1)}])
    ratio, speed = turns.ratio("x", "y"), turns.over("x", lambda one: one.speed)
    assert ratio and (ratio.median, ratio.low, ratio.high) == (2, 2, 2)
    assert speed and (speed.low, speed.high) == (2, 9)
    assert turns.over("z", lambda one: one.speed) is None and turns.ratio("y", "z") is None


# answers


def test_the_drafter_goes_on_unless_it_is_told_not_to() -> None:
    text, config = b"one two three four five six seven", EnsembleConfig(lookahead=5)
    drafter = ScriptedMember("a", [], follows(text.replace(b"five", b"FIVE"), sure=0.55))
    verifier = ScriptedMember("b", [], follows(text, sure=0.9))
    in_vain = []
    for drafts_on in (True, False):
        members = [RemoteMember(drafter), RemoteMember(verifier)]
        engine = SafeEngine(members[0], members[1:], config)
        found = b.by_engine(engine, ["Go."] * 3, 2, drafts_on, 60)
        assert len(found.statistics) == 3
        assert found.tokens == sum(s.tokens for s in found.statistics)
        requests = sum(len(member.requests) for member in members)
        assert found.per_token("requests") * found.tokens == pytest.approx(requests)
        in_vain.append(members[0].dropped)
    assert in_vain[0] > in_vain[1] == 0


def test_busy_functions_are_found_and_waiting_is_not() -> None:
    member = ScriptedMember("a", [], follows(b"one two"))
    found = b.profile(SafeEngine(RemoteMember(member)), ["Go."])
    assert 0 < len(found) <= 16
    assert [row[2] for row in found] == sorted((row[2] for row in found), reverse=True)
    assert not any("acquire" in name for name, *_ in found)


# a network


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while chunk := self.request.recv(1 << 16):
            self.request.sendall(chunk)


def test_a_delayed_server_gets_and_sends_every_byte_and_the_end() -> None:
    import socket

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = delayed(f"http://127.0.0.1:{server.server_address[1]}/v1", 0.02)
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        sent = bytes(range(256)) * 2000
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2][:-3]))) as here:
            here.settimeout(30)
            threading.Thread(target=here.sendall, args=[sent], daemon=True).start()
            received = b""
            while len(received) < len(sent):
                received += here.recv(1 << 16)
            assert received == sent
        server.shutdown()


# what is shown


def test_tables_and_file_hold_what_was_measured() -> None:
    measured = b.Served("a -> b", {"a": "vLLM", "b": "vLLM"})
    one = answers()
    measured.levels[4] = Turns([{b.PAIR: one, b.ALONE: Answers(10, 2.0)}])
    ways = [b.way(who, how) for who in (b.SERVED, b.MIXED) for how in (b.ON, b.OFF)]
    measured.overlap[10] = Turns([dict.fromkeys(ways, one)])
    measured.lookaheads = Turns([{str(n): one for n in b.LOOKAHEADS}])
    measured.profile = [("f.py:g", 1.5, 0.25)]
    data = json.loads(json.dumps(measured.to_dict()))
    assert data["levels"]["4"]["ratio"]["median"] == 0.5
    assert data["overlap"]["10"]["gain"][b.SERVED]["median"] == 1
    told = data["levels"]["4"]["repetitions"][0]
    assert told[b.ALONE] == {"tokens": 10, "seconds": 2.0}
    assert told[b.PAIR]["models"]["a"]["requests"] == 4
    assert [len(table.columns) for table in tables(measured)] == [2, 2, 6, 3]


def test_servers_are_named_for_all_models_or_for_none() -> None:
    specs = [ModelSpec(source="a"), ModelSpec(source="b")]
    assert _urls(None, None, specs) == []
    assert _urls("http://a/v1", "http://b/v1", specs) == ["http://a/v1", "http://b/v1"]
    for given in (("http://a/v1", None), (None, "http://b/v1")):
        with pytest.raises(InvalidArgumentError, match="--drafter-url"):
            _urls(*given, specs)
