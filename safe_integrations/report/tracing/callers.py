"""Finding the LLM span that a tracer of LangChain or LlamaIndex has opened for this very call.

Neither framework makes it the current span: OpenInference's handlers keep it to themselves and
give it out by id. Nothing is imported here that the application has not imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_INSTRUMENTATION = "openinference.instrumentation"


def llm_span(run_id: UUID | None) -> Span | None:
    """The span of the LLM call we are in; None where no tracer has one.

    Args:
        run_id: The LangChain run, in a LangChain call.
    """
    return _llama_index() if run_id is None else _langchain(run_id)


def _langchain(run_id: UUID) -> Span | None:
    module = sys.modules.get(f"{_INSTRUMENTATION}.langchain")
    if module is None:
        return None
    instrumentor: Any = module.LangChainInstrumentor()
    if getattr(instrumentor, "_tracer", None) is None:  # get_span would print a reproach
        return None
    return cast("Span | None", instrumentor.get_span(run_id))


def _llama_index() -> Span | None:
    module: Any = sys.modules.get(f"{_INSTRUMENTATION}.llama_index")
    return None if module is None else cast("Span | None", module.get_current_span())
