"""`SafeLLM` with the real default pair, in the pipelines that people build."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from safe_integrations.config import Regex
from safe_integrations.errors import IncompleteAnswerError
from safe_integrations.llama_index import (
    SafeCallError,
    SafeEvent,
    SafeGenerationEnd,
    SafeLLM,
    SafeVerification,
)
from safe_integrations.models.transformers import load as transformers_load
from tests.loops import join_generations


def agent_warnings(test: Any) -> Any:
    """Agents inspect pydantic's deprecated attributes, and ask whether they are running."""
    for ignored in (
        "ignore::pydantic.warnings.PydanticDeprecationWarning",
        "ignore:is_running called from within a step:DeprecationWarning",
    ):
        test = pytest.mark.filterwarnings(ignored)(test)
    return test


FACTS = [
    "The Blue Fox is a ship. Her captain is Maria Lund.",
    "The bakery on Mill Street sells rye bread.",
    "Mount Oro is 3,412 metres high.",
]
QUESTION = "Who is the captain of the Blue Fox?"


@pytest.fixture(scope="module")
def index(embedding: Any) -> VectorStoreIndex:
    documents = [Document(text=text) for text in FACTS]
    return VectorStoreIndex.from_documents(documents, embed_model=embedding)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_query_engine_answers_from_its_documents(
    index: VectorStoreIndex, llm: SafeLLM, listener: Any, streaming: bool
) -> None:
    engine = index.as_query_engine(llm=llm, streaming=streaming, similarity_top_k=1)
    response = engine.query(QUESTION)
    text = "".join(response.response_gen) if streaming else str(response)
    assert "Maria Lund" in text
    assert [node.get_content() for node in response.source_nodes] == FACTS[:1]
    (call,) = listener.of(LLMChatStartEvent)
    events = listener.of(SafeEvent)
    assert {event.span_id for event in events} == {call.span_id}
    end = events[-1].payload
    assert [model["name"] for model in end["models"]] == ["smollm2-135m", "gemma3-270m"]
    assert end["judged"] == sum(len(e.payload["pieces"]) for e in listener.of(SafeVerification))
    json.dumps([event.payload for event in events])


async def test_a_chat_engine_remembers(llm: SafeLLM, listener: Any) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=500, tokenizer_fn=str.split)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    engine.chat("My name is Ada.")
    answer = "".join(engine.stream_chat("What is my name?").response_gen)
    assert "Ada" in answer
    assert [m.role.value for m in listener.of(LLMChatStartEvent)[-1].messages] == [
        *("user", "assistant", "user")
    ]
    assert len(listener.of(SafeGenerationEnd)) == 2


def multiply(a: int, b: int) -> int:
    """Multiplies two whole numbers."""
    return a * b


@agent_warnings
async def test_a_function_agent_calls_a_tool(llm: SafeLLM, listener: Any) -> None:
    llm.max_tokens = 40
    agent = FunctionAgent(
        tools=[multiply], llm=llm, initial_tool_choice="multiply", allow_parallel_tool_calls=False
    )
    result = await agent.run("What is 6 times 7? Use the tool.")
    (call,) = result.tool_calls[:1]
    assert call.tool_name == "multiply"
    assert call.tool_output.raw_output == call.tool_kwargs["a"] * call.tool_kwargs["b"]
    assert str(result)
    assert len(listener.of(SafeGenerationEnd)) >= 2


@agent_warnings
async def test_a_react_agent_calls_a_tool(llm: SafeLLM) -> None:
    """The form of its turns is guaranteed; what it does is up to the models."""
    llm.max_tokens = 60
    number = "[1-9][0-9]?"
    action = f'Action: multiply\\nAction Input: \\{{"a": {number}, "b": {number}\\}}'
    thought = "Thought: [A-Z][a-z ]{5,30}\\.\\n"
    llm.response_format = Regex(pattern=f"{thought}({action}|Answer: [A-Za-z0-9 ]{{1,40}}\\.)")
    tool = FunctionTool.from_defaults(multiply, return_direct=True)
    result = await ReActAgent(tools=[tool], llm=llm).run("What is 6 times 7?")
    (call,) = result.tool_calls
    assert call.tool_name == "multiply"
    assert str(result) == str(call.tool_kwargs["a"] * call.tool_kwargs["b"])


class Captain(BaseModel):
    """The captain of a ship."""

    name: str


async def test_structured_output_is_what_was_asked_for(llm: SafeLLM) -> None:
    llm.max_tokens = 48
    prompt = PromptTemplate("{text}\n\nWho is the captain?")
    assert "Lund" in llm.structured_predict(Captain, prompt, text=FACTS[0]).name
    response = await llm.as_structured_llm(Captain).achat([ChatMessage(FACTS[0])])
    assert isinstance(response.raw, Captain)


async def test_objects_grow_while_they_are_written(llm: SafeLLM) -> None:
    class Ship(BaseModel):
        """A ship."""

        captain: str
        name: str

    llm.max_tokens = 60
    prompt = PromptTemplate("{text}\n\nWho is the captain, and of which ship?")
    stream = await llm.astream_structured_predict(Ship, prompt, text=FACTS[0])
    *growing, last = [found async for found in stream]
    assert isinstance(last, Ship) and "Lund" in last.captain
    partial = [found for found in growing if found.captain and found.name != last.name]
    assert partial and all(last.captain.startswith(found.captain) for found in partial)


def test_a_call_that_is_cut_off_is_not_carried_out(llm: SafeLLM) -> None:
    """This very pair executed delete(path='delete') and delete(path=None)."""
    deleted: list[Any] = []

    def delete(path: str | None = None) -> str:
        """Deletes a folder."""
        deleted.append(path)
        return "gone"

    tool = FunctionTool.from_defaults(delete)
    for max_tokens in range(20, 34, 2):
        with pytest.raises((IncompleteAnswerError, SafeCallError), match="raise max_tokens|needs"):
            llm.predict_and_call(
                [tool],
                "Delete the folder /home/me/project/with/a/long/name/to/write/down/tmp.",
                tool_required=True,
                max_tokens=max_tokens,
            )
    assert deleted == []


def test_metadata_of_the_default_pair_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers_load, "load_model")
    metadata = SafeLLM().metadata
    assert metadata.context_window == 8192
    assert metadata.is_chat_model
    assert metadata.model_name == "smollm2-135m+gemma3-270m"


async def test_all_ways_to_ask_give_one_answer(llm: SafeLLM) -> None:
    messages = [ChatMessage("What colour is the sky?")]
    achat = await llm.achat(messages)
    chat = llm.chat(messages)
    *_, streamed = llm.stream_chat(messages)
    assert achat.message.content == chat.message.content == streamed.message.content
    assert "blue" in str(chat)
    usage = streamed.raw["usage"]
    assert usage["prompt_tokens"] > 5
    assert usage["completion_tokens"] == streamed.raw["safe"]["tokens"] <= 12


async def test_cancelling_stops_the_models(llm: SafeLLM, listener: Any) -> None:
    llm.max_tokens = 1000
    task = asyncio.create_task(llm.achat([ChatMessage("Count to one thousand.")]))
    while not listener.of(SafeVerification):
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = len(listener.of(SafeVerification))
    await asyncio.to_thread(join_generations)
    assert len(listener.of(SafeVerification)) == count
    assert listener.of(SafeGenerationEnd) == []
