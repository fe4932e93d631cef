"""The default pair behind real servers of llama.cpp, against the same weights computed here.

A server reads one token at a time where a member here reads several in a pass, so rows differ by
rounding; partings are treated as in test_llama_real.py.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from safe_integrations.cli.app import app
from safe_integrations.config import EnsembleConfig, GenerationConfig, JsonSchema, Tool
from safe_integrations.engine.events import Event, Finished, TextDelta, Verdict
from safe_integrations.engine.tokens import END
from safe_integrations.errors import GenerationCancelled, ModelLoadError, ServerError
from safe_integrations.messages import as_messages
from safe_integrations.models.load import load_member
from safe_integrations.models.served.client import CONNECTIONS
from safe_integrations.models.served.member import ServedMember
from safe_integrations.models.spec import ModelSpec
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows
from tests.llama_pair import PAIR, alike, at_once, hangs, member_of
from tests.llama_server import llama_server
from tests.prompts import PROMPTS
from tests.rounding import Told, told
from tests.server_process import Server

SMOLLM2, GEMMA3 = PAIR
TOKENS = 10
AT_ONCE = 16


def served(server: Server, name: str, called: str | None = None, **given: Any) -> ServedMember:
    """A member; under another name, it has connections of its own."""
    spec = ModelSpec(source=server.url, tokenizer=name, name=called or name, **given)
    member = load_member(spec)
    assert isinstance(member, ServedMember)
    return member


def answer(engine: SafeEngine, prompt: str, tokens: int = TOKENS) -> list[Told]:
    return told(engine.complete(prompt, GenerationConfig(max_tokens=tokens)).pieces)


def ask(server: Server, path: str, body: dict[str, Any] | None = None) -> Any:
    """What the server itself answers."""
    url = f"{server.address}{path}"
    method = "GET" if body is None else "POST"
    return httpx.request(method, url, json=body, timeout=60).raise_for_status().json()


def idle(server: Server) -> bool:
    return not any(slot["is_processing"] for slot in ask(server, "/slots"))


def wait_until(happens: Callable[[], bool], every: float = 0.05) -> None:
    """Ends the test where it does not."""
    for _ in range(int(30 / every)):
        if happens():
            return
        threading.Event().wait(every)
    raise AssertionError("it never happened")


def wait_until_idle(server: Server) -> None:
    """It looks for who has gone when it has answered nobody for a second."""
    wait_until(lambda: idle(server), every=1.5)


def everything_given_back(member: ServedMember) -> bool:
    """Whether nothing is under way to a server, and no place on it is taken."""
    assert member.client._room._value <= CONNECTIONS
    return member.client._room._value == CONNECTIONS


@pytest.mark.parametrize("unit", ["text", "token"])
@pytest.mark.parametrize("prompt", ["What is 2+2?", PROMPTS[5], "Write ten emojis."])
def test_a_model_verified_by_itself_writes_what_its_server_writes(
    unit: Any, prompt: str, smollm2_server: Server
) -> None:
    """Token for token: END, and tokens that end inside a character."""
    member = served(smollm2_server, SMOLLM2)
    twin = served(smollm2_server, SMOLLM2, "twin")
    engine = SafeEngine(member, [twin], EnsembleConfig(unit=unit))
    body = {
        "prompt": member.render(as_messages(prompt)),
        "n_predict": 12,
        "temperature": 0,
        "return_tokens": True,
    }
    ids = ask(smollm2_server, "/completion", body)["tokens"]
    symbols = [member.tokens.symbol(i) for i in ids]
    assert symbols[-1] == END or not all(symbol.isascii() for symbol in symbols)
    local = SafeEngine(member_of(SMOLLM2), [member_of(SMOLLM2, "twin")])
    expected = [(symbol, Verdict.UNANIMOUS) for symbol in symbols]
    alike(local, prompt, answer(engine, prompt, 12), expected)


@cache
def here(unit: Any, prompt: str) -> tuple[SafeEngine, list[Told]]:
    engine = SafeEngine(member_of(SMOLLM2), [member_of(GEMMA3)], EnsembleConfig(unit=unit))
    return engine, answer(engine, prompt)


@pytest.mark.parametrize("unit", ["text", "token"])
@pytest.mark.parametrize("computed", ["here and there", "there and here", "there and there"])
def test_wherever_models_compute_they_write_the_same(
    unit: Any, computed: str, smollm2_server: Server, gemma3_server: Server
) -> None:
    prompt = PROMPTS[2]
    drafter, verifier = (place == "there" for place in computed.split(" and "))
    engine = SafeEngine(
        served(smollm2_server, SMOLLM2) if drafter else member_of(SMOLLM2),
        [served(gemma3_server, GEMMA3) if verifier else member_of(GEMMA3)],
        EnsembleConfig(unit=unit),
    )
    local, expected = here(unit, prompt)
    assert any(verdict in (Verdict.CONFIRMED, Verdict.CHANGED) for _, verdict in expected)
    alike(local, prompt, answer(engine, prompt), expected)


def test_a_server_with_several_slots_is_refused() -> None:
    """Its slots share no texts: each would have to read every text that is checked."""
    with llama_server(SMOLLM2, slots=2) as server:
        with pytest.raises(ModelLoadError, match="start it with --parallel 1"):
            served(server, SMOLLM2)


def test_answers_beside_others_are_what_they_are_alone(
    smollm2_server: Server, gemma3_server: Server
) -> None:
    drafter, verifier = served(smollm2_server, SMOLLM2), served(gemma3_server, GEMMA3)
    engine = SafeEngine(drafter, [verifier])
    asked = PROMPTS[20 : 20 + AT_ONCE]
    alone = [answer(engine, prompt, 3) for prompt in asked]
    beside = at_once(lambda n: answer(engine, asked[n], 3), AT_ONCE)
    wait_until(lambda: everything_given_back(drafter) and everything_given_back(verifier))
    parted = [pair for pair in zip(asked, beside, alone, strict=True) if pair[1] != pair[2]]
    print(f"{len(parted)} of {len(asked)} part")
    local = SafeEngine(member_of(SMOLLM2), [member_of(GEMMA3)])
    assert all(hangs(local, *pair) for pair in parted)


def events_until(events: Iterator[Event], stop: Callable[[Event], bool]) -> None:
    for event in events:
        if stop(event):
            return
    raise AssertionError("the answer is over")


def test_a_server_that_ends_while_it_is_asked(gemma3_server: Server) -> None:
    """And is started again: with another model, and with its own."""
    options = GenerationConfig(max_tokens=40)
    with llama_server(SMOLLM2, alias="one", api_key="sesame") as server:
        with pytest.raises(ModelLoadError, match="lost: .* set api_key"):
            served(server, SMOLLM2, "lost", api_key="open")
        lost = served(server, SMOLLM2, "lost", api_key="sesame", max_retries=1)
        drafter = served(gemma3_server, GEMMA3)
        engine = SafeEngine(drafter, [lost])
        expected = answer(engine, PROMPTS[2])
        going_on = SafeEngine(drafter, [lost], EnsembleConfig(on_missing="continue"))
        others = [e.generate(PROMPTS[2], options) for e in (engine, going_on)]
        for events in others:
            events_until(events, lambda event: isinstance(event, TextDelta))
        server.kill()
        for events in (others[0], engine.generate(PROMPTS[2], options)):
            with pytest.raises(ServerError, match=f"lost: {server.address}") as failure:
                list(events)
            assert failure.value.model == "lost" and failure.value.status is None
        *_, finished = others[1]
        assert isinstance(finished, Finished) and finished.statistics.lost.keys() == {"lost"}
        assert finished.statistics.tokens == 40
    with llama_server(GEMMA3, port=server.port, alias="other", api_key="sesame"):
        with pytest.raises(ServerError, match="it serves other now, and served one"):
            engine.complete(PROMPTS[2], options)
    with llama_server(SMOLLM2, port=server.port, alias="one", api_key="sesame"):
        assert answer(engine, PROMPTS[2]) == expected
    for member in (drafter, lost):
        wait_until(lambda: everything_given_back(member))  # noqa: B023


@pytest.fixture(scope="module")
def slow_server() -> Iterator[Server]:
    """It looks up from a prompt often: while it computes it does not see who has gone."""
    with llama_server(SMOLLM2, window=4096, n_batch=16, n_ubatch=16) as server:
        yield server


@pytest.mark.parametrize("role", ["drafter", "verifier"])
def test_cancelled_while_a_server_reads_a_prompt(role: str, slow_server: Server) -> None:
    """It reads no further."""
    slow = served(slow_server, SMOLLM2)
    members = [slow] if role == "drafter" else [ScriptedMember("quick", [], follows(b"Yes")), slow]
    prompt = f"As a {role}: {' '.join(PROMPTS * 6)}"
    length = len(slow.render(as_messages(prompt)))
    assert length > 3000
    cancel = threading.Event()
    events = SafeEngine(members[0], members[1:]).generate(prompt, cancel=cancel.is_set)

    def watch() -> None:
        wait_until(lambda: not idle(slow_server))
        cancel.set()

    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(GenerationCancelled):
        list(events)
    watching.join()
    wait_until_idle(slow_server)
    assert ask(slow_server, "/slots")[0]["n_prompt_tokens"] < length
    assert everything_given_back(slow)


def test_cancelled_in_the_middle_of_an_answer(
    smollm2_server: Server, gemma3_server: Server
) -> None:
    members = served(smollm2_server, SMOLLM2), served(gemma3_server, GEMMA3)
    cancel = threading.Event()
    events = SafeEngine(members[0], members[1:]).generate(PROMPTS[2], cancel=cancel.is_set)
    events_until(events, lambda event: isinstance(event, TextDelta))
    cancel.set()
    with pytest.raises(GenerationCancelled):
        list(events)
    wait_until_idle(smollm2_server)
    wait_until_idle(gemma3_server)
    wait_until(lambda: all(map(everything_given_back, members)))


def test_statistics_tell_what_servers_did(smollm2_server: Server, gemma3_server: Server) -> None:
    """A second question over the same context is mostly read already."""
    engine = SafeEngine(served(smollm2_server, SMOLLM2), [served(gemma3_server, GEMMA3)])
    options, context = GenerationConfig(max_tokens=4), " ".join(PROMPTS[6:12])
    first = engine.complete(f"{context}\nWhich of these is about poems?", options)
    second = engine.complete(f"{context}\nWhich of these is about fruits?", options)
    for before, after in zip(first.statistics.models, second.statistics.models, strict=True):
        assert before.forwarded_tokens >= before.prompt_tokens - before.reused_tokens
        assert before.reused_tokens < 0.5 * before.prompt_tokens
        assert after.reused_tokens > 0.8 * after.prompt_tokens
        assert 0 < after.requests <= after.forward_passes < after.forwarded_tokens
        assert after.received_bytes > 1000 * after.requests


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SCHEMA = {
    "type": "object",
    "properties": {"legs": {"type": "integer", "maximum": 99}, "tame": {"type": "boolean"}},
    "required": ["legs", "tame"],
    "additionalProperties": False,
}


def test_an_answer_in_a_form(smollm2_server: Server, gemma3_server: Server) -> None:
    engine = SafeEngine(served(smollm2_server, SMOLLM2), [served(gemma3_server, GEMMA3)])
    form = JsonSchema(schema=SCHEMA)
    result = engine.complete("Describe a cat.", GenerationConfig(response_format=form))
    value = json.loads(result.text)
    assert value.keys() == {"legs", "tame"} and isinstance(value["tame"], bool)
    assert result.finish_reason == "stop"
    assert all(model.requests for model in result.statistics.models)


def test_a_call_of_a_tool(smollm2_server: Server, gemma3_server: Server) -> None:
    engine = SafeEngine(served(smollm2_server, SMOLLM2), [served(gemma3_server, GEMMA3)])
    tool = Tool(name="weather_in", description="Tells the weather.", parameters=CITY)
    options = GenerationConfig(tools=[tool], tool_choice="weather_in", max_tokens=60)
    text = engine.complete("What is the weather in Paris?", options).text
    assert re.search(r'"name": ?"weather_in", ?"arguments": ?\{"city": ?"[^"]*"\}', text), text


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def test_the_command_line(smollm2_server: Server, gemma3_server: Server) -> None:
    named = ("--drafter", smollm2_server.url, "--verifier", f"{gemma3_server.address}/")
    told = cli("generate", PROMPTS[3], "--max-tokens", "6", *named)
    engine = SafeEngine(served(smollm2_server, SMOLLM2), [served(gemma3_server, GEMMA3)])
    expected = engine.complete(PROMPTS[3], GenerationConfig(max_tokens=6))
    assert told.exit_code == 0 and told.stdout == f"{expected.text}\n"
    assert f"127.0.0.1:{smollm2_server.port}" in told.stderr
    found = cli("doctor", *named)
    assert found.exit_code == 0
    shown = " ".join(found.stdout.split())
    for server in (smollm2_server, gemma3_server):
        assert re.search(rf"{server.url}: [^ ]+\.gguf, llama-server, 64 ids per row", shown)
    missing = cli("doctor", "--drafter", "http://127.0.0.1:9/v1")
    assert missing.exit_code == 1
    assert "http://127.0.0.1:9/v1/models cannot be reached" in " ".join(missing.stdout.split())
    report = json.loads(cli("doctor", "--json", *named).stdout)
    assert [model["tokens"] for model in report["models"]] == [49152, 262144]
    assert [model["context_window"] for model in report["models"]] == [2047, 2047]
    assert all("one text at a time" in model["takes_turns"] for model in report["models"])
