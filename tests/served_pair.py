"""The pair on two llama-servers, and an answer of it, for tests of what stands above the engine."""

from __future__ import annotations

import pytest

from safe_integrations.config import GenerationConfig
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report.result import Result
from safe_integrations.safe_engine import load_engine
from tests.server_process import Server

QUESTION = "What is 2+2?"


@pytest.fixture(scope="module")
def specs(smollm2_server: Server, gemma3_server: Server) -> list[ModelSpec]:
    servers = {"smollm2": smollm2_server, "gemma3": gemma3_server}
    return [ModelSpec(source=server.url, name=name) for name, server in servers.items()]


@pytest.fixture(scope="module")
def expected(specs: list[ModelSpec]) -> Result:
    """What the engine writes."""
    engine = load_engine(specs[0], specs[1:])
    return engine.complete(QUESTION, GenerationConfig(max_tokens=8))
