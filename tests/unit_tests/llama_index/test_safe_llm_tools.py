"""Tools, structured output and agents, on scripted models and the real constraints."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from scripted_llms import Model, says

from safe_integrations.calls import grammar
from safe_integrations.engine.tokens import END
from safe_integrations.llama_index import SafeLLM

# Agents inspect all attributes of themselves, pydantic's deprecated ones included.
agents = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


class City(BaseModel):
    """A city."""

    name: str
    people: int


PARIS = '<tool_call>\n{"name": "City", "arguments": {"name": "Paris", "people": 2}}\n</tool_call>'
QUESTION = PromptTemplate("Tell me about {what}.")


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


TOOL = FunctionTool.from_defaults(add)


def test_a_call_becomes_a_block_and_a_selection() -> None:
    llm = says(f"Let me see. {CALL}")
    response = llm.chat_with_tools([TOOL], "What is 2 + 3?")
    assert response.message.content == "Let me see."
    (block,) = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
    assert (block.tool_name, block.tool_kwargs) == ("add", {"a": 2, "b": 3})
    (told,) = response.message.additional_kwargs["tool_calls"]
    assert told["function"] == {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    assert response.raw["finish_reason"] == "tool_calls"
    (selection,) = llm.get_tool_calls_from_response(response)
    assert selection.tool_id == block.tool_call_id
    assert selection.tool_kwargs == {"a": 2, "b": 3}


def test_an_answer_without_a_call_is_text_and_an_error_where_asked() -> None:
    llm = says("Five.")
    response = llm.chat_with_tools([TOOL], "What is 2 + 3?")
    assert response.message.content == "Five."
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no tool; it wrote 'Five.'"):
        llm.get_tool_calls_from_response(response)


def test_a_stop_string_does_not_break_a_call_that_is_asked_for() -> None:
    llm = says(PARIS)
    llm.stop = "\n"
    assert llm.structured_predict(City, QUESTION, what="Paris").name == "Paris"


def test_a_streamed_call_grows_and_ends_complete() -> None:
    llm = says(CALL)
    chunks = list(llm.stream_chat_with_tools([TOOL], "What is 2 + 3?"))
    seen = []
    for chunk in chunks:
        calls = llm.get_tool_calls_from_response(chunk, error_on_no_tool_call=False)
        seen += [call.tool_kwargs for call in calls if call.tool_kwargs not in seen]
    assert seen[-1] == {"a": 2, "b": 3}
    assert {"a": 2, "b": None} in seen, "the call was seen while b was still to come"
    assert (
        len(
            {
                c.tool_id
                for chunk in chunks
                for c in llm.get_tool_calls_from_response(chunk, error_on_no_tool_call=False)
            }
        )
        == 1
    )


async def test_a_required_tool_is_enforced_on_a_model_that_would_rather_chat() -> None:
    """A small model asked for structured output often just talks."""

    def chatty(written: bytes) -> dict[bytes, float]:
        wanted = CALL.encode()
        following = wanted[len(written) : len(written) + 1]
        return {b"S": 0.9, following: 0.1} if following else {END: 1.0}

    llm = says("")
    llm.drafter = Model("chatty", [], chatty)
    response = await llm.achat_with_tools([TOOL], "2 + 3?", tool_required=True)
    assert llm.get_tool_calls_from_response(response)[0].tool_kwargs == {"a": 2, "b": 3}


async def test_structured_output_on_all_paths() -> None:
    paris = City(name="Paris", people=2)
    assert says(PARIS).structured_predict(City, QUESTION, what="Paris") == paris
    assert await says(PARIS).astructured_predict(City, QUESTION, what="Paris") == paris
    streamed = list(says(PARIS).stream_structured_predict(City, QUESTION, what="Paris"))
    assert streamed[-1] == paris
    assert len(streamed) > 1
    stream = await says(PARIS).astream_structured_predict(City, QUESTION, what="Paris")
    assert [item async for item in stream][-1] == paris
    response = says(PARIS).as_structured_llm(City).chat([ChatMessage("Paris?")])
    assert response.raw == paris


async def test_the_system_prompt_is_there_once_in_structured_output() -> None:
    for path in ("structured_predict", "astructured_predict"):
        llm = says(PARIS)
        llm.system_prompt = "Be exact."
        result = getattr(llm, path)(City, QUESTION, what="Paris")
        if path.startswith("a"):
            await result
        roles = [role for role, _ in llm.drafter.asked[0]]
        assert roles == ["system", "user"]


@agents
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_calls_its_tool_and_reads_the_result(streaming: bool) -> None:
    llm = says(CALL, "It is 5.")
    agent = FunctionAgent(tools=[add], llm=llm, streaming=streaming)
    handler = agent.run("What is 2 + 3?")
    pieces = [e async for e in handler.stream_events() if isinstance(e, AgentStream)]
    result = await handler
    assert str(result) == "It is 5."
    assert bool(pieces) == streaming
    assert [call.tool_output.raw_output for call in result.tool_calls] == [5]
    *_, asked, answered = llm.drafter.messages
    assert asked.extra["tool_calls"][0]["function"]["arguments"] == {"a": 2, "b": 3}
    assert (answered.role, answered.content) == ("tool", "5")
    assert answered.extra["tool_call_id"] == asked.extra["tool_calls"][0]["id"]


@agents
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
async def test_a_react_agent_calls_its_tool() -> None:
    thought = 'Thought: I need a tool.\nAction: add\nAction Input: {"a": 2, "b": 3}'
    llm = says(thought, "Thought: I know.\nAnswer: It is 5.")
    result = await ReActAgent(tools=[add], llm=llm).run("What is 2 + 3?")
    assert str(result) == "It is 5."
    assert [call.tool_output.raw_output for call in result.tool_calls] == [5]


def test_preparing_a_call_is_no_span_of_its_own(spans: Any) -> None:
    says(CALL).predict_and_call([TOOL], "What is 2 + 3?")
    assert [name for name in spans() if name.startswith("SafeLLM")] == [
        "SafeLLM.chat",
        "SafeLLM.predict_and_call",
    ]


def test_one_call_is_one_call_where_no_grammar_keeps_the_model_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where llguidance is not installed, calls under `auto` are held by none."""
    monkeypatch.setattr(grammar, "find_spec", lambda _: None)
    members = [says(CALL + CALL).drafter for _ in range(3)]
    for member, allowed in zip(members, (True, False, False), strict=True):
        llm = SafeLLM(drafter=member)
        how = {"allow_parallel_tool_calls": allowed}
        if member is members[2]:
            *_, response = llm.stream_chat_with_tools([TOOL], "2 + 3, twice?", **how)
        else:
            response = llm.chat_with_tools([TOOL], "2 + 3, twice?", **how)
        assert len(llm.get_tool_calls_from_response(response)) == (2 if allowed else 1)


async def test_tools_can_be_kept_from_models_that_are_bad_at_them() -> None:
    """Then agents and structured output ask with prompts, and read the text."""
    text = '{"name": "Paris", "people": 2}'
    paris = City(name="Paris", people=2)

    def llm() -> SafeLLM:
        answers = says(text)
        answers.is_function_calling_model = False
        return answers

    assert llm().metadata.is_function_calling_model is False
    assert llm().structured_predict(City, QUESTION, what="Paris") == paris
    *_, last = llm().stream_structured_predict(City, QUESTION, what="Paris")
    assert last.model_dump() == paris.model_dump()
    stream = await llm().astream_structured_predict(City, QUESTION, what="Paris")
    assert [item async for item in stream][-1].model_dump() == paris.model_dump()
    assert SafeLLM(is_function_calling_model=False).to_dict()["is_function_calling_model"] is False
