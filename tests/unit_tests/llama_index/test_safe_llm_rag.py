"""Query engines and extractors: core takes a ValueError for an answer that may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, SummaryIndex
from llama_index.core.indices.property_graph import SimpleLLMPathExtractor
from llama_index.core.schema import TextNode
from pydantic import BaseModel
from scripted_llms import Model, writer

from safe_integrations.errors import (
    ContextWindowError,
    IncompleteAnswerError,
    InvalidArgumentError,
    SafeError,
)
from safe_integrations.llama_index import SafeCallError, SafeLLM
from safe_integrations.testing import follows
from tests.cut_off import doubtful


class Odd(BaseModel):
    """Its schema cannot be enforced."""

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"x": {"not": {}, "type": "string"}}, "if": {}}


class City(BaseModel):
    """A city."""

    name: str


def engine(llm: SafeLLM, mode: str, streaming: bool, **kwargs: Any) -> Any:
    index = SummaryIndex.from_documents(
        [Document(text=f"Document {i} is about Paris. " * 20) for i in range(3)]
    )
    return index.as_query_engine(
        llm=llm, response_mode=mode, streaming=streaming, embed_model=MockEmbedding(2), **kwargs
    )


class Long(Model):
    """Needs a token for every letter, as LlamaIndex does not know."""

    def render(self, messages: Any, *args: Any, **kwargs: Any) -> list[int]:
        super().render(messages, *args, **kwargs)
        return [0] * sum(len(message.content) for message in messages)


def long_for_its_window() -> SafeLLM:
    member = Long("drafter", [], follows(b"Paris."), context_window=900)
    return SafeLLM(drafter=member, max_tokens=9)


MODES = ["compact", "refine", "tree_summarize", "simple_summarize"]


async def asked(query: Any, how: str) -> str:
    if how == "aquery":
        response = await query.aquery("What is it about?")
    else:
        response = query.query("What is it about?")
    if hasattr(response, "response_gen"):
        return "".join(response.response_gen)
    return str(response)


@pytest.mark.parametrize("how", ["query", "streaming", "aquery"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_prompt_that_does_not_fit_is_an_error(mode: str, how: str) -> None:
    """Core answered from the documents that were left, or 'Empty Response'."""
    query = engine(long_for_its_window(), mode, how == "streaming")
    with pytest.raises(ContextWindowError, match=r"tokens long for drafter"):
        await asked(query, how)


@pytest.mark.parametrize("how", ["query", "streaming", "aquery"])
@pytest.mark.parametrize("mode", MODES)
async def test_wrong_weights_are_an_error(mode: str, how: str) -> None:
    """They are refused where the engine is made, inside the query."""
    query = engine(SafeLLM(drafter=writer(b"Paris."), weights=(0.5, 0.5)), mode, how == "streaming")
    with pytest.raises(SafeCallError, match="weights=.*give 1, one per model") as caught:
        await asked(query, how)
    assert isinstance(caught.value.__cause__, InvalidArgumentError)


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_a_schema_that_cannot_be_enforced_is_an_error(mode: str, how: str) -> None:
    query = engine(SafeLLM(drafter=writer(b""), strict=True), mode, False, output_cls=Odd)
    with pytest.raises(SafeCallError, match="not"):
        await asked(query, how)


@pytest.mark.parametrize("how", ["query", "aquery"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_an_object_that_was_cut_off_is_an_error(mode: str, how: str) -> None:
    def endless(written: bytes) -> Mapping[bytes, float]:
        wanted = b'<tool_call>\n{"name": "City", "arguments": {"name": "'
        return {wanted[len(written) : len(written) + 1] or b"a": 1.0}

    llm = SafeLLM(drafter=Model("drafter", [], doubtful(endless)), max_tokens=90)
    query = engine(llm, mode, False, output_cls=City)
    with pytest.raises(
        IncompleteAnswerError,
        match=r"max_tokens ran out \(it cut /arguments/name\): raise max_tokens",
    ):
        await asked(query, how)


async def test_extractors_do_not_take_an_error_for_no_triplets() -> None:
    extractor = SimpleLLMPathExtractor(llm=long_for_its_window(), num_workers=1)
    with pytest.raises(ContextWindowError):
        await extractor.acall([TextNode(text="Paris is in France. " * 100)])


def test_no_error_of_a_call_is_one_that_core_swallows() -> None:
    """Whatever a call raises; what is wrong with a constructor's argument may be a ValueError."""
    swallowed = (ValueError, TypeError)
    kinds = [kind for kind in _all_of(SafeError) if issubclass(kind, swallowed)]
    assert kinds == [InvalidArgumentError], "which calls raise as SafeCallError"


def _all_of(kind: type) -> list[type]:
    ours = [k for k in kind.__subclasses__() if k.__module__.startswith("safe_integrations.")]
    return [kind, *(deeper for sub in ours for deeper in _all_of(sub))]
