"""Requests to servers: connections, retries, cancelling, and keys that stand nowhere."""

from __future__ import annotations

import _thread
import gc
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from faulty_server import (
    Fault,
    FaultyServer,
    answers_after,
    at_random,
    changes,
    closes,
    cuts,
    drips,
    is_silent,
    refuses,
    says,
    serving,
    stops_in_the_middle,
    until,
)

from safe_integrations.errors import GenerationCancelled, InvalidArgumentError, ServerError
from safe_integrations.models.served import client as module
from safe_integrations.models.served.client import Client

pytestmark = pytest.mark.timeout(60)

KEY = 'sk-sesame-"open\\this-0123456789'
BODY = {"model": "toy", "prompt": [1, 2], "max_tokens": 1, "logprobs": 2}


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving("vllm", at_random(50)) as server:
        yield server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.001)


def client_of(server: FaultyServer, retries: int = 2, timeout: float = 20.0) -> Client:
    return Client("toy", server.url, server.key, timeout, retries)


def post(client: Client) -> Any:
    return client.begin(f"{client.url}/completions", json.dumps(BODY)).result().data


def begin(client: Client, **given: Any) -> module.Asked:
    return client.begin(f"{client.url}/completions", json.dumps(BODY), **given)


# Connections


def test_an_answer_comes_with_its_size_and_time(server: FaultyServer) -> None:
    reply = begin(client_of(server)).result()
    assert reply.data["model"] == "toy"
    assert reply.size == len(json.dumps(reply.data))
    assert reply.seconds > 0
    seen = server.requests[0]
    assert (seen.method, seen.path, seen.body) == ("POST", "/v1/completions", BODY)
    assert seen.headers["content-type"] == "application/json"
    assert "authorization" not in seen.headers


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_events_hold_any_text(server: FaultyServer, end: str) -> None:
    events = [{"token": "a\u2028b\u2029c\x85d"}, {"token": "é"}]
    body = "".join(f"data: {json.dumps(e, ensure_ascii=False)}{end}" for e in events)
    server.play(says(f": a comment{end}{body}", kind="text/event-stream; charset=utf-8"))
    assert post(client_of(server, retries=0)) == events


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_slash_at_the_end_of_an_address_changes_nothing(slash: str) -> None:
    client = Client("toy", f"http://localhost:8000/v1{slash}", None, 1, 0)
    assert (client.url, client.root) == ("http://localhost:8000/v1", "http://localhost:8000")


def test_one_connection_is_enough_for_requests_in_turn(server: FaultyServer) -> None:
    client = client_of(server)
    for _ in range(50):
        post(client)
    assert len(server.requests) == 50
    assert server.accepted == 1


def test_an_error_leaves_the_connection_as_it_is(server: FaultyServer) -> None:
    client = client_of(server, retries=0)
    server.play(refuses(400), None, refuses(500), None, cuts, None)
    for _ in range(3):
        with pytest.raises(ServerError):
            post(client)
        post(client)
    assert server.accepted == 1


def test_connections_are_closed_with_their_client(server: FaultyServer) -> None:
    client = client_of(server)
    post(client)
    assert server.open == 1
    del client
    gc.collect()
    assert until(lambda: server.open == 0)


def test_who_waits_for_room_has_all_the_time(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request's time begins when it is sent, not when it was wished for."""
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    server.always(answers_after(0.2))
    client = client_of(server, timeout=0.8)
    asked = [begin(client) for _ in range(6)]
    assert [one.result().data["model"] for one in asked] == ["toy"] * 6
    assert server.most_open == 1


# Retries


@pytest.mark.parametrize(
    "fault",
    [closes, stops_in_the_middle, cuts, refuses(503), refuses(429), refuses(500), refuses(502)],
)
def test_what_may_pass_is_asked_for_again(server: FaultyServer, fault: Fault) -> None:
    server.play(fault, fault)
    assert post(client_of(server))["model"] == "toy"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "requests"),
    [
        *((refuses(status), 1) for status in (400, 401, 403, 404, 405, 413, 422, 501)),
        *((refuses(status), 3) for status in (408, 425, 429, 500, 502, 503, 504)),
        (closes, 3),
        (stops_in_the_middle, 3),
        (cuts, 3),
        (says("", 302, Location="/v1/completions"), 1),
        (is_silent, 1),
        (drips, 1),
    ],
)
def test_what_will_not_pass_is_not(server: FaultyServer, fault: Fault, requests: int) -> None:
    """Nor what has taken too long: it would take as long again."""
    server.always(fault)
    with pytest.raises(ServerError):
        post(client_of(server, timeout=0.5 if fault in (is_silent, drips) else 20))
    assert len(server.requests) == requests


def test_without_retries_everything_is_asked_once(server: FaultyServer) -> None:
    server.play(refuses(503))
    with pytest.raises(ServerError, match="raise max_retries"):
        post(client_of(server, retries=0))
    assert len(server.requests) == 1


