"""`SafeLLM` with nothing but the addresses of two real servers."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from safe_integrations.llama_index import (
    SafeEvent,
    SafeGenerationEnd,
    SafeLLM,
    SafeVerification,
)
from safe_integrations.models.spec import ModelSpec
from safe_integrations.report.result import Result
from tests.served_pair import QUESTION
from tests.served_pair import expected as expected
from tests.served_pair import specs as specs
from tests.spans import Recorder
from tests.spans import instrumented as instrumented
from tests.spans import recorder as recorder

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


@pytest.fixture
def served(specs: list[ModelSpec]) -> SafeLLM:
    return SafeLLM(drafter=specs[0], verifiers=specs[1:], max_tokens=8)


async def test_every_way_to_ask_has_the_same_answer(served: SafeLLM, expected: Result) -> None:
    asked = [ChatMessage(QUESTION)]
    assert served.complete(QUESTION).text == expected.text
    assert served.chat(asked).message.content == expected.text
    *_, last = chunks = list(served.stream_chat(asked))
    assert "".join(chunk.delta or "" for chunk in chunks) == expected.text
    assert last.message.content == expected.text and len(chunks) > 1
    later = [chunk.delta or "" async for chunk in await served.astream_complete(QUESTION)]
    assert "".join(later) == expected.text


def test_the_events_of_an_answer(served: SafeLLM, expected: Result, listener: Any) -> None:
    served.complete(QUESTION)
    (end,) = listener.of(SafeGenerationEnd)
    told = [model["name"] for model in end.payload["models"]]
    assert told == ["smollm2", "gemma3"]
    assert all(model["requests"] for model in end.payload["models"])
    pieces = [p for event in listener.of(SafeVerification) for p in event.payload["pieces"]]
    assert len(pieces) == end.payload["judged"] == expected.statistics.judged
    assert len({event.span_id for event in listener.of(SafeEvent)}) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_under_the_span_of_a_call(
    served: SafeLLM, expected: Result, streaming: bool, instrumented: Recorder
) -> None:
    asked = [ChatMessage(QUESTION)]
    if streaming:
        list(served.stream_chat(asked))
    else:
        served.chat(asked)
    span = instrumented.generation()
    parent = instrumented.parent_of(span)
    assert parent is not None
    assert parent.name == ("SafeLLM.stream_chat" if streaming else "SafeLLM.chat")
    mine, theirs = dict(span.attributes or {}), dict(parent.attributes or {})
    assert mine["safe.tokens"] == theirs["safe.tokens"] == expected.statistics.tokens
    assert {event.name for event in span.events} == {"safe.verification", "safe.ensemble"}


class Captain(BaseModel):
    """The captain of a ship."""

    name: str


def test_structured_output_is_what_was_asked_for(served: SafeLLM) -> None:
    served.max_tokens = 48
    prompt = PromptTemplate("The captain of the Blue Fox is Maria Lund. {question}")
    captain = served.structured_predict(Captain, prompt, question="Who is the captain?")
    assert isinstance(captain, Captain) and captain.name


async def test_a_tool_is_called(served: SafeLLM) -> None:
    def multiply(a: int, b: int) -> int:
        """Multiplies two whole numbers."""
        return a * b

    served.max_tokens = 60
    tool = FunctionTool.from_defaults(multiply)
    question = "What is 6 times 7?"
    response = await served.achat_with_tools([tool], question, tool_required=True)
    (call,) = served.get_tool_calls_from_response(response)
    assert call.tool_name == "multiply" and call.tool_kwargs.keys() == {"a", "b"}
