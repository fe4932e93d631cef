"""The pair on two vLLM servers writes what the same weights write in this process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from safe_integrations.config import EnsembleConfig, GenerationConfig
from safe_integrations.errors import InvalidArgumentError, ModelLoadError
from safe_integrations.models.embedded import EMBEDDED
from safe_integrations.models.load import unload_models
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import SafeEngine, load_engine
from tests.prompts import PROMPTS
from tests.rounding import hangs_on_rounding, told
from tests.server_process import Server

TOKENS = 48
NOISE = 3e-5  # log-probabilities of both differ by 3.5e-5
LIMITS = GenerationConfig(max_tokens=TOKENS)


@cache
def local() -> SafeEngine:
    drafter, *verifiers = (
        ModelSpec(source=name, backend="transformers", dtype="float32") for name in EMBEDDED
    )
    return load_engine(drafter, verifiers)


@cache
def written_here(prompt: str) -> Result:
    return local().complete(prompt, LIMITS)


@pytest.fixture(scope="module", autouse=True)
def _unload() -> Iterator[None]:
    yield
    written_here.cache_clear()
    local.cache_clear()
    unload_models()


def spec(server: Server, name: str, **options: object) -> ModelSpec:
    return ModelSpec(source=server.url, model=name, tokenizer=name, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(servers: dict[str, Server]) -> SafeEngine:
    drafter, *verifiers = (spec(server, name) for name, server in servers.items())
    return load_engine(drafter, verifiers)


def test_twenty_answers_are_those_of_this_process(served: SafeEngine) -> None:
    same, parted, tokens, requests = 0, [], 0, 0
    for prompt in PROMPTS[:20]:
        here, there = written_here(prompt), served.complete(prompt, LIMITS)
        tokens += there.statistics.tokens
        requests += sum(model.requests for model in there.statistics.models)
        if there.text == here.text:
            same += 1
        else:
            one, other = told(here.pieces), told(there.pieces)
            rounding = hangs_on_rounding(local(), prompt, one, other, [NOISE] * 2)
            parted.append((prompt, rounding, here.text, there.text))
    print(f"{same} of 20 the same; {requests / tokens:.2f} requests per token of {tokens}")
    for prompt, rounding, here_text, there_text in parted:
        print(f"parted{'' if rounding else ', NOT by rounding'}: {prompt}")
        print(f"  here  {here_text!r}\n  there {there_text!r}")
    assert all(rounding for _, rounding, *_ in parted)


@pytest.mark.parametrize("place", [0, 1])
def test_a_mixed_pair_writes_the_same(
    servers: dict[str, Server], served: SafeEngine, place: int
) -> None:
    """One of the two models computes here."""
    members = [*local().members]
    members[place] = served.members[place]
    for prompt in PROMPTS[13:16]:
        mixed = SafeEngine(members[0], members[1:]).complete(prompt, LIMITS)
        one, other = told(written_here(prompt).pieces), told(mixed.pieces)
        assert one == other or hangs_on_rounding(local(), prompt, one, other, [NOISE] * 2)


def test_a_model_that_verifies_itself_writes_its_own_text(served: SafeEngine) -> None:
    drafter = served.drafter
    for unit in ("text", "token"):
        config = EnsembleConfig(unit=unit)  # type: ignore[arg-type]
        both = SafeEngine(drafter, [drafter], config).complete(PROMPTS[13], LIMITS)
        alone = SafeEngine(drafter, [], config).complete(PROMPTS[13], LIMITS)
        assert both.text == alone.text


def test_a_prompt_is_not_read_twice(served: SafeEngine) -> None:
    prompt = "Read this. " * 60
    limits = GenerationConfig(max_tokens=2)
    served.complete(prompt, limits)
    for model in served.complete(prompt, limits).statistics.models:
        assert model.reused_tokens >= model.prompt_tokens - 32  # whole blocks only


def test_what_the_server_does_not_do_is_refused_at_the_start(servers: dict[str, Server]) -> None:
    drafter, verifier = EMBEDDED
    with pytest.raises(InvalidArgumentError, match="top_logprobs=200.* 128 at most"):
        load_engine(spec(servers[drafter], drafter, top_logprobs=200))
    with pytest.raises(InvalidArgumentError, match="model='nope'.* serves smollm2-135m"):
        load_engine(spec(servers[drafter], "nope"))
    swapped = ModelSpec(source=servers[drafter].url, tokenizer=verifier)
    with pytest.raises(ModelLoadError, match="splits text otherwise"):
        load_engine(swapped)