def test_a_seed_of_the_program_stays_as_it_is(server: FaultyServer) -> None:
    state = random.getstate()
    server.play(refuses(503), closes)
    post(client_of(server))
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("told", "pause"), [("7", 7.0), ("1000000", 8.0), ("soon", 0.0), ("-3", 0.0), ("", 0.0)]
)
def test_a_server_may_say_when_to_come_again(
    told: str, pause: float, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.play(refuses(429, Retry_After=told), None)
    caplog.set_level(logging.DEBUG, module.__name__)
    asked = begin(client_of(server))
    assert until(lambda: "once more in" in caplog.text)
    assert f"once more in {pause:.1f} s" in caplog.text
    asked.cancel()


# Stopping


@pytest.mark.parametrize("fault", [is_silent, drips])
def test_cancelling_closes_the_connection(server: FaultyServer, fault: Fault) -> None:
    server.always(fault)
    asked = begin(client_of(server))
    assert until(lambda: len(server.requests) == 1)
    assert not asked.done()
    asked.cancel()
    assert until(lambda: server.requests[0].left, 1.0)
    assert asked.done()
    with pytest.raises(GenerationCancelled):
        asked.result()
    assert until(lambda: server.open == 0)


def test_who_waits_may_ask_to_stop(server: FaultyServer) -> None:
    server.always(is_silent)
    stop = threading.Event()
    asked = begin(client_of(server), cancel=stop.is_set)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(GenerationCancelled):
        asked.result()
    assert until(lambda: server.open == 0, 1.0)


def test_a_pause_before_a_retry_can_be_cancelled(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 60)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 60)
    server.always(refuses(503))
    stop = threading.Event()
    asked = begin(client_of(server), cancel=stop.is_set)
    assert until(lambda: len(server.requests) == 1)
    stop.set()
    with pytest.raises(GenerationCancelled):
        asked.result()
    assert len(server.requests) == 1


def test_who_waits_for_room_can_be_cancelled(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    server.play(is_silent, None)
    client = client_of(server)
    first, second, third = (begin(client) for _ in range(3))
    assert until(lambda: len(server.requests) == 1)
    second.cancel()
    first.cancel()
    assert third.result().data["model"] == "toy", "what was cancelled has left its place"
    assert len(server.requests) == 2


def test_a_cancelled_client_is_as_good_as_new(server: FaultyServer) -> None:
    """Of connections that break off none may be lost to those that come later."""
    client = client_of(server)
    server.play(*[is_silent] * 300)
    for nth in range(1, 4):
        asked = [begin(client) for _ in range(100)]
        assert until(lambda: len(server.requests) == 100 * nth)  # noqa: B023
        for one in asked:
            one.cancel()
        assert until(lambda: server.open == 0)
    server.play()
    assert [one.result().data["model"] for one in [begin(client) for _ in range(300)]]
    assert server.most_open <= module.CONNECTIONS


def test_ctrl_c_leaves_nothing_open(server: FaultyServer) -> None:
    server.always(is_silent)
    asked = begin(client_of(server))
    assert until(lambda: len(server.requests) == 1)
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        asked.result()
    assert until(lambda: server.requests[0].left, 1.0)


_AT_THE_END = """
import sys
from safe_integrations.models.served.client import Client
client = Client("toy", sys.argv[1], None, 60, 3)
asked = client.begin(sys.argv[1] + "/models")
if {wait}:
    asked.result()
"""


@pytest.mark.parametrize("wait", [True, False])
def test_a_process_ends_whatever_is_open(server: FaultyServer, wait: bool) -> None:
    if not wait:
        server.always(is_silent, "/v1/models")
    done = subprocess.run(
        [sys.executable, "-c", _AT_THE_END.format(wait=wait), server.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


_FORKED = """
import os, signal, sys
from safe_integrations.models.served.client import Client
client = Client("toy", sys.argv[1], None, 60, 0)
client.get(sys.argv[1] + "/models")
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(20)
Client("toy", sys.argv[1], None, 60, 0).get(sys.argv[1] + "/models")
os._exit(7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_asks_by_itself(server: FaultyServer) -> None:
    """It has no thread that sends requests, and would wait for ever for the parent's."""
    done = subprocess.run([sys.executable, "-c", _FORKED, server.url], timeout=60)
    assert done.returncode == 7
    assert len(server.requests) == 2


# What comes back


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("fault", "says_so"),
    [
        (says("<html>Welcome</html>", kind="text/html"), "no JSON: '<html>Welcome"),
        (says(""), "no JSON: ''"),
        (says("", 204), "no JSON: ''"),
        (says("1" * 5000), "no JSON: '1111"),
        (says(b"\xff\xfe"), "no JSON"),
        (says(DEEP), r"no JSON: '\[\[\["),
        (says(DEEP, 500), r"answered: \[\[\["),
        (says(b"xx", Content_Encoding="gzip"), "broke the connection off"),
        (says("<html>Bad  \n gateway</html>", 502), "answered: <html>Bad gateway"),
        (says('{"detail": "Not Found"}', 404), "answered: Not Found"),
        (says('{"message": "oh"}', 500), "answered: oh"),
        (says('{"object": "error", "message": {"a": 1}}', 500), 'answered: {"a": 1}'),
        (says(b"\xff", 500, "text/plain; charset=klingon"), "answered: "),
        (says("", 500), "answered: So"),
        (says("", 302, Location="http://localhost:1/"), r"\(status 302\); write the address"),
        (says("x" * 10_000, 500), r"x{297}\.\.\. \(status"),
    ],
)
def test_whatever_comes_back_is_an_error_that_says_so(
    server: FaultyServer, fault: Fault, says_so: str
) -> None:
    server.always(fault)
    with pytest.raises(ServerError, match=says_so) as caught:
        post(client_of(server, retries=0))
    assert server.url in str(caught.value)
    assert caught.value.model == "toy"
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v1",
        "http://127.0.0.1:99999/v1",
        "http://xn--/v1",
        "http://localhost\x00/v1",
        "https://127.0.0.1:{port}/v1",
    ],
)
def test_an_address_where_nobody_is(url: str, server: FaultyServer) -> None:
    url = url.format(port=server.port)
    with pytest.raises(ServerError, match="^toy: http.*; start it, or check the address"):
        Client("toy", url, None, 5, 0).get(f"{url}/models")


