"""Models on servers write what the same models write in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, get_args

import pytest
from cases import World, ci, configs, options, worlds
from faulty_server import FaultyServer, Kind, scripted, served, serving
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import Oracle

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.engine.events import Verdict
from safe_integrations.models.served.client import Client
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine
from safe_integrations.testing import ScriptedMember, follows

pytestmark = pytest.mark.timeout(300)

KINDS: tuple[Kind, ...] = get_args(Kind)
TINY = 1e-6
MODELS = 3
with_servers = settings(
    ci, suppress_health_check=[*ci.suppress_health_check, HealthCheck.function_scoped_fixture]
)
seen: Counter[str] = Counter()


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[Kind, list[tuple[FaultyServer, Client]]]]:
    """One for each model and kind; what they serve changes with every case."""
    with ExitStack() as stack:
        made: dict[Kind, list[tuple[FaultyServer, Client]]] = {}
        for kind in KINDS:
            made[kind] = []
            for nth in range(MODELS):
                server = stack.enter_context(serving(kind))
                client = Client(f"model-{nth}", server.url, None, 20, 0)
                made[kind].append((server, client))
        yield made


Servers = dict[Kind, list[tuple[FaultyServer, Client]]]


def complete(members: Sequence[Any], config: EnsembleConfig, limits: GenerationConfig) -> Result:
    return SafeEngine(members[0], members[1:], config).complete("Go.", limits)


def what(result: Result) -> list[tuple[int, bytes, bytes, Verdict]]:
    return [(p.start, p.proposed, p.written, p.verdict) for p in result.pieces]


def assert_same(
    data: st.DataObject, servers: Servers, world: World, config: EnsembleConfig, top: int
) -> None:
    limits = data.draw(options(world.plan))
    whole = world.members()
    if config.unit == "token":
        assume(Oracle(whole, config, limits).write("Go.").margin > TINY)
    members: list[Any] = []
    used: list[FaultyServer] = []
    for nth, member in enumerate(whole):
        kind = data.draw(st.sampled_from([None, *KINDS]))
        if kind is None:
            members.append(member)
            continue
        server, client = servers[kind][nth]
        server.models, server.requests = [scripted(member)], []
        members.append(served(server, member, top, client=client))
        used.append(server)
    assume(used)
    result = complete(members, config, limits)
    alone = complete(world.members(), config, limits)
    assert result.text == alone.text
    assert what(result) == what(alone)
    assert result.finish_reason == alone.finish_reason
    seen["answers"] += 1
    seen["merges"] += sum(piece.ensembled for piece in result.pieces)
    seen["questions"] += sum(
        "logprob_token_ids" in one.body
        or "token_ids_logprob" in one.body
        or one.body.get("n_probs", 0) > top
        for server in used
        for one in server.asked
    )


@pytest.mark.parametrize("unit", ["text", "token"])
@settings(with_servers, max_examples=40)
@given(data=st.data())
def test_at_full_width_the_text_is_the_same(
    unit: str, servers: Servers, data: st.DataObject
) -> None:
    world = data.draw(worlds(models=st.integers(2, MODELS)))
    config = data.draw(configs(len(world.vocabularies), method="unite", unit=unit))
    assert_same(data, servers, world, config, 10_000)


@pytest.mark.parametrize("unit", ["text", "token"])
@pytest.mark.parametrize("top", [64, 10, 2])
@settings(with_servers, max_examples=25)
@given(data=st.data())
def test_with_few_ids_the_text_is_the_same(
    unit: str, top: int, servers: Servers, data: st.DataObject
) -> None:
    world = data.draw(worlds(models=st.integers(2, MODELS)))
    world = World(world.plan, world.vocabularies, world.seed, 1.0, world.end, world.windows)
    k = data.draw(st.integers(1, min(10, top)))
    config = data.draw(configs(len(world.vocabularies), method="unite", unit=unit, union_top_k=k))
    assert_same(data, servers, world, config, top)


def test_the_cases_above_merged_and_asked() -> None:
    if seen["answers"] < 200:
        pytest.skip("they ran in another process")
    assert seen["merges"] > 100
    assert seen["questions"] > 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["text", "token"])
@pytest.mark.parametrize("ids", [2, 64])
def test_a_text_that_all_are_sure_of_needs_no_questions(
    kind: Kind, unit: Any, ids: int, servers: Servers
) -> None:
    """Fewer than one request for two tokens, of each of the models."""
    text = b"The sky is blue because of Rayleigh scattering, they say, and so is the sea. "
    plan = [ScriptedMember(f"model-{nth}", [], follows(text, sure=0.95)) for nth in range(3)]
    members = []
    for (server, client), member in zip(servers[kind], plan, strict=True):
        server.models, server.requests = [scripted(member)], []
        members.append(served(server, member, ids, client=client))
    config = EnsembleConfig(unit=unit, lookahead=8, union_top_k=2)
    result = complete(members, config, GenerationConfig(max_tokens=200))
    assert result.text.encode() == text
    for server, _ in servers[kind]:
        assert len(server.asked) <= len(text) / 2
