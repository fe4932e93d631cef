"""Agents whose models were taught different forms of a call: they finish, with the right answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult

from safe_integrations.calls.form import Form
from safe_integrations.calls.forms import FORMS
from safe_integrations.engine.model import never
from safe_integrations.langchain import ChatSafe
from safe_integrations.llama_index import SafeLLM
from safe_integrations.messages import Message
from safe_integrations.testing import ScriptedMember, ScriptedSession, follows
from tests.cut_off import doubtful

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")


def find_order(customer: str) -> str:
    """The number of a customer's order."""
    return "A-17" if customer == 'Ann "<b>" Lee' else "no such customer"


def price_of(order: str, quantity: int) -> float:
    """The price of an order."""
    return 12.5 * quantity if order == "A-17" else -1.0


def book(order: str, total: float, express: bool) -> str:
    """Books an order."""
    return f"booked {order} at {total:g}" + " express" * express


TOOLS = [find_order, price_of, book]
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("find_order", {"customer": 'Ann "<b>" Lee'}),
    ("price_of", {"order": "A-17", "quantity": 3}),
    ("book", {"order": "A-17", "total": 37.5, "express": True}),
]
RESULTS = ["A-17", "37.5", "booked A-17 at 37.5 express"]
ANSWER = "It is booked: 37.5 in all."


class Speaker(ScriptedMember):
    """A model that was taught one form of a call, and writes that which all have agreed on."""

    def __init__(self, name: str, teaches: Form | None, words: Sequence[bytes]) -> None:
        super().__init__(name, words, follows(b""), context_window=8192)
        self.teaches = teaches
        self.form: Form | None = None
        self.conversations: list[Sequence[Message]] = []

    def writing(self, form: Form) -> Speaker:
        self.form = form
        return self

    def render(self, messages: Sequence[Message], *args: Any) -> list[int]:
        self.conversations.append(messages)
        return [len(self.conversations)]

    def start(self, prompt: Sequence[int], cancel: Callable[[], bool] = never) -> ScriptedSession:
        assert self.form is not None
        conversation = self.conversations[prompt[0] - 1]
        done = [message.content for message in conversation if message.role == "tool"]
        assert done == RESULTS[: len(done)]
        if len(done) < len(STEPS):
            name, arguments = STEPS[len(done)]
            text = self.form.write([(name, json.dumps(arguments))])
        else:
            text = self.form.says + ANSWER
        one = ScriptedMember(self.name, [], doubtful(follows(text.encode())))
        one.tokens = self.tokens
        self.sessions.append(ScriptedSession(one))
        return self.sessions[-1]


PAIRS = {
    "Qwen3-Coder and Llama 3": ("function-xml", "llama"),
    "Qwen3-Coder twice": ("function-xml", "function-xml"),
    "gpt-oss twice": ("gpt-oss", "gpt-oss"),
    "gpt-oss and Mistral": ("gpt-oss", "mistral"),
    "Mistral twice": ("mistral", "mistral"),
    "GLM and none": ("glm", None),
    "Gemma 4 twice": ("gemma", "gemma"),
    "LFM2 twice": ("lfm", "lfm"),
    "Llama 3 twice": ("llama", "llama"),
}


def members(pair: str) -> tuple[Speaker, Speaker]:
    drafter, verifier = (None if name is None else FORMS[name] for name in PAIRS[pair])
    return (
        Speaker("drafter", drafter, [b"order", b'": "', b"A-17", b"</", b'", "']),
        Speaker("verifier", verifier, [b"ord", b"er", b"A-", b"17", b'"}', b"call>"]),
    )


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_langgraphs_agent_finishes(pair: str, streaming: bool) -> None:
    drafter, verifier = members(pair)
    agent = create_agent(ChatSafe(drafter=drafter, verifiers=[verifier], max_tokens=400), TOOLS)
    asked = {"messages": [("user", "Book Ann's order three times, express.")]}
    if streaming:
        chunks = []
        for kind, found in agent.stream(asked, stream_mode=["messages", "values"]):
            if kind == "messages":
                chunks.append(found[0])
            else:
                messages = found["messages"]
        shown = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
        assert "".join(chunk.text for chunk in shown) == ANSWER, "no call is shown as text"
    else:
        messages = agent.invoke(asked)["messages"]
    calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    assert [(call["name"], call["args"]) for call in calls] == STEPS
    assert [m.content for m in messages if isinstance(m, ToolMessage)] == RESULTS
    assert messages[-1].text == ANSWER


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
async def test_llama_indexs_agent_finishes(pair: str, streaming: bool) -> None:
    drafter, verifier = members(pair)
    llm = SafeLLM(drafter=drafter, verifiers=[verifier], max_tokens=400)
    agent = FunctionAgent(tools=list(TOOLS), llm=llm, streaming=streaming)
    handler = agent.run("Book Ann's order three times, express.")
    events = [event async for event in handler.stream_events()]
    assert str(await handler) == ANSWER
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert [(result.tool_name, result.tool_kwargs) for result in results] == STEPS
    assert [str(result.tool_output.content) for result in results] == RESULTS
    streamed = "".join(event.delta for event in events if isinstance(event, AgentStream))
    assert streamed == (ANSWER if streaming else "")