@pytest.mark.parametrize(
    ("name", "value"),
    [("HTTP_PROXY", "foo://127.0.0.1:1"), ("HTTP_PROXY", "http://[::1"), ("SSL_CERT_FILE", "/no")],
)
def test_a_broken_environment_is_an_error_of_ours(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ServerError, match="the proxies of the environment"):
        Client("toy", "http://127.0.0.1:1/v1", None, 5, 0)


def test_a_stream_may_hold_every_kind_of_line_end(server: FaultyServer) -> None:
    """In its tokens; servers write them as they are."""
    token = {"token": "a\u2028b\x85c\u2029"}
    event = json.dumps(token, ensure_ascii=False)
    server.always(says(f"data: {event}\r\n\r\ndata: 1\n\n", kind="text/event-stream"))
    assert post(client_of(server, retries=0)) == [token, 1]


# Keys


@pytest.mark.parametrize("key", ["ключ", "two words", "line\n", "", "nul\x00", "\x7f"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^api_key='\.\.\.'") as caught:
        Client("toy", "http://localhost:1/v1", key, 5, 0)
    shown = "".join(traceback.format_exception(caught.value))
    assert not key.strip() or key not in shown


def echoed(server: FaultyServer) -> list[Fault]:
    """Answers in which the key stands."""
    spelled = json.dumps(KEY)
    return [
        says(KEY, 401),
        says(json.dumps({"error": {"message": f"wrong key {KEY}"}}), 401),
        says(json.dumps({"error": {"message": "x" * 285 + KEY}}), 401),
        says(json.dumps({"error": {"key": KEY}}), 500),
        says(f"<html>{KEY}</html>"),
        says("<" + "x" * 70 + KEY),
        says(f"<html>{spelled}</html>"),
        says("", 302, Location=f"http://localhost/{KEY[:10]}"),
    ]


@pytest.mark.parametrize("nth", range(8))
def test_a_key_stands_in_no_error_and_no_log(
    nth: int, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a part of it."""
    server.key = KEY
    caplog.set_level(logging.DEBUG)
    for name in [*logging.root.manager.loggerDict]:
        caplog.set_level(logging.DEBUG, name)
    client = client_of(server, retries=1)
    assert post(client)["model"] == "toy", "it was shown"
    server.always(echoed(server)[nth])
    with pytest.raises(ServerError) as caught:
        post(client)
    error = caught.value
    shown = [
        "".join(traceback.format_exception(error)),
        repr(error),
        repr(error.__cause__),
        str(pickle.dumps(error)),
        repr(client),
        caplog.text.replace(f"http://localhost/{KEY[:10]}", ""),  # httpcore shows headers
    ]
    assert len(caplog.records) > 5
    for text in shown:
        assert KEY not in text
        assert "sesame" not in text


def test_a_model_that_is_called_like_the_key(server: FaultyServer) -> None:
    from safe_integrations.models.served.find import find

    server.key = KEY

    def named(*names: str) -> Fault:
        return changes(lambda _: {"data": [{"id": n, "owned_by": n} for n in names]})

    for fault in (named(KEY, "b"), named(KEY), says(json.dumps({"data": KEY}))):
        server.always(fault, "/v1/models")
        with pytest.raises((ServerError, InvalidArgumentError)) as caught:
            find(client_of(server), None)
        assert "sesame" not in str(caught.value)
