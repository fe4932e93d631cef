"""The two real models, loaded once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from safe_integrations.models.load import load_member
from safe_integrations.models.spec import LoadedModel, ModelSpec
from safe_integrations.models.transformers.load import load_model
from safe_integrations.models.transformers.member import TransformersMember
from tests.llama_server import llama_server
from tests.server_process import Server


@pytest.fixture(scope="session")
def smollm2_model() -> LoadedModel:
    return load_model(ModelSpec(source="smollm2-135m"))


@pytest.fixture(scope="session")
def gemma3_model() -> LoadedModel:
    return load_model(ModelSpec(source="gemma3-270m"))


@pytest.fixture(scope="session")
def smollm2(smollm2_model: LoadedModel) -> TransformersMember:
    member = load_member(smollm2_model)
    assert isinstance(member, TransformersMember)
    return member


@pytest.fixture(scope="session")
def gemma3(gemma3_model: LoadedModel) -> TransformersMember:
    member = load_member(gemma3_model)
    assert isinstance(member, TransformersMember)
    return member


@pytest.fixture(scope="session")
def smollm2_server() -> Iterator[Server]:
    """llama.cpp's own server with a place for one text."""
    with llama_server("smollm2-135m") as server:
        yield server


@pytest.fixture(scope="session")
def gemma3_server() -> Iterator[Server]:
    with llama_server("gemma3-270m") as server:
        yield server
