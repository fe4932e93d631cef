"""Fixtures: an LLM, and listeners for what LlamaIndex reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import llama_index.core
import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from scripted_llms import hello_world

from safe_integrations.llama_index import SafeLLM
from tests.listening import listener as listener


@pytest.fixture
def llm() -> SafeLLM:
    return hello_world()


@pytest.fixture
def spans() -> Iterator[Callable[[], list[str]]]:
    """Names of the spans that were left, without their ids."""
    root = get_dispatcher()
    before = list(root.span_handlers)
    handler = SimpleSpanHandler()
    root.add_span_handler(handler)
    yield lambda: [span.id_.partition("-")[0] for span in handler.completed_spans]
    root.span_handlers = before


@pytest.fixture(autouse=True)
def no_global_handler() -> Iterator[None]:
    yield
    llama_index.core.global_handler = None
