"""What becomes of an answer when a server fails: an error that says whose, what and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from faulty_server import (
    Fault,
    FaultyServer,
    Kind,
    changes,
    closes,
    cuts,
    drips,
    is_silent,
    refuses,
    says,
    scripted,
    served,
    serving,
    stops_in_the_middle,
    until,
)

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import ServerError
from safe_integrations.models.served import client as client_module
from safe_integrations.models.served.client import Client
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

pytestmark = pytest.mark.timeout(60)

KINDS: tuple[Kind, ...] = get_args(Kind)
TEXT = b"one two three four"


def member_named(name: str) -> ScriptedMember:
    return ScriptedMember(name, [], follows(TEXT, sure=0.8))


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[FaultyServer]:
    with serving(request.param, scripted(member_named("served"))) as server:
        yield server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.001)


def client_of(server: FaultyServer, timeout: float = 20, retries: int = 2) -> Client:
    return Client("served", server.url, None, timeout, retries)


# Answers that are none


def rows_of(data: Any) -> list[Any]:
    """The rows of an answer of any kind, to be changed in place."""
    if isinstance(data, dict) and "choices" in data:
        return [row for one in data["choices"] for row in one["logprobs"]["top_logprobs"]]
    if isinstance(data, dict) and "meta_info" in data:
        told = data["meta_info"]
        return [*told["input_top_logprobs"][1:], *told["output_top_logprobs"]]
    results = data if isinstance(data, list) else [data]
    places = [place for one in results for place in one.get("completion_probabilities", ())]
    return [place["top_logprobs"] for place in places]


def with_value(value: Any) -> Callable[[Any], None]:
    """The first log-probability of every row replaced."""

    def change(data: Any) -> None:
        for row in rows_of(data):
            if isinstance(row, dict):
                row[next(iter(row))] = value
            elif isinstance(row[0], dict):
                row[0]["logprob"] = value
            else:
                row[0][0] = value

    return change


def with_id(token_id: Any) -> Callable[[Any], None]:
    """The first id of every row replaced."""

    def change(data: Any) -> None:
        for row in rows_of(data):
            if isinstance(row, dict):
                row[f"token_id:{token_id}"] = row.pop(next(iter(row)))
            elif isinstance(row[0], dict):
                row[0]["id"] = token_id
            else:
                row[0][1] = token_id

    return change


def empty(data: Any) -> None:
    for row in rows_of(data):
        row.clear()


def fewer(data: Any) -> None:
    """A row is missing."""
    if isinstance(data, list):
        data.pop()
    elif "choices" in data:
        data["choices"].pop()
    else:
        data["meta_info"]["input_top_logprobs"].pop()


ODD: list[tuple[Callable[[Any], Any], str]] = [
    (lambda _: {}, "its answer is not one of"),
    (lambda _: [], "its answer is not one of|0 rows"),
    (lambda _: "yes", "its answer is not one of"),
    (with_value("likely"), "its answer is not one of"),
    (with_value(None), "its answer is not one of"),
    (with_value([]), "its answer is not one of"),
    (with_value(float("nan")), "tells no log-probabilities"),
    (with_value(0.5), "tells no log-probabilities"),
    (with_value(float("inf")), "tells no log-probabilities"),
    (with_id(-1), "tells ids below 0"),
    (with_id("a"), "its answer is not one of"),
    (empty, "tells no token that is text"),
]


@pytest.mark.parametrize(("change", "says_so"), ODD)
@pytest.mark.parametrize("drafts", [True, False])
def test_an_answer_that_is_none_is_not_asked_for_again(
    server: FaultyServer, change: Callable[[Any], Any], says_so: str, drafts: bool
) -> None:
    server.always(changes(change))
    session = served(server, member_named("served"), client=client_of(server)).start([0])
    with pytest.raises(ServerError, match=f"^served: {server.url}: .*({says_so}).*serving.md"):
        session.draft([], 3).result() if drafts else session.score([0], 0)
    assert len(server.asked) == 1


def test_too_few_rows(server: FaultyServer) -> None:
    server.always(changes(fewer))
    session = served(server, member_named("served"), client=client_of(server)).start([0])
    with pytest.raises(ServerError, match="1 rows, not 2|not one of"):
        session.score([0], 0)


@pytest.mark.parametrize(("change", "says_so"), [ODD[0], ODD[3], ODD[6], ODD[7]])
def test_an_odd_answer_to_a_question(
    server: FaultyServer, change: Callable[[Any], Any], says_so: str
) -> None:
    """Of NaN, nobody would see anything but another text."""
    member = served(server, member_named("served"), 1, client=client_of(server))
    (row,) = member.start([0]).score([], 0)

    def asked(data: Any) -> Any:
        told = data.get("meta_info") if isinstance(data, dict) else None
        if told is not None:  # where SGLang tells what it was asked for
            told["output_top_logprobs"] = told["output_token_ids_logprobs"]
            changed = change(data)
            told["output_token_ids_logprobs"] = told["output_top_logprobs"]
            return changed
        return change(data)

    server.always(changes(asked))
    with pytest.raises(ServerError, match=says_so):
        row.logprobs([ord("?")])


def test_another_model_is_noticed(server: FaultyServer) -> None:
    """Somebody has restarted the server with another one."""
    if server.kind == "sglang":
        pytest.skip("it does not say which model has answered")

    def change(data: Any) -> None:
        for one in data if isinstance(data, list) else [data]:
            one["model"] = "other"

    server.always(changes(change))
    session = served(server, member_named("served"), client=client_of(server)).start([0])
    with pytest.raises(ServerError, match="it serves other now, and served served; load"):
        session.score([], 0)


# Answers of several models

FAULTS: list[tuple[Fault, str, int | None]] = [
    (closes, "broke the connection off", None),
    (stops_in_the_middle, "broke the connection off", None),
    (cuts, "sent something that is no JSON", None),
    (says("<html></html>", kind="text/html"), "no JSON: '<html>", None),
    (refuses(400, "too long"), "answered: too long", 400),
    (refuses(401), "api_key", 401),
    (refuses(404), "the name of the model", 404),
    (refuses(429), "raise max_retries", 429),
    (refuses(500), "look into its log", 500),
    (refuses(503), "raise max_retries", 503),
    (is_silent, "has not answered within 0.4 seconds.*set request_timeout", None),
    (drips, "has not answered within 0.4 seconds.*set request_timeout", None),
    (says("", 302, Location="http://localhost:1"), "the address that it sends you to", 302),
]


@pytest.mark.parametrize(("fault", "says_so", "status"), FAULTS)
@pytest.mark.parametrize("drafts", [True, False])
def test_a_fault_ends_the_answer_and_no_other(
    server: FaultyServer, fault: Fault, says_so: str, status: int | None, drafts: bool
) -> None:
    local = member_named("local")
    timeout = 0.4 if fault in (is_silent, drips) else 20
    remote = served(server, member_named("served"), client=client_of(server, timeout))
    pair: list[Any] = [remote, local] if drafts else [local, remote]
    engine = SafeEngine(pair[0], pair[1:], EnsembleConfig(lookahead=2))
    server.play(None, None)
    server.always(fault)
    with pytest.raises(ServerError, match=f"^served: http.*{says_so}") as caught:
        engine.complete("Go.", GenerationConfig(max_tokens=30))
    assert caught.value.status == status
    assert all(session.closed for session in local.sessions)
    assert until(lambda: server.open <= 2)
    server.play(*[None] * 1000)
    assert engine.complete("Go.").text.encode() == TEXT


@pytest.mark.parametrize("drafts", [True, False])
def test_what_passes_is_not_noticed(server: FaultyServer, drafts: bool) -> None:
    local, remote = member_named("local"), served(server, member_named("served"))
    pair: list[Any] = [remote, local] if drafts else [local, remote]
    server.play(*[closes, None, refuses(503), refuses(429), None, cuts] * 20)
    assert SafeEngine(pair[0], pair[1:]).complete("Go.").text.encode() == TEXT
